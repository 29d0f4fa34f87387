"""Explanations against slow references written from the formula; their drawing; the command line end to end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import file_of, noise
from PIL import Image
from table_files import write_table
from transformers import AutoModel, PreTrainedModel

from evaluation.heatmap import Explanation, PictureHeat, draw_explanation, eager_attention, explain
from moon3.__main__ import main
from processing_moon import ProductError
from retrieval.encode import load_for_evaluation

FULL = {
    "id": "p1",
    "title": "red running shoes for women",
    "category": ["Home", "Shoes"],
    "attributes": {"colour": ["red", "white"], "material": "cotton"},
    "description": "a white sole, gold buckle.",
    "images": [noise(112, 168), noise(168, 56, 1)],
    "core_box": [0, 0, 112, 84],
}
TEXT_ONLY = {"id": "p2", "title": "brown leather tote bag"}
IMAGE_ONLY = {"id": "p3", "images": noise(140, 140, 2)}
QUERY = {"id": "q1", "text": "same in green", "image": noise(112, 112, 3)}


@pytest.fixture(scope="module")
def load(tiny_moon: Callable[..., Path]) -> Callable[..., tuple[Any, Any]]:
    made: dict[Any, tuple[Any, Any]] = {}

    def get(backbone: str = "qwen3_vl", readout: str = "mean") -> tuple[Any, Any]:
        if (backbone, readout) not in made:
            made[backbone, readout] = load_for_evaluation(
                tiny_moon(backbone, trained=True, readout=readout), device="cpu"
            )
        return made[backbone, readout]

    return get


def slow_attention(
    model: Any, processor: Any, record: dict[str, Any], layers: tuple[int, ...] = (0, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and a_k by loops over layers, heads, rows and tokens, from the model's own attentions."""
    batch = processor(records=[record])
    ids = batch["input_ids"][0].tolist()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model(**batch, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    rows = read_rows(processor.tokenizer, ids)
    if model.config.readout != "mean":
        rows = [len(ids) - 1] if model.config.readout == "last" else [ids.index(model.config.emb_token_id)]
    total = np.zeros(len(ids))
    terms = 0
    for layer in layers:
        for head in attentions[layer][0].double().numpy():
            for row in rows:
                terms += 1
                for k in range(len(ids)):
                    total[k] += head[row, k]
    return np.array(ids), total / terms


def read_rows(tokenizer: Any, ids: list[int]) -> list[int]:
    """Places of what the mean is over: tokens of the user's turn but the markers, read off the tokens' characters."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    turn = [place for place, token in enumerate(tokens) if token == "<|im_start|>"][1]
    start = next(place for place in range(turn, len(tokens)) if tokens[place] == "Ċ") + 1
    end = tokens.index("<|im_end|>", start)
    return [
        at for at in range(start, end) if tokens[at] == "<|image_pad|>" or not re.fullmatch(r"<\|\w+\|>", tokens[at])
    ]


@pytest.mark.parametrize("readout", ["mean", "emb", "last"])
@pytest.mark.parametrize("backbone", ["qwen3_vl", "qwen2_5_vl"])
def test_attention_of_pictures_crop_and_words_is_that_of_a_loop_over_tokens(
    load: Callable[..., tuple[Any, Any]], backbone: str, readout: str
) -> None:
    model, processor = load(backbone, readout)
    (found,) = explain(model, processor, [FULL])
    ids, expected = slow_attention(model, processor, FULL)
    assert np.array_equal(found.input_ids, ids)
    np.testing.assert_allclose(found.attention, expected, atol=1e-6)
    assert found.attention.sum() == pytest.approx(1, abs=1e-5)
    assert (found.record_id, found.kind, found.readout, found.layers) == ("p1", "product", readout, (0, 1))

    of_images = expected[ids == model.config.image_token_id]
    assert [picture.name for picture in found.pictures] == ["picture 1", "core crop", "picture 2"]
    place = 0
    for picture in found.pictures:
        assert picture.heat.dtype == np.float32
        side = processor.image_processor.patch_size * processor.image_processor.merge_size
        assert picture.pixels.shape == (picture.heat.shape[0] * side, picture.heat.shape[1] * side, 3)
        for row in range(picture.heat.shape[0]):
            for column in range(picture.heat.shape[1]):
                assert picture.heat[row, column] == pytest.approx(of_images[place] / of_images.sum(), abs=1e-5)
                place += 1
    assert place == len(of_images)

    words, weights = slow_words(processor.tokenizer, ids, expected)
    assert list(found.words) == words
    np.testing.assert_allclose(found.word_weights, weights, atol=1e-5)
    assert len({round(float(weight), 6) for weight in found.word_weights}) > 5  # not all alike


def slow_words(tokenizer: Any, ids: np.ndarray, attention: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Words of the user's turn with the tokenizer's own offsets, markers blanked out."""
    text = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert coded["input_ids"] == ids.tolist()
    start = text.rindex("<|vision_end|>") + len("<|vision_end|>")
    end = text.index("<|im_end|>", start)
    blanked = re.sub(r"<\|\w+\|>", lambda match: " " * len(match.group()), text[:end])
    words, weights = [], []
    for match in re.finditer(r"\S+", blanked[start:]):
        first, last = match.start() + start, match.end() + start
        words.append(match.group())
        weights.append(0.0)
        for (a, b), weight in zip(coded["offset_mapping"], attention, strict=True):
            inside = [at for at in range(a, b) if not text[at].isspace()]
            if inside and first <= inside[0] < last:
                weights[-1] += weight
    return words, np.array(weights) / sum(weights)


def test_shares_are_the_sums_of_the_sets_that_they_name(load: Callable[..., tuple[Any, Any]]) -> None:
    for readout in ("mean", "emb"):
        model, processor = load(readout=readout)
        (found,) = explain(model, processor, [FULL])
        ids, expected = slow_attention(model, processor, FULL)
        assert sum(found.shares.values()) == pytest.approx(1, abs=1e-6)
        assert found.shares["first token"] == pytest.approx(expected[0], abs=1e-6)
        pictures = sum(found.shares[name] for name in ("picture 1", "core crop", "picture 2"))
        assert pictures == pytest.approx(expected[ids == model.config.image_token_id].sum(), abs=1e-6)
        crop = found.pictures[1].heat.sum() * pictures
        assert found.shares["core crop"] == pytest.approx(crop, abs=1e-5)
        parts = ("title", "category", "attributes", "description")
        of_words = sum(found.shares[part] for part in parts)
        for part in parts:
            of_part = sum(w for w, p in zip(found.word_weights, found.word_parts, strict=True) if p == part)
            assert found.shares[part] == pytest.approx(of_part * of_words, abs=1e-5)
        turn_end = ids.tolist().index(processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        assert found.shares["instruction"] == pytest.approx(expected[1:turn_end].sum(), abs=1e-6)
        assert ("read-out token" in found.shares) == (readout == "emb")
        if readout == "emb":
            assert found.shares["read-out token"] == pytest.approx(expected[-1], abs=1e-6)


def test_every_word_belongs_to_its_part(load: Callable[..., tuple[Any, Any]]) -> None:
    (found,) = explain(*load(), [FULL])
    parts: dict[str, list[str]] = {}
    for word, part in zip(found.words, found.word_parts, strict=True):
        parts.setdefault(part, []).append(word)
    assert {part: " ".join(words) for part, words in parts.items()} == {
        "title": "red running shoes for women",
        "category": "Home > Shoes",
        "attributes": "colour: red, white; material: cotton",
        "description": "a white sole, gold buckle.",
    }


def test_pictures_are_what_the_model_saw(load: Callable[..., tuple[Any, Any]]) -> None:
    model, processor = load()
    picture = noise(96, 64)  # whole tokens of 32 by 32 pixels: the processor does not resize it
    (found,) = explain(model, processor, [{"id": "p", "images": [picture], "core_box": [32, 0, 96, 64]}])
    assert np.array_equal(found.pictures[0].pixels, np.asarray(picture))
    assert found.pictures[0].heat.shape == (2, 3)
    assert np.array_equal(found.pictures[1].pixels, np.asarray(picture)[:, 32:])


def test_text_only_image_only_and_query(load: Callable[..., tuple[Any, Any]]) -> None:
    model, processor = load()
    text, image, query = explain(model, processor, [TEXT_ONLY, IMAGE_ONLY, QUERY])
    assert text.pictures == ()
    assert text.words == ("brown", "leather", "tote", "bag")
    assert set(text.word_parts) == {"title"}
    assert text.word_weights.sum() == pytest.approx(1, abs=1e-6)
    assert image.words == ()
    assert image.word_weights.shape == (0,)
    assert sum(picture.heat.sum() for picture in image.pictures) == pytest.approx(1, abs=1e-6)
    assert query.kind == "query"
    assert query.words == ("same", "in", "green")
    assert set(query.word_parts) == {"text"}
    for one, record in ((text, TEXT_ONLY), (image, IMAGE_ONLY), (query, QUERY)):
        ids, expected = slow_attention(model, processor, record)
        assert np.array_equal(one.input_ids, ids)
        np.testing.assert_allclose(one.attention, expected, atol=1e-6)
        assert (one.gates, one.reasoning) == (None, None)


def test_layers_are_averaged_as_chosen(load: Callable[..., tuple[Any, Any]]) -> None:
    model, processor = load()
    first, second, both = (explain(model, processor, [FULL], layers=layers)[0] for layers in ([0], [1], [1, 0, 1]))
    assert (first.layers, both.layers) == ((0,), (0, 1))
    assert np.abs(first.attention - second.attention).max() > 1e-5
    np.testing.assert_allclose((first.attention + second.attention) / 2, both.attention, atol=1e-7)
    np.testing.assert_allclose(second.attention, slow_attention(model, processor, FULL, (1,))[1], atol=1e-6)
    for wrong in ([2], [-1], [], [True]):
        with pytest.raises(ValueError, match="expected one or more of 0 to 1"):
            explain(model, processor, [FULL], layers=wrong)


def test_relative_heat_is_flat_where_attention_is_uniform(tiny_moon: Callable[..., Path]) -> None:
    model, processor = load_for_evaluation(tiny_moon(), device="cpu")
    for layer in model.vlm.language_model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    (plain,) = explain(model, processor, [IMAGE_ONLY])
    (relative,) = explain(model, processor, [IMAGE_ONLY], relative=True)
    heat = plain.pictures[0].heat
    assert (np.diff(heat.ravel()) < 0).all()  # the earlier a token, the more rows see it
    np.testing.assert_allclose(relative.pictures[0].heat, 1 / heat.size, atol=1e-6)
    assert relative.shares == plain.shares


def test_relative_weights_divide_by_a_slow_reference_and_change_nothing_where_one_row_is_read(
    load: Callable[..., tuple[Any, Any]],
) -> None:
    model, processor = load()
    (relative,) = explain(model, processor, [FULL], relative=True)
    ids, expected = slow_attention(model, processor, FULL)
    rows = read_rows(processor.tokenizer, ids.tolist())
    for k in range(len(ids)):
        uniform = 0.0
        for row in rows:
            if row >= k:
                uniform += 1 / (row + 1) / len(rows)
        expected[k] = expected[k] / uniform if uniform else 0.0
    of_images = expected[ids == model.config.image_token_id]
    heats = np.concatenate([picture.heat.ravel() for picture in relative.pictures])
    np.testing.assert_allclose(heats, of_images / of_images.sum(), atol=1e-6)
    emb = load(readout="emb")
    for one, other in zip(explain(*emb, [FULL]), explain(*emb, [FULL], relative=True), strict=True):
        np.testing.assert_allclose(one.word_weights, other.word_weights, atol=1e-6)


def implementations(model: Any) -> list[str]:
    return [part.config._attn_implementation for part in model.modules() if isinstance(part, PreTrainedModel)]


def test_attention_implementation_and_mode_are_restored_also_after_an_error(tiny_moon: Callable[..., Path]) -> None:
    model, processor = load_for_evaluation(tiny_moon(), device="cpu")
    model.vlm.visual.config._attn_implementation = "eager"
    before = implementations(model)
    assert set(before) == {"sdpa", "eager"}
    seen: list[list[str]] = []
    model.register_forward_pre_hook(lambda *_: seen.append(implementations(model)))
    model.train()
    explain(model, processor, [FULL])
    assert implementations(model) == before
    assert model.training
    assert set(seen[0]) == {"eager"}
    with pytest.raises(ProductError):
        explain(model, processor, [TEXT_ONLY, {"id": "broken", "images": [b"nonsense"]}])
    with pytest.raises(RuntimeError, match="on purpose"), eager_attention(model):
        raise RuntimeError("on purpose")
    model.vlm.language_model.layers[0].self_attn.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain(model, processor, [TEXT_ONLY])
    assert implementations(model) == before
    assert model.training
    assert not any(layer.self_attn._forward_hooks for layer in model.vlm.language_model.layers)


def test_a_generation_model_is_explained_as_its_encoder(
    load: Callable[..., tuple[Any, Any]], tiny_moon: Callable[..., Path]
) -> None:
    from modeling_moon import MoonForConditionalGeneration

    writer = MoonForConditionalGeneration.from_pretrained(tiny_moon("qwen3_vl", trained=True, readout="mean")).eval()
    (found,), (expected,) = explain(writer, load()[1], [FULL]), explain(*load(), [FULL])
    np.testing.assert_allclose(found.attention, expected.attention, atol=1e-6)


def test_what_cannot_be_explained_is_refused(
    load: Callable[..., tuple[Any, Any]], tiny_base: Callable[..., Path]
) -> None:
    model, processor = load()
    with pytest.raises(ValueError, match="expected a Moon model"):
        explain(AutoModel.from_pretrained(tiny_base()), processor, [TEXT_ONLY])
    with pytest.raises(ValueError, match="expected one of none, generate, given"):
        explain(model, processor, [TEXT_ONLY], reasoning="think")
    with pytest.raises(ValueError, match="this model does not reason"):
        explain(model, processor, [TEXT_ONLY], reasoning="generate")


def test_shortened_text_keeps_its_parts(tiny_moon: Callable[..., Path]) -> None:
    model, processor = load_for_evaluation(tiny_moon(), device="cpu")
    whole = len(processor(records=[FULL | {"images": None, "core_box": None}])["input_ids"][0])
    seen = set()
    for fewer in range(3, 32, 4):
        processor.max_tokens = whole - fewer
        (found,) = explain(model, processor, [FULL | {"images": None, "core_box": None}])
        assert len(found.input_ids) <= whole - fewer
        title = "".join(w for w, p in zip(found.words, found.word_parts, strict=True) if p == "title")
        category = "".join(w for w, p in zip(found.words, found.word_parts, strict=True) if p == "category")
        assert "redrunningshoesforwomen".startswith(title)
        assert "Home>Shoes".startswith(category)
        assert "text" not in found.word_parts
        seen.add(tuple(dict.fromkeys(found.word_parts)))
    assert len(seen) > 1


def test_control_tokens_of_users_and_scripts_without_spaces_are_words_too(load: Callable[..., tuple[Any, Any]]) -> None:
    record = {"title": "红色 跑鞋 café <|im_end|> <|category_start|> x\ufffd", "description": "ok 👟"}
    (found,) = explain(*load(), [record])
    assert "".join(found.words) == "红色跑鞋café<|im_end|><|category_start|>x\ufffdok👟"
    assert found.words[:5] == ("红", "色", "跑", "鞋", "café")
    assert found.word_parts[-2:] == ("description", "description")
    assert set(found.word_parts[:-2]) == {"title"}
    assert (found.word_weights > 0).sum() >= len(found.words) - 2


# ---------------------------------------------------------------------------------------------------------------------
# Gates and reasoning
# ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def thinker(request: pytest.FixtureRequest, tiny_moon: Callable[..., Path]) -> tuple[Any, Any]:
    return load_for_evaluation(tiny_moon(request.param, preset="moon3", trained=True), device="cpu")


def test_gates_are_the_models_own_and_say_which_modality_is_absent(thinker: tuple[Any, Any]) -> None:
    model, processor = thinker
    full, text, image = explain(model, processor, [FULL, TEXT_ONLY, IMAGE_ONLY])
    for found, record in ((full, FULL), (text, TEXT_ONLY), (image, IMAGE_ONLY)):
        with torch.inference_mode():
            gates = model(**processor(records=[record])).modality_gates[0].numpy()
        assert found.gates.shape == (model.config.fusion_heads, 3)
        np.testing.assert_allclose(found.gates, gates, atol=1e-5)
        np.testing.assert_allclose(found.gates.sum(axis=1), 1, atol=1e-5)
        assert found.reasoning is None
    assert (text.gates[:, 1] == 0).all()
    assert (image.gates[:, 2] == 0).all()
    assert (full.gates > 0).all()
    (query,) = explain(model, processor, [QUERY])
    assert (query.words, set(query.word_parts)) == (("same", "in", "green"), {"text"})
    assert full.word_parts[:5] == ("title",) * 5
    assert full.words[:5] == ("red", "running", "shoes", "for", "women")


def test_given_reasoning_is_read_and_has_a_share_of_its_own(thinker: tuple[Any, Any]) -> None:
    model, processor = thinker
    record = FULL | {"reasoning": "colour: red, white; material: cotton"}
    (found,) = explain(model, processor, [record], reasoning="given")
    assert found.reasoning.attributes == {"colour": ("red", "white"), "material": ("cotton",)}
    assert found.reasoning.well_formed
    batch = processor(records=[record], reasoning="given")
    ids = batch["input_ids"][0].tolist()
    assert found.input_ids.tolist() == ids
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model(**batch, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    expected = np.mean([layer[0, head, -1].numpy() for layer in attentions for head in range(layer.shape[1])], axis=0)
    np.testing.assert_allclose(found.attention, expected, atol=1e-6)
    opened, closed = ids.index(model.config.think_start_token_id), ids.index(model.config.think_end_token_id)
    assert found.shares["reasoning"] == pytest.approx(expected[opened + 1 : closed].sum(), abs=1e-6)
    assert found.words == explain(model, processor, [FULL])[0].words


def test_written_reasoning_is_what_the_model_wrote_and_read(thinker: tuple[Any, Any]) -> None:
    model, processor = thinker
    for record in (FULL, TEXT_ONLY):
        (found,) = explain(model, processor, [record], reasoning="generate")
        embedded = model.embed([record], reasoning="generate", processor=processor)
        assert found.input_ids.tolist() == embedded.input_ids[0][embedded.attention_mask[0].bool()].tolist()
        assert found.input_ids[-1] == model.config.emb_token_id
        assert found.reasoning == embedded.reasoning[0]
        np.testing.assert_allclose(found.gates, embedded.modality_gates[0].numpy(), atol=1e-4)
        assert sum(found.shares.values()) == pytest.approx(1, abs=1e-5)
        assert found.shares["reasoning"] > 0
        drawn = draw_explanation(found)
        assert drawn.height > draw_explanation(replace(found, gates=None)).height


def test_the_command_writes_gates_and_reasoning_into_the_index(
    tiny_moon: Callable[..., Path], shop: Path, tmp_path: Path
) -> None:
    model = str(tiny_moon("qwen3_vl", preset="moon3", trained=True))
    command = ["heatmap", "--model", model, "--data", str(shop), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--ids", "a", "--reasoning", "generate"]) == 0
    (entry,) = json.loads((tmp_path / "out" / "index.json").read_text())["items"]
    assert all(sum(head) == pytest.approx(1, abs=1e-4) for head in entry["gates"])
    assert entry["reasoning"]["text"]
    assert entry["shares"]["reasoning"] > 0


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------
def by_hand(**changes: Any) -> Explanation:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    made = Explanation(
        record_id="x",
        kind="product",
        readout="emb",
        layers=(0, 1, 2),
        relative=False,
        pictures=(PictureHeat("picture 1", np.full((128, 128, 3), 255, np.uint8), heat),),
        words=("cold", "hot"),
        word_parts=("title", "title"),
        word_weights=np.array([0.0, 1.0], np.float32),
        shares={"picture 1": 0.6, "title": 0.4},
        attention=np.ones(1, np.float32),
        input_ids=np.zeros(1, np.int64),
    )
    return replace(made, **changes)


def greenness(drawn: Image.Image, box: tuple[int, int, int, int]) -> float:
    """Mean of the green channel: the heat's colours lose green as they grow."""
    return float(np.asarray(drawn.crop(box), dtype=float)[..., 1].mean())


def test_what_is_hot_is_drawn_hot() -> None:
    drawn = draw_explanation(by_hand())
    assert (drawn.mode, drawn.width) == ("RGB", 1120)
    pixels = np.asarray(drawn.convert("RGB"), dtype=int)
    hot = np.argwhere((pixels[..., 0] - pixels[..., 1] > 60) & (pixels[..., 2] < 120))
    assert len(hot) > 500
    cold = draw_explanation(by_hand(pictures=(replace(by_hand().pictures[0], heat=np.zeros((4, 4), np.float32)),)))
    assert drawn.size == cold.size
    changed = np.argwhere(np.abs(pixels - np.asarray(cold, dtype=int)).sum(axis=2) > 120)
    picture = np.argwhere(np.abs(pixels - np.asarray(cold, dtype=int)).sum(axis=2) > 0)
    middle = picture.min(axis=0) + (picture.max(axis=0) - picture.min(axis=0)) / 2
    assert len(changed) > 500
    assert changed[:, 1].mean() > middle[1]  # the upper right patch is the hot one
    assert changed[:, 0].max() < picture.min(axis=0)[0] + 150


def test_gates_and_reasoning_are_drawn_where_they_are() -> None:
    plain = draw_explanation(by_hand())
    gates = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]], np.float32)
    with_gates = draw_explanation(by_hand(gates=gates))
    assert with_gates.height > plain.height + 3 * 26
    other = draw_explanation(by_hand(gates=gates[:, ::-1]))
    assert other.size == with_gates.size
    assert np.abs(np.asarray(other, dtype=int) - np.asarray(with_gates, dtype=int)).max() > 50
    written = SimpleNamespace(
        text="colour: red; hm",
        attributes={"colour": ("red", "white")},
        unparsed=("hm",),
        closed=False,
        well_formed=False,
    )
    reasoned = draw_explanation(by_hand(reasoning=written))
    assert reasoned.height > plain.height + 3 * 28
    fewer = draw_explanation(by_hand(reasoning=SimpleNamespace(**(vars(written) | {"unparsed": (), "closed": True}))))
    assert fewer.height == reasoned.height - 2 * 28
    entry = by_hand(gates=gates, reasoning=written).as_dict()
    assert entry["gates"] == [[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]
    assert entry["reasoning"]["attributes"] == {"colour": ["red", "white"]}
    assert entry["reasoning"]["unparsed"] == ["hm"]


def test_long_titles_many_pictures_and_odd_shapes_stay_within_the_sheet() -> None:
    thin = PictureHeat("picture 1", np.zeros((32, 3200, 3), np.uint8), np.full((1, 100), 0.005, np.float32))
    tall = PictureHeat("picture 2", np.zeros((3200, 32, 3), np.uint8), np.full((100, 1), 0.005, np.float32))
    words = ("a" * 400, *("word",) * 200)
    drawn = draw_explanation(
        by_hand(
            record_id="y" * 500,
            pictures=(thin, tall, *(replace(tall, name=f"picture {n}") for n in range(3, 12))),
            words=words,
            word_parts=("title",) * 201,
            word_weights=np.full(201, 1 / 201, np.float32),
            shares={f"picture {n}": 0.05 for n in range(1, 12)} | {"title": 0.45},
        )
    )
    assert drawn.width == 1120
    edge = np.asarray(drawn)[:, -20:]
    assert (edge == edge[0, 0]).all()  # nothing runs over the right margin


def test_a_font_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot open resource|unknown file format"):
        draw_explanation(by_hand(), font=tmp_path / "no.ttf")


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    for seed, name in enumerate(("a", "b")):
        noise(64, 64, seed).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"nonsense")
    products = [
        {"product_id": "a", "title": "red shoes", "images": ["a.png"]},
        {"product_id": "b/../c d", "title": "blue bag", "images": ["b.png"]},
        {"product_id": "bad", "title": "no such picture", "images": ["broken.png"]},
        {"product_id": "A", "title": "another"},
    ]
    queries = [{"query_id": "q", "text": "shoes", "positives": ["a"]}]
    for part, rows in (("products", products), ("queries", queries)):
        write_table(folder / f"{part}.jsonl", rows)
    return folder


def test_the_command_draws_each_product_keeps_what_is_there_and_reports_what_it_cannot_read(
    tiny_moon: Callable[..., Path], shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    command = ["heatmap", "--model", str(tiny_moon()), "--data", str(shop), "--output", str(out), "--device", "cpu"]
    assert main([*command, "--ids", "b/../c d"]) == 0
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "2 drawn, 1 kept, 1 unreadable" in printed.out
    assert "images[0]" in printed.err
    index = json.loads((out / "index.json").read_text())
    files = {entry["id"]: entry["file"] for entry in index["items"]}
    assert files.keys() == {"a", "A", "b/../c d"}
    assert sorted(path.name for path in out.glob("*")) == sorted([*files.values(), "index.json"])
    assert files["a"] == "a.png"
    assert len({name.casefold() for name in files.values()}) == 3
    assert re.fullmatch(r"[A-Za-z0-9._-]+\.png", files["b/../c d"])
    assert [(entry["id"], entry["field"]) for entry in index["unreadable"]] == [("bad", "images[0]")]
    for entry in index["items"]:
        assert sum(entry["shares"].values()) == pytest.approx(1, abs=1e-4)
        assert Image.open(out / entry["file"]).width == 1120
    (out / files["a"]).write_bytes(b"kept as it is")
    assert main([*command, "--first", "1"]) == 0
    assert (out / files["a"]).read_bytes() == b"kept as it is"
    assert main([*command, "--first", "1", "--overwrite"]) == 0
    assert Image.open(out / files["a"]).width == 1120
    assert len(json.loads((out / "index.json").read_text())["items"]) == 3


def test_without_text_the_pictures_of_a_product_are_drawn_again_beside_it(
    tiny_moon: Callable[..., Path], shop: Path, tmp_path: Path
) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    command = ["heatmap", "--model", str(tiny_moon()), "--data", str(shop), "--device", "cpu", "--ids", "a", "A"]
    assert main([*command, "--output", str(out), "--without-text"]) == 0
    assert main([*command, "--output", str(plain)]) == 0
    entries = {entry["id"]: entry for entry in json.loads((out / "index.json").read_text())["items"]}
    assert Image.open(out / entries["a"]["file"]).width == 2 * 1120
    assert Image.open(out / entries["A"]["file"]).width == 1120  # a product without a picture
    alone = entries["a"]["without_text"]
    assert "without_text" not in entries["A"]
    assert "title" in entries["a"]["shares"]
    assert "title" not in alone["shares"]
    assert sum(alone["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert alone["shares"] != entries["a"]["shares"]
    whole = {entry["id"]: entry for entry in json.loads((plain / "index.json").read_text())["items"]}
    assert whole["a"]["shares"] == entries["a"]["shares"]
    assert main([*command, "--output", str(plain), "--without-text"]) == 2  # drawn without


def test_the_command_refuses_to_mix_and_names_what_is_not_there(
    tiny_moon: Callable[..., Path], shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    command = ["heatmap", "--model", str(tiny_moon()), "--data", str(shop), "--output", str(out), "--device", "cpu"]
    assert main([*command, "--ids", "a", "--layers", "1"]) == 0
    assert main([*command, "--ids", "a", "--queries"]) == 2
    assert "no query 'a'" in capsys.readouterr().err
    assert main([*command, "--queries"]) == 2
    assert "other settings (kind, layers)" in capsys.readouterr().err
    assert main([*command, "--queries", "--overwrite"]) == 0
    assert sorted(path.name for path in out.glob("*")) == ["index.json", "q.png"]
    assert main([*command, "--first", "0"]) == 2
    assert "expected 1 or more" in capsys.readouterr().err
    assert main([*command, "--ids", "bad", "--overwrite"]) == 1
    assert main([*command, "--font", str(shop / "a.png"), "--overwrite"]) == 2
    assert f"--font {shop / 'a.png'}: " in capsys.readouterr().err


@pytest.mark.parametrize("content", ["not json", "[]", '{"pages": 3}', '{"settings": {}, "items": [{"id": "a"}]}'])
def test_an_index_of_something_else_is_left_alone(
    tiny_moon: Callable[..., Path], shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture, content: str
) -> None:
    (tmp_path / "index.json").write_text(content)
    command = [
        "heatmap",
        "--model",
        str(tiny_moon()),
        "--data",
        str(shop),
        "--output",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    assert main([*command, "--overwrite"]) == 2
    assert "expected another --output, or a folder without index.json" in capsys.readouterr().err
    assert (tmp_path / "index.json").read_text() == content


def test_bytes_are_read_as_well_as_files(load: Callable[..., tuple[Any, Any]]) -> None:
    (found,) = explain(*load(), [{"title": "mug", "images": [file_of(noise(64, 64))]}])
    assert found.record_id == "product"
    assert found.pictures[0].heat.shape == (2, 2)
