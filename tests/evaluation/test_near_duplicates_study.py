"""The study of near-duplicates: what it plants, counts and chooses, and that the defaults keep what they promise."""

from __future__ import annotations

import pytest

from evaluation.near_duplicates_study import (
    CONDITIONS,
    DuplicateOptions,
    choose,
    make_case,
    measure_near_duplicates,
    measured,
    measured_pairs,
    score,
    sentences,
)
from moon3.__main__ import main
from product_data.catalogue.making import make_catalogue
from product_data.catalogue.planted_duplicates import COPY, plant
from product_data.errors import OptionError


@pytest.fixture(scope="module")
def case():
    return make_case(CONDITIONS[0], seed=3, products=90)


def test_copies_and_wrong_answers_are_planted_and_the_rest_stays():
    products, queries = make_catalogue(products=60, seed=1, image_size=64, progress=False)
    planted = plant(products, queries, seed=1, copied=0.5, wrong=0.5)
    assert {row["product_id"] for row in planted.products} == {row["product_id"] for row in products} | set(
        planted.copies
    )
    assert all(copy.startswith(own + COPY) for copy, own in planted.copies.items())
    assert planted.changes.keys() == planted.copies.keys()
    originals = {row["product_id"]: row for row in products}
    for row in planted.products:
        if row["product_id"] in originals:
            assert row == originals[row["product_id"]]
        else:
            assert row["images"] != originals[planted.copies[row["product_id"]]]["images"]
    kind = {row["product_id"]: row["category_path"][0] for row in products}
    answer = {query["query_id"]: query["positives"][0] for query in queries}
    assert planted.wrong
    assert all(kind[product] != kind[answer[query]] for query, product in planted.wrong)
    assert plant(products, queries, seed=1, copied=0, wrong=0).products != []
    with pytest.raises(OptionError, match="copied=2; expected a share from 0 to 1"):
        plant(products, copied=2)


def test_scores_count_pairs():
    assert score({(0, 1), (2, 3)}, {(0, 1), (4, 5), (6, 7)}) == {
        "found": 2, "same": 3, "right": 1, "precision": 0.5, "recall": 1 / 3,
    }  # fmt: skip
    assert score(set(), set())["precision"] == 1.0


def test_the_defaults_find_most_copies_nothing_else_and_leave_no_group_in_two_splits(case):
    found = measured(case, DuplicateOptions())
    assert found["precision"] >= 0.99
    assert found["recall"] >= 0.85  # of few pairs; the study measures more
    assert found["groups_crossing_splits_before"] > 0
    assert found["found_pairs_crossing_splits_after"] == 0
    assert found["answers_in_another_split_after"] == 0


def test_looser_pictures_without_attributes_make_mistakes_which_are_named():
    bare = make_case(CONDITIONS[1], seed=3, products=90)
    loose = measured(bare, DuplicateOptions(picture_distance=60, structure=-1, title_similarity=0))
    assert loose["precision"] < measured(bare, DuplicateOptions())["precision"]
    assert sum(loose["mistakes"].values()) == loose["found"] - loose["right"]


def test_the_option_with_most_recall_among_the_precise_ones_is_chosen(case):
    grid = [DuplicateOptions(picture_distance=distance) for distance in (0.0, 18.0)]
    chosen, tried = choose([case], grid)
    assert chosen.picture_distance == 18.0
    assert tried[0]["recall"] < tried[1]["recall"]


def test_wrong_answers_share_no_entity_more_often_than_right_ones(case):
    found = measured_pairs(case)
    assert found["wrong_without_a_shared_entity"] / found["wrong"] > 0.5
    assert found["right_without_a_shared_entity"] / found["right"] < 0.05


@pytest.mark.slow
def test_the_study_measures_vectors_too_and_says_that_it_is_simulated(tiny_moon):
    results = measure_near_duplicates(str(tiny_moon("qwen3_vl")), products=60, seeds=(1,), choosing_seeds=(2,))
    assert results["simulated"] is True
    said = sentences(results)
    assert "simulated" in said[0]
    assert any(sentence.startswith("Vectors alone (cosine") for sentence in said)


def test_the_command_refuses_what_it_cannot_measure(capsys, tmp_path):
    output = ["--output", str(tmp_path / "x.json")]
    assert main(["matching-study", "decisions", *output]) == 2
    assert "--model: found none; expected the model whose decisions are measured" in capsys.readouterr().err
    assert main(["matching-study", "near-duplicates", "--products", "6", *output]) == 2
    assert "--products: found 6 with near-duplicates; expected 60 or more" in capsys.readouterr().err
    assert main(["matching-study", "near-duplicates", "--titles", str(tmp_path), *output]) == 2
    assert "--titles: found it with near-duplicates; expected it with decisions only" in capsys.readouterr().err
    assert main(["matching-study", "decisions", "--model", "m", "--text-encoder", "t", *output]) == 2
    assert "--text-encoder: found it without --titles" in capsys.readouterr().err
