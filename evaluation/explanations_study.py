"""Measure how often an explanation names the value that two products share, where the truth is known.

moon3 matching-study explanations --model training/checkpoints/moon1-catalogue --output results/explanations.json

Two products that share exactly one attribute value: does that value contribute most? On constructed vectors with known
sparse codes; and on the drawn catalogue, where settings are chosen on one catalogue and measured on another. A value that the
model's vectors do not contain cannot be named by them: keys whose sharing raises the cosine are reported apart.

Shape suffixes: N products, D embedding, P phrases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from evaluation.provenance import provenance
from product_data.catalogue.making import make_catalogue
from product_data.tables import load_tables
from retrieval.encode import encode, load_for_evaluation
from retrieval.explain import DEFAULT_LAMBDA, MatchExplanation, Side, explain_match
from retrieval.phrases import EMBEDDED_AS, Phrase, PhraseDictionary, embed_phrases, phrases_of
from retrieval.stores.interface import StoredProduct

SEEDS = {"validation": 2, "unseen": 0}
"""Seeds of both catalogues; the shipped checkpoint was trained on seed 1."""
PENALTIES = (0.02, 0.05, 0.1, 0.2)
CARRIED = 0.75
"""A key counts as carried by the vectors if this share of pairs that share it alone is nearer than a pair that shares nothing."""
_FORM = "mm"


@dataclass(frozen=True)
class Case:
    """Two products that share exactly one phrase: their rows, and the phrase."""

    left: int
    right: int
    truth: Phrase


@dataclass(frozen=True)
class Drawn:
    """A drawn catalogue as a study needs it: facts, phrases of each product, vectors and their mean."""

    products: list[StoredProduct]
    stated: list[tuple[Phrase, ...]]
    vector_ND: np.ndarray
    mean_D: np.ndarray

    @property
    def phrases(self) -> list[Phrase]:
        """All phrases, in alphabetical order."""
        return sorted({phrase for stated in self.stated for phrase in stated})


def constructed(
    *, seed: int, pairs: int = 300, phrases: int = 300, dimension: int = 128, noise: float = 0.3
) -> dict[str, float]:
    """Return how often the shared phrase is first for vectors that are sums of known phrases and noise.

    Each vector is the mean plus eight random unit vectors with weights of .5 to 1.5, plus Gaussian noise of `noise` times the
    length of that sum; both vectors of a pair share exactly one phrase.

    Args:
        seed (`int`): seed.
        pairs, phrases, dimension (`int`): sizes. Defaults 300, 300, 128.
        noise (`float`): relative length of the noise. Default 0.3.

    Returns: share of pairs whose first phrase is right, among the 15 phrases of both products ("stated") and among all.
    """
    rng = np.random.default_rng(seed)
    atom_PD = rng.normal(size=(phrases, dimension))
    atom_PD /= np.linalg.norm(atom_PD, axis=1, keepdims=True)
    mean_D = rng.normal(size=dimension) / dimension**0.5
    names = tuple(Phrase("code", f"{number:04}") for number in range(phrases))
    dictionary = PhraseDictionary(names, atom_PD, {}, mean_D)
    right = {"stated": 0, "every": 0}
    for _ in range(pairs):
        rows = rng.choice(phrases, 15, replace=False)
        sides = []
        for own in (rows[:8], np.r_[rows[:1], rows[8:]]):
            sum_D = rng.uniform(0.5, 1.5, 8) @ atom_PD[own]
            error_D = rng.normal(size=dimension)
            error_D *= noise * np.linalg.norm(sum_D) / np.linalg.norm(error_D)
            sides.append(Side(mean_D + sum_D + error_D, mean_D, tuple(names[row] for row in own)))
        for name in right:
            found = explain_match(sides[0], sides[1], dictionary, every_phrase=name == "every")
            right[name] += _is_right(found, names[rows[0]])
    return {name: count / pairs for name, count in right.items()}


def _is_right(found: MatchExplanation, truth: Phrase) -> bool:
    return bool(found.shared) and found.shared[0].phrase == truth


def draw(model: Any, processor: Any, seed: int, *, products: int = 3400, image_size: int = 96) -> Drawn:
    """Draw and embed the test split of a catalogue.

    Args:
        model, processor: as for `retrieval.encode.encode`.
        seed (`int`): seed of the catalogue.
        products, image_size (`int`): as for `make_catalogue`. Defaults 3,400 (510 in the test split) and 96.
    """
    rows, _ = make_catalogue(
        products=products, seed=seed, image_size=image_size, only="test", queries_per_product=0, progress=False
    )
    found = load_tables({"products": rows}).products
    facts = [
        StoredProduct(row.product_id, row.title, category=row.category, attributes=row.attributes) for row in found
    ]
    encoded = encode(model, processor, [row.record(_FORM) for row in found], form=_FORM)
    kept = [facts[index] for index in encoded.kept]
    return Drawn(kept, [phrases_of(product) for product in kept], encoded.vectors, encoded.vectors.mean(axis=0))


def shared_counts(catalogue: Drawn) -> np.ndarray:
    """Return (N, N) the number of phrases that each two products share; -1 on and below the diagonal."""
    row = {phrase: place for place, phrase in enumerate(catalogue.phrases)}
    has_NP = np.zeros((len(catalogue.products), len(row)))
    for place, stated in enumerate(catalogue.stated):
        has_NP[place, [row[phrase] for phrase in stated]] = 1
    return np.where(np.triu(np.ones((len(has_NP),) * 2), 1) > 0, has_NP @ has_NP.T, -1)


def cases_of(catalogue: Drawn, counts_NN: np.ndarray, *, most: int, seed: int) -> tuple[list[Case], dict[str, int]]:
    """Return pairs that share exactly one phrase, at most `most` for each key, and how many there are by key."""
    by_key: dict[str, list[Case]] = defaultdict(list)
    for left, right in np.argwhere(counts_NN == 1):
        truth = next(iter(set(catalogue.stated[left]) & set(catalogue.stated[right])))
        by_key[truth.key].append(Case(int(left), int(right), truth))
    rng = np.random.default_rng(seed)
    chosen = []
    for key in sorted(by_key):
        order = rng.permutation(len(by_key[key]))[:most]
        chosen += [by_key[key][place] for place in order]
    return chosen, {key: len(found) for key, found in by_key.items()}


def nearness(catalogue: Drawn, cases: Sequence[Case], counts_NN: np.ndarray) -> dict[str, float]:
    """Return key → probability that a pair which shares that key alone has a larger centred cosine than one without.

    The area under the ROC curve of the cosine; .5 if sharing the value does not change it.
    """
    centred_ND = catalogue.vector_ND - catalogue.mean_D
    centred_ND /= np.linalg.norm(centred_ND, axis=1, keepdims=True)
    nothing = (centred_ND @ centred_ND.T)[counts_NN == 0]
    found = {}
    for key in sorted({case.truth.key for case in cases}):
        own = [float(centred_ND[case.left] @ centred_ND[case.right]) for case in cases if case.truth.key == key]
        labels = np.r_[np.ones(len(own)), np.zeros(len(nothing))]
        found[key] = float(roc_auc_score(labels, np.r_[own, nothing]))
    return found


def explained(
    catalogue: Drawn, cases: Sequence[Case], dictionary: PhraseDictionary, **settings: Any
) -> list[MatchExplanation]:
    """Explain all cases; `settings` are those of `explain_match`."""
    sides = [Side(v, catalogue.mean_D, stated) for v, stated in zip(catalogue.vector_ND, catalogue.stated, strict=True)]
    bar = tqdm(cases, desc="explain", delay=3.0, leave=False)
    return [explain_match(sides[case.left], sides[case.right], dictionary, **settings) for case in bar]


def scores(
    cases: Sequence[Case], found: Sequence[MatchExplanation], counts: dict[str, int], carried: Sequence[str]
) -> dict[str, Any]:
    """Return the shares of cases whose first phrase is right: by key, over all pairs, and over the pairs of carried keys.

    A share over several keys weights each key by its number of pairs in the catalogue.
    """
    by_key: dict[str, dict[str, Any]] = {}
    for key in sorted(counts):
        own = [(case, one) for case, one in zip(cases, found, strict=True) if case.truth.key == key]
        right = sum(_is_right(one, case.truth) for case, one in own)
        silent = sum(not one.shared for _, one in own)
        by_key[key] = {
            "pairs": counts[key],
            "explained": len(own),
            "right": right / len(own),
            "none": silent / len(own),
        }
    return {"right": _mean(by_key, list(by_key)), "right_of_carried": _mean(by_key, carried), "by_key": by_key}


def _mean(by_key: dict[str, dict[str, Any]], keys: Sequence[str]) -> float | None:
    known = [by_key[key] for key in keys if key in by_key]
    pairs = sum(entry["pairs"] for entry in known)
    return sum(entry["pairs"] * entry["right"] for entry in known) / pairs if pairs else None


def trusted_contribution(
    cases: Sequence[Case], found: Sequence[MatchExplanation], *, wanted: float = 0.9
) -> float | None:
    """Return the least contribution of a first phrase from which on a share `wanted` of first phrases is right.

    Args:
        cases, found: of the validation catalogue.
        wanted (`float`): wanted share. Default 0.9.
    """
    first = [
        (one.shared[0].contribution, _is_right(one, case.truth))
        for case, one in zip(cases, found, strict=True)
        if one.shared
    ]
    first.sort(reverse=True)
    share = np.cumsum([right for _, right in first]) / np.arange(1, len(first) + 1)
    enough = np.flatnonzero(share >= wanted)
    return first[int(enough[-1])][0] if len(enough) else None


def trusted_scores(cases: Sequence[Case], found: Sequence[MatchExplanation], least: float | None) -> dict[str, Any]:
    """Return how many cases have a first phrase that contributes at least `least`, and the share of right ones among them."""
    first = [
        _is_right(one, case.truth)
        for case, one in zip(cases, found, strict=True)
        if least is not None and one.shared and one.shared[0].contribution >= least
    ]
    return {
        "least_contribution": least,
        "cases": len(first),
        "of": len(cases),
        "right": float(np.mean(first)) if first else None,
    }


def measure_explanations(model_place: str, *, most: int = 150, products: int = 3400) -> dict[str, Any]:
    """Run the study; see the head of this file.

    Args:
        model_place: folder or hub id of the model.
        most (`int`): pairs of each key. Default 150.
        products (`int`): size of the drawn catalogues, of which the test splits are used. Default 3,400.

    Returns: the content of the results file.
    """
    model, processor = load_for_evaluation(model_place)
    results: dict[str, Any] = {"model": model_place, "form": _FORM}
    runs = [constructed(seed=seed) for seed in range(5)]
    results["constructed"] = {name: [run[name] for run in runs] for name in ("stated", "every")}
    catalogues = {name: draw(model, processor, seed, products=products) for name, seed in SEEDS.items()}
    parts: dict[str, Any] = {}
    for name, catalogue in catalogues.items():
        counts_NN = shared_counts(catalogue)
        cases, counts = cases_of(catalogue, counts_NN, most=most, seed=0)
        dictionaries = {
            way: PhraseDictionary(
                tuple(catalogue.phrases),
                embed_phrases(model, processor, catalogue.phrases, embedded_as=way),
                {},
                catalogue.mean_D,
            )
            for way in EMBEDDED_AS
        }
        parts[name] = (catalogue, cases, counts, dictionaries, nearness(catalogue, cases, counts_NN))
    catalogue, cases, counts, dictionaries, near = parts["validation"]
    carried = [key for key, area in near.items() if area >= CARRIED]
    results["carried"] = {"keys": carried, "least_area": CARRIED}
    results["validation"] = {"area": near, "settings": []}
    for way in EMBEDDED_AS:
        for every in (False, True):
            for penalty in PENALTIES if not every else (DEFAULT_LAMBDA,):
                found = explained(catalogue, cases, dictionaries[way], penalty=penalty, every_phrase=every)
                entry = {"embedded_as": way, "every_phrase": every, "penalty": penalty}
                results["validation"]["settings"].append(entry | scores(cases, found, counts, carried))
    own = explained(catalogue, cases, dictionaries["product"])
    least = trusted_contribution(cases, own)
    results["validation"]["trusted"] = trusted_scores(cases, own, least)
    catalogue, cases, counts, dictionaries, near = parts["unseen"]
    found = explained(catalogue, cases, dictionaries["product"])
    unseen = scores(cases, found, counts, carried) | {"area": near, "trusted": trusted_scores(cases, found, least)}
    results["unseen"] = unseen | {"embedded_as": "product", "every_phrase": False, "penalty": DEFAULT_LAMBDA}
    results["provenance"] = provenance(0, seeds=SEEDS, products=products, most=most)
    return results


def sentences(results: dict[str, Any]) -> list[str]:
    """Summarise the study."""
    unseen = results["unseen"]
    by_key = {key: unseen["by_key"][key]["right"] for key in results["carried"]["keys"] if key in unseen["by_key"]}
    keys = ", ".join(f"{key} {right:.1%}" for key, right in by_key.items())
    trusted = unseen["trusted"]
    means = {name: np.mean(values) for name, values in results["constructed"].items()}
    found = [
        f"Constructed vectors: the shared value is first in {means['stated']:.1%} of pairs among the values of both, in "
        f"{means['every']:.1%} among all values.",
        f"Drawn catalogue, unseen: the shared value is first in {unseen['right']:.1%} of the pairs that share exactly one.",
    ]
    if unseen["right_of_carried"] is not None:
        found.append(
            f"Where sharing the value raises the cosine, it is first in {unseen['right_of_carried']:.1%} of the pairs ({keys})."
        )
    if trusted["right"] is not None:
        found.append(
            f"Where the first value contributes {trusted['least_contribution']:.3f} or more to the cosine ({trusted['cases']} of "
            f"{trusted['of']} pairs), it is right in {trusted['right']:.1%}."
        )
    return found
