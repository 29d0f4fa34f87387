"""FSDP2 has the hooks, the methods and the class that we rely on."""

import inspect

import pytest
import torch
from library_names import Relied, difference
from private_names import uses_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from training.libraries.fsdp import prepare_sharded_model, whole_parameters, with_original_class

pytestmark = pytest.mark.lowest

FILE = "training/libraries/fsdp.py"
STATE = "torch.distributed.fsdp._fully_shard._fsdp_state"
RELIED = [
    Relied(
        "torch.distributed.fsdp.FSDPModule",
        "set_reduce_scatter_unused_params",
        FILE,
        "(self, reduce_scatter_unused_params, *, recurse=True)",
    ),
    Relied("torch.nn.Module", "_parameters", FILE),
    Relied("torch.nn.Module", "register_forward_pre_hook", FILE, "(self, hook, *, prepend=False, with_kwargs=False)"),
    Relied("torch.distributed.tensor.DTensor", "device_mesh", FILE),
    Relied("torch.distributed.tensor.DTensor", "placements", FILE),
    Relied("torch.distributed.tensor.DTensor", "full_tensor", FILE, "(self, *, grad_placements=None)"),
    Relied(STATE, "self._pre_forward, prepend=True, with_kwargs=True", FILE, mentioned=True),
]


@pytest.mark.parametrize("relied", RELIED, ids=str)
def test_the_installed_version_has_what_we_rely_on(relied):
    if sentence := difference(relied):
        pytest.fail(sentence, pytrace=False)


def test_every_private_name_of_the_file_is_compared():
    assert set(uses_of(FILE)) == {"_parameters"}


def test_a_changed_signature_is_named_with_our_file(monkeypatch):
    monkeypatch.setattr(FSDPModule, "set_reduce_scatter_unused_params", lambda self, reduce: None)
    assert difference(RELIED[0]) == (
        "torch.distributed.fsdp.FSDPModule.set_reduce_scatter_unused_params(self, reduce_scatter_unused_params, *, "
        "recurse=True): found (self, reduce); training/libraries/fsdp.py depends on it"
    )


class Layer(nn.Module):
    """Appends to the list that it is given."""

    def __init__(self):
        super().__init__()
        self.preference = nn.Parameter(torch.arange(4.0))

    def forward(self, values, seen=None):
        seen.append(len(values))
        return values * self.preference.sum()


class Model(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, values):
        seen: list[int] = []
        for layer in self.layers:
            values = layer(values, seen=seen)
        return values, seen


@pytest.fixture
def sharded(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'met'}", rank=0, world_size=1)
    try:
        model, mesh = Model(), init_device_mesh("cpu", (1,))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        yield model
    finally:
        torch.distributed.destroy_process_group()


def test_lists_reach_the_layers_of_a_sharded_model_as_they_are(sharded):
    prepare_sharded_model(sharded)
    values, seen = sharded(torch.ones(3, 4))
    assert seen == [3, 3]
    assert torch.equal(values, torch.full((3, 4), 36.0))


def test_weights_in_parts_are_shown_whole_and_their_gradient_comes_back(sharded):
    layer = sharded.layers[0]
    kept = layer.preference
    with whole_parameters(sharded, "preference"):
        assert torch.equal(layer.preference, torch.arange(4.0))
        (layer.preference**2).sum().backward()
    assert layer.preference is kept
    assert torch.equal(kept.grad.full_tensor(), 2 * torch.arange(4.0))


def test_a_sharded_model_is_of_its_own_class_for_a_while(sharded):
    assert type(sharded) is not Model
    with with_original_class(sharded):
        assert type(sharded) is Model
        assert inspect.getsourcefile(type(sharded)) == __file__
    assert isinstance(sharded, FSDPModule)
