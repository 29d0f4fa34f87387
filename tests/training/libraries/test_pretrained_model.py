"""transformers' PreTrainedModel has what we read and call."""

import pytest
import torch
from library_names import Relied, difference
from private_names import uses_of
from torch import nn
from transformers import PreTrainedModel

from training.libraries.pretrained_model import initialize, no_split_layers

pytestmark = pytest.mark.lowest

FILE = "training/libraries/pretrained_model.py"
RELIED = [
    Relied("transformers.PreTrainedModel", "_init_weights", FILE, "(self, module)", called=True),
    Relied("transformers.PreTrainedModel", "_no_split_modules", FILE),
]


@pytest.mark.parametrize("relied", RELIED, ids=str)
def test_the_installed_version_has_what_we_rely_on(relied):
    if sentence := difference(relied):
        pytest.fail(sentence, pytrace=False)


def test_every_private_name_of_the_file_is_compared():
    assert set(uses_of(FILE)) == {relied.name for relied in RELIED}


def test_a_changed_signature_is_named_with_our_file(monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "_init_weights", lambda self, module, generator: None)
    assert difference(RELIED[0]) == (
        "transformers.PreTrainedModel._init_weights(self, module): found (self, module, generator); "
        "training/libraries/pretrained_model.py depends on it"
    )


class Model(nn.Module):
    """A model with layers for one device and a rule for fresh weights."""

    _no_split_modules = {"Layer"}

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.ones_(module.weight)


def test_layers_and_fresh_weights_are_the_models_own():
    assert no_split_layers(Model()) == ["Layer"]
    assert no_split_layers(nn.Linear(1, 1)) == []
    part = nn.Sequential(nn.Linear(2, 2))
    initialize(part, Model())
    assert torch.equal(part[0].weight, torch.ones(2, 2))
