"""Kill a training run repeatedly, also while it saves, and compare it with an uninterrupted run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ORDER = 170
STARTS_PROCESSES = True
TAKES_RECIPE_KEYS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("recipe", help="recipe to train")
    parser.add_argument("--kills", type=int, default=10, help="number of kills (default: 10)")
    parser.add_argument("--saves", type=int, help="number of kills aimed at a save (default: half of them)")
    parser.add_argument(
        "--at-least-in-saves", type=int, default=3, help="number of kills that must interrupt a save (default: 3)"
    )
    parser.add_argument("--processes", type=int, default=2, help="number of training processes (default: 2)")
    parser.add_argument("--save-steps", type=int, default=2, help="steps between checkpoints (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills (default: 0)")
    parser.add_argument(
        "--pause-seconds",
        type=float,
        default=0.02,
        help="pause after each file of a save; lets a kill interrupt even the save of a small model (default: 0.02)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the two runs, new or empty")
    parser.add_argument("--results", type=Path, help="JSON file to write (default: soak.json in --output)")


def run(chosen: argparse.Namespace) -> int:
    """Run the test and print the verdict. Return 1 if the runs differ or a run ended by itself."""
    from training.studies.soak import SoakOptions, run_soak

    names = ("output", "kills", "saves", "at_least_in_saves", "processes", "save_steps", "seed", "pause_seconds")
    options = SoakOptions(**{name: getattr(chosen, name) for name in names})
    found = run_soak(chosen.recipe, chosen.keys, options, chosen.results)
    for difference in found["differences"][:20]:
        print(f"differs: {difference}", file=sys.stderr)
    verdict = "equal to the uninterrupted run" if found["passed"] else "NOT PASSED"
    print(f"{chosen.kills} kills, {found['kills_in_a_save']} in a save: {verdict}; written to {found['results']}")
    return 0 if found["passed"] else 1
