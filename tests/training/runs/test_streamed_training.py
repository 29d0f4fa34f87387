"""Training on streams: stopped in the middle of an epoch and resumed, by one process and by two, equals the straight run."""

import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from pictures import file_of, noise
from tiny_runs import assert_same_run, forget_after, write_recipe

from moon3.__main__ import main as moon3
from processing_moon import images_moon
from product_data.atomic_files import read_lines
from training.train import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """26 triplets in two shards: an epoch ends in the middle of a block, and of a run."""
    folder = tmp_path_factory.mktemp("data") / "triplets"
    folder.mkdir()
    for shard in range(2):
        rows = [
            {
                "query": f"wish {n}" if n % 2 else None,
                "query_image": None if n % 2 else file_of(noise(seed=n)),
                "doc_title": f"thing {n}",
                "doc_image": b"no picture" if n == 5 else file_of(noise(seed=100 + n)),
                "neg_title": f"thing {n + 1}",
            }
            for n in range(13 * shard, 13 * shard + 13)
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{shard}.parquet", row_group_size=4)
    return folder


@pytest.fixture(scope="module")
def recipe(tiny_moon, shards, tmp_path_factory):
    return write_recipe(
        tmp_path_factory.mktemp("recipe") / "streamed.yaml",
        base=str(tiny_moon("qwen3_vl")),
        data=[str(shards)],
        catalogue=None,
        query_mix=None,
        streaming=True,
        shuffle_rows=8,
        bucket_batches=2,
        queue_steps=2,
        max_steps=8,
        gradient_accumulation_steps=2,
        save_total_limit=9,
        dataloader_num_workers=0,
    )


def test_a_streaming_run_goes_on_exactly_whatever_the_number_of_workers(recipe, tmp_path, monkeypatch, capsys):
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert main([str(recipe), "--output_dir", str(whole)]) == 0
    assert "triplets: streamed in 2 shards" in capsys.readouterr().out
    named = {line["item"] for line in read_lines(whole / "skipped.jsonl")}
    assert all(name.startswith("triplets/") for name in named)
    shutil.copytree(whole, again)
    forget_after(again, 6)
    opened = []
    decode = images_moon._decode
    monkeypatch.setattr(images_moon, "_decode", lambda *arguments: opened.append(1) or decode(*arguments))
    assert main([str(recipe), "--output_dir", str(again)]) == 0
    assert f"resuming from {again / 'checkpoint-6'}" in capsys.readouterr().out
    assert 0 < len(opened) < 30  # two steps of four pairs, not eight steps
    assert_same_run(whole, again)
    forget_after(again, 2)
    assert main([str(recipe), "--output_dir", str(again), "--dataloader_num_workers", "2"]) == 0
    assert_same_run(whole, again)


@pytest.mark.slow
def test_a_small_base_and_a_time_budget_work_with_streams(recipe, tmp_path):
    values = yaml.safe_load(recipe.read_text()) | {
        "base": None,
        "catalogue": None,
        "query_mix": None,
        "max_steps": -1,
        "train_minutes": 0.01,
    }
    values |= {"small_base": {"hidden_size": 32, "num_layers": 1, "vision_depth": 2, "vocab_size": 420}}
    path = write_recipe(tmp_path / "small.yaml", **values)
    assert main([str(path), "--output_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["steps"] >= 1


@pytest.mark.slow
def test_two_processes_killed_at_a_step_and_in_a_save_end_as_the_run_left_alone(recipe, tmp_path, capsys):
    kills = ["--kills", "2", "--at-least-in-saves", "1", "--pause-seconds", "0.05"]
    assert moon3(["soak", str(recipe), *kills, "--output", str(tmp_path)]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["passed"]
    assert found["differences"] == []
    assert found["kills_in_a_save"] >= 1
    assert len(found["kills"]) == 2
    assert (found["losses_compared"], found["steps"]) == (6, 6)
    assert min(found["checkpoint_tensors_compared"], found["final_tensors_compared"]) > 10
    assert "removed, because its save was interrupted" in (tmp_path / "killed.log").read_text()
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "killed")
    for run in ("uninterrupted", "killed"):
        for rank in (0, 1):
            state = torch.load(tmp_path / run / "checkpoint-6" / f"contrastive_state_{rank}.pt", weights_only=True)
            assert json.loads(state["stream"])["consumed"] == 12
