"""Each peer gives the vectors of its own library's calls, whatever the batch, and says what it does not read."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import file_of, noise, plain
from PIL import Image
from records import PRODUCTS
from tiny_peers import (
    TOKENS,
    make_clip,
    make_internvl,
    make_qwen2_vl,
    make_siglip,
    make_text_encoder,
)
from torch.nn.functional import normalize
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Qwen2VLImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
)

import evaluation.baselines  # noqa: F401 - makes the kinds known
from processing_moon import MoonProcessor, ProductError, crop_core
from retrieval.encode import CheckpointError, encode, load_for_evaluation
from retrieval.model_kinds import KINDS, named_kind, require_loadable

pytestmark = pytest.mark.lowest

SHOES, BAG, MUG, PHOTO = PRODUCTS
TEXT = {
    "shoes": "red running shoes\nFashion > Shoes\ncolour: red; material: mesh, rubber",
    "bag": "brown bag",
    "mug": "a mug without a picture but with a rather long title, striped and blue\nHome > Mugs",
}
# kind → of the product records what the library's own calls are made with: (text, pictures)
PARTS = [
    (TEXT["shoes"], SHOES["images"]),
    (TEXT["bag"], [BAG["images"]]),
    (TEXT["mug"], []),
    ("", [PHOTO["images"]]),
]
KINDS_TESTED = ("clip", "siglip", "siglip2", "vlm_mean", "vlm_last", "vlm_last internvl", "qwen3_vl_embedding", "gme")


@pytest.fixture(scope="module")
def place(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`place("gme")`: what `--model` names a tiny random checkpoint of that architecture by, made once."""
    folder = tmp_path_factory.mktemp("peers")
    makers: dict[str, Callable[[], tuple[str, Path]]] = {
        "clip": lambda: ("clip", make_clip(folder / "clip")),
        "siglip": lambda: ("siglip", make_siglip(folder / "siglip")),
        "siglip2": lambda: ("siglip", make_siglip(folder / "siglip2", version=2)),
        "text": lambda: ("sentence_transformer", make_text_encoder(folder / "text")),
        "gme": lambda: ("gme", make_qwen2_vl(folder / "gme", tiny_base("qwen2_5_vl"))),
        "qwen3_vl_embedding": lambda: ("qwen3_vl_embedding", tiny_base("qwen3_vl")),
        "vlm_mean": lambda: ("vlm_mean", tiny_base("qwen2_5_vl")),
        "vlm_last": lambda: ("vlm_last", tiny_base("qwen3_vl")),
        "vlm_last internvl": lambda: ("vlm_last", make_internvl(folder / "internvl", tiny_base("qwen3_vl"))),
    }
    made: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in made:
            kind, path = makers[name]()
            made[name] = f"{kind}={path}"
        return made[name]

    return get


def folder_of(model: str) -> str:
    return model.partition("=")[2]


def vectors(model: str, records: list[dict[str, Any]], **options: Any) -> np.ndarray:
    return encode(*load_for_evaluation(model, device="cpu"), records, progress=False, **options).vectors


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
@torch.inference_mode()
def test_two_towers_give_the_mean_of_the_unit_vectors_of_the_librarys_own_calls(place, kind):
    folder = folder_of(place(kind))
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    of_kind = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil, "siglip2": Siglip2ImageProcessorPil}
    pictures = of_kind[kind].from_pretrained(folder)
    expected: dict[str, list[torch.Tensor]] = {"t": [], "i": [], "mm": []}
    for text, images in PARTS:
        parts = []
        if text:
            padding = {} if kind == "clip" else {"padding": "max_length"}
            ids = tokenizer(text, truncation=True, max_length=TOKENS, return_tensors="pt", **padding)["input_ids"]
            parts.append(normalize(model.get_text_features(input_ids=ids).pooler_output[0], dim=0))
            expected["t"].append(parts[-1])
        if images:
            seen = [
                model.get_image_features(**pictures(image, return_tensors="pt")).pooler_output[0] for image in images
            ]
            parts.append(normalize(torch.stack([normalize(one, dim=0) for one in seen]).mean(dim=0), dim=0))
            expected["i"].append(parts[-1])
        expected["mm"].append(normalize(torch.stack(parts).mean(dim=0), dim=0))
    for form, found in expected.items():
        np.testing.assert_allclose(vectors(place(kind), PRODUCTS, form=form), torch.stack(found).numpy(), atol=1e-6)


