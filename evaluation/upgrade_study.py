"""Study what adapters between two models recover, by method, by size of the sample, and during a backfill.

Shape suffixes: P products, Q queries, D width of the new model, E width of the old model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation.metrics import paired_difference
from evaluation.provenance import provenance
from evaluation.upgrade_report import percent, recall_of
from product_data.atomic_files import write_atomically
from product_data.errors import OptionError
from product_data.outputs import require_writable_file
from product_data.tables import ProductTables
from retrieval.encode import encode, load_for_evaluation
from retrieval.upgrade.adapters import Adapter, fit_affine
from retrieval.upgrade.calibration import Calibration
from retrieval.upgrade.fitting import K, Sample, fit_upgrade
from retrieval.upgrade.gallery import Gallery, ranks
from retrieval.upgrade.recipes import Texts, linear_recipes, network_recipes, short_texts
from retrieval.upgrade.sampling import stratified_sample
from retrieval.upgrade.upgrading import query_of

SAMPLES = (200, 1000)
BACKFILLS = (0.0, 0.1, 0.5, 1.0)
_TYPES_OF_FORM = {"t": ("text",), "i": ("image",), "mm": ("text", "image", "both")}


@dataclass(frozen=True)
class Searched:
    """What one model makes of a data set.

    Args:
        product_PD: vectors of the products.
        title_PD: vectors of the products' titles as queries, by which an upgrade chooses.
        query_QD: vectors of the data set's queries.
        text_TD: vectors of short texts of products as queries, on which an upgrade fits; `None`: it fits on products alone.
    """

    product_PD: np.ndarray
    title_PD: np.ndarray
    query_QD: np.ndarray
    text_TD: np.ndarray | None = None


def search_of(model: str, tables: ProductTables, form: str, batch_size: int = 32) -> Searched:
    """Encode products, titles and queries with a model.

    Args:
        model: folder or hub id.
        tables: products with titles, and queries.
        form (`str`): form of the products: "t", "i" or "mm". Queries are those that the form can have.
        batch_size (`int`): records per batch. Default 32.

    Raises:
        OptionError: a product or query that cannot be read.
    """
    loaded = load_for_evaluation(model)
    titles = [record for row in tables.products if (record := query_of(row)) is not None]
    if len(titles) < len(tables.products):
        raise OptionError(
            f"{tables.name}: found products without title and picture; expected one of them for each product"
        )
    sides = (
        ([row.record(form) for row in tables.products], {"kind": "product", "form": form}),
        (titles, {"kind": "query"}),
        ([query.record() for query in tables.queries], {"kind": "query"}),
        ([{"text": text} for text, _ in texts_of(tables)], {"kind": "query"}),
    )
    vectors = []
    for records, options in sides:
        encoded = encode(*loaded, records, batch_size=batch_size, **options)
        if encoded.skipped:
            raise OptionError(f"{tables.name}: {encoded.skipped[0].item!r} cannot be read: {encoded.skipped[0].reason}")
        vectors.append(encoded.vectors)
    return Searched(*vectors)


def texts_of(tables: ProductTables, seed: int = 0) -> list[tuple[str, int]]:
    """Return short texts of the products, each with the index of its product: see `retrieval.upgrade.recipes.short_texts`."""
    rng = random.Random(seed)
    return [(text, number) for number, row in enumerate(tables.products) for text in short_texts(row, rng)]


def study_upgrade(
    old: Searched, new: Searched, tables: ProductTables, samples: Sequence[int] = SAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Return R@10 of the data set's queries: both models alone, unadapted, by adapter and sample, and by backfill.

    Adapters are fitted on the vectors of sampled products and of their texts, as `moon3 upgrade` does; the queries take no
    part in it. Each adapter but "chosen" is that of all products of the sample.

    Args:
        old, new: what both models make of `tables`.
        tables: products and queries.
        samples: sizes of samples. Default 200 and 1000.
        seed (`int`): of samples, networks, and the order of the backfill. Default 0.
    """
    place = {row.product_id: number for number, row in enumerate(tables.products)}
    right = [[place[one] for one in query.answers if one in place] for query in tables.queries]

    def searched(query_QD: np.ndarray, product_PD: np.ndarray) -> np.ndarray:
        return ranks(query_QD @ product_PD.T, right)

    rank_by = {"old": searched(old.query_QD, old.product_PD), "new": searched(new.query_QD, new.product_PD)}
    if old.product_PD.shape[1] == new.product_PD.shape[1]:
        rank_by["new query, old vectors, not adapted"] = searched(new.query_QD, old.product_PD)
    results: dict[str, Any] = {"widths": [old.product_PD.shape[1], new.product_PD.shape[1]], "samples": {}}
    strata = [" > ".join(row.category) for row in tables.products]
    chosen: tuple[Adapter, Calibration] | None = None
    for size in samples:
        sample = _sample(old, new, stratified_sample(strata, size, seed=seed), tables)
        fitted = fit_upgrade(sample, seed=seed)
        chosen = fitted.adapter, fitted.calibration
        own = {"chosen": searched(fitted.adapter(new.query_QD), old.product_PD)}
        for recipe in [*linear_recipes(sample.material), *network_recipes(sample.material, fitted.text_weight, seed)]:
            own[recipe.name] = searched(recipe.fit(np.arange(size))(new.query_QD), old.product_PD)
        results["samples"][str(size)] = {
            "chosen": fitted.name,
            "searches": {name: _against(rank_Q, rank_by, seed) for name, rank_Q in own.items()},
        }
    assert chosen is not None
    results["searches"] = {name: recall_of(rank_Q, seed=seed) for name, rank_Q in rank_by.items()}
    results["agreement"] = agreement(old, new, right)
    results["backfill"] = _backfill(old, new, *chosen, right, seed)
    return results


