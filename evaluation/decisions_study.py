"""Measure whether decisions keep the precision that they promise, on data where every answer is known.

moon3 matching-study decisions --model training/checkpoints/moon1-catalogue --titles ../shared/data/same_product \
    --text-encoder sentence_transformer=PLACE --output results/decisions.json

Each population is a set of pairs with known answers: simulated scores; candidates among drawn pictures of products that are
listed twice; and pairs of shop titles. Many samples of labelled pairs are drawn from it; each chooses a threshold, whose true
precision is that over the whole population. For titles, the threshold from the training and validation parts is also applied
to the test part, which people made harder.

Shape suffixes: N titles, P pairs, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score
from tabulate import tabulate
from tqdm import tqdm

import evaluation.baselines  # noqa: F401 - registers their models
from evaluation.baselines.bm25 import bm25_weights, word_counts, words
from evaluation.provenance import provenance
from product_data.catalogue.twins import draw_twins
from product_data.table_files import read_rows
from retrieval.decisions.calibration import fit_calibrator
from retrieval.decisions.deciding import shifts
from retrieval.decisions.errors import DecisionError
from retrieval.decisions.labelled_pairs import divide
from retrieval.decisions.pair_scores import FEATURES, PairScorer
from retrieval.decisions.promises import precision_lower_bound, promise_precision
from retrieval.encode import encode, load_for_evaluation

CONFIDENCE = 0.95
PRECISIONS = (0.7, 0.8, 0.9, 0.95)
NEIGHBOURS = 5
_FIT_SHARE = 0.3
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Population:
    """Pairs whose answers are all known.

    Args:
        feature_PF: (P, F) features.
        same_P: (P,) bool answers.
    """

    feature_PF: np.ndarray
    same_P: np.ndarray


def simulated(seed: int = 0, *, pairs: int = 200_000, same_share: float = 0.25) -> Population:
    """Return pairs whose cosines are normal: mean .8 (deviation .1) for the same product, .55 (.1) for others.

    The margin is the cosine minus .45, with a normal error of deviation .03.
    """
    rng = np.random.default_rng(seed)
    same_P = rng.random(pairs) < same_share
    cosine_P = np.where(same_P, rng.normal(0.8, 0.1, pairs), rng.normal(0.55, 0.1, pairs))
    return Population(np.stack([cosine_P, cosine_P - 0.45 + rng.normal(0, 0.03, pairs)], axis=1), same_P)


def naive_threshold(score_P: np.ndarray, same_P: np.ndarray, precision: float) -> float | None:
    """Return the lowest threshold with the wanted precision on the labelled pairs themselves; None without one."""
    order = np.argsort(-score_P, kind="stable")
    share = np.cumsum(same_P[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(share >= precision)
    return float(score_P[order[enough[-1]]]) if len(enough) else None


def promises_held(
    population: Population, *, labelled: int, precision: float, repeats: int, seed: int = 0
) -> dict[str, Any]:
    """Draw labelled samples from a population, and return how often the promise made from a sample is true.

    Args:
        population: all pairs.
        labelled (`int`): pairs of a sample, drawn with replacement.
        precision (`float`): wanted precision.
        repeats (`int`): number of samples.
        seed (`int`): seed of the draws. Default 0.

    Returns: "promised": share of the samples that give a threshold; "held": share of all samples that give no threshold or one
    whose precision over the population is at least the wanted one; "held_of_promised"; mean precision and recall of the
    thresholds; and the same for the threshold that the labelled pairs themselves suggest, without a test ("naive").
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float]]] = {"fixed_sequence": [], "naive": []}
    for repeat in tqdm(range(repeats), desc="samples", delay=3.0, leave=False):
        rows = rng.integers(0, len(population.same_P), labelled)
        feature_PF, same_P = population.feature_PF[rows], population.same_P[rows]
        fit, choosing = divide(labelled, fit_share=_FIT_SHARE, seed=repeat)
        try:
            calibrator = fit_calibrator(feature_PF[fit], same_P[fit], [""] * len(fit), FEATURES)
        except DecisionError:  # a sample of one class promises nothing
            continue
        own_P = calibrator.probabilities(feature_PF, [""] * labelled)
        promise = promise_precision(
            (own_P[fit], same_P[fit]), (own_P[choosing], same_P[choosing]), precision=precision, confidence=CONFIDENCE
        )
        all_P = calibrator.probabilities(population.feature_PF, [""] * len(population.same_P))
        thresholds = {"fixed_sequence": promise.threshold, "naive": naive_threshold(own_P, same_P, precision)}
        for name, threshold in thresholds.items():
            if threshold is not None:
                found[name].append(_precision_and_recall(all_P >= threshold, population.same_P))
    return {"labelled": labelled, "precision": precision, "confidence": CONFIDENCE, "repeats": repeats} | {
        name: _summary(values, precision, repeats) for name, values in found.items()
    }


