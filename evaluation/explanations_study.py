"""Measure how often an explanation names the value that two products share, where the truth is known.

moon3 matching-study explanations --model training/checkpoints/moon1-catalogue --output results/explanations.json

Two products that share exactly one value: does that value contribute most among all values that the shop states about either?
On a constructed catalogue whose vectors contain every value; and on drawn catalogues, where ways to read vectors are compared on
one catalogue and the shipped one is measured on another. Variants of a product share most values, so readers could know a value
by its variants: beside the readers that explanations use (of the whole catalogue, without both products) those of other
families alone are measured. A value that the vectors do not contain cannot be named: each key is also read alone.

Shape suffixes: N products, D embedding, P phrases, C candidates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from tabulate import tabulate
from tqdm import tqdm

from evaluation.provenance import provenance
from product_data.catalogue.making import make_catalogue
from product_data.tables import load_tables
from retrieval.encode import encode, load_for_evaluation
from retrieval.explanation.explain import (
    DEFAULT_LAMBDA,
    MatchExplainer,
    MatchExplanation,
    Side,
    decompose,
    explain_match,
)
from retrieval.explanation.phrase_dictionary import unit_or_zero
from retrieval.explanation.phrases import Phrase, embed_phrases, phrases_of
from retrieval.explanation.value_readers import NOISES, SHRINKAGE, ValueReaders, stated_values
from retrieval.queries import Query
from retrieval.query_encoder import QueryEncoder
from retrieval.search import Searcher
from retrieval.stores.exact import ExactStore
from retrieval.stores.interface import StoredProduct

SEEDS = {"validation": 2, "unseen": 0}
"""Seeds of both catalogues; the shipped checkpoint was trained on seed 1."""
CARRIED = 0.9
"""A key counts as carried by the vectors if this share of products of other families is read right, on the validation seed."""
WORDS = (("colour",), ("category",), ("brand",), ("material",), ("pattern",), ("colour", "category"))
"""Keys whose values are the words of queries."""
_FORM = "mm"
_Parts = Callable[[int, np.ndarray], np.ndarray]
"""(product, columns of the candidates) → (C, D) parts of its vector."""


@dataclass(frozen=True)
class Case:
    """Two products that share exactly one phrase: their rows, and the phrase."""

    left: int
    right: int
    truth: Phrase


@dataclass(frozen=True)
class Drawn:
    """A catalogue as a study needs it.

    Args:
        products: N products.
        vector_ND: (N, D) vectors.
        test_N: (N,) bool: whether pairs are made from a product; no variant of such a product is among the others.
    """

    products: list[StoredProduct]
    vector_ND: np.ndarray
    test_N: np.ndarray

    @cached_property
    def stated(self) -> list[tuple[Phrase, ...]]:
        """What the shop states about each product."""
        return [phrases_of(product) for product in self.products]

    @cached_property
    def phrases(self) -> list[Phrase]:
        """All phrases, in alphabetical order."""
        return sorted({phrase for stated in self.stated for phrase in stated})

    @cached_property
    def row(self) -> dict[Phrase, int]:
        """The row of each phrase."""
        return {phrase: row for row, phrase in enumerate(self.phrases)}

    @cached_property
    def keys(self) -> list[str]:
        """All keys, in alphabetical order."""
        return sorted({phrase.key for phrase in self.phrases})

    @cached_property
    def values(self) -> Any:
        """The (N, P) stated values."""
        return stated_values(self.stated, self.row)

    def readers(self) -> ValueReaders:
        """Return readers of the products that no pair is made from, nor a variant of these."""
        number = {key: place for place, key in enumerate(self.keys)}
        keys = np.array([number[phrase.key] for phrase in self.phrases])
        rest = np.flatnonzero(~self.test_N)
        return ValueReaders.fit(self.vector_ND[rest], self.values[rest], keys, progress=False)


def constructed(
    *, seed: int, pairs: int = 300, products: int = 1500, dimension: int = 64, noise: float = 0.3
) -> dict[str, float]:
    """Return how often the shared value is first for a catalogue whose vectors are sums of values and noise.

    Eight keys have six values each. A vector is a mean, plus a random direction of length .5 to 1.5 for each value of the
    product, plus Gaussian noise of `noise` times the length of that sum. Pairs are made from a fifth of the products, which
    the readers do not know.

    Args:
        seed (`int`): seed.
        pairs, products, dimension (`int`): sizes. Defaults 300, 1,500, 64.
        noise (`float`): relative length of the noise. Default 0.3.

    Returns: share of pairs whose first value is right, among the values of both products ("stated") and among all ("every").
    """
    rng = np.random.default_rng(seed)
    direction_PD = rng.normal(size=(48, dimension))
    direction_PD *= (rng.uniform(0.5, 1.5, 48) / np.linalg.norm(direction_PD, axis=1))[:, None]
    choice_N8 = rng.integers(0, 6, (products, 8))
    sum_ND = direction_PD[choice_N8 + 6 * np.arange(8)].sum(axis=1)
    error_ND = rng.normal(size=sum_ND.shape)
    error_ND *= noise * np.linalg.norm(sum_ND, axis=1, keepdims=True) / np.linalg.norm(error_ND, axis=1, keepdims=True)
    vector_ND = unit_or_zero(rng.normal(size=dimension) / dimension**0.5 + sum_ND + error_ND).astype(np.float32)
    facts = [
        StoredProduct(f"p{n}", attributes={f"k{key}": (f"v{value}",) for key, value in enumerate(choice)})
        for n, choice in enumerate(choice_N8)
    ]
    catalogue = Drawn(facts, vector_ND, np.arange(products) >= 0.8 * products)
    cases = cases_of(catalogue, shared_counts(catalogue), most=-(-pairs // 8), seed=seed)[0]
    readers = catalogue.readers()
    parts = reader_parts(catalogue, readers)
    stated, every = (
        np.mean([_is_right(one, case.truth) for case, one in zip(cases, found, strict=True)])
        for found in (
            explained(catalogue, cases, readers.mean_D, parts),
            explained(catalogue, cases, readers.mean_D, parts, every_phrase=True),
        )
    )
    return {"stated": float(stated), "every": float(every)}


def _is_right(found: MatchExplanation, truth: Phrase) -> bool:
    return bool(found.shared) and found.shared[0].contribution > 0 and found.shared[0].phrase == truth


def draw(model: Any, processor: Any, seed: int, *, products: int = 3400, image_size: int = 96) -> Drawn:
    """Draw and embed a catalogue.

    Args:
        model, processor: as for `retrieval.encode.encode`.
        seed (`int`): seed of the catalogue.
        products, image_size (`int`): as for `make_catalogue`. Defaults 3,400 (510 in the test split) and 96.
    """
    rows, _ = make_catalogue(products=products, seed=seed, image_size=image_size, queries_per_product=0, progress=False)
    split = {row["product_id"]: row["split"] for row in rows}
    found = load_tables({"products": rows}).products
    facts = [
        StoredProduct(row.product_id, row.title, category=row.category, attributes=row.attributes) for row in found
    ]
    encoded = encode(model, processor, [row.record(_FORM) for row in found], form=_FORM)
    kept = [facts[index] for index in encoded.kept]
    return Drawn(kept, encoded.vectors, np.array([split[product.product_id] == "test" for product in kept]))


def shared_counts(catalogue: Drawn) -> np.ndarray:
    """Return (N, N) the number of phrases that each two test products share; -1 on and below the diagonal and for others."""
    has_NP = catalogue.values.toarray()
    is_pair_NN = np.triu(np.outer(catalogue.test_N, catalogue.test_N), 1)
    return np.where(is_pair_NN, has_NP @ has_NP.T, -1)


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
    centred_ND = unit_or_zero(catalogue.vector_ND - catalogue.vector_ND.mean(axis=0))
    nothing = (centred_ND @ centred_ND.T)[counts_NN == 0]
    found = {}
    for key in sorted({case.truth.key for case in cases}):
        own = [float(centred_ND[case.left] @ centred_ND[case.right]) for case in cases if case.truth.key == key]
        labels = np.r_[np.ones(len(own)), np.zeros(len(nothing))]
        found[key] = float(roc_auc_score(labels, np.r_[own, nothing]))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Ways to read a vector


def reader_parts(
    catalogue: Drawn, readers: ValueReaders, *, noise: float = 0.0, atom_PD: np.ndarray | None = None
) -> _Parts:
    """Return the parts as explanations make them: the probability of a value times its effect.

    Args:
        catalogue, readers: from `Drawn.readers`.
        noise (`float`): least ν. Default 0: the fit's.
        atom_PD: replaces the effects. Default `None`.
    """
    read_NP = readers.read(catalogue.vector_ND - readers.mean_D, least_noise=noise)
    effect_PD = readers.effect_PD if atom_PD is None else atom_PD
    return lambda product, columns: read_NP[product, columns, None] * effect_PD[columns]


def value_means(readers: ValueReaders) -> np.ndarray:
    """Return (P, D) the mean of the products that state a value minus that of those with another value of its key."""
    sums, key_P = readers.sums, readers.key_P
    others_P1 = np.maximum(sums.key_K[key_P] - sums.value_P, 1)[:, None]
    return sums.value_PD / (sums.value_P[:, None] + SHRINKAGE) - (sums.key_KD[key_P] - sums.value_PD) / others_P1


def lasso_parts(catalogue: Drawn, mean_D: np.ndarray, atom_PD: np.ndarray, penalty: float) -> _Parts:
    """Return parts with the non-negative sparse weights of the candidates' atoms: `retrieval.explanation.explain.decompose`."""
    unit_PD = unit_or_zero(atom_PD)

    def parts(product: int, columns: np.ndarray) -> np.ndarray:
        weights = decompose((catalogue.vector_ND[product] - mean_D)[None], unit_PD[columns], penalty=penalty)[0]
        return weights[:, None] * unit_PD[columns]

    return parts


