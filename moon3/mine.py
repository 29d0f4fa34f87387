"""Mine hard negatives with a model: products close to a query, in the category of its answer, that do not answer it."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import TABLES, add_images_root, add_reading, reading_of

ORDER = 36
NUMBERS = {"per_query": int, "first_rank": int, "last_rank": int, "margin": float, "ratio": float}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from training.mining.hard_negatives import CHOICES, MiningOptions

    parser.add_argument("--model", required=True, help="folder or hub id of a checkpoint")
    parser.add_argument("--data", required=True, help=TABLES)
    add_images_root(parser)
    add_reading(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder to write, or to resume in")
    parser.add_argument("--action-weights", help="relevance of actions in an interactions table, {purchase: 1, …}")
    parser.add_argument("--half-life-days", type=float, help="age in days at which an interaction counts half")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--shard-rows", type=int, default=1024)
    parser.add_argument("--overwrite", action="store_true")
    defaults = MiningOptions()
    for name, kind in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(defaults, name))
    parser.add_argument("--category-levels", type=int, help="number of category levels that must agree (default: all)")
    parser.add_argument(
        "--keep-variants", action="store_true", help="allow products of the answer's group as negatives"
    )
    parser.add_argument("--choose", choices=CHOICES, default=defaults.choose)
    parser.add_argument("--seed", type=int, default=0)


def run(chosen: argparse.Namespace) -> None:
    """Mine hard negatives, and print the report."""
    import yaml

    from product_data.interactions import InteractionOptions
    from product_data.outputs import require_writable_folder
    from product_data.tables import load_tables
    from retrieval.encode import load_for_evaluation
    from training.mining.hard_negatives import MiningOptions
    from training.mining.mine import QUERIES_FILE, MiningJob, mine, report_text
    from training.runs.lock import alone_in

    require_writable_folder("--output", chosen.output)
    names = (*NUMBERS, "category_levels", "choose", "seed")
    options = MiningOptions(**{name: getattr(chosen, name) for name in names}, mask_groups=not chosen.keep_variants)
    weights = {} if chosen.action_weights is None else {"action_weights": yaml.safe_load(chosen.action_weights)}
    reading = reading_of(chosen, InteractionOptions(**weights, half_life_days=chosen.half_life_days))
    job = MiningJob(
        chosen.output, chosen.split, chosen.batch_size, chosen.shard_rows, chosen.overwrite, options=options
    )
    with alone_in(chosen.output):
        tables = load_tables(chosen.data, images_root=chosen.images_root, reading=reading)
        tables.report.raise_if_fatal()
        print(tables.report, flush=True)
        report = mine(*load_for_evaluation(chosen.model), tables, job, chosen.model)
    print(report_text(report))
    print(f"wrote {chosen.output / QUERIES_FILE}")
