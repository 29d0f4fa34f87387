"""Recipes' loss keys: what they become, what is refused, and a training with all of them through the script."""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import assert_same_run, forget_after, losses, write_recipe

from modeling_moon import MoonModel
from product_data.atomic_files import read_lines
from training.assembly.objective import check_objective, earlier_of, filter_of, loss_of
from training.assembly.starting_model import make_trainable
from training.losses.info_nce import InfoNCELoss
from training.losses.matryoshka import MatryoshkaLoss
from training.losses.sample_filter import SampleFilter
from training.recipe.arguments import RecipeError, parse_recipe
from training.recipe.loss import LossArguments
from training.recipe.model import ModelArguments
from training.train import main


@pytest.fixture
def recipe(tmp_path):
    def write(**values):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"small_base": {"hidden_size": 64}, "max_steps": 10, **values}))
        return [str(path)]

    return write


def test_the_defaults_are_the_plain_objective_of_moon(recipe):
    parsed = parse_recipe(recipe())
    loss = loss_of(parsed.loss)
    assert type(loss.contrastive) is InfoNCELoss
    assert (loss.contrastive.temperature, loss.contrastive.block_size) == (0.05, None)
    assert (loss.weights, loss.router_weight, loss.sparsity_weight) == (None, 0.0, 0.0)
    assert filter_of(parsed.loss) is None


def test_every_key_reaches_what_it_names(recipe):
    values = {
        "temperature": 0.1,
        "queue_steps": 4,
        "queue_warmup_steps": 0.2,
        "queue_momentum": 0.99,
        "negative_margin": 0.1,
        "several_positives": True,
        "loss_block_size": 64,
        "matryoshka_dims": [8, 16],
        "sample_filter": True,
        "filter_threshold": 0.7,
        "dual_alignment": True,
        "alignment_weights": {"t": 1, "i": 0.5, "mm": 2},
        "intra_weight": 0.7,
        "symmetric_intra": True,
        "router_loss_weight": 0.01,
        "sparsity_weight": 0.02,
        "compatible_with": "an/earlier",
        "compatible_weight": 0.3,
        "encode_chunk_size": 16,
    }
    parsed = parse_recipe(recipe(**values, learning_rates={"*visual*": "5e-1"}))
    assert {name: getattr(parsed.loss, name) for name in values} == values
    loss = loss_of(parsed.loss)
    assert parsed.model.learning_rates == {"*visual*": 0.5}
    assert type(loss.contrastive) is MatryoshkaLoss
    assert loss.contrastive.weights == {16: 1.0, 8: 1.0}
    assert (loss.contrastive.temperature, loss.contrastive.contrastive.block_size) == (0.1, 64)
    assert loss.weights == {"t": 1.0, "i": 0.5, "mm": 2.0}
    assert (loss.intra_weight, loss.symmetric, loss.router_weight, loss.sparsity_weight) == (0.7, True, 0.01, 0.02)
    assert loss.compatible_weight == 0.3
    assert filter_of(parsed.loss) == SampleFilter(0.7)
    assert parsed.loss.aligns_images


