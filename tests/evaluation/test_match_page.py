"""The heat maps of an explanation, as clients of the service see them."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from evaluation.match_page import heat_maps
from processing_moon import ProductError
from retrieval.queries import Query
from retrieval.stores.interface import StoredProduct


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ProductError("p", "images[0]", "no such file: '/home/shop/photos/1.jpg'"), "its picture cannot be read"),
        (ProductError("p", "title", "found 3; expected a text"), "p, field 'title': found 3; expected a text"),
    ],
)
def test_a_picture_that_cannot_be_read_is_said_without_its_path(error, why, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("evaluation.match_page.explain_attention", fail)
    product = StoredProduct("p", "lamp", images=("/home/shop/photos/1.jpg",))
    searcher = SimpleNamespace(
        store=SimpleNamespace(get=lambda ids: [product for _ in ids]),
        encoder=SimpleNamespace(lock=threading.Lock(), model=None, processor=None),
    )
    answers = heat_maps(searcher, Query("lamp"), "p", SimpleNamespace(form="mm"))
    assert [one["why"] for one in answers] == [why, why]
    assert "/home" not in str(answers)
