"""The fast encoder gives the vectors of `encode`, in order, with workers and without, and survives what goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import file_of, noise, plain

from processing_moon import MoonProcessor, images_moon
from retrieval import preparation
from retrieval.encode import encode, load_for_evaluation
from retrieval.patch_embedding import linear_patch_embedding
from retrieval.preparation import BatchMaker, BatchPreparation, BatchTask, WorkerError, available_cpus
from retrieval.product_encoder import ProductEncoder, batches_by_length, default_workers

PHOTOS = [file_of(noise(125, 160, seed).resize((1000, 1300)), "JPEG", quality=90) for seed in range(3)]
PRODUCTS: list[dict[str, Any]] = [
    {"id": "a", "title": "red running shoes with a white sole", "images": [PHOTOS[0]], "category": ["Home", "Shoes"]},
    {"id": "b", "title": "bag"},
    {"id": "bad", "title": "x", "images": [PHOTOS[0][:4000]]},
    {"id": "c", "images": [PHOTOS[1], file_of(plain("green"))]},
    {"id": "d", "title": "the same in green", "images": PHOTOS[0], "attributes": {"colour": ["green"]}},
    {"id": "e", "title": "striped cotton, navy", "images": "nowhere.jpg"},
    {"id": "f", "title": "with a box", "images": [PHOTOS[2]], "core_box": [100, 200, 600, 900]},
    {"id": "empty"},
]


@pytest.fixture(scope="module")
def moon(tiny_moon: Callable[..., Path]) -> tuple[Any, MoonProcessor]:
    model, processor = load_for_evaluation(tiny_moon(), device="cpu")
    processor.max_image_tokens = 49
    return model, processor


@pytest.fixture(scope="module")
def pool(moon: tuple[Any, MoonProcessor]) -> Iterator[ProductEncoder]:
    with ProductEncoder(*moon, workers=2, batch_size=2, progress=False) as encoder:
        yield encoder


def one_minus_cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((1 - (one.astype(np.float64) * other).sum(axis=1)).max())


@pytest.mark.parametrize("form", ["mm", "t", "i"])
def test_workers_give_the_vectors_and_the_skipped_records_of_one_process(
    moon: tuple[Any, MoonProcessor], pool: ProductEncoder, form: str
) -> None:
    full = encode(*moon, PRODUCTS, form=form, batch_size=2, progress=False)
    with ProductEncoder(*moon, workers=0, batch_size=2, progress=False) as alone:
        reduced = alone.encode(PRODUCTS, form=form)
    found = pool.encode(PRODUCTS, form=form)
    assert found.kept == reduced.kept == full.kept
    assert found.skipped == reduced.skipped == full.skipped
    assert len(full.skipped) == {"mm": 3, "t": 2, "i": 4}[form]
    np.testing.assert_allclose(found.vectors, reduced.vectors, atol=1e-6)
    assert one_minus_cosine(full.vectors, found.vectors) < (1e-3 if form != "t" else 1e-6)
    if form == "i":
        assert not np.array_equal(full.vectors, found.vectors)


def test_queries_and_labels_are_encoded_as_by_encode(moon: tuple[Any, MoonProcessor], pool: ProductEncoder) -> None:
    queries = [{"text": "red shoes"}, {"image": file_of(noise(90, 90))}, {"text": "in blue", "image": PHOTOS[1]}]
    for task in (None, "category"):
        expected = encode(*moon, queries, kind="query", task=task, progress=False)
        found = pool.encode(queries, kind="query", task=task)
        assert one_minus_cosine(found.vectors, expected.vectors) < 1e-3


def test_switched_off_the_vectors_are_those_of_encode_bit_by_bit(moon: tuple[Any, MoonProcessor]) -> None:
    expected = encode(*moon, PRODUCTS, batch_size=3, progress=False)
    for reduced in (False, None):
        with ProductEncoder(*moon, workers=0, batch_size=3, reduced_decoding=reduced, progress=False) as encoder:
            assert np.array_equal(encoder.encode(PRODUCTS).vectors, expected.vectors)
    with ProductEncoder(*moon, workers=1, batch_size=3, reduced_decoding=False, progress=False) as encoder:
        assert np.array_equal(encoder.encode(PRODUCTS).vectors, expected.vectors)


def test_encode_follows_the_processors_own_setting(moon: tuple[Any, MoonProcessor]) -> None:
    model, processor = moon
    full = encode(model, processor, PRODUCTS, progress=False)
    processor.reduced_decoding = True
    try:
        assert not np.array_equal(encode(model, processor, PRODUCTS, progress=False).vectors, full.vectors)
    finally:
        processor.reduced_decoding = False


def test_nothing_to_encode_gives_an_empty_matrix(moon: tuple[Any, MoonProcessor], pool: ProductEncoder) -> None:
    assert pool.encode([]).vectors.shape == (0, 32)
    only_bad = pool.encode([{"id": "x", "images": [b"nonsense"]}])
    assert (only_bad.vectors.shape, only_bad.kept, len(only_bad.skipped)) == ((0, 32), [], 1)


def test_a_picture_that_products_share_is_opened_once(
    moon: tuple[Any, MoonProcessor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[int] = []
    own = images_moon._decode_opened
    monkeypatch.setattr(images_moon, "_decode_opened", lambda *a: opened.append(1) or own(*a))
    path = tmp_path / "shared.jpg"
    path.write_bytes(PHOTOS[0])
    records = [{"title": f"variant {number} " * (number + 1), "images": [str(path)]} for number in range(7)]
    records += [{"title": f"other {number}", "images": [bytes(bytearray(PHOTOS[1]))]} for number in range(3)]
    expected = encode(*moon, records, batch_size=3, progress=False)
    assert len(opened) == 2
    opened.clear()
    with ProductEncoder(*moon, workers=0, batch_size=3, progress=False) as encoder:
        encoder.encode(records)
        assert len(opened) == 2
        path.write_bytes(PHOTOS[2])  # a later call reads the file again
        found = encoder.encode(records)
        assert len(opened) == 4
    assert one_minus_cosine(found.vectors[7:], expected.vectors[7:]) < 1e-3
    assert one_minus_cosine(found.vectors[:7], expected.vectors[:7]) > 1e-6
    opened.clear()
    with ProductEncoder(*moon, workers=0, batch_size=3, cache_bytes=0, progress=False) as encoder:
        encoder.encode(records)
    assert len(opened) == 10


def test_batches_hold_similar_lengths_and_keep_a_shared_picture_together() -> None:
    texts = [{"title": "word " * count} for count in (9, 1, 5, 7, 3, 2)]
    assert batches_by_length(texts, 2) == [[1, 5], [4, 2], [3, 0]]
    shared = [{"title": "a " * count, "images": ["p.jpg"] if count % 2 else [f"{count}.jpg"]} for count in range(6)]
    (first, second) = batches_by_length(shared, 3)
    assert [1, 3, 5] in (first, second)
    assert batches_by_length(shared, 3, form="t") == [[0, 1, 2], [3, 4, 5]]
    reasoned = [{"title": "a", "reasoning": "long " * 9}, {"title": "aaa"}]
    assert batches_by_length(reasoned, 1) == [[0], [1]]
    assert batches_by_length(reasoned, 1, with_reasoning=True) == [[1], [0]]
    assert batches_by_length([], 4) == []


class Dying:
    """A processor whose process is killed at a product with the title "die", once `flag` exists."""

    def __init__(self, processor: MoonProcessor, flag: Path) -> None:
        self.processor, self.flag = processor, flag

    def __call__(self, **options: Any) -> Any:
        if self.flag.exists() and any(record.get("title") == "die" for record in options.get("products", ())):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.processor(**options)


def test_a_dead_worker_is_an_error_that_names_it_and_the_next_call_has_new_ones(
    moon: tuple[Any, MoonProcessor], tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    records = [{"title": "die"}, *({"title": f"product {number} of many"} for number in range(9))]
    with ProductEncoder(moon[0], Dying(moon[1], flag), workers=2, batch_size=1, progress=False) as encoder:
        with pytest.raises(WorkerError, match=r"ended: DataLoader worker \(pid.* \d+.*use fewer workers"):
            encoder.encode(records)
        flag.unlink()
        assert encoder.encode(records).kept == list(range(10))
    assert_no_processes_left()


def test_an_interrupt_ends_the_workers(moon: tuple[Any, MoonProcessor]) -> None:
    model, processor = moon

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(interrupt)
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            ProductEncoder(model, processor, workers=1, batch_size=1, progress=False) as encoder,
        ):
            encoder.encode(PRODUCTS)
    finally:
        hook.remove()
    assert_no_processes_left()


def assert_no_processes_left() -> None:
    """The pool of this module's fixture has two processes; others must end within seconds."""
    deadline = time.monotonic() + 30
    while len(multiprocessing.active_children()) > 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(multiprocessing.active_children()) <= 2


