"""Let a new model search the vectors of an old one, and embed the most-viewed products with it first."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moon3._arguments import add_device

ORDER = 71


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("old", type=Path, metavar="OLD", help="folder of vectors that moon3 embed wrote")
    parser.add_argument("new", metavar="NEW", help="the new model: folder, hub id, or a peer such as clip=PLACE")
    parser.add_argument("--sample", type=int, default=1000, help="products that both models embed (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument(
        "--backfill", type=int, metavar="N", help="embed N more products with the new model, the most-viewed first"
    )
    parser.add_argument(
        "--traffic", type=Path, help="log of views: a table with the column product_id, and optionally count"
    )
    parser.add_argument(
        "--feed", help="the feed of OLD (default: the facts in OLD, which name pictures by path or URL)"
    )
    parser.add_argument("--images-root", type=Path, help="folder that image paths of the feed are relative to")
    parser.add_argument("--batch-size", type=int, default=32, help="products per batch of the model (default: 32)")
    add_device(parser)


def run(chosen: argparse.Namespace) -> None:
    """Fit the adapter if there is none yet, print what it recovers, and backfill."""
    from evaluation.upgrade_report import upgrade_report
    from product_data.errors import OptionError
    from retrieval.upgrade.upgrading import UpgradeOptions, backfill, read_traffic, upgrade_folder

    if chosen.traffic is not None and chosen.backfill is None:
        raise OptionError("--traffic: found no --backfill; expected both: the log orders the products to embed")
    traffic = None if chosen.traffic is None else read_traffic(chosen.traffic)
    options = UpgradeOptions(
        chosen.new, chosen.sample, chosen.seed, chosen.batch_size, chosen.device, imports=("evaluation.baselines",)
    )
    products = None if chosen.feed is None else functools.partial(_products, chosen.feed, chosen.images_root)
    print(upgrade_report(upgrade_folder(chosen.old, options, products)))
    if chosen.backfill is not None:
        print(backfill(chosen.old, options, chosen.backfill, traffic, products))


def _products(feed: str, images_root: Path | None) -> Iterable[Any]:
    """Read the feed, which an upgrade may do more than once."""
    from product_data.feeds.reading import read_feed

    return read_feed(feed, images_root=images_root)
