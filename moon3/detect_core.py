"""Detect the core product in the pictures of tables, and write its boxes into a copy of the tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import add_images_root

ORDER = 25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("tables", help="a folder or products file in the two-table format, or a shop's feed")
    parser.add_argument("--detector", required=True, choices=("saliency", "largest-region", "grounding"))
    parser.add_argument("--output", required=True, type=Path, help="folder for the tables with boxes")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="saliency: the ONNX file of a U²-Net")
    parser.add_argument("--threshold", type=float, help="saliency: least value of the foreground (default: 0.5)")
    parser.add_argument(
        "--region", choices=("all", "largest"), help="saliency: box of all regions (default) or of the largest"
    )
    parser.add_argument(
        "--margin", type=float, help="saliency: margin on each side, as a share of the box (default: .02)"
    )
    parser.add_argument("--model", help="grounding: folder or hub id of a Qwen2.5-VL or Qwen3-VL")
    parser.add_argument("--device", help="grounding: cpu, cuda, … (default: the CPU)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures that are detected together (default: 8)")
    parser.add_argument("--replace", action="store_true", help="detect also where the tables have a box")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="keep detected boxes here, for several data sets (default: in --output)",
    )
    add_images_root(parser)
    parser.add_argument(
        "--fetch-pictures", type=Path, metavar="FOLDER", help="fetch pictures from URLs into this folder"
    )
    parser.add_argument("--quiet", action="store_true", help="hide the progress bar")


def run(chosen: argparse.Namespace) -> int:
    """Write the tables and print the counts. Return 1 if a picture cannot be opened."""
    from product_data.core_boxes.detectors import open_detector
    from product_data.core_boxes.saliency import SaliencyOptions
    from product_data.core_boxes.writing import BoxOptions, write_core_boxes
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_folder
    from product_data.picture_files import PictureFetching

    if chosen.batch_size < 1:
        raise OptionError(f"--batch-size: found {chosen.batch_size}; expected 1 or more")
    require_writable_folder("--output", chosen.output)
    of_mask = {name: getattr(chosen, name) for name in ("threshold", "region", "margin")}
    given = {name: value for name, value in of_mask.items() if value is not None}
    detector = open_detector(
        chosen.detector,
        weights=chosen.weights,
        saliency=SaliencyOptions(**given) if given else None,
        model=chosen.model,
        batch_size=chosen.batch_size,
        device=chosen.device,
    )
    fetching = None if chosen.fetch_pictures is None else PictureFetching(folder=chosen.fetch_pictures)
    options = BoxOptions(
        chosen.replace, chosen.images_root, fetching, chosen.batch_size, not chosen.quiet, chosen.cache
    )
    report = write_core_boxes(chosen.tables, chosen.output, detector, options)
    print(report)
    print(f"{chosen.output}: {report.detected} pictures were looked at, the others were known")
    return int(not report.ok)