def ridge_parts(catalogue: Drawn, readers: ValueReaders, ridge: float) -> _Parts:
    """Return parts with readings by ridge regression of stated values on vectors, at least 0, times effects.

    Args:
        catalogue, readers: from `Drawn.readers`.
        ridge (`float`): the penalty, in units of Σ x̃ x̃ᵀ.
    """
    square_DD = readers.sums.square_DD + ridge * np.eye(len(readers.mean_D))
    read_NP = np.maximum(
        (catalogue.vector_ND - readers.mean_D) @ np.linalg.solve(square_DD, readers.sums.value_PD.T), 0
    )
    return lambda product, columns: read_NP[product, columns, None] * readers.effect_PD[columns]


def explained(
    catalogue: Drawn, cases: Sequence[Case], mean_D: np.ndarray, parts: _Parts, *, every_phrase: bool = False
) -> list[MatchExplanation]:
    """Explain all cases.

    Args:
        catalogue, cases: the pairs.
        mean_D: (D,) mean of the products.
        parts: how a vector is read.
        every_phrase (`bool`): whether all phrases are candidates. Default False: those stated about either product.
    """
    found = []
    for case in tqdm(cases, desc="explain", delay=3.0, leave=False):
        rows = (case.left, case.right)
        stated = set(catalogue.phrases) if every_phrase else {p for row in rows for p in catalogue.stated[row]}
        candidates = sorted(stated)
        columns = np.array([catalogue.row[phrase] for phrase in candidates])
        sides = [Side(catalogue.vector_ND[r], mean_D, parts(r, columns), catalogue.stated[r], _FORM) for r in rows]
        found.append(explain_match(sides[0], sides[1], candidates))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Scores


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


