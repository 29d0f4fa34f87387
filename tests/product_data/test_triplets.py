"""Rows shaped like MBE's, written by hand: which products, queries, labels and report they become."""

from __future__ import annotations

import json

import datasets
import pytest
from picture_server import picture_server, png

from product_data.columns import ColumnError
from product_data.picture_files import PictureFetching
from product_data.row_files import open_rows
from product_data.table_files import TableError
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, triplet_tables

LEVELS = ("doc_industry_name", "doc_cate1_name", "doc_cate2_name", "doc_cate3_name", "doc_cate4_name")


def row(number: int, title: str, path: tuple[str, ...] = (), **cells):
    levels = dict(zip(LEVELS, path, strict=False))
    return {"id": number, "query": f"买 {title}", "doc_title": title, "doc_attributes": "颜色:红色"} | levels | cells


def tables(*rows, **options) -> ProductTables:
    return triplet_tables("mbe", list(rows), TripletOptions(**options))


PICTURE = png("red")
DRESS = row(
    1,
    "红色 雪纺 连衣裙",
    ("服饰", "女装/女士精品", "连衣裙", "长裙", "雪纺长裙"),
    doc_attributes="颜色：红色！！！酒红色，，材质:雪纺,,尺码:Ｌ",
    neg_doc_title="蓝色 连衣裙",
    neg_doc_attributes="颜色:蓝色",
)


def test_a_row_becomes_its_product_its_negative_and_its_query():
    found = tables(DRESS)
    dress, negative = found.products
    assert dress.title == "红色 雪纺 连衣裙"
    assert dress.category == ("服饰", "女装/女士精品", "连衣裙", "长裙", "雪纺长裙")  # a slash separates no levels
    assert dress.attributes == {"颜色": ("红色", "酒红色"), "材质": ("雪纺",), "尺码": ("L",)}  # full width, NFKC
    assert negative.attributes == {"颜色": ("蓝色",)}
    (query,) = found.queries
    assert (query.query_id, query.type, query.text) == ("1-text", "text", "买 红色 雪纺 连衣裙")
    assert (query.positives, query.negatives) == ((dress.product_id,), (negative.product_id,))
    assert found.level_names == ("industry", "level_1", "level_2", "level_3", "level_4")
    assert "positive.title ← doc_title" in str(found.report)
    assert found.report.ok
    assert not found.report.issues


def test_a_query_is_asked_in_each_form_that_it_has_and_the_box_is_that_of_its_picture():
    cells = {
        "query_image": PICTURE,
        "query bbox": "［1，2，30，40］",
        "doc_bbox": {"x1": 0, "y1": 1, "x2": 2, "y2": 3},
    }
    found = tables(DRESS | cells, row(2, "包", query="", **cells), row(3, "鞋"))
    forms = [(query.query_id, query.text, query.image, query.box) for query in found.queries]
    box = (1.0, 2.0, 30.0, 40.0)
    assert forms == [
        ("1-text", "买 红色 雪纺 连衣裙", None, None),
        ("1-image", "", PICTURE, box),
        ("1-both", "买 红色 雪纺 连衣裙", PICTURE, box),
        ("2-image", "", PICTURE, box),
        ("3-text", "买 鞋", None, None),
    ]
    assert found.products[0].core_box == (0.0, 1.0, 2.0, 3.0)


def test_a_path_ends_before_its_first_empty_level():
    found = tables(row(1, "包", ("箱包", "女包", "", "小包")), row(2, "鞋", ("鞋靴",)), row(3, "帽"))
    assert [product.category for product in found.products] == [("箱包", "女包"), ("鞋靴",), ()]


def test_products_are_merged_by_id_and_what_rows_disagree_in_is_named():
    rows = [
        row(1, "包", item_id="p", doc_attributes=None),
        row(2, "包", item_id="p", doc_attributes="颜色:黑色", doc_cate1_name="女包", doc_cate2_name="小包"),
        row(3, "另一个", item_id="p"),
    ]
    found = tables(*rows)
    (product,) = found.products
    assert (product.title, product.attributes, product.category) == ("包", {"颜色": ("黑色",)}, ("女包", "小包"))
    assert [query.positives for query in found.queries] == [("p",)] * 3
    assert found.report.count("conflicting_products") == 2  # the title and the attributes of the last row
    assert "row 2, product 'p': another title" in str(found.report)


def test_a_product_without_an_id_is_known_by_its_title_and_picture():
    found = tables(
        row(1, "包", doc_image=PICTURE),
        row(2, "包", doc_image=PICTURE, query="黑包"),
        row(3, "包", doc_image=png("blue")),
    )
    assert len(found.products) == 2
    assert found.queries[0].positives == found.queries[1].positives


