"""Embed a catalogue's products into a folder of vectors, or bring the folder up to date with a changed feed."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import add_device

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
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument(
        "--executor", choices=("local", "ray_data"), default="local", help="ray_data needs moon3[ray] (default: local)"
    )
    parser.add_argument("--rows-per-shard", type=int, default=2048, help="vectors per file (default: 2048)")
    parser.add_argument(
        "--allow-removal", action="store_true", help="go on if over half of the products are no longer in the feed"
    )
    parser.add_argument("--images-root", type=Path, help="folder that image paths are relative to")
    add_device(parser)


def run(chosen: argparse.Namespace) -> int:
    """Embed and print what was done. Return 1 if a product has no vector."""
    from product_data.errors import OptionError

    if chosen.errors is not None:
        return list_errors(chosen.errors)
    if not (chosen.feed and chosen.model and chosen.output):
        raise OptionError("expected a feed, --model and --output; or --errors VECTORS")
    from product_data.feeds.reading import read_feed
    from product_data.outputs import require_writable_folder
    from retrieval.embedding_options import EmbeddingOptions
    from retrieval.job import embed_feed
    from retrieval.vector_files import VectorFolder

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
        **{name: getattr(chosen, name) for name in names}, forms=tuple(chosen.forms), imports=("evaluation.baselines",)
    )
    feed = read_feed(chosen.feed, images_root=chosen.images_root)
    done = embed_feed(feed, chosen.output, options)
    print(done)
    for number, (product_id, form, reason) in enumerate(VectorFolder(chosen.output).errors()):
        if number == SHOWN_ERRORS:
            print(f"… moon3 embed --errors {chosen.output} lists all")
            break
        print(f"failed: product {product_id!r}, form {form}: {reason}")
    return int(done.failed > 0)


def list_errors(output: Path) -> int:
    """Print the products without a vector, one a line, and return 1 if there are any."""
    from retrieval.vector_files import VectorFolder

    count = 0
    for product_id, form, reason in VectorFolder(output).errors():
        print(f"{product_id}\t{form}\t{reason}")
        count += 1
    return int(count > 0)
