"""The stages of MOON Embedding: the second starts from the first one's model, with a new optimizer, and sizes are served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import losses

from training.recipe.arguments import RecipeError, parse_recipe
from training.runs.run import Run
from training.train import train

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"
TINY = [
    *("--catalogue.products", "60", "--catalogue.image_size", "64", "--max_steps", "2", "--save_steps", "2"),
    *(
        "--per_device_train_batch_size",
        "2",
        "--evaluate_after",
        "false",
        "--disable_tqdm",
        "true",
        "--logging_steps",
        "1",
    ),
]


def run_of(name, output, *more):
    run = Run(parse_recipe([str(RECIPES / f"{name}.yaml"), *TINY, "--output_dir", str(output), *more]))
    train(run)
    return run


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    run_of("small_embedding_pretraining", folder / "first")
    base = str(folder / "first" / "final")
    run_of("small_embedding_posttraining", folder / "second", "--base", base, "--learning_rate", "0")
    return folder


def test_the_second_stage_starts_from_the_first_ones_model(stages):
    first, second = (load_file(stages / name / "final" / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()  # with a learning rate of 0, nothing else changes them
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_its_optimizer_and_schedule_are_new(stages):
    assert [line["step"] for line in losses(stages / "second")] == [1, 2]
    states = [torch.load(stages / name / "checkpoint-2" / "optimizer.pt")["state"] for name in ("first", "second")]
    assert [int(next(iter(state.values()))["step"]) for state in states] == [2, 2]


def test_a_first_stage_that_has_not_finished_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(RecipeError, match=r"base: found no folder .*nowhere/final; expected a checkpoint or a hub id"):
        parse_recipe(
            [str(RECIPES / "small_embedding_posttraining.yaml"), "--base", str(tmp_path / "nowhere" / "final")]
        )


def test_both_sizes_of_the_family_are_the_same_recipe_in_what_the_paper_publishes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = ("embedding_pretraining", "embedding_posttraining")
    resolved = {}
    for name in (*stages, *(f"small_{stage}" for stage in stages)):
        if "post" in name:
            base = tmp_path / "runs" / name.replace("post", "pre") / "final"
            base.mkdir(parents=True)
            (base / "config.json").write_text("{}")
        resolved[name] = parse_recipe([str(RECIPES / f"{name}.yaml")]).resolved
    for stage in stages:
        full, small = resolved[stage], resolved[f"small_{stage}"]
        for key in ("query_mix", "product_mix", "derived_queries", "hard_negatives"):
            assert full[key] == small[key], key
        assert len(full["matryoshka_dims"]) == len(small["matryoshka_dims"]) == 2
    assert resolved["embedding_posttraining"]["base"] == "runs/embedding_pretraining/final"
    assert resolved["embedding_posttraining"]["queue_steps"] == "auto"
    assert resolved["embedding_pretraining"]["spatial_negatives"] is True
