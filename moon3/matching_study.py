"""Measure explanations of matches, or decisions about same products, where the truth is known."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 156


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("kind", choices=("explanations", "decisions"), help="what to measure")
    parser.add_argument("--model", required=True, help="folder or hub id of a Moon checkpoint")
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
    from product_data.outputs import require_writable_file

    require_writable_file("--output", chosen.output)
    if chosen.kind == "explanations":
        from evaluation.explanations_study import measure_explanations, sentences

        results = measure_explanations(chosen.model)
    else:
        from evaluation.decisions_study import measure_decisions, sentences

        results = measure_decisions(chosen.model, titles=chosen.titles, text_encoder=chosen.text_encoder)
    write_atomically(chosen.output, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    print(*sentences(results), sep="\n")
