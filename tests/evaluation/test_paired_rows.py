"""Models are compared query by query, and one is ahead only where the paired interval leaves out zero."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.benchmarks.attributes import evaluate_attributes
from evaluation.benchmarks.classification import evaluate_classification
from evaluation.benchmarks.retrieval import evaluate_retrieval
from evaluation.data.tables import load_tables
from evaluation.encode import VectorCache, load_for_evaluation
from evaluation.metrics import ndcg_at
from evaluation.paired_rows import MEAN_OF_KEYS, Row, all_rows, compare_rows

NAMES = ("ours", "theirs")


@pytest.fixture(scope="module")
def cache(tiny_moon):
    model, processor = load_for_evaluation(tiny_moon("qwen3_vl", trained=True))
    tables = load_tables("catalogue", products=36, image_size=64).select(None)
    tables.products[0] = replace(tables.products[0], category=tables.products[0].category[:1])
    text = next(place for place, query in enumerate(tables.queries) if query.type == "text")
    graded = replace(
        tables.queries[text], positives=("unknown", tables.products[0].product_id), positive_weights=(1.0, 0.5)
    )
    tables.queries[text] = graded
    return VectorCache(model, processor, tables.products, tables.queries, progress=False)


@pytest.fixture(scope="module")
def rows(cache):
    return all_rows(cache, least=1)


def test_each_row_has_the_score_of_the_evaluation(cache, rows):
    values = {row.key: row.value_N.mean() for row in rows}
    assert len(values) == len(rows)
    assert all(len(row.names) == len(row.value_N) for row in rows)
    found = evaluate_retrieval(cache, resamples=1)
    for name, scores in (found["scores"] | found["image_only"]).items():
        forms = [form for task, what, form, _ in values if (task, what) == ("retrieval", name)]
        for k in (1, 10):
            assert values["retrieval", name, forms[0], f"R@{k}"] == pytest.approx(scores[f"R@{k}"], abs=1e-12)
    for form, levels in evaluate_classification(cache, resamples=1).items():
        for name in ("level_1", "level_3"):
            what = name.replace("_", " ")
            assert values["classification", what, form, "top-1"] == pytest.approx(levels[name]["top1"], abs=1e-12)
    for form, keys in evaluate_attributes(cache, resamples=1).items():
        for key, scores in keys["keys"].items():
            assert values["attributes", key, form, "top-1"] == pytest.approx(scores["top1"], abs=1e-12)
        assert values["attributes", MEAN_OF_KEYS, form, "top-1"] == pytest.approx(keys["mean"]["top1"], abs=1e-12)


def test_rows_of_few_queries_are_left_out_and_the_mean_is_over_the_keys_that_are_left(cache, rows):
    sizes = {row.key: len(row.names) for row in rows}
    least = 1 + min(sizes.values())
    kept = {row.key: row for row in all_rows(cache, least=least)}
    assert set(kept) == {key for key, size in sizes.items() if size >= least} < set(sizes)
    keys = [row for row in kept.values() if row.task == "attributes" and row.form == "i" and row.what != MEAN_OF_KEYS]
    mean = kept["attributes", MEAN_OF_KEYS, "i", "top-1"]
    assert mean.value_N.mean() == pytest.approx(np.mean([row.value_N.mean() for row in keys]), abs=1e-12)


def test_paths_of_several_lengths_have_a_row_for_the_deepest(rows):
    by_key = {row.key: row for row in rows}
    assert len(by_key["classification", "deepest", "i", "top-1"].names) == 36
    assert len(by_key["classification", "level 3", "i", "top-1"].names) == 35


def test_chance_and_words_stand_beside_what_a_model_finds(rows):
    by_key = {row.key: row for row in rows}
    words = by_key["retrieval", "t2mm", "mm", "R@10"]
    assert words.choices == 36
    assert words.word_N.shape == words.value_N.shape
    assert words.word_N.mean() > words.chance
    assert by_key["retrieval", "t2i", "i", "R@10"].word_N is None
    labels = by_key["classification", "level 1", "i", "top-1"]
    assert labels.chance == pytest.approx(1 / labels.choices)


def test_graded_answers_are_scored_by_their_grades(rows):
    (graded,) = [row for row in rows if row.metric == "nDCG@10" and row.what == "t2mm"]
    assert graded.word_N.shape == graded.value_N.shape
    assert 0 <= graded.value_N.min() <= graded.value_N.max() <= 1


def test_ndcg_is_that_of_the_formula_and_ties_count_against():
    gain = np.array([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]])
    score = np.array([[0.1, 0.9, 0.5, 0.2], [0.3, 0.3, 0.3, 0.1]])
    best = 1 / np.log2(2) + 0.5 / np.log2(3)
    np.testing.assert_allclose(ndcg_at(score, gain, 2), [0.5 / np.log2(3) / best, 0.0])
    np.testing.assert_allclose(ndcg_at(score, gain, 10), [(0.5 / np.log2(3) + 1 / np.log2(5)) / best, 1 / np.log2(4)])
    with pytest.raises(ValueError, match="an answer for each query"):
        ndcg_at(score, gain * [[1], [0]], 2)


def row(values, **changes):
    values = np.asarray(values, dtype=float)
    names = tuple(f"q{number}" for number in range(len(values)))
    return replace(Row("retrieval", "i2mm", "mm", "R@1", values, names, 10, 0.1), **changes)


def test_a_model_is_ahead_only_where_the_paired_interval_leaves_out_zero():
    base = np.arange(200) % 2
    better = base.copy()
    better[:20:2] = 1  # ten more, none fewer: the two intervals overlap, the paired one leaves out 0
    for ours, theirs, ahead in ((better, base, "ours"), (base, better, "theirs"), (base, base, None)):
        (found,) = compare_rows([row(ours)], [row(theirs)], NAMES)
        assert found["ahead"] == ahead
        assert found["difference"]["difference"] == pytest.approx(ours.mean() - theirs.mean())
        low, high = found["models"]["ours"]["interval"]
        assert low < found["models"]["theirs"]["value"] < high
    swapped = base[::-1].copy()  # as many found, of other queries
    (found,) = compare_rows([row(swapped)], [row(base)], NAMES)
    assert found["ahead"] is None
    assert found["difference"]["interval"][0] < 0 < found["difference"]["interval"][1]


def test_words_alone_are_reported_and_never_ahead():
    (found,) = compare_rows([row([0, 0], word_N=np.ones(2))], [row([0, 0], word_N=np.ones(2))], NAMES)
    assert found["models"]["BM25"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert found["ahead"] is None


def test_other_rows_or_queries_are_refused():
    with pytest.raises(ValueError, match="different rows"):
        compare_rows([row([1, 0])], [row([1, 0], what="t2mm")], NAMES)
    with pytest.raises(ValueError, match="different queries"):
        compare_rows([row([1, 0])], [row([1, 0], names=("q0", "q7"))], NAMES)
