"""Which columns of a public table of triplets are taken for what."""

import pytest

from product_data.columns import ColumnError, find_columns, level_names, parse_any_attributes, product_fields
from product_data.reading import ReadingOptions

MBE = [
    "id",
    "doc_title",
    "doc_image",
    "doc_industry_name",
    "doc_cate1_name",
    "doc_cate2_name",
    "doc_cate3_name",
    "doc_cate4_name",
    "doc_attributes",
]


@pytest.mark.parametrize(
    ("query", "query_image", "negative", "negative_image"),
    [
        ("query", "query_image", "neg_doc_title", "neg_doc_image"),
        ("query_text", "query_img", "hard_neg_title", "hard_neg_pic"),
        ("searchKeyword", "searchImage", "negativeTitle", "negativeImage"),
        ("q", "q_image", "hn.name", "hn.photo"),
    ],
)
def test_the_columns_of_mbe_are_found_whatever_query_and_negative_are_called(
    query, query_image, negative, negative_image
):
    names = [query, query_image, *reversed(MBE), negative, negative_image]
    found = find_columns(names)
    assert found.taken == {
        "row.id": ("id",),
        "query.title": (query,),
        "query.image": (query_image,),
        "positive.title": ("doc_title",),
        "positive.image": ("doc_image",),
        "positive.category": ("doc_industry_name", *(f"doc_cate{level}_name" for level in range(1, 5))),
        "positive.attributes": ("doc_attributes",),
        "negative.title": (negative,),
        "negative.image": (negative_image,),
    }
    assert not found.unread
    assert f"query.title ← {query}" in str(found)


def test_what_is_not_read_and_what_is_missing_is_said():
    found = find_columns([*MBE, "query_time", "query_image_id", "weird", "query_category"])
    assert found.unread == ("query_time", "query_image_id", "weird", "query_category")
    assert not found.has("query")
    for sentence in (
        "no column of queries: queries are derived",
        "no column of hard negatives",
        "not read: query_time",
    ):
        assert sentence in str(found)


def test_a_choice_can_be_replaced_and_undone():
    given = {"query.title": "weird", "positive.image": ["b", "a"], "positive.category": None}
    found = find_columns([*MBE, "weird", "a", "b"], given)
    assert found.taken["query.title"] == ("weird",)
    assert found.taken["positive.image"] == ("b", "a")
    assert "positive.category" not in found.taken
    assert "doc_image" in found.unread


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["title", "doc_title"], None, "found 'title' and 'doc_title' for positive.title"),
        (["query", "neg_title"], None, "the product has neither a title nor an image in query, neg_title"),
        ([], None, "in no columns"),
        (MBE, {"query.colour": "id"}, "columns: found 'query.colour'; expected .*query.title"),
        (MBE, {"query.title": "kw"}, "query.title: found no column 'kw'; expected one of id, doc_title"),
    ],
)
def test_columns_of_which_no_pair_can_be_made_are_refused(names, given, message):
    with pytest.raises(ColumnError, match=message):
        find_columns(names, given)


def test_cells_become_the_fields_of_a_product():
    columns = find_columns([*MBE, "neg.title", "neg.image1", "neg.image2"])
    row = {
        "doc_title": "Red hat",
        "doc_image": {"bytes": b"x", "path": None},
        "doc_industry_name": "Fashion",
        "doc_cate1_name": "Hats",
        "doc_cate2_name": None,
        "doc_cate3_name": "Wool > Thick",
        "doc_attributes": "colour:red!!!rose,,season:winter",
        "neg": {"title": "Blue hat", "image2": "2.jpg", "image1": ["1a.jpg", "1b.jpg"]},
    }
    fields = product_fields(row, columns, "positive")
    assert fields["title"] == "Red hat"
    assert fields["category"] == ("Fashion", "Hats", "Wool", "Thick")
    assert fields["attributes"] == {"colour": ("red", "rose"), "season": ("winter",)}
    assert fields["images"] == ({"bytes": b"x", "path": None},)
    assert product_fields(row, columns, "negative")["images"] == ("1a.jpg", "1b.jpg", "2.jpg")
    with pytest.raises(ValueError, match="column 'doc_attributes': found 'red' without a colon"):
        product_fields(row | {"doc_attributes": "red,,b:c"}, columns, "positive")


