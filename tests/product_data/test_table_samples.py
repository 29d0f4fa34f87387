"""Samples of tables: which products, queries and pictures they keep."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from product_data.catalogue.making import write_catalogue
from product_data.table_files import TableError
from product_data.table_samples import write_sample
from product_data.tables import load_tables


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "shop"
    write_catalogue(folder, products=80, image_size=64, progress=False)
    return folder


def rows(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_a_sample_has_the_sizes_of_its_splits_and_rows_as_they_were(shop, tmp_path):
    write_sample(shop, tmp_path / "sample", {"train": 12, "test": None})
    by_name = {row["product_id"]: row for row in rows(shop, "products")}
    kept = rows(tmp_path / "sample", "products")
    assert all(row == by_name[row["product_id"]] for row in kept)
    splits = [row["split"] for row in kept]
    assert splits.count("train") == 12
    assert splits.count("test") == sum(row["split"] == "test" for row in by_name.values()) > 0
    assert set(splits) == {"train", "test"}


def test_a_split_that_is_not_there_is_refused(shop, tmp_path):
    with pytest.raises(
        TableError, match=r"products.parquet: found no product of split 'tset'; expected one of \['test', "
    ):
        write_sample(shop, tmp_path / "sample", {"train": 12, "tset": None})
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("products", "queries"):
        pq.write_table(pq.read_table(shop / f"{name}.parquet").drop_columns(["split"]), bare / f"{name}.parquet")
    with pytest.raises(TableError, match="found no column split; expected one"):
        write_sample(bare, tmp_path / "sample", {"train": 12})
    assert not (tmp_path / "sample").exists()


def test_queries_stay_with_the_answers_that_the_sample_has(shop, tmp_path):
    write_sample(shop, tmp_path / "sample", {"train": 12})
    kept = {row["product_id"] for row in rows(tmp_path / "sample", "products")}
    expected = {
        row["query_id"]: [name for name in row["positives"] if name in kept]
        for row in rows(shop, "queries")
        if row["split"] == "train" and kept & set(row["positives"]) and row["reference_product_id"] in kept | {None}
    }
    found = rows(tmp_path / "sample", "queries")
    assert {row["query_id"]: row["positives"] for row in found} == expected != {}
    pictures = {row["image_id"] for row in rows(tmp_path / "sample", "query_images")}
    assert pictures == {row["image_id"] for row in found if row["image_id"] is not None} != set()
    assert len(load_tables(tmp_path / "sample").products) == 12


def test_a_larger_sample_contains_a_smaller_one(shop, tmp_path):
    for size in (5, 20):
        write_sample(shop, tmp_path / str(size), {"train": size})
    small, large = ({row["product_id"] for row in rows(tmp_path / str(size), "products")} for size in (5, 20))
    assert small < large


def test_weights_stay_beside_their_answers_and_references_are_kept_or_the_query_goes(shop, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    products, queries = pq.read_table(shop / "products.parquet"), pq.read_table(shop / "queries.parquet")
    names = [row["product_id"] for row in rows(shop, "products") if row["split"] == "train"]
    write_sample(shop, tmp_path / "first", {"train": 3})
    kept = sorted(row["product_id"] for row in rows(tmp_path / "first", "products"))
    gone = next(name for name in names if name not in kept)
    row = queries.slice(0, 1).to_pylist()[0] | {"split": "train", "image_id": None}
    both = {"positives": [gone, kept[0]], "positive_weights": [1.0, 0.5], "reference_product_id": kept[1]}
    one = {"positives": [kept[0]], "positive_weights": [1.0], "reference_product_id": gone}
    weighted = [row | both | {"query_id": "weights"}, row | one | {"query_id": "gone"}]
    pq.write_table(products, source / "products.parquet")
    pq.write_table(pq.read_table(shop / "query_images.parquet"), source / "query_images.parquet")
    pq.write_table(pa.Table.from_pylist(weighted), source / "queries.parquet")
    write_sample(source, tmp_path / "sample", {"train": 3})
    found = rows(tmp_path / "sample", "queries")
    assert [(row["query_id"], row["positives"], row["positive_weights"]) for row in found] == [
        ("weights", [kept[0]], [0.5])
    ]


def test_a_folder_that_exists_is_not_overwritten(shop, tmp_path):
    with pytest.raises(FileExistsError):
        write_sample(shop, tmp_path, {"train": 1})


def test_a_source_without_its_tables_is_named(shop, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"products\.parquet"):
        write_sample(tmp_path / "nothing", tmp_path / "sample", {"train": 1})
    assert not (tmp_path / "sample").exists()
