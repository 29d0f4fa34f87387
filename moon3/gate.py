"""Measure recall and time of reasoning only when unsure, and whether both kinds of vectors share a space."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import TABLES, add_catalogue, add_device, add_images_root, add_reading, reading_of

ORDER = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", required=True, help="folder or hub id of a Moon checkpoint that reasons")
    parser.add_argument("--benchmark", required=True, help=TABLES)
    parser.add_argument(
        "--output", type=Path, required=True, help="results file (.json); .md and .png are written beside it"
    )
    parser.add_argument("--split", default="test", help="split to search in, or all (default: test)")
    parser.add_argument("--limit", type=int, help="number of products to measure on (default: all)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--max-reasoning-tokens", type=int, help="maximum tokens of reasoning (default: the model's number)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of timing rounds (default: 5)")
    add_device(parser)
    add_images_root(parser)
    add_reading(parser)
    add_catalogue(parser, "seed of the catalogue, limit and bootstrap")


def run(chosen: argparse.Namespace) -> None:
    """Measure, write the results files, and print them."""
    from evaluation.gate import GateOptions, gate_files, measure_gate, write_gate
    from evaluation.gate_report import markdown
    from evaluation.run import load_benchmark
    from retrieval.encode import load_for_evaluation

    gate_files(chosen.output)
    names = ("split", "limit", "batch_size", "max_reasoning_tokens", "seed", "rounds")
    options = GateOptions(**{name: getattr(chosen, name) for name in names})
    tables = load_benchmark(
        chosen.benchmark,
        split=chosen.split,
        seed=chosen.seed,
        images_root=chosen.images_root,
        reading=reading_of(chosen),
        catalogue_products=chosen.catalogue_products,
    )
    model, processor = load_for_evaluation(chosen.model, device=chosen.device)
    results = measure_gate(model, processor, tables, model_name=chosen.model, options=options)
    write_gate(results, chosen.output)
    print(markdown(results))
