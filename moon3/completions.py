"""Show what a GRPO stage writes, finished or not, as one HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ORDER = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name what the command takes."""
    from training.runs.folder import RunFolder
    from training.studies.completions_report import LAST, ORDERS

    parser.add_argument("run", type=Path, metavar="RUN", help="output_dir of a training with stage: grpo")
    parser.add_argument("--output", type=Path, help=f"the page (default: {RunFolder(Path('RUN')).completions_page})")
    parser.add_argument("--step", default=LAST, help="which step's completions; default: last")
    parser.add_argument("--items", type=int, default=40, help="at most so many pairs of query and product; default: 40")
    parser.add_argument(
        "--order",
        choices=ORDERS,
        default=ORDERS[0],
        help="best and worst first by the rank's change or by the weighted reward, or as they came; default: change",
    )
    parser.add_argument("--no-pictures", action="store_true", help="titles and words only")


def run(chosen: argparse.Namespace) -> None:
    """Write the page."""
    from training.studies.completions_report import write_page

    options = {name: getattr(chosen, name) for name in ("step", "items", "order")}
    path, notes = write_page(chosen.run, chosen.output, **options, pictures=not chosen.no_pictures)
    for note in notes:
        print(f"moon3 completions: {note}", file=sys.stderr)
    print(f"written to {path}")