def test_without_weight_images_do_not_look_for_texts(recipe):
    assert not parse_recipe(recipe(dual_alignment=True, intra_weight=0)).loss.aligns_images


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"queue_steps": -1}, "queue_steps: found -1"),
        ({"queue_warmup_steps": -0.5}, "queue_warmup_steps: found -0.5"),
        ({"queue_momentum": 1.0}, "queue_momentum: found 1.0; expected a number below 1"),
        ({"queue_momentum": 0.9, "queue_steps": 0}, "have no effect with queue_steps 0"),
        ({"negative_margin": -0.1}, "negative_margin: found -0.1"),
        ({"loss_block_size": 0}, "loss_block_size: found 0"),
        ({"encode_chunk_size": 0}, "encode_chunk_size: found 0"),
        ({"matryoshka_dims": [8, 8]}, r"matryoshka_dims: found \[8, 8\]"),
        ({"matryoshka_dims": ["x"]}, r"matryoshka_dims\[0\]: found 'x' \(text\); expected an integer"),
        ({"matryoshka_dims": [0]}, r"matryoshka_dims\[0\]: found 0; expected a number of at least 1"),
        (
            {"matryoshka_dims": [8], "matryoshka_weights": [1, 2]},
            "matryoshka_weights: found .* expected the key to be left out: .*Matryoshka",
        ),
        (
            {"matryoshka_dims": [8], "matryoshka_weights": [0]},
            r"matryoshka_weights: found \[0\]; expected the key to be left out",
        ),
        ({"filter_threshold": 0.0}, "filter_threshold: found 0.0; expected a number above 0"),
        (
            {"filter_margin_end": 0.5},
            "filter_margin_end: found 0.5; expected the key to be left out: .* end of .*SampleFilter",
        ),
        ({"filter_schedule": "steps"}, "filter_schedule: found 'steps'; expected the key to be left out"),
        ({"alignment_weights": {"t": 1}}, "alignment_weights: found .* only with dual_alignment"),
        ({"symmetric_intra": True}, "symmetric_intra: found True; expected only with dual_alignment"),
        ({"dual_alignment": True, "alignment_weights": {"text": 1}}, "alignment_weights: unknown key 'text'"),
        ({"dual_alignment": True, "alignment_weights": {"t": -1}}, "alignment_weights.t: found -1"),
        ({"intra_weight": -1}, "intra_weight: found -1"),
        ({"router_loss_weight": -1}, "router_loss_weight: found -1"),
        ({"sparsity_weight": -1}, "sparsity_weight: found -1"),
        (
            {"compatible_with": "./nowhere"},
            "compatible_with: found no folder .*nowhere; expected a checkpoint or a hub",
        ),
        ({"compatible_with": ".", "compatible_weight": 0}, "compatible_weight: found 0; expected a number above 0"),
        ({"compatible_weight": 0.5}, "compatible_weight: found 0.5; expected only with compatible_with"),
        (
            {"encode_chunk_size": 4, "torch_empty_cache_steps": 2},
            "torch_empty_cache_steps: does not work with encode_chunk_size",
        ),
        ({"encode_chunk_size": 4, "optim": "lomo"}, "optim: lomo does not work with encode_chunk_size"),
        ({"learning_rates": {"visual": -1}}, "learning_rates.visual: found -1"),
        ({"learning_rates": {"visual": "fast"}}, "learning_rates.visual: found 'fast'"),
    ],
)
def test_what_cannot_work_is_refused_by_key(recipe, values, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe(**values))


@pytest.mark.parametrize(
    ("moon", "lora", "values", "message"),
    [
        ({}, None, {"matryoshka_dims": [64]}, "matryoshka_dims: found 64; expected at most 32"),
        ({}, None, {"sparsity_weight": 0.1}, "sparsity_weight: found expert_routing 'guided'"),
        ({"preset": "moon2"}, {"r": 2}, {"sparsity_weight": 0.1}, "found preferences that are frozen"),
        ({"expert_routing": "none"}, None, {"router_loss_weight": 0.1}, "found a model without experts"),
        ({"preset": "moon2", "objectives": ["a"]}, None, {"dual_alignment": True}, r"found objectives \['a'\]"),
    ],
)
def test_a_loss_that_the_model_cannot_serve_is_refused(tiny_moon, moon, lora, values, message):
    model = MoonModel.from_pretrained(tiny_moon("qwen3_vl", **moon))
    learner = make_trainable(model, ModelArguments(base="x", lora=lora))
    with pytest.raises(RecipeError, match=message):
        check_objective(LossArguments(**values), ModelArguments(), learner)


def test_a_loss_that_the_model_serves_passes(tiny_moon):
    arguments = LossArguments(matryoshka_dims=[8, 32], dual_alignment=True, router_loss_weight=0.1, sparsity_weight=0.1)
    model = MoonModel.from_pretrained(tiny_moon("qwen3_vl", preset="moon2"))
    check_objective(arguments, ModelArguments(learning_rates={"*visual*": 0.1}), model)
    with pytest.raises(RecipeError, match="found no trainable parameter like 'lora"):
        check_objective(arguments, ModelArguments(learning_rates={"lora*": 0.1}), model)


