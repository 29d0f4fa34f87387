"""accelerate has the variables and the state that we read and set."""

import pytest
from accelerate import Accelerator
from library_names import Relied, difference
from private_names import uses_of

from training.libraries.accelerate_library import (
    DEEPSPEED_CONFIG_FILE,
    USE_DEEPSPEED,
    USE_FSDP,
    USE_PARALLELISM_CONFIG,
    sharding_backend,
)
from training.parallel import launching

pytestmark = pytest.mark.lowest

FILE = "training/libraries/accelerate_library.py"
LAUNCHING = "training/parallel/launching.py"
VARIABLES = (USE_FSDP, USE_DEEPSPEED, USE_PARALLELISM_CONFIG, DEEPSPEED_CONFIG_FILE, "ACCELERATE_DEEPSPEED_ZERO_STAGE")
SETTINGS = tuple(launching._FSDP_SETTINGS)


def read_by_the_plugin(variable):
    """Return how accelerate's text names a variable of FSDP's plugin."""
    return variable if variable == "FSDP_STATE_DICT_TYPE" else f'env_prefix + "{variable.removeprefix("FSDP_")}"'


RELIED = [
    *(Relied("accelerate.utils.launch", name, FILE, mentioned=True) for name in VARIABLES),
    *(Relied("accelerate.utils.dataclasses", read_by_the_plugin(name), LAUNCHING, mentioned=True) for name in SETTINGS),
    Relied("accelerate.state.PartialState", "distributed_type", FILE),
    Relied("accelerate.state.AcceleratorState", "distributed_type", FILE),
    Relied("accelerate.state.AcceleratorState", "fsdp_plugin", FILE),
    Relied("accelerate.utils.FullyShardedDataParallelPlugin", "fsdp_version", "training/parallel/sharding.py"),
    Relied(
        "accelerate.utils.FullyShardedDataParallelPlugin",
        "transformer_cls_names_to_wrap",
        "training/parallel/sharding.py",
    ),
    Relied(
        "accelerate.utils.FullyShardedDataParallelPlugin", "mixed_precision_policy", "training/parallel/sharding.py"
    ),
    Relied("accelerate.Accelerator", "scaler", FILE),
    Relied(
        "accelerate.Accelerator",
        "unwrap_model",
        "training/contrastive/trainer.py",
        "(self, model, keep_fp32_wrapper=True, keep_torch_compile=True)",
    ),
    Relied(
        "accelerate.Accelerator",
        "prepare_model",
        "training/reasoning/grpo_trainer.py",
        "(self, model, device_placement=None, evaluation_mode=False)",
    ),
]


@pytest.mark.parametrize("relied", RELIED, ids=str)
def test_the_installed_version_has_what_we_rely_on(relied):
    if sentence := difference(relied):
        pytest.fail(sentence, pytrace=False)


def test_the_file_uses_no_private_name():
    assert uses_of(FILE) == {}


def test_a_changed_signature_is_named_with_the_file_that_depends_on_it(monkeypatch):
    monkeypatch.setattr(Accelerator, "prepare_model", lambda self, model: None)
    assert difference(RELIED[-1]) == (
        "accelerate.Accelerator.prepare_model(self, model, device_placement=None, evaluation_mode=False): "
        "found (self, model); training/reasoning/grpo_trainer.py depends on it"
    )


@pytest.mark.parametrize(
    ("values", "way"),
    [({}, None), ({USE_FSDP: "true"}, "fsdp"), ({USE_DEEPSPEED: "1"}, "deepspeed"), ({USE_FSDP: "false"}, None)],
)
def test_the_launch_is_read_from_the_environment(monkeypatch, values, way):
    for name in (USE_FSDP, USE_DEEPSPEED):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert sharding_backend() == way
