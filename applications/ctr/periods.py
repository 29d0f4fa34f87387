"""Divide a log by time into training, validation and test, and find what a user had clicked before each showing.

Shape suffixes: N rows of the log, C clicks, B rows of a batch, L clicks of a history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from product_data.errors import OptionError
from product_data.impressions import ImpressionLog

NONE = -1
"""Where a history has no click."""
_LEAST_CLICKS = 20  # and as many showings without a click, in every period


@dataclass(frozen=True, eq=False)
class Periods:
    """The rows of a log by period. No time is in two periods, so no session is divided.

    Args:
        train, valid, test: row numbers, int64.
        is_new_N: whether the row's product has no showing in training, bool. Such a product is new in validation and test.
        valid_from, test_from (`float`): the first times of validation and test, in seconds.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    is_new_N: np.ndarray
    valid_from: float
    test_from: float

    def subsets(self) -> dict[str, np.ndarray]:
        """Return the rows of the test period: "all", "known" (products with a showing in training) and "new"."""
        is_new = self.is_new_N[self.test]
        return {"all": self.test, "known": self.test[~is_new], "new": self.test[is_new]}


def divide(log: ImpressionLog, valid_share: float = 0.1, test_share: float = 0.2) -> Periods:
    """Divide a log by time: first the training period, then validation, then test.

    Args:
        log: the log, sorted by time.
        valid_share, test_share (`float`): shares of the rows; rows with the time of a boundary go to the later period.
            Defaults 0.1 and 0.2.

    Raises:
        OptionError: shares that leave no training, or a period with fewer than 20 rows with or without a click.
    """
    if min(valid_share, test_share) <= 0 or valid_share + test_share >= 1:
        raise OptionError(
            f"found valid_share={valid_share} and test_share={test_share}; expected two numbers above 0 with a sum below 1"
        )
    count = len(log)
    test_from = float(log.time_N[int(count * (1 - test_share))])
    valid_from = float(log.time_N[int(count * (1 - test_share - valid_share))])
    bounds = np.searchsorted(log.time_N, [valid_from, test_from])
    train, valid, test = np.split(np.arange(count), bounds)
    for name, rows in (("training", train), ("validation", valid), ("test", test)):
        clicks = int(log.clicked_N[rows].sum())
        if min(clicks, len(rows) - clicks) < _LEAST_CLICKS:
            raise OptionError(
                f"{log.name}: found {clicks} clicks in the {len(rows)} rows of the {name} period; expected at least "
                f"{_LEAST_CLICKS} rows with and {_LEAST_CLICKS} without a click"
            )
    is_known_P = np.zeros(len(log.products), dtype=bool)
    is_known_P[log.product_N[train]] = True
    return Periods(train, valid, test, ~is_known_P[log.product_N], valid_from, test_from)


class Histories:
    """The products that each row's user had clicked strictly before the row's time, the last `length` of them.

    Clicks at the same time do not count: a session that is logged with one time never sees its own clicks. Clicks of the
    validation and test periods count for later rows, as they would in service.

    Args:
        log: the log, sorted by time.
        length (`int`): the number of clicks to keep.

    Raises:
        OptionError: a length below 1.
    """

    def __init__(self, log: ImpressionLog, length: int) -> None:
        if length < 1:
            raise OptionError(f"history: found {length}; expected a whole number of at least 1")
        self.length = length
        _, moment_N = np.unique(log.time_N, return_inverse=True)
        key_N = log.user_N * (int(moment_N.max()) + 1) + moment_N
        clicks = np.flatnonzero(log.clicked_N)
        clicks = clicks[np.argsort(key_N[clicks], kind="stable")]
        self._product_C = log.product_N[clicks]
        key_C, user_C = key_N[clicks], log.user_N[clicks]
        self._end_N = np.searchsorted(key_C, key_N, side="left")
        self._start_N = np.maximum(np.searchsorted(user_C, log.user_N, side="left"), self._end_N - length)

    def lengths(self) -> np.ndarray:
        """Return the number of clicks in each row's history, (N,) int64."""
        return self._end_N - self._start_N

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the histories of rows, (B, L) int64: the oldest click first, `NONE` after the last one."""
        place_BL = self._start_N[rows][:, None] + np.arange(self.length)
        is_click_BL = place_BL < self._end_N[rows][:, None]
        return np.where(is_click_BL, self._product_C[np.minimum(place_BL, len(self._product_C) - 1)], NONE)
