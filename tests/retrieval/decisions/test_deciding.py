"""Decisions about a catalogue: candidates and scores against brute force, promises, chains, files and refusals."""

from __future__ import annotations

import csv
import itertools
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest

from product_data.errors import OptionError
from retrieval.decisions import files
from retrieval.decisions.deciding import (
    Catalogue,
    DecisionOptions,
    calibrate,
    decide,
    decided,
    read_catalogue,
    require_no_shift,
    sample_to_label,
    shifts,
)
from retrieval.decisions.errors import DecisionError
from retrieval.decisions.groups import join_pairs
from retrieval.decisions.labelled_pairs import LabelledPair, divide, read_labelled_pairs
from retrieval.decisions.pair_scores import PairScorer, nearest_neighbours
from retrieval.stores.exact import ExactStore
from retrieval.stores.interface import StoredProduct

PRODUCTS = 400


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def catalogue_of_twins(seed=0, products=PRODUCTS, noise=0.55, fingerprint="model-1"):
    """Return a catalogue in which product 2n and 2n + 1 are the same, apart from noise."""
    rng = np.random.default_rng(seed)
    vectors = np.repeat(unit(rng.normal(size=(products // 2, 24))), 2, axis=0)
    vectors = unit(vectors + noise * unit(rng.normal(size=vectors.shape)))
    facts = [
        StoredProduct(f"p{n:04}", title=f"thing {n // 2}", category=(("A",), ("B",))[n // 2 % 2], images=("gone.jpg",))
        for n in range(products)
    ]
    return Catalogue(facts, vectors, fingerprint)


def is_same(pair):
    return pair[0] // 2 == pair[1] // 2


def labels_of(catalogue, options, count):
    pairs = sample_to_label(catalogue, options, count)
    return [LabelledPair(*(str(one) for one in catalogue.ids[np.sort(pair)]), bool(is_same(pair))) for pair in pairs]


@pytest.fixture(scope="module")
def twins():
    return catalogue_of_twins()


def test_neighbours_and_scores_are_those_of_brute_force(twins):
    vectors = twins.vector_ND[:60]
    rows, cosines = nearest_neighbours(vectors, 4)
    every = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    for row in range(60):
        order = sorted((other for other in range(60) if other != row), key=lambda other: -every[row, other])[:4]
        assert rows[row].tolist() == order
        np.testing.assert_allclose(cosines[row], every[row, order], atol=1e-6)
    scorer = PairScorer.of(vectors, 4)
    pairs = {(min(row, other), max(row, other)) for row in range(60) for other in rows[row]}
    assert scorer.candidates().tolist() == sorted(map(list, pairs))
    for pair, (cosine, margin) in zip(scorer.candidates(), scorer.features(scorer.candidates()), strict=True):
        a, b = pair
        assert cosine == pytest.approx(every[a, b], abs=1e-6)
        assert margin == pytest.approx(every[a, b] - (cosines[a].mean() + cosines[b].mean()) / 2, abs=1e-6)
    near = scorer.candidates(0.5)
    assert 0 < len(near) < len(pairs)
    assert (scorer.features(near)[:, 0] >= 0.5).all()


def test_more_neighbours_than_products_are_all_of_them():
    rows, _ = nearest_neighbours(unit(np.eye(3) + 0.1), 10)
    assert rows.shape == (3, 2)


@pytest.mark.parametrize(
    ("vectors", "k", "words"),
    [
        (np.ones((1, 3)), 2, "at least two vectors"),
        (np.full((3, 3), np.nan), 2, "not finite"),
        (np.eye(3), 0, "expected 1 or more"),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(vectors, k, words):
    with pytest.raises(DecisionError, match=words):
        nearest_neighbours(vectors.astype(np.float32), k)


def test_decisions_keep_their_promise_and_find_most_twins(twins):
    options = DecisionOptions(seed=3)
    calibration = calibrate(twins, labels_of(twins, options, 800), options)
    assert not calibration.warnings
    decisions = decide(twins, calibration)
    same = np.array([is_same(pair) for pair in decisions.pair_P2])
    chosen = decisions.decision_P == "same"
    assert same[chosen].mean() >= 0.95
    assert chosen.sum() > 0.5 * PRODUCTS / 2
    assert same[decisions.decision_P == "different"].mean() <= 0.05
    assert (decisions.probability_P[chosen].min()) > decisions.probability_P[decisions.decision_P == "doubtful"].max(
        initial=0
    )
    assert [len(group.rows) for group in decisions.groups][-1] == 2


def test_promises_hold_over_many_samples_of_labels(twins):
    options = DecisionOptions(neighbours=3, precision=0.9, confidence=0.9)
    noisy = catalogue_of_twins(1, noise=0.7)
    made = broken = 0
    for seed in range(40):
        own = replace(options, seed=seed)
        calibration = calibrate(noisy, labels_of(noisy, own, 400), own)
        if calibration.same.threshold is not None:
            decisions = decide(noisy, calibration)
            same = np.array([is_same(pair) for pair in decisions.pair_P2[decisions.decision_P == "same"]])
            made, broken = made + 1, broken + (same.mean() < 0.9)
    assert made >= 20
    assert broken <= 8  # 4 are expected at most; more than 8 of 40 has a probability of 1.6 %


def test_labels_outside_the_candidates_and_unlike_them_are_reported(twins):
    options = DecisionOptions()
    labels = labels_of(twins, options, 600)
    easy = [label for label in labels if label.same] + [label for label in labels if not label.same][:60]
    far = LabelledPair("p0000", "p0399", same=False)
    calibration = calibrate(twins, [*easy, far], options)
    assert calibration.outside == 1
    assert "1 labelled pairs are not among the candidates" in calibration.warnings[0]
    assert "not a random sample" in calibration.warnings[1]
    with pytest.raises(DecisionError, match="none of them among"):
        calibrate(twins, [far], options)


def test_a_catalogue_like_the_labelled_one_is_decided_and_another_one_refused(twins, tmp_path):
    options = DecisionOptions()
    calibration = calibrate(twins, labels_of(twins, options, 400), options)
    files.write_calibration(tmp_path / "calibration.json", calibration)
    kept = files.read_calibration(tmp_path / "calibration.json")
    assert np.array(kept.labelled_scores).shape == (2, 400)
    require_no_shift(catalogue_of_twins(seed=5), kept)
    with pytest.raises(
        DecisionError, match="differ from its labelled pairs in cosine: median .*Label a sample of this"
    ):
        require_no_shift(catalogue_of_twins(seed=5, noise=1.0), kept)


def test_a_shift_is_the_distance_of_two_distribution_functions():
    rng = np.random.default_rng(0)
    labelled, others = rng.normal(size=(300, 2)), rng.normal(size=(500, 2)) + [0.0, 0.6]
    same, moved = shifts(labelled, others)
    places = np.sort(np.r_[labelled[:, 1], others[:, 1]])
    slow = max(abs((labelled[:, 1] <= place).mean() - (others[:, 1] <= place).mean()) for place in places)
    assert moved.distance == pytest.approx(slow)
    assert (same.feature, moved.feature) == ("cosine", "margin")
    assert moved.is_shift
    assert not same.is_shift
    assert "margin: median" in str(moved)


def test_few_labels_decide_nothing_and_say_what_is_missing(twins):
    options = DecisionOptions()
    labels = labels_of(twins, options, 800)
    few = [label for label in labels if label.same][:10] + [label for label in labels if not label.same][:30]
    calibration = calibrate(twins, few, options)
    assert calibration.same.threshold is None
    assert "needs at least 59 decided pairs" in calibration.same.sentence
    assert "same" not in set(decide(twins, calibration).decision_P)


def test_labels_of_one_kind_are_refused(twins):
    labels = [label for label in labels_of(twins, DecisionOptions(), 300) if not label.same]
    with pytest.raises(DecisionError, match="all of them different products"):
        calibrate(twins, labels, DecisionOptions())


def test_both_decisions_never_meet(twins):
    options = DecisionOptions(precision=0.6, confidence=0.6)
    calibration = calibrate(twins, labels_of(twins, options, 500), options)
    assert calibration.same.threshold is not None
    grid = np.linspace(0, 1, 1001)
    found = decided(grid, calibration.same, calibration.different)
    assert found[-1] == "same"
    if calibration.different.threshold is not None:
        assert 1 - calibration.different.threshold < calibration.same.threshold
        assert found[0] == "different"


def test_a_calibration_survives_its_file_and_refuses_another_model(twins, tmp_path):
    options = DecisionOptions()
    calibration = calibrate(twins, labels_of(twins, options, 500), options)
    files.write_calibration(tmp_path / "calibration.json", calibration)
    again = files.read_calibration(tmp_path / "calibration.json")
    assert again == calibration
    assert (decide(twins, again).decision_P == decide(twins, calibration).decision_P).all()
    with pytest.raises(DecisionError, match="'model-1'; expected 'model-2'"):
        decide(catalogue_of_twins(fingerprint="model-2"), again)


@pytest.mark.parametrize("text", [None, "no json", "{}", '{"format": 2}', '{"format": 1, "options": {}}'])
def test_a_calibration_that_cannot_be_read_is_refused(text, tmp_path):
    path = tmp_path / "calibration.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DecisionError, match="expected a calibration that moon3 decide wrote"):
        files.read_calibration(path)


def test_written_decisions_are_all_candidates_and_all_groups(twins, tmp_path):
    options = DecisionOptions()
    decisions = decide(twins, calibrate(twins, labels_of(twins, options, 800), options))
    files.write_decisions(tmp_path, twins, decisions)
    rows = pyarrow.parquet.read_table(tmp_path / files.PAIRS).to_pylist()
    assert len(rows) == len(decisions.pair_P2)
    assert [row["probability"] for row in rows] == sorted(decisions.probability_P, reverse=True)
    scores = {
        tuple(twins.ids[pair]): value for pair, value in zip(decisions.pair_P2, decisions.decision_P, strict=True)
    }
    assert {(row["left"], row["right"]): row["decision"] for row in rows} == scores
    with (tmp_path / files.GROUPS).open(encoding="utf-8") as stream:
        groups = list(csv.DictReader(stream))
    assert len(groups) == sum(len(group.rows) for group in decisions.groups)


def test_groups_are_connected_components_and_chains_are_found():
    pairs = np.array([(0, 1), (1, 2), (5, 6), (6, 7), (5, 7), (9, 8)])
    groups = join_pairs(pairs, 12)
    assert [group.rows for group in groups] == [(0, 1, 2), (5, 6, 7), (8, 9)]
    assert [group.undecided for group in groups] == [((0, 2),), (), ()]
    assert [group.is_chain for group in groups] == [True, False, False]
    assert join_pairs(np.zeros((0, 2), dtype=int), 5) == []


def test_groups_of_random_pairs_are_those_of_a_slow_search():
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 60, (40, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    own = {row: {row} for row in range(60)}
    for a, b in pairs.tolist():
        joined = own[a] | own[b]
        for row in joined:
            own[row] = joined
    expected = {tuple(sorted(group)) for group in own.values() if len(group) > 1}
    groups = join_pairs(pairs, 60)
    assert {group.rows for group in groups} == expected
    known = {tuple(sorted(pair)) for pair in pairs.tolist()}
    for group in groups:
        assert set(group.undecided) == set(itertools.combinations(group.rows, 2)) - known


def test_the_sample_to_label_is_uniform_and_repeatable(twins, tmp_path):
    options = DecisionOptions()
    first, again = (sample_to_label(twins, options, 50) for _ in range(2))
    assert (first == again).all()
    assert len(sample_to_label(twins, options, 10**6)) == len(PairScorer.of(twins.vector_ND, 5).candidates())
    counts = np.zeros(PRODUCTS)
    for seed in range(200):
        np.add.at(counts, sample_to_label(twins, replace(options, seed=seed), 50).ravel(), 1)
    assert counts.min() > 0
    files.write_to_label(tmp_path, twins, first)
    text = (tmp_path / files.TO_LABEL).read_text()
    assert text.splitlines()[0] == "left,right,same,left_title,right_title"
    with pytest.raises(DecisionError, match="no labelled pair"):
        read_labelled_pairs(tmp_path / files.TO_LABEL, twins.row)
    answered = text.replace(",,", ",1,", 3)
    (tmp_path / files.TO_LABEL).write_text(answered)
    pairs, unanswered = read_labelled_pairs(tmp_path / files.TO_LABEL, twins.row)
    assert (len(pairs), unanswered) == (3, 47)


def test_a_store_gives_products_with_a_vector_and_names_the_others():
    store = ExactStore(4, "model-1")
    vectors = unit(np.eye(4) + 0.1)
    missing = vectors.copy()
    missing[1] = np.nan
    store.upsert([StoredProduct(f"p{n}") for n in range(4)], {"t": vectors, "mm": missing})
    found = read_catalogue(store, "mm")
    assert ([p.product_id for p in found.products], found.without) == (["p0", "p2", "p3"], ("p1",))
    np.testing.assert_allclose(found.vector_ND, vectors[[0, 2, 3]], atol=1e-6)
    assert found.fingerprint == "model-1"
    with pytest.raises(DecisionError, match="form 'i': found 0 products"):
        read_catalogue(store, "i")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("p0001,p0001,1", "found product 'p0001' on both sides"),
        ("p0001,nobody,1", "column 'right': found 'nobody'"),
        ("p0001,p0002,maybe", "column 'same': found 'maybe'"),
        ("p0003,p0002,0", "with another answer than before"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_with_their_row(row, words, twins, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(f"left,right,same\np0002,p0003,yes\n{row}\n")
    with pytest.raises(DecisionError, match=f"row 2.*{words}"):
        read_labelled_pairs(path, twins.row)


def test_labels_without_a_column_are_refused_and_parquet_is_read(twins, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("left,right\np0002,p0003\n")
    with pytest.raises(DecisionError, match="found the columns left, right; expected left, right, same"):
        read_labelled_pairs(path, twins.row)
    columns = {"left": ["p0003", "p0001"], "right": ["p0002", "p0004"], "same": [True, None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "labels.parquet")
    assert read_labelled_pairs(tmp_path / "labels.parquet", twins.row) == ([LabelledPair("p0002", "p0003", True)], 1)


def test_the_parts_of_the_labels_have_nothing_in_common():
    fit, choosing = divide(101, fit_share=0.3, seed=5)
    assert len(fit) == 30
    assert sorted([*fit, *choosing]) == list(range(101))
    assert divide(101, fit_share=0.3, seed=6)[0].tolist() != fit.tolist()


@pytest.mark.parametrize(
    "wrong",
    [{"form": "x"}, {"neighbours": 0}, {"min_cosine": 2}, {"precision": 1}, {"confidence": 0}, {"fit_share": 1.5}],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        DecisionOptions(**wrong)


def test_a_floor_that_leaves_no_candidate_is_refused(twins):
    with pytest.raises(DecisionError, match="a lower min_cosine"):
        sample_to_label(twins, DecisionOptions(min_cosine=0.999), 10)