def prompt_vector(model: Any, folder: str, prompt: str, images: list[Image.Image], read: str) -> torch.Tensor:
    """The state of the last token of a Qwen prompt, or ("mean") the mean over what stands between user and end of turn."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
    if read == "gme":
        pictures.size = {"shortest_edge": 256 * 28**2, "longest_edge": 1280 * 28**2}
    if read == "qwen3_vl_embedding":
        pictures.size = {"shortest_edge": 4 * 32**2, "longest_edge": pictures.size["longest_edge"]}
    inputs: dict[str, Any] = dict(pictures(images, return_tensors="pt")) if images else {}
    for grid in inputs.get("image_grid_thw", []):
        count = int(grid.prod()) // pictures.merge_size**2
        prompt = prompt.replace("<|image_pad|>", "<|image_pads|>" * count, 1)
    ids = tokenizer(prompt.replace("<|image_pads|>", "<|image_pad|>"), return_tensors="pt")["input_ids"]
    types = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
    states = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **inputs
    ).last_hidden_state[0]
    if read != "mean":
        return normalize(states[-1], dim=0)
    tokens = tokenizer.convert_ids_to_tokens(ids[0])
    start = [index for index, token in enumerate(tokens) if token == "<|im_start|>"][1]
    end = next(index for index in range(start, len(tokens)) if tokens[index] == "<|im_end|>")
    opening = len(tokenizer("<|im_start|>user\n")["input_ids"])
    outside = ("<|vision_start|>", "<|vision_end|>")
    inside = [index for index in range(start + opening, end) if tokens[index] not in outside]
    return normalize(states[inside].mean(dim=0), dim=0)


QUERY = "Find the product that this shopper is looking for."
SYSTEM = {"gme": "You are a helpful assistant.", "qwen3_vl_embedding": "Represent the user's input."}
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen_prompt(kind: str, instruction: str, text: str, pictures: int) -> str:
    prompt = f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{PICTURE * pictures}{text}<|im_end|>\n"
    return prompt + "<|im_start|>assistant\n" + ("<|endoftext|>" if kind == "gme" else "")


@pytest.mark.parametrize("kind", ["gme", "qwen3_vl_embedding", "vlm_mean", "vlm_last"])
@torch.inference_mode()
def test_vision_language_models_are_read_by_their_own_recipe(place, kind):
    folder = folder_of(place(kind))
    model = AutoModel.from_pretrained(folder).eval()
    read = "mean" if kind == "vlm_mean" else kind
    system = SYSTEM.get(kind, "You are a helpful assistant.")
    expected = [
        prompt_vector(model, folder, qwen_prompt(kind, system, text, len(images)), images, read)
        for text, images in PARTS
    ]
    np.testing.assert_allclose(vectors(place(kind), PRODUCTS), torch.stack(expected).numpy(), atol=2e-6)
    instruction = QUERY if kind in SYSTEM else system
    asked = prompt_vector(model, folder, qwen_prompt(kind, instruction, "same in green", 1), [noise(64, 128, 3)], read)
    query = [{"text": "same in green", "image": noise(64, 128, 3)}]
    np.testing.assert_allclose(vectors(place(kind), query, kind="query")[0], asked.numpy(), atol=2e-6)
    label = prompt_vector(model, folder, qwen_prompt(kind, system, "red", 0), [], read)
    labels = vectors(place(kind), [{"text": "red"}], kind="query", task="category")
    np.testing.assert_allclose(labels[0], label.numpy(), atol=2e-6)


@torch.inference_mode()
def test_internvl_has_a_fixed_number_of_image_tokens_for_each_tile(place):
    folder = folder_of(place("vlm_last internvl"))
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pictures = GotOcr2ImageProcessorPil.from_pretrained(folder)
    last, mean = [], []
    for text, images in PARTS:
        made = pictures(images, crop_to_patches=True, return_tensors="pt") if images else {}
        blocks = [f"<img>{'<IMG_CONTEXT>' * 4 * int(count)}</img>\n" for count in made.get("num_patches", [])]
        before, own, after = "<|im_start|>user\n", "".join(blocks) + text, "<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(before + own + after, return_tensors="pt")["input_ids"]
        pixels = {"pixel_values": made["pixel_values"]} if images else {}
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).last_hidden_state[0]
        last.append(normalize(states[-1], dim=0))
        start, end = (len(tokenizer(part)["input_ids"]) for part in (before, after))
        tokens = tokenizer.convert_ids_to_tokens(ids[0])
        inside = [place for place in range(start, len(tokens) - end) if tokens[place] not in ("<img>", "</img>")]
        mean.append(normalize(states[inside].mean(dim=0), dim=0))
    assert len(made["num_patches"]) == 1
    assert int(made["num_patches"][0]) > 1
    np.testing.assert_allclose(vectors(f"vlm_last={folder}", PRODUCTS), torch.stack(last).numpy(), atol=2e-6)
    np.testing.assert_allclose(vectors(f"vlm_mean={folder}", PRODUCTS), torch.stack(mean).numpy(), atol=2e-6)


def test_the_mean_of_a_plain_model_is_that_of_a_moon_upcycled_from_it(tiny_base, tiny_moon):
    """Moon's mean read-out of an untrained Moon is its base's, where both have one prompt and the whole width."""
    model, processor = load_for_evaluation(tiny_moon("qwen3_vl", readout="mean", embedding_dim=None), device="cpu")
    plain_one, own = load_for_evaluation(f"vlm_mean={tiny_base('qwen3_vl')}", device="cpu")
    records = [{"title": "red running shoes", "images": noise(64, 64)}, {"title": "brown bag"}]
    instructions = dict.fromkeys(own.instructions, processor.instructions["product"])
    same = MoonProcessor(own.image_processor, own.tokenizer, readout="last", markers=False, instructions=instructions)
    found = encode(plain_one, same, records, progress=False).vectors
    np.testing.assert_allclose(found, encode(model, processor, records, progress=False).vectors, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS_TESTED)
def test_a_vector_ignores_its_batch_and_an_unreadable_picture_is_a_skipped_record(place, kind):
    model = load_for_evaluation(place(kind), device="cpu")
    whole = encode(*model, PRODUCTS, progress=False)
    assert whole.vectors.shape == (4, model[0].config.vector_size)
    alone = np.concatenate([encode(*model, [one], progress=False).vectors for one in PRODUCTS])
    np.testing.assert_allclose(whole.vectors, alone, atol=2e-6)
    assert min(np.abs(alone[i] - alone[j]).max() for i in range(4) for j in range(i)) > 1e-4
    broken = [PRODUCTS[0], {"id": "bad", "title": "x", "images": [file_of(plain("red"))[:40]]}, *PRODUCTS[1:]]
    found = encode(*model, broken, progress=False)
    assert found.kept == [0, 2, 3, 4]
    assert [(one.index, "bad" in one.item, one.field) for one in found.skipped] == [(1, True, "images[0]")]
    np.testing.assert_allclose(found.vectors, whole.vectors, atol=2e-6)


@pytest.mark.parametrize("kind", ["clip", "qwen3_vl_embedding"])
def test_the_core_crop_is_a_second_picture_only_where_it_is_asked_for(place, kind):
    model, processor = load_for_evaluation(place(kind), device="cpu")
    picture = noise(96, 96)
    record = {"images": picture, "core_box": [8, 8, 72, 72]}
    twice = {"images": [picture, crop_core(picture, (8, 8, 72, 72))]}
    without = encode(model, processor, [record, {"images": picture}], progress=False).vectors
    np.testing.assert_allclose(without[0], without[1], atol=1e-6)
    processor.core_crop = True
    cropped = encode(model, processor, [record, twice], progress=False).vectors
    np.testing.assert_allclose(cropped[0], cropped[1], atol=1e-6)
    assert np.abs(cropped[0] - without[0]).max() > 1e-4


def test_texts_over_a_towers_positions_are_cut_and_named(place):
    model, processor = load_for_evaluation(place("clip"), device="cpu")
    records = [{"title": "red bag"}, {"title": "red shoes " * TOKENS}]
    (cut,) = encode(model, processor, records, progress=False).shortened
    assert (cut.index, cut.field, cut.tokens_before, cut.tokens_after) == (1, "text", 2 * TOKENS + 2, TOKENS)


def test_a_text_of_internvl_over_the_budget_loses_its_end_and_not_the_token_that_is_read(place):
    _, processor = load_for_evaluation(place("vlm_last internvl"), device="cpu")
    processor.max_tokens = 40
    batch = processor(products=[{"title": "red running shoes " * 30}, {"title": "bag"}])
    (cut,) = batch.shortened
    assert (cut.index, cut.tokens_before > 40 >= cut.tokens_after) == (0, True)
    assert processor.tokenizer.decode(batch["input_ids"][0]).rstrip().endswith("<|im_start|>assistant")


@torch.inference_mode()
def test_a_text_model_of_sentence_transformers_embeds_texts_with_its_prompts_and_refuses_pictures(place):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder_of(place("text")), device="cpu")
    texts = list(TEXT.values())
    records = [{"title": "red running shoes", "category": SHOES["category"], "attributes": SHOES["attributes"]}]
    records += [{"title": "brown bag"}, MUG]
    expected = model.encode_document(texts, normalize_embeddings=True)
    np.testing.assert_allclose(vectors(place("text"), records), expected, atol=1e-6)
    query = vectors(place("text"), [{"text": "photo.jpg"}], kind="query")
    np.testing.assert_allclose(query, model.encode_query(["photo.jpg"], normalize_embeddings=True), atol=1e-6)
    assert np.abs(query - vectors(place("text"), [{"text": "photo.jpg"}], kind="query", task="category")).max() > 1e-4
    loaded, processor = load_for_evaluation(place("text"), device="cpu")
    with pytest.raises(ProductError, match="sentence_transformer reads no pictures"):
        processor(products=[SHOES])
    assert encode(loaded, processor, PRODUCTS, progress=False).kept == [2]


@torch.inference_mode()
def test_a_model_of_sentence_transformers_with_two_towers_gives_the_mean(place):
    from sentence_transformers import SentenceTransformer

    folder = folder_of(place("clip"))
    model = SentenceTransformer(folder, device="cpu")
    expected = []
    for text, images in PARTS:
        parts = [normalize(torch.tensor(model.encode(text)), dim=0)] if text else []
        if images:
            seen = [normalize(torch.tensor(model.encode(image)), dim=0) for image in images]
            parts.append(normalize(torch.stack(seen).mean(dim=0), dim=0))
        expected.append(normalize(torch.stack(parts).mean(dim=0), dim=0))
    found = vectors(f"sentence_transformer={folder}", PRODUCTS)
    np.testing.assert_allclose(found, torch.stack(expected).numpy(), atol=1e-6)


def test_a_model_of_sentence_transformers_that_takes_both_together_gets_both_together(tiny_moon):
    from sentence_transformers import SentenceTransformer

    folder = str(tiny_moon())
    model = SentenceTransformer(folder, device="cpu")
    message = {"role": "user", "content": [{"type": "image", "image": image} for image in SHOES["images"]]}
    message["content"] += [{"type": "text", "text": TEXT["shoes"]}]
    inputs = [{"image": BAG["images"], "text": TEXT["bag"]}, TEXT["mug"], PHOTO["images"]]
    expected = [model.encode_document(one, normalize_embeddings=True) for one in inputs]
    found = vectors(f"sentence_transformer={folder}", [BAG, MUG, PHOTO])
    np.testing.assert_allclose(found, np.stack(expected), atol=2e-6)


def open_clip_of(folder: str) -> ModuleType:
    """A module with the three calls of open_clip that are used, over a tiny CLIP of transformers."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pictures = CLIPImageProcessorPil.from_pretrained(folder)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
            return model.get_text_features(input_ids=ids).pooler_output

        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return model.get_image_features(pixel_values=pixels).pooler_output

    def tokenize(texts: list[str]) -> torch.Tensor:
        return tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")[
            "input_ids"
        ]

    module = ModuleType("open_clip")
    module.__spec__ = importlib.util.spec_from_loader("open_clip", loader=None)
    seen = SimpleNamespace(names=[])

    def create(name: str) -> tuple[Any, None, Any]:
        seen.names.append(name)
        return Model(), None, lambda image: pictures(image, return_tensors="pt")["pixel_values"][0]

    module.create_model_and_transforms, module.get_tokenizer, module.seen = create, lambda name: tokenize, seen
    return module


