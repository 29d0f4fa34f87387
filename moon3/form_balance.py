"""Report whether searches prefer texts, pictures or both in one gallery, and what centring by form changes."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import TABLES

ORDER = 158


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", required=True, nargs="+", help="folders or hub ids of models")
    parser.add_argument("--data", required=True, nargs="+", type=Path, help=f"{TABLES}, with queries; several")
    parser.add_argument("--split", default="test", help="split to search in, or all (default: test)")
    parser.add_argument(
        "--draw", action="store_true", help="give products with both only their text, only their picture or both"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=Path, help="results file (.json)")


def run(chosen: argparse.Namespace) -> None:
    """Measure, write the results file and print the table."""
    from evaluation.mixed_galleries import mixed_gallery_table, write_mixed_study
    from product_data.tables import load_tables

    galleries = {path.name: load_tables(path).select(chosen.split) for path in chosen.data}
    options = {name: getattr(chosen, name) for name in ("draw", "seed", "batch_size")}
    print(mixed_gallery_table(write_mixed_study(chosen.model, galleries, chosen.output, **options)))
