"""A teacher that is called embeds what a record shows in its form: queries and products, with pictures as they are trained on."""

import numpy as np
import pytest
import torch
from pictures import noise

from processing_moon import MoonProcessor
from retrieval.encode import Encoded, load_for_evaluation
from training.batches.called_teacher import CalledTeacher, Encoder, sample_of
from training.batches.collate import PairCollator
from training.batches.negatives import NO_ID
from training.batches.pairs import Pair

PICTURE, ALTERED = noise(seed=1), noise(seed=2)
SAMPLE = [{"id": "a", "title": "red", "images": [PICTURE]}, {"id": "b", "title": "blue", "images": [ALTERED]}]


class Called:
    """An embedding that keeps what it was called with; it cannot read a record with the title "broken"."""

    def __init__(self):
        self.records = []

    def __call__(self, records):
        self.records.append(records)
        kept = [row for row, record in enumerate(records) if record.get("title") != "broken"]
        vectors = np.stack([np.eye(4, dtype=np.float32)[len(str(records[row])) % 4] for row in kept])
        return Encoded(vectors, kept, [])


def test_a_picture_teacher_reads_the_pictures_of_queries_and_products_and_nothing_else():
    called = Called()
    teacher = CalledTeacher(called, "i", SAMPLE)
    records = [
        {"id": "q", "image": ALTERED, "text": "same in blue", "core_box": [0, 0, 1, 1]},
        {"id": "q2", "text": "words"},
        {"id": "s/p", "title": "red", "images": [PICTURE], "core_box": [0, 0, 1, 1]},
    ]
    found = teacher.of(records)
    assert found["rows"].tolist() == [0, 2]
    assert called.records[-1] == [{"id": "q", "images": [ALTERED]}, {"id": "s/p", "images": [PICTURE]}]


def test_a_text_teacher_reads_the_words_of_queries_as_a_title_and_leaves_out_what_has_none():
    called = Called()
    teacher = CalledTeacher(called, "t", SAMPLE)
    records = [
        {"id": "q", "image": ALTERED, "text": "same in blue"},
        {"id": "q2", "image": ALTERED},
        {"id": "s/p", "title": "red", "attributes": {"colour": ["red"]}, "images": [PICTURE], "reasoning": "x"},
        {"id": "s/i", "images": [PICTURE]},
    ]
    assert teacher.of(records)["rows"].tolist() == [0, 2]
    assert called.records[-1] == [
        {"id": "q", "title": "same in blue"},
        {"id": "s/p", "title": "red", "attributes": {"colour": ["red"]}},
    ]


def test_a_teacher_of_both_forms_reads_all_that_a_record_has():
    called = Called()
    teacher = CalledTeacher(called, "mm", SAMPLE)
    records = [
        {"id": "q", "image": ALTERED, "text": "same"},
        {"id": "s/t", "title": "red"},
        {"id": "s/i", "images": [PICTURE]},
    ]
    assert teacher.of([*records, {"id": "empty"}])["rows"].tolist() == [0, 1, 2]
    assert called.records[-1] == [
        {"id": "q", "title": "same", "images": [ALTERED]},
        {"id": "s/t", "title": "red"},
        {"id": "s/i", "images": [PICTURE]},
    ]


def test_vectors_are_centred_by_the_mean_of_the_sample_and_of_unit_length():
    vectors = {"red": [1.0, 0.0], "blue": [0.0, 1.0], "green": [0.6, 0.8]}

    def embed(records):
        return Encoded(
            np.array([vectors[record["title"]] for record in records], np.float32), list(range(len(records))), []
        )

    teacher = CalledTeacher(embed, "t", SAMPLE)
    assert teacher.width == 2
    found = teacher.of([{"id": "x", "title": "green"}])["vectors"].numpy()[0]
    expected = np.array([0.6, 0.8]) - np.array([0.5, 0.5])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=1e-5)


def test_a_record_that_the_teacher_cannot_read_is_not_taught():
    teacher = CalledTeacher(Called(), "t", SAMPLE)
    found = teacher.of([{"id": "a", "title": "broken"}, {"id": "b", "title": "blue"}])
    assert (found["rows"].tolist(), found["vectors"].shape) == ([1], (1, 4))
    nothing = teacher.of([{"id": "i", "image": PICTURE}])
    assert (nothing["rows"].shape, nothing["vectors"].shape) == ((0,), (0, 4))


def test_a_sample_without_the_form_is_refused():
    with pytest.raises(ValueError, match="found no record with the form 'i' that can be read among 1"):
        CalledTeacher(Called(), "i", [{"id": "a", "title": "red"}])


def test_a_sample_is_spread_over_the_records():
    assert sample_of(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert sample_of([1, 2], 5) == [1, 2]
    assert sample_of([]) == []


def test_an_encoder_gives_the_vectors_of_its_checkpoint(tiny_moon):
    place = str(tiny_moon("qwen3_vl"))
    encoder = Encoder(place, "i")
    found = encoder([{"id": "a", "images": [PICTURE]}, {"id": "b", "images": [ALTERED]}])
    model, processor = load_for_evaluation(place)
    inputs = processor(products=[{"id": "b", "images": [ALTERED]}], form="i")
    with torch.no_grad():
        expected = model(**inputs).embeddings
    np.testing.assert_allclose(found.vectors[1], expected[0].numpy(), atol=1e-5)


def test_a_batch_holds_the_vectors_of_queries_and_products_and_the_pictures_that_the_student_sees(tiny_moon):
    called = Called()
    teacher = CalledTeacher(called, "i", SAMPLE)
    processor = MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"))
    pairs = [
        Pair(
            query={"id": f"q{number}"} | ({"image": ALTERED} if number else {"text": "red"}),
            products=[{"id": f"s/{number}", "title": "red", "images": [PICTURE]}],
            names=[f"s/{number}"],
            product_ids=[number],
            group_ids=[NO_ID],
            query_group=NO_ID,
            other_ids=[],
            negative_ids=[],
        )
        for number in range(2)
    ]
    (taught,) = PairCollator(processor, teachers=[teacher])(pairs)["teachers"]
    assert taught["rows"].tolist() == [0, 1]
    assert taught["query_rows"].tolist() == [1]
    assert taught["query_vectors"].shape == (1, 4)
    assert called.records[-1][0]["images"][0].tobytes() == ALTERED.convert("RGB").tobytes()
