"""Embed a catalogue's products into a folder of vectors, or bring the folder up to date with a changed feed."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from moon3._arguments import add_device, add_images_root

ORDER = 62
FORMS, SHOWN_ERRORS = ("mm", "t", "i"), 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("feed", nargs="?", help="a feed or a table of products: see moon3 tables")
    parser.add_argument("--model", help="folder or hub id of a Moon, or a peer by its kind, such as clip=PLACE")
    parser.add_argument("--output", type=Path, help="folder of the vectors: new, or that of an earlier moon3 embed")
    parser.add_argument(
        "--errors", type=Path, metavar="VECTORS", help="only list the products without a vector, and why"
    )
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=["mm"], help="mm both, t text, i pictures (default: mm)"
    )
    parser.add_argument("--reasoning", choices=("none", "generate"), default="none", help="default: none")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="of the stored vectors (default: float32)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="products per batch of the model (default: 32)")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that prepare pictures and texts (default: on a GPU one for each CPU but one); with ray, processes "
        "that hold the model (default: 1)",
    )
    parser.add_argument("--full-decoding", action="store_true", help="decode large JPEG files at full scale: slower")
    parser.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="ray needs moon3[ray] (default: local)"
    )
    parser.add_argument("--rows-per-shard", type=int, default=2048, help="vectors per file (default: 2048)")
    parser.add_argument(
        "--allow-removal", action="store_true", help="go on if over half of the products are no longer in the feed"
    )
    add_device(parser)
    feed = parser.add_argument_group("reading the feed, see moon3 tables")
    add_images_root(feed)
    feed.add_argument("--format", help="format of the export, such as shopify (default: its columns decide)")
    feed.add_argument("--language", help="language of titles and descriptions, such as de")
    feed.add_argument("--losses", type=Path, metavar="FILE", help="write every loss and repair to this CSV file")
    feed.add_argument("--fetch-pictures", type=Path, metavar="FOLDER", help="fetch pictures from URLs into this folder")
    feed.add_argument(
        "--allow-private-addresses", action="store_true", help="fetch from hosts that are not public, too"
    )


def run(chosen: argparse.Namespace) -> int:
    """Embed and print what was done. Return 1 if a product has no vector, or the feed has a fatal problem."""
    from product_data.errors import OptionError

    if chosen.errors is not None:
        return list_errors(chosen.errors)
    if not (chosen.feed and chosen.model and chosen.output):
        raise OptionError("expected a feed, --model and --output; or --errors VECTORS")
    from product_data.feeds.reading import read_feed
    from product_data.outputs import require_writable_folder
    from product_data.picture_files import PictureFetching
    from retrieval.embedding.embedding_options import EmbeddingOptions
    from retrieval.embedding.job import EmbeddingJobError, embed_feed
    from retrieval.vectors.vector_files import VectorFolder

    require_writable_folder("--output", chosen.output)
    names = (
        "model",
        "reasoning",
        "dtype",
        "batch_size",
        "device",
        "workers",
        "executor",
        "rows_per_shard",
        "allow_removal",
    )
    options = EmbeddingOptions(
        **{name: getattr(chosen, name) for name in names},
        forms=tuple(chosen.forms),
        reduced_decoding=not chosen.full_decoding,
        imports=("evaluation.baselines",),
    )
    fetching = None
    if chosen.fetch_pictures is not None:
        fetching = PictureFetching(folder=chosen.fetch_pictures, allow_private=chosen.allow_private_addresses)
    of_feed = {name: getattr(chosen, name) for name in ("format", "language", "losses", "images_root")}
    feed = read_feed(chosen.feed, pictures=fetching, **of_feed)
    try:
        done = embed_feed(feed, chosen.output, options, report=partial(print, flush=True))
    except EmbeddingJobError:
        print(feed.report)  # it says which rows were left out
        raise
    print(feed.report)
    print(done)
    for number, (product_id, form, reason) in enumerate(VectorFolder(chosen.output).errors()):
        if number == SHOWN_ERRORS:
            print(f"… moon3 embed --errors {chosen.output} lists all")
            break
        print(f"failed: product {product_id!r}, form {form}: {reason}")
    return int(done.failed > 0 or not feed.report.ok)


def list_errors(output: Path) -> int:
    """Print the products without a vector, one a line, and return 1 if there are any."""
    from retrieval.vectors.vector_files import VectorFolder

    count = 0
    for product_id, form, reason in VectorFolder(output).errors():
        print(f"{product_id}\t{form}\t{reason}")
        count += 1
    return int(count > 0)
