"""Fit power laws to measured losses, choose between a floor and none, and give intervals over seeds.

Shape suffixes: N measurements, X distinct values of x, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

LEAST_POINTS = 4
"""Distinct values of x that a fit needs. The law with a floor has three parameters, so it needs one more."""
_LEVEL = 0.95


class ScalingError(ValueError):
    """Raised for measurements or a suite from which no law can be fitted."""

    exit_status = 2


@dataclass(frozen=True)
class PowerLaw:
    """The law `L(x) = a · x^(−b) + c` with a > 0 and c >= 0 (arXiv 2001.08361 without, 2203.15556 with the floor c).

    Args:
        a, b, c (`float`): the parameters; c is 0 for a law without a floor. b < 0 means that the loss grows.
        aic (`float`): corrected Akaike criterion, see `fit`.
        has_floor (`bool`): whether c was fitted.
    """

    a: float
    b: float
    c: float
    aic: float
    has_floor: bool

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the loss at x."""
        return self.a * np.asarray(x, dtype=np.float64) ** -self.b + self.c


def fit(x_N: Sequence[float] | np.ndarray, loss_N: Sequence[float] | np.ndarray) -> PowerLaw:
    """Fit both laws by least squares of the logarithm of the loss, and return the one with the lower AICc.

    `AICc = N ln(RSS / N) + 2k + 2k(k + 1) / (N − k − 1)` with k = 3 parameters (a, b, the variance) without and 4 with a floor
    (Hurvich and Tsai 1989). The law with a floor needs at least five distinct values of x.

    Args:
        x_N: tokens, negatives or clicks, above 0.
        loss_N: the losses, above 0; several seeds of one x are several measurements.

    Raises:
        ScalingError: fewer than four distinct values of x, or a value that is not above 0.
    """
    x, loss = np.asarray(x_N, dtype=np.float64), np.asarray(loss_N, dtype=np.float64)
    points = len(np.unique(x))
    if points < LEAST_POINTS:
        raise ScalingError(f"found {points} distinct values of x; expected at least {LEAST_POINTS} for a power law")
    if not (np.isfinite(x).all() and np.isfinite(loss).all() and (x > 0).all() and (loss > 0).all()):
        raise ScalingError(
            "found a value or a loss that is not a number above 0; expected numbers above 0 for a power law"
        )
    plain = _plain(x, loss)
    if points <= LEAST_POINTS:
        return plain
    floored = _floored(x, loss, plain)
    return floored if floored.aic < plain.aic else plain


def _plain(x_N: np.ndarray, loss_N: np.ndarray) -> PowerLaw:
    """Return the law without a floor: a line through the logarithms."""
    tilt, level = np.polyfit(np.log(x_N), np.log(loss_N), 1)
    left_N = np.log(loss_N) - (level + tilt * np.log(x_N))
    return PowerLaw(math.exp(level), -float(tilt), 0.0, _aicc(left_N, 3), has_floor=False)


def _floored(x_N: np.ndarray, loss_N: np.ndarray, plain: PowerLaw) -> PowerLaw:
    """Return the law with a floor: for each floor the best line, and the best floor by bounded search."""
    scale_x = math.exp(float(np.log(x_N).mean()))

    def left_over(values: np.ndarray) -> np.ndarray:
        level, tilt, floor = values
        return np.log(loss_N) - np.log(np.exp(level - tilt * np.log(x_N / scale_x)) + floor)

    lowest = float(loss_N.min())
    found = []
    for share in (0.0, 0.3, 0.6, 0.9):
        start_level = math.log(max(plain.a * scale_x**-plain.b - share * lowest, 1e-6 * lowest))
        start = [start_level, max(plain.b, 0.1), share * lowest]
        found.append(optimize.least_squares(left_over, start, bounds=([-50, -10, 0], [50, 10, lowest])))
    best = min(found, key=lambda one: one.cost)
    level, tilt, floor = best.x
    a = math.exp(level) * scale_x**tilt
    return PowerLaw(a, float(tilt), float(floor), _aicc(left_over(best.x), 4), has_floor=True)


