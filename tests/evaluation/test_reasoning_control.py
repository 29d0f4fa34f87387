"""The control of reasoning: which texts are exchanged, and what recall and cosines say of a model that uses them or not."""

import hashlib
import json

import numpy as np
import pytest
from pictures import file_of, noise

import evaluation.reasoning_control as module
from evaluation.reasoning_control import GivenReasonings, exchanged, reasoning_control
from evaluation.reasonings import label_agreement
from evaluation.run import EvaluationOptions, evaluate_model
from moon3.__main__ import main
from processing_moon import read_reasoning
from product_data.errors import OptionError
from product_data.tables import load_tables
from retrieval.encode import Encoded, VectorCache, WrittenReasoning, encode, load_for_evaluation

COUNT = 12


def shop():
    products = [
        {"product_id": f"p{number}", "title": f"thing {number}", "images": [file_of(noise(32, 32, number))]}
        for number in range(COUNT)
    ]
    queries = [
        {"query_id": f"q{number}", "text": f"wanted {number}", "positives": [f"p{number}"]} for number in range(COUNT)
    ]
    return load_tables({"products": products, "queries": queries})


def test_every_record_gets_another_text_of_its_own_kind():
    texts = {("query", "query", f"q{number}"): f"colour: {'red' if number < 3 else number}" for number in range(8)}
    texts |= {("product", "mm", f"p{number}"): f"brand: {number}" for number in range(2)}
    texts |= {
        ("product", "i", "p0"): "colour: red",
        ("product", "i", "p1"): "colour: red",
        ("product", "mm", "p9"): " ",
    }
    found = exchanged(texts, seed=1)
    assert {key for key in texts if key[1] != "i" and key[2] != "p9"} == found.keys()
    for key, partner in found.items():
        assert key[:2] == partner[:2]
        assert texts[key] != texts[partner]
    assert exchanged(texts, seed=1) == found != exchanged(texts, seed=2)


class Written(VectorCache):
    """A cache of a model that wrote a text about each record: of query n what it wrote of product n, if it reads it."""

    def __init__(self, tables):
        self.model, self.processor = type("Model", (), {"config": type("Config", (), {"vector_size": 16})})(), None
        self.products, self.queries, self.variants = tables.products, tables.queries, "left_out"
        self.label_products, self.label_queries = tables.products, tables.queries
        self.settings = type("Settings", (), {"batch_size": 4, "progress": False})()

    def reasonings(self):
        texts = [("product", "mm", "p"), ("product", "i", "p"), ("query", "query", "q")]
        return [
            WrittenReasoning(side, name, f"{letter}{number}", read_reasoning(f"<think>brand: {number}</think>"))
            for side, name, letter in texts
            for number in range(COUNT)
        ]


def vector_of(text):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    vector = np.random.default_rng(seed).standard_normal(16).astype(np.float32)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("reads", [True, False])
def test_recall_falls_with_anothers_attributes_only_for_a_model_that_reads_them(monkeypatch, reads):
    def fake(model, processor, records, *, reasoning, kind="product", **settings):
        shown = [record["reasoning"] if reads and reasoning == "given" else str(record["id"])[1:] for record in records]
        return Encoded(
            np.stack([vector_of(text) for text in shown]) if shown else np.zeros((0, 16)), list(range(len(shown))), []
        )

    monkeypatch.setattr(module, "encode", fake)
    monkeypatch.setattr("evaluation.reasoning_control.GivenReasonings.unread_queries", lambda *_: "")
    monkeypatch.setattr("evaluation.reasoning_control.GivenReasonings.unrelated", lambda *_: "")
    monkeypatch.setattr("retrieval.encode.unread_records", lambda *_: "")
    monkeypatch.setattr("retrieval.encode.check_reasoning", lambda *_: None)
    found = reasoning_control(Written(shop()), seed=3)
    row = found["recall"]["t2mm"]
    assert (found["written"], found["exchanged"], row["queries"]) == (3 * COUNT, 3 * COUNT, COUNT)
    assert row["own"]["R@1"] == 1.0
    change = row["swapped_change"]["R@1"]
    assert change["difference"] == pytest.approx(row["swapped"]["R@1"] - row["own"]["R@1"])
    assert change["interval"][0] <= change["difference"] <= change["interval"][1]
    if reads:
        assert change["difference"] < -0.5
        assert change["p"] < 0.05
        assert found["cosine"]["query"]["swapped"]["mean"] == pytest.approx(found["cosine"]["query"]["other"]["mean"])
    else:
        assert (change["difference"], change["p"]) == (0.0, 1.0)
        assert found["cosine"]["product"]["swapped"]["mean"] == pytest.approx(1.0)
        assert found["cosine"]["product"]["other"]["mean"] < 0.5


@pytest.fixture(scope="module")
def moon3(tiny_moon):
    folder = tiny_moon("qwen3_vl", preset="moon3", trained=True, max_reasoning_tokens=12)
    return folder, *load_for_evaluation(folder, device="cpu")


