"""Join decided pairs into groups of duplicates, and find chains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class Group:
    """Products that decided pairs join, directly or through others.

    Args:
        rows: the products, ascending.
        undecided: pairs inside the group that are not decided "same" themselves. Such a group is a chain: a = b and b = c
            join a and c, which nothing promises.
    """

    rows: tuple[int, ...]
    undecided: tuple[tuple[int, int], ...]

    @property
    def is_chain(self) -> bool:
        """Whether a pair inside the group is not decided."""
        return bool(self.undecided)


def join_pairs(pair_P2: np.ndarray, products: int) -> list[Group]:
    """Return the connected components of decided pairs with at least two products, the largest first.

    Args:
        pair_P2: (P, 2) rows of the pairs decided "same".
        products (`int`): number of products N.
    """
    if not len(pair_P2):
        return []
    graph = coo_array((np.ones(len(pair_P2)), (pair_P2[:, 0], pair_P2[:, 1])), shape=(products, products))
    _, label_N = connected_components(graph, directed=False)
    decided = {(int(min(pair)), int(max(pair))) for pair in pair_P2}
    order_N = np.argsort(label_N, kind="stable")
    ends = np.flatnonzero(np.diff(label_N[order_N])) + 1
    members = [np.sort(rows) for rows in np.split(order_N, ends) if len(rows) > 1]
    groups = [Group(tuple(map(int, rows)), _undecided(rows, decided)) for rows in members]
    return sorted(groups, key=lambda group: (-len(group.rows), group.rows))


def _undecided(rows: np.ndarray, decided: set[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    pairs = ((int(a), int(b)) for place, a in enumerate(rows) for b in rows[place + 1 :])
    return tuple(pair for pair in pairs if pair not in decided)
