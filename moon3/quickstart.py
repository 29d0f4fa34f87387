"""Search with the shipped checkpoint, train it further for a fixed number of steps, and search again."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 10
TAKES_RECIPE_KEYS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = "--key value replaces any key of the recipe: see moon3 train --help."
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/quickstart"), help="folder to write (default: %(default)s)"
    )


def run(chosen: argparse.Namespace) -> None:
    """Run all steps of the quickstart."""
    from training.quickstart import quickstart

    quickstart(chosen.folder, chosen.keys)
