"""Give all products of a duplicates' group one split, so that no evaluation sees what training saw.

The rule, our design (precedent: language models leave the texts of their benchmarks out of the training data): a group goes
to the evaluation split that one of its products has; of several, to the one with the fewest products. It goes to "train" only
if all of its products are there, and to "all" if one of them is in every split already. Evaluation sets thus keep their
products, and training loses the copies. Products of one `group` of the table, its variants, that are all in one split move
together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from product_data.preparation.near_duplicates import DuplicateGroup
from product_data.rows import EVERY_SPLIT, ProductRow

TRAIN = "train"


@dataclass(frozen=True)
class Assignment:
    """The splits and variant groups of products after the assignment.

    Args:
        split: row → new split of the products that move.
        group: row → new `group` of the products whose variants' group changes.
        crossing (`int`): number of duplicates' groups that were in several splits.
    """

    split: dict[int, str] = field(default_factory=dict)
    group: dict[int, str] = field(default_factory=dict)
    crossing: int = 0


def assign_splits(products: Sequence[ProductRow], groups: Iterable[DuplicateGroup]) -> Assignment:
    """Return the products whose split or group changes.

    Args:
        products: all products.
        groups: duplicates' groups.
    """
    groups = list(groups)
    sizes = Counter(row.split for row in products)
    variants = _variants_in_one_split(products)
    unit = _Units(len(products))
    for group in groups:
        unit.join(group.rows)
        for row in group.rows:
            unit.join([row, *variants.get(products[row].group or "", ())])
    members: dict[int, list[int]] = defaultdict(list)
    for group in groups:
        members[unit.of(group.rows[0])] = []
    for row in range(len(products)):
        if unit.of(row) in members:
            members[unit.of(row)].append(row)
    split: dict[int, str] = {}
    named: dict[int, str] = {}
    for rows in members.values():
        chosen = chosen_split({products[row].split for row in rows}, sizes)
        split |= {row: chosen for row in rows if products[row].split != chosen}
        name = next((products[row].group for row in rows if products[row].group), None)
        name = name or f"duplicates of {products[rows[0]].product_id}"
        named |= {row: name for row in rows if products[row].group != name}
    crossing = sum(len({products[row].split for row in group.rows}) > 1 for group in groups)
    return Assignment(split, named, crossing)


def chosen_split(splits: Iterable[str], sizes: Counter[str]) -> str:
    """Return the split of a group whose products are in several; see the rule at the top.

    Args:
        splits: their splits.
        sizes: split → number of its products.
    """
    found = set(splits)
    if EVERY_SPLIT in found:
        return EVERY_SPLIT
    return min(found - {TRAIN} or {TRAIN}, key=lambda name: (sizes[name], name))


def _variants_in_one_split(products: Sequence[ProductRow]) -> dict[str, list[int]]:
    """Return the rows of each group of the table whose products are all in one split."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, product in enumerate(products):
        if product.group:
            rows[product.group].append(row)
    return {name: own for name, own in rows.items() if len({products[row].split for row in own}) == 1}


class _Units:
    """Sets of rows that are joined one after another."""

    def __init__(self, count: int) -> None:
        self._first = list(range(count))

    def of(self, row: int) -> int:
        """Return the first row of the set of a row."""
        while self._first[row] != row:
            self._first[row] = self._first[self._first[row]]
            row = self._first[row]
        return row

    def join(self, rows: Sequence[int]) -> None:
        """Join the sets of several rows."""
        roots = {self.of(row) for row in rows}
        for root in roots:
            self._first[root] = min(roots)