def test_a_record_without_a_text_is_embedded_without_reasoning_beside_one_that_has_one(moon3):
    _, model, processor = moon3
    tables = shop()
    texts = {("product", "mm", "p1"): "colour: red", ("product", "mm", "p2"): "  "}
    settings = {"batch_size": 4, "progress": False}
    found = GivenReasonings(texts, model, processor, tables.products[:3], [], **settings).gallery("mm")
    records = [row.record("mm") for row in tables.products[:3]]
    plain = encode(model, processor, records, **settings).vectors
    given = encode(model, processor, [records[1] | {"reasoning": "colour: red"}], reasoning="given", **settings).vectors
    np.testing.assert_allclose(found.vectors[[0, 2]], plain[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(found.vectors[1], given[0], atol=1e-5)
    assert np.abs(found.vectors[1] - plain[1]).max() > 1e-4
    assert found.kept == [0, 1, 2]


def test_an_evaluation_has_the_control_beside_the_counts_of_what_was_written(moon3):
    _, model, processor = moon3
    options = EvaluationOptions(
        split=None,
        only=("retrieval",),
        query_reasoning="generate",
        product_reasoning="generate",
        reasoning_control=True,
        progress=False,
    )
    reasoning = evaluate_model(model, processor, shop(), options=options)["reasoning"]
    assert reasoning["agreement"] == {}  # these products have no labels
    found = reasoning["control"]
    assert found["exchanged"] > 0
    assert set(found["recall"]) == {"t2mm", "t2i", "i2t"}
    assert found["cosine"].keys() == {"query", "product"}
    for side in found["cosine"].values():
        assert (
            -1 <= side["swapped"]["interval"][0] <= side["swapped"]["mean"] <= side["swapped"]["interval"][1] <= 1.00001
        )
        assert side["none"]["mean"] < 1


def test_the_command_writes_the_control_and_refuses_it_without_reasoning(moon3, tmp_path, capsys):
    arguments = ["evaluate", "--model", str(moon3[0]), "--benchmark", "catalogue", "--catalogue-products", "40"]
    arguments += ["--only", "retrieval", "--output", str(tmp_path / "out.json"), "--reasoning-control"]
    assert main(arguments) == 2
    assert "reasoning_control with query_reasoning='none'" in capsys.readouterr().err
    assert main([*arguments, "--product-reasoning", "generate", "--limit", "8"]) == 0
    control = json.loads((tmp_path / "out.json").read_text())["reasoning"]["control"]
    assert control["written"] > 0
    assert set(control["cosine"]) == ({"product"} if control["exchanged"] else set())


def test_what_was_written_is_compared_with_the_labels_that_each_form_shows():
    shown = file_of(noise(8, 8))
    attributes = {"color": ["red", "white"], "brand": ["Fjell"]}
    table = load_tables(
        {
            "products": [
                {"product_id": "a", "images": [shown], "attributes": attributes},
                {"product_id": "b", "title": "x"},
            ]
        }
    )
    written = [
        WrittenReasoning("product", form, name, read_reasoning("<think>colour: Red; brand: Noru; price: 3</think>"))
        for form, name in (("i", "a"), ("mm", "a"), ("t", "b"), ("mm, no category", "a"))
    ]
    found = label_agreement([*written, WrittenReasoning("query", "query", "q", read_reasoning(""))], table.products)
    assert found.keys() == {"i", "mm"}
    assert found["i"] == {"f1": pytest.approx(2 * 1 / (1 + 2)), "interval": [found["i"]["f1"]] * 2, "products": 1}
    assert found["mm"]["f1"] == pytest.approx(2 * 1 / (2 + 3))


def test_a_control_that_cannot_be_made_is_refused(moon3):
    with pytest.raises(OptionError, match="reasoning_control with query_reasoning='auto'"):
        EvaluationOptions(query_reasoning="auto", product_reasoning="generate", reasoning_control=True)
    with pytest.raises(OptionError, match="reasoning_control with only='classification'; expected retrieval"):
        EvaluationOptions(only=("classification",), query_reasoning="generate", reasoning_control=True)
    _, model, processor = moon3
    cache = VectorCache(model, processor, shop().products, [], progress=False)
    with pytest.raises(ValueError, match="found no reasoning texts; expected queries or products that generate"):
        reasoning_control(cache)


def test_a_query_that_is_not_ranked_in_every_way_is_left_out():
    ranked = {
        way: {"t2mm": module.Ranked("t", "mm", indices, "queries", False, np.array(ranks), {})}
        for way, indices, ranks in (
            ("own", [0, 2], [1, 11]),
            ("swapped", [0, 1, 2], [20, 1, 1]),
            ("none", [0, 1, 2], [1, 1, 20]),
        )
    }
    found = module._recall(ranked, "t2mm", resamples=10, seed=0)
    assert found["queries"] == 2
    assert [found[way]["R@10"] for way in ("own", "swapped", "none")] == [0.5, 0.5, 0.5]
    assert module._common({**ranked, "own": {}}, "t2mm") == set()
