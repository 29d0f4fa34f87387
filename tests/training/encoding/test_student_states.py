"""The states that teachers pull are means over pictures and words, whatever else is in the batch."""

import pytest
import torch
from pictures import noise

from modeling_moon import MoonModel
from processing_moon import MoonProcessor
from training.encoding.batch_encoding import BatchEncoder, BatchPart, encoded_rows
from training.encoding.student_states import state_name

PICTURES, WORDS = state_name("products", "i"), state_name("products", "t")

RECORDS = [
    {"title": "red shoes", "images": [noise(seed=1), noise(64, 32, 2)]},
    {"title": "a longer title of a blue mug"},
    {"images": [noise(seed=3)]},
]


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def parts(tiny_moon, request):
    folder = tiny_moon(request.param)
    return MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)


def test_the_states_of_a_batch_are_slow_means_of_the_tower_and_of_the_last_layer(parts):
    model, processor = parts
    inputs = dict(processor(products=RECORDS, form="mm", max_image_tokens=4))
    vectors = BatchEncoder(model, None, states={PICTURES, WORDS})(BatchPart("products", inputs))
    assert vectors[PICTURES].requires_grad
    last = model(**inputs).last_hidden_state
    for row in range(3):
        words = [
            last[row, place]
            for place in range(last.shape[1])
            if inputs["attention_mask"][row, place] and inputs["input_ids"][row, place] != model.config.image_token_id
        ]
        torch.testing.assert_close(vectors[WORDS][row], torch.stack(words).mean(dim=0), rtol=1e-4, atol=1e-5)
    tower = model.vlm.visual
    grid, start, merged = inputs["image_grid_thw"], 0, []
    for one in grid:
        count = int(one.prod())
        merged.append(tower(inputs["pixel_values"][start : start + count], grid_thw=one[None]).pooler_output)
        start += count
    expected = [torch.cat(merged[:2]).mean(dim=0), torch.zeros(last.shape[-1]), merged[2].mean(dim=0)]
    torch.testing.assert_close(vectors[PICTURES], torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert encoded_rows(vectors) == 3


def test_products_without_any_picture_have_states_of_zero(parts):
    model, processor = parts
    inputs = dict(processor(products=RECORDS[1:2], form="mm"))
    vectors = BatchEncoder(model, None, states={PICTURES})(BatchPart("products", inputs))
    assert vectors[PICTURES].shape == (1, model.config.hidden_size)
    assert not vectors[PICTURES].any()
    assert WORDS not in vectors


def test_queries_have_states_if_they_are_asked_for(parts):
    model, processor = parts
    inputs = dict(
        processor(queries=[{"text": "red shoes"}, {"image": noise(seed=5)}], task="query", max_image_tokens=4)
    )
    part = BatchPart("queries", inputs)
    assert set(BatchEncoder(model, None, states={PICTURES, WORDS, "products"})(part)) == {"queries"}
    pictures, words = state_name("queries", "i"), state_name("queries", "t")
    vectors = BatchEncoder(model, None, states={pictures, words})(part)
    assert set(vectors) == {"queries", pictures, words}
    tower = model.vlm.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    torch.testing.assert_close(vectors[pictures][1], tower.mean(dim=0), rtol=1e-4, atol=1e-5)
    assert not vectors[pictures][0].any()
    assert encoded_rows(vectors) == 2
