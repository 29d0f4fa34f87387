"""Check product data: a shop's export, or tables with queries. Open every picture and print a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import TABLES, add_images_root, add_reading, reading_of

ORDER = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", help=f"{TABLES}; or the export of a shop system")
    add_images_root(parser)
    add_reading(parser)
    feed = parser.add_argument_group("exports of shop systems")
    feed.add_argument("--format", help="format of the export, such as shopify (default: its columns decide)")
    feed.add_argument("--language", help="language of titles and descriptions, such as de")
    feed.add_argument("--losses", type=Path, metavar="FILE", help="write every loss and repair to this CSV file")
    feed.add_argument("--fetch-pictures", type=Path, metavar="FOLDER", help="fetch pictures from URLs into this folder")
    feed.add_argument(
        "--allow-private-addresses", action="store_true", help="fetch from hosts that are not public, too"
    )


def run(chosen: argparse.Namespace) -> int:
    """Print the report. Return 1 if it contains a fatal problem."""
    from product_data.feeds.reading import shop_feed
    from product_data.table_files import TableError
    from product_data.tables import load_tables

    as_feed = any((chosen.format, chosen.language, chosen.losses, chosen.fetch_pictures))
    unknown = ""
    if not as_feed and chosen.source != "catalogue" and Path(chosen.source).exists():
        try:
            as_feed = shop_feed(chosen.source) is not None
        except TableError as error:
            unknown = str(error)
    if as_feed:
        return _report_feed(chosen)
    reading = reading_of(chosen)
    try:
        tables = load_tables(chosen.source, images_root=chosen.images_root, check_images=True, reading=reading)
    except TableError as error:
        known = not unknown or unknown == str(error)
        raise TableError(str(error) if known else f"{error}; as the export of a shop system: {unknown}") from error
    print(tables.report)
    return 0 if tables.report.ok else 1


def _report_feed(chosen: argparse.Namespace) -> int:
    from product_data.feeds.reading import read_feed
    from product_data.picture_files import PictureFetching

    fetching = None
    if chosen.fetch_pictures is not None:
        fetching = PictureFetching(folder=chosen.fetch_pictures, allow_private=chosen.allow_private_addresses)
    feed = read_feed(
        chosen.source,
        format=chosen.format,
        language=chosen.language,
        pictures=fetching,
        images_root=chosen.images_root,
        losses=chosen.losses,
        check_images=True,
    )
    for _ in feed:
        pass  # the report counts while the products are read
    print(feed.report)
    if chosen.losses is not None:
        print(f"every loss and repair: {chosen.losses}")
    return 0 if feed.report.ok else 1