def test_rows_that_share_an_id_are_one_row_or_two_queries():
    found = tables(row(1, "包"), row(1, "包"), row(1, "鞋"))
    assert [query.query_id for query in found.queries] == ["1-text", "1#2-text"]
    assert (found.report.count("repeated_rows"), found.report.count("shared_row_ids")) == (1, 1)


def test_rows_with_one_query_id_are_one_query_with_several_answers():
    rows = [
        row(1, "包", query="黑包", query_id="q", item_id="a", neg_item_id="c", neg_title="帽"),
        row(2, "鞋", query="黑包", query_id="q", item_id="c"),
        row(3, "袜", query="袜子", query_id="q", item_id="d"),
    ]
    found = tables(*rows)
    first, second = found.queries
    assert (first.query_id, first.positives, first.negatives) == ("q-text", ("a", "c"), ())
    assert (second.query_id, second.positives) == ("q#2-text", ("d",))


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ({"doc_attributes": "颜色,,材质:棉"}, "column 'doc_attributes': found '颜色' without a colon"),
        ({"query bbox": [5, 5, 1, 1]}, "column 'query bbox': .*expected x0, y0, x1, y1"),
        ({"doc_title": "", "doc_image": None}, "the product has neither text nor picture"),
        ({"doc_image": "nowhere.jpg"}, "product: nowhere.jpg: no such file"),
        ({"query_image": "nowhere.jpg"}, "query: nowhere.jpg: no such file"),
    ],
)
def test_a_row_that_is_not_whole_is_left_out_and_named(cells, why):
    sound = [row(1, "包"), row(2, "鞋", query_image=None, doc_image=None)]
    found, alone = tables(*sound, row(3, "坏") | cells), tables(*sound)
    assert (found.products, found.queries) == (alone.products, alone.queries)
    assert found.report.count("broken_rows") == 1
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(str(found.report))


def test_a_negative_that_cannot_be_had_is_left_out_alone():
    found = tables(
        row(1, "包", neg_title="鞋", neg_image="nowhere.jpg"), row(2, "帽", neg_title="袜", neg_attributes="a,,b")
    )
    assert [product.title for product in found.products] == ["包", "帽"]
    assert [query.negatives for query in found.queries] == [(), ()]
    assert found.report.count("broken_negatives") == 2


def test_pictures_by_address_are_fetched_and_broken_ones_cost_their_row(tmp_path):
    fetching = PictureFetching(folder=tmp_path, allow_private=True)
    with picture_server() as server:
        good = row(1, "包", doc_image=f"{server.url('red')}|{server.url('missing')}", query_image=server.url("blue"))
        bad = row(2, "鞋", doc_image=server.url("page"))
        found = tables(good, bad, pictures=fetching)
    (product,) = found.products
    assert [path.startswith(str(tmp_path)) for path in product.images] == [True]
    assert found.queries[1].image.startswith(str(tmp_path))
    assert (found.report.count("broken_rows"), found.report.count("missing_images")) == (1, 1)
    assert "2 fetched" in str(found.report)
    assert "failures.csv" in str(found.report)


def test_pictures_that_cannot_be_opened_are_known_before_any_vector(tmp_path):
    broken = png("red")[:50]
    (tmp_path / "broken.png").write_bytes(broken)
    (tmp_path / "blue.png").write_bytes(png("blue"))
    several = row(1, "包", doc_image=[PICTURE, broken, "broken.png", "blue.png", "nowhere.png"])
    found = tables(several, row(2, "鞋", doc_image="broken.png"), images_root=tmp_path)
    (product,) = found.products
    assert product.images == (PICTURE, str(tmp_path / "blue.png"))
    counts = {kind: found.report.count(kind) for kind in ("unreadable_images", "missing_images", "broken_rows")}
    assert counts == {"unreadable_images": 2, "missing_images": 1, "broken_rows": 1}
    assert "row 0, product: embedded picture: " in str(found.report)
    assert f"row 1, product: {tmp_path / 'broken.png'}: " in str(found.report)


