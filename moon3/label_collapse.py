"""Say why products are given one category label: how narrow their vectors are, and what centring changes."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import TABLES

ORDER = 158.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", required=True, nargs="+", metavar="NAME=MODEL", help="name and place of models")
    parser.add_argument("--data", required=True, type=Path, help=TABLES)
    parser.add_argument("--split", default="test", help="split to evaluate, or all (default: test)")
    parser.add_argument("--output", required=True, type=Path, help="results file (.json)")


def run(chosen: argparse.Namespace) -> None:
    """Measure, write the results file and print the table."""
    import evaluation.baselines  # noqa: F401 - makes the kinds known
    from evaluation.label_collapse import label_table, write_label_study
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_file
    from product_data.tables import load_tables

    require_writable_file("--output", chosen.output)
    models = dict(value.split("=", 1) for value in chosen.model if "=" in value)
    if len(models) < len(chosen.model):
        raise OptionError(f"--model: found {chosen.model}; expected different NAME=MODEL")
    tables = load_tables(chosen.data).select(chosen.split)
    print(label_table(write_label_study(models, tables, chosen.output)))
