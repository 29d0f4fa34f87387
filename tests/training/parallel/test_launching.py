"""The launch files that ship, and what is refused with them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import FSDPModule

from modeling_moon import MoonModel
from training.parallel import launching
from training.parallel.launching import check_launch, sharding_backend, zero_stage
from training.parallel.sharding import use_fsdp
from training.recipe.arguments import RecipeError, parse_recipe

pytestmark = pytest.mark.lowest

LAUNCH = Path(__file__).resolve().parents[3] / "training" / "launch"
FILES = sorted(LAUNCH.glob("*.yaml"))


@pytest.fixture(autouse=True)
def nothing_launched(monkeypatch):
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(FSDPModule, "set_reduce_scatter_unused_params", None, raising=False)  # an older torch lacks it


def settings(name, processes="2"):
    """What `accelerate launch --config_file` puts into the environment."""
    arguments = [
        "--config_file",
        str(LAUNCH / name),
        "--num_processes",
        processes,
        "--main_process_port",
        "0",
        "train.py",
    ]
    given, file, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if not given.use_deepspeed:
        return prepare_multi_gpu_env(given)
    given.deepspeed_fields_from_accelerate_config = ",".join(
        [*file.deepspeed_config, "mixed_precision"]
    )  # as launch does
    return prepare_deepspeed_cmd_env(given)[1]


def launch(monkeypatch, name):
    for key, value in settings(name).items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)


def recipe(**changes):
    """As `training.recipe.arguments.Recipe`, as far as the launch decides."""
    model = {"architecture": "moon", "quantization": "none"}
    pairs = {"query_mix": {"i": 1, "t": 1}, "product_mix": {"mm": 1}}
    loss = {"queue_momentum": None, "encode_chunk_size": None, "dual_alignment": False, "sparsity_weight": 0.0}
    loss |= {"compatible_with": None, "teachers": []}
    training = {"train_minutes": None, "world_size": 2}
    groups = {"model": model, "pairs": pairs, "loss": loss, "reasoning": {"stage": "contrastive"}, "training": training}
    for key, value in changes.items():
        next(group for group in groups.values() if key in group)[key] = value
    return SimpleNamespace(**{name: SimpleNamespace(**group) for name, group in groups.items()})


def test_there_is_a_file_for_each_way():
    assert [path.stem for path in FILES] == ["ddp", "deepspeed_zero2", "deepspeed_zero3", "fsdp2"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_a_launch_file(path):
    config = ClusterConfig.from_yaml_file(path)  # refuses unknown keys of the first level
    known = {option.dest for option in launch_command_parser()._actions}
    parts = {**(config.fsdp_config or {}), **(config.deepspeed_config or {})}
    assert parts.keys() <= known
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}
    assert config.distributed_type == DistributedType(kinds.get(path.stem, "DEEPSPEED"))


def test_the_fsdp_file_gives_a_plugin_of_the_second_version(monkeypatch):
    launch(monkeypatch, "fsdp2.yaml")
    assert sharding_backend() == "fsdp"
    check_launch(recipe())
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy is not None


def test_a_torch_whose_fsdp_passes_over_unused_weights_is_refused(monkeypatch):
    launch(monkeypatch, "fsdp2.yaml")
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params")
    with pytest.raises(ValueError, match="FSDP: found torch .*; expected torch 2.13"):
        check_launch(recipe())


@pytest.mark.parametrize("stage", [2, 3])
def test_the_deepspeed_files_give_the_settings_that_accelerate_hands_to_deepspeed(monkeypatch, stage):
    launch(monkeypatch, f"deepspeed_zero{stage}.yaml")
    assert (sharding_backend(), zero_stage()) == ("deepspeed", stage)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    found = plugin.deepspeed_config
    assert found["zero_optimization"]["stage"] == stage
    assert found["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] == (stage == 3)
    assert found["zero_optimization"]["offload_optimizer"]["device"] == "none"
    assert found["gradient_clipping"] == found["gradient_accumulation_steps"] == "auto"
    assert found["bf16"] == {"enabled": True}
    assert not plugin.zero3_init_flag
    config = pytest.importorskip("deepspeed.runtime.config", reason="DeepSpeed is not installed").DeepSpeedConfig
    sizes = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    given = {key: value for key, value in found.items() if key != "train_batch_size"} | sizes | {"steps_per_print": 10}
    assert config(given).zero_optimization_stage == stage


def test_without_a_launch_file_nothing_is_refused():
    check_launch(recipe(queue_momentum=0.9, train_minutes=1.0, world_size=1))
    assert zero_stage() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "dual_tower"},
            "architecture: fsdp does not support dual_tower; expected moon, or .*ddp.yaml",
        ),
        ({"quantization": "4bit"}, "quantization: fsdp does not support 4bit"),
        ({"stage": "joint"}, "stage: fsdp does not support joint; expected contrastive"),
        ({"train_minutes": 3.0}, "train_minutes: fsdp does not support 3.0; expected max_steps, or .*ddp.yaml"),
        ({"queue_momentum": 0.99}, "queue_momentum: fsdp does not support 0.99; expected null"),
        ({"world_size": 1}, "processes: fsdp does not support 1; expected 2 or more"),
        ({"teachers": [{}]}, "teachers: fsdp does not support 1; expected none, or .*ddp.yaml"),
    ],
)
def test_what_a_model_in_parts_does_not_do_is_refused_by_its_key(monkeypatch, change, message):
    launch(monkeypatch, "fsdp2.yaml")
    with pytest.raises(ValueError, match=message):
        check_launch(recipe(**change))


@pytest.mark.parametrize(
    ("variable", "found", "accepted"),
    [
        ("FSDP_VERSION", "1", "2"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "TRANSFORMER_BASED_WRAP"),
        ("FSDP_STATE_DICT_TYPE", "LOCAL_STATE_DICT", "FULL_STATE_DICT or SHARDED_STATE_DICT"),
        ("FSDP_OFFLOAD_PARAMS", "true", "false"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "false"),
    ],
)
def test_settings_of_fsdp_that_do_not_work_here_are_refused(monkeypatch, variable, found, accepted):
    launch(monkeypatch, "fsdp2.yaml")
    monkeypatch.setenv(variable, found)
    with pytest.raises(ValueError, match=f"{variable.lower()}: found {found}; expected {accepted}, as in"):
        check_launch(recipe())


def test_deepspeed_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch(monkeypatch, "deepspeed_zero2.yaml")
    with pytest.raises(ValueError, match="DeepSpeed: found no GPU; expected GPUs .we have not tested it"):
        check_launch(recipe())


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (2, {"encode_chunk_size": 8}, "encode_chunk_size: 8 does not work with DeepSpeed"),
        (2, {"queue_momentum": 0.9}, "queue_momentum: deepspeed does not support 0.9"),
        (3, {}, r"query_mix: i cannot be used with ZeRO-3, .*expected t \(text\) alone, or training/launch/fsdp2.yaml"),
        (3, {"query_mix": {"t": 1, "i": 0}}, "product_mix: mm cannot be used with ZeRO-3"),
        (3, {"dual_alignment": True}, "query_mix"),
        (
            3,
            {"query_mix": {"t": 1}, "product_mix": {"t": 1}, "sparsity_weight": 0.1},
            "sparsity_weight: 0.1 does not work with ZeRO-3",
        ),
        (
            3,
            {"query_mix": {"t": 1}, "product_mix": {"t": 1}, "compatible_with": "earlier"},
            "compatible_with: earlier does not work with ZeRO-3",
        ),
    ],
)
def test_what_deepspeed_would_not_do_is_refused_on_gpus_too(monkeypatch, stage, change, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launching, "is_deepspeed_available", lambda: True)
    launch(monkeypatch, f"deepspeed_zero{stage}.yaml")
    with pytest.raises(ValueError, match=message):
        check_launch(recipe(**change))


def test_deepspeed_is_accepted_on_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    launch(monkeypatch, "deepspeed_zero2.yaml")
    monkeypatch.setattr(launching, "is_deepspeed_available", lambda: False)
    with pytest.raises(ValueError, match="the package deepspeed is not installed; run pip install deepspeed"):
        check_launch(recipe())
    monkeypatch.setattr(launching, "is_deepspeed_available", lambda: True)
    check_launch(recipe())
    launch(monkeypatch, "deepspeed_zero3.yaml")
    check_launch(recipe(query_mix={"t": 1}, product_mix={"t": 1}))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "zero.json")
    with pytest.raises(
        ValueError, match="deepspeed_config_file: found zero.json; expected the keys of training/launch"
    ):
        check_launch(recipe())


def test_a_recipe_reports_a_refusal_of_the_launch(monkeypatch, tmp_path):
    launch(monkeypatch, "fsdp2.yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"small_base": {}, "train_minutes": 1.0}))
    with pytest.raises(RecipeError, match="train_minutes: fsdp does not support 1.0"):
        parse_recipe([str(path)])
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(
        RecipeError, match="ACCELERATE_USE_PARALLELISM_CONFIG is not supported; launch with a file in training/launch"
    ):
        parse_recipe([str(path)])


@pytest.mark.parametrize(
    ("version", "precision", "message"),
    [
        (1, "no", "fsdp_version: found 1; expected 2"),
        (2, "fp8", "mixed_precision: fp8 does not work with FSDP; expected one of no, bf16, fp16"),
    ],
)
def test_a_plugin_of_another_kind_is_refused_by_the_trainer(tiny_moon, version, precision, message):
    plugin = SimpleNamespace(fsdp_version=version)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin, mixed_precision=precision))
    with pytest.raises(ValueError, match=message):
        use_fsdp(accelerator, MoonModel.from_pretrained(tiny_moon("qwen3_vl")))


def test_sums_of_gradients_are_float32_and_frozen_embeddings_hand_gradients_through(tiny_moon):
    model = MoonModel.from_pretrained(tiny_moon("qwen3_vl"))
    model.get_input_embeddings().weight.requires_grad_(False)
    plugin = SimpleNamespace(fsdp_version=2)
    use_fsdp(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin, mixed_precision="bf16")), model)
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)
    assert plugin.transformer_cls_names_to_wrap == ["MoonQwen3VLDecoderLayer"]
    assert model.get_input_embeddings()(torch.tensor([1])).requires_grad
