"""Decide which candidate pairs of a catalogue are the same product, with a promised precision.

Three parts of the catalogue's candidate pairs play a role: labelled pairs that fit the calibration, labelled pairs that choose
the thresholds, and all other pairs, which are decided. The promise is about the candidates, so labels must be a random sample of
them: `sample_to_label` draws one, and `calibrate` warns if the labels look different.

Shape suffixes: N products, D embedding, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.stats import ks_2samp

from product_data.errors import OptionError
from product_data.rows import PRODUCT_FORMS
from retrieval.decisions.calibration import Calibrator, fit_calibrator
from retrieval.decisions.errors import DecisionError
from retrieval.decisions.groups import Group, join_pairs
from retrieval.decisions.labelled_pairs import LabelledPair, divide
from retrieval.decisions.pair_scores import FEATURES, PairScorer
from retrieval.decisions.promises import Promise, promise_precision
from retrieval.stores.interface import Store, StoredProduct
from retrieval.stores.searching import require_uncentred

SAME, DIFFERENT, DOUBTFUL = "same", "different", "doubtful"
_UNLIKE_SAMPLE = 0.001
"""A two-sided p-value below which the labelled pairs are reported as unlike the candidates."""


@dataclass(frozen=True)
class DecisionOptions:
    """Settings of decisions.

    Args:
        form (`str`): form of the vectors: "mm", "t" or "i". Default "mm".
        neighbours (`int`): a pair is a candidate if one product is among this many nearest neighbours of the other.
            Default 5.
        min_cosine (`float`): least cosine of a candidate, in [-1, 1]. Default -1: all.
        precision (`float`): wanted precision of the decisions, in (0, 1). Default 0.95.
        confidence (`float`): confidence of each promise, in (0, 1). Default 0.95.
        fit_share (`float`): share of the labelled pairs that fits the calibration, in (0, 1); the others choose the
            thresholds. Default 0.3.
        seed (`int`): seed of that division, and of the sample to label. Default 0.

    Raises:
        OptionError: a value out of range.
    """

    form: str = "mm"
    neighbours: int = 5
    min_cosine: float = -1.0
    precision: float = 0.95
    confidence: float = 0.95
    fit_share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.form not in PRODUCT_FORMS:
            raise OptionError(f"form: found {self.form!r}; expected one of {', '.join(PRODUCT_FORMS)}")
        if self.neighbours < 1:
            raise OptionError(f"neighbours: found {self.neighbours}; expected 1 or more")
        if not -1 <= self.min_cosine <= 1:
            raise OptionError(f"min_cosine: found {self.min_cosine}; expected a number from -1 to 1")
        for name in ("precision", "confidence", "fit_share"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(f"{name}: found {getattr(self, name)}; expected a number between 0 and 1")


@dataclass(frozen=True)
class Catalogue:
    """The products of a catalogue that have a vector, and the vectors.

    Args:
        products: N products.
        vector_ND: (N, D) float32 unit vectors.
        fingerprint (`str`): of the model that made them.
        without (`tuple[str, ...]`): ids of products without a vector; nothing is decided about them.
    """

    products: Sequence[StoredProduct]
    vector_ND: np.ndarray
    fingerprint: str
    without: tuple[str, ...] = ()

    @cached_property
    def row(self) -> dict[str, int]:
        """The row of each product id."""
        return {product.product_id: row for row, product in enumerate(self.products)}

    @cached_property
    def ids(self) -> np.ndarray:
        """The N product ids."""
        return np.array([product.product_id for product in self.products], dtype=object)

    def category_of(self, pair_P2: np.ndarray) -> list[str]:
        """Return the category path of each pair, such as "Shoes > Boots"; "" if its products have none or two."""
        names = [" > ".join(product.category) for product in self.products]
        return [names[a] if names[a] == names[b] else "" for a, b in pair_P2]


def read_catalogue(store: Store, form: str) -> Catalogue:
    """Return the products of a store with their vectors of one form.

    Raises:
        DecisionError: fewer than two products have a vector of this form.
        StoreError: a store that is centred by form.
    """
    require_uncentred(store.centring, "decisions")
    products = list(store.products())
    vector_ND = store.vectors([product.product_id for product in products], form)
    has_vector_N = np.isfinite(vector_ND).all(axis=1) if len(products) else np.zeros(0, dtype=bool)
    if has_vector_N.sum() < 2:
        raise DecisionError(
            f"form {form!r}: found {int(has_vector_N.sum())} products with a vector among {len(products)} of the store; "
            "expected at least two"
        )
    kept = [product for product, has_vector in zip(products, has_vector_N, strict=True) if has_vector]
    without = tuple(p.product_id for p, has_vector in zip(products, has_vector_N, strict=True) if not has_vector)
    return Catalogue(kept, vector_ND[has_vector_N], store.fingerprint, without)


@dataclass(frozen=True)
class Calibration:
    """What decisions need besides the vectors; `retrieval.decisions.files` writes and reads it.

    Args:
        fingerprint (`str`): of the model whose vectors it is for.
        options: the settings.
        calibrator: features → probability.
        same, different: the promises of both decisions; each is made at the stated confidence.
        labelled (`int`), labelled_same (`int`): labelled candidates, and those that are the same product.
        outside (`int`): labelled pairs that are no candidates; they are not used.
        warnings: sentences on what weakens the promises.
        labelled_scores: features of the labelled candidates, a tuple for each of `FEATURES`; `decide` compares them with the
            candidates of another catalogue.
    """

    fingerprint: str
    options: DecisionOptions
    calibrator: Calibrator
    same: Promise
    different: Promise
    labelled: int
    labelled_same: int
    outside: int = 0
    warnings: tuple[str, ...] = ()
    labelled_scores: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Decisions:
    """The decided candidates.

    Args:
        pair_P2: (P, 2) rows of the catalogue.
        feature_PF: (P, F) features, see `FEATURES`.
        probability_P: (P,) calibrated probability of being the same product.
        decision_P: (P,) "same", "different" or "doubtful".
        groups: groups of duplicates.
    """

    pair_P2: np.ndarray
    feature_PF: np.ndarray
    probability_P: np.ndarray
    decision_P: np.ndarray
    groups: list[Group] = field(default_factory=list)

    def rows_of(self, decision: str) -> np.ndarray:
        """Return the pairs with a decision, the most probable first."""
        rows = np.flatnonzero(self.decision_P == decision)
        return rows[np.argsort(-self.probability_P[rows], kind="stable")]


def sample_to_label(catalogue: Catalogue, options: DecisionOptions, count: int) -> np.ndarray:
    """Draw candidates for people to label, all with the same probability.

    Args:
        catalogue: products and vectors.
        options: settings of the candidates; `seed` is that of the draw.
        count (`int`): number of pairs; all candidates if there are fewer.

    Shapes: returns (P, 2) rows of the catalogue, in random order.
    """
    pair_P2 = _candidates(catalogue, options)[1]
    return np.random.default_rng(options.seed).permutation(pair_P2)[:count]


def calibrate(catalogue: Catalogue, labels: Sequence[LabelledPair], options: DecisionOptions) -> Calibration:
    """Fit the calibration and choose both thresholds from labelled pairs.

    Args:
        catalogue: products and vectors.
        labels: labelled pairs; those that are no candidates are left out.
        options: settings.

    Raises:
        DecisionError: no candidates, labels that are no candidates, or labels of one kind in the fitting part.
    """
    scorer, candidate_P2 = _candidates(catalogue, options)
    known = {(int(a), int(b)) for a, b in candidate_P2}
    found = [
        (tuple(sorted((catalogue.row[pair.left], catalogue.row[pair.right]))), pair.same)
        for pair in _present(catalogue, labels)
    ]
    inside = [(pair, same) for pair, same in found if pair in known]
    if not inside:
        raise DecisionError(
            f"labels: found {len(labels)} labelled pairs, none of them among the {len(known)} candidates; expected "
            "labelled candidates: moon3 decide without --labels draws some"
        )
    pair_P2 = np.array([pair for pair, _ in inside])
    same_P = np.array([same for _, same in inside])
    feature_PF, categories = scorer.features(pair_P2), catalogue.category_of(pair_P2)
    fit, choosing = divide(len(pair_P2), fit_share=options.fit_share, seed=options.seed)
    calibrator = fit_calibrator(feature_PF[fit], same_P[fit], [categories[row] for row in fit], FEATURES)
    probability_P = calibrator.probabilities(feature_PF, categories)
    same, different = promise_both(probability_P, same_P, fit, choosing, options)
    return Calibration(
        catalogue.fingerprint,
        options,
        calibrator,
        same,
        different,
        len(same_P),
        int(same_P.sum()),
        len(labels) - len(inside),
        tuple(_warnings(feature_PF, scorer.features(candidate_P2), len(labels) - len(inside))),
        tuple(tuple(float(round(value, 6)) for value in column) for column in feature_PF.T),
    )


def promise_both(
    probability_P: np.ndarray, same_P: np.ndarray, fit: np.ndarray, choosing: np.ndarray, options: DecisionOptions
) -> tuple[Promise, Promise]:
    """Return the promises of the decisions "same" and "different".

    The threshold of "different" is one for 1 - p. If both thresholds would decide a pair, that of "different" is the
    strictest of its passed ones that does not reach the pairs decided "same".

    Args:
        probability_P: (P,) probabilities of labelled pairs.
        same_P: (P,) bool labels.
        fit, choosing: rows of both parts.
        options: settings; precision and confidence are those of each promise.
    """
    same, different = (
        promise_precision(
            (score_P[fit], right_P[fit]),
            (score_P[choosing], right_P[choosing]),
            precision=options.precision,
            confidence=options.confidence,
            what=what,
        )
        for what, score_P, right_P in ((SAME, probability_P, same_P), (DIFFERENT, 1 - probability_P, ~same_P))
    )
    if same.threshold is None or different.threshold is None or 1 - different.threshold < same.threshold:
        return same, different
    apart = [step for step in different.passed if 1 - step.threshold < same.threshold]
    sentence = "the thresholds of both decisions overlap; " + (
        f"{DIFFERENT!r} begins at a probability of {1 - apart[-1].threshold:.4f} or less, which its tests also passed"
        if apart
        else f"no pair is decided {DIFFERENT!r}"
    )
    return same, replace(different, threshold=apart[-1].threshold if apart else None, sentence=sentence)


@dataclass(frozen=True)
class Shift:
    """How much the scores of two sets of pairs differ in one feature, by the two-sample Kolmogorov–Smirnov test.

    Args:
        feature (`str`): one of `FEATURES`.
        distance (`float`): the largest difference of both distribution functions, in [0, 1].
        p_value (`float`): two-sided.
        medians: of the labelled pairs and of the others.
    """

    feature: str
    distance: float
    p_value: float
    medians: tuple[float, float]

    @property
    def is_shift(self) -> bool:
        """Whether the difference is more than chance: p < .001."""
        return self.p_value < _UNLIKE_SAMPLE

    def __str__(self) -> str:
        return (
            f"{self.feature}: median {self.medians[0]:.3f} of the labelled pairs, {self.medians[1]:.3f} of the candidates "
            f"(Kolmogorov–Smirnov distance {self.distance:.3f}, p = {self.p_value:.1e})"
        )


def shifts(labelled_PF: np.ndarray, candidate_PF: np.ndarray) -> list[Shift]:
    """Compare the scores of labelled pairs with those of candidates, feature by feature.

    A promise holds for pairs whose scores are distributed like the labelled ones'. Equal distributions of scores are necessary
    for that, not sufficient: which pairs are the same product can change at equal scores.

    Args:
        labelled_PF, candidate_PF: features of both sets.
    """
    found = []
    for name, labelled_P, candidate_P in zip(FEATURES, labelled_PF.T, candidate_PF.T, strict=True):
        test = ks_2samp(labelled_P, candidate_P)
        medians = (float(np.median(labelled_P)), float(np.median(candidate_P)))
        found.append(Shift(name, float(test.statistic), float(test.pvalue), medians))
    return found


def require_no_shift(catalogue: Catalogue, calibration: Calibration) -> None:
    """Check that the candidates of another catalogue have scores like the labelled pairs of a calibration.

    Args:
        catalogue: products and vectors.
        calibration: of another state of the catalogue, or of another catalogue.

    Raises:
        DecisionError: scores that differ by more than chance, or no candidates.
    """
    scorer, pair_P2 = _candidates(catalogue, calibration.options)
    differing = [
        shift for shift in shifts(np.array(calibration.labelled_scores).T, scorer.features(pair_P2)) if shift.is_shift
    ]
    if differing:
        raise DecisionError(
            f"calibration: the candidates of this catalogue differ from its labelled pairs in {differing[0]}; expected scores "
            "of one distribution: the promised precision would not hold. Label a sample of this catalogue: moon3 decide "
            "without --calibration draws it"
        )


def decide(catalogue: Catalogue, calibration: Calibration) -> Decisions:
    """Decide all candidates of a catalogue.

    Args:
        catalogue: products and vectors.
        calibration: from `calibrate`, for vectors of the same model. For another catalogue than that of the labels, call
            `require_no_shift` first.

    Raises:
        DecisionError: vectors of another model than the calibration's.
    """
    if catalogue.fingerprint != calibration.fingerprint:
        raise DecisionError(
            f"calibration: found one for vectors of the model {calibration.fingerprint!r}; expected "
            f"{catalogue.fingerprint!r}, the model of the store. Calibrate again with --labels"
        )
    scorer, pair_P2 = _candidates(catalogue, calibration.options)
    feature_PF = scorer.features(pair_P2)
    probability_P = calibration.calibrator.probabilities(feature_PF, catalogue.category_of(pair_P2))
    decision_P = decided(probability_P, calibration.same, calibration.different)
    groups = join_pairs(pair_P2[decision_P == SAME], len(catalogue.products))
    return Decisions(pair_P2, feature_PF, probability_P, decision_P, groups)


def decided(probability_P: np.ndarray, same: Promise, different: Promise) -> np.ndarray:
    """Return "same", "different" or "doubtful" for each probability, by the thresholds of two promises."""
    decision_P = np.full(len(probability_P), DOUBTFUL, dtype=object)
    if different.threshold is not None:
        decision_P[1 - probability_P >= different.threshold] = DIFFERENT
    if same.threshold is not None:
        decision_P[probability_P >= same.threshold] = SAME
    return decision_P


def _candidates(catalogue: Catalogue, options: DecisionOptions) -> tuple[PairScorer, np.ndarray]:
    scorer = PairScorer.of(catalogue.vector_ND, options.neighbours)
    pair_P2 = scorer.candidates(options.min_cosine)
    if not len(pair_P2):
        raise DecisionError(
            f"candidates: found none with a cosine of at least {options.min_cosine}; expected a lower min_cosine"
        )
    return scorer, pair_P2


def _present(catalogue: Catalogue, labels: Sequence[LabelledPair]) -> list[LabelledPair]:
    """Return the labelled pairs whose products both have a vector."""
    return [pair for pair in labels if pair.left in catalogue.row and pair.right in catalogue.row]


def _warnings(labelled_PF: np.ndarray, candidate_PF: np.ndarray, outside: int) -> list[str]:
    found = []
    if outside:
        found.append(f"{outside} labelled pairs are not among the candidates and are left out")
    differing = [shift for shift in shifts(labelled_PF, candidate_PF) if shift.is_shift]
    if differing:
        found.append(
            f"the labelled pairs are not a random sample of the candidates: {'; '.join(map(str, differing))}. The promises hold "
            "for pairs like the labelled ones"
        )
    return found
