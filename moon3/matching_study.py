"""Measure explanations of matches, decisions about same products, or near-duplicates, where the truth is known."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 156


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("kind", choices=("explanations", "decisions", "near-duplicates"), help="what to measure")
    parser.add_argument(
        "--model",
        help="folder or hub id of a Moon checkpoint (near-duplicates: also compare its vectors; default: none)",
    )
    parser.add_argument("--products", type=int, help="near-duplicates: products of each catalogue (default: 480)")
    parser.add_argument("--output", type=Path, required=True, help="results file (.json)")
    parser.add_argument(
        "--titles", type=Path, help="decisions: folder with labelled pairs of titles, NAME_train.csv and so on"
    )
    parser.add_argument(
        "--text-encoder", help="decisions: a frozen text encoder beside, such as sentence_transformer=PLACE"
    )


def run(chosen: argparse.Namespace) -> None:
    """Measure, write the results file and print the summary sentences."""
    import json

    from product_data.atomic_files import write_atomically
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_file

    if chosen.model is None and chosen.kind != "near-duplicates":
        raise OptionError(f"--model: found none; expected the model whose {chosen.kind} are measured")
    if chosen.products is not None and (chosen.kind != "near-duplicates" or chosen.products < 60):
        raise OptionError(
            f"--products: found {chosen.products} with {chosen.kind}; expected 60 or more, of near-duplicates"
        )
    for option in ("titles", "text_encoder"):
        if getattr(chosen, option) is not None and chosen.kind != "decisions":
            raise OptionError(
                f"--{option.replace('_', '-')}: found it with {chosen.kind}; expected it with decisions only"
            )
    if chosen.text_encoder is not None and chosen.titles is None:
        raise OptionError("--text-encoder: found it without --titles; expected the titles that it compares")
    require_writable_file("--output", chosen.output)
    if chosen.kind == "explanations":
        from evaluation.explanations_study import measure_explanations, sentences

        results = measure_explanations(chosen.model)
    elif chosen.kind == "near-duplicates":
        from evaluation.near_duplicates_study import measure_near_duplicates, sentences

        given = {} if chosen.products is None else {"products": chosen.products}
        results = measure_near_duplicates(chosen.model, **given)
    else:
        from evaluation.decisions_study import measure_decisions, sentences

        results = measure_decisions(chosen.model, titles=chosen.titles, text_encoder=chosen.text_encoder)
    write_atomically(chosen.output, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    print(*sentences(results), sep="\n")
