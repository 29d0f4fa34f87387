"""A plain Qwen trained by our recipe: before the first step it is the peer `vlm_mean`, then it trains, saves and evaluates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from records import PRODUCTS
from tiny_runs import write_recipe
from torch.nn.functional import normalize

from evaluation.weights import weights_of
from modeling_moon import MoonModel
from moon3.__main__ import main
from processing_moon import MoonProcessor
from retrieval.encode import load_for_evaluation
from training.recipe.arguments import parse_recipe
from training.train import main as train

RECIPE = Path(__file__).resolve().parents[2] / "training" / "recipes" / "peers_plain_qwen3_vl.yaml"
QUERIES = [{"text": "red shoes"}, {"image": PRODUCTS[1]["images"]}]
KEPT = ("moon", "core_crop", "instructions")


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def run(request, tiny_base, tmp_path_factory):
    """A training of two steps from a tiny plain base, with the settings of the recipe of the table of peers."""
    folder = tmp_path_factory.mktemp("plain")
    own = {key: value for key, value in yaml.safe_load(RECIPE.read_text()).items() if key in KEPT}
    sizes = {"max_image_tokens": None, "max_tokens": 512, "max_steps": 2}
    base = tiny_base(request.param)
    recipe = write_recipe(folder / "recipe.yaml", base=str(base), **own, **sizes)
    assert train([str(recipe), "--output_dir", str(folder / "run")]) == 0
    return base, folder / "run"


def vectors(model, processor):
    with torch.inference_mode():
        products, queries = processor(products=PRODUCTS), processor(queries=QUERIES)
        found = [model.eval()(**batch).embeddings for batch in (products, queries)]
    return normalize(torch.cat(found).float(), dim=-1)


def test_before_the_first_step_its_vectors_are_those_of_the_peer(run):
    base, folder = run
    own = MoonModel.from_pretrained(folder / "base"), MoonProcessor.from_pretrained(folder / "final")
    peer, processor = load_for_evaluation(f"vlm_mean={base}", device="cpu")
    ours, theirs = own[1](products=PRODUCTS), processor(products=PRODUCTS)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    expected = vectors(peer, processor)
    torch.testing.assert_close(vectors(*own), expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_it_has_no_part_that_the_base_does_not_have(run):
    base, folder = run
    model = MoonModel.from_pretrained(folder / "final")
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"vlm"}
    assert not [name for name, _ in model.named_parameters() if "expert" in name or "router" in name]
    assert (model.projection, model.fusion) == (None, None)


def test_every_layer_learns_and_the_model_is_evaluated(run, tmp_path):
    _, folder = run
    before, after = (dict(MoonModel.from_pretrained(folder / name).named_parameters()) for name in ("base", "final"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert not [name for name in same if "language_model.layers" in name]
    assert weights_of(str(folder / "final")) == "trained from random, 2 steps on catalogue"
    output = tmp_path / "results.json"
    command = ["evaluate", "--model", str(folder / "final"), "--benchmark", "catalogue", "--catalogue-products", "40"]
    assert main([*command, "--only", "retrieval", "--device", "cpu", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["scores"]["t2mm"]["queries"] > 0


def test_the_recipe_differs_from_that_of_moon_only_in_what_makes_a_model_plain():
    plain, moon = (
        parse_recipe([str(path), "--output_dir", "x"]) for path in (RECIPE, RECIPE.with_name("peers_moon1.yaml"))
    )
    assert plain.model.moon == {"expert_routing": "none", "markers": False, "embedding_dim": None}
    apart = {key for key, value in plain.resolved.items() if value != moon.resolved[key]}
    assert apart == {"moon", "core_crop", "instructions"}
    assert set(plain.data.instructions.values()) == {"You are a helpful assistant."}
    assert (plain.data.core_crop, moon.data.core_crop) == (False, True)
