"""Show what a model found for single queries of a results file: hits, misses, and the worst ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.benchmarks.retrieval import DIRECTIONS, IMAGE_ONLY, SearchExample, examples_of
from evaluation.per_query import QueryValues, gallery_digest
from evaluation.report import shown_cutoff
from evaluation.run import core_crop_set
from product_data.errors import OptionError
from product_data.tables import ProductTables
from retrieval.encode import Scoring, VectorCache, config_digest

OF_QUERIES = ("text", "image", "both")
"""The kinds of queries from the data; in other searches, the products' own parts are the queries."""
_KINDS = ("worst", "misses", "hits")


@dataclass(frozen=True)
class ShownQuery:
    """A query and the products that were found for it.

    Args:
        example: the query and its best products.
        rank (`int`): rank of its best right answer in the results file.
        rank_now (`int`): the same rank in the search that found these products.
    """

    example: SearchExample
    rank: int
    rank_now: int


@dataclass(frozen=True)
class Sheet:
    """Queries of one direction and one kind.

    Args:
        direction (`str`): such as "t2mm".
        kind (`str`): "worst" (the largest ranks), "misses" (others that are not among the first k) or "hits" (at rank 1).
        products (`int`): size of the gallery.
        queries: the queries.
    """

    direction: str
    kind: str
    products: int
    queries: tuple[ShownQuery, ...]


def worst_queries(values: QueryValues, count: int = 5) -> list[tuple[str, int]]:
    """Return (id, rank) of the queries with the largest ranks above 1, the worst first.

    Args:
        values: the values of one direction.
        count (`int`): number of queries. Default 5.
    """
    ranked = sorted(zip(values.digests, values.rank_Q.tolist(), strict=True), key=lambda pair: -pair[1])
    return [(name, int(rank)) for name, rank in ranked[:count] if rank > 1]


def chosen_queries(values: QueryValues, k: int, *, count: int = 4, seed: int = 0) -> dict[str, list[tuple[str, int]]]:
    """Return kind → (id, rank) of the queries that a sheet shows: the worst, then misses and hits drawn by `seed`.

    Args:
        values: the values of one direction.
        k (`int`): a miss is not among the first k.
        count (`int`): number of queries of each kind. Default 4.
        seed (`int`): seed of the drawn queries. Default 0.
    """
    ranked = [(name, int(rank)) for name, rank in zip(values.digests, values.rank_Q.tolist(), strict=True)]
    drawn = [ranked[place] for place in np.random.default_rng(seed).permutation(len(ranked))]
    worst = worst_queries(values, count)
    misses = [(name, rank) for name, rank in drawn if rank > k and (name, rank) not in worst]
    hits = [(name, rank) for name, rank in drawn if rank == 1]
    return {"worst": worst, "misses": misses[:count], "hits": hits[:count]}


def make_sheets(
    model: Any,
    processor: Any,
    tables: ProductTables,
    result: Mapping[str, Any],
    directions: Mapping[str, QueryValues],
    *,
    count: int = 4,
    batch_size: int = 32,
) -> list[Sheet]:
    """Search again with the queries that sheets show; only these queries and all products are encoded.

    Searches over whole products (mm) are shown; if there are none, the other searches.

    Args:
        model, processor: the model of the results, from `retrieval.encode.load_for_evaluation`.
        tables: the data of the results, already restricted to their split and limit.
        result: the content of the results file.
        directions: its ranks, from `evaluation.per_query.unpack`.
        count (`int`): number of queries of each kind. Default 4.
        batch_size (`int`): records per batch. Default 32.

    Raises:
        OptionError: the configuration of a different model, or a different gallery.
    """
    facts = result["provenance"]
    if facts["config_digest"] != config_digest(model):
        raise OptionError(
            f"--model: its configuration has the digest {config_digest(model)}; expected that of {result['model']}, "
            f"{facts['config_digest']}, the first results file's"
        )
    asked = {name: values for name, values in directions.items() if values.asked in OF_QUERIES}
    chosen = {name: values for name, values in asked.items() if name.endswith("2mm")} or asked
    last = shown_cutoff(result["cutoffs"])
    shown = {name: chosen_queries(values, last, count=count, seed=facts["seed"]) for name, values in chosen.items()}
    wanted = {one for kinds in shown.values() for found in kinds.values() for one, _ in found}
    with core_crop_set(processor, facts.get("core_crop")):
        cache = _cache(model, processor, tables, result, wanted, batch_size)
        sheets = []
        for name, kinds in shown.items():
            _require_same_gallery(cache, name, chosen[name])
            examples = examples_of(cache, name, wanted)
            for kind in _KINDS:
                queries = tuple(
                    ShownQuery(examples[one][0], rank, examples[one][1]) for one, rank in kinds[kind] if one in examples
                )
                if queries:
                    sheets.append(Sheet(name, kind, chosen[name].products, queries))
    return sheets


def _cache(
    model: Any, processor: Any, tables: ProductTables, result: Mapping[str, Any], wanted: set[str], batch_size: int
) -> VectorCache:
    """Return the vectors of all products and of the wanted queries, made in the same way as those of the results."""
    reasoning = result.get("reasoning") or {}
    thinking = reasoning.get("max_reasoning_tokens")
    return VectorCache(
        model,
        processor,
        tables.products,
        [query for query in tables.queries if query.query_id in wanted],
        query_reasoning=reasoning.get("query", "none"),
        product_reasoning=reasoning.get("product", "none"),
        gate_threshold=reasoning.get("gate_threshold"),
        scoring=Scoring(result["equal_products"]["variants"]),
        batch_size=batch_size,
        thinking=None if thinking is None else {"max_tokens": thinking},
    )


def _require_same_gallery(cache: VectorCache, direction: str, values: QueryValues) -> None:
    form = (DIRECTIONS | IMAGE_ONLY)[direction][1]
    kept = cache.gallery(form).kept
    if gallery_digest(cache.products, kept, cache.equal, form) != values.gallery:
        raise OptionError(
            f"--data, {direction}: found {len(kept)} products that are not the {values.products} of the first results file; "
            "expected the same data, split and seed"
        )
