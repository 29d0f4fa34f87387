"""Compare two models on the shops that they were trained on and on other shops, with paired intervals."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 155


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from evaluation.shops_study import SHOPS

    parser.add_argument("--data", type=Path, required=True, help="folder with one folder for each shop")
    parser.add_argument("--first", required=True, metavar="NAME=FOLDER", help="name and checkpoint of the model")
    parser.add_argument("--second", required=True, metavar="NAME=FOLDER", help="name and checkpoint of the other model")
    parser.add_argument(
        "--shops", nargs="+", choices=[shop.name for shop in SHOPS], help="shops to measure on (default: all)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="results file (.json); the page is written beside it"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/shops_study"), help="folder for finished measurements")


def run(chosen: argparse.Namespace) -> None:
    """Measure, and print the table and the summary sentences."""
    from evaluation.shops_study import table, write_study

    models = dict(_model(option, value) for option, value in (("--first", chosen.first), ("--second", chosen.second)))
    results = write_study(models, chosen.data, chosen.output, chosen.work, chosen.shops)
    print(table(results, short=True), *results["words"], sep="\n")


def _model(option: str, value: str) -> tuple[str, str]:
    from product_data.errors import OptionError

    name, separator, folder = value.partition("=")
    if not (name and separator and folder):
        raise OptionError(f"{option}: found {value!r}; expected NAME=FOLDER")
    return name, folder
