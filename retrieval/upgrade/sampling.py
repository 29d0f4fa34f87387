"""Draw the products that both models embed, and split them into parts that fit, choose and measure an adapter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_SAMPLE = 50
"""Number of products below which an adapter is refused."""
_PARTS = {"fit": 0.6, "choose": 0.2, "measure": 0.2}


class UpgradeError(ValueError):
    """An upgrade that cannot be made; says what was found and what is expected."""

    exit_status = 2


def stratified_sample(strata: Sequence[str], count: int, *, seed: int = 0) -> list[int]:
    """Return the indices of a sample in which each stratum has its share of the products, in ascending order.

    A stratum of n of N products gets `count · n / N` products, rounded so that the sum is `count` (largest remainders).

    Args:
        strata: stratum of each product, such as its category; all equal for a simple random sample.
        count (`int`): size of the sample.
        seed (`int`): of the draw. Default 0.

    Raises:
        UpgradeError: a sample below `LEAST_SAMPLE`, or larger than the products.
    """
    if not LEAST_SAMPLE <= count <= len(strata):
        raise UpgradeError(
            f"sample: found {count} of {len(strata)} products; expected at least {LEAST_SAMPLE}, and at most all products"
        )
    members: dict[str, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)
    names = sorted(members)
    exact = np.array([count * len(members[name]) / len(strata) for name in names])
    sizes = np.floor(exact + 1e-9).astype(int)
    by_remainder = sorted(range(len(names)), key=lambda place: (sizes[place] - exact[place], names[place]))
    for place in by_remainder[: count - int(sizes.sum())]:
        sizes[place] += 1
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(members[name], size, replace=False) for name, size in zip(names, sizes, strict=True)]
    return sorted(int(index) for part in drawn for index in part)


@dataclass(frozen=True)
class Parts:
    """The parts of a sample, as indices of its products.

    Args:
        fit: products on whose vectors adapters are fitted (60 %).
        choose: products whose searches choose the adapter and calibrate its scores (20 %).
        measure: products whose searches are reported (20 %).
    """

    fit: np.ndarray
    choose: np.ndarray
    measure: np.ndarray


def split(count: int, *, seed: int = 0) -> Parts:
    """Return the parts of a sample of `count` products, drawn at random."""
    order = np.random.default_rng(seed).permutation(count)
    first, second = round(_PARTS["fit"] * count), round((_PARTS["fit"] + _PARTS["choose"]) * count)
    return Parts(np.sort(order[:first]), np.sort(order[first:second]), np.sort(order[second:]))
