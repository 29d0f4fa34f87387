"""Fine-tune on a shop's tables: mine hard negatives, train an adapter, report recall before and after."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import add_reading, reading_of

ORDER = 55
TAKES_RECIPE_KEYS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from training.mining.hard_negatives import MiningOptions
    from training.recipe.data import TABLE_KEYS

    defaults = MiningOptions()
    parser.epilog = "--key value replaces any key of the recipe: see moon3 train --help."
    parser.add_argument("--data", help="folder of the tables")
    for key in TABLE_KEYS:
        parser.add_argument(
            f"--{key}", help="folder of pictures" if key == "images" else "a .csv, .jsonl or .parquet file"
        )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    add_reading(parser)
    parser.add_argument("--mine-per-query", type=int, default=defaults.per_query, help="hard negatives for each search")
    parser.add_argument("--mine-ratio", type=float, default=defaults.ratio, help="see moon3 mine")


def run(chosen: argparse.Namespace) -> None:
    """Mine, train and write the report."""
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_folder
    from training.mining.hard_negatives import MiningOptions
    from training.recipe.data import TABLE_KEYS
    from training.shop import shop, tables_of

    require_writable_folder("--output", chosen.output)
    tables = {key: value for key in TABLE_KEYS if (value := getattr(chosen, key)) is not None}
    source = tables_of(chosen.data, tables)
    try:
        mining = MiningOptions(per_query=chosen.mine_per_query, ratio=chosen.mine_ratio)
    except OptionError as error:
        raise OptionError(f"mine-per-query, mine-ratio: {error}") from error
    print(f"wrote {shop(source, chosen.output, chosen.keys, mining, reading_of(chosen))}")
