"""Moon's architecture. Importing this package registers it with the Auto classes and with sentence-transformers."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentence_transformers.base.model import BaseModel
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

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
    """The classes that sentence-transformers takes without importing them: ours always, and those that its trainer hands
    over to load a checkpoint of the model that it trains, whose names are not the ones in the checkpoint."""

    def __init__(self, known: Mapping[str, type]) -> None:
        self.known = known

    def __get__(self, model: Any, owner: type) -> dict[str, type]:
        return {**self.known, **({} if model is None else vars(model).get("_module_classes", {}))}

    def __set__(self, model: Any, handed_over: Mapping[str, type]) -> None:
        vars(model)["_module_classes"] = handed_over


def _register_with_sentence_transformers() -> None:
    """Let `SentenceTransformer(DIR)` take its module class from this package, without `trust_remote_code=True`.

    Whoever imported the package has trusted this very code. The class is loaded the way the library loads a repository's
    code, so that saving the model again writes the file and its name as a repository needs them. Where the cache folder of
    such code cannot be written, nothing is registered and the flag stays necessary.
    """
    try:
        module = get_class_from_dynamic_module(SENTENCE_TRANSFORMER_MODULE, str(Path(__file__).parent))
    except OSError as error:
        warnings.warn(f"SentenceTransformer(DIR) will need trust_remote_code=True here: {error}", stacklevel=2)
        return
    known: Any = _KnownModules({**BaseModel._module_classes, SENTENCE_TRANSFORMER_MODULE: module})
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
