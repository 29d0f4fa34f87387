"""Measure what GRPO gains over its cold start, with several seeds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ORDER = 150
STARTS_PROCESSES = RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from training.places import RECIPES

    default = RECIPES / "study_moon3.yaml"
    parser.add_argument(
        "recipe", type=Path, nargs="?", default=default, help="recipe with stage: grpo (default: %(default)s)"
    )
    parser.add_argument("--controls", action="store_true", help="also train the same steps without rewards")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=3, help="number of training runs at a time (default: 3)")
    parser.add_argument("--output", type=Path, default=Path("results/reasoning_catalogue.json"))
    parser.add_argument("--run-folder", type=Path, default=Path("runs/reasoning_study"))


def run(chosen: argparse.Namespace) -> int:
    """Train and print the study. Return 3 if a training run did not finish."""
    from training.studies.reasoning_study import study

    options = {name: getattr(chosen, name) for name in ("seeds", "controls", "workers")}
    missed = study(chosen.recipe, chosen.output, chosen.run_folder, **options)
    print(chosen.output.with_suffix(".md").read_text(encoding="utf-8"))
    for name in missed:
        print(f"moon3 reasoning-study: not finished: {name}", file=sys.stderr)
    return 3 if missed else 0
