"""One label takes all pictures if their vectors are nearly one vector; centring shows what they still tell apart."""

import json

import numpy as np
import pytest

from evaluation.label_collapse import label_collapse
from moon3.__main__ import main
from product_data.catalogue.making import write_catalogue


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_label_near_the_common_vector_takes_all_and_centring_undoes_it():
    truth = np.array([0, 0, 0, 1, 1, 1])
    item = unit([[10, 1, 0], [10, 1.1, 0], [10, 0.9, 0], [10, -1, 0], [10, -1.1, 0], [10, -0.9, 0]])
    label = unit([[0.1, 1, 1], [5, -1, 1]])
    found = label_collapse(item, label, truth)
    assert found["predicted"] == {1: 6}
    assert found["top1"] == 0.5
    assert found["centred_top1"] == 1.0
    assert found["centred_predicted"] == {0: 3, 1: 3}
    assert found["narrowness"] == pytest.approx(float(np.linalg.norm(item.mean(axis=0))))
    assert found["narrowness"] > 0.98
    cosine = item.mean(0) @ label.mean(0) / np.linalg.norm(item.mean(0)) / np.linalg.norm(label.mean(0))
    assert found["label_gap"] == pytest.approx(float(cosine), rel=1e-5)


def test_the_command_writes_every_form_of_every_model(tiny_moon, tmp_path, capsys):
    write_catalogue(tmp_path / "shop", products=60, image_size=64, progress=False)
    place = f"tiny={tiny_moon('qwen3_vl')}"
    output = tmp_path / "found.json"
    arguments = [
        "label-collapse",
        "--model",
        place,
        "--data",
        str(tmp_path / "shop"),
        "--output",
        str(output),
        "--split",
        "all",
    ]
    assert main(arguments) == 0
    results = json.loads(output.read_text())
    model = results["models"]["tiny"]
    assert set(model["forms"]) == {"i", "t", "mm"}
    for found in model["forms"].values():
        assert sum(found["predicted"].values()) == found["products"] == sum(model["labels"].values())
        assert 0 < found["narrowness"] <= 1
    assert results["chance"] == pytest.approx(1 / len(model["labels"]))
    assert "| tiny" in capsys.readouterr().out


def test_a_model_without_a_name_and_data_with_one_label_are_refused(tiny_moon, tmp_path, capsys):
    common = ["--output", str(tmp_path / "found.json"), "--data", str(tmp_path / "products.jsonl")]
    (tmp_path / "products.jsonl").write_text(
        json.dumps({"product_id": "a", "title": "x", "category_path": ["A"]}) + "\n"
    )
    assert main(["label-collapse", "--model", "place", *common]) == 2
    assert "expected different NAME=MODEL" in capsys.readouterr().err
    assert main(["label-collapse", "--model", f"tiny={tiny_moon('qwen3_vl')}", *common]) == 2
    assert "found 1 category labels; expected at least two" in capsys.readouterr().err
