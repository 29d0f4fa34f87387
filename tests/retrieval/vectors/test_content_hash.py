"""The hash of what a model reads of a product: what changes it, and in which forms."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from pictures import file_of, noise

from product_data.rows import ProductRow
from retrieval.vectors.content_hash import content_hash, has_content, picture_digest

ROW = ProductRow("p", "title", "text", ("a", "b"), {"colour": ("red",)}, (file_of(noise()),), core_box=(0, 0, 4, 4))


def changed_forms(row):
    return {form for form in ("mm", "t", "i") if content_hash(row, form) != content_hash(ROW, form)}


@pytest.mark.parametrize(
    ("changes", "forms"),
    [
        ({"product_id": "q"}, set()),
        ({"split": "test", "group": "g"}, set()),
        ({"title": "other"}, {"mm", "t"}),
        ({"description": "other"}, {"mm", "t"}),
        ({"category": ("a b",)}, {"mm", "t"}),
        ({"attributes": {"colour": ("red", "blue")}}, {"mm", "t"}),
        ({"images": (file_of(noise(seed=1)),)}, {"mm", "i"}),
        ({"images": ROW.images * 2}, {"mm", "i"}),
        ({"core_box": (0, 0, 4, 5)}, {"mm", "i"}),
    ],
)
def test_a_form_changes_with_what_it_shows(changes, forms):
    assert changed_forms(replace(ROW, **changes)) == forms


def test_a_file_counts_by_its_contents_and_not_by_its_name_or_time(tmp_path):
    one, two = tmp_path / "1.png", tmp_path / "2.png"
    noise(300, 300, 1).save(one)
    two.write_bytes(one.read_bytes())
    os.utime(two, (0, 0))
    assert one.stat().st_size > 2 << 16
    assert picture_digest(str(one)) == picture_digest(str(two))
    for place in (10, -10):
        contents = bytearray(one.read_bytes())
        contents[place] ^= 1
        two.write_bytes(bytes(contents))
        assert picture_digest(str(one)) != picture_digest(str(two))
    two.write_bytes(one.read_bytes() + b"\0")
    assert picture_digest(str(one)) != picture_digest(str(two))


def test_a_small_file_counts_completely(tmp_path):
    path = tmp_path / "1.bin"
    seen = set()
    for place in range(0, 1 << 17, 4099):
        contents = bytearray(1 << 17)
        contents[place] = 1
        path.write_bytes(bytes(contents))
        seen.add(picture_digest(str(path)))
    assert len(seen) == len(range(0, 1 << 17, 4099))


def test_an_address_counts_by_itself_and_a_missing_file_by_its_name(tmp_path):
    assert picture_digest("https://x/1.jpg") != picture_digest("https://x/2.jpg")
    assert picture_digest(str(tmp_path / "a")) != picture_digest(str(tmp_path / "b"))
    assert picture_digest(noise(seed=1)) == picture_digest(noise(seed=1)) != picture_digest(noise(seed=2))


def test_a_record_without_text_and_picture_has_no_content():
    assert not has_content(ProductRow("p", core_box=(0, 0, 1, 1)).record())
    assert has_content(ROW.record("i"))
