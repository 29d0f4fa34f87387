"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from product_data.interactions import InteractionOptions
    from product_data.reading import ReadingOptions

TABLES = "catalogue, or a folder or products file in the two-table format"


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the cells of tables are read."""
    parser.add_argument("--strip-html", action="store_true", help="read texts without tags and entities of HTML")
    parser.add_argument("--category-separator", help="what separates category levels, such as / (default: it is found)")


def add_images_root(parser: argparse.ArgumentParser) -> None:
    """Add `--images-root`."""
    parser.add_argument("--images-root", type=Path, help="folder that image paths are relative to")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="cpu, cuda, … (default: the first GPU, or else the CPU)")


def add_catalogue(parser: argparse.ArgumentParser, seeded: str) -> None:
    """Add the size and the seed of the embedded catalogue.

    Args:
        parser: gets the options.
        seeded: what the seed is of.
    """
    parser.add_argument("--catalogue-products", type=int, default=600, help="size of the embedded catalogue")
    parser.add_argument("--seed", type=int, default=0, help=seeded)


def reading_of(chosen: argparse.Namespace, interactions: InteractionOptions | None = None) -> ReadingOptions:
    """Return what the options of `add_reading` say."""
    from product_data.interactions import InteractionOptions
    from product_data.reading import ReadingOptions

    return ReadingOptions(chosen.strip_html, chosen.category_separator, interactions or InteractionOptions())
