"""Recipes of the stages that reason: what each reads, what it refuses, and how a joint recipe names its cold start."""

from pathlib import Path

import pytest
import yaml

from training.recipe.arguments import RecipeError, parse_recipe
from training.recipe.reasoning import DEFAULT_REWARDS, ReasoningArguments, cold_start_values
from training.recipe.same_recipe import differing_keys
from training.rewards import reward_names
from training.runs.run import Run
from training.train import train

JOINT = {"small_base": {}, "preset": "moon3", "stage": "grpo", "max_steps": 10, "per_device_train_batch_size": 4}
COLD = {"small_base": {}, "preset": "moon3", "stage": "cold_start", "max_steps": 10}


@pytest.fixture
def recipe(tmp_path):
    def read(values, *arguments):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return parse_recipe([str(path), "--output_dir", str(tmp_path / "run"), *arguments])

    return read


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"small_base": {}, "max_steps": 1, "rollouts": 4},
            "rollouts: found 4 with stage: contrastive, which does not read",
        ),
        ({**COLD, "rewards": {"format": 1.0}}, "rewards: found .* with stage: cold_start, which does not read"),
        ({**JOINT, "ce_weight": 0.5}, "ce_weight: found 0.5 with stage: grpo"),
        (
            {**JOINT, "queue_momentum": 0.9},
            "queue_momentum: found 0.9; expected only without stage: grpo: ranks compare",
        ),
        (
            {**JOINT, "sparsity_weight": 0.1},
            "sparsity_weight: found 0.1; expected only without stage: grpo: the prefer",
        ),
        (
            {**JOINT, "positives_per_query": 2},
            "positives_per_query: found 2; .*: a rollout is ranked by a single positive",
        ),
        ({**JOINT, "target_tokens": [9]}, r"target_tokens: found \[9\]; expected null, or two numbers in order"),
        ({**JOINT, "target_tokens": [9, 8]}, r"target_tokens: found \[9, 8\]; expected null, or two numbers"),
        ({**JOINT, "encode_chunk_size": 4}, "encode_chunk_size: found 4"),
        ({**COLD, "bucket_batches": 2}, "bucket_batches: found 2; expected only with streaming, or without stage"),
        (
            {**JOINT, "streaming": True, "data": ["owner/shop"]},
            "streaming: True does not work with stage: grpo, .* reads pairs by index, .* A cold start can be streamed",
        ),
        ({**COLD, "architecture": "dual_tower"}, "architecture: found 'dual_tower'; expected moon"),
        ({**JOINT, "rewards": {"beauty": 1}}, "rewards: found 'beauty'; expected one of attributes, contradiction"),
        ({**JOINT, "rewards": {"format": 0}}, "at least one weight that is not 0"),
        ({**JOINT, "rollouts": 1}, "rollouts: found 1; expected a number of at least 2"),
        ({**JOINT, "rollout_chunk_size": 7}, "rollout_chunk_size: found 7; expected a divisor of 64"),
        (
            {**JOINT, "gradient_accumulation_steps": 2},
            "gradient_accumulation_steps: 2 does not work .* rollout_chunk_size",
        ),
        (
            {**JOINT, "rollout_top_p": 0},
            "rollout_top_p: found 0; expected the key to be left out: .* top_p of trl.GRPOConfig",
        ),
        ({**JOINT, "rollout_temperature": 0}, "rollout_temperature: found 0; expected a number above 0"),
        ({**JOINT, "unreasoned_share": 1.5}, "unreasoned_share: found 1.5; expected .* at most 1"),
        (
            {**JOINT, "evaluate_reasoning": ["always"]},
            r"evaluate_reasoning\[0\]: found 'always'; expected none or generate",
        ),
        ({**JOINT, "grpo_weight": 0, "contrastive_weight": 0}, "found 0 for both"),
        (
            {**JOINT, "cold_start": {"max_stepz": 3}},
            "cold_start: unknown key 'max_stepz'; the nearest known key is 'max_steps'",
        ),
        ({**JOINT, "cold_start": {"stage": "contrastive"}}, "cold_start: found 'stage', which the recipe itself sets"),
        ({**JOINT, "positives_per_query": 2}, "positives_per_query: found 2; expected only without stage: grpo"),
        ({**JOINT, "learning_rates": {"*visual*": 1.0e-6}}, "learning_rates: .* does not work with stage: grpo"),
        ({**JOINT, "lora": {"dropout": 0.1}}, "lora.dropout: 0.1 does not work with stage: grpo"),
        ({**JOINT, "vllm": True}, "vllm: found true without a CUDA GPU"),
    ],
)
def test_what_a_stage_does_not_read_and_what_cannot_work_is_refused_by_key(recipe, values, reason, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RecipeError, match=reason):
        recipe(values)