def test_an_error_that_is_not_about_a_record_is_raised_as_in_one_process(
    moon: tuple[Any, MoonProcessor], pool: ProductEncoder
) -> None:
    for arguments, message in (
        ({"kind": "query", "task": "praise"}, "task 'praise' is not known"),
        ({"form": "video"}, "form='video' is not known"),
        ({"kind": "produkt"}, "expected product or query"),
        ({"thinking": {"max_tokens": 3}}, "expected reasoning='generate'"),
    ):
        with pytest.raises(ValueError, match=message):
            pool.encode([{"title": "a", "id": 1}] if "kind" not in arguments else [{"text": "a"}], **arguments)
    assert pool.encode(PRODUCTS[:2]).kept == [0, 1]
    with pytest.raises(ValueError, match="workers=-1"):
        ProductEncoder(*moon, workers=-1)
    with pytest.raises(ValueError, match="batch_size=0"):
        ProductEncoder(*moon, batch_size=0)


def test_errors_cross_from_a_worker_whatever_their_class(moon: tuple[Any, MoonProcessor]) -> None:
    class OddError(ValueError):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def fail(error: Exception) -> Callable[..., Any]:
        def call(**_: Any) -> Any:
            raise error

        return call

    task = pickle.dumps(BatchTask(1, [], {"side": "products"}))
    assert str(BatchMaker(fail(OddError(1, 2)), 0)[task]) == "OddError: 1 and 2"
    full = BatchMaker(fail(RuntimeError("unable to allocate shared memory (shm) for file </x>: No space left")), 0)[
        task
    ]
    assert isinstance(full, WorkerError)
    assert "smaller batches, or a larger /dev/shm" in str(full)


