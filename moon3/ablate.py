"""Make an ablation table: every cell of a suite with every seed, each a training of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ORDER = 140


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name what the command takes."""
    parser.add_argument("suite", type=Path, help="a suite, see training/recipes/ablations/suites")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="default: runs/ablation")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="these cells only (default: all)")
    parser.add_argument("--render-only", action="store_true", help="write the table of what is finished, train nothing")


def run(chosen: argparse.Namespace) -> int:
    """Train and print the table; the exit status is 1 where a training did not finish, 130 where the command was stopped."""
    from training.studies.ablate import markdown, run_suite, terminated_as_interrupted

    options = {name: getattr(chosen, name) for name in ("workers", "cells", "render_only")}
    try:
        with terminated_as_interrupted():
            results, missed = run_suite(chosen.suite, chosen.output, **options)
    except KeyboardInterrupt:
        print("moon3 ablate: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(markdown(results))
    print(f"written to {chosen.output / 'ablation.json'}, ablation.md and ablation.png")
    if missed:
        print(f"moon3 ablate: not finished: {'; '.join(missed)}; the same command tries them again", file=sys.stderr)
    return 1 if missed else 0