def test_each_stage_has_its_own_weight_of_the_contrastive_loss(recipe):
    assert recipe(COLD).reasoning.infonce_weight == 1.0
    assert recipe(JOINT).reasoning.infonce_weight == 0.1
    assert recipe({**JOINT, "contrastive_weight": 0.7}).reasoning.infonce_weight == 0.7


def test_the_default_rewards_are_all_that_there_are():
    assert sorted(DEFAULT_REWARDS) == reward_names()
    assert ReasoningArguments().rewards == DEFAULT_REWARDS


def test_a_reward_is_switched_off_by_one_key_on_the_command_line(recipe):
    weights = recipe(JOINT, "--rewards.margin", "0").reasoning.rewards
    assert weights == {**DEFAULT_REWARDS, "margin": 0.0}


def test_a_cold_start_takes_over_the_joint_recipe_but_for_its_own_keys(recipe, tmp_path):
    values = {**JOINT, "moon": {"embedding_dim": 64}, "hard_negatives": 2, "contrastive_weight": 0.3, "rollouts": 4}
    values["cold_start"] = {"max_steps": 7, "learning_rate": 0.5, "ce_weight": 0.2}
    found = cold_start_values(recipe(values).resolved, str(tmp_path / "cold"))
    path = tmp_path / "cold.yaml"
    path.write_text(yaml.safe_dump(found))
    cold = parse_recipe([str(path)])
    assert (cold.reasoning.stage, cold.reasoning.ce_weight, cold.reasoning.infonce_weight) == ("cold_start", 0.2, 1.0)
    assert (cold.training.max_steps, cold.training.learning_rate) == (7, 0.5)
    assert (cold.pairs.hard_negatives, cold.model.moon) == (2, {"embedding_dim": 64})
    assert Path(cold.training.output_dir) == tmp_path / "cold"


def test_a_cold_start_changes_single_keys_of_mappings(recipe, tmp_path):
    values = {**JOINT, "lora": {"r": 4, "modules_to_save": ["router"]}}
    values["cold_start"] = {"max_steps": 7, "lora": {"dropout": 0.1}, "learning_rates": {"*router*": 0.5}}
    found = cold_start_values(recipe(values).resolved, str(tmp_path / "cold"))
    assert found["lora"] == {"r": 4, "modules_to_save": ["router"], "dropout": 0.1}
    assert found["learning_rates"] == {"*router*": 0.5}


@pytest.mark.parametrize(
    ("cold_start", "reason"),
    [
        ({"learning_rate": 0.5}, "cold_start: max_steps and train_minutes: neither is set"),
        ({"max_steps": "many"}, "cold_start: max_steps: found 'many'"),
        ({"max_steps": 5, "rollouts": 3}, "cold_start: rollouts: found 3 with stage: cold_start"),
    ],
)
def test_a_cold_start_that_cannot_run_is_refused_before_anything_is_written(recipe, tmp_path, cold_start, reason):
    with pytest.raises(RecipeError, match=reason):
        train(Run(recipe({**JOINT, "cold_start": cold_start})))
    assert not (tmp_path / "run").exists()


def test_a_joint_stage_begins_again_from_a_cold_start_that_is_there(recipe, tmp_path):
    values = {**JOINT, "moon": {"embedding_dim": 64}, "cold_start": {"max_steps": 7}}
    values = {key: value for key, value in values.items() if key != "small_base"} | {"base": "owner/name"}
    (tmp_path / "final").mkdir()
    found = recipe(values, "--base", str(tmp_path / "final"), "--cold_start", "null", "--moon", "null")
    assert (found.reasoning.cold_start, found.model.moon, found.model.base) == (None, None, str(tmp_path / "final"))


def test_what_is_only_watched_may_change_when_a_run_goes_on(recipe):
    old, new = recipe(JOINT), recipe({**JOINT, "completions_steps": 5, "evaluate_reasoning": ["none"], "rollouts": 4})
    assert differing_keys(old.resolved, new.resolved) == ["rollouts"]