def _aicc(left_N: np.ndarray, parameters: int) -> float:
    count = len(left_N)
    if count <= parameters + 1:
        return math.inf
    variance = max(float((left_N**2).mean()), 1e-18)
    return count * math.log(variance) + 2 * parameters + 2 * parameters * (parameters + 1) / (count - parameters - 1)


def fit_with_intervals(
    x_X: Sequence[float], loss_XS: Sequence[Sequence[float]], *, resamples: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Fit a law and return its parameters with intervals from a bootstrap over seeds.

    In each resample, the n seeds of every x are drawn with replacement, and the form of the law that the whole data chose is
    fitted again. Deviations of log losses from their mean are widened by √(n / (n − 1)), since drawn seeds vary less than new
    ones (Davison and Hinkley, Bootstrap Methods and their Application, 1997, §2.6). The intervals
    cover the variation between seeds, not the choice of the law or of the values of x.

    Args:
        x_X: distinct values of x.
        loss_XS: for each of them the loss of each seed.
        resamples (`int`): R. Default 500.
        seed (`int`): seed of the draws. Default 0.

    Returns: law ("a·x^(−b)" or "a·x^(−b) + c"), a, b, c (each with value and 95 % interval; c only with a floor), points, seeds,
        aic (of both laws), falls: whether the interval of b is above 0; intervals are `None` with fewer than two seeds.

    Raises:
        ScalingError: see `fit`.
    """
    x_N = np.repeat(np.asarray(x_X, dtype=np.float64), [len(own) for own in loss_XS])
    law = fit(x_N, np.concatenate([np.asarray(own, dtype=np.float64) for own in loss_XS]))
    fewest = min(len(own) for own in loss_XS)
    drawn = _resampled(x_X, loss_XS, law, resamples, seed) if fewest > 1 else None
    found: dict[str, Any] = {
        "law": "a·x^(−b) + c" if law.has_floor else "a·x^(−b)",
        "points": len(x_X),
        "seeds": fewest,
        "aic": law.aic,
    }
    for place, name in enumerate(("a", "b", "c") if law.has_floor else ("a", "b")):
        bounds = None if drawn is None else np.quantile(drawn[:, place], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).tolist()
        found[name] = {"value": getattr(law, name), "interval": bounds}
    interval = found["b"]["interval"]
    found["falls"] = None if interval is None else interval[0] > 0
    return found


def _resampled(
    x_X: Sequence[float], loss_XS: Sequence[Sequence[float]], law: PowerLaw, resamples: int, seed: int
) -> np.ndarray:
    """Return a, b and c of the law in each resample of the seeds, (R, 3)."""
    rng = np.random.default_rng(seed)
    x_N = np.repeat(np.asarray(x_X, dtype=np.float64), [len(own) for own in loss_XS])
    found = []
    middle_X = [float(np.log(own).mean()) for own in loss_XS]
    spread_X = [
        (np.log(own) - middle) * math.sqrt(len(own) / (len(own) - 1))
        for own, middle in zip(loss_XS, middle_X, strict=True)
    ]
    for _ in range(resamples):
        drawn = [spread[rng.integers(len(spread), size=len(spread))] for spread in spread_X]
        loss_N = np.exp(np.concatenate([middle + own for middle, own in zip(middle_X, drawn, strict=True)]))
        plain = _plain(x_N, loss_N)
        again = _floored(x_N, loss_N, plain) if law.has_floor else plain
        found.append((again.a, again.b, again.c))
    return np.array(found)


def sentence(axis: str, found: dict[str, Any]) -> str:
    """Return what a fit says about an axis; it says so if the exponent's interval contains 0."""
    exponent = found["b"]
    text = f"{axis}: exponent {exponent['value']:.3f}"
    if exponent["interval"] is None:
        return f"{text}, without an interval: one seed shows no variation."
    low, high = exponent["interval"]
    text = f"{text} ({low:.3f} to {high:.3f})"
    if low <= 0 <= high:
        return f"{text}: the interval contains 0, so the loss does not clearly change with {axis}."
    return f"{text}: the loss {'falls' if low > 0 else 'GROWS'} with {axis}."
