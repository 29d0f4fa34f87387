"""Moon's architecture. Importing this package registers it with the Auto classes of transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from .configuration_moon import MoonConfig
from .modeling_moon import MoonForConditionalGeneration, MoonModel, MoonOutput

AutoConfig.register(MoonConfig.model_type, MoonConfig, exist_ok=True)
AutoModel.register(MoonConfig, MoonModel, exist_ok=True)
AutoModelForImageTextToText.register(MoonConfig, MoonForConditionalGeneration, exist_ok=True)
MoonConfig.register_for_auto_class()
MoonModel.register_for_auto_class("AutoModel")
MoonForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["MoonConfig", "MoonForConditionalGeneration", "MoonModel", "MoonOutput"]
