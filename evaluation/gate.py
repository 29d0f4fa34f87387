"""Thinking only when unsure: what it brings and costs; and whether vectors with and without reasoning share one space.

moon3 gate --model DIR --benchmark catalogue|PATH --output results/gate.json

Every query and every product is encoded once without and once with reasoning; all else is computed from these vectors.
Beside the file lie the same numbers as tables (.md) and as curves (.png).

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
from evaluation.gate_report import ALL, draw_curves, in_words, markdown
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
# How far un-reasoned queries may lie behind reasoned ones before reasoned products, for the two to count as one space.
WITHIN = 0.02
_OWN_FORMS = {"text": "t", "image": "i"}
_TIMED_BATCHES = 2


@dataclass(frozen=True)
class GateOptions:
    """How the gate is measured.

    Args:
        split (`str` or `None`): which split; `None` for all rows. Default "test".
        limit (`int` or `None`): on this many products, drawn by `seed`, and on the queries that they answer.
        batch_size (`int`): records a batch. Default 32.
        max_reasoning_tokens (`int` or `None`): most tokens of a reasoning. Default: the model's own number.
        seed (`int`): of the limit and the bootstrap. Default 0.
        resamples (`int`): of the bootstrap. Default 1000.
        rounds (`int`): how often the same two batches of queries are timed in both ways, in turn. Default 5.
        progress (`bool`): progress bars for longer work. Default True.

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
class Asked:
    """One direction: what became of each query in the four ways to search.

    Args:
        ranks: (query's way, products' way) → (Q,) rank of its best right answer; a way is "none" or "generate".
        margins: products' way → (Q,) margin of the query without reasoning (`MarginGate`).
        tokens: (Q,) tokens that were written when the query reasoned.
        seconds: way → (Q,) seconds that it takes to embed a query of its kind.
        gallery: how many products were searched.
        source: "queries" or "products" (products' own parts).
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
    """The curve of quality over cost of reasoning="auto", and the four ways to search, in each direction.

    Args:
        model, processor: of a model that reasons, from `retrieval.encode.load_for_evaluation`.
        tables: from `product_data.tables.load_tables`.
        model_name (`str`): what the results call the model.
        options: GateOptions. Default: its defaults.

    Returns: the content of the results file: model, benchmark, max_reasoning_tokens; "cost", kind of query → timed (records) and
    of each way seconds, items_per_second (medians of the rounds) and tokens_per_item; "directions", direction or "all" →
    queries, gallery, source, "curves" (products' way → `gate_curve`) and "aligned" (`aligned_space`); "words", sentences that
    say what came out; absent, skipped, shortened (see `retrieval.shortened.shortened_summary`), provenance. "all" takes the
    queries of all directions together, under a common threshold.

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
    found = {name: sides.ask(name, absent) for name in DIRECTIONS}
    asked = {name: one for name, one in found.items() if one is not None}
    if not asked:
        raise TableError(f"{tables.name}: no direction can be searched; {'; '.join(absent.values())}")
    bootstrap = {"resamples": options.resamples, "seed": options.seed}
    directions = {
        name: {
            "queries": len(one.tokens),
            "gallery": one.gallery,
            "source": one.source,
            "curves": {way: gate_curve(one, way, **bootstrap) for way in WAYS},
            "aligned": aligned_space(one, **bootstrap),
        }
        for name, one in {ALL: _together(list(asked.values())), **asked}.items()
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
    results["words"] = in_words(results)
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


def gate_curve(asked: Asked, products: str, *, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """What comes of it when the unsure share of the queries reasons, for shares of 0, 5, … 100 per cent.

    A query reasons when its margin is below the threshold: at share s the threshold is the (⌊s·Q⌋ + 1)-th smallest margin, at
    the end just above the largest. Beside the recall stands that of a coin which lets the same share reason whoever they are:
    `coin = (1 − s)·R(none) + s·R(generate)`. Only where the gate lies above the coin does the margin say who needs it.
    `items_per_second = Q / Σ_q (seconds_none + reasoned_q · (seconds_generate − seconds_none))`, from the measured seconds of
    both ways: `embed(reasoning="auto")` reads a prompt once, and writing on costs what "generate" costs beyond "none". It is
    exact where time goes with the number of rows; a device that a few rows do not fill saves less.

    Args:
        asked: one direction.
        products (`str`): whether the products reasoned: "none" or "generate".
        resamples, seed (`int`): of the bootstrap. Default 1000 and 0.

    Returns: for each quantile: quantile, threshold, share (that reasoned), R@1, R@10, their 95 % intervals and coins,
    items_per_second, tokens_per_query (written, over all queries). Equal margins reason together, so that a share may be below
    its quantile.
    """
    margin_Q = asked.margins[products]
    rank_Q = {way: asked.ranks[way, products] for way in WAYS}
    sorted_Q = np.sort(margin_Q)
    points = []
    for quantile in QUANTILES:
        count = int(quantile * len(sorted_Q) + 1e-9)
        last = np.nextafter(sorted_Q[-1], np.inf, dtype=np.float32)
        threshold = float(sorted_Q[count] if count < len(sorted_Q) else last)
        reasoned_Q = margin_Q < threshold
        share = float(reasoned_Q.mean())
        mixed_Q = np.where(reasoned_Q, rank_Q["generate"], rank_Q["none"])
        more_Q = asked.seconds["generate"] - asked.seconds["none"]
        seconds = float((asked.seconds["none"] + reasoned_Q * more_Q).sum())
        point: dict[str, Any] = {"quantile": quantile, "threshold": threshold if quantile else 0.0, "share": share}
        for k in CUTOFFS:
            plain, thought = (recall_at(rank_Q[way], k) for way in WAYS)
            point |= _recall(mixed_Q, k, resamples, seed)
            point[f"R@{k}_coin"] = (1 - share) * plain + share * thought
        point["items_per_second"] = len(margin_Q) / seconds if seconds > 0 else None
        point["tokens_per_query"] = float((asked.tokens * reasoned_Q).mean())
        points.append(point)
    return points


def _recall(rank_Q: np.ndarray, k: int, resamples: int, seed: int) -> dict[str, Any]:
    interval = bootstrap_interval((rank_Q <= k).astype(float), resamples=resamples, seed=seed)
    return {f"R@{k}": recall_at(rank_Q, k), f"R@{k}_interval": list(interval)}


def aligned_space(asked: Asked, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Recall of the four ways to search, and how far queries without reasoning lie behind before reasoned products.

    Args:
        asked: one direction.
        resamples, seed (`int`): of the bootstrap. Default 1000 and 0.

    Returns: "ways": "none→generate" (un-reasoned queries, reasoned products) and the three others → R@1, R@10 with 95 %
    intervals; "difference": R@10 of none→generate minus generate→generate over the same queries, with its interval; "within":
    whether it is not more than 2 points behind.
    """
    ways = {
        f"{query}→{products}": {
            name: value
            for k in CUTOFFS
            for name, value in _recall(asked.ranks[query, products], k, resamples, seed).items()
        }
        for query in WAYS
        for products in WAYS
    }
    thought, plain = (asked.ranks[way, "generate"] <= 10 for way in ("generate", "none"))
    difference = paired_difference(thought, plain, resamples=resamples, seed=seed)
    behind = int(thought.sum()) - int(plain.sum())
    return {"ways": ways, "difference": difference, "within": behind <= WITHIN * len(plain) + 1e-9}


def _together(asked: Sequence[Asked]) -> Asked:
    """The queries of all directions as if they were one."""

    def join(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(parts))

    return Asked(
        ranks={pair: join([one.ranks[pair] for one in asked]) for pair in asked[0].ranks},
        margins={way: join([one.margins[way] for one in asked]) for way in WAYS},
        tokens=join([one.tokens for one in asked]),
        seconds={way: join([one.seconds[way] for one in asked]) for way in WAYS},
        gallery=max(one.gallery for one in asked),
        source="queries and products" if len({one.source for one in asked}) > 1 else asked[0].source,
    )


class _Sides:
    """Queries by kind, and products, each without and with reasoning."""

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
            # Where products' own parts stand in for queries, the caches of products ask.
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
        """Median seconds of each way over the rounds, in which the ways take turns in going first; one round is not counted."""
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
        medians = {way: statistics.median(found[1:]) for way, found in seconds.items()}
        return {
            way: {"seconds": found, "items_per_second": len(records) / found if records else None}
            for way, found in medians.items()
        }

    def ask(self, name: str, absent: dict[str, str]) -> Asked | None:
        """One direction, or None where it cannot be searched."""
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
            absent[name] = "the gallery has one product: nothing to be unsure of"
            return None
        if any(one.asked != first.asked or one.positives != first.positives for one in searches.values()):
            raise TableError(
                f"{name}: other records could be encoded with reasoning than without: they cannot be compared"
            )
        encoded = self.encoded[kind]["generate"]
        written = dict(zip(encoded.kept, encoded.tokens or [], strict=True))
        count = len(first.asked)
        return Asked(
            ranks={pair: search.ranks() for pair, search in searches.items()},
            margins={way: _margins(searches["none", way]) for way in WAYS},
            tokens=np.asarray([written[index] for index in first.asked]),
            seconds={
                way: np.full(count, self.cost[kind][way]["seconds"] / max(1, self.cost[kind]["timed"])) for way in WAYS
            },
            gallery=len(first.gallery),
            source=first.source,
        )

    def skipped(self) -> list[dict[str, Any]]:
        """What could not be encoded, each product or query once."""
        caches = [*self.products.values(), *(cache for ways in self.queries.values() for cache in ways.values())]
        found = {(one["kind"], one["id"]): one for cache in caches for one in cache.skipped()}
        return list(found.values())

    def shortened(self) -> dict[str, Any]:
        """What was cut or made smaller, each part of a product or query once."""
        caches = [*self.products.values(), *(cache for ways in self.queries.values() for cache in ways.values())]
        return shortened_summary(one for cache in caches for one in cache.shortened())


def _margins(search: Search) -> np.ndarray:
    """The margin of each query; of one that has a single product left to find, the largest there is."""
    vectors = torch.from_numpy(np.ascontiguousarray(search.vectors))
    return MarginGate(search.gallery).margins(vectors, search.repeated).clamp(max=2).numpy()


def gate_files(output: Path) -> tuple[Path, Path, Path]:
    """Return the results file and beside it the page and the picture; all of them can be written.

    Raises:
        OptionError: no .json file.
        OutputError: what cannot be written.
    """
    if output.suffix != ".json":
        raise OptionError(f"--output {output}; expected a .json file")
    paths = output, output.with_suffix(".md"), output.with_suffix(".png")
    for path in paths:
        require_writable_file("--output", path)
    return paths


def write_gate(results: dict[str, Any], output: Path) -> None:
    """Write what was measured: numbers (.json), tables (.md) and curves (.png).

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
