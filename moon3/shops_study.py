"""Compare two models on several shops, those that they were trained on and others, with paired intervals."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 155


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name what the command takes."""
    from evaluation.shops_study import SHOPS

    parser.add_argument("--data", type=Path, required=True, help="folder of the shops' folders")
    parser.add_argument("--first", required=True, metavar="NAME=FOLDER", help="a checkpoint and what it is called")
    parser.add_argument("--second", required=True, metavar="NAME=FOLDER", help="what it is measured against")
    parser.add_argument("--shops", nargs="+", choices=[shop.name for shop in SHOPS], help="some of them (default: all)")
    parser.add_argument(
        "--output", type=Path, required=True, help="results file (.json); the page is written beside it"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/shops_study"), help="keeps what is measured")


def run(chosen: argparse.Namespace) -> None:
    """Measure, and print the table and its sentences."""
    from evaluation.shops_study import table, write_study

    models = dict(_named(option, value) for option, value in (("--first", chosen.first), ("--second", chosen.second)))
    results = write_study(models, chosen.data, chosen.output, chosen.work, chosen.shops)
    print(table(results, short=True), *results["words"], sep="\n")


def _named(option: str, value: str) -> tuple[str, str]:
    from product_data.errors import OptionError

    name, separator, folder = value.partition("=")
    if not (name and separator and folder):
        raise OptionError(f"{option} {value}; expected NAME=FOLDER")
    return name, folder
