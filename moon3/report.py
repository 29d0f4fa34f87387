"""Print results files as Markdown tables, or compare models in columns."""

from __future__ import annotations

import argparse

ORDER = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("files", nargs="+", help="results files of moon3 evaluate")
    parser.add_argument(
        "--compare", metavar="METRIC", help="compare one metric, with one column for each model: R@k, nDCG@k or MRR"
    )


def run(chosen: argparse.Namespace) -> None:
    """Print the tables."""
    from evaluation.report import report

    print(report(chosen.files, chosen.compare))
