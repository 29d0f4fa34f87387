"""Reasoning in evaluation: vectors as the model's own embed gives them, what was written, the command line, the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from pictures import file_of, plain
from table_files import write_table

from evaluation.baselines.dual_tower import DualTower
from evaluation.reasonings import count_reasonings, reasoning_note, write_reasonings
from evaluation.report import comparison_table, results_table
from evaluation.run import EvaluationOptions, evaluate_model
from modeling_moon.thinking_moon import Thinking
from moon3.__main__ import main
from processing_moon import read_reasoning
from product_data.tables import ProductTables, load_tables
from retrieval.encode import Encoded, VectorCache, WrittenReasoning, encode, load_for_evaluation

PRODUCTS = [
    {"id": "a", "title": "red running shoes with a white sole, striped, for women", "images": [file_of(plain("red"))]},
    {"id": "b", "title": "bag"},
    {"id": "c", "images": [file_of(plain("blue", 64)), file_of(plain("green"))]},
    {"id": "d", "title": "same in green", "attributes": {"colour": ["green"]}, "images": file_of(plain("green"))},
    {"id": "e", "title": "striped cotton, navy, autumn, gold buckle, brown leather"},
]
QUERIES = [
    {"id": "q", "text": "red shoes for women with a gold buckle"},
    {"id": "r", "image": file_of(plain("red"))},
    {"id": "s", "text": "x"},
]
Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def folder(tiny_moon: Callable[..., Path]) -> Path:
    return tiny_moon("qwen3_vl", preset="moon3", trained=True)


@pytest.fixture(scope="module")
def moon3(folder: Path) -> Pair:
    return load_for_evaluation(folder, device="cpu")


def shop() -> ProductTables:
    products = [{"product_id": record["id"]} | {k: v for k, v in record.items() if k != "id"} for record in PRODUCTS]
    products.append({"product_id": "broken", "images": [b"nonsense"], "title": "a broken picture"})
    products[1] |= {"category": "Home > Bags", "attributes": [{"key": "colour", "value": "brown"}]}
    products[3] |= {"category": "Home > Mugs", "attributes": [{"key": "colour", "value": "green"}]}
    queries = [
        {"query_id": record["id"], "positives": ["a"]} | {k: v for k, v in record.items() if k != "id"}
        for record in QUERIES
    ]
    return load_tables({"products": products, "queries": queries})


def embedded(moon3: Pair, records: list[dict[str, Any]], kind: str, **options: Any) -> tuple[np.ndarray, list[Any]]:
    """Each record alone through the model's own embed."""
    model, processor = moon3
    found = []
    for record in records:
        batch_options = {"reasoning": options["reasoning"], "on_error": "raise"}
        batch = processor(**{f"{'products' if kind == 'product' else 'queries'}": [record]}, **batch_options)
        with torch.no_grad():
            found.append(model.embed(batch, processor=processor, **options))
    return np.concatenate([one.embeddings.numpy() for one in found]), [one.reasoning[0] for one in found]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize(("records", "kind"), [(PRODUCTS, "product"), (QUERIES, "query")], ids=["products", "queries"])
def test_vectors_and_texts_are_those_of_embed_in_the_order_of_the_records_whatever_the_batches(
    moon3: Pair, records: list[dict[str, Any]], kind: str, batch_size: int
) -> None:
    found = encode(*moon3, records, kind=kind, reasoning="generate", batch_size=batch_size, progress=False)
    vectors, texts = embedded(moon3, records, kind, reasoning="generate")
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-4)
    assert found.kept == list(range(len(records)))
    assert found.reasoning == texts
    assert len({text.text for text in texts}) > 1
    plain = encode(*moon3, records, kind=kind, progress=False)
    assert plain.reasoning is None
    assert np.abs(plain.vectors - found.vectors).max() > 1e-4


