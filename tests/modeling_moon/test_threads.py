"""Eight threads at once get what one thread gets: encoding, thinking and generating keep no state of a call on a module."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from pictures import noise

from modeling_moon import MoonForConditionalGeneration, MoonModel
from modeling_moon.thinking_moon import Thinking, think_then_embed
from processing_moon import MoonProcessor

THREADS = 8
CALLS = 5  # of each thread


def records(number):
    """Between one and three records, whose pictures move the text behind them by different numbers."""
    mug = {"title": f"mug number {number}", "category": "Home > Mugs", "attributes": {"colour": "red"}}
    shoes = {"title": "red shoes", "images": [noise(64 + 32 * (number % 3), 64, number), noise(96, 96, number + 1)]}
    bag = {"title": "bag", "images": noise(64, 64 * (1 + number % 4), number + 2)}
    return [[mug], [mug, shoes], [shoes, bag], [bag, mug, shoes]][number % 4]


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def moon3(request, tiny_moon):
    folder = tiny_moon(request.param, preset="moon3", trained=True)
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    return writer, MoonProcessor.from_pretrained(folder)


def check_at_once(call, arguments):
    """Each call gives in one of eight threads at once what it gives alone."""
    alone = [call(argument) for argument in arguments]
    barrier = Barrier(THREADS)

    def repeat(thread):
        barrier.wait()
        mine = [(thread * 3 + turn) % len(arguments) for turn in range(CALLS)]
        return [(number, call(arguments[number])) for number in mine]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [pair for pairs in pool.map(repeat, range(THREADS)) for pair in pairs]
    assert len(found) == THREADS * CALLS
    for number, result in found:
        for one, other in zip(result, alone[number], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_threads_that_encode_at_once_get_their_own_vectors(moon3):
    writer, processor = moon3
    check_at_once(lambda batch: [encode(writer.model, batch)], batches(processor))


def encode(model, batch):
    with torch.no_grad():
        return model(**batch).embeddings


def batches(processor, **options):
    return [dict(processor(records=records(number), return_tensors="pt", **options)) for number in range(8)]


def test_threads_that_think_at_once_get_their_own_thoughts(moon3):
    writer, processor = moon3

    def think(number):
        options = [{"reasoning": "generate"}, {"reasoning": "auto", "gallery": torch.eye(32), "threshold": 0.02}]
        found = writer.model.embed(
            records(number), processor=processor, thinking={"max_tokens": 6}, **options[number % 2]
        )
        return found.embeddings, found.reasoning_ids

    check_at_once(think, list(range(8)))


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 2}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
def test_threads_that_generate_at_once_get_their_own_texts(moon3, strategy):
    writer, processor = moon3
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **strategy}
    check_at_once(lambda batch: [writer.generate(**batch, **settings)], batches(processor, reasoning="generate"))


def test_decoding_steps_in_turns_keep_to_their_own_caches(moon3):
    """Two conversations in turns: each cache knows how far its own pictures moved the text."""
    writer, processor = moon3
    prompts = [dict(processor(records=records(number), return_tensors="pt", reasoning="generate")) for number in (2, 0)]
    steps = torch.tensor([[40], [41]])
    whole, in_turns, caches = [], [], []
    with torch.no_grad():
        for batch in prompts:
            rows = len(batch["input_ids"])
            longer = batch | {
                "input_ids": torch.cat([batch["input_ids"], steps[:rows]], dim=1),
                "attention_mask": torch.cat([batch["attention_mask"], torch.ones(rows, 1, dtype=torch.long)], dim=1),
            }
            longer.pop("mm_token_type_ids", None)
            whole.append(writer(**longer).logits[:, -1])
            caches.append(writer(**batch, use_cache=True).past_key_values)
        for batch, cache in zip(prompts, caches, strict=True):
            rows = len(batch["input_ids"])
            mask = torch.cat([batch["attention_mask"], torch.ones(rows, 1, dtype=torch.long)], dim=1)
            step = {"input_ids": steps[:rows], "aspect_ids": torch.zeros(rows, 1, dtype=torch.long)}
            in_turns.append(writer(**step, attention_mask=mask, past_key_values=cache).logits[:, -1])
    for one, other in zip(in_turns, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_thinking_in_training_mode_from_several_threads_leaves_the_mode_alone(moon3):
    writer, processor = moon3
    model = writer.model.train()
    model.vlm.visual.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        check_at_once(
            lambda number: [
                model.embed(
                    records(number), processor=processor, reasoning="generate", thinking={"max_tokens": 3}
                ).embeddings
            ],
            list(range(4)),
        )
        assert {name: module.training for name, module in model.named_modules()} == modes
    finally:
        model.eval()


def test_nothing_is_noted_on_a_module(moon3):
    writer, processor = moon3

    def notes():
        plain = (bool, int, float, str, type(None))
        return {
            (name, key): value if isinstance(value, plain) else id(value)
            for name, module in writer.named_modules()
            for key, value in vars(module).items()
        }

    before = notes()
    batch = dict(processor(records=records(3), return_tensors="pt", reasoning="generate"))
    encode(writer.model, dict(processor(records=records(3), return_tensors="pt")))
    writer.generate(**batch, max_new_tokens=2, min_new_tokens=2)
    think_then_embed(writer.model, writer, batch, Thinking(max_tokens=3), processor.tokenizer)
    assert notes() == before


def test_the_positions_inside_a_call_do_not_depend_on_an_earlier_one(moon3):
    writer, processor = moon3
    texts = dict(processor(records=records(0), return_tensors="pt"))
    fresh = MoonModel.from_pretrained(writer.config._name_or_path).eval()
    expected = encode(fresh, texts)
    encode(writer.model, dict(processor(records=records(2), return_tensors="pt")))
    assert writer.model.vlm.rope_deltas is None
    torch.testing.assert_close(encode(writer.model, texts), expected)
