"""Test whether two models differ on the same queries: paired p-values, and Holm's correction for several of them.

Shape suffixes: N queries, F sign patterns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from evaluation.metrics import paired_difference

LEVEL = 0.05
"""A corrected p-value below this is a difference beyond chance."""
FLIPS = 10_000
"""Number of sign patterns that are drawn if there are too many to try them all."""
_EXACT_UP_TO = 14  # differences that are not 0: 2^14 patterns are tried in a moment
_FLIPS_PER_BLOCK = 1_000
_ROUNDING = 1e-9  # sums of the same numbers in another order differ by less, in shares of the largest sum


def sign_flip_p(difference_N: np.ndarray, *, flips: int = FLIPS, seed: int = 0) -> float:
    """Return the two-sided p-value of Fisher's randomization test of a mean of paired differences.

    `p = P(|Σ_n σ_n d_n| >= |Σ_n d_n|)` with each sign σ_n = ±1 equally likely: under the null hypothesis the two models are
    exchangeable on every query. Differences of 0 change nothing and are left out.

    - If all differences that are not 0 have one size, as with R@k, the sum depends only on the number of positive signs, and
      p is that of McNemar's exact test (a binomial test on the queries that only one model finds), for any N.
    - Up to 14 differences that are not 0: all 2^N patterns are tried, and p is exact.
    - Otherwise `p = (b + 1) / (flips + 1)`, where b of `flips` drawn patterns reach the observed sum, which is never 0
      (Phipson and Smyth, "Permutation p-values should never be zero", 2010).

    Why this test: it assumes no distribution, and it is one test for R@k, MRR and nDCG, whose differences are discrete and far
    from normal. Source: Smucker, Allan and Carterette, "A comparison of statistical significance tests for information
    retrieval evaluation", CIKM 2007, which recommends it over the sign test and Wilcoxon's; McNemar 1947.

    Args:
        difference_N (`ndarray`): one difference per query, such as that of two reciprocal ranks.
        flips (`int`): number of patterns that are drawn. Default 10,000.
        seed (`int`): seed of the drawn patterns. Default 0.

    Returns: p in (0, 1]; 1 if no query differs.

    Raises:
        ValueError: no queries, flips below 1, or differences that are not finite.
    """
    difference_N = np.asarray(difference_N, dtype=np.float64)
    if len(difference_N) == 0 or flips < 1 or not np.isfinite(difference_N).all():
        raise ValueError(
            f"found {len(difference_N)} differences and flips={flips}; expected at least one finite difference and 1 flip"
        )
    difference_N = difference_N[difference_N != 0]
    size_N = np.abs(difference_N)
    if len(size_N) == 0:
        return 1.0
    if np.all(size_N == size_N[0]):
        return mcnemar_p(int((difference_N > 0).sum()), int((difference_N < 0).sum()))
    reached = abs(float(difference_N.sum())) - _ROUNDING * float(size_N.sum())
    if len(size_N) <= _EXACT_UP_TO:
        pattern_F = np.arange(2 ** len(size_N))[:, None]
        sign_FN = 1.0 - 2.0 * ((pattern_F >> np.arange(len(size_N))) & 1)
        return float((np.abs(sign_FN @ size_N) >= reached).mean())
    rng, extreme = np.random.default_rng(seed), 0
    for start in range(0, flips, _FLIPS_PER_BLOCK):
        shape = (min(_FLIPS_PER_BLOCK, flips - start), len(size_N))
        sum_F = 2.0 * (rng.integers(0, 2, shape, dtype=np.int8) @ size_N) - size_N.sum()
        extreme += int((np.abs(sum_F) >= reached).sum())
    return (extreme + 1) / (flips + 1)


def mcnemar_p(gained: int, lost: int) -> float:
    """Return the two-sided p-value of the exact test of McNemar (1947) on queries that only one of two models finds.

    `p = min(1, 2 · P(X <= min(gained, lost)))` with X binomial of `gained + lost` trials and probability 1/2.

    Args:
        gained, lost (`int`): number of queries that only the second and that only the first model finds.

    Raises:
        ValueError: a negative number.
    """
    if min(gained, lost) < 0:
        raise ValueError(f"found gained={gained}, lost={lost}; expected numbers of 0 or more")
    return min(1.0, 2.0 * float(stats.binom.cdf(min(gained, lost), gained + lost, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, "A simple sequentially rejective multiple test procedure", 1979).

    The i-th smallest of m is multiplied by `m - i + 1`, is at least its smaller neighbour, and at most 1. The chance that any
    corrected p-value of equal models is below a level is at most that level, however the rows depend on each other: the
    same queries make R@1, R@10 and MRR.

    Args:
        p_values: in any order, which is kept.

    Raises:
        ValueError: a number that is not in [0, 1].
    """
    if not all(0 <= value <= 1 for value in p_values):
        raise ValueError(f"found p-values {list(p_values)}; expected numbers in [0, 1]")
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def paired_test(
    before_N: np.ndarray, after_N: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> dict[str, float | list[float]]:
    """Return the mean of `after - before` over the same queries, its bootstrap interval and its p-value.

    Args:
        before_N, after_N (`ndarray`): one value a query, such as 1 for a hit.
        resamples (`int`): of the bootstrap. Default 1000.
        seed (`int`): of the bootstrap and of drawn sign patterns. Default 0.

    Returns: difference, interval (95 %, see `evaluation.metrics.paired_difference`), p (see `sign_flip_p`).

    Raises:
        ValueError: different numbers of queries, or none.
    """
    found = paired_difference(before_N, after_N, resamples=resamples, seed=seed)
    return found | {"p": sign_flip_p(np.asarray(after_N, dtype=np.float64) - before_N, seed=seed)}