def test_tensors_come_through_shared_memory_and_the_global_generator_is_left_alone(
    moon: tuple[Any, MoonProcessor],
) -> None:
    preparing = BatchPreparation(moon[1], 1, 0)
    state = torch.get_rng_state()
    tasks = [BatchTask(1, [record], {"side": "products", "form": "mm"}) for record in PRODUCTS[:2]]
    batches = list(preparing.batches(tasks))
    preparing.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.is_shared() for batch in batches for value in batch.values())
    expected = moon[1](products=PRODUCTS[:1])
    assert all(torch.equal(batches[0][name], value) for name, value in expected.items())


def test_the_patch_embedding_as_a_product_gives_the_same_and_is_put_back(moon: tuple[Any, MoonProcessor]) -> None:
    model, processor = moon
    batch = processor(products=PRODUCTS[:1])
    convolution = next(module for module in model.modules() if isinstance(module, torch.nn.Conv3d))
    with torch.inference_mode():
        expected = model(**batch).embeddings
        with linear_patch_embedding(model):
            assert "forward" in vars(convolution)
            found = model(**batch).embeddings
        larger = torch.nn.Conv3d(3, 4, 2, stride=2)
        volume = torch.randn(2, 3, 4, 4, 4)
        with linear_patch_embedding(larger):
            assert torch.equal(larger(volume), torch.nn.functional.conv3d(volume, larger.weight, larger.bias, stride=2))
    assert "forward" not in vars(convolution)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_default_leaves_one_cpu_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cpus() >= 1
    for cpus, workers in ((1, 1), (2, 1), (8, 7), (64, 16)):
        monkeypatch.setattr("retrieval.product_encoder.available_cpus", lambda cpus=cpus: cpus)
        assert default_workers() == workers
    assert preparation._AHEAD == 2  # the number in the formula of the memory
