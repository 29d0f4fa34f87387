"""Think, then embed, in one pass: equal to generating and then encoding the whole text; rows that end at different steps."""

import copy

import pytest
import torch
from records import RECORDS

from modeling_moon import MoonForConditionalGeneration, MoonModel
from modeling_moon.thinking_moon import Thinking, _Ending, generation_config, never_written
from processing_moon import MoonProcessor


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl", "qwen3_vl raw"])
def moon3(request, tiny_moon):
    backbone, *source = request.param.split()
    fusion = {"fusion_source": source[0]} if source else {}
    folder = tiny_moon(backbone, preset="moon3", trained=True, matryoshka_dims=[8], **fusion)
    return folder, MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)


def whole_text(found, model, pictures):
    """The second pass of the two-pass way: all ids at once, without a cache."""
    with torch.no_grad():
        return model(input_ids=found.input_ids, attention_mask=found.attention_mask, **pictures)


def pictures_of(processor, records):
    batch = processor(records=records, reasoning="generate", return_tensors="pt")
    return {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}


@pytest.mark.parametrize(
    "thinking", [{}, {"do_sample": True, "temperature": 5.0}, {"max_tokens": 1}, {"max_tokens": 2}]
)
@pytest.mark.parametrize("records", [RECORDS, [RECORDS[2], RECORDS[3]], RECORDS[:1]], ids=["mixed", "texts", "one"])
def test_one_pass_equals_generating_and_encoding_the_whole_text(moon3, records, thinking):
    _, model, processor = moon3
    torch.manual_seed(0)
    found = model.embed(records, reasoning="generate", processor=processor, thinking=thinking)
    expected = whole_text(found, model, pictures_of(processor, records))
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.modality_gates, expected.modality_gates, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.matryoshka_embeddings[0], expected.matryoshka_embeddings[0], rtol=1e-4, atol=1e-4)
    ends = found.input_ids[:, -2:].tolist()
    assert ends == [[model.config.think_end_token_id, model.config.emb_token_id]] * len(records)


def test_the_written_text_is_what_generation_alone_writes(moon3):
    folder, model, processor = moon3
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    batch = processor(records=RECORDS, reasoning="generate", return_tensors="pt")
    settings = generation_config(model.config, Thinking(), processor.tokenizer)
    alone = writer.generate(**batch, generation_config=settings)[:, batch["input_ids"].shape[1] :]
    found = model.embed(RECORDS, reasoning="generate", processor=processor)
    ending = _Ending(alone, settings, model.config)
    assert torch.equal(found.reasoning_ids, ending.reasoning_ids)
    assert found.reasoning_ids.shape[1] == 32
    assert len(found.reasoning) == len(RECORDS)


class _Scripted(torch.nn.Module):
    """An output layer that makes row b write the tokens of script[b], whatever the state."""

    def __init__(self, script, vocabulary):
        super().__init__()
        self.script, self.vocabulary, self.step = script, vocabulary, 0

    def forward(self, hidden):
        logits = torch.zeros(*hidden.shape[:2], self.vocabulary)
        for row, tokens in enumerate(self.script):
            logits[row, :, tokens[min(self.step, len(tokens) - 1)]] = 10.0
        self.step += 1
        return logits


@pytest.mark.parametrize("limit", [3, 4, 5, 9])
def test_rows_that_end_early_late_at_once_or_not_at_all(moon3, monkeypatch, limit):
    """Row 0 closes at step 2, row 1 at the last step, row 2 would end the text instead, which is no end of a reasoning and is
    never written (a likeliest token stands there), row 3 is cut off, row 4 closes at once."""
    _, model, processor = moon3
    config = model.config
    close, stop = config.think_end_token_id, processor.tokenizer.eos_token_id
    script = [[40, 41, close], [50] * (limit - 1) + [close], [60, 61, stop], [70] * 20, [close]]
    writer = model.writer()
    writer.lm_head = _Scripted(script, config.vocab_size)
    monkeypatch.setattr(type(model), "writer", lambda self: writer)
    found = model.embed(RECORDS, reasoning="generate", processor=processor, thinking={"max_tokens": limit})
    expected = whole_text(found, model, pictures_of(processor, RECORDS))
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=1e-4, atol=1e-4)
    prompts = processor(records=RECORDS, reasoning="generate", return_tensors="pt")
    for row, tokens in enumerate([[40, 41], [50] * (limit - 1), [60, 61, *[0] * (limit - 2)], [70] * limit, []]):
        prompt = prompts["input_ids"][row][prompts["attention_mask"][row].bool()].tolist()
        whole = found.input_ids[row][found.attention_mask[row].bool()].tolist()
        assert whole == [*prompt, *tokens, close, config.emb_token_id]
        closed = close in script[row][:limit]
        written = [*tokens, close] if closed else tokens
        pads = [processor.tokenizer.pad_token_id] * (found.reasoning_ids.shape[1] - len(written))
        assert found.reasoning_ids[row].tolist() == [*written, *pads]
        assert found.reasoning[row].closed == closed