def test_open_clip_models_are_read_through_that_packages_calls(place, monkeypatch):
    folder = folder_of(place("clip"))
    module = open_clip_of(folder)
    monkeypatch.setitem(sys.modules, "open_clip", module)
    found = vectors(f"open_clip={folder}", PRODUCTS)
    np.testing.assert_allclose(found, vectors(place("clip"), PRODUCTS), atol=1e-6)
    load_for_evaluation("open_clip=Marqo/marqo-ecommerce-embeddings-B", device="cpu")
    assert module.seen.names == [f"local-dir:{folder}", "hf-hub:Marqo/marqo-ecommerce-embeddings-B"]


@torch.inference_mode()
def test_a_real_open_clip_model_gives_its_own_vectors(tmp_path):
    open_clip = pytest.importorskip(
        "open_clip", reason="open_clip_torch is not installed (it is no extra of the project)"
    )
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": TOKENS, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    sizes = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": {}}))
    torch.save(open_clip.CLIP(**sizes).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    name = f"local-dir:{tmp_path}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    written = normalize(model.eval().encode_text(open_clip.get_tokenizer(name)([TEXT["bag"]])), dim=-1)
    picture = normalize(model.encode_image(transform(BAG["images"])[None]), dim=-1)
    found = vectors(f"open_clip={tmp_path}", PRODUCTS)
    np.testing.assert_allclose(found[1:2], normalize(written + picture, dim=-1).numpy(), atol=1e-6)
    alone = np.concatenate([vectors(f"open_clip={tmp_path}", [one]) for one in PRODUCTS])
    np.testing.assert_allclose(found, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("clip", "expected clip=FOLDER or clip=HUB_ID"),
        ("bm25=somewhere", "expected bm25"),
        ("clip={siglip}", "model type 'siglip'; expected clip"),
        ("siglip={clip}", "model type 'clip'; expected siglip or siglip2"),
        ("gme={base}", "model type 'qwen3_vl'; expected qwen2_vl"),
        ("vlm_mean={clip}", "model type 'clip'; expected qwen3_vl, qwen2_5_vl, qwen2_vl, internvl"),
        ("clip=no/such/place", "no/such/place"),
    ],
)
def test_a_model_that_its_kind_cannot_load_is_refused(place, tiny_base, model, message):
    named = model.format(clip=folder_of(place("clip")), siglip=folder_of(place("siglip")), base=tiny_base("qwen3_vl"))
    with pytest.raises(CheckpointError, match=message):
        load_for_evaluation(named, device="cpu")


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        CheckpointError, match="needs the package open_clip, which is not installed; expected pip install"
    ):
        require_loadable("open_clip=Marqo/marqo-ecommerce-embeddings-B")


def test_a_folder_that_is_called_like_a_kind_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_kind("bm25") == ("bm25", "")
    (tmp_path / "bm25").mkdir()
    assert named_kind("bm25") is None
    with pytest.raises(CheckpointError, match="no config.json"):
        require_loadable("bm25")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="the folder is empty"):
        require_loadable("clip=empty")
    assert set(KINDS) > {"clip", "siglip", "open_clip", "gme", "bm25", "sentence_transformer"}


def test_a_processor_of_peers_wants_one_kind_of_records(place):
    _, processor = load_for_evaluation(place("clip"), device="cpu")
    with pytest.raises(ValueError, match="either products= or queries="):
        processor(products=[], queries=[])
