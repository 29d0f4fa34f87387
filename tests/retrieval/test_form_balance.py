"""Galleries of texts, pictures and both: the share of each form, and centring by form."""

import numpy as np
import pytest

from product_data.rows import ProductRow
from retrieval.centring import Centring, content_form
from retrieval.form_balance import form_balance
from retrieval.stores.interface import StoredProduct


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def gap():
    """Thirty texts, thirty pictures of the same products and queries of words; an offset parts words from pictures."""
    rng = np.random.default_rng(0)
    meaning, offset = unit(rng.normal(size=(30, 16))), unit(rng.normal(size=(1, 16)))
    texts, pictures = unit(meaning + 1.5 * offset), unit(meaning - 1.5 * offset)
    queries = unit(meaning + 0.5 * unit(rng.normal(size=(30, 16))) + 1.5 * offset)
    return np.concatenate([texts, pictures]).astype(np.float32), ["t"] * 30 + ["i"] * 30, queries.astype(np.float32)


def test_the_share_of_each_form_is_counted():
    score = np.array([[5, 4, 3, 2, 1], [1, 2, 3, 4, -np.inf]], dtype=float)
    shares = form_balance(score, [[0, 4], [2]], ["t", "t", "i", "mm", "mm"], k=2)
    assert {form: share.results for form, share in shares.items()} == {"t": 0.5, "i": 0.25, "mm": 0.25}
    assert {form: share.gallery for form, share in shares.items()} == {"t": 0.4, "i": 0.2, "mm": 0.4}
    assert {form: share.right for form, share in shares.items()} == pytest.approx({"t": 1 / 3, "i": 1 / 3, "mm": 1 / 3})
    assert {form: share.found for form, share in shares.items()} == {"t": 1.0, "i": 1.0, "mm": 0.0}
    everything = form_balance(score, [[0], [1]], ["t", "t", "i", "mm", "mm"], k=9)
    assert everything["mm"].results == pytest.approx(3 / 9)  # what is left out of a ranking is no result
    assert np.isnan(everything["i"].found)


def test_centring_removes_the_preference_for_a_form(gap):
    vectors, forms, queries = gap
    right = [[number + 30] for number in range(30)]  # only the picture is right
    before = form_balance(queries @ vectors.T, right, forms, k=10)
    centring = Centring.of_catalogue(vectors, forms)
    centred = centring(queries, ["t"] * 30) @ centring(vectors, forms).T
    after = form_balance(centred, right, forms, k=10)
    assert before["t"].results == 1
    assert before["i"].found == 0
    assert after["i"].results == pytest.approx(0.5, abs=0.1)
    assert after["i"].found > 0.9
    assert centring.gap["t, i" if "t, i" in centring.gap else "i, t"] > 1


def test_centred_vectors_are_those_of_the_formula(gap):
    vectors, forms, _ = gap
    centring = Centring.of_catalogue(vectors, forms)
    for number in (0, 45):
        same = [row for row, form in zip(vectors, forms, strict=True) if form == forms[number]]
        wanted = vectors[number] - sum(same) / len(same)
        found = centring(vectors[[number]], [forms[number]])[0]
        assert found == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-6)
    again = Centring.of_dict(centring.as_dict())
    assert np.array_equal(again(vectors, forms), centring(vectors, forms))
    assert dict(again.counts) == {"t": 30, "i": 30}


def test_a_form_of_few_products_has_no_mean_and_does_not_change(gap):
    vectors, forms, _ = gap
    few = ["mm"] * 19 + forms[19:]
    centring = Centring.of_catalogue(vectors, few)
    assert set(centring.means) == {"i"}
    assert np.allclose(centring(vectors, few)[:30], vectors[:30], atol=1e-6)


@pytest.mark.parametrize("kind", [ProductRow, StoredProduct])
def test_the_form_of_a_product_is_what_it_contains(kind):
    found = [
        kind("a", title="hat"),
        kind("b", images=("x.jpg",)),
        kind("c", category=("A",), images=("x.jpg",)),
        kind("d"),
    ]
    assert [content_form(product) for product in found] == ["t", "i", "mm", ""]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: form_balance(np.ones((2, 3)), [[0]], ["t"] * 3), r"found scores \(2, 3\), 1 lists of right answers"),
        (lambda: form_balance(np.ones((0, 3)), [], ["t"] * 3), "at least one query"),
        (lambda: form_balance(np.ones((1, 3)), [[0]], ["t"] * 3, k=0), "k=0"),
        (lambda: Centring.of_catalogue(np.ones((2, 3)), ["t"]), "forms: found 1 for 2 vectors"),
        (lambda: Centring.of_catalogue(np.ones((1, 3)), ["text"]), "forms: found 'text'; expected some of mm, t, i"),
    ],
)
def test_what_does_not_fit_together_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