def test_attributes_are_read_as_mbe_writes_them_and_in_the_other_spellings():
    assert parse_any_attributes("a:b") == {"a": ("b",)}
    assert parse_any_attributes("a:b!!!c!!!") == {"a": ("b", "c")}
    assert parse_any_attributes("time:10:30,,a:b") == {"time": ("10:30",), "a": ("b",)}
    assert parse_any_attributes('{"a": ["b", "c"]}') == {"a": ("b", "c")}
    assert parse_any_attributes([{"key": "a", "value": "b"}]) == {"a": ("b",)}


def row_of(**cells):
    return cells, find_columns(cells)


def test_the_words_for_nothing_are_words_in_a_query_and_nothing_elsewhere():
    for word in ("nan", "null", "None"):
        row, columns = row_of(query=word, doc_title=word, doc_image=b"x")
        assert product_fields(row, columns, "query")["title"] == word
        assert "title" not in product_fields(row, columns, "positive")
        pictured, columns = row_of(query=word, query_image=b"x", doc_title="hat")
        assert "title" not in product_fields(pictured, columns, "query")


def test_half_of_an_emoji_is_named_by_its_column_and_only_where_it_is_read():
    row, columns = row_of(query="hat", doc_title="hat", doc_attributes={"colour": ["red", "\ud83d"]}, doc_id="1")
    with pytest.raises(ValueError, match=r"column 'doc_attributes': found a lone surrogate in '\\ud83d'"):
        product_fields(row, columns, "positive")
    assert product_fields(row, columns, "query")["title"] == "hat"


def test_html_and_category_separators_are_read_as_for_tables():
    row, columns = row_of(
        query="fish &amp; chips",
        doc_title="<b>hat</b>",
        doc_description="a<br>b",
        doc_category="Home &amp; Living/Hats",
        doc_attributes="colour:gr&uuml;n!!!red,,size:5",
    )
    reading = ReadingOptions(strip_html=True, category_separator="/")
    fields = product_fields(row, columns, "positive", reading)
    assert (fields["title"], fields["description"]) == ("hat", "a b")
    assert fields["category"] == ("Home & Living", "Hats")
    assert fields["attributes"] == {"colour": ("grün", "red"), "size": ("5",)}
    assert product_fields(row, columns, "query", reading)["title"] == "fish & chips"
    assert product_fields(row, columns, "positive")["category"] == ("Home &amp; Living/Hats",)
    row, columns = row_of(doc_title="x", doc_category="Home>>Hats")
    assert product_fields(row, columns, "positive")["category"] == ("Home", "Hats")


@pytest.mark.parametrize(
    "name", ["query bbox", "query_bbox", "queryBBox", "query_box", "query.core_box", "q_bbox_2d", "查询主体框"]
)
def test_the_core_box_of_a_query_is_found_in_every_spelling(name):
    assert find_columns([*MBE, "query", name]).taken["query.box"] == (name,)


@pytest.mark.parametrize(
    "name", ["doc_image_width", "image_category", "query_image_hash", "box_label", "imageCount", "图片宽度"]
)
def test_a_name_that_says_more_than_a_picture_or_a_box_is_unclear(name):
    found = find_columns(["query", "doc_title", name])
    assert found.unclear == found.unread == (name,)
    assert f"unclear, not read unless `columns` lists them: {name}" in str(found)
    assert find_columns(["query", "doc_title", name], {"positive.image": name}).taken["positive.image"] == (name,)


def test_levels_are_called_as_their_columns_say():
    assert level_names(find_columns(["query", *MBE])) == ("industry", *(f"level_{level}" for level in range(1, 5)))
    assert level_names(find_columns(["query", "doc_title", "二级类目", "一级类目"])) == ("level_1", "level_2")
    assert level_names(find_columns(["query", "doc_title", "category_a", "category_b"])) == ("level_1", "level_2")
    assert level_names(find_columns(["query", "doc_title", "doc_category"])) == ()


def test_what_a_picture_and_a_text_show_are_attributes_and_no_pictures():
    found = find_columns(["query", "doc_title", "doc_image_attributes", "doc_text_attrs", "doc_attributes"])
    assert found.taken["positive.attributes_image"] == ("doc_image_attributes",)
    assert found.taken["positive.attributes_text"] == ("doc_text_attrs",)
    assert found.taken["positive.attributes"] == ("doc_attributes",)
    assert "positive.image" not in found.taken
