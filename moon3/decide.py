"""Find the same products in a catalogue, with a promised precision."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ORDER = 69


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("store", metavar="STORE", help="folder of moon3 embed, or qdrant=URL/COLLECTION")
    parser.add_argument("--output", type=Path, required=True, help="folder for the decisions, or for pairs to label")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--labels", type=Path, help="labelled candidates: .csv, .jsonl or .parquet with left, right, same"
    )
    which.add_argument("--calibration", type=Path, help="calibration.json of earlier decisions, instead of labels")
    which.add_argument(
        "--to-label",
        type=int,
        default=300,
        metavar="N",
        help="without labels: draw N candidates to label (default: 300)",
    )
    parser.add_argument("--form", choices=("mm", "t", "i"), help="vectors of text and picture (default), text, picture")
    parser.add_argument("--neighbours", type=int, help="nearest products that are candidates (default: 5)")
    parser.add_argument("--min-cosine", type=float, help="least cosine of a candidate (default: all)")
    parser.add_argument("--precision", type=float, help="wanted precision (default: .95)")
    parser.add_argument("--confidence", type=float, help="confidence of each promise (default: .95)")
    parser.add_argument("--seed", type=int, help="seed of the division of labels, or of the draw (default: 0)")


def run(chosen: argparse.Namespace) -> int:
    """Draw pairs to label; or calibrate, decide, and write the decisions. Return 1 if nothing could be decided."""
    from evaluation.decisions_page import decisions_page, labelling_page
    from product_data.atomic_files import write_atomically
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_folder
    from retrieval.decisions import deciding, files
    from retrieval.decisions.labelled_pairs import read_labelled_pairs
    from retrieval.stores.opening import open_store

    names = ("form", "neighbours", "min_cosine", "precision", "confidence", "seed")
    given = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    if chosen.calibration and given:
        raise OptionError(
            f"--calibration: found {', '.join(given)} with it; expected none: the calibration has its settings"
        )
    options = deciding.DecisionOptions(**given)
    require_writable_folder("--output", chosen.output)
    calibration = files.read_calibration(chosen.calibration) if chosen.calibration else None
    store = open_store(chosen.store)
    try:
        catalogue = deciding.read_catalogue(store, calibration.options.form if calibration else options.form)
    finally:
        store.close()
    if calibration is None and chosen.labels is None:
        pairs = deciding.sample_to_label(catalogue, options, chosen.to_label)
        files.write_to_label(chosen.output, catalogue, pairs)
        write_atomically(chosen.output / "to_label.html", labelling_page(catalogue, pairs, options.neighbours))
        print(f"{chosen.output / files.TO_LABEL}: {len(pairs)} candidates to label (pictures in to_label.html)")
        return 0
    if calibration is None:
        labels, unanswered = read_labelled_pairs(chosen.labels, catalogue.row)
        if unanswered:
            print(f"{chosen.labels}: {unanswered} rows without an answer are left out", file=sys.stderr)
        calibration = deciding.calibrate(catalogue, labels, options)
    else:
        deciding.require_no_shift(catalogue, calibration)
    decisions = deciding.decide(catalogue, calibration)
    files.write_decisions(chosen.output, catalogue, decisions)
    files.write_calibration(chosen.output / files.CALIBRATION, calibration)
    write_atomically(chosen.output / "report.html", decisions_page(catalogue, calibration, decisions))
    for sentence in (calibration.same.sentence, calibration.different.sentence, *calibration.warnings):
        print(f"{sentence}.")
    counts = {name: int((decisions.decision_P == name).sum()) for name in ("same", "doubtful", "different")}
    print(
        f"{chosen.output}: "
        + ", ".join(f"{count:,} {name}" for name, count in counts.items())
        + f"; {len(decisions.groups)} groups, {sum(group.is_chain for group in decisions.groups)} of them chains"
    )
    return 0 if counts["same"] or counts["different"] else 1