def _precision_and_recall(decided_P: np.ndarray, same_P: np.ndarray) -> tuple[float, float]:
    right = int((decided_P & same_P).sum())
    return right / max(1, int(decided_P.sum())), right / max(1, int(same_P.sum()))


def _summary(values: list[tuple[float, float]], precision: float, repeats: int) -> dict[str, Any]:
    broken = sum(value < precision for value, _ in values)
    means = np.mean(values, axis=0) if values else (None, None)
    return {
        "promised": len(values) / repeats,
        "held": 1 - broken / repeats,
        "held_of_promised": 1 - broken / len(values) if values else None,
        "mean_precision": None if means[0] is None else float(means[0]),
        "mean_recall": None if means[1] is None else float(means[1]),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Drawn products that are listed twice


def twins_population(
    model: Any, processor: Any, *, scene: str, near_twins: bool, products: int, seed: int = 3
) -> tuple[Population, dict[str, Any]]:
    """Return the candidates among pictures of products that are listed twice, and facts about them.

    Args:
        model, processor: as for `retrieval.encode.encode`.
        scene, near_twins, products, seed: as for `product_data.catalogue.twins.draw_twins`; pictures have 96 pixels.
    """
    twins = draw_twins(products=products, seed=seed, image_size=96, scene=scene, near_twins=near_twins, progress=False)
    records = [{"id": row["product_id"], "images": row["images"], "core_box": row["bbox"]} for row in twins.listings]
    encoded = encode(model, processor, records, form="i")
    ids = [twins.listings[index]["product_id"] for index in encoded.kept]
    scorer = PairScorer.of(encoded.vectors, NEIGHBOURS)
    pair_P2 = scorer.candidates()
    same_P = np.array([twins.same(ids[a], ids[b]) for a, b in pair_P2])
    population = Population(scorer.features(pair_P2), same_P)
    return population, {
        "listings": len(ids),
        "candidates": len(same_P),
        "same": int(same_P.sum()),
        "candidate_recall": float(same_P.sum() / (len(ids) / 2)),
        "average_precision": float(average_precision_score(same_P, population.feature_PF[:, 0])),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Titles


@dataclass(frozen=True)
class Titles:
    """Labelled pairs of titles: the titles, rows of both sides, answers, and the part of each pair."""

    titles: list[str]
    pair_P2: np.ndarray
    same_P: np.ndarray
    part_P: np.ndarray


def read_titles(folder: Path, name: str) -> Titles:
    """Read NAME_train.csv, NAME_valid.csv and NAME_test.csv with the columns left_title, right_title, same_product."""
    place: dict[str, int] = {}
    pairs, same, parts = [], [], []
    for part in _PARTS:
        for row in read_rows(folder / f"{name}_{part}.csv"):
            sides = (str(row["left_title"]), str(row["right_title"]))
            pairs.append([place.setdefault(side, len(place)) for side in sides])
            same.append(str(row["same_product"]) == "1")
            parts.append(part)
    return Titles(list(place), np.array(pairs), np.array(same), np.array(parts))


def bm25_features(titles: list[str], pair_P2: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Return the (P, 2) similarity and margin of titles by BM25.

    `s(a, b) = ½ (score(a, b) / score(a, a) + score(b, a) / score(b, b))`, 1 for equal titles; the margin is that of
    `PairScorer` with s in place of the cosine. Our design: BM25 itself is not symmetric.

    Args:
        titles: N titles, which are the documents.
        pair_P2: (P, 2) rows.
        k (`int`): number of neighbours. Default 5.
    """
    vocabulary = sorted({word for title in titles for word in words(title)})
    score_NN = word_counts(titles, vocabulary) @ bm25_weights(titles, vocabulary).T
    share_NN = score_NN / np.maximum(np.diag(score_NN), 1e-12)[:, None]
    share_NN = 0.5 * (share_NN + share_NN.T)
    left, right = pair_P2.T
    similarity_P = share_NN[left, right]
    np.fill_diagonal(share_NN, -np.inf)
    mean_N = np.sort(share_NN, axis=1)[:, -k:].mean(axis=1)
    return np.stack([similarity_P, similarity_P - 0.5 * (mean_N[left] + mean_N[right])], axis=1)


def on_test_part(data: Titles, feature_PF: np.ndarray) -> list[dict[str, Any]]:
    """Return what the thresholds from the training and validation parts give on the test part, by wanted precision."""
    fit, choosing, test = (np.flatnonzero(data.part_P == part) for part in _PARTS)
    calibrator = fit_calibrator(feature_PF[fit], data.same_P[fit], [""] * len(fit), FEATURES)
    probability_P = calibrator.probabilities(feature_PF, [""] * len(feature_PF))
    rows = []
    for precision in PRECISIONS:
        promise = promise_precision(
            (probability_P[fit], data.same_P[fit]),
            (probability_P[choosing], data.same_P[choosing]),
            precision=precision,
            confidence=CONFIDENCE,
        )
        row: dict[str, Any] = {"precision": precision, "threshold": promise.threshold, "sentence": promise.sentence}
        if promise.threshold is not None:
            decided_P = probability_P[test] >= promise.threshold
            found, recall = _precision_and_recall(decided_P, data.same_P[test])
            right, decided = int((decided_P & data.same_P[test]).sum()), int(decided_P.sum())
            bound = precision_lower_bound(right, decided, CONFIDENCE) if decided else 0.0
            row |= {"test_decided": decided, "test_precision": found, "test_recall": recall, "test_lower_bound": bound}
        rows.append(row)
    return rows


def titles_results(
    folder: Path, models: Mapping[str, tuple[Any, Any]], *, repeats: int, names: tuple[str, ...] = ("shoes", "watches")
) -> dict[str, Any]:
    """Return the results on pairs of titles, by data set and model; BM25 is one of the models.

    Args:
        folder: see `read_titles`.
        models: name → (model, processor).
        repeats (`int`): samples of `promises_held`.
        names: data sets. Default: shoes and watches.
    """
    found: dict[str, Any] = {}
    for name in names:
        data = read_titles(folder, name)
        features = {"BM25": bm25_features(data.titles, data.pair_P2)}
        for model_name, (model, processor) in models.items():
            records = [{"id": str(row), "title": title} for row, title in enumerate(data.titles)]
            vector_ND = encode(model, processor, records, form="t").vectors
            features[model_name] = PairScorer.of(vector_ND, NEIGHBOURS).features(data.pair_P2)
        is_test = data.part_P == "test"
        found[name] = {"pairs": {part: int((data.part_P == part).sum()) for part in _PARTS}, "models": {}}
        for model_name, feature_PF in features.items():
            population = Population(feature_PF, data.same_P)
            found[name]["models"][model_name] = {
                "average_precision": float(average_precision_score(data.same_P[is_test], feature_PF[is_test, 0])),
                "shift": [
                    {"feature": shift.feature, "distance": shift.distance, "p_value": shift.p_value}
                    for shift in shifts(feature_PF[~is_test], feature_PF[is_test])
                ],
                "test": on_test_part(data, feature_PF),
                "samples": [
                    promises_held(population, labelled=1500, precision=precision, repeats=repeats)
                    for precision in (0.8, 0.95)
                ],
            }
    return found


def measure_decisions(
    model_place: str,
    *,
    titles: Path | None = None,
    text_encoder: str | None = None,
    repeats: int = 400,
    products: int = 1200,
) -> dict[str, Any]:
    """Run the study; see the head of this file.

    Args:
        model_place: folder or hub id of the model.
        titles: folder of the labelled titles. Default `None`: they are not measured.
        text_encoder: a frozen text encoder, measured on the titles beside. Default `None`.
        repeats (`int`): samples of labelled pairs for each population. Default 400.
        products (`int`): drawn products that are listed twice. Default 1,200.

    Returns: the content of the results file.
    """
    models = {"Moon": load_for_evaluation(model_place)}
    results: dict[str, Any] = {"model": model_place, "text_encoder": None}
    population = simulated()
    results["simulated"] = [
        promises_held(population, labelled=labelled, precision=precision, repeats=repeats)
        for labelled in (300, 1000)
        for precision in (0.9, 0.95)
    ]
    results["simulated"].append(promises_held(population, labelled=3000, precision=0.95, repeats=repeats))
    results["twins"] = []
    for scene, near_twins in (("studio", False), ("studio", True), ("street", False)):
        population, facts = twins_population(*models["Moon"], scene=scene, near_twins=near_twins, products=products)
        samples = [promises_held(population, labelled=1500, precision=0.95, repeats=repeats)]
        results["twins"].append({"scene": scene, "near_twins": near_twins} | facts | {"samples": samples})
    if titles is not None:
        if text_encoder is not None:
            results["text_encoder"] = text_encoder.partition("=")[0] + "=" + Path(text_encoder.partition("=")[2]).name
            models["text encoder"] = load_for_evaluation(text_encoder)
        results["titles"] = titles_results(titles, models, repeats=repeats)
    results["provenance"] = provenance(0, repeats=repeats, products=products)
    return results


def promises_table(results: Mapping[str, Any]) -> str:
    """Return what each population promises, as a table in Markdown for docs/matching.md."""
    runs = [("simulated scores", run) for run in results["simulated"]]
    for entry in results["twins"]:
        kind = "drawn listings, " + entry["scene"] + (", near-twins" if entry["near_twins"] else "")
        runs += [(kind, run) for run in entry["samples"]]
    for name, data in results.get("titles", {}).items():
        runs += [(f"{name}, {model}", run) for model, entry in data["models"].items() for run in entry["samples"]]
    rows = [
        [
            population,
            f"{run['labelled']:,}",
            f"{run['precision']:.0%}",
            *(f"{part:.1%}" for part in (run["fixed_sequence"]["promised"], run["fixed_sequence"]["held"])),
            f"{run['naive']['held']:.1%}",
        ]
        for population, run in runs
    ]
    headings = ["pairs", "labels", "wanted", "samples that promise it", "no false promise", "naive threshold keeps it"]
    return str(tabulate(rows, headings, tablefmt="github", disable_numparse=True))


def titles_table(results: Mapping[str, Any]) -> str:
    """Return the average precision of each model on the test parts of the titles, as a table in Markdown."""
    titles = results["titles"]
    models = list(next(iter(titles.values()))["models"])
    rows = [
        [name, *(f"{data['models'][model]['average_precision']:.3f}" for model in models)]
        for name, data in titles.items()
    ]
    return str(tabulate(rows, ["test part", *models], tablefmt="github", disable_numparse=True))


def sentences(results: Mapping[str, Any]) -> list[str]:
    """Summarise the study."""
    found = [f"Simulated scores, {_promise(run)}" for run in results["simulated"]]
    for entry in results["twins"]:
        look_alikes = "near-twins and colours" if entry["near_twins"] else "colours"
        found += [f"Drawn listings ({entry['scene']}; {look_alikes}), {_promise(run)}" for run in entry["samples"]]
    for name, data in results.get("titles", {}).items():
        for model, entry in data["models"].items():
            found += [f"Titles of {name}, {model}, {_promise(run)}" for run in entry["samples"]]
            kept = [row for row in entry["test"] if row["threshold"] is not None]
            tests = "; ".join(
                f"promised {row['precision']:.0%}, found {row['test_precision']:.1%} of {row['test_decided']}"
                for row in kept
            )
            found.append(
                f"Titles of {name}, {model}, test part: {tests or 'no threshold promises any of the precisions'}; "
                + ", ".join(f"{one['feature']} {one['distance']:.2f}" for one in entry["shift"])
                + " from the other parts (Kolmogorov–Smirnov distance)."
            )
    return found


def _promise(run: Mapping[str, Any]) -> str:
    own, naive = run["fixed_sequence"], run["naive"]
    recall = "" if own["mean_recall"] is None else f", mean recall {own['mean_recall']:.1%}"
    return (
        f"{run['labelled']} labels, precision {run['precision']:.0%}: {own['promised']:.1%} of {run['repeats']} samples promise "
        f"it{recall}; no false promise in {own['held']:.1%} (naive threshold: {naive['held']:.1%})."
    )
