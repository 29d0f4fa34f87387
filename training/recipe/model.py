"""Recipe keys of the model: its starting point, and which parameters are trained."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from modeling_moon.configuration_moon import PRESETS, MoonConfig
from training.model.small_base import SmallBaseConfig
from training.recipe.checking import CONFIG, Count, NotNegative, mapping_of

_SET_BY_UPCYCLING = ("_token_id", "_ids", "_end_id", "_config", "_configs")
MOON_KEYS = (
    "markers",
    "title_markers",
    *(name for name in MoonConfig.__annotations__ if not name.endswith(_SET_BY_UPCYCLING)),
)


_NAMES = list[str] | None
LORA = {
    "r": Count,
    "alpha": NotNegative,
    "dropout": Annotated[float, Field(ge=0, lt=1)],
    "target_modules": _NAMES | str,
}
LORA |= {"target_parameters": _NAMES, "modules_to_save": _NAMES}
_SIZES = [size.name for size in dataclasses.fields(SmallBaseConfig)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ModelArguments:
    """Model: its starting point, and which of its parameters are trained.

    Args:
        architecture: "moon", or "dual_tower", the baseline without a joint transformer.
        base: a folder or hub id of a Moon checkpoint, or of a Qwen3-VL or Qwen2.5-VL checkpoint, which is upcycled
            before training. Set either `base` or `small_base`.
        small_base: sizes of a small base with random weights, such as {hidden_size: 64}; see
            `training.model.small_base.SmallBaseConfig`. Its tokenizer is trained on the texts of the training split.
        preset: the preset of `MoonConfig` with which a base is upcycled: "moon1", "moon2" or "moon3".
        moon: arguments of `MoonConfig` that replace those of the preset, such as {embedding_dim: 128}.
        lora: train only adapters, with the arguments r, alpha, dropout, target_modules, target_parameters and
            modules_to_save of peft. For the 3-D expert weights, set target_parameters to ["mlp.experts.gate_up_proj",
            "mlp.experts.down_proj"]. null: train the parameters themselves.
        freeze: shell patterns of the names of parameters that are not trained, such as ["*visual*"].
        learning_rates: learning rates by shell pattern of parameter names, such as {"*visual*": 1e-6}. The first
            matching pattern counts; other parameters use `learning_rate`.
        quantization: "4bit" or "8bit": quantize the linear layers of the text model, whose adapters are trained
            (QLoRA). Requires `lora`, a CUDA GPU and bitsandbytes. "none": do not quantize.
        attn_implementation: the attention implementation of transformers, such as "sdpa", "eager" or "flash_attention_2"
            (with bf16 or fp16); see `retrieval.attention`. "auto": "flash_attention_2" on a GPU if it is installed,
            otherwise "sdpa".
    """

    architecture: Literal["moon", "dual_tower"] = "moon"
    base: str | None = None
    small_base: mapping_of(dict.fromkeys(_SIZES, Any)) | None = None  # type: ignore[valid-type]
    preset: Literal[tuple(PRESETS)] = "moon1"  # type: ignore[valid-type]
    moon: mapping_of(dict.fromkeys(MOON_KEYS, Any)) | None = None  # type: ignore[valid-type]
    lora: mapping_of(LORA) | None = None  # type: ignore[valid-type]
    freeze: list[str] = Field(default_factory=list)
    learning_rates: dict[str, NotNegative] | None = None
    quantization: Literal["none", "8bit", "4bit"] = "none"
    attn_implementation: str = "auto"