def test_columns_with_other_names_are_found_or_named():
    renamed = {
        "搜索词": "黑包",
        "商品标题": "黑色 包",
        "一级类目": "箱包",
        "二级类目": "女包",
        "属性": "颜色：黑色",
        "负例标题": "鞋",
    }
    found = tables(renamed)
    assert found.products[0].category == ("箱包", "女包")
    assert found.level_names == ("level_1", "level_2")
    named = tables(
        {"kw": "包", "what": "黑色 包", "pic_hash": "f00"}, columns={"query.title": "kw", "positive.title": "what"}
    )
    assert (named.queries[0].text, named.products[0].title) == ("包", "黑色 包")
    assert "unclear, not read unless `columns` lists them: pic_hash" in str(named.report)
    assert named.products[0].images == ()
    with pytest.raises(ColumnError, match="the product has neither a title nor an image"):
        tables({"kw": "包"})


def test_a_query_or_product_in_a_mapping_is_read_inside():
    found = tables(
        {"query": "包", "pos": {"title": "黑色 包", "attributes": {"颜色": ["黑色"]}}, "neg": {"title": "鞋"}}
    )
    assert [product.title for product in found.products] == ["黑色 包", "鞋"]
    assert found.products[0].attributes == {"颜色": ("黑色",)}


def test_a_sample_keeps_the_labels_of_all_rows():
    rows = [
        row(number, f"包 {number}", ("箱包", f"类 {number}"), doc_attributes=f"颜色:色 {number}") for number in range(9)
    ]
    found = tables(*rows, sample=3, seed=1)
    again = tables(*rows, sample=3, seed=1)
    assert len(found.products) == len(found.queries) == 3
    assert found.products == again.products
    assert "a sample of 3 of 9 rows (seed 1)" in str(found.report)
    every = [*found.products, *found.labels]
    assert {product.category for product in every if product.category} == {
        ("箱包", f"类 {number}") for number in range(9)
    }
    assert {value for product in every for value in product.attributes.get("颜色", ())} == {f"色 {n}" for n in range(9)}
    assert tables(*rows, sample=99).labels == ()
    with pytest.raises(TableError, match="sample: found 0"):
        tables(*rows, sample=0)


def test_rows_of_another_split_are_not_read():
    rows = [row(1, "包", split="train"), row(2, "鞋", split="test"), row(3, "帽", split="all")]
    assert [product.title for product in tables(*rows, split="test").products] == ["鞋", "帽"]
    assert len(tables(*rows, split="all").products) == 3


@pytest.mark.parametrize("form", ["jsonl", "json", "list.json", "parquet", "csv", "folder"])
def test_rows_are_read_from_files_of_every_kind(tmp_path, form):
    rows = [{"id": "007", "query": "包", "doc_title": "黑色 包"}, {"id": "2", "query": "鞋", "doc_title": "鞋"}]
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in rows)
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif form == "csv":
        path.write_text("id,query,doc_title\n007,包,黑色 包\n2,鞋,鞋\n", encoding="utf-8")
    elif form == "folder":
        path.mkdir()
        (path / "test-0.jsonl").write_text(lines, encoding="utf-8")
        (path / "train-0.jsonl").write_text("{}", encoding="utf-8")
    else:
        path.write_text(json.dumps(rows) if form == "list.json" else lines, encoding="utf-8")
    found = triplet_tables("rows", open_rows(path, split="test"))
    assert [query.query_id for query in found.queries] == ["007-text", "2-text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", "[1", "line 1: not JSON"),
        ("rows.json", '{"a": 1}\n3', "found a row of type int"),
        ("nowhere.jsonl", None, "no such file or folder"),
        ("empty", None, "found no data file"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    elif name == "empty":
        path.mkdir()
    with pytest.raises(TableError, match=message):
        open_rows(path)


def test_a_data_set_of_the_hub_that_cannot_be_opened_is_named():
    with pytest.raises(TableError, match="nobody/nothing, split 'test': cannot be opened"):
        open_rows("nobody/nothing")


def test_a_data_set_of_the_hub_is_read_with_its_pictures_as_they_are_stored(monkeypatch):
    asked = []

    def opened(name, config, split):
        asked.append((name, config, split))
        rows = [
            {
                "query": f"包 {n}",
                "doc_title": f"黑色 包 {n}",
                "doc_image": {"bytes": png("red"), "path": None},
                "doc_cate1_name": str(n),
            }
            for n in range(4)
        ]
        return datasets.Dataset.from_list(rows).cast_column("doc_image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", opened)
    found = triplet_tables("mbe", open_rows("owner/rows", split="valid"), TripletOptions(sample=2))
    assert asked == [("owner/rows", None, "valid")]
    assert [product.images for product in found.products] == [(png("red"),)] * 2
    assert {row.category for row in (*found.products, *found.labels)} == {("0",), ("1",), ("2",), ("3",)}
