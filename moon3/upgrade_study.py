"""Study what adapters between an old model and new ones recover, by sample and by backfill."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import TABLES

ORDER = 157


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--old", required=True, help="folder or hub id of the old model")
    parser.add_argument(
        "--new", required=True, nargs="+", metavar="NAME=FOLDER", help="names and folders of new models"
    )
    parser.add_argument("--data", required=True, type=Path, help=f"{TABLES}, with queries")
    parser.add_argument("--split", default="all", help="split to search in (default: all)")
    parser.add_argument("--form", choices=("mm", "t", "i"), default="mm", help="form of the products (default: mm)")
    parser.add_argument("--samples", type=int, nargs="+", default=[200, 1000], help="sizes of samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="results file (.json)")


def run(chosen: argparse.Namespace) -> None:
    """Measure, write the results file and print the tables."""
    from evaluation.upgrade_study import upgrade_study_table, write_upgrade_study
    from product_data.errors import OptionError
    from product_data.tables import load_tables

    new = dict(name.partition("=")[::2] for name in chosen.new)
    if not all(new) or not all(new.values()):
        raise OptionError(f"--new: found {' '.join(chosen.new)}; expected NAME=FOLDER")
    if len(new) < len(chosen.new):
        raise OptionError(f"--new: found {' '.join(chosen.new)}; expected different names")
    tables = load_tables(chosen.data).select(chosen.split)
    options = {"form": chosen.form, "samples": chosen.samples, "seed": chosen.seed}
    print(upgrade_study_table(write_upgrade_study(chosen.old, new, tables, chosen.output, **options)))
