"""What the papers publish, against what the recipes resolve to, key by key: the parents and every ablation."""

from pathlib import Path

import pytest

from modeling_moon.configuration_moon import PRESETS, MoonConfig
from training.recipe.arguments import parse_recipe
from training.recipe.loss import queue_length

RECIPES = Path(__file__).resolve().parents[3] / "training" / "recipes"
ABLATIONS = sorted((RECIPES / "ablations").glob("*.yaml"))

# MOON, arXiv 2508.11999 §3.2 and §5.1.
MOON1 = {
    "stage": "contrastive",
    "preset": "moon1",
    "query_mix": {"i": 12, "t": 3, "mm": 2},
    "product_mix": {"mm": 1},
    "derived_queries": False,  # pairs are searches and purchases
    "hard_negatives": 1,
    "spatial_negatives": True,
    "queue_steps": "auto",
    "core_crop": True,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_steps": 143140,
}
# MOON2.0, arXiv 2511.12449. It replaces the mix by all three forms of each query, so that each has a picture and a text.
MOON2 = {
    "stage": "contrastive",
    "preset": "moon2",
    "query_mix": {"mm": 1},
    "product_mix": {"mm": 1},
    "derived_queries": False,
    "hard_negatives": 1,
    "spatial_negatives": True,
    "queue_steps": 0,
    "core_crop": False,
    "dual_alignment": True,
    "intra_weight": 1.0,
    "sample_filter": True,
    "co_augmentation": {"variants": "auto", "title_share": 0.5, "picture_share": 0.5},  # the shares are ours
    "filter_threshold": 0.6,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "cosine",
}
# MOON3.0, arXiv 2604.00513; rates and weights of the stages as LREM's, arXiv 2510.14321.
COLD_START = {
    "preset": "moon3",
    "moon": {"embedding_dim": 256, "max_reasoning_tokens": 32},
    "query_mix": {"i": 1, "t": 1, "mm": 1},
    "product_mix": {"i": 1, "t": 1, "mm": 1},
    "derived_queries": False,
    "hard_negatives": 1,
    "core_crop": False,
    "lr_scheduler_type": "cosine",
}
MOON3 = COLD_START | {"stage": "grpo", "rollouts": 8, "grpo_weight": 1.0, "contrastive_weight": 0.1}
MOON3 |= {"learning_rate": 1e-6}
LREM_REWARDS = {"format": 0.5, "length": 0.2, "retrieval": 1.0}
PUBLISHED = {"moon1": MOON1, "moon2": MOON2, "moon3": MOON3}

# What each ablation leaves out, and nothing else.
LEFT_OUT = {
    "moon1_no_crop": {"core_crop": False},
    "moon1_no_extra_negatives": {"spatial_negatives": False, "queue_steps": 0},
    "moon1_no_guided_experts": {"moon": {"embedding_dim": 256, "expert_routing": "none"}},
    "moon1_no_hard_negatives": {"hard_negatives": 0},
    "moon2_no_coaugmentation": {"co_augmentation": None},
    "moon2_no_dual_alignment": {"dual_alignment": False},
    "moon2_no_filter": {"sample_filter": False},
    "moon2_no_intra_alignment": {"intra_weight": 0.0},
    "moon2_no_modality_experts": {
        "moon": {"embedding_dim": 256, "expert_routing": "none"},
        "router_loss_weight": 0.0,
        "sparsity_weight": 0.0,
    },
    "moon3_no_cold_start": {"cold_start": None},
    "moon3_no_fire": {"moon": {"embedding_dim": 256, "max_reasoning_tokens": 32, "fire_layers": None}},
    "moon3_no_fusion": {"moon": {"embedding_dim": 256, "max_reasoning_tokens": 32, "fusion": False}},
    "moon3_no_rl": {"grpo_weight": 0},
    "moon3_raw_fusion": {"moon": {"embedding_dim": 256, "max_reasoning_tokens": 32, "fusion_source": "raw"}},
}
LEFT_OUT |= {
    f"moon3_no_{reward}_reward": {"rewards": reward}
    for reward in ("attributes", "contradiction", "format", "length", "margin", "retrieval")
}


def resolved(path):
    return parse_recipe([str(path), "--output_dir", "x"]).resolved