def test_an_unreadable_record_leaves_vectors_and_texts_beside_their_records(moon3: Pair) -> None:
    broken = [*PRODUCTS[:2], {"id": "bad", "images": [file_of(plain("red"))[:40]]}, *PRODUCTS[2:], {"id": "empty"}]
    found = encode(*moon3, broken, reasoning="generate", batch_size=2, progress=False)
    whole = encode(*moon3, PRODUCTS, reasoning="generate", progress=False)
    assert found.kept == [0, 1, 3, 4, 5]
    assert [(one.index, one.item.count("bad")) for one in found.skipped] == [(2, 1), (6, 0)]
    assert found.reasoning == whole.reasoning
    np.testing.assert_allclose(found.vectors, whole.vectors, atol=1e-4)
    nothing = encode(*moon3, broken[2:3], reasoning="generate", progress=False)
    assert (nothing.vectors.shape, nothing.reasoning) == ((0, 32), [])
    assert encode(*moon3, [], reasoning="generate", progress=False).reasoning == []


def test_a_given_reasoning_is_read_and_a_record_without_one_is_skipped(moon3: Pair) -> None:
    told = [record | {"reasoning": {"colour": ["red", record["id"]]}} for record in PRODUCTS]
    found = encode(*moon3, [*told, PRODUCTS[0]], reasoning="given", batch_size=2, progress=False)
    vectors, texts = embedded(moon3, told, "product", reasoning="given")
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-4)
    assert found.reasoning == texts
    assert [text.attributes for text in texts] == [{"colour": ("red", record["id"])} for record in PRODUCTS]
    assert [(one.index, one.field) for one in found.skipped] == [(5, "reasoning")]