def read_alone(catalogue: Drawn, readers: ValueReaders, keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return key → share of test products whose value is read right, and that of the most frequent value.

    Args:
        catalogue, readers: from `Drawn.readers`.
        keys: the keys to report.
    """
    rows = np.flatnonzero(catalogue.test_N)
    centred_MD = catalogue.vector_ND[rows] - readers.mean_D
    right_K, frequent_K = readers.accuracy(centred_MD, catalogue.values[rows], readers.noise)
    number = {key: place for place, key in enumerate(catalogue.keys)}
    return {
        key: {"right": float(right_K[number[key]]), "most_frequent": float(frequent_K[number[key]])} for key in keys
    }


def word_scores(explainer: MatchExplainer, catalogue: Drawn, *, most: int) -> dict[str, dict[str, float]]:
    """Return for queries of a product's own values: how often the first value is one of them, and the second for two.

    Args:
        explainer: of a store with the catalogue.
        catalogue: its products.
        most (`int`): test products of each kind of query.
    """
    found: dict[str, dict[str, float]] = {}
    for keys in WORDS:
        right: list[bool] = []
        for row in np.flatnonzero(catalogue.test_N)[::3]:
            values = {phrase.key: phrase for phrase in catalogue.stated[row] if phrase.key in keys}
            if len(values) == len(keys) and len(right) < most:
                query = " ".join(values[key].value for key in keys)
                one = explainer.explain(catalogue.products[row].product_id, query)
                right.append(any(_is_right(one, phrase) for phrase in values.values()))
        found[" and ".join(keys)] = {"queries": len(right), "right": float(np.mean(right)) if right else 0.0}
    return found


def in_catalogue(explainer: MatchExplainer, catalogue: Drawn, cases: Sequence[Case]) -> list[MatchExplanation]:
    """Explain all cases as a shop does: by readers of the whole catalogue without the two products."""
    ids = [product.product_id for product in catalogue.products]
    bar = tqdm(cases, desc="explain", delay=3.0, leave=False)
    return [explainer.explain(ids[case.right], Query(like=ids[case.left])) for case in bar]


def compared_ways(catalogue: Drawn, readers: ValueReaders, text_PD: np.ndarray) -> dict[str, _Parts]:
    """Return the ways to read vectors that are compared on the validation catalogue.

    Args:
        catalogue, readers: from `Drawn.readers`.
        text_PD: (P, D) phrases embedded as products.
    """
    mean_D, mean_PD = readers.mean_D, value_means(readers)
    ways = {}
    for penalty in (0.02, DEFAULT_LAMBDA):
        ways[f"phrases as texts, lasso {penalty}"] = lasso_parts(
            catalogue, mean_D, text_PD - text_PD.mean(axis=0), penalty
        )
        ways[f"means of products, lasso {penalty}"] = lasso_parts(catalogue, mean_D, mean_PD, penalty)
        ways[f"effects, lasso {penalty}"] = lasso_parts(catalogue, mean_D, readers.effect_PD, penalty)
    for ridge in (1e-4, 1e-2, 1.0):
        ways[f"ridge regression {ridge}, effects"] = ridge_parts(catalogue, readers, ridge)
    ways["discriminants, means"] = reader_parts(catalogue, readers, atom_PD=mean_PD)
    for noise in NOISES:
        ways[f"discriminants with noise {noise}, effects"] = reader_parts(catalogue, readers, noise=noise)
    return ways


def measure_explanations(model_place: str, *, most: int = 150, products: int = 3400) -> dict[str, Any]:
    """Run the study; see the head of this file.

    Args:
        model_place: folder or hub id of the model.
        most (`int`): pairs of each key. Default 150.
        products (`int`): size of the drawn catalogues. Default 3,400.

    Returns: the content of the results file.
    """
    model, processor = load_for_evaluation(model_place)
    results: dict[str, Any] = {"model": model_place, "form": _FORM}
    runs = [constructed(seed=seed) for seed in range(5)]
    results["constructed"] = {name: [run[name] for run in runs] for name in ("stated", "every")}
    carried: list[str] = []
    least = None
    for name, seed in SEEDS.items():
        catalogue = draw(model, processor, seed, products=products)
        counts_NN = shared_counts(catalogue)
        cases, counts = cases_of(catalogue, counts_NN, most=most, seed=0)
        readers = catalogue.readers()
        alone = read_alone(catalogue, readers, list(counts))
        if name == "validation":
            carried = [key for key, entry in alone.items() if entry["right"] >= CARRIED]
            results["carried"] = {"keys": carried, "least_read_right": CARRIED}
        part: dict[str, Any] = {"area": nearness(catalogue, cases, counts_NN), "read_alone": alone}
        part["noise"] = readers.noise
        if name == "validation":
            text_PD = embed_phrases(model, processor, catalogue.phrases, embedded_as="product", progress=False)
            part["ways"] = {
                way: scores(cases, explained(catalogue, cases, readers.mean_D, parts), counts, carried)
                for way, parts in compared_ways(catalogue, readers, text_PD).items()
            }
        found = explained(catalogue, cases, readers.mean_D, reader_parts(catalogue, readers))
        part["other_families"] = scores(cases, found, counts, carried)
        store = ExactStore(catalogue.vector_ND.shape[1], "drawn")
        store.upsert(catalogue.products, {_FORM: catalogue.vector_ND})
        explainer = MatchExplainer(Searcher(store, QueryEncoder(model, processor, "drawn")))
        found = in_catalogue(explainer, catalogue, cases)
        least = trusted_contribution(cases, found) if name == "validation" else least
        part["catalogue"] = scores(cases, found, counts, carried) | {"trusted": trusted_scores(cases, found, least)}
        part["unexplained"] = float(np.mean([one.unexplained for one in found]))
        part["words"] = word_scores(explainer, catalogue, most=most)
        results[name] = part
    results["provenance"] = provenance(0, seeds=SEEDS, products=products, most=most)
    return results


def explanations_table(results: dict[str, Any]) -> str:
    """Return how often the shared value is first, as a table in Markdown for docs/matching.md: a row for each key."""
    unseen, alone = results["unseen"]["catalogue"], results["unseen"]["read_alone"]
    constructed_pairs = float(np.mean(results["constructed"]["stated"]))
    rows = [["constructed vectors", f"{constructed_pairs:.1%}", ""], ["drawn, all keys", f"{unseen['right']:.1%}", ""]]
    keys = sorted(unseen["by_key"], key=lambda key: -unseen["by_key"][key]["right"])
    rows += [[f"drawn, {key}", f"{unseen['by_key'][key]['right']:.1%}", f"{alone[key]['right']:.0%}"] for key in keys]
    return str(
        tabulate(rows, ["pairs, shared key", "right", "key read alone"], tablefmt="github", disable_numparse=True)
    )


def sentences(results: dict[str, Any]) -> list[str]:
    """Summarise the study."""
    unseen = results["unseen"]
    means = {name: np.mean(values) for name, values in results["constructed"].items()}
    found = [
        f"Constructed catalogue: the shared value is first in {means['stated']:.1%} of pairs among the values of both, in "
        f"{means['every']:.1%} among all values.",
        f"Drawn catalogue, unseen: the shared value is first in {unseen['catalogue']['right']:.1%} of the pairs that share "
        f"exactly one; with readers of other families alone in {unseen['other_families']['right']:.1%}.",
    ]
    if unseen["catalogue"]["right_of_carried"] is not None:
        found.append(
            f"Of the keys that are read right for at least {CARRIED:.0%} of products of other families "
            f"({', '.join(results['carried']['keys'])}): {unseen['catalogue']['right_of_carried']:.1%}."
        )
    by_key = unseen["catalogue"]["by_key"]
    keys = ", ".join(
        f"{key} {by_key[key]['right']:.1%} (read alone {unseen['read_alone'][key]['right']:.0%})" for key in by_key
    )
    found.append(f"By key: {keys}.")
    words = ", ".join(f"{name} {entry['right']:.1%}" for name, entry in unseen["words"].items())
    found.append(f"Queries of a product's own values, whose value is first: {words}.")
    trusted = unseen["catalogue"]["trusted"]
    if trusted["right"] is not None:
        found.append(
            f"Where the first value contributes {trusted['least_contribution']:.3f} or more to the cosine ({trusted['cases']} of "
            f"{trusted['of']} pairs), it is right in {trusted['right']:.1%}."
        )
    return found
