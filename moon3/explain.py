"""Explain by the shop's attribute values why a product matches a query or another product."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from moon3._arguments import add_device, phrases_folder

ORDER = 68


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("store", metavar="STORE", help="folder of moon3 embed, or qdrant=URL/COLLECTION")
    parser.add_argument("product", metavar="PRODUCT_ID", help="the product that was found")
    parser.add_argument("--query", metavar="WORDS", default="", help="words that it was found for")
    parser.add_argument("--image", metavar="FILE", help="a picture that it was found for, alone or with the words")
    parser.add_argument("--with", dest="other", metavar="PRODUCT_ID", help="another product that it is compared with")
    parser.add_argument("--form", choices=("mm", "t", "i"), help="products' vectors (default: the first that exists)")
    parser.add_argument(
        "--every-phrase",
        action="store_true",
        help="consider every value of the catalogue, not only those that the shop states about the products",
    )
    parser.add_argument("--model", help="folder or hub id (default: the model that made the vectors)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write a page with heat maps of both sides: .html"
    )
    add_device(parser)


def run(chosen: argparse.Namespace) -> None:
    """Explain, print the parts of the cosine, and write the page or picture."""
    import evaluation.baselines  # noqa: F401 - registers the kinds of models
    from evaluation.match_page import explanation_table, require_match_file, write_match
    from retrieval.explanation.explain import MatchExplainer
    from retrieval.queries import Query, read_picture
    from retrieval.search import open_searcher

    require_match_file("--output", chosen.output)
    image = None if chosen.image is None else read_picture(chosen.image)
    query = Query(chosen.query, image, like=chosen.other)
    with open_searcher(chosen.store, model=chosen.model, device=chosen.device) as searcher:
        explainer = MatchExplainer(searcher, folder=phrases_folder(chosen.store))
        found = explainer.explain(chosen.product, query, form=chosen.form, every_phrase=chosen.every_phrase)
        print(json.dumps(found.as_dict(), ensure_ascii=False, indent=1) if chosen.json else explanation_table(found))
        if chosen.output is not None:
            write_match(chosen.output, searcher, query, chosen.product, found)
            print(f"wrote {chosen.output}", file=sys.stderr)
