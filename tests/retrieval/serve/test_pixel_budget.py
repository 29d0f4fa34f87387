"""The pixels that requests share: a picture waits for others, two requests never wait for each other, all is given back."""

from __future__ import annotations

import threading

import pytest

from retrieval.serve.batching import BusyError
from retrieval.serve.pixel_budget import PixelBudget
from retrieval.serve.uploads import UploadError


def test_a_share_is_given_back_at_the_end_also_after_an_error():
    budget = PixelBudget(100)
    with budget.share() as share:
        share.take(20)
        share.take(80)
        assert (budget.free, share.held) == (0, 100)
    assert budget.free == 100
    with pytest.raises(UploadError), budget.share() as share:
        share.take(200)
    assert budget.free == 100


def test_a_picture_waits_until_another_request_has_ended():
    budget, took = PixelBudget(100, seconds=20), threading.Event()

    def wait() -> None:
        with budget.share() as share:
            share.take(60)
            took.set()

    with budget.share() as first:
        first.take(50)
        thread = threading.Thread(target=wait)
        thread.start()
        assert not took.wait(0.2)
    thread.join()
    assert took.is_set()
    assert budget.free == 100


def test_a_picture_that_waited_too_long_is_refused_and_takes_nothing():
    budget = PixelBudget(100, seconds=0.05)
    with budget.share() as first, budget.share() as second:
        first.take(50)
        with pytest.raises(BusyError, match="leave 50 of 100 pixels"):
            second.take(60)
        second.take(50)


def test_a_request_that_holds_a_picture_does_not_wait_for_one_that_may_wait_for_it():
    budget = PixelBudget(100, seconds=600)
    with budget.share() as first, budget.share() as second:
        first.take(50)
        second.take(40)
        with pytest.raises(BusyError):
            second.take(20)


def test_a_request_with_more_pixels_than_all_may_have_is_refused_for_good():
    with PixelBudget(100).share() as share:
        share.take(50)
        with pytest.raises(UploadError, match="expected at most 100 in one request"):
            share.take(60)
