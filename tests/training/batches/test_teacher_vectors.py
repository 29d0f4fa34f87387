"""A teacher's vectors are looked up by product, from the folders that the embedding job writes."""

import numpy as np
import pytest
import torch
from stored_products import units, vector_folder

from retrieval.stores.interface import StoredProduct
from training.batches.teacher_vectors import TeacherVectors

NAMES = ["a", "b", "c"]


@pytest.fixture
def folder(tmp_path):
    vectors = {"i": units(3, seed=1), "t": units(3, seed=2)}
    vectors["i"][2] = np.nan  # a picture that could not be read
    vector_folder(tmp_path / "one", [StoredProduct(name) for name in NAMES], vectors)
    return tmp_path / "one", vectors


def centred(vectors):
    moved = vectors - vectors.mean(axis=0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def test_a_batch_gets_the_centred_vectors_of_the_products_that_show_what_the_teacher_read(folder):
    path, vectors = folder
    teacher = TeacherVectors([path], "t")
    records = [
        {"id": "shop/c", "title": "with text", "images": ["x"]},
        {"id": "shop/a", "images": ["x"], "core_box": [0, 0, 1, 1]},
        {"id": "shop/unknown", "title": "text"},
        {"id": "shop/b", "title": "text"},
    ]
    found = teacher.of(records)
    assert found["rows"].tolist() == [0, 3]
    np.testing.assert_allclose(found["vectors"].numpy(), centred(vectors["t"])[[2, 1]], atol=1e-3)
    assert (teacher.width, teacher.known(["a", "unknown"])) == (vectors["t"].shape[1], 1)
    pictures = TeacherVectors([path], "i").of(records)
    assert pictures["rows"].tolist() == [1]
    assert pictures["vectors"].dtype == torch.float32
    nothing = teacher.of(records[2:3])
    assert (nothing["rows"].shape, nothing["vectors"].shape) == ((0,), (0, teacher.width))


def test_a_teacher_of_both_forms_pulls_products_that_have_both(tmp_path):
    vector_folder(tmp_path, [StoredProduct(name) for name in NAMES], {"mm": units(3)})
    records = [
        {"id": "s/a", "title": "t"},
        {"id": "s/b", "images": ["x"]},
        {"id": "s/c", "title": "t", "images": ["x"]},
    ]
    assert TeacherVectors([tmp_path], "mm").of(records)["rows"].tolist() == [2]


def test_several_folders_are_one_teacher_if_they_are_of_one_model_and_of_different_products(folder, tmp_path):
    path, _ = folder
    vector_folder(tmp_path / "two", [StoredProduct("d")], {"t": units(1, seed=5)})
    assert TeacherVectors([path, tmp_path / "two"], "t").known(["a", "b", "c", "d"]) == 4
    with pytest.raises(ValueError, match="found product '[abc]' a second time; expected different ids"):
        TeacherVectors([path, path], "t")
    vector_folder(tmp_path / "other", [StoredProduct("d")], {"t": units(1)}, fingerprint="0" * 32)
    with pytest.raises(ValueError, match="found 2 models in .*; expected vectors of one model"):
        TeacherVectors([path, tmp_path / "other"], "t")


def test_a_folder_without_the_form_or_without_vectors_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="found no form 'mm'; expected one of i, t"):
        TeacherVectors([folder[0]], "mm")
    vector_folder(tmp_path / "bad", [StoredProduct("a")], {"i": np.full((1, 4), np.nan, np.float32)})
    with pytest.raises(ValueError, match="found no vectors of the form 'i'; expected at least one"):
        TeacherVectors([tmp_path / "bad"], "i")
