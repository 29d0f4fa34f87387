"""Measure how losses fall with training tokens, negatives and the length of behaviour, and fit power laws."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ORDER = 142
STARTS_PROCESSES = RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("suite", type=Path, help="YAML file of a suite, as in training/recipes/scaling")
    parser.add_argument(
        "--output", type=Path, required=True, help="results file (.json); table and chart are written beside it"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"), help="folder for finished trainings")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time (default: 1)")


def run(chosen: argparse.Namespace) -> int:
    """Train, fit and print the table. Return 3 if a training did not finish."""
    from applications.scaling import report
    from applications.scaling.study import run_scale
    from product_data.errors import OptionError
    from product_data.outputs import OutputError, require_writable_file, require_writable_folder

    if chosen.output.suffix != ".json":
        raise OutputError(f"--output: found {chosen.output}; expected a .json file")
    if chosen.workers < 1:
        raise OptionError(f"--workers: found {chosen.workers}; expected 1 or more")
    require_writable_file("--output", chosen.output)
    require_writable_folder("--work", chosen.work)
    results, missed = run_scale(chosen.suite, chosen.work, workers=chosen.workers)
    report.write(results, chosen.output)
    print(report.table(results), *results["words"], sep="\n")
    if missed:
        print(f"moon3 scale: not finished: {'; '.join(missed)}; the same command retries them", file=sys.stderr)
    return 3 if missed else 0
