"""Chinese attribute keys, full-width signs and traditional characters."""

from __future__ import annotations

import builtins

import pytest
import yaml

from processing_moon import REASONING_KEYS, read_reasoning, write_reasoning
from product_data import chinese
from product_data.attribute_keys import CHINESE_TABLE, as_attributes, chinese_key, chinese_names, facts_of, mbe_key
from product_data.chinese import simplified
from product_data.errors import OptionError
from product_data.mbe_cells import parse_any_attributes, parse_any_box
from product_data.reading import ReadingOptions
from product_data.synonyms import canonical_attributes, canonical_key, states
from product_data.tables import load_tables
from product_data.triplets import TripletOptions, triplet_tables
from training.rewards.attributes import attributes_reward
from training.rewards.format import format_reward

TABLE = yaml.safe_load(CHINESE_TABLE.read_text(encoding="utf-8"))
NAMES = [(name, key) for key, lines in TABLE.items() for line in lines for name in line]


def test_the_table_names_each_of_the_ten_keys_and_no_name_twice():
    assert list(TABLE) == list(REASONING_KEYS)
    assert len(NAMES) > 600
    assert len({name for name, _ in NAMES}) == len(NAMES)
    assert all(len(chinese_names(key)) >= 25 for key in REASONING_KEYS)
    assert all(simplified(name) == name for name, _ in NAMES)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("颜色", "colour"),
        ("颜色分类", "colour"),
        ("品牌", "brand"),
        ("材质", "material"),
        ("面料", "material"),
        ("尺码", "size/specification"),
        ("净含量", "size/specification"),
        ("图案", "style elements"),
        ("风格", "fashion style"),
        ("适用人群", "target demographic"),
        ("适用季节", "season/occasion"),
        ("袖长", "category modifier"),
        (" 适用 性别 ", "target demographic"),
        ("ｃｏｌｏｒ", "colour"),
        ("color", "colour"),
    ],
)
def test_a_key_of_a_chinese_shop_is_one_of_the_ten(key, meant):
    assert mbe_key(key) == meant


def test_an_unknown_key_stays_unknown():
    assert chinese_key("赠品") is None
    facts, unknown = facts_of({"颜色": ("红色",), "赠品": ("袜子",), "材质": ("棉",)})
    assert as_attributes(facts) == {"colour": ("红色",), "material": ("棉",)}
    assert unknown == {"赠品": ("袜子",)}


def test_keys_of_both_languages_are_compared_as_one():
    assert canonical_key("颜色") == canonical_key("Color") == "colour"
    assert set(canonical_attributes({"颜色": ["红色"], "colour": ["red"]})) == {"colour"}
    found = canonical_attributes({"尺码": ["Ｌ"]})
    assert found == canonical_attributes({"size": ["l"]})
    assert states("女装 尺码 M 红色", "size", "M")
    assert not states("女装 M 红色", "size", "M")


def reading(text):
    return read_reasoning(text)


def test_a_reasoning_in_chinese_is_read_and_written():
    found = reading("<think>颜色：红色，酒红色；材质：棉; 尺码: L</think>")
    assert found.well_formed
    assert found.attributes == {"颜色": ("红色", "酒红色"), "材质": ("棉",), "尺码": ("L",)}
    for attributes in ({"颜色": ("红，蓝", "a；b", "c：d")}, {"a：b": ("，",)}, {"颜色\\": ("\\，",)}):
        assert reading(write_reasoning(attributes)).attributes == attributes


def test_chinese_keys_are_rewarded_as_the_keys_that_they_mean():
    def reward(text):
        return format_reward([""], [text], [[1]], reasonings=[reading(text)])[0]

    assert reward("颜色：红色；材质：棉</think>") == 1.0
    assert reward("颜色：红色；赠品：袜子</think>") == 0.5
    known = {"colour": ("红色",), "material": ("棉",)}
    texts = ["颜色：红色；材质：麻</think>", "colour: 红色; material: 棉</think>"]
    rewards = attributes_reward(
        [""] * 2, texts, [[1]] * 2, reasonings=[*map(reading, texts)], labels=[known] * 2, known_values=[{}] * 2
    )
    assert rewards == [pytest.approx(0.5), pytest.approx(1.0)]


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ("颜色：红色！！！蓝色，，材质：棉", {"颜色": ("红色", "蓝色"), "材质": ("棉",)}),
        ("颜色:红色,,尺码：ＸＬ", {"颜色": ("红色",), "尺码": ("XL",)}),
        ("颜色：红色", {"颜色": ("红色",)}),
        ("颜色：红色；材质：棉、麻", {"颜色": ("红色",), "材质": ("棉、麻",)}),
        ({"颜色": ["红色"]}, {"颜色": ("红色",)}),
        ("颜色:红色,,颜色：蓝色", {"颜色": ("红色", "蓝色")}),
        (None, {}),
    ],
)
def test_attributes_with_full_width_signs_are_read(cell, read):
    assert parse_any_attributes(cell) == read


@pytest.mark.parametrize(
    "cell",
    [
        "1，2，３，4",
        "［1, 2, 3, 4］",
        "(1,2,3,4)",
        [[1, 2, 3, 4]],
        {"left": 1, "top": 2, "right": 3, "bottom": 4},
        "[1,2,3,4]",
    ],
)
def test_boxes_of_every_spelling_are_read(cell):
    assert parse_any_box(cell) == (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize("cell", [None, "", [], [0, 0, 0, 0], "[0, 0, 0, 0]"])
def test_no_box_is_no_box(cell):
    assert parse_any_box(cell) is None


@pytest.mark.parametrize("cell", ["[1, 2", {"x": 1}, [1, 2, 3], [[1, 2, 3, 4], [1, 2, 3, 4]], "a b c d"])
def test_what_is_no_box_is_refused(cell):
    with pytest.raises(ValueError, match=r"expected|JSON|could not convert"):
        parse_any_box(cell)


def test_traditional_characters_become_simplified_where_that_is_asked_for():
    rows = [
        {"query": "紅色連衣裙", "doc_title": "紅色 連衣裙", "doc_cate1_name": "女裝", "doc_attributes": "顏色：紅色"}
    ]
    options = TripletOptions(reading=ReadingOptions(simplify_chinese=True))
    (product,) = triplet_tables("mbe", rows, options).products
    assert (product.title, product.category, product.attributes) == ("红色 连衣裙", ("女装",), {"颜色": ("红色",)})
    assert triplet_tables("mbe", rows).products[0].attributes == {"顏色": ("紅色",)}
    shop = {"products": [{"product_id": "1", "title": "紅鞋", "category_path": ["女裝", "鞋"]}]}
    assert load_tables(shop, reading=ReadingOptions(simplify_chinese=True)).products[0].category == ("女装", "鞋")
    assert ReadingOptions.of({"simplify_chinese": True}).as_entry() == {"simplify_chinese": True}
    with pytest.raises(OptionError, match="simplify_chinese: found 'yes'; expected true or false"):
        ReadingOptions(simplify_chinese="yes")  # type: ignore[arg-type]


def test_without_opencc_it_is_refused_at_once(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "opencc":
            raise ImportError(name)
        return real(name, *rest, **options)

    chinese._converter.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match=r"pip install moon3\[chinese\]"):
        ReadingOptions(simplify_chinese=True)
