"""Equal shares of a budget among pictures of different sizes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from processing_moon.pixels_moon import equal_share


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(0, 2000))
def test_a_share_is_the_largest_that_fits_and_never_below_one_token(counts, room):
    if sum(counts) <= room:
        counts = [count + room for count in counts]

    def taken(limit):
        return sum(min(count, limit) for count in counts)

    limit = equal_share(counts, room)
    assert limit == max([1, *(one for one in range(1, max(counts) + 1) if taken(one) <= room)])