def test_without_reasoning_only_the_forward_pass_runs_and_a_given_text_is_not_read(
    moon3: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = moon3
    monkeypatch.setattr(type(model), "embed", lambda *_, **__: pytest.fail("embed is not needed"))
    told = [record | {"reasoning": "colour: red; " * number} for number, record in enumerate(PRODUCTS)]
    found = encode(model, processor, told, batch_size=2, progress=False)
    assert np.array_equal(found.vectors, encode(model, processor, PRODUCTS, batch_size=2, progress=False).vectors)
    assert found.reasoning is None


def test_records_of_like_length_share_a_batch(moon3: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = moon3
    lengths, embed = [], type(model).embed

    def watched(self: Any, batch: Any, **options: Any) -> Any:
        lengths.append(batch["attention_mask"].sum(dim=1).tolist())
        return embed(self, batch, **options)

    monkeypatch.setattr(type(model), "embed", watched)
    records = [{"title": "shoe " * count} for count in (30, 1, 20, 2, 31, 21)]
    encode(model, processor, records, reasoning="generate", batch_size=2, thinking={"max_tokens": 1}, progress=False)
    assert [len(batch) for batch in lengths] == [2, 2, 2]
    assert max(lengths[0]) < min(lengths[1])
    assert max(lengths[1]) < min(lengths[2])


@pytest.mark.parametrize("thinking", [{"max_tokens": 2}, Thinking(max_tokens=2)])
def test_how_to_think_reaches_the_model(moon3: Pair, thinking: Any) -> None:
    found = encode(*moon3, PRODUCTS[:2], reasoning="generate", thinking=thinking, progress=False)
    settings = asdict(thinking) if isinstance(thinking, Thinking) else thinking
    vectors, texts = embedded(moon3, PRODUCTS[:2], "product", reasoning="generate", thinking=settings)
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-4)
    assert found.reasoning == texts
    assert not any(text.closed for text in texts)


def test_the_model_is_left_as_it_was_and_can_embed_and_learn_afterwards(tiny_moon: Callable[..., Path]) -> None:
    untied = tiny_moon("qwen3_vl", preset="moon3", trained=True, tie_word_embeddings=False)
    model, processor = load_for_evaluation(untied, device="cpu")
    model.train()
    found = encode(model, processor, PRODUCTS, reasoning="generate", progress=False)
    assert model.training
    model.eval()
    again = model.embed(PRODUCTS, reasoning="generate", processor=processor)
    np.testing.assert_allclose(again.embeddings.numpy(), found.vectors, atol=1e-4)
    model.embed(PRODUCTS, processor=processor).embeddings.sum().backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_a_model_or_a_processor_that_does_not_reason_is_refused_before_any_work(
    moon3: Pair, tiny_moon: Callable[..., Path], tiny_base: Callable[..., Path]
) -> None:
    moon1, its_processor = load_for_evaluation(tiny_moon(), device="cpu")
    tower = DualTower.from_base(tiny_base(), its_processor, embedding_dim=16)
    for model, processor, name in (
        (moon1, its_processor, r"this model \(MoonModel\)"),
        (tower, its_processor, r"this model \(DualTower\)"),
        (moon3[0], its_processor, r"this processor \(MoonProcessor\)"),
    ):
        message = f"reasoning='generate': {name} does not reason, .*; expected 'none', or a moon3 checkpoint"
        with pytest.raises(ValueError, match=message):
            encode(model, processor, PRODUCTS, reasoning="generate")
        with pytest.raises(ValueError, match=message):
            VectorCache(model, processor, [], [], query_reasoning="generate")
        with pytest.raises(ValueError, match=message):
            VectorCache(model, processor, [], [], product_reasoning="generate")
        with pytest.raises(ValueError, match=message):
            evaluate_model(model, processor, shop(), options=EvaluationOptions(product_reasoning="generate"))


def test_wrong_settings_of_a_reasoning_are_refused(moon3: Pair) -> None:
    with pytest.raises(ValueError, match="reasoning='always'; expected one of none, generate, given"):
        encode(*moon3, PRODUCTS, reasoning="always")
    with pytest.raises(ValueError, match="with reasoning='none'; expected reasoning='generate'"):
        encode(*moon3, PRODUCTS, thinking={"max_tokens": 3})
    with pytest.raises(ValueError, match="thinking='long'; expected a Thinking"):
        encode(*moon3, PRODUCTS, reasoning="generate", thinking="long")
    with pytest.raises(ValueError, match="max_tokens=0; expected 1 or more"):
        encode(*moon3, PRODUCTS, reasoning="generate", thinking={"max_tokens": 0})
    with pytest.raises(TypeError, match="batchsize"):
        encode(*moon3, PRODUCTS, batchsize=3)
    with pytest.raises(ValueError, match="reasoning='given'; expected one of none, generate"):
        VectorCache(*moon3, [], [], product_reasoning="given")
    with pytest.raises(ValueError, match="neither queries nor products generate reasoning"):
        VectorCache(*moon3, [], [], thinking={"max_tokens": 3})
    for options, message in (
        ({"query_reasoning": "given"}, "query_reasoning='given'; expected one of none, generate"),
        ({"product_reasoning": "yes"}, "product_reasoning='yes'; expected one of none, generate"),
        ({"max_reasoning_tokens": 4}, "max_reasoning_tokens=4, but neither queries nor products reason"),
        ({"max_reasoning_tokens": 0, "query_reasoning": "generate"}, "max_reasoning_tokens=0; expected 1 or more"),
        ({"reasonings": "x.parquet"}, "reasonings=x.parquet, but neither queries nor products reason"),
        ({"reasonings": "x.csv", "query_reasoning": "generate"}, "reasonings=x.csv; expected a .parquet file"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluationOptions(**options)


def same(one: Encoded, other: Encoded) -> bool:
    return bool(np.allclose(one.vectors, other.vectors, atol=1e-5))


def test_each_side_reasons_or_not_and_labels_never_do(moon3: Pair) -> None:
    tables = shop()

    def cache(**settings: Any) -> VectorCache:
        return VectorCache(*moon3, tables.products, tables.queries, batch_size=4, progress=False, **settings)

    neither, queries = cache(), cache(query_reasoning="generate", thinking={"max_tokens": 4})
    products = cache(product_reasoning="generate", thinking={"max_tokens": 4})
    assert same(queries.gallery("mm"), neither.gallery("mm"))
    assert same(products.all_queries(), neither.all_queries())
    assert not same(queries.all_queries(), neither.all_queries())
    assert not same(products.gallery("mm"), neither.gallery("mm"))
    for one in (queries, products):
        assert np.array_equal(
            one.labels(["Home > Mugs", "red"], "category"), neither.labels(["Home > Mugs", "red"], "category")
        )
    assert neither.reasonings() == []
    products.gallery("i")
    assert [(one.side, one.input, one.record_id) for one in products.reasonings()] == [
        *[("product", "mm", name) for name in "abcde"],
        *[("product", "i", name) for name in "acd"],
    ]
    assert [(one.side, one.input, one.record_id) for one in queries.reasonings()] == [
        ("query", "query", name) for name in "qrs"
    ]
    assert [one.reasoning for one in queries.reasonings()] == queries.all_queries().reasoning
    assert [one.reasoning for one in products.reasonings()][5:] == products.gallery("i").reasoning


WRITTEN = [
    ("product", "mm", "a", "colour: red, white; material: mesh</think>"),
    ("product", "mm", "b", "shiny thing; colour: red"),
    ("product", "i", "a", "</think>"),
    ("query", "query", "q", ""),
    ("query", "query", "r", "colour: blå</think>"),
]


def written() -> list[WrittenReasoning]:
    return [WrittenReasoning(side, name, item, read_reasoning(text)) for side, name, item, text in WRITTEN]


def counts(*numbers: int) -> dict[str, int]:
    return dict(zip(("written", "well_formed", "unparsed", "not_closed", "empty"), numbers, strict=True))


def test_reasonings_are_counted_by_side_and_by_what_they_were_written_from() -> None:
    assert count_reasonings(written()) == {
        "product": counts(3, 1, 1, 1, 1) | {"inputs": {"mm": counts(2, 1, 1, 1, 0), "i": counts(1, 0, 0, 0, 1)}},
        "query": counts(2, 1, 0, 1, 1) | {"inputs": {"query": counts(2, 1, 0, 1, 1)}},
    }
    assert count_reasonings([]) == {}


def test_reasonings_are_kept_as_a_table(tmp_path: Path) -> None:
    rows = pyarrow.parquet.read_table(write_reasonings(tmp_path / "new" / "r.parquet", written())).to_pylist()
    assert [(row["side"], row["input"], row["id"]) for row in rows] == [entry[:3] for entry in WRITTEN]
    assert rows[0] == {
        "side": "product",
        "input": "mm",
        "id": "a",
        "text": "colour: red, white; material: mesh",
        "attributes": [
            {"key": "colour", "value": "red"},
            {"key": "colour", "value": "white"},
            {"key": "material", "value": "mesh"},
        ],
        "unparsed": [],
        "closed": True,
        "well_formed": True,
    }
    assert rows[1]["unparsed"] == ["no 'key: value' in 'shiny thing'"]
    assert [row["closed"] for row in rows] == [True, False, True, False, True]
    assert rows[4]["attributes"] == [{"key": "colour", "value": "blå"}]
    empty = pyarrow.parquet.read_table(write_reasonings(tmp_path / "none.parquet", []))
    assert (empty.num_rows, empty.column_names) == (0, list(rows[0]))


class _Always(torch.nn.Module):
    """An output layer that writes the same text for every row, whatever the state."""

    def __init__(self, ids: list[int], vocabulary: int) -> None:
        super().__init__()
        self.ids, self.vocabulary, self.step = ids, vocabulary, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*hidden.shape[:2], self.vocabulary)
        logits[..., self.ids[min(self.step, len(self.ids) - 1)]] = 10.0
        self.step += 1
        return logits


def test_what_a_model_writes_well_arrives_in_the_results_and_in_the_table(
    moon3: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, processor = moon3
    ids = processor.tokenizer("colour: red; material: mesh</think>", add_special_tokens=False)["input_ids"]
    make = type(model).writer

    def scripted(self: Any) -> Any:
        writer = make(self)
        writer.lm_head = _Always(ids, model.config.vocab_size)
        return writer

    monkeypatch.setattr(type(model), "writer", scripted)
    options = EvaluationOptions(
        split=None,
        query_reasoning="generate",
        product_reasoning="generate",
        max_reasoning_tokens=len(ids) + 5,
        reasonings=tmp_path / "r.parquet",
        resamples=10,
        progress=False,
    )
    found = evaluate_model(model, processor, shop(), options=options)["reasoning"]
    assert (found["query"], found["product"], found["max_reasoning_tokens"]) == ("generate", "generate", len(ids) + 5)
    inputs = {"mm": 5, "i": 3, "t": 5, "mm, no category": 5, "mm, no attributes": 5}
    assert {name: one["well_formed"] for name, one in found["written"]["product"]["inputs"].items()} == inputs
    assert found["written"]["query"] == counts(3, 3, 0, 0, 0) | {"inputs": {"query": counts(3, 3, 0, 0, 0)}}
    rows = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert len(rows) == found["written"]["product"]["written"] + 3
    pairs = [{"key": "colour", "value": "red"}, {"key": "material", "value": "mesh"}]
    assert all(row["well_formed"] and row["attributes"] == pairs for row in rows)


def test_the_command_line_reasons_on_the_sides_that_are_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(folder), "--benchmark", "catalogue", "--catalogue-products", "24", "--device", "cpu"]
    arguments += ["--output", str(tmp_path / "r.json"), "--sheet", str(tmp_path / "s.png")]
    reasoning = ["--reasoning", "generate", "--product-reasoning", "none", "--max-reasoning-tokens", "3"]
    table = tmp_path / "reasonings.parquet"
    assert main(["evaluate", *arguments, *reasoning, "--reasonings", str(table)]) == 0
    name = f"{folder.name} (queries reason ≤ 3)"
    printed = capsys.readouterr().out
    assert name in printed
    assert "not closed" in printed
    results = json.loads((tmp_path / "r.json").read_text())
    settings = {name: results["reasoning"][name] for name in ("query", "product", "max_reasoning_tokens")}
    assert settings == {"query": "generate", "product": "none", "max_reasoning_tokens": 3}
    assert list(results["reasoning"]["written"]) == ["query"]
    rows = pyarrow.parquet.read_table(table).to_pylist()
    assert len(rows) == results["provenance"]["queries"] == results["reasoning"]["written"]["query"]["written"] > 0
    assert results["reasoning"]["written"]["query"]["not_closed"] == sum(not row["closed"] for row in rows)
    assert main(["report", str(tmp_path / "r.json"), "--compare", "R@10"]) == 0
    assert name in capsys.readouterr().out


def test_without_reasoning_the_results_say_so(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    arguments = ["--benchmark", "catalogue", "--catalogue-products", "24", "--only", "retrieval", "--device", "cpu"]
    assert main(["evaluate", "--model", str(folder), *arguments, "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    assert results["reasoning"] == {"query": "none", "product": "none"}


def test_several_benchmarks_have_a_table_of_reasonings_each(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        rows = [{"product_id": f"{name}{number}", "title": f"shoe {number}"} for number in range(3)]
        write_table(tmp_path / name / "products.jsonl", rows)
        query = {"query_id": "q", "text": "shoe", "positives": [f"{name}0"]}
        (tmp_path / name / "queries.jsonl").write_text(json.dumps(query) + "\n")
    arguments = ["--model", str(folder), "--benchmark", str(tmp_path / "one"), str(tmp_path / "two"), "--device", "cpu"]
    arguments += ["--product-reasoning", "generate", "--only", "retrieval", "--max-reasoning-tokens", "2"]
    assert main(["evaluate", *arguments, "--split", "all", "--reasonings", str(tmp_path / "r.parquet")]) == 0
    for name in ("one", "two"):
        rows = pyarrow.parquet.read_table(tmp_path / f"r-{name}.parquet").to_pylist()
        assert {row["id"] for row in rows} == {f"{name}0", f"{name}1", f"{name}2"}
    assert not (tmp_path / "r.parquet").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--reasoning", "generate"], "reasoning='generate': this model (MoonModel) does not reason"),
        (["--query-reasoning", "generate"], "reasoning='generate': this model (MoonModel) does not reason"),
        (["--max-reasoning-tokens", "8"], "max_reasoning_tokens=8, but neither queries nor products reason"),
        (["--reasoning", "generate", "--reasonings", "x.json"], "reasonings=x.json; expected a .parquet file"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    tiny_moon: Callable[..., Path], capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    arguments = ["--benchmark", "catalogue", "--catalogue-products", "24", "--device", "cpu"]
    assert main(["evaluate", "--model", str(tiny_moon()), *arguments, *change]) == 2
    assert message in capsys.readouterr().err


def result(value: float, reasoning: dict[str, Any] | None) -> dict[str, Any]:
    scores = {f"R@{k}": value for k in (1, 5, 10)} | {"MRR": value, "queries": 7, "gallery": 500}
    labels = {"top1": value, "top10": None, "precision": 0.1, "recall": 0.2, "f1": 0.3, "items": 9}
    made = {
        "model": "runs/moon3",
        "benchmark": "shop",
        "scores": {"t2mm": scores},
        "classification": {"mm": {"level_1": labels}},
    }
    return made | ({} if reasoning is None else {"reasoning": reasoning})


def test_scores_with_another_reasoning_never_share_a_name_or_a_column() -> None:
    both = {"query": "generate", "product": "generate", "max_reasoning_tokens": 32}
    both["written"] = count_reasonings(written())
    queries = {"query": "generate", "product": "none", "max_reasoning_tokens": 32}
    products = {"query": "none", "product": "generate", "max_reasoning_tokens": 32}
    settings = [None, {"query": "none", "product": "none"}, queries, products, both, both | {"max_reasoning_tokens": 8}]
    notes = ["", "", " (queries reason ≤ 32)", " (products reason ≤ 32)", " (reasoning ≤ 32)", " (reasoning ≤ 8)"]
    assert [reasoning_note(one) for one in settings] == notes
    results = [result(0.1 * number, one) for number, one in enumerate(settings) if number]
    for names, columns in ((None, "moon3"), (["same"] * 5, "same")):
        head, _, row = comparison_table(results, names=names).splitlines()
        cells = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row)), strict=True))
        assert {name: cells[columns + name] for name in notes[1:]} == dict(
            zip(notes[1:], ("10.0", "20.0", "30.0", "40.0", "50.0"), strict=True)
        )
    table = results_table(results)
    for note, score in zip(notes[1:], ("10.0", "20.0", "30.0", "40.0", "50.0"), strict=True):
        lines = [
            line for line in table.splitlines() if line.split("|")[1:2] and line.split("|")[1].strip() == f"moon3{note}"
        ]
        assert [score in line for line in lines[:2]] == [True, True]
    last = table.split("\n\n")[-1].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in last]
    assert cells[0] == [
        "model",
        "benchmark",
        "written from",
        "reasoning texts",
        "well formed",
        "unparsed",
        "not closed",
        "empty",
    ]
    assert cells[2] == ["moon3 (reasoning ≤ 32)", "shop", "product, mm", "2", "1", "1", "1", "0"]
    assert cells[4] == ["moon3 (reasoning ≤ 32)", "shop", "query", "2", "1", "0", "1", "1"]
