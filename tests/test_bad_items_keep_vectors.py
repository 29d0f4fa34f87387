"""Items that cannot be used are left out by name; the vectors of the others stay what they were."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_moon import MoonModel
from processing_moon import MoonProcessor, ProductError
from retrieval.encode import encode

GOOD = [
    {"title": "red shoes", "images": Image.new("RGB", (80, 64), "red"), "attributes": {"colour": "red"}},
    {"title": "a blue mug", "category": ["Home", "Mugs"]},
    {"images": Image.new("RGB", (64, 96), "green")},
]
BAD = [
    ({}, "record"),
    ({"title": "  "}, "record"),
    ({"titel": "shoes"}, "titel"),
    ({"images": b""}, "images"),
    ({"images": b"\xff\xd8\xff\xe0 broken"}, "images"),
    ({"images": np.full((8, 8, 3), np.nan)}, "images"),
    ({"images": "/"}, "images"),
    ({"images": "http://127.0.0.1/shoes.png"}, "images"),
    ({"images": Image.new("RGB", (8, 8)), "core_box": [5, 5, 5, 9]}, "core_box"),
    ({"title": 3}, "title"),
]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_bad_items_among_good_ones_are_listed_and_change_no_vector(tiny_moon, place):
    folder = tiny_moon("qwen3_vl")
    model, processor = MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = model(**processor(products=GOOD)).embeddings.numpy()
    records = GOOD[:place] + [record for record, _ in BAD] + GOOD[place:]
    batch = processor(products=records, on_error="skip")
    assert len(batch.skipped) == len(BAD)
    with torch.no_grad():
        np.testing.assert_allclose(model(**batch).embeddings, expected, rtol=1e-5, atol=1e-5)
    encoded = encode(model, processor, records, batch_size=2, progress=False)
    np.testing.assert_allclose(encoded.vectors, expected, rtol=1e-5, atol=1e-5)
    assert encoded.kept == batch.kept
    assert [skip.index for skip in encoded.skipped] == list(range(place, place + len(BAD)))


@pytest.mark.parametrize(("record", "field"), BAD)
def test_each_of_them_is_an_error_that_names_item_and_field(tiny_moon, record, field):
    processor = MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"))
    with pytest.raises(ProductError, match="product 1") as caught:
        processor(products=[GOOD[0], record])
    assert caught.value.field.startswith(field)
