"""Prepare tables for training: remove near-duplicates, keep splits apart, and weigh pairs by shared entities."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import add_images_root, add_reading, reading_of

ORDER = 27


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("tables", help="a folder or products file in the two-table format, or a shop's feed")
    parser.add_argument("--output", required=True, type=Path, help="folder for the prepared tables and the report")
    parser.add_argument(
        "--duplicates",
        choices=("remove", "keep"),
        default="remove",
        help="keep one product of each group of duplicates (default), or all in one split and one group",
    )
    parser.add_argument(
        "--unrelated-pairs",
        choices=("keep", "down_weight", "drop"),
        default="down_weight",
        help="pairs whose query names categories, brands or values, none of them the product's (default: down_weight)",
    )
    parser.add_argument("--pair-weight", type=float, help="factor of the weight of down-weighted pairs (default: .25)")
    parser.add_argument("--vectors", type=Path, help="folder of moon3 embed on these tables: also compare vectors")
    parser.add_argument("--cosine", type=float, help="least cosine of duplicates by vectors (default: .98)")
    parser.add_argument(
        "--picture-distance",
        type=float,
        help="largest distance of duplicates' pictures, in levels of 0 to 255 (default: 18)",
    )
    parser.add_argument(
        "--structure", type=float, help="least correlation of the details of duplicates' pictures (default: .95)"
    )
    parser.add_argument(
        "--title-similarity", type=float, help="least share of common words of duplicates' titles (default: .3)"
    )
    parser.add_argument(
        "--restore", type=Path, metavar="FILE", help="keep what this file lists: rows of an earlier changes.csv"
    )
    add_images_root(parser)
    add_reading(parser)
    parser.add_argument("--quiet", action="store_true", help="hide the progress bars")


def run(chosen: argparse.Namespace) -> int:
    """Prepare the tables and print the counts. Return 1 if a picture cannot be opened."""
    from evaluation.preparation_page import preparation_page, sentences
    from evaluation.provenance import provenance
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_folder
    from product_data.preparation.job import PreparationOptions, prepare
    from product_data.preparation.near_duplicates import DuplicateOptions
    from product_data.preparation.pair_filter import PairOptions
    from product_data.preparation.prepared_tables import WritingOptions, read_restored
    from retrieval.near_vectors import NearVectorPairs

    if chosen.cosine is not None and chosen.vectors is None:
        raise OptionError("--cosine: found no --vectors; expected both")
    if chosen.pair_weight is not None and chosen.unrelated_pairs != "down_weight":
        raise OptionError(f"--pair-weight: found --unrelated-pairs {chosen.unrelated_pairs}; expected down_weight")
    names = ("cosine", "picture_distance", "structure", "title_similarity")
    duplicates = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    pairs = {} if chosen.pair_weight is None else {"weight": chosen.pair_weight}
    options = PreparationOptions(
        DuplicateOptions(**duplicates),
        WritingOptions(
            chosen.duplicates,
            PairOptions(chosen.unrelated_pairs, **pairs),
            frozenset() if chosen.restore is None else read_restored(chosen.restore),
        ),
        reading_of(chosen),
        chosen.images_root,
        not chosen.quiet,
    )
    require_writable_folder("--output", chosen.output)
    vectors = None if chosen.vectors is None else NearVectorPairs(chosen.vectors)
    facts = {"provenance": provenance(0)}
    done = prepare(chosen.tables, chosen.output, options, vectors=vectors, page=preparation_page, facts=facts)
    print(*sentences(done), sep="\n")
    steps = f"steps done now: {', '.join(done.made)}" if done.made else "nothing to do: every step was done"
    print(f"{chosen.output}: {steps}; the pictures are in {done.folder.report}")
    return int(bool(done.counts["pictures"]["unreadable"]))
