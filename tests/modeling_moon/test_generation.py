"""Generation from a picture prompt as the base runs it: from embeddings, with an assistant, on from a cache; and int8 weights."""

import pytest
import torch
from pictures import noise
from transformers import DynamicCache

from modeling_moon import MoonForConditionalGeneration, MoonModel
from modeling_moon.positions_moon import pictures_of_rows
from processing_moon import MoonProcessor

pytestmark = pytest.mark.lowest

PRESETS = [(backbone, preset) for backbone in ("qwen3_vl", "qwen2_5_vl") for preset in ("moon1", "moon2", "moon3")]
VISION = "<|vision_start|><|image_pad|><|vision_end|>"
SETTINGS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module", params=PRESETS, ids=lambda pair: "-".join(pair))
def pair(request, tiny_moon):
    backbone, preset = request.param
    folder = tiny_moon(backbone, preset=preset, trained=True)
    return MoonForConditionalGeneration.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)


def prompts(processor, texts, images):
    return dict(processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt"))


def one_prompt(processor):
    return prompts(processor, [f"{VISION}red running shoes, red running"], [[noise(96, 64)]])


def several_prompts(processor):
    images = [[noise(96, 64)], [], [noise(64, 64, 1), noise(64, 128, 2)]]
    return prompts(processor, [f"{VISION}red shoes", "a blue mug", f"{VISION}{VISION}bag"], images)


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_embeddings_write_what_their_ids_write(pair, strategy):
    writer, processor = pair
    batch = several_prompts(processor)
    width = batch["input_ids"].shape[1]
    by_embeddings = {name: batch[name] for name in ("attention_mask", "pixel_values", "image_grid_thw")}
    by_embeddings["inputs_embeds"] = writer.get_input_embeddings()(batch["input_ids"])
    if writer.config.reads_aspects:
        with pytest.raises(ValueError, match="found inputs_embeds; expected input_ids"):
            writer.generate(**by_embeddings, **SETTINGS, **strategy)
        return
    expected = writer.generate(**batch, **SETTINGS, **strategy)[:, width:]
    assert torch.equal(writer.generate(**by_embeddings, **SETTINGS, **strategy), expected)


def test_embeddings_give_the_states_of_their_ids(tiny_moon):
    for backbone in ("qwen3_vl", "qwen2_5_vl"):
        folder = tiny_moon(backbone, preset="moon2", trained=True)
        model = MoonModel.from_pretrained(folder).eval()
        batch = several_prompts(MoonProcessor.from_pretrained(folder))
        attended = batch["attention_mask"].bool()
        with torch.no_grad():
            expected = model(**batch, output_embeddings=False).last_hidden_state[attended]
            batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
            batch.pop("mm_token_type_ids", None)
            found = model(**batch, output_embeddings=False).last_hidden_state[attended]
        torch.testing.assert_close(found, expected)


def test_an_assistant_sees_the_pictures_and_changes_nothing(pair):
    writer, processor = pair
    batch = one_prompt(processor)
    expected = writer.generate(**batch, **SETTINGS)
    assistant = MoonForConditionalGeneration.from_pretrained(writer.config._name_or_path).eval()
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.num_assistant_tokens = 3
    assistant.generation_config.assistant_confidence_threshold = 0.0
    passes, seen = [], []
    hooks = [
        writer.model.register_forward_hook(lambda module, inputs, output: passes.append(1)),
        assistant.model.vlm.visual.register_forward_hook(lambda module, inputs, output: seen.append(1)),
    ]
    found = writer.generate(**batch, **SETTINGS, assistant_model=assistant)
    for hook in hooks:
        hook.remove()
    assert torch.equal(found, expected)
    assert len(seen) == 1
    assert len(passes) == 2  # three drafts and one more token, then two: every draft of such an assistant is right


def test_drafts_from_the_prompt_may_hold_its_image_tokens(pair):
    """The prompt ends in what stands before its picture, so that image tokens are drafted; they are no pictures."""
    writer, processor = pair
    batch = prompts(processor, [f"red shoes {VISION} red shoes <|vision_start|>"], [[noise(96, 64)]])
    expected = writer.generate(**batch, **SETTINGS)
    drafted = []
    hook = writer.model.register_forward_pre_hook(
        lambda module, inputs, kwargs: drafted.append(kwargs["input_ids"]), with_kwargs=True
    )
    found = writer.generate(**batch, **SETTINGS, prompt_lookup_num_tokens=3)
    hook.remove()
    assert (drafted[0] == writer.config.image_token_id).sum() > (
        batch["input_ids"] == writer.config.image_token_id
    ).sum()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_image_token_that_was_written_is_text(pair, use_cache):
    writer, processor = pair
    image = writer.config.image_token_id
    others = [token for token in range(writer.config.vocab_size) if token != image]
    for batch in (one_prompt(processor), several_prompts(processor)):
        if not use_cache and len(batch["input_ids"]) > 1:
            batch["mm_token_type_ids"] = (batch["input_ids"] == image).long()
        found = writer.generate(**batch, **SETTINGS, use_cache=use_cache, suppress_tokens=others)
        assert (found[:, batch["input_ids"].shape[1] :] == image).all()


@pytest.mark.parametrize("given", [True, False])
def test_a_text_prompt_takes_drafts_with_and_without_its_token_types(pair, given):
    writer, processor = pair
    batch = prompts(processor, ["red running shoes, red running"], [[]])
    if given:
        batch["mm_token_type_ids"] = torch.zeros_like(batch["input_ids"])
    expected = writer.generate(**batch, **SETTINGS)
    assert torch.equal(writer.generate(**batch, **SETTINGS, prompt_lookup_num_tokens=3), expected)
    assert torch.equal(writer.generate(**batch, **SETTINGS, assistant_model=writer), expected)


def test_a_conversation_goes_on_from_its_cache_with_and_without_a_new_picture(pair):
    """Turn by turn with a cache, in between another conversation, and all at once: the same tokens."""
    writer, processor = pair
    for more, image in ((" and a red bag", None), (f" and {VISION} a red bag", noise(64, 128, 3))):
        batch = several_prompts(processor)
        first = writer.generate(**batch, **SETTINGS, return_dict_in_generate=True)
        writer.generate(**one_prompt(processor), **SETTINGS)
        turn = prompts(processor, [more] * 3, [[image] if image else []] * 3)
        ids = torch.cat([first.sequences, turn["input_ids"]], dim=1)
        added = torch.ones(3, ids.shape[1] - batch["attention_mask"].shape[1], dtype=torch.long)
        mask = torch.cat([batch["attention_mask"], added], dim=1)
        new = {name: turn[name] for name in ("pixel_values", "image_grid_thw") if name in turn}
        found = writer.generate(
            input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **new, **SETTINGS
        )
        pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
        if image:  # in the order of rows: those of the first turn, then the new one of each
            grids = batch["image_grid_thw"].split([1, 0, 2])
            patches = batch["pixel_values"].split([int(grid.prod(dim=-1).sum()) for grid in grids])
            new_grids, new_patches = turn["image_grid_thw"].chunk(3), turn["pixel_values"].chunk(3)
            pictures["image_grid_thw"] = torch.cat([one for both in zip(grids, new_grids, strict=True) for one in both])
            pictures["pixel_values"] = torch.cat(
                [one for both in zip(patches, new_patches, strict=True) for one in both]
            )
        expected = writer.generate(input_ids=ids, attention_mask=mask, **pictures, **SETTINGS)
        assert torch.equal(found, expected)


def test_logits_on_from_a_cache_equal_those_of_the_whole(pair):
    """Through forward, without positions: text after pictures, and pictures after text."""
    writer, processor = pair
    batch = several_prompts(processor)
    aspects = writer.model.find_aspect_ids(batch["input_ids"])
    width = batch["input_ids"].shape[1]
    with torch.no_grad():
        whole = writer(**batch)
        for cut in (1, width - 2):  # before the first picture, and behind the last
            cache, parts = DynamicCache(config=writer.config.text_config), []
            for part in (slice(0, cut), slice(cut, width)):
                step = {
                    "input_ids": batch["input_ids"][:, part],
                    "attention_mask": batch["attention_mask"][:, : part.stop],
                }
                if aspects is not None:
                    step["aspect_ids"] = aspects[:, part]
                if bool((step["input_ids"] == writer.config.image_token_id).any()):
                    step |= {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
                parts.append(writer(**step, past_key_values=cache, use_cache=True).logits)
            kept = batch["attention_mask"].bool()
            torch.testing.assert_close(torch.cat(parts, dim=1)[kept], whole.logits[kept], rtol=1e-4, atol=1e-5)


def test_a_cache_of_other_rows_is_refused(pair):
    writer, processor = pair
    with torch.no_grad():
        cache = writer(**several_prompts(processor), use_cache=True).past_key_values
        step = {"input_ids": torch.full((2, 1), 40), "aspect_ids": torch.zeros(2, 1, dtype=torch.long)}
        with pytest.raises(ValueError, match="past_key_values: found 2 rows; expected a multiple of 3"):
            writer(**step, past_key_values=cache)


def test_pictures_are_counted_by_their_tokens():
    grids = torch.tensor([[1, 4, 4], [1, 2, 2], [1, 4, 2]])
    is_image = torch.zeros(4, 8, dtype=torch.bool)
    is_image[1, :5] = is_image[3, 6:] = True
    assert pictures_of_rows(is_image, grids, merge_size=2) == [0, 2, 0, 1]
    is_image[0, 0] = True
    with pytest.raises(ValueError, match="found 8 image tokens in the rows; expected 7"):
        pictures_of_rows(is_image, grids, merge_size=2)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("reasoning", ["none", "generate"])
def test_int8_weights_give_vectors_near_the_exact_ones(pair, reasoning):
    """Dynamic quantisation replaces the linear layers by ones whose weight is a method."""
    writer, processor = pair
    if reasoning == "generate" and processor.max_reasoning_tokens is None:
        with pytest.raises(ValueError, match="this model does not reason"):
            MoonModel.from_pretrained(writer.config._name_or_path).embed([{"title": "red"}], reasoning=reasoning)
        return
    products = [{"title": "red shoes", "images": [noise(96, 64)]}, {"title": "a blue mug"}]
    options = {"processor": processor, "reasoning": reasoning}
    exact = MoonModel.from_pretrained(writer.config._name_or_path).eval()
    small = torch.ao.quantization.quantize_dynamic(exact, {torch.nn.Linear}, dtype=torch.qint8)
    assert small.vlm.language_model.layers[0].self_attn.q_proj.weight().is_quantized
    with torch.no_grad():
        found, expected = small.embed(products, **options), exact.embed(products, **options)
    torch.testing.assert_close(found.embeddings.norm(dim=1), torch.ones(2))
    if reasoning == "none":
        assert (found.embeddings * expected.embeddings).sum(dim=1).min() > 0.9
