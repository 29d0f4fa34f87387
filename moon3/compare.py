"""Compare results files query by query: paired differences with intervals and corrected p-values."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 105


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "files", nargs="+", help="results files of moon3 evaluate; the others are compared with the first"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help="R@k, nDCG@k, MRR (default: R@10, MRR and nDCG@10, or those of the largest k)",
    )
    parser.add_argument("--output", type=Path, help="JSON file of every row")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--resamples", type=int, default=1000, help="number of bootstrap samples (default: 1000)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the bootstrap and of drawn sign patterns (default: 0)"
    )


def run(chosen: argparse.Namespace) -> None:
    """Compare and print the tables."""
    from evaluation.compare import compare_files, comparison_text
    from product_data.errors import OptionError

    if chosen.resamples < 1:
        raise OptionError(f"--resamples {chosen.resamples}; expected 1 or more")
    found = compare_files(
        chosen.files, metrics=chosen.metrics, output=chosen.output, resamples=chosen.resamples, seed=chosen.seed
    )
    print(comparison_text(found, style="github" if chosen.markdown else "simple"))
