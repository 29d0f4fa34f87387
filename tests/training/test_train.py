"""The training entry on tiny checkpoints: what it writes, what it refuses, and its variants."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import tqdm
import yaml
from closeness import VALUE
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from table_files import write_table
from tiny_runs import forget_after, write_recipe
from transformers.utils.logging import is_progress_bar_enabled

from modeling_moon import MoonModel
from product_data.atomic_files import read_lines
from product_data.catalogue.making import write_catalogue
from retrieval.encode import encode, load_for_evaluation
from training.train import main

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = {"title": "red mug", "category": ["Home", "Mugs"], "attributes": {"colour": "red"}}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shop"
    write_catalogue(folder, products=60, image_size=64, progress=False)
    return folder


@pytest.fixture
def train(tiny_moon, catalogue, tmp_path):
    def run(*arguments, name="run", **values):
        values = {"base": str(tiny_moon("qwen3_vl")), "data": [str(catalogue)], "catalogue": None} | values
        values = {"max_steps": 2, "save_steps": 1, "learning_rate": 0.01} | values
        path = write_recipe(tmp_path / f"{name}.yaml", **values)
        return main([str(path), "--output_dir", str(tmp_path / name), *arguments])

    return run


def test_adapters_are_saved_alone_and_merged_and_resume(train, tiny_moon, tmp_path):
    lora = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["router", "projection"]}
    lora["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert train(lora=lora) == 0
    run = tmp_path / "run"
    adapted = PeftModel.from_pretrained(MoonModel.from_pretrained(tiny_moon("qwen3_vl")), run / "adapter")
    merged, processor = load_for_evaluation(run / "final")
    ours = encode(adapted, processor, [PRODUCT], progress=False).vectors
    final = encode(merged, processor, [PRODUCT], progress=False).vectors
    start = encode(MoonModel.from_pretrained(tiny_moon("qwen3_vl")), processor, [PRODUCT], progress=False).vectors
    assert abs(ours - final).max() < VALUE  # merging rounds each weight once
    assert abs(start - final).max() > 1e-3
    with pytest.raises(ValueError, match=r"adapter holds an adapter without its base .*expected .*run/final"):
        SentenceTransformer(str(run / "adapter"))
    first = load_file(run / "final" / "model.safetensors")
    forget_after(run, 1)
    assert train(lora=lora) == 0
    again = load_file(run / "final" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_frozen_parameters_stay_and_the_others_learn(train, tiny_moon, tmp_path):
    assert train(freeze=["*visual*"]) == 0
    before = MoonModel.from_pretrained(tiny_moon("qwen3_vl")).state_dict()
    after = MoonModel.from_pretrained(tmp_path / "run" / "final").state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("visual" in name for name in moved)


def test_a_small_base_is_made_evaluated_trained_and_evaluated(train, catalogue, tmp_path):
    sizes = {"hidden_size": 32, "num_layers": 1, "vocab_size": 400}
    values = {"base": None, "small_base": sizes, "moon": {"embedding_dim": 16}, "max_steps": 1}
    assert train(**values, evaluate_before=True, evaluate_after=True) == 0
    run = tmp_path / "run"
    for when in ("before", "after"):
        found = json.loads((run / f"results_{when}.json").read_text())
        assert found["benchmark"] == "shop"
        assert set(found["scores"]) == {"t2mm", "i2mm", "mm2mm", "t2i", "i2t"}
    model, _ = load_for_evaluation(run / "final")
    assert model.config.embedding_dim == 16
    assert (run / "small_base" / "tokenizer.json").is_file()


def test_what_is_cut_to_max_tokens_is_counted_named_and_said(train, tmp_path, capsys):
    assert train(max_tokens=80, max_steps=4, evaluate_after=True) == 0
    run, printed = tmp_path / "run", capsys.readouterr().out
    lines = read_lines(run / "shortened.jsonl")
    assert lines
    parts = [(line["kind"], line["item"], line["field"]) for line in lines]
    assert len(set(parts)) == len(parts)
    assert all(line.keys() == {"kind", "item", "field", "tokens_before", "tokens_after"} for line in lines)
    shares = [line["shortened_share"] for line in read_lines(run / "metrics.jsonl")]
    assert 0 < max(shares) <= 1
    assert printed.count(f"; {run / 'shortened.jsonl'} lists all of them") == 1
    results = json.loads((run / "results_after.json").read_text())
    assert any("over max_tokens=80: " in warning for warning in results["warnings"])
    assert results["warnings"][-1] in printed
    assert train("--overwrite", max_tokens=None, max_steps=1) == 0
    assert not (run / "shortened.jsonl").exists()
    assert [line["shortened_share"] for line in read_lines(run / "metrics.jsonl")] == [0]


def test_data_without_a_negative_is_refused_and_leaves_nothing_behind(train, tmp_path, capsys):
    (tmp_path / "products.jsonl").write_text(json.dumps({"product_id": "1", "title": "red mug"}) + "\n")
    assert train(data=[str(tmp_path / "products.jsonl")], query_mix={"t": 1}, derived_queries=True) == 2
    assert "data: found 1 product to train on: no query has a negative" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_baseline_trains_by_the_same_recipe(train, tmp_path):
    sizes = {"hidden_size": 32, "num_layers": 1, "vocab_size": 400}
    values = {"base": None, "small_base": sizes, "moon": {"embedding_dim": 16}}
    assert train(**values, architecture="dual_tower") == 0
    model, processor = load_for_evaluation(tmp_path / "run" / "final")
    assert type(model).__name__ == "DualTower"
    assert encode(model, processor, [PRODUCT], progress=False).vectors.shape == (1, 16)


def test_a_time_budget_becomes_a_number_of_steps_that_a_resumed_run_keeps(train, tmp_path, capsys):
    assert train(max_steps=None, train_minutes=0.02) == 0
    stored = yaml.safe_load((tmp_path / "run" / "resolved_recipe.yaml").read_text())
    assert stored["max_steps"] >= 1
    assert stored["train_minutes"] == 0.02
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == stored["max_steps"]
    (tmp_path / "run" / "finished.json").unlink()
    assert train(max_steps=None, train_minutes=0.02) == 0
    assert yaml.safe_load((tmp_path / "run" / "resolved_recipe.yaml").read_text()) == stored
    printed = capsys.readouterr().out
    assert "seconds a step" in printed
    assert printed.count("train_runtime") == 2  # of the run and of its continuation, not of the measurement
    measurement = printed[printed.index("measuring the step rate …") : printed.index(" seconds a step")]
    assert len(measurement.splitlines()) == 2


def test_what_a_timed_run_says_of_its_data_is_said_once(train, tmp_path, capsys):
    rows = [{"product_id": str(number), "title": f"red mug {number}"} for number in range(6)]
    queries = [{"query_id": f"q{number}", "text": "a mug", "positives": [str(number)]} for number in range(6)]
    (tmp_path / "table").mkdir()
    for name, table in (("products", rows), ("queries", queries)):
        write_table(tmp_path / "table" / f"{name}.jsonl", table)
    data = {"data": [str(tmp_path / "table")], "split": "all", "derived_queries": False}
    assert train(**data, query_mix={"t": 1, "mm": 1}, max_steps=None, train_minutes=0.005, queue_steps="auto") == 0
    printed = capsys.readouterr().out
    assert printed.count("seconds a step") == 1
    assert printed.count("query_mix: found no queries of the form 'mm'; this form is not drawn") == 1
    assert printed.count("queue_steps: auto is 199 with 1 process\n") == 1
    assert json.loads((tmp_path / "run" / "final" / "provenance.json").read_text())["queue_steps"] == 199


@pytest.mark.parametrize("hidden", [True, False])
def test_disable_tqdm_leaves_no_bar_of_anything(train, tiny_base, monkeypatch, hidden):
    base = str(tiny_base("qwen3_vl"))
    shown, make = [], tqdm.std.tqdm.__init__

    def recorded(bar, *arguments, **options):
        make(bar, *arguments, **options | {"delay": 0})
        shown.extend([] if bar.disable else [options.get("desc")])

    monkeypatch.setattr(tqdm.std.tqdm, "__init__", recorded)
    values = {"base": base, "moon": {"embedding_dim": 16}, "max_steps": 1}
    values |= {"data": ["catalogue"], "catalogue": {"products": 40, "image_size": 64}, "evaluate_products": 6}
    assert train(**values, evaluate_before=True, evaluate_after=True, disable_tqdm=hidden) == 0
    assert hidden == (not shown), shown
    assert is_progress_bar_enabled()


def test_measuring_the_step_rate_leaves_no_trace(train, tmp_path):
    assert train(max_steps=None, train_minutes=0.01, name="timed") == 0
    steps = yaml.safe_load((tmp_path / "timed" / "resolved_recipe.yaml").read_text())["max_steps"]
    assert train(max_steps=steps, name="counted") == 0
    timed, counted = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("timed", "counted"))
    assert all(torch.equal(timed[name], counted[name]) for name in timed)


def test_a_run_that_was_stopped_while_it_was_prepared_is_known_by_its_recipe(train, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    sizes = {"hidden_size": 32, "num_layers": 1, "vocab_size": 400}
    values = {"base": None, "small_base": sizes, "moon": {"embedding_dim": 16}}
    with monkeypatch.context() as patch:
        patch.setattr("training.train.load_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(**values)
    assert (tmp_path / "run" / "base" / "config.json").is_file()
    assert train(**{**values, "small_base": {**sizes, "hidden_size": 64}}) == 2
    assert "holds a run of another recipe (small_base: " in capsys.readouterr().err
    (tmp_path / "run" / "resolved_recipe.yaml").unlink()
    assert train(**values) == 2
    assert "holds small_base, base, provenance.json of a run without a recipe" in capsys.readouterr().err


def test_a_timed_run_that_was_stopped_before_its_steps_were_measured_goes_on(train, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    values = {"max_steps": None, "train_minutes": 0.01}
    with monkeypatch.context() as patch:
        patch.setattr("training.assembly.step_rate.seconds_per_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(**values)
    stored = tmp_path / "run" / "resolved_recipe.yaml"
    assert yaml.safe_load(stored.read_text())["max_steps"] == -1
    assert train(**values) == 0
    assert yaml.safe_load(stored.read_text())["max_steps"] >= 1


def test_a_finished_run_is_evaluated_where_its_results_are_missing(train, tmp_path):
    assert train() == 0
    assert train(evaluate_after=True, evaluate_products=6) == 0
    results = tmp_path / "run" / "results_after.json"
    facts = json.loads(results.read_text())["provenance"]
    assert (facts["steps"], facts["training_seed"], facts["limit"]) == (2, 42, 6)
    written = results.stat().st_mtime_ns
    assert train(evaluate_after=True, evaluate_products=6) == 0
    assert results.stat().st_mtime_ns == written
    assert train(evaluate_after=True, evaluate_products=7) == 0
    assert json.loads(results.read_text())["provenance"]["limit"] == 7


def test_a_run_does_not_go_on_with_data_of_which_other_pairs_would_be_drawn(train, catalogue, tmp_path, capsys):
    shop = tmp_path / "growing"
    shutil.copytree(catalogue, shop)
    assert train(data=[str(shop)]) == 0
    run = tmp_path / "run"
    forget_after(run, 1)
    tables = {name: pyarrow.parquet.read_table(catalogue / f"{name}.parquet") for name in ("products", "queries")}
    pyarrow.parquet.write_table(tables["products"].slice(0, 59), shop / "products.parquet")
    assert train(data=[str(shop)]) == 2
    message = capsys.readouterr().err
    assert "data: found other products, queries or answers in growing than" in message
    assert "checkpoint-1; expected the same data to resume" in message
    pyarrow.parquet.write_table(tables["products"], shop / "products.parquet")
    assert train(data=[str(shop)]) == 0
    assert "resuming from" in capsys.readouterr().out


def test_what_was_trained_on_and_evaluated_on_is_said_in_the_results(train, tmp_path):
    assert train(split="all", evaluate_after=True, evaluate_products=6, max_steps=1) == 0
    (warning,) = json.loads((tmp_path / "run" / "results_after.json").read_text())["warnings"]
    assert "18 of 18 queries and 6 of 6 products of evaluate_split 'test' are also in the training split" in warning
    for folder in (tmp_path / "run", tmp_path / "run" / "final"):
        assert json.loads((folder / "provenance.json").read_text())["warnings"] == [warning]


def test_adapters_on_bfloat16_weights_learn_in_float32_and_are_saved_in_bfloat16(train, tmp_path):
    lora = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["router", "projection"]}
    lora["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    evaluated = {"evaluate_before": True, "evaluate_after": True, "evaluate_products": 6}
    assert train(lora=lora, bf16=True, use_cpu=True, **evaluated) == 0
    run = tmp_path / "run"
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert any("router" in name for name in adapter)
    final = load_file(run / "final" / "model.safetensors")
    assert {tensor.dtype for tensor in final.values()} == {torch.bfloat16}
    precisions = [json.loads((run / f"results_{when}.json").read_text())["provenance"] for when in ("before", "after")]
    assert [(facts["dtype"], facts["autocast"], facts["steps"]) for facts in precisions] == [
        ("bfloat16", "bfloat16", 0),
        ("bfloat16", "bfloat16", 2),
    ]


def test_overwrite_starts_anew_and_keeps_what_is_not_the_runs(train, tmp_path):
    assert train() == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert train(learning_rate=0.02) == 2
    assert train("--overwrite", learning_rate=0.02) == 0
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "holidays"}, "no split 'holidays'; expected one of test, train, valid"),
        ({"freeze": ["nothing*"]}, "freeze: found no parameter like 'nothing*'"),
        ({"freeze": ["*"]}, "expected fewer patterns"),
        ({"lora": {"target_modules": ["nowhere"]}}, "lora: "),
        ({"moon": {"embedding_dim": 8}}, "expected a Qwen base"),
        (
            {"base": None, "small_base": {"hidden_size": 32}, "moon": {"embedding_dim": 64}},
            "base or moon: MoonConfig: embedding_dim=64; expected 1 to the base's width 32",
        ),
        ({"attn_implementation": "telepathy"}, "base: "),
        ({"attn_implementation": "flash_attention_2"}, "found a CPU; expected a CUDA GPU, or sdpa or eager"),
        ({"base": "nobody/no-such-model"}, "base: "),
        ({"catalogue": {"products": -5}, "data": ["catalogue"]}, "catalogue: "),
        ({"base": None, "small_base": {"hiden_size": 8}}, "small_base: "),
        ({"data": ["catalogue"], "catalogue": {"pictures": 8}}, "catalogue: "),
    ],
)
def test_what_the_data_or_the_model_does_not_have_is_refused_before_training(train, capsys, values, message):
    assert train(**values) == 2
    assert message in capsys.readouterr().err


def test_a_refused_command_leaves_nothing_in_the_way_of_the_corrected_one(train, tmp_path, capsys):
    made = {
        "base": None,
        "small_base": {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "vision_depth": 2},
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    for wrong in (
        {"moon": {"embedding_dim": 64}},
        {"moon": {"embedding_dim": 16}, "lora": {"target_modules": ["nowhere"]}},
        {"split": "holidays"},
    ):
        assert train(**made, **wrong) == 2
        assert [path.name for path in run.iterdir()] == ["notes.txt"]
    assert train(**made, moon={"embedding_dim": 16}) == 0
    before = sorted(path.name for path in run.iterdir())
    assert train(**made, moon={"embedding_dim": 8}) == 2
    assert "holds a run of another recipe" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == before


def test_nothing_is_cleared_that_was_there_before_the_refusal(train, tmp_path, capsys):
    (tmp_path / "run" / "base").mkdir(parents=True)
    (tmp_path / "run" / "base" / "weights").write_text("mine")
    assert train(split="holidays") == 2
    assert "holds base of a run without a recipe" in capsys.readouterr().err
    assert (tmp_path / "run" / "base" / "weights").read_text() == "mine"


def test_an_output_folder_that_cannot_be_made_is_refused(train, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert train("--output_dir", str(tmp_path / "file" / "run")) == 2
    assert "output_dir: found [Errno 20] Not a directory" in capsys.readouterr().err


def test_two_data_sets_of_one_name_are_refused(train, catalogue, capsys):
    assert train(data=[str(catalogue), str(catalogue)]) == 2
    assert "two data sets named 'shop'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["recipe.yaml", "-h"]])
def test_help_is_printed_and_is_no_error(arguments, capsys):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "training/train.py RECIPE.yaml [--key value …]" in printed
    assert "quickstart.yaml" in printed
    assert all(f"\n    --{key}: " in printed for key in ("base", "query_mix", "temperature", "train_minutes"))
    assert " --learning_rate " in printed
    assert "--num_train_epochs" not in printed


@pytest.mark.slow
def test_the_script_runs_from_anywhere_and_hides_no_library(tmp_path):
    command = [sys.executable, str(ROOT / "training" / "train.py"), "nowhere.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "found no file" in done.stderr
