"""Show the completions of a finished or running GRPO run as one HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ORDER = 57


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from training.runs.folder import RunFolder
    from training.studies.completions_report import LAST, ORDERS

    parser.add_argument("run", type=Path, metavar="RUN", help="output_dir of a training run with stage: grpo")
    parser.add_argument("--output", type=Path, help=f"the page (default: {RunFolder(Path('RUN')).completions_page})")
    parser.add_argument("--step", default=LAST, help="step whose completions are shown (default: last)")
    parser.add_argument("--items", type=int, default=40, help="maximum number of query-product pairs (default: 40)")
    parser.add_argument(
        "--order",
        choices=ORDERS,
        default=ORDERS[0],
        help="best and worst by change of rank or by weighted reward, or the order of the step (default: change)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="show titles and words only")


def run(chosen: argparse.Namespace) -> None:
    """Write the page."""
    from training.studies.completions_report import write_page

    options = {name: getattr(chosen, name) for name in ("step", "items", "order")}
    path, notes = write_page(chosen.run, chosen.output, **options, pictures=not chosen.no_pictures)
    for note in notes:
        print(f"moon3 completions: {note}", file=sys.stderr)
    print(f"written to {path}")
