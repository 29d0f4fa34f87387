"""Run a model on tasks of mteb, the embedding benchmark (pip install moon3[mteb])."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import add_device

NAME = "mteb"  # a file of this name would hide the library
ORDER = 92


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name what the command takes."""
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="names of mteb's tasks")
    parser.add_argument(
        "--model", required=True, help="folder or hub id of a Moon or dual-tower checkpoint, or a peer as KIND=PLACE"
    )
    parser.add_argument("--output", type=Path, help="JSON file for mteb's results")
    parser.add_argument("--batch-size", type=int, default=32)
    add_device(parser)


def run(chosen: argparse.Namespace) -> None:
    """Run the tasks and print their main scores."""
    import importlib.util

    from tabulate import tabulate

    from product_data.errors import OptionError

    if importlib.util.find_spec("mteb") is None:
        raise OptionError("moon3 mteb needs the package mteb, which is not installed; expected pip install moon3[mteb]")
    from evaluation.mteb_model import main_scores, run_tasks

    results = run_tasks(
        chosen.model, chosen.tasks, output=chosen.output, device=chosen.device, batch_size=chosen.batch_size
    )
    rows = [[*place, f"{score:.4f}"] for *place, score in main_scores(results)]
    print(tabulate(rows, headers=["task", "split", "subset", "main score"], tablefmt="github", disable_numparse=True))
