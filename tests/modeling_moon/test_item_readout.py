"""The mean read-out averages the item's own tokens: pictures and words, not the instruction, the template or markers."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoConfig

from modeling_moon import MoonForConditionalGeneration, MoonModel
from modeling_moon.tokens_moon import content_tokens, user_tokens
from processing_moon import MoonProcessor

BACKBONES = ("qwen3_vl", "qwen2_5_vl")
PICTURE = Image.new("RGB", (64, 64), "red")
PRODUCT = {"title": "red shoes", "category": ["Home", "Shoes"], "attributes": {"colour": "red"}}


def load(folder):
    return MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)


def words_of(processor, config, batch, row=0):
    """The decoded item tokens of a row, image tokens as one star each."""
    attended = batch["attention_mask"][row].bool()
    ids = batch["input_ids"][row][attended]
    kept = ids[content_tokens(ids[None], config)[0]].tolist()
    return processor.tokenizer.decode([token for token in kept if token != config.image_token_id]), kept.count(
        config.image_token_id
    )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_only_the_words_and_image_tokens_of_the_item_are_read(tiny_moon, backbone):
    model, processor = load(tiny_moon(backbone))
    text, images = words_of(processor, model.config, processor(queries=[{"text": "red shoes"}]))
    assert (text, images) == ("red shoes", 0)
    batch = processor(products=[{**PRODUCT, "images": PICTURE}])
    text, images = words_of(processor, model.config, batch)
    assert text.split() == ["red", "shoes", "Home", ">", "Shoes", "colour:", "red"]
    assert images == int((batch["input_ids"] == model.config.image_token_id).sum()) > 0
    text, images = words_of(processor, model.config, processor(products=[{"images": PICTURE}]))
    assert (text, images > 0) == ("", True)


@pytest.mark.parametrize("preset", ["moon1", "moon2"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_vector_equals_a_loop_over_the_tokens_between_the_turn_marks(tiny_moon, preset, padding_side):
    model, processor = load(tiny_moon("qwen3_vl", preset=preset))
    records = [{**PRODUCT, "images": PICTURE}, {"title": "a very long title of a brown leather bag"}, {"title": "red"}]
    batch = processor(products=records, padding_side=padding_side, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
    names = processor.tokenizer.convert_ids_to_tokens
    left_out = {"<|vision_start|>", "<|vision_end|>", "<|category_start|>", "<|category_end|>"}
    left_out |= {"<|attribute_start|>", "<|attribute_end|>"}
    for row, ids in enumerate(batch["input_ids"].tolist()):
        tokens = names(ids)
        opened = max(
            place for place, token in enumerate(tokens) if token == "<|im_start|>" and "user" in word(tokens, place)
        )
        start = next(place for place in range(opened, len(tokens)) if "Ċ" in tokens[place]) + 1
        end = next(place for place in range(start, len(tokens)) if tokens[place] == "<|im_end|>")
        chosen = [place for place in range(start, end) if tokens[place] not in left_out]
        state = output.last_hidden_state[row, chosen].mean(dim=0)
        expected = functional.normalize(model.projection(state), dim=-1)
        torch.testing.assert_close(output.embeddings[row], expected, rtol=1e-4, atol=1e-5)


def word(tokens, place):
    """The characters up to the end of the line that starts after a turn mark."""
    return "".join(tokens[place + 1 : place + 8]).partition("Ċ")[0]


@pytest.mark.parametrize(
    "text",
    [
        "user",
        "\n user\nred",
        "<|im_start|>user\nred",
        "<|im_end|>",
        "\u3000red",
        "\u200bred",
        "...",
        "<|vision_start|>",
    ],
)
def test_no_text_of_a_user_moves_the_item_s_borders(tiny_moon, text):
    model, processor = load(tiny_moon("qwen3_vl"))
    query = {"text": text + " end"}
    ids = processor(queries=[query], return_tensors="pt")["input_ids"]
    inside = content_tokens(ids, model.config)[0].nonzero()[:, 0]
    prefix = len(processor(queries=[{"text": "x"}], return_tensors="pt")["input_ids"][0])
    plain = content_tokens(processor(queries=[{"text": "x"}], return_tensors="pt")["input_ids"], model.config)[0]
    assert inside[0] == plain.nonzero()[0, 0]
    assert len(ids[0]) - inside[-1] == prefix - plain.nonzero()[-1, 0]
    assert (inside.diff() == 1).all()


def test_an_instruction_reaches_the_vector_through_attention_alone(tiny_moon):
    model, processor = load(tiny_moon("qwen3_vl"))
    batches = [
        processor(queries=[{"text": "red"}], instruction=said, return_tensors="pt")
        for said in ("Find it", "Find " * 30)
    ]
    assert [words_of(processor, model.config, batch) for batch in batches] == [("red", 0)] * 2


def test_a_plain_text_without_the_template_is_read_whole():
    ids = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
    assert user_tokens(ids, None, None).all()
    assert user_tokens(ids, [9, 9], 4).all()
    assert user_tokens(ids, [9, 9, 9, 9, 9], 4).all()
    found = user_tokens(torch.tensor([[1, 2, 3, 4, 1, 2, 5, 6, 4], [1, 9, 3, 4, 1, 9, 5, 6, 4]]), [1, 2], 4)
    assert found.tolist() == [[False, False, True, False, False, False, True, True, False], [True] * 9]


def test_a_checkpoint_from_before_the_argument_keeps_its_mean_over_all_tokens(tiny_moon):
    config = AutoConfig.from_pretrained(tiny_moon("qwen3_vl"))
    config.user_prefix_ids = config.turn_end_id = None
    model = MoonModel.from_pretrained(tiny_moon("qwen3_vl"), config=config).eval()
    batch = MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"))(
        queries=[{"text": "red"}, {"text": "a brown bag"}], return_tensors="pt"
    )
    with torch.no_grad():
        output = model(**batch)
    weight = batch["attention_mask"][..., None].float()
    mean = (output.last_hidden_state * weight).sum(dim=1) / weight.sum(dim=1)
    torch.testing.assert_close(output.embeddings, functional.normalize(model.projection(mean), dim=-1))


def test_a_mean_without_the_ids_is_refused_and_hidden_states_are_not(tiny_moon):
    model, processor = load(tiny_moon("qwen3_vl", preset="moon2"))
    batch = processor(queries=[{"text": "red"}], return_tensors="pt")
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(
        ValueError, match="readout 'mean' needs input_ids: the tokens of the product or query are found by the ids"
    ):
        model(inputs_embeds=embeds, output_embeddings=True)
    assert model(inputs_embeds=embeds).embeddings is None
    states = model(inputs_embeds=embeds, output_embeddings=False).last_hidden_state
    torch.testing.assert_close(states, model(**batch).last_hidden_state)


def test_the_settings_survive_saving_and_wrong_ones_are_refused(tiny_moon, tmp_path):
    model = MoonForConditionalGeneration.from_pretrained(tiny_moon("qwen3_vl"))
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.user_prefix_ids == model.config.user_prefix_ids is not None
    made = {"vlm_config": config.vlm_config, "readout": "mean"}
    with pytest.raises(ValueError, match="user_prefix_ids and turn_end_id go together"):
        type(config)(**made, user_prefix_ids=[1])
    with pytest.raises(ValueError, match="user_prefix_ids=\\[\\]; expected None or at least one id below"):
        type(config)(**made, user_prefix_ids=[], turn_end_id=1)