def _sample(old: Searched, new: Searched, drawn: Sequence[int], tables: ProductTables) -> Sample:
    """Return the sample of some products, as `moon3 upgrade` makes it."""
    texts, every = None, np.arange(len(drawn))
    if old.text_TD is not None and new.text_TD is not None:
        place = {product: number for number, product in enumerate(drawn)}
        product_T = np.array([place.get(product, -1) for _, product in texts_of(tables)])
        texts = Texts(new.text_TD[product_T >= 0], product_T[product_T >= 0], old.text_TD[product_T >= 0])
    before, after = Gallery(old.product_PD[drawn], every), Gallery(new.product_PD[drawn], every)
    return Sample(before, after, new.title_PD[drawn], every, old.title_PD[drawn], texts)


def agreement(old: Searched, new: Searched, right: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return how far two models find the same, which bounds what a map of the new one's queries can recover.

    Returns:
        right_by_old, right_by_new, right_by_both: shares of the queries whose answer is among the first ten.
        right_if_independent: the share for both if their errors were independent.
        neighbours_shared: mean share of the ten nearest products of a query that both have.
        share_of_old_by_an_affine_map_of_the_queries: R@10 of the affine map that is fitted on the measured queries themselves
            by both models, as a share of the old model's: an upper bound for the linear maps from query to query, not an adapter.
    """
    score_QP = {name: side.query_QD @ side.product_PD.T for name, side in (("old", old), ("new", new))}
    hit_Q = {name: ranks(score, right) <= K for name, score in score_QP.items()}
    first_QK = {name: np.argsort(-score, axis=1)[:, :K] for name, score in score_QP.items()}
    shared = [len(set(one) & set(two)) / K for one, two in zip(first_QK["old"], first_QK["new"], strict=True)]
    width = min(old.query_QD.shape[1], new.query_QD.shape[1])
    fitted = fit_affine(new.query_QD, old.query_QD, width)(new.query_QD)
    by_fitted = float((ranks(fitted @ old.product_PD.T, right) <= K).mean())
    found = {
        "right_by_old": float(hit_Q["old"].mean()),
        "right_by_new": float(hit_Q["new"].mean()),
        "right_by_both": float((hit_Q["old"] & hit_Q["new"]).mean()),
        "right_if_independent": float(hit_Q["old"].mean() * hit_Q["new"].mean()),
        "neighbours_shared": float(np.mean(shared)),
        "share_of_old_by_an_affine_map_of_the_queries": by_fitted / max(float(hit_Q["old"].mean()), 1e-9),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _against(rank_Q: np.ndarray, rank_by: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Return R@10, its share of that of each model, and the paired difference from the old model."""
    hits = {name: (rank <= K).astype(np.float64) for name, rank in {"own": rank_Q, **rank_by}.items()}
    shares = {
        f"share_of_{name}": round(float(hits["own"].mean() / max(hits[name].mean(), 1e-9)), 4)
        for name in ("old", "new")
    }
    return recall_of(rank_Q, seed=seed) | shares | {"minus_old": paired_difference(hits["old"], hits["own"], seed=seed)}


def _backfill(
    old: Searched,
    new: Searched,
    adapter: Adapter,
    calibration: Calibration,
    right: Sequence[Sequence[int]],
    seed: int,
) -> dict[str, Any]:
    """Return R@10 with a share of the products, drawn at random, by the new model: calibrated, and by raw cosines."""
    order_P = np.random.default_rng(seed).permutation(len(new.product_PD))
    old_QP = adapter(new.query_QD) @ old.product_PD.T
    new_QP = new.query_QD @ new.product_PD.T
    found = {}
    for share in BACKFILLS:
        moved = order_P[: round(share * len(order_P))]
        merged = {}
        for name, score_QP in (("calibrated", calibration(old_QP)), ("raw", old_QP)):
            score_QP = np.array(score_QP)
            score_QP[:, moved] = new_QP[:, moved]
            first_QK = np.argsort(-score_QP, axis=1)[:, :K]
            merged[name] = recall_of(ranks(score_QP, right), seed=seed)
            merged[name]["results_by_new"] = round(float(np.isin(first_QK, moved).mean()), 4)
        found[f"{share:.0%}"] = merged
    return {"calibration": {"scale": calibration.scale, "shift": calibration.shift}, "shares": found}


def write_upgrade_study(
    old: str,
    new: Mapping[str, str],
    tables: ProductTables,
    output: Path,
    *,
    form: str = "mm",
    samples: Sequence[int] = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Study upgrades from one old model to several new ones, and write the results file.

    Args:
        old: folder or hub id of the old model.
        new: name → folder or hub id of each new model.
        tables: products with titles, and queries.
        output: the results file.
        form, samples, seed: see `search_of` and `study_upgrade`.

    Raises:
        OptionError: no query that the form can have, or a record that cannot be read.
        OutputError: the file cannot be written.
    """
    require_writable_file("--output", output)
    ids = {row.product_id for row in tables.products}
    queries = [query for query in tables.queries if query.type in _TYPES_OF_FORM[form] and ids & set(query.answers)]
    if not queries:
        raise OptionError(f"{tables.name}: found no query for products of the form {form!r}; expected at least one")
    tables = ProductTables(tables.name, tables.products, queries, tables.report)
    before = search_of(old, tables, form)
    results: dict[str, Any] = {
        "old": old,
        "new": dict(new),
        "form": form,
        "products": len(ids),
        "queries": len(queries),
    }
    results["upgrades"] = {
        name: study_upgrade(before, search_of(place, tables, form), tables, samples, seed)
        for name, place in new.items()
    }
    results["provenance"] = provenance(seed)
    write_atomically(output, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def upgrade_study_table(results: Mapping[str, Any]) -> str:
    """Return the tables of a study: searches by adapter and sample, and the backfill."""
    rows, backfills = [], []
    found_by = results["upgrades"]
    for name, one in found_by.items():
        rows += [[name, search, "", percent(found), ""] for search, found in one["searches"].items()]
        for size, sample in one["samples"].items():
            for adapter, found in sample["searches"].items():
                label = f"chosen: {sample['chosen']}" if adapter == "chosen" else adapter
                rows.append([name, label, size, percent(found), f"{100 * found['share_of_old']:.1f}"])
        for share, merged in one["backfill"]["shares"].items():
            sides = [merged["calibrated"], merged["raw"]]
            backfills.append(
                [name, share, *map(percent, sides), *(f"{100 * side['results_by_new']:.0f}" for side in sides)]
            )
    agreements = [[name, *(f"{value:.3f}" for value in one["agreement"].values())] for name, one in found_by.items()]
    first = tabulate(rows, headers=["new model", "search", "sample", f"R@{K}, %", "% of old"], disable_numparse=True)
    headers = ["new model", "backfill", "calibrated", "raw cosine", "new in results, %", "raw, %"]
    names = [name.replace("_", " ") for name in next(iter(found_by.values()))["agreement"]]
    tables = [
        first,
        tabulate(agreements, headers=["new model", *names], disable_numparse=True),
        tabulate(backfills, headers=headers, disable_numparse=True),
    ]
    return "\n\n".join(tables)