def test_an_earlier_model_is_loaded_frozen(tiny_moon):
    folder = tiny_moon("qwen3_vl")
    learner = MoonModel.from_pretrained(folder)
    assert earlier_of(LossArguments(), learner, torch.device("cpu")) is None
    earlier = earlier_of(LossArguments(compatible_with=str(folder)), learner, torch.device("cpu"))
    assert not earlier.model.training
    assert not any(parameter.requires_grad for parameter in earlier.model.parameters())
    inputs = dict(earlier.processor(products=[{"title": "red hat"}, {"title": "a long blue coat"}], form="mm"))
    whole = earlier.encode(inputs)
    assert (whole.shape, whole.requires_grad) == ((2, 32), False)
    assert torch.allclose(earlier.encode(inputs, chunk_size=1), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("another width", "compatible_with: found vectors of width 16 in .*; expected 32, the width of the new model"),
        ("no checkpoint", "compatible_with: .*found no config.json; expected the folder of a saved checkpoint"),
    ],
)
def test_an_earlier_model_that_the_new_one_cannot_follow_is_refused(tiny_moon, tmp_path, place, message):
    learner = MoonModel.from_pretrained(tiny_moon("qwen3_vl"))
    folder = tiny_moon("qwen3_vl", embedding_dim=16) if place == "another width" else tmp_path
    with pytest.raises(RecipeError, match=message):
        earlier_of(LossArguments(compatible_with=str(folder)), learner, torch.device("cpu"))


def test_a_training_with_an_earlier_model_runs_and_resumes_exactly(tiny_moon, tmp_path):
    folder = str(tiny_moon("qwen3_vl"))
    recipe = write_recipe(
        tmp_path / "recipe.yaml", base=folder, compatible_with=folder, queue_steps=2, hard_negatives=1
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([str(recipe), "--output_dir", str(whole)]) == 0
    assert all(line["loss_compatible"] > 0 for line in losses(whole))
    shutil.copytree(whole, resumed)
    forget_after(resumed, 2)
    assert main([str(recipe), "--output_dir", str(resumed)]) == 0
    assert_same_run(whole, resumed)


@pytest.mark.slow
def test_a_training_of_moon2_with_every_part_runs_and_resumes_exactly(tiny_moon, tmp_path):
    values = {
        "base": str(tiny_moon("qwen3_vl", preset="moon2")),
        "catalogue": {"products": 40, "image_size": 64, "progress": False},
        "query_mix": {"i": 1, "t": 1, "mm": 1},
        "max_image_tokens": 4,
        "queue_steps": 2,
        "queue_momentum": 0.9,
        "negative_margin": 0.1,
        "several_positives": True,
        "loss_block_size": 8,
        "matryoshka_dims": [8],
        "sample_filter": True,
        "dual_alignment": True,
        "symmetric_intra": True,
        "router_loss_weight": 0.01,
        "sparsity_weight": 0.1,
        "encode_chunk_size": 3,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.001,
        "learning_rates": {"*visual*": 0.0, "*preference": 0.01},
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": 4,
        "disable_tqdm": True,
    }
    path = tmp_path / "moon2.yaml"
    path.write_text(yaml.safe_dump(values))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([str(path), "--output_dir", str(whole)]) == 0
    assert main([str(path), "--output_dir", str(resumed), "--max_steps", "4"]) == 0
    lines = [read_lines(run / "metrics.jsonl") for run in (whole, resumed)]
    wanted = {"loss_inter_t", "loss_inter_i", "loss_intra", "loss_aux", "loss_sparsity", "omega_t", "filtered_share"}
    assert wanted <= set().union(*lines[0])
    assert wanted | {"queue_drift", "masked_share"} <= set().union(*lines[0])
    (resumed / "finished.json").unlink()
    for leftover in (resumed / "checkpoint-4").iterdir():
        leftover.unlink()
    assert main([str(path), "--output_dir", str(resumed)]) == 0
    again = read_lines(resumed / "metrics.jsonl")
    assert [{**line, "items_per_second": 0} for line in again] == [{**line, "items_per_second": 0} for line in lines[0]]
    weights = [load_file(run / "final" / "model.safetensors") for run in (whole, resumed)]
    start = load_file(f"{values['base']}/model.safetensors")
    still = {name for name, weight in weights[0].items() if torch.equal(weight, start[name])}
    assert {name for name in weights[0] if "visual" in name} <= still
    assert not any("preference" in name for name in still)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
