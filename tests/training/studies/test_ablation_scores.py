"""Scores that an ablation keeps of results files, and those of models without training."""

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from training.recipe.arguments import parse_recipe
from training.studies.ablation_scores import label_scores, reference_scores, row_scores


def test_rows_name_data_set_direction_and_whether_products_ask_for_themselves():
    scores = {"R@1": 0.1, "R@10": 0.2, "R@1_chance": 0, "R@10_chance": 0, "MRR": 0.1, "queries": 5, "gallery": 5}
    result = {
        "benchmark": "shop",
        "scores": {"t2mm": {**scores, "source": "queries"}, "i2mm": None},
        "image_only": {"t2i": {**scores, "source": "products"}},
    }
    assert list(row_scores(result)) == ["shop t→i, own parts", "shop t→mm"]


def test_labels_keep_the_deepest_category_and_the_mean_over_attributes():
    level = {"top1": 0.5, "top1_interval": [0.4, 0.6], "top10": None, "f1": 0.2, "labels": 4}
    result = {
        "benchmark": "shop",
        "classification": {"mm": {"level_1": {**level, "top1": 0.9}, "deepest": level}, "i": {}},
        "attributes": {"i": {"keys": {}, "mean": {"keys": 2, "top1": 0.3, "top10": 0.8, "f1": 0.1}}},
        "reasoning": {"query": "generate"},
    }
    assert label_scores(result) == {
        "shop category mm, reasoned": {"top1": 0.5, "top1_interval": [0.4, 0.6], "f1": 0.2},
        "shop attributes i, reasoned": {"top1": 0.3, "top10": 0.8, "f1": 0.1},
    }
    assert label_scores({"benchmark": "shop"}) == {}


def test_a_model_without_training_is_evaluated_once_on_the_same_products(tmp_path, monkeypatch):
    folder = tmp_path / "shop"
    folder.mkdir()
    names = ["red boot", "blue shirt", "green bottle", "silver tie", "white cup", "black pan", "grey sock", "pink hat"]
    products = [{"product_id": f"p{place}", "title": name} for place, name in enumerate(names)]
    queries = [
        {"query_id": f"q{place}", "type": "text", "text": name.split()[1], "positives": [f"p{place}"]}
        for place, name in enumerate(names)
    ]
    for name, rows in (("products", products), ("queries", queries)):
        pq.write_table(pa.Table.from_pylist([{**row, "split": "test"} for row in rows]), folder / f"{name}.parquet")
    keys = {"data": [str(folder)], "evaluate_products": 6, "max_steps": 1, "small_base": {"hidden_size": 32}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    recipe = parse_recipe([str(tmp_path / "recipe.yaml")])
    rows = reference_scores("bm25", recipe, tmp_path / "bm25")
    assert list(rows) == ["shop t→mm"]  # it reads no pictures
    assert (rows["shop t→mm"]["gallery"], rows["shop t→mm"]["R@1"]) == (6, 1.0)
    monkeypatch.setattr("training.studies.ablation_scores.evaluate_benchmarks", None)
    assert reference_scores("bm25", recipe, tmp_path / "bm25") == rows
