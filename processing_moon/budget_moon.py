"""What an item loses first where its text is over the token budget. Our design."""

from __future__ import annotations

from collections.abc import Sequence

SHORTENED_FIRST_TO_LAST = ("description", "attributes", "title", "category")
"""Parts of an item, from the one that says least."""
LEAST_OF_A_DESCRIPTION = 16
"""Tokens. The beginning of a description that is shorter says nothing, and takes room that whole attributes need."""


def attributes_to_keep(sizes: Sequence[int], excess: int) -> list[int]:
    """Return which attributes stay, in their order, so that the others together have at least `excess` tokens.

    The longest go first, and of equally long ones the last.

    Args:
        sizes: tokens of each attribute, its separator included.
        excess: tokens that have to go, at least one.
    """
    kept = set(range(len(sizes)))
    for place in sorted(kept, key=lambda place: (sizes[place], place), reverse=True):
        if excess <= 0:
            break
        kept.remove(place)
        excess -= sizes[place]
    return sorted(kept)
