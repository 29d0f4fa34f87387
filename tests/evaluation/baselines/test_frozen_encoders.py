"""Frozen encoders of pictures and texts: each alone and fused, as the encoders' own libraries compute them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import file_of, noise, plain
from PIL import Image
from records import PRODUCTS
from tiny_peers import make_image_encoder, make_onnx, make_text_encoder
from torch.nn.functional import normalize
from transformers import AutoModel, ViTImageProcessorPil

import evaluation.baselines  # noqa: F401 - makes the kinds known
from evaluation.baselines import image_encoders
from evaluation.baselines.frozen_encoders import fused_places
from evaluation.baselines.image_encoders import load_image_encoder
from evaluation.run import EvaluationOptions, evaluate_model
from processing_moon import crop_core
from product_data.tables import load_tables
from retrieval.encode import CheckpointError, VectorCache, encode, load_for_evaluation
from retrieval.vectors.fingerprint import model_fingerprint

NORMAL = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("frozen")
    return SimpleNamespace(
        image=make_image_encoder(folder / "image"), text=make_text_encoder(folder / "text"), folder=folder
    )


def vectors(model: str, records: list[dict[str, Any]], **options: Any) -> np.ndarray:
    return encode(*load_for_evaluation(model, device="cpu"), records, progress=False, **options).vectors


@torch.inference_mode()
def picture_vector(folder: Path, images: list[Image.Image]) -> torch.Tensor:
    model, pictures = AutoModel.from_pretrained(folder).eval(), ViTImageProcessorPil.from_pretrained(folder)
    seen = [model(**pictures(image, return_tensors="pt")).pooler_output[0] for image in images]
    return normalize(torch.stack([normalize(one, dim=0) for one in seen]).mean(dim=0), dim=0)


@pytest.mark.parametrize("weight", [None, 0.2])
def test_a_fused_vector_holds_both_unit_vectors_by_their_weights(places, weight):
    records = [record for record in PRODUCTS if "title" in record]  # with both, with both, with a text alone
    text_ND = vectors(f"sentence_transformer={places.text}", records, form="t")
    given = "" if weight is None else f"@{weight}"
    found = vectors(f"frozen={places.image}{given}+{places.text}", records)
    share = 0.5 if weight is None else weight
    for row, record in enumerate(records):
        images = record.get("images", [])
        images = images if isinstance(images, list) else [images]
        picture = picture_vector(places.image, images) if images else torch.zeros(32)
        expected = torch.cat([share**0.5 * picture, (1 - share) ** 0.5 * torch.from_numpy(text_ND[row])])
        np.testing.assert_allclose(found[row], normalize(expected, dim=0).numpy(), atol=1e-5)


def test_a_query_of_one_form_ranks_products_of_both_as_that_encoder_alone(places):
    products = [
        {"title": word, "images": noise(40, 40, seed)} for seed, word in enumerate(["red", "blue", "mug", "bag"])
    ]
    gallery = vectors(f"frozen={places.image}+{places.text}", products)
    for query, kind in (({"text": "striped mug"}, "text"), ({"image": noise(40, 40, 9)}, "image")):
        place = getattr(places, kind)
        fused = vectors(f"frozen={places.image}+{places.text}", [query], kind="query") @ gallery.T
        alone = vectors(f"frozen_{kind}={place}", [query], kind="query")
        alone = alone @ vectors(f"frozen_{kind}={place}", products).T
        np.testing.assert_allclose(fused, alone * 0.5**0.5, atol=1e-5)


def test_the_core_crop_is_averaged_with_the_whole_picture_where_it_is_asked_for(places):
    model, processor = load_for_evaluation(f"frozen_image={places.image}", device="cpu")
    image = noise(128, 96, 2)
    record = {"images": image, "core_box": [10, 10, 90, 80]}
    whole = encode(model, processor, [record], progress=False).vectors[0]
    np.testing.assert_allclose(whole, picture_vector(places.image, [image]).numpy(), atol=1e-5)
    processor.core_crop = True
    both = encode(model, processor, [record], progress=False).vectors[0]
    expected = picture_vector(places.image, [image, crop_core(image, (10, 10, 90, 80))])
    np.testing.assert_allclose(both, expected.numpy(), atol=1e-5)


def test_a_record_without_what_an_encoder_reads_is_skipped_with_the_reason(places):
    records = [{"id": "a", "title": "mug"}, {"id": "b", "images": plain("red")}, {"id": "c", "images": b"no picture"}]
    model, processor = load_for_evaluation(f"frozen_image={places.image}", device="cpu")
    found = encode(model, processor, records, progress=False)
    assert found.kept == [1]
    assert [skip.reason for skip in found.skipped][0] == "frozen_image reads pictures alone; found none"
    found = encode(*load_for_evaluation(f"frozen_text={places.text}", device="cpu"), records, progress=False)
    assert (found.kept, found.skipped[0].reason) == ([0], "frozen_text reads texts alone; found none")


def _tables() -> Any:
    words = ["red shoes", "blue mug", "brown bag"]
    products = [
        {
            "product_id": word,
            "title": word,
            "category_path": [word],
            "attributes": [{"key": "colour", "value": word.split()[0]}],
            "images": [file_of(noise(40, 40, seed))],
        }
        for seed, word in enumerate(words)
    ]
    queries = [
        {"query_id": f"{kind} {word}", "type": kind, "positives": [word]}
        | ({"text": word} if kind != "image" else {})
        | ({"image": file_of(noise(40, 40, seed))} if kind != "text" else {})
        for seed, word in enumerate(words)
        for kind in ("text", "image", "both")
    ]
    return load_tables({"products": products, "queries": queries})


@pytest.mark.parametrize(
    ("kind", "scored", "labels"),
    [
        ("frozen", {"t2mm", "i2mm", "mm2mm"}, {"mm"}),
        ("frozen_image", {"i2mm", "mm2mm"}, set()),
        ("frozen_text", {"t2mm", "mm2mm"}, {"mm"}),
    ],
)
def test_searches_without_a_common_space_have_no_score_and_say_why(places, kind, scored, labels):
    place = {"frozen": f"{places.image}+{places.text}", "frozen_image": places.image, "frozen_text": places.text}[kind]
    model, processor = load_for_evaluation(f"{kind}={place}", device="cpu")
    options = EvaluationOptions(only=("retrieval", "classification", "attributes"), resamples=10)
    results = evaluate_model(model, processor, _tables(), model_name=kind, options=options)
    assert {name for name, scores in results["scores"].items() if scores} == scored
    assert set(results["classification"]) == set(results["attributes"]) == labels
    for name in {"t2mm", "i2mm", "mm2mm", "t2i", "i2t"} - scored:
        assert results["absent"][name].startswith(f"{kind} ")
    if not labels:
        assert results["absent"]["classification"] == "frozen_image reads a record's picture alone"
    assert results["peer"]["mm"]


def test_queries_and_label_texts_of_other_models_are_compared_with_every_form(tiny_moon):
    tables = _tables()
    cache = VectorCache(*load_for_evaluation(tiny_moon("qwen3_vl"), device="cpu"), tables.products, tables.queries)
    pairs = [(asked, form) for asked in ("text", "image", "both", "t", "i") for form in ("t", "i", "mm")]
    assert not any(cache.unrelated(*pair) for pair in pairs)


def quarters(image: Image.Image) -> np.ndarray:
    """The features of `make_onnx`, by arithmetic: the mean over the four quarters is the mean of all pixels."""
    small = image.convert("RGB").resize((8, 8), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(small, dtype=np.float32)) / 255
    return ((pixels - NORMAL[0]) / NORMAL[1]).mean(dim=(0, 1)).numpy()


def test_an_onnx_graph_is_averaged_over_its_places_and_pictures_become_its_size(tmp_path):
    pytest.importorskip("onnxruntime")
    encoder = load_image_encoder(str(make_onnx(tmp_path)))
    images = [noise(40, 30, 1), noise(16, 90, 2)]
    found = encoder(encoder.prepared(images)).numpy()
    np.testing.assert_allclose(found, np.stack([quarters(image) for image in images]), atol=1e-5)
    assert encoder.size == 3
    np.testing.assert_allclose(
        vectors(f"frozen_image={tmp_path}", [{"images": images[0]}])[0], found[0] / np.linalg.norm(found[0]), atol=1e-5
    )


def test_the_features_of_a_picture_are_computed_once(places, monkeypatch):
    encoder = load_image_encoder(str(places.image))
    pixels = encoder.prepared([noise(40, 40, seed) for seed in range(3)])
    monkeypatch.setattr(image_encoders, "_KEPT", 2)
    seen = []
    encoder.model.register_forward_hook(lambda module, inputs, output: seen.append(len(output.pooler_output)))
    expected = encoder(pixels)
    del seen[:]
    torch.testing.assert_close(encoder.features(pixels[:2]), expected[:2])
    torch.testing.assert_close(encoder.features(pixels[[1, 0]]), expected[[1, 0]])
    torch.testing.assert_close(encoder.features(pixels), expected)
    torch.testing.assert_close(encoder.features(pixels[:1]), expected[:1])  # the oldest was forgotten
    assert seen == [2, 1, 1]


@pytest.fixture
def runtime(monkeypatch):
    """A stand-in for onnxruntime whose graphs have the shape `runtime.shape` and return `runtime.output(pixels)`."""
    state = SimpleNamespace(shape=["n", 3, 8, 8], output=lambda pixels: pixels.mean(axis=(2, 3)))

    class Session:
        def __init__(self, path: str, options: Any, providers: list[str]) -> None:
            if Path(path).read_bytes() == b"broken":
                raise RuntimeError("no graph")

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="pixels", shape=state.shape)]

        def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [state.output(inputs["pixels"])]

    module = SimpleNamespace(InferenceSession=Session, SessionOptions=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return state


def test_a_graph_with_channels_last_and_open_sides_gets_its_pictures_so(tmp_path, runtime):
    runtime.shape = ["n", None, None, 3]
    seen = []
    runtime.output = lambda pixels: seen.append(pixels.shape) or pixels  # a feature map with the channels last
    encoder = load_image_encoder(str(make_onnx(tmp_path)))
    image = plain("green", 20)
    found = encoder(encoder.prepared([image, image])).numpy()
    assert seen[-1] == (2, 224, 224, 3)
    np.testing.assert_allclose(found[0], quarters(image), atol=1e-5)


def test_the_settings_beside_a_graph_say_how_pictures_become_pixels(tmp_path, runtime):
    settings = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    settings.do_center_crop = False
    settings.save_pretrained(tmp_path)
    encoder = load_image_encoder(str(make_onnx(tmp_path)))
    np.testing.assert_allclose(encoder(encoder.prepared([plain("white")])).numpy(), [[1, 1, 1]], atol=1e-6)
    changed = model_fingerprint(f"frozen_image={tmp_path / 'quarters.onnx'}")
    (tmp_path / "preprocessor_config.json").unlink()
    assert model_fingerprint(f"frozen_image={tmp_path / 'quarters.onnx'}") != changed


@pytest.mark.parametrize(
    ("shape", "output", "message"),
    [
        (["n", 10], None, r"quarters.onnx: found inputs \{'pixels': \['n', 10\]\}; expected one, of pictures"),
        (None, lambda pixels: pixels[0, 0, 0], r"quarters.onnx: found an output of shape \(8,\); expected \(N, D\)"),
    ],
)
def test_a_graph_that_does_not_turn_pictures_into_features_is_refused(tmp_path, runtime, shape, output, message):
    runtime.shape, runtime.output = shape or runtime.shape, output or runtime.output
    with pytest.raises(CheckpointError, match=message):
        load_image_encoder(str(make_onnx(tmp_path)))


def test_files_that_are_no_encoders_are_refused(tmp_path, runtime, places):
    with pytest.raises(CheckpointError, match=r"none.onnx: found no file; expected an .onnx file"):
        load_for_evaluation(f"frozen_image={tmp_path / 'none.onnx'}")
    make_onnx(tmp_path).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"quarters.onnx: no graph; expected an ONNX file that onnxruntime reads"):
        load_for_evaluation(f"frozen_image={tmp_path}")
    (tmp_path / "second.onnx").touch()
    with pytest.raises(CheckpointError, match=r"found quarters.onnx, second.onnx; expected one .onnx file"):
        load_for_evaluation(f"frozen_image={tmp_path}")
    with pytest.raises(CheckpointError, match="expected an image model of transformers, or an .onnx file"):
        load_for_evaluation(f"frozen_image={places.folder / 'text' / 'bert'}")


def test_a_missing_onnxruntime_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CheckpointError, match="needs the package onnxruntime, .* expected pip install 'moon3.onnx.'"):
        load_for_evaluation(f"frozen_image={make_onnx(tmp_path)}")


@pytest.mark.parametrize("place", ["a", "a+", "+b", "a+b+c"])
def test_a_fused_model_names_two_places(place):
    with pytest.raises(CheckpointError, match="expected frozen=IMAGE_PLACE.TEXT_PLACE"):
        fused_places(place)


@pytest.mark.parametrize("weight", ["0", "1", "-1", "much", "nan"])
def test_the_weight_of_pictures_is_between_0_and_1(weight):
    with pytest.raises(CheckpointError, match=f"found weight '{weight}'; expected a number between 0 and 1"):
        fused_places(f"a@{weight}+b")
    assert fused_places("a@0.25+b") == ("a", 0.25, "b")


def test_the_fingerprint_of_a_fused_model_depends_on_both_places_and_the_weight(places):
    fused = [
        f"frozen={places.image}+{places.text}",
        f"frozen={places.image}@0.5+{places.text}",
        f"frozen={places.image}@0.4+{places.text}",
        f"frozen={places.image}+{places.image}",
    ]
    first, same, weight, text = (model_fingerprint(model) for model in fused)
    assert first == same
    assert len({first, weight, text}) == 3
