"""Print results files as Markdown tables, or compare models in columns."""

from __future__ import annotations

import argparse

ORDER = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name what the command takes."""
    parser.add_argument("files", nargs="+", help="results files of moon3 evaluate")
    parser.add_argument("--compare", metavar="METRIC", help="one column a model: R@k, nDCG@k or MRR")


def run(chosen: argparse.Namespace) -> None:
    """Print the tables."""
    from evaluation.report import report

    print(report(chosen.files, chosen.compare))
