"""Let a chat model write the attributes that the picture and the text of each product show."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from moon3._arguments import TABLES, add_images_root, add_reading, reading_of

ORDER = 38


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from training.labels.annotate import FORMS, WritingJob

    parser.add_argument("products", help=TABLES)
    parser.add_argument(
        "--model",
        required=True,
        help="folder or hub id of a chat model, or a GGUF file; a language model describes texts only",
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="the table to write, FOLDER/written_attributes.parquet"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="what to describe (default: what the model reads)")
    parser.add_argument("--split", help="describe the products of one split (default: all)")
    parser.add_argument("--limit", type=int, help="describe the first LIMIT products (default: all)")
    add_images_root(parser)
    add_reading(parser)
    parser.add_argument("--images", type=int, default=1, help="number of pictures of a product to show (default: 1)")
    parser.add_argument(
        "--max-pixels", type=int, default=WritingJob.max_pixels, help="size to which larger pictures are reduced"
    )
    parser.add_argument(
        "--batch-size", type=int, default=WritingJob.batch_size, help="number of questions in a batch (default: 8)"
    )
    parser.add_argument(
        "--attempts", type=int, default=WritingJob.attempts, help="attempts for an unreadable answer (default: 3)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, help="maximum length of an answer (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of second and later attempts (default: 0)")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if available)")
    parser.add_argument("--allow-urls", action="store_true", help="download pictures from public hosts")
    parser.add_argument("--overwrite", action="store_true", help="delete answers of another model or setting")
    parser.add_argument("--quiet", action="store_true", help="hide the progress bar")


def run(chosen: argparse.Namespace) -> None:
    """Let the model write the attributes, and print the counts."""
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_file
    from product_data.tables import load_tables
    from training.labels.annotate import FORMS, WritingJob, write_attributes
    from training.labels.chat_writer import load_writer

    names = ("output", "model", "batch_size", "attempts", "images", "max_pixels", "seed", "allow_urls", "overwrite")
    options = {name: getattr(chosen, name) for name in names}
    job = WritingJob(**options, forms=tuple(chosen.forms or FORMS), progress=not chosen.quiet)
    require_writable_file("--output", job.output)
    tables = load_tables(chosen.products, images_root=chosen.images_root, reading=reading_of(chosen))
    tables.report.raise_if_fatal()
    print(tables.report)
    products = tables.select(chosen.split).products[: chosen.limit]
    writer = load_writer(chosen.model, chosen.device, chosen.max_new_tokens)
    if chosen.forms is None:
        job = replace(job, forms=writer.forms)
    elif unread := set(job.forms) - set(writer.forms):
        raise OptionError(
            f"--forms: found {', '.join(unread)}; expected text, since {chosen.model} does not read pictures"
        )
    for form, found in write_attributes(products, writer, job).items():
        print(
            f"{form}: {found['written']} of {found['asked']} sets written ({found['empty']} of them empty), {found['unread']} "
            f"answers could not be read, {found['unreadable']} pictures cannot be opened"
        )
    print(f"{job.output}: problem_image and problem_text give the reasons")
