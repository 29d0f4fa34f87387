"""Measure whether a vector uses the attributes that were written before it: exchange them for those of another record.

A model can retrieve well with reasoning because it has read what it wrote, or only because it has computed longer. The control
embeds every record again with a given reasoning: its own, that of another record of the same kind, and none. If vectors use
what was written, recall falls with the attributes of another record.

Shape suffixes: N records, Q queries, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.benchmarks.retrieval import Ranked, evaluate_retrieval
from evaluation.metrics import bootstrap_interval
from evaluation.significance import paired_test
from retrieval.encode import Encoded, Scoring, VectorCache, WrittenReasoning, encode

OWN, SWAPPED, NONE = "own", "swapped", "none"
WAYS = (OWN, SWAPPED, NONE)
"""The reasoning that is given to each record."""
_CUTOFFS = (1, 10)
Key = tuple[str, str, str]
"""Side ("query" or "product"), input of the model ("query", or the form of a product), and id of a record."""


class GivenReasonings(VectorCache):
    """A `VectorCache` whose records have a given reasoning.

    Args:
        texts: the text between the tags for each record. A record that is missing, or whose text is empty, is embedded
            without reasoning.
        *args, **settings: as for `VectorCache`, without modes of reasoning.
    """

    def __init__(self, texts: Mapping[Key, str], *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.texts = texts

    def _encode(self, records: Sequence[dict[str, Any]], reasoning: str, **options: Any) -> Encoded:
        if "task" in options:  # labels never reason
            return super()._encode(records, reasoning, **options)
        side = options.get("kind", "product")
        inputs = side if side == "query" else options.get("form", "mm")
        texts = [self.texts.get((side, inputs, str(record.get("id"))), "") for record in records]
        groups = {
            "given": [row for row, text in enumerate(texts) if text.strip()],
            "none": [row for row, text in enumerate(texts) if not text.strip()],
        }
        settings = {name: getattr(self.settings, name) for name in ("batch_size", "progress")}
        found = []
        for mode, rows in groups.items():
            chosen = [records[row] | ({"reasoning": texts[row]} if mode == "given" else {}) for row in rows]
            found.append((rows, encode(self.model, self.processor, chosen, reasoning=mode, **options, **settings)))
        return _merged(found, self.model.config.vector_size)


def _merged(parts: Sequence[tuple[Sequence[int], Encoded]], width: int) -> Encoded:
    """Return the records of several parts in their order; `parts` has the places of each part's records."""
    kept = [
        (rows[index], vector) for rows, part in parts for index, vector in zip(part.kept, part.vectors, strict=True)
    ]
    kept.sort(key=lambda entry: entry[0])
    vectors = np.stack([vector for _, vector in kept]) if kept else np.zeros((0, width), np.float32)
    skipped, shortened = [], []
    for rows, part in parts:
        skipped += [replace(one, index=rows[one.index]) for one in part.skipped]
        shortened += [replace(one, index=rows[one.index]) for one in part.shortened]
    return Encoded(vectors, [row for row, _ in kept], skipped, shortened=shortened)


def exchanged(texts: Mapping[Key, str], seed: int = 0) -> dict[Key, Key]:
    """Return for each record another record of the same side and input with a different text.

    Records are put into a random order, and each takes the next one in it whose text differs, so that every text is used about
    as often as it was written. Records whose texts are all the same have no partner and are left out.

    Args:
        texts: the text of each record; empty texts are left out.
        seed: of the order.
    """
    partners: dict[Key, Key] = {}
    rng = np.random.default_rng(seed)
    for group in sorted({key[:2] for key in texts}):
        keys = [key for key, text in texts.items() if key[:2] == group and text.strip()]
        keys = [keys[place] for place in rng.permutation(len(keys))]
        for place, key in enumerate(keys):
            others = (keys[(place + step) % len(keys)] for step in range(1, len(keys)))
            partner = next((other for other in others if texts[other].strip() != texts[key].strip()), None)
            if partner is not None:
                partners[key] = partner
    return partners


