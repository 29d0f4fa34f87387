"""Retrieval sets in mteb's form and M-BEIR's files, written by hand."""

from __future__ import annotations

import json

import pytest
from picture_server import png

from product_data.retrieval_sets import mbeir_tables, mteb_tables
from product_data.table_files import TableError
from product_data.triplets import TripletOptions


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


@pytest.fixture
def mteb(tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    corpus = [
        {"id": "d1", "modality": "image,text", "text": "red bag", "image": "a.png", "category": ["bags"]},
        {"id": "d2", "text": "blue bag"},
        {"id": "d3", "text": "", "image": None},
        {"id": "d4", "text": "lost", "image": "nowhere.png"},
        {"id": "d1", "text": "again"},
    ]
    queries = [{"_id": "q1", "text": "bag"}, {"_id": "q2", "text": "x"}, {"_id": "q3", "image": "a.png", "text": "bag"}]
    judged = [("q1", "d1", 2), ("q1", "d2", 1), ("q1", "d4", 1), ("q2", "d1", 0), ("q3", "d2", 1), ("q3", "d1", 1)]
    write(tmp_path / "corpus" / "test-0.jsonl", corpus)
    write(tmp_path / "query.jsonl", queries)
    write(tmp_path / "qrels.jsonl", [dict(zip(("query-id", "corpus-id", "score"), one, strict=True)) for one in judged])
    return tmp_path


def test_three_tables_become_a_gallery_and_graded_queries(mteb):
    found = mteb_tables("shop", mteb, TripletOptions(images_root=mteb))
    assert [(product.product_id, product.title, product.category) for product in found.products] == [
        ("d1", "red bag", ("bags",)),
        ("d2", "blue bag", ()),
    ]
    first, third = found.queries
    assert (first.query_id, first.type, first.answers) == ("q1", "text", {"d1": 2.0, "d2": 1.0})
    assert (third.type, third.positive_weights) == ("both", ())
    counts = {issue.kind: issue.count for issue in found.report.issues}
    assert counts == {"broken_rows": 2, "repeated_rows": 1, "dangling_positives": 1, "queries_without_positives": 1}
    assert "query.title ← text" in str(found.report)


def test_columns_of_a_part_can_be_named(mteb):
    write(mteb / "corpus" / "test-0.jsonl", [{"id": "d1", "what": "red bag"}, {"id": "d2", "what": "blue bag"}])
    options = TripletOptions(columns={"positive.title": "what"}, images_root=mteb)
    assert [product.title for product in mteb_tables("shop", mteb, options).products] == ["red bag", "blue bag"]


def test_a_sample_takes_queries_and_keeps_the_gallery(mteb):
    found = [mteb_tables("shop", mteb, TripletOptions(images_root=mteb, sample=1, seed=seed)) for seed in range(9)]
    assert {len(tables.products) for tables in found} == {2}
    assert {tuple(query.query_id for query in tables.queries) for tables in found} == {("q1",), (), ("q3",)}


def test_a_part_that_is_not_there_is_named(mteb):
    (mteb / "qrels.jsonl").unlink()
    with pytest.raises(TableError, match="found no qrels; expected one of qrels, relevance"):
        mteb_tables("shop", mteb)


@pytest.fixture
def mbeir(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.png").write_bytes(png("red", 40 if name == "a" else 50))
    captions = [{"did": "1:3", "txt": "red dress", "img_path": None, "modality": "text", "src_content": None}]
    pictures = [
        {"did": f"1:{place}", "txt": None, "img_path": f"images/{name}.png", "modality": "image", "src_content": None}
        for place, name in enumerate("ab", start=1)
    ]
    text = {"qid": "1:10", "query_txt": "red dress", "query_img_path": None, "query_modality": "text", "task_id": 0}
    image = {
        "qid": "1:11",
        "query_txt": None,
        "query_img_path": "images/a.png",
        "query_modality": "image",
        "task_id": 3,
    }
    pools, asked = tmp_path / "cand_pool" / "local", tmp_path / "query" / "test"
    write(pools / "mbeir_shop_task0_cand_pool.jsonl", pictures)
    write(pools / "mbeir_shop_task3_cand_pool.jsonl", captions)
    write(pools / "mbeir_other_task0_cand_pool.jsonl", [{"did": "2:1", "txt": "other"}])
    write(asked / "mbeir_shop_task0_test.jsonl", [text | {"pos_cand_list": ["1:1", "1:2"], "neg_cand_list": []}])
    write(asked / "mbeir_shop_task3_test.jsonl", [image | {"pos_cand_list": ["1:3"], "neg_cand_list": ["1:1"]}])
    write(tmp_path / "query" / "train" / "mbeir_shop_train.jsonl", [text | {"pos_cand_list": ["1:1"]}])
    return tmp_path


def test_the_tasks_of_mbeir_become_one_gallery_of_pictures_and_captions(mbeir):
    found = mbeir_tables("shop", mbeir, "mbeir_shop", TripletOptions(split="test"))
    assert {product.product_id: (product.title, bool(product.images)) for product in found.products} == {
        "1:1": ("", True),
        "1:2": ("", True),
        "1:3": ("red dress", False),
    }
    text, image = found.queries
    assert (text.type, text.text, text.positives) == ("text", "red dress", ("1:1", "1:2"))
    assert (image.type, image.positives, image.negatives) == ("image", ("1:3",), ("1:1",))
    assert image.image == str(mbeir / "images" / "a.png")
    assert not found.report.issues


def test_mbeir_without_its_files_is_named(mbeir):
    with pytest.raises(TableError, match="found 0 files of queries and 0 of candidates that begin with 'mbeir_none'"):
        mbeir_tables("shop", mbeir, "mbeir_none")
