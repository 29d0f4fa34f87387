"""Three forms with reasoning, from the recipe: dual alignment, mixes of forms and an earlier model in both stages."""

import pyarrow.parquet
import pytest
from tiny_runs import assert_same_run, forget_after, losses, write_recipe

from modeling_moon import MoonModel
from processing_moon import MoonProcessor
from training.runs.folder import RunFolder
from training.train import main

BOTH = {
    "preset": "moon3",
    "catalogue": {"products": 40, "image_size": 64, "progress": False},
    "query_mix": {"i": 1, "t": 1, "mm": 2},
    "product_mix": {"i": 1, "t": 1, "mm": 3},
    "dual_alignment": True,
    "symmetric_intra": True,
    "sample_filter": True,
    "max_steps": 3,
    "save_steps": 2,
    "use_cpu": True,
    "report_to": "none",
}
TERMS = {"loss_inter_t", "loss_inter_i", "loss_inter_mm", "loss_intra"}


@pytest.fixture(scope="module")
def base(tiny_moon):
    return tiny_moon("qwen3_vl", preset="moon3", max_reasoning_tokens=12)


def recipe_of(tmp_path, base, **values):
    earlier = {"compatible_with": str(base)}
    return write_recipe(tmp_path / "recipe.yaml", base=str(base), **{**BOTH, **earlier, "preset": None, **values})


def test_a_cold_start_with_every_form_trains_and_resumes_exactly(base, tmp_path):
    recipe = recipe_of(tmp_path, base, stage="cold_start", encode_chunk_size=2)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for output in (whole, resumed):
        assert main([str(recipe), "--output_dir", str(output)]) == 0
    logged = set().union(*losses(whole))
    assert TERMS | {"loss_ce", "loss_compatible", "reasoned_share", "filtered_share"} <= logged
    forget_after(resumed, 2)
    assert main([str(recipe), "--output_dir", str(resumed)]) == 0
    assert_same_run(whole, resumed)


def test_grpo_with_every_form_trains_rewards_each_form_and_logs_what_rewards_agree_with(base, tmp_path):
    recipe = recipe_of(
        tmp_path,
        base,
        stage="grpo",
        rollouts=2,
        rollout_chunk_size=4,
        per_device_train_batch_size=4,
        target_tokens=[4, 8],
        completions_steps=1,
        max_steps=4,
        queue_steps=1,
    )
    output = tmp_path / "run"
    assert main([str(recipe), "--output_dir", str(output)]) == 0
    lines = losses(output)
    logged = set().union(*lines)
    assert {f"infonce{name.removeprefix('loss')}" for name in (*TERMS, "loss_compatible")} <= logged
    correlations = {name for name in logged if name.startswith("reward_correlation/")}
    assert {"reward_correlation/retrieval", "reward_correlation/margin"} <= correlations
    assert all(-1.0001 <= line[name] <= 1.0001 for line in lines for name in correlations & line.keys())
    table = pyarrow.parquet.read_table(RunFolder(output).completions_of(1)).to_pylist()
    assert len(table) == 4 * 2 * 2
    assert MoonModel.from_pretrained(output / "final").config.fusion


def test_a_moon2_that_reasons_weighs_the_forms_by_its_experts(tiny_moon, tmp_path):
    base = tiny_moon(
        "qwen3_vl", preset="moon3", expert_routing="modality", max_reasoning_tokens=12, fusion_source="raw"
    )
    recipe = recipe_of(
        tmp_path, base, stage="cold_start", compatible_with=None, router_loss_weight=0.1, sparsity_weight=0.1
    )
    assert main([str(recipe), "--output_dir", str(tmp_path / "run")]) == 0
    logged = set().union(*losses(tmp_path / "run"))
    assert {"omega_t", "omega_i", "omega_mm", "loss_aux", "loss_sparsity", "loss_ce"} <= logged
    model = MoonModel.from_pretrained(tmp_path / "run" / "final").eval()
    processor = MoonProcessor.from_pretrained(tmp_path / "run" / "final")
    found = model.embed([{"title": "a red mug"}], reasoning="generate", processor=processor)
    assert found.embeddings.shape == (1, 32)


def test_a_target_beyond_the_limit_of_the_model_is_refused(base, tmp_path, capsys):
    recipe = recipe_of(tmp_path, base, stage="grpo", rollouts=2, target_tokens=[4, 13])
    assert main([str(recipe), "--output_dir", str(tmp_path / "run")]) == 2
    assert (
        "target_tokens: found [4, 13]; expected at most 12, the model's max_reasoning_tokens" in capsys.readouterr().err
    )