def test_a_row_ignores_its_neighbours(moon3):
    _, model, processor = moon3
    together = model.embed(RECORDS, reasoning="generate", processor=processor)
    for row, record in enumerate(RECORDS):
        alone = model.embed([record], reasoning="generate", processor=processor)
        torch.testing.assert_close(alone.embeddings[0], together.embeddings[row], rtol=1e-4, atol=1e-4)
        assert alone.reasoning == together.reasoning[row : row + 1]


def test_a_text_batch_after_a_picture_batch_is_not_disturbed_by_it(moon3):
    """The base keeps the offset of picture positions between calls."""
    folder, model, processor = moon3
    texts = [RECORDS[2], RECORDS[3]]
    fresh = MoonModel.from_pretrained(folder).eval().embed(texts, reasoning="generate", processor=processor)
    model.embed(RECORDS, reasoning="generate", processor=processor)
    model.embed(RECORDS[:2], processor=processor)
    again = model.embed(texts, reasoning="generate", processor=processor)
    assert torch.equal(fresh.reasoning_ids, again.reasoning_ids)
    torch.testing.assert_close(again.embeddings, fresh.embeddings)


def test_none_equals_forward_and_given_equals_the_text_that_was_written(moon3):
    _, model, processor = moon3
    batch = processor(records=RECORDS, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).embeddings
        found = model.embed(RECORDS, processor=processor)
    assert torch.equal(found.embeddings, expected)
    assert found.reasoning is None
    told = [record | {"reasoning": {"colour": "red", "material": ["mesh", "rubber"]}} for record in RECORDS]
    with torch.no_grad():
        given = model.embed(told, reasoning="given", processor=processor)
    assert given.reasoning[0].attributes == {"colour": ("red",), "material": ("mesh", "rubber")}
    expected = whole_text(given, model, pictures_of(processor, RECORDS))
    torch.testing.assert_close(given.embeddings, expected.embeddings, rtol=1e-5, atol=1e-5)
    assert (given.embeddings - found.embeddings).abs().max() > 1e-4


def test_what_is_written_never_steers_the_model_or_stands_for_a_picture(moon3):
    _, model, processor = moon3
    barred = set(generation_config(model.config, Thinking(), processor.tokenizer).suppress_tokens)
    config = model.config
    wanted = {config.image_token_id, config.emb_token_id, config.think_start_token_id, config.title_start_token_id}
    assert wanted | {config.category_start_token_id, config.attribute_end_token_id} <= barred
    assert config.think_end_token_id not in barred


def test_tokens_without_a_meaning_inside_a_reasoning_are_never_written(moon3):
    """Chat and vision markers, what ends or pads a text, tools' tags that are no special tokens, and ids without a token."""
    _, model, processor = moon3
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_tokens(["<tool_call>"])
    barred = set(never_written(model.config, tokenizer))
    markers = ["<|vision_pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>"]
    assert set(tokenizer.convert_tokens_to_ids(markers)) <= barred
    spare = set(range(len(tokenizer), model.config.vocab_size))
    assert len(spare) > 3
    assert spare <= barred
    left = set(range(model.config.vocab_size)) - barred
    assert {model.config.think_end_token_id} == left & set(tokenizer.added_tokens_decoder)
    assert left == set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder) | {
        model.config.think_end_token_id
    }
    settings = generation_config(model.config, Thinking(), tokenizer)
    assert settings.suppress_tokens == sorted(barred)
    assert settings.eos_token_id == [model.config.think_end_token_id]


def test_vectors_with_gradient_where_nothing_is_generated(moon3):
    folder, _, processor = moon3
    model = MoonModel.from_pretrained(folder)
    assert model.embed(RECORDS[:1], processor=processor).embeddings.requires_grad
    assert not model.embed(RECORDS[:1], reasoning="generate", processor=processor).embeddings.requires_grad


@pytest.mark.parametrize("tied", [True, False])
def test_the_encoder_finds_its_processor_and_its_output_layer_by_itself(tiny_moon, tied):
    folder = tiny_moon("qwen3_vl", preset="moon3", trained=True, tie_word_embeddings=tied)
    encoder = MoonModel.from_pretrained(folder).eval()
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    found = encoder.embed(RECORDS, reasoning="generate", thinking={"max_tokens": 6})
    expected = writer.embed(RECORDS, reasoning="generate", thinking={"max_tokens": 6})
    assert torch.equal(found.reasoning_ids, expected.reasoning_ids)
    assert torch.equal(found.embeddings, expected.embeddings)
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in writer.model.parameters())


