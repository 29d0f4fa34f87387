"""Measure how many planted near-duplicates and planted wrong answers a preparation finds, and what it finds by mistake.

moon3 matching-study near-duplicates --output results/near_duplicates.json

The data is simulated: drawn catalogues (`product_data.catalogue.making`) with planted copies and wrong answers
(`product_data.catalogue.planted_duplicates`). Thresholds are chosen on catalogues of other seeds than those that are reported:
the one with the most recall among those with a precision of at least .995. Each catalogue is measured twice: with the shop's
attributes, which tell variants apart, and without any, where titles and pictures alone must. A pair is right if both products are
the same product of the catalogue; groups count by all of their pairs.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.provenance import provenance
from product_data.catalogue.making import make_catalogue
from product_data.catalogue.planted_duplicates import PICTURE_CHANGES, TEXT_CHANGES, Planted, plant
from product_data.feeds.feed_product import FeedProduct
from product_data.preparation.near_duplicates import DuplicateFinder, DuplicateGroup, DuplicateOptions, NearVectors
from product_data.preparation.pair_filter import NONE, UNKNOWN, PairOptions, judge_pairs
from product_data.preparation.prepared_tables import Findings, Plan, WritingOptions
from product_data.preparation.signature_files import read_signatures
from product_data.preparation.split_assignment import assign_splits
from product_data.rows import EVERY_SPLIT, ProductRow, QueryRow
from product_data.tables import load_tables
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.near_vectors import NearVectorPairs

SEEDS, CHOOSING_SEEDS = (0, 1, 2), (10, 11)
PRECISION = 0.995
DISTANCES = (10.0, 14.0, 18.0, 22.0)
STRUCTURES = (0.94, 0.95, 0.96, 0.97)
TITLES = (0.2, 0.3, 0.4)
COSINES = (0.97, 0.98, 0.99, 0.995, 0.999)
CONDITIONS = ("with attributes", "without attributes")
NO_PICTURES = 0.0
Pairs = set[tuple[int, int]]


@dataclass(frozen=True)
class Case:
    """A catalogue with planted copies, in one condition.

    Args:
        planted: the tables.
        products, queries: as they are read.
        finder: finds the duplicates.
        truth: the pairs of rows that are the same product.
    """

    planted: Planted
    products: Sequence[ProductRow]
    queries: Sequence[QueryRow]
    finder: DuplicateFinder
    truth: Pairs


def make_case(condition: str, *, seed: int, products: int, model: str | None = None) -> Case:
    """Draw a catalogue, plant copies and wrong answers, and compute the signatures of its pictures.

    Args:
        condition (`str`): one of `CONDITIONS`.
        seed (`int`): seed of the catalogue and of what is planted.
        products (`int`): products of the catalogue, without the copies.
        model: folder or hub id of a model whose vectors are compared, too. Default `None`: none.
    """
    rows, queries = make_catalogue(products=products, seed=seed, progress=False)
    planted = plant(rows, queries, seed=seed)
    tables = load_tables({"products": planted.products, "queries": planted.queries})
    found = list(tables.products)
    if condition == CONDITIONS[1]:
        found = [replace(row, attributes={}) for row in found]
    with tempfile.TemporaryDirectory() as folder:
        signatures = read_signatures(found, Path(folder) / "signatures", progress=False)
        vectors = None if model is None else _vectors(found, model, Path(folder) / "vectors")
    same: dict[str, list[int]] = defaultdict(list)
    for row, product in enumerate(found):
        same[planted.copies.get(product.product_id, product.product_id)].append(row)
    truth = {pair for members in same.values() for pair in combinations(members, 2)}
    finder = DuplicateFinder(found, signatures.signatures, signatures.pictured, vectors, progress=False)
    return Case(planted, found, tables.queries, finder, truth)


def _vectors(products: Sequence[ProductRow], model: str, folder: Path) -> NearVectors:
    feed = [FeedProduct(row) for row in products]
    options = EmbeddingOptions(model, imports=("evaluation.baselines",))
    embed_feed(feed, folder, options, report=lambda _: None)
    return NearVectorPairs(folder)


def pairs_of(groups: Iterable[DuplicateGroup]) -> Pairs:
    """Return all pairs of products within groups."""
    return {pair for group in groups for pair in combinations(group.rows, 2)}


def score(found: Pairs, truth: Pairs) -> dict[str, Any]:
    """Return precision and recall of pairs, and their numbers; the precision of nothing is 1."""
    right = len(found & truth)
    return {
        "found": len(found),
        "same": len(truth),
        "right": right,
        "precision": right / len(found) if found else 1.0,
        "recall": right / len(truth) if truth else 1.0,
    }


def choose(cases: Sequence[Case], grid: Sequence[DuplicateOptions]) -> tuple[DuplicateOptions, list[dict[str, Any]]]:
    """Return the options with the most recall among those with the wanted precision over all cases, and all scores.

    Args:
        cases: catalogues of the seeds for choosing.
        grid: the options to choose from; of equal ones the first counts.
    """
    tried = []
    for options in grid:
        total = Counter[str]()
        for case in cases:
            groups, _ = case.finder.groups(case.finder.pairs(options))
            total.update({name: score(pairs_of(groups), case.truth)[name] for name in ("found", "same", "right")})
        tried.append(
            {
                "picture_distance": options.picture_distance,
                "structure": options.structure,
                "title_similarity": options.title_similarity,
                "cosine": options.cosine,
                "precision": total["right"] / total["found"] if total["found"] else 1.0,
                "recall": total["right"] / total["same"],
            }
        )
    best = max(
        range(len(grid)), key=lambda place: (min(tried[place]["precision"], PRECISION), tried[place]["recall"], -place)
    )
    return grid[best], tried


def measured(case: Case, options: DuplicateOptions) -> dict[str, Any]:
    """Return what is found in a catalogue: scores, recall by change, mistakes by kind, and what crosses splits.

    Args:
        case: the catalogue.
        options: when two products are the same.
    """
    groups, refused = case.finder.groups(case.finder.pairs(options))
    found = pairs_of(groups)
    ids = [row.product_id for row in case.products]
    result = score(found, case.truth) | {"groups": len(groups), "refused": len(refused)}
    by_change: dict[str, list[bool]] = {name: [] for name in (*PICTURE_CHANGES, *TEXT_CHANGES)}
    for pair in case.truth:
        copies = [ids[row] for row in pair if ids[row] in case.planted.changes]
        if len(copies) == 1:
            for change in case.planted.changes[copies[0]]:
                by_change[change].append(pair in found)
    result["recall_by_change"] = {name: float(np.mean(hits)) for name, hits in by_change.items() if hits}
    result["mistakes"] = dict(Counter(_kind(case, pair) for pair in found - case.truth))
    return result | _splits(case, groups)


def _kind(case: Case, pair: tuple[int, int]) -> str:
    """Return what two different products have in common, from the attributes of the catalogue."""
    attributes = [{entry["key"]: entry["value"] for entry in case.planted.products[row]["attributes"]} for row in pair]
    keys = [key for key in attributes[0] if key in attributes[1] and attributes[0][key] != attributes[1][key]]
    return "another colour" if keys == ["colour"] else "one detail" if len(keys) <= 1 else "several attributes"


def _splits(case: Case, groups: Sequence[DuplicateGroup]) -> dict[str, Any]:
    """Return how many pairs of the same product, and queries and answers, are in two splits before and after."""
    assignment = assign_splits(case.products, groups)
    judged = judge_pairs(case.products, case.queries, progress=False)
    options = WritingOptions(pairs=PairOptions("keep"))
    plan = Plan(case.products, case.queries, Findings(groups, assignment, judged), options)
    after = [row.split for row in plan.products]
    inside = pairs_of(groups)
    removed = plan.removed_products
    split_of = {row.product_id: row.split for place, row in enumerate(plan.products) if place not in removed}
    answers = [
        (query.split, split_of[name])
        for query in plan.queries
        if query is not None
        for name in query.positives
        if name in split_of
    ]
    before = [row.split for row in case.products]
    return {
        "groups_crossing_splits_before": assignment.crossing,
        "found_pairs_crossing_splits_after": sum(
            after[a] != after[b] for a, b in inside if a not in removed and b not in removed
        ),
        "same_pairs_crossing_splits_before": sum(before[a] != before[b] for a, b in case.truth),
        "same_pairs_crossing_splits_after": sum(
            after[a] != after[b] for a, b in case.truth if a not in removed and b not in removed
        ),
        "answers_in_another_split_after": sum(
            own != other and EVERY_SPLIT not in (own, other) for own, other in answers
        ),
    }


def measured_pairs(case: Case) -> dict[str, Any]:
    """Return how many planted wrong answers have no shared entity, and how many right answers seem to have none."""
    judged = [pair for pair in judge_pairs(case.products, case.queries, progress=False) if pair.verdict != "no words"]
    wrong = [pair for pair in judged if (pair.query_id, pair.product_id) in case.planted.wrong]
    right = [pair for pair in judged if (pair.query_id, pair.product_id) not in case.planted.wrong]
    return {
        "wrong": len(wrong),
        "wrong_without_a_shared_entity": sum(pair.verdict == NONE for pair in wrong),
        "right": len(right),
        "right_without_a_shared_entity": sum(pair.verdict == NONE for pair in right),
        "unknown": sum(pair.verdict == UNKNOWN for pair in judged),
    }


def measure_near_duplicates(
    model: str | None = None,
    *,
    products: int = 480,
    seeds: Sequence[int] = SEEDS,
    choosing_seeds: Sequence[int] = CHOOSING_SEEDS,
) -> dict[str, Any]:
    """Run the study; see the head of this file.

    Args:
        model: folder or hub id of a model; its vectors are then compared alone, and beside pictures and texts. Default
            `None`: no vectors.
        products (`int`): products of each catalogue, without the copies. Default 480.
        seeds, choosing_seeds: seeds of the reported catalogues, and of those on which thresholds are chosen.

    Returns: the content of the results file.
    """
    results: dict[str, Any] = {"simulated": True, "model": model, "default": vars(DuplicateOptions()), "conditions": {}}
    grid = [
        DuplicateOptions(picture_distance=distance, structure=structure, title_similarity=titles)
        for distance in DISTANCES
        for structure in STRUCTURES
        for titles in TITLES
    ]
    for condition in CONDITIONS:
        cases = [make_case(condition, seed=seed, products=products) for seed in choosing_seeds]
        chosen, tried = choose(cases, grid)
        reported = [make_case(condition, seed=seed, products=products) for seed in seeds]
        entry: dict[str, Any] = {"chosen": vars(chosen), "tried": tried}
        for name, options in (("with_chosen", chosen), ("with_default", DuplicateOptions())):
            entry[name] = {str(seed): measured(case, options) for seed, case in zip(seeds, reported, strict=True)}
        results["conditions"][condition] = entry
        if condition == CONDITIONS[0]:
            results["wrong_answers"] = {
                str(seed): measured_pairs(case) for seed, case in zip(seeds, reported, strict=True)
            }
    if model is not None:
        results["vectors"] = _measure_vectors(model, products, seeds, choosing_seeds)
    results["provenance"] = provenance(seeds[0], products=products, seeds=list(seeds))
    return results


def _measure_vectors(model: str, products: int, seeds: Sequence[int], choosing_seeds: Sequence[int]) -> dict[str, Any]:
    """Return what vectors find alone: a picture distance of 0 leaves out all but pictures without any difference."""
    condition = CONDITIONS[0]
    cases = [make_case(condition, seed=seed, products=products, model=model) for seed in choosing_seeds]
    alone = [DuplicateOptions(picture_distance=NO_PICTURES, cosine=cosine) for cosine in COSINES]
    chosen, tried = choose(cases, alone)
    reported = [make_case(condition, seed=seed, products=products, model=model) for seed in seeds]
    beside = replace(DuplicateOptions(), cosine=chosen.cosine)
    return {
        "chosen_cosine": chosen.cosine,
        "tried": tried,
        "alone": {str(seed): measured(case, chosen) for seed, case in zip(seeds, reported, strict=True)},
        "beside_pictures": {str(seed): measured(case, beside) for seed, case in zip(seeds, reported, strict=True)},
    }


def sentences(results: Mapping[str, Any]) -> list[str]:
    """Summarise the study."""
    said = ["All figures are of simulated data: drawn catalogues with planted copies."]
    for condition, entry in results["conditions"].items():
        chosen = entry["chosen"]
        said.append(
            f"Near-duplicates, {condition} (distance {chosen['picture_distance']:g}, structure {chosen['structure']:g}, titles "
            f"{chosen['title_similarity']:g}, "
            f"chosen on other seeds): {_scores(entry['with_chosen'])}; with the defaults: {_scores(entry['with_default'])}."
        )
    if "vectors" in results:
        found = results["vectors"]
        said.append(
            f"Vectors alone (cosine {found['chosen_cosine']:g}): {_scores(found['alone'])}; beside pictures: "
            f"{_scores(found['beside_pictures'])}."
        )
    runs = results["wrong_answers"].values()
    wrong, right = sum(run["wrong"] for run in runs), sum(run["right"] for run in runs)
    said.append(
        f"Entities: {sum(run['wrong_without_a_shared_entity'] for run in runs)} of {wrong} planted wrong answers share none, and "
        f"{sum(run['right_without_a_shared_entity'] for run in runs)} of {right} right answers."
    )
    return said


def _scores(runs: Mapping[str, Any]) -> str:
    columns = {name: [run[name] for run in runs.values()] for name in ("precision", "recall")}
    text = ", ".join(f"{name} {min(values):.3f} to {max(values):.3f}" for name, values in columns.items())
    crossing = sum(run["found_pairs_crossing_splits_after"] for run in runs.values())
    return f"{text} over {len(runs)} seeds, {crossing} found pairs in two splits"
