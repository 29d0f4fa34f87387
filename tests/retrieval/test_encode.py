"""Encoding records with a tiny Moon: order, skipped records, the model's state, and vectors encoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import file_of, plain

from product_data.tables import load_tables
from retrieval.encode import VectorCache, config_digest, encode, load_for_evaluation, vectors_of
from retrieval.shortened import describe_part, shortened_sentence, shortened_summary

PRODUCTS = [
    {
        "id": "a",
        "title": "red running shoes with a white sole",
        "images": [file_of(plain("red"))],
        "category": ["Home", "Shoes"],
    },
    {"id": "b", "title": "bag"},
    {"id": "c", "images": [file_of(plain("blue", 64)), file_of(plain("green"))]},
    {"id": "d", "title": "same in green", "attributes": {"colour": ["green"]}, "images": file_of(plain("green"))},
    {"id": "e", "title": "striped cotton, navy, autumn, gold buckle, brown leather"},
]


@pytest.fixture(scope="module")
def moon(tiny_moon: Callable[..., Path]) -> tuple[Any, Any]:
    return load_for_evaluation(tiny_moon(), device="cpu")


def test_vectors_come_in_the_order_of_the_records_whatever_the_batches(moon: tuple[Any, Any]) -> None:
    one_by_one = encode(*moon, PRODUCTS, batch_size=1, progress=False)
    together = encode(*moon, PRODUCTS, batch_size=3, progress=False)
    assert one_by_one.kept == together.kept == [0, 1, 2, 3, 4]
    assert together.vectors.dtype == np.float32
    assert together.vectors.shape == (5, 32)
    np.testing.assert_allclose(np.linalg.norm(together.vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(one_by_one.vectors, together.vectors, atol=1e-5)
    alone = encode(*moon, PRODUCTS[3:4], progress=False).vectors[0]
    np.testing.assert_allclose(together.vectors[3], alone, atol=1e-5)
    assert np.abs(together.vectors[3] - together.vectors[4]).max() > 1e-3


def test_an_unreadable_record_is_named_with_its_own_index_and_the_others_keep_their_vectors(
    moon: tuple[Any, Any],
) -> None:
    broken = [
        *PRODUCTS[:2],
        {"id": "bad", "title": "x", "images": [file_of(plain("red"))[:40]]},
        *PRODUCTS[2:],
        {"id": "empty"},
    ]
    found = encode(*moon, broken, batch_size=2, progress=False)
    assert found.kept == [0, 1, 3, 4, 5]
    assert [record.index for record in found.skipped] == [2, 6]
    assert "bad" in found.skipped[0].item
    np.testing.assert_allclose(found.vectors, encode(*moon, PRODUCTS, progress=False).vectors, atol=1e-5)


def test_nothing_to_encode_gives_an_empty_matrix_of_the_right_width(moon: tuple[Any, Any]) -> None:
    assert encode(*moon, [], progress=False).vectors.shape == (0, 32)
    only_bad = encode(*moon, [{"id": "x", "images": [b"nonsense"]}], progress=False)
    assert only_bad.vectors.shape == (0, 32)
    assert len(only_bad.skipped) == 1


def test_the_model_is_left_in_the_mode_it_was_in(moon: tuple[Any, Any]) -> None:
    model, processor = moon
    try:
        model.train()
        encode(model, processor, PRODUCTS[:1], progress=False)
        assert model.training
    finally:
        model.eval()


def test_forms_and_tasks_change_the_vectors(moon: tuple[Any, Any]) -> None:
    forms = [encode(*moon, PRODUCTS[:1], form=form, progress=False).vectors for form in ("mm", "t", "i")]
    assert all(np.abs(forms[i] - forms[j]).max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
    query = [{"text": "red shoes"}]
    as_query, as_label = (
        encode(*moon, query, kind="query", task=task, progress=False).vectors for task in (None, "category")
    )
    assert np.abs(as_query - as_label).max() > 1e-4


def test_wrong_arguments_and_vectors_that_are_not_finite_are_refused(moon: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected product or query"):
        encode(*moon, PRODUCTS, kind="produkt")
    with pytest.raises(ValueError, match="batch_size=0"):
        encode(*moon, PRODUCTS, batch_size=0)
    with pytest.raises(ValueError, match="no config.json"):
        load_for_evaluation(tmp_path)

    class NotFinite(torch.nn.Linear):
        def forward(self, **inputs: Any) -> Any:
            return SimpleNamespace(embeddings=torch.full((len(inputs["input_ids"]), 4), torch.nan))

    with pytest.raises(ValueError, match="not finite for 5 records"):
        encode(NotFinite(1, 1), moon[1], PRODUCTS, progress=False)


def test_a_base_that_is_no_moon_is_refused(tiny_base: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="model type 'qwen3_vl'; expected a Moon model"):
        load_for_evaluation(tiny_base())


def test_the_cache_encodes_each_thing_once_and_lists_what_was_skipped(moon: tuple[Any, Any]) -> None:
    products = [
        {"product_id": "a", "title": "red shoe", "images": [file_of(plain("red"))]},
        {"product_id": "b", "title": "no picture"},
        {"product_id": "c", "images": [b"nonsense"], "title": "broken"},
    ]
    queries = [{"query_id": "q", "text": "shoe", "positives": ["a"]}]
    tables = load_tables({"products": products, "queries": queries})
    cache = VectorCache(*moon, tables.products, tables.queries, progress=False)
    assert cache.gallery("mm") is cache.gallery("mm")
    assert cache.all_queries() is cache.all_queries()
    assert cache.gallery("mm").kept == [0, 1]
    assert cache.gallery("t").kept == [0, 1, 2]
    assert cache.gallery("i").kept == [0]
    labels = cache.labels(["Shoes", "Bags", "Shoes"], "category")
    assert labels.shape == (3, 32)
    assert np.array_equal(labels[0], labels[2])
    (skipped,) = cache.skipped()
    assert (skipped["kind"], skipped["id"]) == ("product", "c")
    assert "image" in skipped["field"]
    with pytest.raises(ValueError, match="cannot be encoded"):
        cache.labels([" "], "category")


def test_what_was_shortened_is_named_by_the_records_own_place_and_each_cache_counts_it(moon: tuple[Any, Any]) -> None:
    long = "striped cotton, navy, autumn, gold buckle, brown leather " * 200
    records = [*PRODUCTS, {"id": "long", "title": long}, PRODUCTS[0]]
    found = encode(*moon, records, batch_size=2, progress=False)
    (cut,) = found.shortened
    assert (cut.index, cut.field, cut.tokens_before > cut.tokens_after > 0) == (5, "title", True)
    assert not encode(*moon, PRODUCTS, progress=False).shortened
    products = [
        {"product_id": "a", "title": "red shoe"},
        {"product_id": "long", "title": long, "images": [file_of(plain("red"))]},
    ]
    tables = load_tables({"products": products, "queries": [{"query_id": "q", "text": long, "positives": ["a"]}]})
    cache = VectorCache(*moon, tables.products, tables.queries, progress=False)
    cache.gallery("mm"), cache.gallery("t"), cache.all_queries(), cache.labels([long], "category")
    summary = shortened_summary(cache.shortened())
    assert (summary["items"], summary["fields"]["title"]) == (3, 1)
    assert [one["kind"] for one in summary["first"]][-2:] == ["query", "label"]
    sentence = shortened_sentence(summary, moon[1].max_tokens)
    assert f"3 items are over max_tokens={moon[1].max_tokens}: title cut in 1, " in sentence
    assert "first: product 'long', " in sentence
    assert cache.size() == 4
    assert "3 of 4 items (75 %) are over " in shortened_sentence(summary, moon[1].max_tokens, cache.size())


def test_a_part_that_nothing_is_left_of_is_said_to_be_left_out() -> None:
    one = {"kind": "product", "item": "c0-1", "field": "description", "tokens_before": 33, "tokens_after": 0}
    assert "→ 0 tokens" not in describe_part(one)
    assert describe_part(one) == "product 'c0-1', description: left out (33 tokens)"


def test_the_digest_follows_the_configuration(moon: tuple[Any, Any], tiny_moon: Callable[..., Path]) -> None:
    assert config_digest(moon[0]) == config_digest(load_for_evaluation(tiny_moon(), device="cpu")[0])
    other, _ = load_for_evaluation(tiny_moon(embedding_dim=16), device="cpu")
    assert config_digest(moon[0]) != config_digest(other)


def test_an_output_without_vectors_is_an_error_that_says_what_is_expected():
    with pytest.raises(ValueError, match="expected a batch from the checkpoint's processor"):
        vectors_of(SimpleNamespace(embeddings=None))
