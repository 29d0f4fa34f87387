"""Search with the shipped checkpoint, train it further for a fixed number of steps, and search again."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 10
TAKES_RECIPE_KEYS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name what the command takes."""
    parser.epilog = "Every key of the recipe can be replaced by --key value: see moon3 train --help."
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"), help="where everything is written")


def run(chosen: argparse.Namespace) -> None:
    """Do the whole of it."""
    from training.quickstart import quickstart

    quickstart(chosen.folder, chosen.keys)
