"""Train the shipped checkpoint again, from drawn products only, and measure it."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 180


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/moon1_catalogue"), help="folder for products and training runs"
    )
    parser.add_argument("--target", type=Path, help="folder of the checkpoint (default: the shipped one)")
    parser.add_argument("--results", type=Path, help="results file (default: results/moon1_catalogue.json)")


def run(chosen: argparse.Namespace) -> None:
    """Train twice, measure the model, and write the checkpoint with its card."""
    from training.shipped_checkpoint import RESULTS, SHIPPED, card_table, make_shipped_checkpoint

    target, results_file = chosen.target or SHIPPED, chosen.results or RESULTS
    print(card_table(make_shipped_checkpoint(chosen.folder, target, results_file)))
    print(f"wrote {target} and {results_file}")
