"""Kill an embedding job repeatedly, also while it writes, and compare it with an uninterrupted one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ORDER = 172
STARTS_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--products", type=int, default=100_000, help="products of the drawn feed (default: 100000)")
    parser.add_argument("--pictures", type=int, default=2_000, help="drawn pictures that they share (default: 2000)")
    parser.add_argument("--kills", type=int, default=5, help="number of kills (default: 5)")
    parser.add_argument("--rows-per-shard", type=int, default=2_048, help="vectors per file (default: 2048)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the feed and of the moments (default: 0)")
    parser.add_argument("--output", type=Path, required=True, help="folder for feed, model and vectors, new or empty")
    parser.add_argument("--results", type=Path, help="JSON file to write (default: soak.json in --output)")


def run(chosen: argparse.Namespace) -> int:
    """Run the study and print the verdict. Return 1 if something differs."""
    import json

    from product_data.atomic_files import write_atomically
    from product_data.outputs import require_writable_file
    from training.studies.embedding_soak import EmbeddingSoak, soak_embedding

    require_writable_file("--results", chosen.results)
    names = ("output", "products", "pictures", "kills", "rows_per_shard", "seed")
    found = soak_embedding(EmbeddingSoak(**{name: getattr(chosen, name) for name in names}))
    results = chosen.results or chosen.output / "soak.json"
    write_atomically(results, json.dumps(found, indent=2) + "\n")
    for difference in found["differences"]:
        print(f"differs: {difference}", file=sys.stderr)
    verdict = "equal to the uninterrupted job" if found["passed"] else "NOT PASSED"
    print(f"{found['products']:,} products, {len(found['kills'])} kills: {verdict}; written to {results}")
    return int(not found["passed"])
