"""Check product data: open every picture and print a report on the tables."""

from __future__ import annotations

import argparse

from moon3._arguments import TABLES, add_images_root, add_reading, reading_of

ORDER = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", help=TABLES)
    add_images_root(parser)
    add_reading(parser)


def run(chosen: argparse.Namespace) -> int:
    """Print the report. Return 1 if it contains a fatal problem."""
    from product_data.tables import load_tables

    reading = reading_of(chosen)
    report = load_tables(chosen.source, images_root=chosen.images_root, check_images=True, reading=reading).report
    print(report)
    return 0 if report.ok else 1
