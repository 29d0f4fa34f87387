"""Moon's architecture. Importing this package registers it with the Auto classes and with sentence-transformers.

The Auto classes then take the code from this package, whether a checkpoint contains code or not; nothing is copied into the
cache of remote code. `register_for_auto_class` makes `save_pretrained` write the code into the checkpoint.
"""

import sys
from collections.abc import Mapping
from typing import Any

from sentence_transformers.base.model import BaseModel
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from . import sentence_transformer_moon
from .configuration_moon import MoonConfig
from .modeling_moon import MoonCausalLMOutput, MoonForConditionalGeneration, MoonModel, MoonOutput

SENTENCE_TRANSFORMER_MODULE = "sentence_transformer_moon.MoonTransformer"

AutoConfig.register(MoonConfig.model_type, MoonConfig, exist_ok=True)
AutoModel.register(MoonConfig, MoonModel, exist_ok=True)
AutoModelForImageTextToText.register(MoonConfig, MoonForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(MoonConfig, MoonForConditionalGeneration, exist_ok=True)
MoonConfig.register_for_auto_class()
MoonModel.register_for_auto_class("AutoModel")
MoonForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")


class _KnownModules:
    """The classes that sentence-transformers uses without importing them from a checkpoint.

    Our class is always among them. The library's trainer sets further ones on the instance that loads its checkpoints, under
    names that the checkpoint does not have.
    """

    def __init__(self, known: Mapping[str, type]) -> None:
        self.known = known

    def __get__(self, model: Any, owner: type) -> dict[str, type]:
        return {**self.known, **({} if model is None else vars(model).get("_module_classes", {}))}

    def __set__(self, model: Any, classes: Mapping[str, type]) -> None:
        vars(model)["_module_classes"] = classes


def _register_with_sentence_transformers() -> None:
    """Let `SentenceTransformer(folder)` load our module class from this package, without `trust_remote_code=True`.

    Whoever imports the package trusts its code. When the library saves a module, it writes the file of its class only if the
    class's module name begins with "transformers_modules.", as that of a checkpoint's code does. The class gets such a name, an
    alias of its file in this package; a checkpoint that the library saves therefore still contains the file.
    """
    alias = f"transformers_modules.{sentence_transformer_moon.__name__}"
    sys.modules[alias] = sentence_transformer_moon
    module_class = sentence_transformer_moon.MoonTransformer
    module_class.__module__ = alias
    known: Any = _KnownModules({**BaseModel._module_classes, SENTENCE_TRANSFORMER_MODULE: module_class})
    BaseModel._module_classes = known


_register_with_sentence_transformers()

__all__ = [
    "SENTENCE_TRANSFORMER_MODULE",
    "MoonCausalLMOutput",
    "MoonConfig",
    "MoonForConditionalGeneration",
    "MoonModel",
    "MoonOutput",
]
