"""Evaluate models, Moon and its peers: retrieval, classification and attributes on one or several data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import (
    TABLES,
    add_catalogue,
    add_data_set,
    add_device,
    add_images_root,
    add_reading,
    data_set_of,
    reading_of,
)

NAME = "evaluate"  # a file of this name would hide the library
ORDER = 90


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from evaluation.data_sets import names
    from evaluation.run import BENCHMARKS, OPTIONAL_BENCHMARKS
    from retrieval.encode import QUERY_REASONING, ROW_REASONING, VARIANTS
    from retrieval.model_kinds import KINDS

    parser.add_argument(
        "--model",
        required=True,
        nargs="+",
        action="extend",
        metavar="MODEL",
        help="folder or hub id of a Moon or dual-tower checkpoint, or a peer as KIND=PLACE, with KIND one of "
        f"{', '.join(KINDS)}; several for one table",
    )
    parser.add_argument(
        "--reference",
        metavar="MODEL",
        help="with several models: the one that the others are compared with, query by query (default: the first)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="MODEL=WORDS",
        help="what a table says of the weights of a model whose folder does not record it, such as FOLDER=published",
    )
    parser.add_argument(
        "--benchmark",
        required=True,
        nargs="+",
        help=f"{TABLES}; or one of {', '.join(names())}, if necessary as mbe=FILE",
    )
    parser.add_argument("--split", default="test", help="split to search in, or all (default: test)")
    parser.add_argument("--output", type=Path, help="results file; a folder for several benchmarks or models")
    parser.add_argument("--sheet", type=Path, help="PNG of queries with their five nearest products")
    parser.add_argument(
        "--only",
        default=",".join(BENCHMARKS),
        help=f"measures to compute, of {','.join((*BENCHMARKS, *OPTIONAL_BENCHMARKS))}",
    )
    parser.add_argument(
        "--cutoffs", help="the k of R@k and nDCG@k, such as 10,100,500 (default: the data set's, or 1,5,10)"
    )
    parser.add_argument(
        "--attribute-keys",
        default="own",
        help="own, or paper: the ten keys of MBE, in any language (default: own)",
    )
    parser.add_argument("--limit", type=int, help="number of products to evaluate on (default: all)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--core-crop", action=argparse.BooleanOptionalAction, help="add the crop of the known box")
    parser.add_argument(
        "--reasoning", choices=ROW_REASONING, default="none", help="write attributes before embedding (default: none)"
    )
    parser.add_argument(
        "--query-reasoning",
        choices=QUERY_REASONING,
        help="reasoning of queries (default: as --reasoning); auto: only when unsure",
    )
    parser.add_argument(
        "--gate-threshold",
        type=float,
        help="margin of two cosines below which auto reasons for a query (default: 0.05)",
    )
    parser.add_argument(
        "--product-reasoning", choices=ROW_REASONING, help="reasoning of products (default: as --reasoning)"
    )
    parser.add_argument(
        "--max-reasoning-tokens", type=int, help="maximum tokens of reasoning (default: the model's number)"
    )
    parser.add_argument(
        "--variants",
        choices=VARIANTS,
        default=VARIANTS[0],
        help="how variants of a right answer count in the ranking (default: left_out)",
    )
    parser.add_argument(
        "--dimensions",
        type=int,
        nargs="*",
        metavar="WIDTH",
        help="also search with the first WIDTH numbers of each vector (default: the model's Matryoshka widths)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="type of the weights (default: the checkpoint's)",
    )
    parser.add_argument(
        "--attn-implementation",
        metavar="NAME",
        help="attention of transformers: sdpa, eager, flash_attention_2 … (default: the model's)",
    )
    parser.add_argument("--reasonings", type=Path, help="parquet file for the generated reasoning texts")
    parser.add_argument(
        "--reasoning-control",
        action="store_true",
        help="search again with the attributes of another query or product, and without, to see whether vectors use them",
    )
    add_device(parser)
    add_images_root(parser)
    add_reading(parser)
    add_data_set(parser)
    add_catalogue(parser, "seed of the catalogue, limit, sample, bootstrap and sheet")


def run(chosen: argparse.Namespace) -> None:
    """Evaluate and print the results."""
    from evaluation.peer_table import (
        compare_models,
        evaluate_models,
        models_table,
        require_reference,
        require_some_scores,
    )
    from evaluation.report import results_table
    from evaluation.run import EvaluationOptions, load_benchmark

    require_reference(chosen.model, chosen.reference)
    options = EvaluationOptions(
        split=chosen.split,
        only=tuple(name.replace("-", "_") for name in chosen.only.split(",") if name),
        limit=chosen.limit,
        batch_size=chosen.batch_size,
        core_crop=chosen.core_crop,
        seed=chosen.seed,
        sheet=chosen.sheet,
        query_reasoning=chosen.query_reasoning or chosen.reasoning,
        product_reasoning=chosen.product_reasoning or chosen.reasoning,
        gate_threshold=chosen.gate_threshold,
        max_reasoning_tokens=chosen.max_reasoning_tokens,
        reasonings=chosen.reasonings,
        reasoning_control=chosen.reasoning_control,
        variants=chosen.variants,
        dimensions=None if chosen.dimensions is None else tuple(chosen.dimensions),
        cutoffs=_numbers(chosen.cutoffs),
        attribute_keys=chosen.attribute_keys,
        dtype=chosen.dtype,
        attn_implementation=chosen.attn_implementation,
        weights=dict(map(_declared, chosen.weights)),
    )
    tables = [
        load_benchmark(
            source,
            split=chosen.split,
            seed=chosen.seed,
            images_root=chosen.images_root,
            reading=reading_of(chosen),
            catalogue_products=chosen.catalogue_products,
            data_set=data_set_of(chosen),
            labels=chosen.labels,
        )
        for source in chosen.benchmark
    ]
    results = evaluate_models(chosen.model, tables, options=options, output=chosen.output, device=chosen.device)
    if len(chosen.model) > 1:
        found = compare_models(results, reference=chosen.reference, output=chosen.output, seed=chosen.seed)
        print(models_table(results, found))
    else:
        print(results_table(results))
    require_some_scores(results)


def _declared(text: str) -> tuple[str, str]:
    from product_data.errors import OptionError

    model, _, words = text.rpartition("=")
    if not model or not words:
        raise OptionError(f"--weights: found {text!r}; expected MODEL=WORDS")
    return model, words


def _numbers(text: str | None) -> tuple[int, ...] | None:
    from product_data.errors import OptionError

    try:
        return None if text is None else tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError as error:
        raise OptionError(f"--cutoffs: found {text!r}; expected numbers such as 1,5,10") from error
