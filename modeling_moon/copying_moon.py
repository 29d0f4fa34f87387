"""Pickle and deep-copy a model, and send it to another process, even after it has recorded outputs of its layers.

transformers records these outputs with hooks that are closures, which cannot be pickled. It knows what a class records only in
a process that has built a model of that class.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing


class MoonCopyingMixin(nn.Module):
    """Leave the recording hooks out of what `pickle` and `copy.deepcopy` copy; transformers installs them again when an output
    is requested."""

    def __getstate__(self) -> dict[str, Any]:
        return _state_without_recorders(self, super().__getstate__(), {id(self): self})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and "config" in vars(module):
                kind = type(module)
                PreTrainedModel.__init__(
                    kind.__new__(kind), module.config
                )  # lets this process know what the class records


def _state_without_recorders(module: nn.Module, state: dict[str, Any], copied: dict[int, nn.Module]) -> dict[str, Any]:
    """Return the state of a module with its sub-modules copied in the same way: parameters and buffers are shared, and the
    module itself is not changed."""
    state.pop("_output_capturing_hooks_installed", None)
    is_recorder = {number: _is_recorder(hook) for number, hook in module._forward_hooks.items()}
    if any(is_recorder.values()):
        for name in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
            kept = [(number, hook) for number, hook in state[name].items() if not is_recorder.get(number)]
            state[name] = OrderedDict(kept)
    state["_modules"] = {name: _without_recorders(child, copied) for name, child in module._modules.items()}
    return state


def _without_recorders(module: nn.Module | None, copied: dict[int, nn.Module]) -> nn.Module | None:
    if module is None or isinstance(module, MoonCopyingMixin):  # it leaves its own hooks out
        return module
    if id(module) not in copied:
        kind = type(module)
        twin = copied[id(module)] = kind.__new__(kind)
        twin.__dict__.update(_state_without_recorders(module, dict(vars(module)), copied))
    return copied[id(module)]


def _is_recorder(hook: Any) -> bool:
    return getattr(hook, "__module__", None) == output_capturing.__name__
