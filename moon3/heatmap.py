"""Draw the attention of vectors over pictures and words, one PNG for each product or query."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from moon3._arguments import TABLES, add_catalogue, add_device, add_images_root, add_reading, reading_of

ORDER = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", required=True, help="folder or hub id of a Moon checkpoint")
    parser.add_argument("--data", required=True, help=TABLES)
    parser.add_argument("--output", required=True, type=Path, help="folder for the PNGs and index.json")
    parser.add_argument("--split", default="test", help="split of the products, or all (default: test)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ids", nargs="+", metavar="ID", help="ids of the products (or queries) to draw")
    which.add_argument("--first", type=int, metavar="N", help="draw the first N (default: all)")
    parser.add_argument("--queries", action="store_true", help="draw queries instead of products")
    parser.add_argument(
        "--reasoning",
        choices=("none", "generate"),
        default="none",
        help="generate: let the model write attributes first",
    )
    parser.add_argument(
        "--layers", nargs="+", type=int, metavar="LAYER", help="decoder layers to average (default: all)"
    )
    parser.add_argument(
        "--relative", action="store_true", help="show attention relative to uniform attention (mean read-out)"
    )
    parser.add_argument(
        "--without-text", action="store_true", help="beside each record, draw its pictures without its text"
    )
    parser.add_argument("--font", type=Path, help="font file, for scripts that Pillow's default font lacks")
    parser.add_argument("--overwrite", action="store_true", help="draw existing heat maps again")
    add_device(parser)
    add_images_root(parser)
    add_reading(parser)
    add_catalogue(parser, "seed of the catalogue")


def run(chosen: argparse.Namespace) -> int:
    """Draw the heat maps. Return 1 if none could be drawn."""
    from evaluation.heatmap import INDEX_FILE, HeatmapOptions, draw_heatmaps
    from product_data.outputs import require_writable_folder
    from product_data.tables import load_tables

    names = ("queries", "ids", "first", "reasoning", "layers", "relative", "font", "without_text", "overwrite")
    options = HeatmapOptions(**{name: getattr(chosen, name) for name in names})
    require_writable_folder("--output", chosen.output)
    catalogue = {"products": chosen.catalogue_products} if chosen.data == "catalogue" else {}
    reading = reading_of(chosen)
    tables = load_tables(chosen.data, images_root=chosen.images_root, seed=chosen.seed, reading=reading, **catalogue)
    tables.report.raise_if_fatal()
    print(tables.report, file=sys.stderr)
    found = draw_heatmaps(chosen.model, tables, chosen.output, options, split=chosen.split, device=chosen.device)
    counts = ", ".join(f"{count} {what}" for what, count in found.items())
    print(f"{chosen.output}: {counts} (listed in {INDEX_FILE})")
    return 0 if found["drawn"] or found["kept"] else 1
