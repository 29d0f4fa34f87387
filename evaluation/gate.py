"""Measure the benefit and cost of reasoning only when unsure, and whether vectors with and without it share a space.

moon3 gate --model DIR --benchmark catalogue|PATH --output results/gate.json

Each query and product is encoded once without and once with reasoning; all results are computed from these vectors. The
same numbers are also written as tables (.md) and curves (.png) beside the file.

Shape suffixes: Q queries.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.benchmarks.retrieval import DIRECTIONS, Search, make_search
from evaluation.gate_report import ALL, draw_curves, markdown, summary_sentences
from evaluation.metrics import bootstrap_interval, paired_difference, recall_at
from evaluation.provenance import provenance
from evaluation.run import limited_tables
from modeling_moon.gate_moon import MarginGate
from product_data.errors import OptionError
from product_data.outputs import require_writable_file
from product_data.tables import ProductTables, TableError
from retrieval.encode import Encoded, VectorCache, config_digest, encode
from retrieval.shortened import shortened_summary

WAYS = ("none", "generate")
CUTOFFS = (1, 10)
QUANTILES = tuple(step / 20 for step in range(21))
# Queries without reasoning may be this far behind those with reasoning, among reasoned products, to count as one space.
WITHIN = 0.02
_OWN_FORMS = {"text": "t", "image": "i"}
_TIMED_BATCHES = 2


@dataclass(frozen=True)
class GateOptions:
    """Options for measuring the gate.

    Args:
        split (`str` or `None`): the split to evaluate; `None` for all products and queries. Default "test".
        limit (`int` or `None`): evaluate on this many products, drawn by `seed`, and on the queries that they answer.
            Default: all products.
        batch_size (`int`): records per batch. Default 32.
        max_reasoning_tokens (`int` or `None`): maximum number of reasoning tokens. Default: the model's number.
        seed (`int`): seed of the limit and of the bootstrap. Default 0.
        resamples (`int`): samples of the bootstrap. Default 1000.
        rounds (`int`): rounds in which the same two batches of queries are timed both ways. Default 5.
        progress (`bool`): show progress bars for longer work. Default True.

    Raises:
        OptionError: a number below 1.
    """

    split: str | None = "test"
    limit: int | None = None
    batch_size: int = 32
    max_reasoning_tokens: int | None = None
    seed: int = 0
    resamples: int = 1000
    rounds: int = 5
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "max_reasoning_tokens", "resamples", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name}={value}; expected 1 or more")


@dataclass(frozen=True)
class DirectionOutcome:
    """The results of each query of one direction in the four ways to search.

    Args:
        ranks: (query's way, products' way) → (Q,) rank of the best right answer; a way is "none" or "generate".
        margins: products' way → (Q,) margin of the query without reasoning (`MarginGate`).
        tokens: (Q,) number of tokens that the query's reasoning has.
        seconds: way → (Q,) seconds to embed a query of its kind.
        gallery: number of products in the gallery.
        source: "queries" or "products" (parts of products).
    """

    ranks: Mapping[tuple[str, str], np.ndarray]
    margins: Mapping[str, np.ndarray]
    tokens: np.ndarray
    seconds: Mapping[str, np.ndarray]
    gallery: int
    source: str


def measure_gate(
    model: Any, processor: Any, tables: ProductTables, *, model_name: str = "model", options: GateOptions | None = None
) -> dict[str, Any]:
    """Measure quality against cost for reasoning="auto", and the four ways to search, in each direction.

    Args:
        model, processor: a model that reasons and its processor, from `retrieval.encode.load_for_evaluation`.
        tables: from `product_data.tables.load_tables`.
        model_name (`str`): the model's name in the results. Default "model".
        options: options. Default: `GateOptions()`.

    Returns: the content of the results file: model, benchmark, max_reasoning_tokens; "cost", kind of query → timed
    (records) and for each way seconds, items_per_second (medians of the rounds) and tokens_per_item; "directions",
    direction or "all" → queries, gallery, source, "curves" (products' way → `gate_curve`) and "aligned"
    (`aligned_space`); "words", a summary in sentences; absent, skipped, shortened (see
    `retrieval.shortened.shortened_summary`), provenance. "all" pools the queries of all directions, with a common
    threshold.

    Raises:
        TableError: no such split, or no direction that can be searched.
        ValueError: a model that does not reason.
    """
    options = options or GateOptions()
    chosen = tables.select(options.split)
    chosen = limited_tables(chosen, options.limit, options.seed) if options.limit else chosen
    started = time.monotonic()
    sides = _Sides(model, processor, chosen, options)
    absent: dict[str, str] = {}
    outcomes = {name: outcome for name in DIRECTIONS if (outcome := sides.search(name, absent)) is not None}
    if not outcomes:
        raise TableError(f"{tables.name}: cannot search in any direction: {'; '.join(absent.values())}")
    bootstrap = {"resamples": options.resamples, "seed": options.seed}
    directions = {
        name: {
            "queries": len(outcome.tokens),
            "gallery": outcome.gallery,
            "source": outcome.source,
            "curves": {way: gate_curve(outcome, way, **bootstrap) for way in WAYS},
            "aligned": aligned_space(outcome, **bootstrap),
        }
        for name, outcome in {ALL: _pooled(list(outcomes.values())), **outcomes}.items()
    }
    results: dict[str, Any] = {
        "model": model_name,
        "benchmark": tables.name,
        "max_reasoning_tokens": options.max_reasoning_tokens or model.config.max_reasoning_tokens,
        "cost": sides.cost,
        "directions": directions,
        "absent": absent,
        "skipped": sides.skipped(),
        "shortened": sides.shortened(),
    }
    results["words"] = summary_sentences(results)
    results["provenance"] = provenance(
        options.seed,
        split=options.split,
        limit=options.limit,
        products=len(chosen.products),
        queries=len(chosen.queries),
        config_digest=config_digest(model),
        bootstrap_resamples=options.resamples,
        batch_size=options.batch_size,
        seconds=round(time.monotonic() - started, 2),
    )
    return results


def gate_curve(
    outcome: DirectionOutcome, products: str, *, resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Compute recall and cost if the unsure share of the queries reasons, for shares of 0, 5, … 100 per cent.

    A query reasons if its margin is below the threshold: at share s the threshold is the (⌊s·Q⌋ + 1)-th smallest
    margin, and at the end just above the largest. For comparison, a coin lets the same share of queries reason at
    random: `coin = (1 − s)·R(none) + s·R(generate)`. The margin is useful only if the gate's recall is above the
    coin's. `items_per_second = Q / Σ_q (seconds_none + reasoned_q · (seconds_generate − seconds_none))`, from the
    measured seconds of both ways: `embed(reasoning="auto")` reads a prompt once, and writing costs the difference
    between "generate" and "none". This is exact if time is proportional to the number of rows; a device that a few rows
    do not fill saves less.

    Args:
        outcome: the results of one direction.
        products (`str`): how products are embedded: "none" or "generate".
        resamples, seed (`int`): samples and seed of the bootstrap. Default 1000 and 0.

    Returns: for each quantile: quantile, threshold, share (of queries that reason), R@1, R@10, their 95 % intervals and
    coins, items_per_second, tokens_per_query (written, over all queries). Queries with equal margins reason together,
    so a share can be below its quantile.
    """
    margin_Q = outcome.margins[products]
    rank_Q = {way: outcome.ranks[way, products] for way in WAYS}
    sorted_Q = np.sort(margin_Q)
    points = []
    for quantile in QUANTILES:
        count = int(quantile * len(sorted_Q) + 1e-9)
        last = np.nextafter(sorted_Q[-1], np.inf, dtype=np.float32)
        threshold = float(sorted_Q[count] if count < len(sorted_Q) else last)
        reasoned_Q = margin_Q < threshold
        share = float(reasoned_Q.mean())
        mixed_Q = np.where(reasoned_Q, rank_Q["generate"], rank_Q["none"])
        more_Q = outcome.seconds["generate"] - outcome.seconds["none"]
        seconds = float((outcome.seconds["none"] + reasoned_Q * more_Q).sum())
        point: dict[str, Any] = {"quantile": quantile, "threshold": threshold if quantile else 0.0, "share": share}
        for k in CUTOFFS:
            plain, reasoned = (recall_at(rank_Q[way], k) for way in WAYS)
            point |= _recall(mixed_Q, k, resamples, seed)
            point[f"R@{k}_coin"] = (1 - share) * plain + share * reasoned
        point["items_per_second"] = len(margin_Q) / seconds if seconds > 0 else None
        point["tokens_per_query"] = float((outcome.tokens * reasoned_Q).mean())
        points.append(point)
    return points


def _recall(rank_Q: np.ndarray, k: int, resamples: int, seed: int) -> dict[str, Any]:
    interval = bootstrap_interval((rank_Q <= k).astype(float), resamples=resamples, seed=seed)
    return {f"R@{k}": recall_at(rank_Q, k), f"R@{k}_interval": list(interval)}


def aligned_space(outcome: DirectionOutcome, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Compute recall of the four ways to search, and how far queries without reasoning are behind if products reason.

    Args:
        outcome: the results of one direction.
        resamples, seed (`int`): samples and seed of the bootstrap. Default 1000 and 0.

    Returns: "ways": "none→generate" (queries without reasoning, products with reasoning) and the three others → R@1,
    R@10 with 95 % intervals; "difference": R@10 of none→generate minus generate→generate over the same queries, with
    its interval; "within": whether none→generate is at most 2 points behind.
    """
    ways = {
        f"{query}→{products}": {
            name: value
            for k in CUTOFFS
            for name, value in _recall(outcome.ranks[query, products], k, resamples, seed).items()
        }
        for query in WAYS
        for products in WAYS
    }
    reasoned, plain = (outcome.ranks[way, "generate"] <= 10 for way in ("generate", "none"))
    difference = paired_difference(reasoned, plain, resamples=resamples, seed=seed)
    behind = int(reasoned.sum()) - int(plain.sum())
    return {"ways": ways, "difference": difference, "within": behind <= WITHIN * len(plain) + 1e-9}


def _pooled(outcomes: Sequence[DirectionOutcome]) -> DirectionOutcome:
    """Pool the queries of all directions."""

    def join(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(parts))

    return DirectionOutcome(
        ranks={pair: join([outcome.ranks[pair] for outcome in outcomes]) for pair in outcomes[0].ranks},
        margins={way: join([outcome.margins[way] for outcome in outcomes]) for way in WAYS},
        tokens=join([outcome.tokens for outcome in outcomes]),
        seconds={way: join([outcome.seconds[way] for outcome in outcomes]) for way in WAYS},
        gallery=max(outcome.gallery for outcome in outcomes),
        source="queries and products" if len({outcome.source for outcome in outcomes}) > 1 else outcomes[0].source,
    )


class _Sides:
    """The queries by kind and the products, each without and with reasoning."""

    def __init__(self, model: Any, processor: Any, tables: ProductTables, options: GateOptions) -> None:
        self.tables, self.options = tables, options
        tokens = options.max_reasoning_tokens
        settings: dict[str, Any] = {"batch_size": options.batch_size, "progress": options.progress}

        def cache(queries: Sequence[Any], way: str, **reasoning: Any) -> VectorCache:
            thinking = {"max_tokens": tokens} if tokens is not None and way == "generate" else None
            return VectorCache(model, processor, tables.products, queries, thinking=thinking, **settings, **reasoning)

        self.products = {way: cache([], way, product_reasoning=way) for way in WAYS}
        self.queries: dict[str, dict[str, VectorCache]] = {}
        self.encoded: dict[str, dict[str, Encoded]] = {}
        self.cost: dict[str, Any] = {}
        for kind in dict.fromkeys(kind for kind, _ in DIRECTIONS.values()):
            own = [row for row in tables.queries if row.type == kind]
            if not own and kind not in _OWN_FORMS:
                continue
            # If parts of products replace queries, the caches of products also provide the queries.
            self.queries[kind] = {way: cache(own, way, query_reasoning=way) for way in WAYS} if own else self.products
            self._encode(kind, bool(own))

    def _encode(self, kind: str, own: bool) -> None:
        caches = self.queries[kind]
        ways = {way: cache.all_queries() if own else cache.gallery(_OWN_FORMS[kind]) for way, cache in caches.items()}
        self.encoded[kind] = ways
        kept = ways["none"].kept
        step = max(1, len(kept) // (_TIMED_BATCHES * self.options.batch_size))
        places = kept[::step][: _TIMED_BATCHES * self.options.batch_size]
        if own:
            records, form = [caches["none"].queries[index].record() for index in places], {"kind": "query"}
        else:
            form = {"form": _OWN_FORMS[kind]}
            records = [self.tables.products[index].record(_OWN_FORMS[kind]) for index in places]
        self.cost[kind] = {"timed": len(records), **self._timed(caches, records, form)}
        tokens = ways["generate"].tokens
        self.cost[kind]["generate"]["tokens_per_item"] = float(np.mean(tokens)) if tokens else None

    def _timed(
        self, caches: Mapping[str, VectorCache], records: Sequence[dict[str, Any]], form: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """Return the median seconds of each way over the rounds, without the first; the ways go first in turn."""
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(self.options.rounds + 1):
            for way in WAYS if number % 2 else reversed(WAYS):
                cache = caches[way]
                settings: dict[str, Any] = {"batch_size": self.options.batch_size, "progress": False}
                if way == "generate":
                    settings["thinking"] = cache.settings.thinking
                started = time.perf_counter()
                encode(cache.model, cache.processor, records, reasoning=way, **form, **settings)
                seconds[way].append(time.perf_counter() - started)
        medians = {way: statistics.median(measured[1:]) for way, measured in seconds.items()}
        return {
            way: {"seconds": median, "items_per_second": len(records) / median if records else None}
            for way, median in medians.items()
        }

    def search(self, name: str, absent: dict[str, str]) -> DirectionOutcome | None:
        """Search in one direction; return None, and the reason in `absent`, if that is not possible."""
        kind, _ = DIRECTIONS[name]
        if kind not in self.queries:
            absent[name] = f"the data has no queries of type {kind!r}"
            return None
        searches: dict[tuple[str, str], Search] = {}
        for query in WAYS:
            for products in WAYS:
                search = make_search(
                    self.queries[kind][query], name, DIRECTIONS[name], absent, searched=self.products[products]
                )
                if search is None:
                    return None
                searches[query, products] = search
        first = searches["none", "none"]
        if len(first.gallery) < 2:
            absent[name] = "the gallery has one product, so no query can be unsure"
            return None
        if any(other.indices != first.indices or other.positives != first.positives for other in searches.values()):
            raise TableError(
                f"{name}: some records can be encoded only with or only without reasoning; expected the same records both times"
            )
        encoded = self.encoded[kind]["generate"]
        written = dict(zip(encoded.kept, encoded.tokens or [], strict=True))
        count = len(first.indices)
        return DirectionOutcome(
            ranks={pair: search.ranks() for pair, search in searches.items()},
            margins={way: _margins(searches["none", way]) for way in WAYS},
            tokens=np.asarray([written[index] for index in first.indices]),
            seconds={
                way: np.full(count, self.cost[kind][way]["seconds"] / max(1, self.cost[kind]["timed"])) for way in WAYS
            },
            gallery=len(first.gallery),
            source=first.source,
        )

    def skipped(self) -> list[dict[str, Any]]:
        """Return the products and queries that could not be encoded, each once."""
        records = {(record["kind"], record["id"]): record for cache in self._caches() for record in cache.skipped()}
        return list(records.values())

    def shortened(self) -> dict[str, Any]:
        """Return a summary of what was cut or resized, each part of a product or query once."""
        return shortened_summary(entry for cache in self._caches() for entry in cache.shortened())

    def _caches(self) -> list[VectorCache]:
        return [*self.products.values(), *(cache for ways in self.queries.values() for cache in ways.values())]


def _margins(search: Search) -> np.ndarray:
    """Return the margin of each query; the largest possible one for a query with a single candidate."""
    vectors = torch.from_numpy(np.ascontiguousarray(search.vectors))
    return MarginGate(search.gallery).margins(vectors, search.repeated).clamp(max=2).numpy()


def gate_files(output: Path) -> tuple[Path, Path, Path]:
    """Return the paths of numbers (.json), tables (.md) and curves (.png), and check that they can be written.

    Raises:
        OptionError: a suffix other than .json.
        OutputError: a file that cannot be written.
    """
    if output.suffix != ".json":
        raise OptionError(f"--output {output}; expected a .json file")
    paths = output, output.with_suffix(".md"), output.with_suffix(".png")
    for path in paths:
        require_writable_file("--output", path)
    return paths


def write_gate(results: dict[str, Any], output: Path) -> None:
    """Write results: numbers (.json), tables (.md) and curves (.png).

    Args:
        results: from `measure_gate`.
        output: the .json file.
    """
    numbers, tables, curves = gate_files(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    numbers.write_text(text, encoding="utf-8")
    tables.write_text(markdown(results), encoding="utf-8")
    draw_curves(results, curves)