def reasoning_control(cache: VectorCache, *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Embed the records of an evaluation with their own, with another's and without attributes, and compare.

    Our design (precedent: the counterfactual tests of faithful reasoning, arXiv 2307.13702, which change what a model wrote
    and see whether its answer changes).

    Args:
        cache: of an evaluation in which queries, products or both generate.
        seed: of the exchange and of the bootstrap.
        resamples: of the bootstrap.

    Returns: "written" (texts that are not empty), "exchanged" (those with a partner), "seed"; "recall": direction → "own",
    "swapped", "none" → R@1 and R@10, and "swapped_change", "none_change" → R@1 and R@10 → difference to "own", its 95 %
    interval and p-value (`evaluation.significance.paired_test`); "cosine": "query" and "product", of the records with a
    partner → "swapped", "none" and "other" → mean and 95 % interval of the cosine between the vector with the own reasoning
    and the one with the partner's, without reasoning, and of the partner itself with its own.

    Raises:
        ValueError: the cache has no reasoning.
    """
    written = [entry for entry in cache.reasonings() if entry.side == "query" or entry.input in ("mm", "t", "i")]
    if not written:
        raise ValueError("reasoning control: found no reasoning texts; expected queries or products that generate")
    texts = {_key(entry): entry.reasoning.text for entry in written}
    partners = exchanged(texts, seed)
    swapped = texts | {key: texts[partner] for key, partner in partners.items()}
    caches: dict[str, GivenReasonings] = {}
    ranked: dict[str, dict[str, Ranked]] = {}
    for way, given in zip(WAYS, (texts, swapped, {}), strict=True):
        size, progress = cache.settings.batch_size, cache.settings.progress
        caches[way] = GivenReasonings(
            given,
            cache.model,
            cache.processor,
            cache.products,
            cache.queries,
            scoring=Scoring(cache.variants, cache.label_products, cache.label_queries),
            batch_size=size,
            progress=progress,
        )
        ranked[way] = {}
        evaluate_retrieval(caches[way], cutoffs=_CUTOFFS, resamples=1, seed=seed, ranked=ranked[way])
    return {
        "written": sum(bool(text.strip()) for text in texts.values()),
        "exchanged": len(partners),
        "seed": seed,
        "recall": {name: _recall(ranked, name, resamples, seed) for name in ranked[OWN] if _common(ranked, name)},
        "cosine": _cosines(caches, partners, resamples, seed),
    }


def _key(entry: WrittenReasoning) -> Key:
    return entry.side, entry.input, entry.record_id


def _recall(ranked: Mapping[str, Mapping[str, Ranked]], name: str, resamples: int, seed: int) -> dict[str, Any]:
    """Return the recall of a direction in each way, and the changes against the own reasoning."""
    common = _common(ranked, name)
    rank_Q = {}
    for way in WAYS:
        kept_Q = [index in common for index in ranked[way][name].indices]
        rank_Q[way] = ranked[way][name].rank_Q[np.array(kept_Q, dtype=bool)]
    hits = {way: {k: (rank_Q[way] <= k).astype(np.float64) for k in _CUTOFFS} for way in WAYS}
    found: dict[str, Any] = {way: {f"R@{k}": float(hits[way][k].mean()) for k in _CUTOFFS} for way in WAYS}
    found["queries"] = len(rank_Q[OWN])
    for way in (SWAPPED, NONE):
        found[f"{way}_change"] = {
            f"R@{k}": paired_test(hits[OWN][k], hits[way][k], resamples=resamples, seed=seed) for k in _CUTOFFS
        }
    return found


def _common(ranked: Mapping[str, Mapping[str, Ranked]], name: str) -> set[int]:
    """Return the queries of a direction that are ranked in all ways: a given reasoning may not fit into the token budget."""
    return set.intersection(*(set(ranked[way][name].indices) if name in ranked[way] else set() for way in WAYS))


def _cosines(
    caches: Mapping[str, GivenReasonings], partners: Mapping[Key, Key], resamples: int, seed: int
) -> dict[str, Any]:
    vectors = {way: _vectors(cache, {key[:2] for key in partners}) for way, cache in caches.items()}
    found: dict[str, Any] = {}
    for side in ("query", "product"):
        pairs = [
            (key, partner)
            for key, partner in partners.items()
            if key[0] == side and all(key in vectors[way] for way in WAYS) and partner in vectors[OWN]
        ]
        if not pairs:
            continue
        own_ND = np.stack([vectors[OWN][key] for key, _ in pairs])
        others = {way: np.stack([vectors[way][key] for key, _ in pairs]) for way in (SWAPPED, NONE)}
        others["other"] = np.stack([vectors[OWN][partner] for _, partner in pairs])
        found[side] = {"records": len(pairs)}
        for name, other_ND in others.items():
            cosine_N = (own_ND * other_ND).sum(axis=1).astype(np.float64)
            interval = bootstrap_interval(cosine_N, resamples=resamples, seed=seed)
            found[side][name] = {"mean": float(cosine_N.mean()), "interval": list(interval)}
    return found


def _vectors(cache: VectorCache, groups: set[tuple[str, str]]) -> dict[Key, np.ndarray]:
    """Return the vector of each record of some groups (side, input)."""
    found: dict[Key, np.ndarray] = {}
    for side, name in groups:
        encoded = cache.all_queries() if side == "query" else cache.gallery(name)
        ids = [row.query_id for row in cache.queries] if side == "query" else [row.product_id for row in cache.products]
        found |= {(side, name, ids[row]): vector for row, vector in zip(encoded.kept, encoded.vectors, strict=True)}
    return found
