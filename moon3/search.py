"""Search a catalogue by words, by a picture, by both, or for products like one of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from moon3._arguments import add_device

ORDER = 66


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("store", metavar="STORE", help="folder of moon3 embed, or qdrant=URL/COLLECTION")
    parser.add_argument(
        "text", metavar="WORDS", nargs="?", default="", help="what to look for, such as 'red leather bag'"
    )
    parser.add_argument("--image", metavar="FILE", help="a picture to look for, alone or with the words")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="the product in the picture, in pixels")
    parser.add_argument("--like", metavar="PRODUCT_ID", help="find products like this one")
    parser.add_argument(
        "--weight",
        type=float,
        help="share of the words (0 to 1) beside the picture or product (default: the model reads both together)",
    )
    parser.add_argument(
        "--where", metavar="FILTER", help="only products that satisfy it: \"price < 50 and brand = 'Acme'\""
    )
    parser.add_argument(
        "--words", action="store_true", help="rank by the words themselves too (BM25), and fuse the rankings"
    )
    parser.add_argument(
        "--forms", nargs="+", metavar="FORM", help="products' vectors to search: mm, t, i (default: all)"
    )
    parser.add_argument("--k", type=int, default=10, help="number of products (default: 10)")
    parser.add_argument("--offset", type=int, default=0, help="leave out this many of the best, for the next page")
    parser.add_argument(
        "--reasoning",
        default="none",
        choices=("none", "generate", "auto"),
        help="let the model write attributes of the query first: always, or when unsure (auto)",
    )
    parser.add_argument("--model", help="folder or hub id (default: the model that made the vectors)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the products: .json, .html, .jpg or .png"
    )
    add_device(parser)


def run(chosen: argparse.Namespace) -> None:
    """Search, print the products, and write them."""
    import evaluation.baselines  # noqa: F401 - registers the kinds of models
    from evaluation.hits_sheet import describe_answer, describe_query, hits_table, require_sheet, write_hits
    from retrieval.queries import Query, SearchOptions, read_box, read_picture
    from retrieval.search import open_searcher

    box = None if chosen.box is None else read_box(chosen.box)
    image = None if chosen.image is None else read_picture(chosen.image)
    query = Query(chosen.text, image, box, chosen.like, chosen.weight)
    names = ("k", "offset", "where", "forms", "words", "reasoning")
    options = SearchOptions(**{name: getattr(chosen, name) for name in names})
    require_sheet("--output", chosen.output)
    with open_searcher(chosen.store, model=chosen.model, device=chosen.device) as searcher:
        answer = searcher.search(query, options)
        liked = searcher.store.get([query.like])[0] if query.like is not None else None
    print(f"{describe_query(query)}: {describe_answer(answer)}", file=sys.stderr)
    print(answer.json() if chosen.json else hits_table(answer))
    if chosen.output is not None:
        picture = liked.images[0] if liked is not None and liked.images else None
        print(f"wrote {write_hits(query, answer, chosen.output, query_picture=picture)}", file=sys.stderr)
