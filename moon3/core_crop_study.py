"""Measure detectors of core boxes: the fit of their boxes, and search and training with crops to them."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 159
STARTS_PROCESSES = RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders street and grocery")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="the ONNX file of a U²-Net")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=PLACE",
        help="search with this checkpoint (may be repeated)",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[], help="also train a small model with each seed and source of boxes"
    )
    parser.add_argument("--every", type=int, default=1, help="search with every N-th photo of grocery (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="results file (.json)")
    parser.add_argument("--work", type=Path, default=Path("runs/core_crop"), help="folder for boxes and trainings")


def run(chosen: argparse.Namespace) -> None:
    """Measure, write the results and print sentences."""
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_file
    from training.studies.core_crop_training import write_core_crop_study

    models = {}
    for value in chosen.model:
        name, separator, place = value.partition("=")
        if not (name and separator and place):
            raise OptionError(f"--model: found {value!r}; expected NAME=PLACE")
        models[name] = place
    if chosen.every < 1:
        raise OptionError(f"--every: found {chosen.every}; expected 1 or more")
    require_writable_file("--output", chosen.output)
    places = (chosen.output, chosen.work, chosen.seeds, chosen.every)
    print(*write_core_crop_study(chosen.data, chosen.weights, models, *places), sep="\n")
