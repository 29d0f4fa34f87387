"""The ranks of single queries in a results file say what the scores say, and the digests whether two files were asked alike."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.benchmarks.retrieval import evaluate_retrieval
from evaluation.per_query import QueryValues, distinct, gallery_digest, pack, product_digest, query_digest, unpack
from product_data.duplicates import EqualProducts
from product_data.tables import ProductRow, QueryRow, load_tables
from retrieval.encode import VectorCache, load_for_evaluation


def values(ranks, digests=("a", "b", "c"), **more):
    given = {"asked": "text", "gallery": "g", "products": 9, "ndcg": {}} | more
    names = {f"q{number}": digest for number, digest in enumerate(digests)}
    return QueryValues(digests=names, rank_Q=np.array(ranks, dtype=float), **given)


def test_what_is_packed_is_unpacked_also_where_a_direction_does_not_rank_every_query():
    graded = {5: np.array([0.25, 1.0, 0.6309297535714575])}
    fewer = QueryValues("text", {"q2": "c", "q0": "a"}, "h", 4, np.array([1.0, 3.0]), {5: np.array([1.0, 0.5])})
    packed = pack({"t2mm": values([4, 1, 2], ndcg=graded), "t2i": fewer}, ["t2mm"])
    assert packed["asked"] == {"text": {"q0": "a", "q1": "b", "q2": "c"}}
    assert packed["directions"]["t2mm"]["rank"] == "4 1 2"
    assert packed["directions"]["t2i"] == {"asked": "text", "gallery": "h", "products": 4, "rank": "3 - 1"}
    found = unpack(packed, (5,))
    assert found["t2mm"].rank_Q.tolist() == [4, 1, 2]
    assert found["t2mm"].ndcg[5] == pytest.approx(graded[5], abs=1e-6)
    assert (dict(found["t2i"].digests), found["t2i"].rank_Q.tolist()) == ({"q0": "a", "q2": "c"}, [3, 1])
    assert found["t2i"].ndcg[5].tolist() == [0.5, 1.0]
    packed["directions"]["t2i"]["rank"] = "3 1"
    with pytest.raises(ValueError, match="t2i: found 2 ranks; expected 3"):
        unpack(packed, ())


def test_each_metric_is_the_mean_of_its_values():
    one = values([1, 4, 2], ndcg={3: np.array([1.0, 0.0, 0.5])})
    assert one.values("R@2").tolist() == [1, 0, 1]
    assert one.values("MRR").tolist() == [1, 0.25, 0.5]
    assert one.values("nDCG@3").tolist() == [1, 0, 0.5]
    with pytest.raises(KeyError):
        one.values("nDCG@4")


@pytest.mark.parametrize("graded", [False, True])
def test_the_ranks_of_an_evaluation_give_its_scores(tiny_moon, graded):
    model, processor = load_for_evaluation(tiny_moon("qwen3_vl", trained=True))
    tables = load_tables("catalogue", products=24, image_size=64).select(None)
    queries = [
        replace(tables.queries[0], query_id=tables.queries[3].query_id),
        *tables.queries[1:],
    ]  # one id, two queries
    if graded:
        others = [product.product_id for product in tables.products[:2]]
        text = next(place for place, query in enumerate(queries) if query.type == "text")
        queries[text] = replace(queries[text], positives=tuple(others), positive_weights=(1.0, 0.5))
    cache = VectorCache(model, processor, tables.products, queries, progress=False)
    found = evaluate_retrieval(cache, cutoffs=(1, 3), resamples=1)
    scored = {name: one for name, one in (found["scores"] | found["image_only"]).items() if one is not None}
    unpacked = unpack(found["per_query"], found["cutoffs"])
    assert set(unpacked) == set(scored)
    assert ("nDCG@3" in found["per_query"]["directions"]["t2mm"]) or not graded
    for name, scores in scored.items():
        own = unpacked[name]
        assert (len(own.rank_Q), own.products) == (scores["queries"], scores["gallery"])
        for metric in ("R@1", "R@3", "MRR", "nDCG@1", "nDCG@3"):
            assert own.values(metric).mean() == pytest.approx(scores[metric], abs=1e-6), (name, metric)


def test_digests_know_what_makes_another_question_and_nothing_else():
    query = QueryRow("q", "text", "red shoe", positives=("a", "b"))
    assert query_digest(query) == query_digest(replace(query, query_id="r", positives=("b", "a"), split="test"))
    for change in (
        {"text": "blue shoe"},
        {"positives": ("a",)},
        {"negatives": ("c",)},
        {"positive_weights": (1.0, 0.5)},
    ):
        assert query_digest(query) != query_digest(replace(query, **change))
    shoe = ProductRow("a", "Shoe", images=("here/a.jpg",))
    assert product_digest(shoe) == product_digest(replace(shoe, images=("there/a.jpg",)))
    assert product_digest(shoe) != product_digest(replace(shoe, title="Boot"))
    assert distinct(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


def test_a_gallerys_digest_is_that_of_its_products_whatever_their_order():
    rows = [ProductRow("a", "Shoe"), ProductRow("b", "Boot"), ProductRow("c", "Hat", group="hats")]

    def digest(products, kept=None):
        places = range(len(products)) if kept is None else kept
        return gallery_digest(products, places, EqualProducts(products), "mm")

    whole = digest(rows)
    assert digest(rows[::-1]) == whole
    assert digest([*rows, ProductRow("d", "Cap")], kept=(0, 1, 2)) == whole
    assert digest(rows[:2]) != whole
    assert digest([rows[0], rows[1], replace(rows[2], title="Cap")]) != whole
    variants = [replace(rows[0], group="hats"), rows[1], rows[2]]  # other variants are left out of rankings
    assert digest(variants) != whole
