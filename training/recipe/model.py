"""The recipe's keys of the model: where it starts from, and how much of it learns."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from transformers.utils import is_flash_attn_2_available

from modeling_moon.configuration_moon import PRESETS, MoonConfig
from training.model.small_base import SmallBaseConfig
from training.recipe.checking import CONFIG, Count, NotNegative, mapping_of

_OF_THE_BASE = ("_token_id", "_ids", "_end_id", "_config", "_configs")
MOON_KEYS = (
    "markers",
    "title_markers",
    *(name for name in MoonConfig.__annotations__ if not name.endswith(_OF_THE_BASE)),
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
    """Which model is trained, and how much of it.

    Args:
        architecture: "moon", or "dual_tower", the baseline without a joint transformer.
        base: a Moon checkpoint, or a Qwen3-VL / Qwen2.5-VL checkpoint that is upcycled first: a folder or a hub id.
        small_base: sizes of a small base with random weights instead, the arguments of
            `training.model.small_base.make_base`; its tokenizer is trained on the texts of the training split.
        preset: the MoonConfig preset for upcycling.
        moon: MoonConfig arguments that replace those of the preset.
        lora: train adapters only: {r, alpha, dropout, target_modules, target_parameters, modules_to_save}, peft's
            words. The 3-D expert weights are target_parameters ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"].
        freeze: shell patterns of parameter names that stay as they are ("*visual*").
        learning_rates: shell patterns of parameter names with a learning rate of their own, {"*visual*": 1e-6}; the first
            pattern that fits a name counts, and the others learn by `learning_rate`.
        quantization: "4bit" or "8bit" keeps the linear layers of the text model so under the adapters of `lora` (QLoRA); see
            `training.model.quantization`. Needs a CUDA GPU and bitsandbytes.
        attn_implementation: "auto" is "flash_attention_2" on a GPU where that is installed, otherwise "sdpa".
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


def attention_of(name: str, on_gpu: bool) -> str:
    """Return the attention implementation that "auto" stands for; other names are returned as they are."""
    if name != "auto":
        return name
    return "flash_attention_2" if on_gpu and is_flash_attn_2_available() else "sdpa"
