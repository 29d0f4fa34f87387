"""The study of decisions on small populations: promises hold, naive thresholds do not, similarity by BM25."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evaluation.baselines.bm25 import bm25_scores
from evaluation.decisions_study import (
    bm25_features,
    measure_decisions,
    naive_threshold,
    on_test_part,
    promises_held,
    read_titles,
    sentences,
    simulated,
)

TITLES = [
    f"{brand} {thing} {number}" for brand in ("Acme", "Noru") for thing in ("boot", "watch") for number in range(10)
]


@pytest.fixture(scope="module")
def titles(tmp_path_factory):
    """Labelled pairs in three parts; the same product has the same words in another order."""
    folder = tmp_path_factory.mktemp("titles")
    rng = np.random.default_rng(0)
    for part, count in (("train", 150), ("valid", 220), ("test", 150)):
        lines = []
        for _ in range(count):
            left, other = rng.choice(TITLES, 2, replace=False)
            same = rng.random() < 0.5
            right = " ".join(reversed(str(left).split())) if same else other
            lines.append(f"{left},{right} now,{int(same)}")
        (folder / f"shoes_{part}.csv").write_text("\n".join(["left_title,right_title,same_product", *lines]) + "\n")
    return folder


def test_promises_from_samples_hold_and_naive_thresholds_do_not():
    population = simulated(pairs=20_000)
    found = promises_held(population, labelled=800, precision=0.9, repeats=60)
    assert found["fixed_sequence"]["promised"] > 0.4
    assert found["fixed_sequence"]["held"] >= 0.93
    assert found["fixed_sequence"]["mean_precision"] > 0.9
    assert found["naive"]["promised"] == 1
    assert found["naive"]["held"] < 0.8


def test_a_naive_threshold_is_the_lowest_with_that_share():
    score, same = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
    assert naive_threshold(score, same, 0.75) == 0.6
    assert naive_threshold(score, same, 0.9) == 0.8
    assert naive_threshold(score, ~same, 0.9) is None


def test_similarity_by_bm25_is_symmetric_and_one_for_equal_words():
    titles = ["red boot", "boot red", "red shoe", "blue hat"]
    pairs = np.array([(0, 1), (0, 2), (2, 0), (0, 3)])
    features = bm25_features(titles, pairs, k=2)
    score = bm25_scores(titles, titles)
    share = score / np.diag(score)[:, None]
    slow = [0.5 * (share[a, b] + share[b, a]) for a, b in pairs]
    np.testing.assert_allclose(features[:, 0], slow)
    assert features[0, 0] == pytest.approx(1)
    assert features[1].tolist() == features[2].tolist()
    near = [np.sort([0.5 * (share[a, b] + share[b, a]) for b in range(4) if b != a])[-2:].mean() for a in range(4)]
    assert features[3, 1] == pytest.approx(slow[3] - 0.5 * (near[0] + near[3]))


def test_thresholds_from_training_titles_are_applied_to_the_test_part(titles):
    data = read_titles(titles, "shoes")
    assert [int((data.part_P == part).sum()) for part in ("train", "valid", "test")] == [150, 220, 150]
    rows = on_test_part(data, bm25_features(data.titles, data.pair_P2))
    kept = [row for row in rows if row["threshold"] is not None]
    assert kept
    for row in kept:
        assert row["test_precision"] >= row["test_lower_bound"]
        assert 0 < row["test_recall"] <= 1


def test_the_whole_study_gives_json_and_sentences(titles, tiny_moon):
    # The file of watches is that of shoes: the study measures both.
    for part in ("train", "valid", "test"):
        (titles / f"watches_{part}.csv").write_bytes((titles / f"shoes_{part}.csv").read_bytes())
    results = measure_decisions(str(tiny_moon(trained=True)), titles=titles, repeats=3, products=12)
    assert json.loads(json.dumps(results, allow_nan=False))["titles"]["shoes"]["models"].keys() == {"Moon", "BM25"}
    assert [(entry["scene"], entry["near_twins"]) for entry in results["twins"]] == [
        ("studio", False),
        ("studio", True),
        ("street", False),
    ]
    words = sentences(results)
    assert len(words) == 5 + 3 + 2 * 2 * 3
    assert all(word.endswith(".") for word in words)
