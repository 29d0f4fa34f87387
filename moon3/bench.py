"""Measure speed: kind encode (layers, encoding, reasoning), embed (large pictures), train, search or serve (under load)."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 160
STARTS_PROCESSES = True
SIZES = ("batch_size", "chunk_size", "hidden_size", "num_layers", "image_tokens", "queue_steps", "loss_queries")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="encode|embed|train|search|serve")
    add_encode_arguments(kinds.add_parser("encode", help="layers, encoding, reasoning", allow_abbrev=False))
    add_embed_arguments(kinds.add_parser("embed", help="products with large pictures", allow_abbrev=False))
    add_train_arguments(kinds.add_parser("train", help="time and peak memory of a training step", allow_abbrev=False))
    add_search_arguments(kinds.add_parser("search", help="exact search, first passes, the store", allow_abbrev=False))

    add_serve_arguments(kinds.add_parser("serve", help="the service under load, and killed", allow_abbrev=False))


def add_common_arguments(parser: argparse.ArgumentParser, comparisons: list[str]) -> None:
    """Add the options of both kinds."""
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--only", nargs="+", choices=comparisons, help="comparisons to run (default: all that can run)")
    parser.add_argument(
        "--repeats", type=int, default=15, help="number of rounds, in which the sides alternate (default: 15)"
    )


def add_encode_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench encode`."""
    from evaluation.speed import COMPARISONS

    add_common_arguments(parser, list(COMPARISONS))
    parser.add_argument("--model", type=Path, help="a Moon checkpoint, for the comparisons that need one")


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench embed`."""
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--model", type=Path, help="a small Moon checkpoint (default: the shipped one)")
    parser.add_argument(
        "--photos", type=Path, help="a folder of pictures, used as JPEG (default: drawn pictures, enlarged)"
    )
    parser.add_argument(
        "--tables",
        type=Path,
        nargs="+",
        default=[],
        help="folders of products and queries for the recall (the drawn catalogue is always measured)",
    )
    parser.add_argument("--products", type=int, default=192, help="number of products (default: 192)")
    parser.add_argument("--repeats", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--workers", type=int, help="worker processes (default: CPUs − 1, at least 1)")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench train`."""
    from training.studies.speed import COMPARISONS, Sizes

    own = Sizes()
    add_common_arguments(parser, list(COMPARISONS))
    parser.add_argument("--model", help="a Moon checkpoint (default: a small random model)")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, default=getattr(own, name))
    parser.add_argument("--candidates", type=int, nargs="+", default=list(own.candidates))


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench search`."""
    from evaluation.search_speed import PARTS, SearchSizes

    own = SearchSizes()
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure (default: all)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of rounds, in which the sides alternate (default: 3)"
    )
    for name, size in vars(own).items():
        parser.add_argument(f"--{name}", type=int, default=size)


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench serve`."""
    from evaluation.service_load import ServiceLoad

    parser.add_argument("store", metavar="VECTORS", type=Path, help="folder of moon3 embed; it is copied, not changed")
    parser.add_argument("--model", help="folder or hub id (default: the model that made the vectors)")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    for name, size in vars(ServiceLoad()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=type(size), default=size, help=f"see evaluation/service_load.py (default: {size:g})"
        )


def run(chosen: argparse.Namespace) -> int:
    """Measure, write the results file, and print it. Return 1 if the service was found wrong."""
    from product_data.outputs import require_writable_file

    require_writable_file("--output", chosen.output)
    if chosen.kind == "encode":
        from evaluation.speed import measure_speed, speed_table

        print(speed_table(measure_speed(chosen.output, chosen.only, chosen.model, chosen.repeats)))
    elif chosen.kind == "embed":
        from evaluation.embedding_speed import EmbeddingSpeed, embedding_speed_table, measure_embedding_speed

        names = ("photos", "products", "repeats", "workers")
        given = {name: getattr(chosen, name) for name in names} | ({"model": chosen.model} if chosen.model else {})
        settings = EmbeddingSpeed(**given, tables=tuple(chosen.tables))
        print(embedding_speed_table(measure_embedding_speed(chosen.output, settings)))
    elif chosen.kind == "search":
        from evaluation.search_speed import SearchSizes, measure_search, search_lines

        wanted = SearchSizes(**{name: getattr(chosen, name) for name in vars(SearchSizes())})
        results = measure_search(chosen.output, wanted, only=tuple(chosen.only), repeats=chosen.repeats)
        print("\n".join(search_lines(results)))
    elif chosen.kind == "serve":
        from evaluation.service_load import ServiceLoad, measure_service
        from evaluation.service_report import service_lines, service_problems

        load = ServiceLoad(**{name: getattr(chosen, name) for name in vars(ServiceLoad())})
        results = measure_service(chosen.output, chosen.store, load, chosen.model)
        print("\n".join(service_lines(results)))
        return 1 if service_problems(results) else 0
    else:
        from training.studies.speed import Sizes, measure_training_speed, verdicts

        sizes = {name: getattr(chosen, name) for name in (*SIZES, "model")}
        found = Sizes(**sizes, candidates=tuple(sorted(chosen.candidates)))
        results = measure_training_speed(chosen.output, found, only=chosen.only, repeats=chosen.repeats)
        print("\n".join(verdicts(results)))
    return 0
