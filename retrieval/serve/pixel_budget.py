"""Bound the pixels of the pictures that all requests together hold decoded, so that pictures cannot fill the memory.

A picture of a few kilobytes can have millions of pixels. Each request alone is limited, but many arrive at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from retrieval.serve.batching import BusyError
from retrieval.serve.uploads import UploadError

WAIT_SECONDS = 5.0
"""How long a request waits for the pictures of others to be released."""


class PixelBudget:
    """A number of pixels that requests share. Our design: a semaphore with weights, as `golang.org/x/sync/semaphore`.

    Args:
        pixels (`int`): pixels of all decoded pictures together.
        seconds (`float`): longest wait of a request. Default `WAIT_SECONDS`.
    """

    def __init__(self, pixels: int, seconds: float = WAIT_SECONDS) -> None:
        self.pixels, self.seconds = pixels, seconds
        self.free = pixels
        self.changed = threading.Condition()

    @contextmanager
    def share(self) -> Iterator[PixelShare]:
        """Yield the share of a request, which is given back at the end."""
        share = PixelShare(self)
        try:
            yield share
        finally:
            with self.changed:
                self.free += share.held
                self.changed.notify_all()


class PixelShare:
    """The pixels of one request; see `PixelBudget.share`."""

    def __init__(self, budget: PixelBudget) -> None:
        self.budget, self.held = budget, 0

    def take(self, pixels: int) -> None:
        """Take the pixels of a picture before it is decoded: `admit` of `ImageLimits`.

        The first picture of a request waits until there is room. A further one does not, because two requests that both hold
        pictures would wait for each other.

        Args:
            pixels (`int`): width × height.

        Raises:
            BusyError: the pictures of other requests leave too little.
            UploadError: the pictures of this request are more than the whole budget.
        """
        budget = self.budget
        if self.held + pixels > budget.pixels:
            raise UploadError(f"pictures: found too many pixels; expected at most {budget.pixels} in one request")
        with budget.changed:
            wait = 0.0 if self.held else budget.seconds
            if not budget.changed.wait_for(lambda: budget.free >= pixels, wait):
                raise BusyError(f"the pictures of other requests leave {budget.free} of {budget.pixels} pixels")
            budget.free -= pixels
            self.held += pixels
