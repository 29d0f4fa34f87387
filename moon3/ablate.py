"""Make an ablation table: train every cell of a suite with every seed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ORDER = 140
STARTS_PROCESSES = RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("suite", type=Path, help="YAML file of a suite, as in training/recipes/ablations/suites")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/ablation"), help="folder to write (default: runs/ablation)"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of training runs at a time (default: 1)")
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="train only these cells (default: all)")
    parser.add_argument("--render-only", action="store_true", help="write the table of finished runs, train nothing")


def run(chosen: argparse.Namespace) -> int:
    """Train and print the table. Return 3 if a training run did not finish."""
    from training.studies.ablate import run_suite
    from training.studies.ablation_table import markdown

    options = {name: getattr(chosen, name) for name in ("workers", "cells", "render_only")}
    results, missed = run_suite(chosen.suite, chosen.output, **options)
    print(markdown(results))
    print(f"written to {chosen.output / 'ablation.json'}, ablation.md and ablation.png")
    if missed:
        print(f"moon3 ablate: not finished: {'; '.join(missed)}; the same command retries them", file=sys.stderr)
    return 3 if missed else 0
