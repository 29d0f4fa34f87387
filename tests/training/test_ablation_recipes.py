from pathlib import Path

import pytest

from training.arguments import parse_recipe

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"
ABLATIONS = sorted((RECIPES / "ablations").glob("*.yaml"))


def test_there_are_ablations_of_the_three_papers():
    assert {path.name.split("_")[0] for path in ABLATIONS} == {"moon1", "moon2", "moon3"}


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_is_the_full_recipe_with_one_key_changed(path, monkeypatch):
    monkeypatch.chdir(RECIPES.parents[1])
    full = parse_recipe([str(RECIPES / f"{path.name.split('_')[0]}.yaml"), "--output_dir", "x"]).resolved
    ablated = parse_recipe([str(path), "--output_dir", "x"]).resolved
    changed = {key for key in full.keys() | ablated.keys() if full.get(key) != ablated.get(key)}
    changed -= {"router_loss_weight", "sparsity_weight"}  # of experts, which go with them
    assert len(changed) == 1


def test_without_experts_nothing_weighs_or_balances_them(monkeypatch):
    monkeypatch.chdir(RECIPES.parents[1])
    loss = parse_recipe([str(RECIPES / "ablations" / "moon2_no_modality_experts.yaml")]).loss
    assert (loss.router_loss_weight, loss.sparsity_weight, loss.dual_alignment) == (0, 0, True)