def test_a_bad_record_is_skipped_and_named(moon3):
    _, model, processor = moon3
    records = [RECORDS[3], {"text": "x", "image": b"broken"}, RECORDS[2]]
    found = model.embed(records, reasoning="generate", processor=processor, on_error="skip")
    assert (found.kept, len(found.embeddings), found.skipped[0].field) == ([0, 2], 2, "image")
    nothing = model.embed(records[1:2], reasoning="generate", processor=processor, on_error="skip")
    assert nothing.embeddings.shape == (0, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reasoning": "always"}, "reasoning='always' is not known; expected one of none, generate, given"),
        ({"reasoning": "generate", "thinking": {"max_tokens": 0}}, "thinking: max_tokens=0; expected 1 or more"),
        ({"reasoning": "generate", "thinking": {"do_sample": True, "temperature": 0.0}}, "temperature=0.0"),
        ({"reasoning": "generate", "thinking": {"top_p": 1.5}}, "top_p=1.5"),
    ],
)
def test_wrong_arguments_are_refused(moon3, arguments, message):
    _, model, processor = moon3
    with pytest.raises(ValueError, match=message):
        model.embed(RECORDS, processor=processor, **arguments)


def test_a_model_that_does_not_reason_says_so(tiny_moon):
    folder = tiny_moon("qwen3_vl")
    model, processor = MoonModel.from_pretrained(folder), MoonProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="this model does not reason; expected 'none', or a moon3 checkpoint"):
        model.embed(RECORDS, reasoning="generate", processor=processor)


def test_prompts_that_do_not_open_a_reasoning_are_refused(moon3):
    _, model, processor = moon3
    batch = processor(records=RECORDS, return_tensors="pt")
    with pytest.raises(ValueError, match="prompts must end in <think>"):
        model.embed(batch, reasoning="generate", processor=processor)


def test_a_model_from_nowhere_asks_for_its_processor(moon3):
    _, model, _ = moon3
    config = type(model.config).from_dict(model.config.to_dict())
    config._name_or_path = ""
    with pytest.raises(ValueError, match="not loaded from a checkpoint; expected processor="):
        MoonModel(config).embed(RECORDS)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_thinking_in_training_is_thinking_in_evaluation_and_leaves_the_modes_alone(moon3, checkpointing):
    folder, model, processor = moon3
    expected = model.embed(RECORDS, reasoning="generate", processor=processor)
    learner = MoonModel.from_pretrained(folder).train()
    learner.vlm.visual.eval()
    if checkpointing:
        learner.gradient_checkpointing_enable()
    found = learner.embed(RECORDS, reasoning="generate", processor=processor)
    assert torch.equal(found.reasoning_ids, expected.reasoning_ids)
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=1e-4, atol=1e-4)
    assert learner.training
    assert learner.vlm.language_model.training
    assert not learner.vlm.visual.training


def test_an_adapted_output_layer_writes_what_it_writes_when_merged(moon3):
    from peft import LoraConfig, get_peft_model

    folder, _, processor = moon3
    writer = MoonForConditionalGeneration.from_pretrained(folder)
    adapted = get_peft_model(writer, LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)).eval()
    before = adapted.embed(RECORDS, reasoning="generate", processor=processor).reasoning_ids
    plain = MoonModel.from_pretrained(folder).eval().embed(RECORDS, reasoning="generate", processor=processor)
    assert not torch.equal(before, plain.reasoning_ids)
    batch = processor(records=RECORDS, reasoning="generate", return_tensors="pt")
    settings = generation_config(writer.config, Thinking(), processor.tokenizer)
    alone = adapted.generate(**batch, generation_config=settings)[:, batch["input_ids"].shape[1] :]
    assert torch.equal(_Ending(alone, settings, writer.config).reasoning_ids, before)


def test_the_processor_of_a_pinned_commit_comes_from_that_commit(moon3, monkeypatch):
    from modeling_moon import origin_moon

    folder, _, processor = moon3
    asked = {}
    monkeypatch.setattr(
        origin_moon.AutoProcessor, "from_pretrained", lambda name, **hub: asked.update(hub) or processor
    )
    model = MoonModel.from_pretrained(folder).eval()
    model.config._commit_hash = "abc123"
    model.embed(RECORDS[3:4])
    assert asked == {"revision": "abc123"}


def test_the_processor_of_code_from_the_hub_comes_from_the_commit_of_the_code(moon3, monkeypatch):
    from modeling_moon import origin_moon

    folder, _, processor = moon3
    asked, commit = {}, "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(
        origin_moon.AutoProcessor, "from_pretrained", lambda name, **hub: asked.update(hub) or processor
    )
    model = MoonModel.from_pretrained(folder).eval()
    monkeypatch.setattr(MoonModel, "__module__", f"transformers_modules.shop.moon.{commit}.modeling_moon")
    model.embed(RECORDS[3:4])
    assert asked == {"revision": commit, "code_revision": commit, "trust_remote_code": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thinking": {"tokens": 3}}, "thinking: unknown key 'tokens'; expected one of max_tokens, do_sample"),
        ({"max_tokens": 3}, "max_tokens: found a prepared batch; expected records"),
    ],
)
def test_options_that_would_be_lost_are_refused(moon3, arguments, message):
    _, model, processor = moon3
    batch = processor(records=RECORDS, reasoning="generate", return_tensors="pt")
    with pytest.raises(ValueError, match=message):
        model.embed(batch, reasoning="generate", processor=processor, **arguments)
