"""Choose a threshold whose precision is promised with a stated confidence, from labelled pairs.

A promise is a statement about the population that the labelled pairs are a random sample of: of its pairs with a score of at
least the threshold, a share of at least `precision` is right. It is wrong for at most one in 1 / (1 - confidence) samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

from product_data.errors import OptionError

_MOST_THRESHOLDS = 40


def precision_lower_bound(right: int, decided: int, confidence: float) -> float:
    """Return the one-sided Clopper–Pearson lower bound of a precision.

    `L = B⁻¹(1 - confidence; right, decided - right + 1)`, the quantile of a beta distribution; 0 if none is right.
    Source: Clopper and Pearson, Biometrika 26, 1934.

    Args:
        right (`int`): number of decided pairs that are right.
        decided (`int`): number of decided pairs.
        confidence (`float`): in (0, 1).
    """
    return 0.0 if right == 0 else float(beta.ppf(1 - confidence, right, decided - right + 1))


def fewest_decided(precision: float, confidence: float) -> int:
    """Return how many decided pairs, all of them right, are needed for a promise: ⌈ln(1 - confidence) / ln precision⌉."""
    return math.ceil(round(math.log(1 - confidence) / math.log(precision), 9))


@dataclass(frozen=True)
class Step:
    """One threshold of the sequence, and what the choosing part says about it.

    Args:
        threshold (`float`): pairs with at least this score are decided.
        decided, right (`int`): labelled pairs of the choosing part at or above it, and those of them that are right.
        bound (`float`): the lower bound of the precision.
    """

    threshold: float
    decided: int
    right: int
    bound: float


@dataclass(frozen=True)
class Promise:
    """A threshold with a promised precision, or the reason why there is none.

    Args:
        precision, confidence (`float`): what is promised.
        threshold (`float` or `None`): `None` if no threshold holds the promise.
        steps: the tested thresholds, the first one first; all but the last one passed, the last one may have failed.
        sentence (`str`): what is promised, or why nothing can be.
    """

    precision: float
    confidence: float
    threshold: float | None
    steps: tuple[Step, ...]
    sentence: str

    @property
    def passed(self) -> tuple[Step, ...]:
        """Return the steps whose bound is at least the promised precision; the promise holds for each of them."""
        return tuple(step for step in self.steps if step.bound >= self.precision)


def promise_precision(
    fit: tuple[np.ndarray, np.ndarray],
    choosing: tuple[np.ndarray, np.ndarray],
    *,
    precision: float,
    confidence: float,
    what: str = "same",
) -> Promise:
    """Choose the lowest threshold whose precision the choosing part proves, by a fixed sequence of tests.

    The fitting part alone fixes the thresholds and their order: the first one is that with the best chance to pass, and each
    further one is lower. Each test compares `precision_lower_bound` with the wanted precision on the choosing part, and the
    first failure ends the sequence. The probability that a threshold which does not keep the precision passes is then at most
    1 - confidence over the whole sequence, without a correction for their number.
    Source: fixed-sequence testing as in "Learn then Test" (Angelopoulos et al., arXiv 2110.01052), with exact binomial tests.

    Args:
        fit: scores (in [0, 1], probabilities of being right) and rightness of the fitting part.
        choosing: the same of the choosing part, whose pairs are no part of the fitting part.
        precision (`float`): wanted precision, in (0, 1).
        confidence (`float`): in (0, 1).
        what (`str`): name of the decision, for the sentence. Default "same".

    Raises:
        OptionError: a precision or confidence outside (0, 1).
    """
    for name, value in (("precision", precision), ("confidence", confidence)):
        if not 0 < value < 1:
            raise OptionError(f"{name}: found {value}; expected a number between 0 and 1")
    score_P, right_P = choosing[0], np.asarray(choosing[1], dtype=bool)
    steps: list[Step] = []
    for threshold in _sequence(fit[0], len(score_P), precision, confidence):
        is_decided_P = score_P >= threshold
        decided, right = int(is_decided_P.sum()), int(right_P[is_decided_P].sum())
        steps.append(Step(float(threshold), decided, right, precision_lower_bound(right, decided, confidence)))
        if steps[-1].bound < precision:
            break
    passed = [step for step in steps if step.bound >= precision]
    found = passed[-1] if passed else None
    sentence = (
        _promised(found, what, precision, confidence)
        if found
        else _refused(steps, right_P, what, precision, confidence)
    )
    return Promise(precision, confidence, found.threshold if found else None, tuple(steps), sentence)


def _sequence(fit_P: np.ndarray, pairs: int, precision: float, confidence: float) -> Sequence[float]:
    """Return the thresholds in the order of testing, from the fitting part's scores and the size of the choosing part."""
    descending = np.sort(fit_P)[::-1]
    if not len(descending):
        return []
    places = np.unique(np.linspace(0, len(descending) - 1, min(len(descending), _MOST_THRESHOLDS)).astype(int))
    threshold_T = np.unique(descending[places])[::-1]
    above_T = np.array([(descending >= threshold).sum() for threshold in threshold_T])
    expected_T = np.array([descending[:above].mean() for above in above_T])
    decided_T = np.maximum(1, np.round(above_T * pairs / len(descending))).astype(int)
    # The bound is at least the precision if and only if that many right ones are improbable at that precision.
    wanted_T = binom.isf(1 - confidence, decided_T, precision) + 1
    chance_T = np.where(wanted_T <= decided_T, binom.sf(wanted_T - 1, decided_T, expected_T), 0.0)
    return list(threshold_T[int(np.argmax(chance_T)) :])


def _promised(step: Step, what: str, precision: float, confidence: float) -> str:
    return (
        f"of the pairs decided {what!r}, at least {precision:.0%} are right, with {confidence:.0%} confidence: "
        f"{step.right} of {step.decided} labelled ones at or above the threshold {step.threshold:.4f} are right "
        f"(lower bound {step.bound:.3f}, fixed sequence of thresholds)"
    )


def _refused(steps: Sequence[Step], right_P: np.ndarray, what: str, precision: float, confidence: float) -> str:
    fewest, pairs, same = fewest_decided(precision, confidence), len(right_P), int(right_P.sum())
    start = (
        f"with {pairs} labelled pairs for choosing, no threshold promises a precision of {precision:.0%} for {what!r}"
    )
    need = f"a promise with {confidence:.0%} confidence needs at least {fewest} decided pairs, all of them right"
    if same < fewest or not steps:
        share = max(same, 1) / max(pairs, 1)
        return (
            f"{start}: {need}, and {same} are {what!r}; label at least {math.ceil(fewest / share)} pairs for choosing"
        )
    best = steps[0]
    return (
        f"{start}: {need}, and of the {best.decided} at or above the most promising threshold {best.threshold:.4f}, "
        f"{best.right} are right (lower bound {best.bound:.3f}); expected a model that tells these pairs apart better, more "
        "labelled pairs, or a lower precision"
    )
