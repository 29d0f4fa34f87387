"""Periods and histories: nothing of the future reaches a row."""

import numpy as np
import pytest
from clicks import clicks

from applications.ctr.periods import NONE, Histories, divide
from product_data.errors import OptionError
from product_data.impressions import read_impressions


@pytest.fixture(scope="module")
def log():
    return clicks()


def test_periods_follow_each_other_and_divide_no_time(log):
    periods = divide(log)
    assert np.array_equal(np.concatenate([periods.train, periods.valid, periods.test]), np.arange(len(log)))
    assert log.time_N[periods.train].max() < periods.valid_from == log.time_N[periods.valid].min()
    assert log.time_N[periods.valid].max() < periods.test_from == log.time_N[periods.test].min()
    assert len(periods.test) / len(log) == pytest.approx(0.2, abs=0.02)


def test_a_new_product_has_no_showing_in_training(log):
    periods = divide(log)
    known = set(log.product_N[periods.train])
    subsets = periods.subsets()
    assert len(subsets["new"]) > 0
    assert not known & set(log.product_N[subsets["new"]])
    assert set(log.product_N[subsets["known"]]) <= known
    assert len(subsets["new"]) + len(subsets["known"]) == len(subsets["all"]) == len(periods.test)


def slow_history(log, row, length):
    before = [
        log.product_N[other]
        for other in range(len(log))
        if log.clicked_N[other] and log.user_N[other] == log.user_N[row] and log.time_N[other] < log.time_N[row]
    ]
    return before[-length:]


@pytest.mark.parametrize("length", [1, 4, 100])
def test_a_history_is_the_users_clicks_strictly_before(log, length):
    histories = Histories(log, length)
    rows = np.arange(0, len(log), 37)
    found_BL = histories.of(rows)
    lengths = histories.lengths()
    for row, found in zip(rows, found_BL, strict=True):
        expected = slow_history(log, row, length)
        assert found[found != NONE].tolist() == expected
        assert lengths[row] == len(expected)
    assert max(lengths[rows]) > 1 or length == 1


def test_a_click_at_the_same_time_and_a_later_click_change_no_history():
    def rows(last):
        return [
            {"user_id": "u", "product_id": name, "time": time, "clicked": clicked}
            for name, time, clicked in (("a", 10, 1), ("b", 20, 1), ("c", 20, 0), ("d", 30, last))
        ]

    without, with_click = read_impressions(rows(0)), read_impressions(rows(1))
    for log in (without, with_click):
        assert Histories(log, 3).of(np.arange(4)).tolist() == [[-1] * 3, [0, -1, -1], [0, -1, -1], [0, 1, -1]]


def test_a_log_that_cannot_be_divided_is_refused(log):
    few = read_impressions(
        [{"user_id": "u", "product_id": "p", "time": time, "clicked": time % 2} for time in range(50)]
    )
    with pytest.raises(OptionError, match="clicks in the .* rows of the .* period"):
        divide(few)
    with pytest.raises(OptionError, match="sum below 1"):
        divide(log, 0.5, 0.5)
    with pytest.raises(OptionError, match="history: found 0"):
        Histories(log, 0)