def left_out_of(name, parent):
    changes = dict(LEFT_OUT[name])
    if isinstance(changes.get("rewards"), str):
        changes["rewards"] = parent["rewards"] | {changes["rewards"]: 0}
    return changes


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(RECIPES.parents[1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_papers_recipe_resolves_to_what_the_paper_publishes(name):
    found = resolved(RECIPES / f"{name}.yaml")
    library = {"gradient_accumulation_steps": 1}  # a resolved recipe leaves out the library's own defaults
    assert {key: found.get(key, library.get(key)) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_the_cold_start_resolves_to_what_the_papers_publish():
    alone = resolved(RECIPES / "moon3_cold_start.yaml")
    assert {key: alone[key] for key in COLD_START} == COLD_START
    assert (alone["stage"], alone["ce_weight"], alone["contrastive_weight"]) == ("cold_start", 0.1, None)
    assert parse_recipe([str(RECIPES / "moon3_cold_start.yaml")]).reasoning.infonce_weight == 1.0
    joint = resolved(RECIPES / "moon3.yaml")
    assert alone["learning_rate"] == joint["cold_start"]["learning_rate"] == 1e-5
    assert {name: joint["rewards"][name] for name in LREM_REWARDS} == LREM_REWARDS


def test_there_is_an_ablation_for_each_part_and_no_other():
    assert {path.stem for path in ABLATIONS} == LEFT_OUT.keys()


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_is_the_published_recipe_without_what_it_leaves_out(path):
    name = path.stem.split("_")[0]
    parent = resolved(RECIPES / f"{name}.yaml")
    changes = left_out_of(path.stem, parent)
    assert all(parent[key] != value for key, value in changes.items())
    ablated = resolved(path)
    assert ablated == parent | changes
    kept = {key: value for key, value in PUBLISHED[name].items() if key not in changes}
    assert {key: ablated.get(key, kept[key]) for key in kept} == kept


@pytest.mark.parametrize("path", sorted(RECIPES.glob("moon*_one_gpu.yaml")), ids=lambda path: path.stem)
def test_the_recipe_for_one_gpu_keeps_the_papers_data_and_objective(path):
    found, parent = resolved(path), PUBLISHED[path.stem.removesuffix("_one_gpu")]
    kept = ("preset", "query_mix", "product_mix", "derived_queries", "hard_negatives", "core_crop", "dual_alignment")
    kept += ("co_augmentation",)
    assert {key: found[key] for key in kept if key in parent} == {key: parent[key] for key in kept if key in parent}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("moon1", {"expert_routing": "guided", "readout": "mean", "num_experts": 4, "num_experts_per_token": 2}),
        ("moon2", {"expert_routing": "modality", "readout": "mean"}),
        ("moon3", {"expert_routing": "guided", "readout": "emb", "fusion": True, "embedding_dim": 256}),
    ],
)
def test_a_preset_has_the_papers_parts(name, parts):
    tokens = dict.fromkeys((key for key in MoonConfig.__annotations__ if key.endswith("_token_id")), 0)
    config = PRESETS[name](**tokens)
    assert {key: getattr(config, key) for key in parts} == parts
    assert config.moe_layers is None  # all layers
    assert bool(config.fire_layers) == (name == "moon3")


@pytest.mark.parametrize(("processes", "steps"), [(64, 2), (32, 5), (8, 24), (2, 99), (1, 199), (200, 0), (1000, 0)])
def test_the_queue_keeps_the_number_of_candidates_near_two_hundred_times_those_of_one_process(processes, steps):
    assert queue_length("auto", processes) == steps
    multiple = processes * (steps + 1)
    others = [processes * (other + 1) for other in range(300)]
    assert abs(multiple - 200) == min(abs(other - 200) for other in others)


def test_an_explicit_number_of_steps_stays_for_any_number_of_processes():
    assert [queue_length(steps, 64) for steps in (0, 7, 99)] == [0, 7, 99]
    with pytest.raises(ValueError, match="queue_steps: found 'many'; expected auto, or an integer"):
        queue_length("many", 1)


def test_an_epoch_has_as_many_steps_as_the_paper():
    assert -(-4_580_475 // 32) == 143_140  # pairs over the global batch, which 32 processes with one pair each make
    assert resolved(RECIPES / "moon1.yaml")["per_device_train_batch_size"] == 1
    assert resolved(RECIPES / "moon2.yaml")["max_steps"] == -(-5_751_594 // (64 * 4))
