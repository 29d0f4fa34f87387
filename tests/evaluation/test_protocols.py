"""The metrics of the papers' protocols against references: TREC's program, scikit-learn and loops written from the papers."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
from sklearn.metrics import accuracy_score, ndcg_score, precision_recall_fscore_support, top_k_accuracy_score

from evaluation.metrics import (
    agreement_at,
    classification_scores,
    mean_reciprocal_rank,
    ndcg_at,
    recall_at,
    search_ndcg,
    search_ranks,
)

CUTOFFS = (1, 3, 5, 10)


def unit(rng: np.random.Generator, count: int, width: int = 4, *, ties: bool = False) -> np.ndarray:
    """Rows; of small whole numbers with `ties`, so that many dot products are equal, exactly."""
    if ties:
        return rng.integers(-2, 3, (count, width)).astype(np.float64)
    vectors = rng.normal(size=(count, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def case(seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray, list[dict[int, float]], list[list[int]]]:
    """Queries, gallery, graded answers (one to five), and references that are left out (none to four)."""
    rng = np.random.default_rng(seed)
    queries, gallery = unit(rng, 20, ties=ties), unit(rng, 30, ties=ties)
    gains, exclude = [], []
    for _ in range(20):
        order = rng.permutation(30).tolist()
        answers = order[: rng.integers(1, 6)]
        gains.append({place: float(rng.integers(1, 4)) for place in answers})
        exclude.append(order[-int(rng.integers(1, 5)) :] if rng.random() < 0.7 else [])
    return queries, gallery, gains, exclude


def walked(score: np.ndarray, gains: dict[int, float], left_out: list[int]) -> list[int]:
    """The ranking, worst case first among equal scores."""
    kept = [place for place in range(len(score)) if place not in left_out]
    return sorted(kept, key=lambda place: (-score[place], gains.get(place, 0.0)))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_ndcg_of_a_search_equals_a_walk_down_the_ranking(seed: int, ties: bool) -> None:
    queries, gallery, gains, exclude = case(seed, ties=ties)
    found = search_ndcg(queries, gallery, gains, exclude, CUTOFFS)
    for row in range(len(queries)):
        ranking = walked(gallery @ queries[row], gains[row], exclude[row])
        for k in CUTOFFS:
            dcg = sum(gains[row].get(place, 0.0) / np.log2(2 + rank) for rank, place in enumerate(ranking[:k]))
            best = sorted(gains[row].values(), reverse=True)[:k]
            ideal = sum(gain / np.log2(2 + rank) for rank, gain in enumerate(best))
            assert found[k][row] == pytest.approx(dcg / ideal)


@pytest.mark.parametrize("seed", range(4))
def test_ndcg_equals_scikit_learn_and_the_dense_kernel(seed: int) -> None:
    queries, gallery, gains, _ = case(seed, ties=False)
    gain_QG = np.zeros((len(queries), len(gallery)))
    for row, found in enumerate(gains):
        gain_QG[row, list(found)] = list(found.values())
    score_QG = queries @ gallery.T
    ours = search_ndcg(queries, gallery, gains, None, CUTOFFS)
    for k in CUTOFFS:
        assert ours[k] == pytest.approx(ndcg_at(score_QG, gain_QG, k))
        assert ours[k].mean() == pytest.approx(ndcg_score(gain_QG, score_QG, k=k))


@pytest.mark.parametrize("seed", range(4))
def test_ndcg_reciprocal_rank_and_recall_equal_trecs_program(seed: int) -> None:
    queries, gallery, gains, exclude = case(seed, ties=False)
    scores = queries @ gallery.T
    judged = {str(row): {str(place): int(gain) for place, gain in found.items()} for row, found in enumerate(gains)}
    run = {
        str(row): {str(place): float(scores[row, place]) for place in range(30) if place not in exclude[row]}
        for row in range(20)
    }
    asked = {"recip_rank", "ndcg_cut.1,3,5,10", "success.1,5,10"}
    found = pytrec_eval.RelevanceEvaluator(judged, asked).evaluate(run)
    ranks = search_ranks(queries, gallery, [list(one) for one in gains], exclude)
    ours = search_ndcg(queries, gallery, gains, exclude, CUTOFFS)
    assert mean_reciprocal_rank(ranks) == pytest.approx(np.mean([one["recip_rank"] for one in found.values()]))
    for k in (1, 5, 10):
        assert recall_at(ranks, k) == pytest.approx(np.mean([one[f"success_{k}"] for one in found.values()]))
    for k in CUTOFFS:
        assert ours[k] == pytest.approx([found[str(row)][f"ndcg_cut_{k}"] for row in range(20)])


def test_what_cannot_be_graded_is_refused_and_what_is_left_out_counts_nothing() -> None:
    one = np.eye(2)
    with pytest.raises(ValueError, match="expected answers with gains above 0"):
        search_ndcg(one, one, [{0: 1.0}, {}])
    with pytest.raises(ValueError, match="gains above 0"):
        search_ndcg(one, one, [{0: 1.0}, {1: 0.0}])
    assert search_ndcg(one, one, [{0: 1.0}, {1: 2.0}], [[0], []], (1,))[1].tolist() == [0.0, 1.0]


def relaxed_by_hand(similarity: np.ndarray, truth: list[list[int]], k: int = 10) -> dict[str, float]:
    """MOON's rule, written as it is said: right if the true label is among the k first; then the prediction is the true label,
    otherwise the first one; accuracy and macro precision, recall and F1 are of these predictions. Ties go against the model."""
    predicted, true = [], []
    for row, labels in zip(similarity, truth, strict=True):
        ranking = sorted(range(len(row)), key=lambda label: (-row[label], label in labels))
        found = [label for label in ranking[:k] if label in labels]
        best = max(labels, key=lambda label: row[label])
        wrong = next((label for label in ranking if label not in labels), ranking[0])
        predicted.append(best if found else wrong)
        true.append(best if found else labels[0])
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, labels=sorted(set(true)), average="macro", zero_division=0.0
    )
    return {"k": k, "accuracy": accuracy_score(true, predicted), "precision": precision, "recall": recall, "f1": f1}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_relaxed_figures_equal_a_loop_written_from_the_paper(seed: int, several: bool, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    items, labels = unit(rng, 80, ties=ties), unit(rng, 25, ties=ties)
    truth = [
        rng.permutation(20)[: rng.integers(1, 4) if several else 1].tolist() for _ in range(80)
    ]  # 5 labels are of none
    scores = classification_scores(items, labels, truth, resamples=2)
    assert scores["relaxed"] == pytest.approx(relaxed_by_hand(items @ labels.T, truth))
    assert scores["relaxed"]["accuracy"] == scores["top10"]
    strict = relaxed_by_hand(items @ labels.T, truth, k=1)
    for name, metric in (("top1", "accuracy"), ("precision", "precision"), ("recall", "recall"), ("f1", "f1")):
        assert scores[name] == pytest.approx(strict[metric])


def test_top_k_equals_scikit_learn_and_few_labels_have_no_relaxed_figures() -> None:
    rng = np.random.default_rng(0)
    items, labels = unit(rng, 60), unit(rng, 14)
    truth = rng.integers(0, 14, 60)
    scores = classification_scores(items, labels, [[int(one)] for one in truth], resamples=2)
    similarity = items @ labels.T
    assert scores["top10"] == pytest.approx(top_k_accuracy_score(truth, similarity, k=10, labels=range(14)))
    assert scores["top1"] == pytest.approx(top_k_accuracy_score(truth, similarity, k=1, labels=range(14)))
    assert classification_scores(items, labels[:10], [[int(one) % 10] for one in truth], resamples=2)["relaxed"] is None


@pytest.mark.parametrize("levels", [3, 1000])  # few scores: many ties
@pytest.mark.parametrize("k", [1, 4, 50])
def test_agreement_equals_a_walk_down_the_ranking(levels: int, k: int) -> None:
    rng = np.random.default_rng(k)
    score = rng.integers(0, levels, (40, 20)).astype(float)
    agree, left_out = rng.random((40, 20)) < 0.3, rng.random((40, 20)) < 0.2
    left_out[0] = True
    expected = []
    for row in range(40):
        kept = [place for place in range(20) if not left_out[row, place]]
        kept.sort(key=lambda place, row=row: (-score[row, place], agree[row, place]))
        expected.append(np.mean([agree[row, place] for place in kept[:k]]) if kept else np.nan)
    assert agreement_at(score, agree, left_out, k) == pytest.approx(np.asarray(expected), nan_ok=True)
    with pytest.raises(ValueError, match="k of 1 or more"):
        agreement_at(score, agree, left_out, 0)
