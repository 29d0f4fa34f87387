"""Metrics against slow references, ties, exclusions, intervals, and the metric of `evaluate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from evaluation.metrics import (
    bootstrap_interval,
    chance_recall,
    classification_scores,
    macro_scores,
    mean_reciprocal_rank,
    paired_difference,
    rank_score,
    ranks,
    recall_at,
    retrieval_scores,
    search_ranks,
)


def slow_rank(scores: np.ndarray, right: set[int], left_out: set[int]) -> float:
    """Sort the gallery, wrong before right at equal scores, and walk down to the first right answer."""
    kept = [item for item in range(len(scores)) if item not in left_out]
    kept.sort(key=lambda item: (-scores[item], item in right))
    return next((place for place, item in enumerate(kept, start=1) if item in right), np.inf)


def test_ranks_equal_a_sorted_walk_with_ties_and_exclusions() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.integers(0, 6, (60, 17)).astype(np.float32)  # few values: many ties
    positives, exclude = rng.random((60, 17)) < 0.15, rng.random((60, 17)) < 0.1
    expected = [
        slow_rank(similarity[row], set(np.flatnonzero(positives[row])), set(np.flatnonzero(exclude[row])))
        for row in range(60)
    ]
    found = ranks(similarity, positives, exclude)
    assert np.array_equal(found, expected)
    assert np.isinf(found).any()
    assert len(set(found)) > 5


def test_a_model_that_scores_everything_alike_finds_nothing() -> None:
    rank = ranks(np.ones((4, 20)), np.eye(4, 20, dtype=bool))
    assert np.array_equal(rank, [20, 20, 20, 20])
    assert recall_at(rank, 10) == 0.0


def test_another_right_answer_is_not_counted_before_the_first() -> None:
    assert ranks(np.array([[3.0, 2.0, 1.0]]), np.array([[True, True, False]])).item() == 1
    assert ranks(np.array([[3.0, 2.0, 1.0]]), np.array([[False, True, True]])).item() == 2


def test_ranks_refuse_nan_and_other_shapes() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ranks(np.array([[np.nan, 1.0]]), np.array([[True, False]]))
    with pytest.raises(ValueError, match="shapes differ"):
        ranks(np.ones((1, 2)), np.ones((1, 3), dtype=bool))


def test_blockwise_search_equals_one_matrix() -> None:
    rng = np.random.default_rng(1)
    query, gallery = rng.standard_normal((1500, 4)), rng.standard_normal((30, 4))
    positives = [[int(row % 30)] for row in range(1500)]
    exclude = [[int((row + 1) % 30)] for row in range(1500)]
    mask, left_out = np.zeros((1500, 30), bool), np.zeros((1500, 30), bool)
    for row in range(1500):
        mask[row, positives[row]] = True
        left_out[row, exclude[row]] = True
    assert np.array_equal(search_ranks(query, gallery, positives, exclude), ranks(query @ gallery.T, mask, left_out))
    assert len(search_ranks(query[:0], gallery, [])) == 0


def test_recall_and_reciprocal_rank_by_hand() -> None:
    rank = np.array([1.0, 2.0, 10.0, np.inf])
    assert [recall_at(rank, k) for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert mean_reciprocal_rank(rank) == pytest.approx((1 + 0.5 + 0.1 + 0) / 4)
    scores = retrieval_scores(rank)
    assert scores["R@5"] == 0.5
    assert scores["R@5_interval"][0] <= 0.5 <= scores["R@5_interval"][1]


def test_chance_is_k_over_n_for_one_right_answer_and_agrees_with_shuffling_for_several() -> None:
    assert chance_recall(np.array([1]), np.array([500]), 10) == pytest.approx(10 / 500)
    assert chance_recall(np.array([1, 3]), np.array([4, 3]), 5) == 1.0
    rng = np.random.default_rng(0)
    found = [bool((rng.permutation(30)[:5] < 4).any()) for _ in range(20000)]
    assert chance_recall(np.array([4]), np.array([30]), 5) == pytest.approx(np.mean(found), abs=0.01)
    with pytest.raises(ValueError, match="at least one query"):
        chance_recall(np.zeros(0), np.zeros(0), 1)


def test_scores_of_nothing_are_refused() -> None:
    for call in (
        lambda: recall_at(np.zeros(0), 1),
        lambda: recall_at(np.ones(1), 0),
        lambda: bootstrap_interval(np.zeros(0)),
    ):
        with pytest.raises(ValueError, match="expected (k of at least 1, and )?at least one"):
            call()
    with pytest.raises(ValueError, match="at least one"):
        mean_reciprocal_rank(np.zeros(0))
    with pytest.raises(ValueError, match="each with a true label"):
        classification_scores(np.ones((1, 2)), np.ones((2, 2)), [[]])


def test_the_bootstrap_interval_is_seeded_and_has_the_width_of_theory() -> None:
    values = (np.arange(400) < 100).astype(float)  # share 0.25, standard error 0.02165
    low, high = bootstrap_interval(values, resamples=2000, seed=3)
    assert (low, high) == bootstrap_interval(values, resamples=2000, seed=3)
    assert low == pytest.approx(0.25 - 1.96 * 0.02165, abs=0.006)
    assert high == pytest.approx(0.25 + 1.96 * 0.02165, abs=0.006)


def test_a_paired_difference_is_narrower_than_its_two_sides() -> None:
    rng = np.random.default_rng(0)
    before = (rng.random(300) < 0.4).astype(float)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:15]] = 1.0
    result = paired_difference(before, after)
    low, high = result["interval"]
    assert result["difference"] == pytest.approx(0.05)
    assert 0 < low < 0.05 < high < 0.09
    with pytest.raises(ValueError, match="same queries"):
        paired_difference(before, after[:-1])


def test_classification_agrees_with_a_slow_count_and_with_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    items, labels = rng.standard_normal((80, 6)), rng.standard_normal((12, 6))
    truth = rng.integers(0, 12, 80)
    scores = classification_scores(items, labels, [[int(label)] for label in truth])
    order = np.argsort(-(items @ labels.T), axis=1)
    assert scores["top1"] == pytest.approx(np.mean(order[:, 0] == truth))
    assert scores["top10"] == pytest.approx(np.mean([truth[row] in order[row, :10] for row in range(80)]))
    assert scores["f1"] == pytest.approx(f1_score(truth, order[:, 0], average="macro", zero_division=0))
    assert 0 < scores["top1"] < scores["top10"] < 1
    assert (scores["items"], scores["labels"]) == (80, 12)


def test_classification_by_a_constant_model_is_wrong_and_few_labels_have_no_top10() -> None:
    scores = classification_scores(np.ones((6, 2)), np.ones((3, 2)), [[0], [1], [2]] * 2)
    assert (scores["top1"], scores["f1"], scores["top10"]) == (0.0, 0.0, None)


def test_an_item_with_two_true_labels_is_right_with_either() -> None:
    labels = np.eye(3)
    scores = classification_scores(labels[[0, 1, 2]], labels, [[0, 1], [0, 1], [0, 1]])
    assert scores["top1"] == pytest.approx(2 / 3)


def test_macro_scores_of_a_classification_come_from_a_local_metric_of_evaluate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from evaluation.metric_classes import MacroScores

    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    asked: list[int] = []
    compute = MacroScores._compute

    def counted(self: MacroScores, predictions: list[int], references: list[int]) -> dict[str, float]:
        asked.append(len(references))
        return compute(self, predictions, references)

    monkeypatch.setattr(MacroScores, "_compute", counted)
    rng = np.random.default_rng(5)
    items, labels, truth = rng.standard_normal((90, 6)), rng.standard_normal((14, 6)), rng.integers(0, 14, 90)
    state = np.random.get_state()[1].copy()
    scores = classification_scores(items, labels, [[int(label)] for label in truth], resamples=10)
    assert asked == [90]
    assert np.array_equal(np.random.get_state()[1], state)  # what a training draws next is not changed
    named = (items @ labels.T).argmax(axis=1)
    found = (scores["precision"], scores["recall"], scores["f1"])
    assert found == pytest.approx(macro_scores(truth, named, 14), rel=1e-12)  # which the intervals are drawn with
    assert not list(tmp_path.iterdir())


def test_a_metric_of_evaluate_takes_its_batches_one_by_one() -> None:
    from evaluation.metric_classes import MacroScores

    whole = MacroScores().compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 5])
    assert whole == pytest.approx({"precision": 2 / 3, "recall": 1.5 / 3, "f1": (1 + 2 / 3 + 0) / 3})
    metric = MacroScores()
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[2, 2], references=[1, 5])
    assert metric.compute() == whole


def test_the_rank_score_is_one_at_the_top_and_zero_at_the_bottom_and_counts_halvings_alike():
    assert rank_score(np.array([1.0]), np.array([50])) == 1.0
    assert rank_score(np.array([50.0]), np.array([50])) == pytest.approx(0.0)
    steps = [rank_score(np.array([rank]), np.array([64])) for rank in (8.0, 4.0, 2.0)]
    assert steps[1] - steps[0] == pytest.approx(steps[2] - steps[1]) == pytest.approx(np.log(2) / np.log(64))


def test_a_query_without_its_answer_in_the_ranking_scores_nothing_and_a_single_candidate_everything():
    assert rank_score(np.array([np.inf, 1.0]), np.array([10, 1])) == 0.5
    with pytest.raises(ValueError, match="0 queries"):
        rank_score(np.zeros(0), np.zeros(0))


def test_classification_says_what_chance_and_the_most_common_label_would_give() -> None:
    rng = np.random.default_rng(0)
    items, labels = rng.normal(size=(40, 8)), rng.normal(size=(12, 8))
    truth = [[int(rng.integers(12))] for _ in range(30)] + [[3, 4, 4]] * 10
    scores = classification_scores(items, labels, truth, resamples=200)
    assert scores["top1_chance"] == pytest.approx((30 * 1 + 10 * 2) / 40 / 12)
    assert scores["top10_chance"] == pytest.approx((30 * 10 / 12 + 10 * (1 - 2 * 1 / (12 * 11))) / 40)
    most = max(sum(label in set(one) for one in truth) for label in range(12))
    assert scores["majority"] == pytest.approx(most / 40)
    for name in ("top1", "top10", "precision", "recall", "f1"):
        low, high = scores[f"{name}_interval"]
        assert low <= high
        assert 0 <= low <= scores[name] + 0.1
    named = (items @ labels.T).argmax(axis=1)
    assert scores["most_predicted"] == pytest.approx(max(np.bincount(named)) / 40)
    few = classification_scores(items, labels[:5], [[1]] * 40)
    assert few["top10"] is few["top10_interval"] is few["top10_chance"] is None


def test_macro_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import precision_recall_fscore_support

    rng = np.random.default_rng(1)
    for _ in range(20):
        truth, predicted = rng.integers(0, 6, 50), rng.integers(0, 9, 50)
        there = sorted(set(truth.tolist()))
        expected = precision_recall_fscore_support(truth, predicted, labels=there, average="macro", zero_division=0.0)
        assert macro_scores(truth, predicted, 9) == pytest.approx(expected[:3])
