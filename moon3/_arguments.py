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
    """Add the options for reading the cells of tables."""
    parser.add_argument("--strip-html", action="store_true", help="remove HTML tags and entities from texts")
    parser.add_argument("--category-separator", help="separator of category levels, such as / (default: detected)")
    parser.add_argument(
        "--simplify-chinese",
        action="store_true",
        help="convert texts to simplified Chinese characters (needs moon3[chinese])",
    )


def add_images_root(parser: argparse.ArgumentParser) -> None:
    """Add `--images-root`."""
    parser.add_argument("--images-root", type=Path, help="folder that image paths are relative to")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="cpu, cuda, … (default: the first GPU, otherwise the CPU)")


def add_catalogue(parser: argparse.ArgumentParser, seeded: str) -> None:
    """Add the size and the seed of the embedded catalogue.

    Args:
        parser: receives the options.
        seeded: help text of the seed, "of …".
    """
    parser.add_argument("--catalogue-products", type=int, default=600, help="size of the embedded catalogue")
    parser.add_argument("--seed", type=int, default=0, help=seeded)


def reading_of(chosen: argparse.Namespace, interactions: InteractionOptions | None = None) -> ReadingOptions:
    """Return the options of `add_reading` as `ReadingOptions`."""
    from product_data.interactions import InteractionOptions
    from product_data.reading import ReadingOptions

    return ReadingOptions(
        strip_html=chosen.strip_html,
        category_separator=chosen.category_separator,
        interactions=interactions or InteractionOptions(),
        simplify_chinese=chosen.simplify_chinese,
    )


def add_data_set(parser: argparse.ArgumentParser) -> None:
    """Add the options for reading the rows of a public data set."""
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="ROLE=COLUMN",
        help="columns of public data sets: query.title=keyword, positive.image=a,b, negative.image= (none)",
    )
    parser.add_argument("--sample", type=int, help="read this many rows of a public data set, drawn by --seed")
    parser.add_argument(
        "--labels", type=Path, help="JSON file of additional categories and attribute values to use as labels"
    )
    parser.add_argument("--picture-cache", type=Path, help="folder for downloaded pictures")
    parser.add_argument("--no-fetch", action="store_true", help="read pictures from that folder only")
    parser.add_argument("--fetch-seconds", type=float, help="time limit for all pictures together")
    parser.add_argument("--fetch-megabytes", type=float, help="size limit for all pictures together")
    parser.add_argument(
        "--allow-private-addresses", action="store_true", help="also fetch pictures from hosts that are not public"
    )


def data_set_of(chosen: argparse.Namespace) -> TripletOptions:
    """Return the options of `add_data_set` as `TripletOptions`.

    Raises:
        OptionError: a column is not written as ROLE=COLUMN, or a limit is not positive.
    """
    from product_data.errors import OptionError
    from product_data.picture_files import PictureFetching, default_folder
    from product_data.triplets import TripletOptions

    columns: dict[str, list[str] | None] = {}
    for entry in chosen.columns:
        role, equals, names = entry.partition("=")
        if not equals:
            raise OptionError(f"--columns: found {entry!r}; expected ROLE=COLUMN, such as query.title=keyword")
        columns[role] = [name for name in names.split(",") if name] or None
    pictures = PictureFetching(
        folder=chosen.picture_cache or default_folder(),
        fetch=not chosen.no_fetch,
        total_seconds=chosen.fetch_seconds,
        total_bytes=None if chosen.fetch_megabytes is None else int(chosen.fetch_megabytes * 1e6),
        allow_private=chosen.allow_private_addresses,
    )
    return TripletOptions(columns=columns, sample=chosen.sample, pictures=pictures)


def phrases_folder(store: str) -> Path | None:
    """Return the folder of a catalogue's vectors that keeps what explanations need; None for other stores."""
    from retrieval.vectors.vector_files import VectorFolder, is_vector_folder

    return VectorFolder(store).phrases_folder if is_vector_folder(store) else None
