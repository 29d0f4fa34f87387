"""Compare frozen encoders with Moon and the dual tower on several shops, with and without the core crop."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 154


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from evaluation.shops_study import SHOPS

    parser.add_argument("--data", type=Path, required=True, help="folder with one folder for each shop")
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        metavar="NAME=MODEL",
        help="name and model: a folder, a hub id or KIND=PLACE such as frozen=IMAGE_PLACE+TEXT_PLACE; the first is the reference",
    )
    parser.add_argument(
        "--shops", nargs="+", choices=[shop.name for shop in SHOPS], help="shops to measure on (default: all)"
    )
    parser.add_argument(
        "--beside", type=Path, help="results file of moon3 shops-study, whose models stand beside these"
    )
    parser.add_argument("--output", type=Path, required=True, help="results file (.json)")
    parser.add_argument("--work", type=Path, default=Path("runs/frozen_study"), help="folder for finished measurements")


def run(chosen: argparse.Namespace) -> None:
    """Measure, and print the table."""
    import evaluation.baselines  # noqa: F401 - makes the kinds known
    from evaluation.frozen_study import table, write_study
    from product_data.errors import OptionError

    models = {}
    for value in chosen.model:
        name, separator, place = value.partition("=")
        if not (name and separator and place):
            raise OptionError(f"--model: found {value!r}; expected NAME=MODEL")
        if name in models:
            raise OptionError(f"--model: found the name {name!r} twice; expected different names")
        models[name] = place
    results = write_study(models, chosen.data, chosen.output, chosen.work, chosen.shops, chosen.beside)
    print(table(results))
