"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from product_data.interactions import InteractionOptions
    from product_data.reading import ReadingOptions
    from product_data.triplets import TripletOptions

TABLES = "catalogue, or a folder or products file in the two-table format"


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the cells of tables are read."""
    parser.add_argument("--strip-html", action="store_true", help="read texts without tags and entities of HTML")
    parser.add_argument("--category-separator", help="what separates category levels, such as / (default: it is found)")
    parser.add_argument(
        "--simplify-chinese", action="store_true", help="read texts in simplified Chinese characters (moon3[chinese])"
    )


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

    return ReadingOptions(
        strip_html=chosen.strip_html,
        category_separator=chosen.category_separator,
        interactions=interactions or InteractionOptions(),
        simplify_chinese=chosen.simplify_chinese,
    )


def add_data_set(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the rows of a public data set are read."""
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="ROLE=COLUMN",
        help="of public data sets: query.title=keyword, positive.image=a,b, negative.image= (none)",
    )
    parser.add_argument("--sample", type=int, help="read this many rows of a public data set, drawn by --seed")
    parser.add_argument(
        "--labels", type=Path, help="JSON file of further categories and attribute values that count as labels"
    )
    parser.add_argument("--picture-cache", type=Path, help="folder for pictures that are given as addresses")
    parser.add_argument("--no-fetch", action="store_true", help="take pictures from that folder alone")
    parser.add_argument("--fetch-seconds", type=float, help="most seconds for all pictures together")
    parser.add_argument("--fetch-megabytes", type=float, help="most megabytes of all pictures together")
    parser.add_argument(
        "--allow-private-addresses", action="store_true", help="also fetch pictures from addresses that are not public"
    )


def data_set_of(chosen: argparse.Namespace) -> TripletOptions:
    """Return what the options of `add_data_set` say.

    Raises:
        OptionError: columns that are not written as ROLE=COLUMN, or a limit that is not positive.
    """
    from product_data.errors import OptionError
    from product_data.picture_files import PictureFetching, default_folder
    from product_data.triplets import TripletOptions

    columns: dict[str, list[str] | None] = {}
    for entry in chosen.columns:
        role, equals, names = entry.partition("=")
        if not equals:
            raise OptionError(f"--columns {entry!r}; expected ROLE=COLUMN, such as query.title=keyword")
        columns[role] = [name for name in names.split(",") if name] or None
    pictures = PictureFetching(
        folder=chosen.picture_cache or default_folder(),
        fetch=not chosen.no_fetch,
        total_seconds=chosen.fetch_seconds,
        total_bytes=None if chosen.fetch_megabytes is None else int(chosen.fetch_megabytes * 1e6),
        allow_private=chosen.allow_private_addresses,
    )
    return TripletOptions(columns=columns, sample=chosen.sample, pictures=pictures)
