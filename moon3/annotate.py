"""Let a chat model write what the picture and what the text of each product show."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import TABLES, add_images_root, add_reading, reading_of

ORDER = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name what the command takes."""
    from training.labels.annotate import FORMS, WritingJob

    parser.add_argument("products", help=TABLES)
    parser.add_argument("--model", required=True, help="folder or hub id of a chat model that reads pictures")
    parser.add_argument(
        "--output", required=True, type=Path, help="the table to write, FOLDER/written_attributes.parquet"
    )
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS, help="what to ask about (both)")
    parser.add_argument("--split", help="ask about the products of one split (all)")
    parser.add_argument("--limit", type=int, help="ask about the first LIMIT products (all)")
    add_images_root(parser)
    add_reading(parser)
    parser.add_argument("--images", type=int, default=1, help="pictures shown of a product (1)")
    parser.add_argument(
        "--max-pixels", type=int, default=WritingJob.max_pixels, help="larger pictures are shown smaller"
    )
    parser.add_argument("--batch-size", type=int, default=WritingJob.batch_size, help="questions answered together (8)")
    parser.add_argument(
        "--attempts", type=int, default=WritingJob.attempts, help="for an answer that cannot be read (3)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, help="length at which an answer is cut off (128)")
    parser.add_argument("--seed", type=int, default=0, help="of the words of second and later attempts (0)")
    parser.add_argument("--device", help="cpu or cuda (a GPU where there is one)")
    parser.add_argument("--allow-urls", action="store_true", help="fetch pictures from public addresses")
    parser.add_argument("--overwrite", action="store_true", help="forget the answers of another model or setting")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(chosen: argparse.Namespace) -> None:
    """Have the attributes written, and print how it went."""
    from product_data.outputs import require_writable_file
    from product_data.tables import load_tables
    from training.labels.annotate import WritingJob, write_attributes
    from training.labels.chat_writer import load_writer

    names = ("output", "model", "batch_size", "attempts", "images", "max_pixels", "seed", "allow_urls", "overwrite")
    options = {name: getattr(chosen, name) for name in names}
    job = WritingJob(**options, forms=tuple(chosen.forms), progress=not chosen.quiet)
    require_writable_file("--output", job.output)
    tables = load_tables(chosen.products, images_root=chosen.images_root, reading=reading_of(chosen))
    tables.report.raise_if_fatal()
    print(tables.report)
    products = tables.select(chosen.split).products[: chosen.limit]
    writer = load_writer(chosen.model, chosen.device, chosen.max_new_tokens)
    for form, found in write_attributes(products, writer, job).items():
        print(
            f"{form}: {found['written']} of {found['asked']} sets written ({found['empty']} of them empty), {found['unread']} "
            f"answers could not be read, {found['unreadable']} pictures cannot be opened"
        )
    print(f"{job.output}: the reasons stand in problem_image and problem_text")
