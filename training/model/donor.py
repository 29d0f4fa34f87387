"""Open a language model whose weights become the text model of a base, and refuse one that cannot be exact."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file

from model_cards.facts import README_FILE, Licence
from training.model.card_facts import stated_licence

MODEL_TYPES = ("qwen2", "llama", "mistral")
"""Model types that compute what the text model of Qwen2.5-VL computes, if they have no biases that it lacks."""
_ROPE_TYPES = ("default", "llama3")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_GGUF = ".gguf"
_GGUF_PACKAGES = ("gguf", "accelerate")


class DonorError(ValueError):
    """A language model that cannot become the text model of a base; says which property, what was found and expected."""

    exit_status = 2


@dataclass(frozen=True)
class Donor:
    """A language model whose weights become the text model of a base.

    Args:
        name: its hub id, or the name of its folder or file.
        hub_id: its hub id; None for a folder or file.
        config: its configuration.
        tokenizer: its tokenizer.
        licence: the licence that its README.md states; empty if none.
        source: arguments of `from_pretrained`.
    """

    name: str
    hub_id: str | None
    config: Any
    tokenizer: Any
    licence: Licence
    source: dict[str, Any] = field(repr=False)

    def load(self, dtype: str | None = None) -> Any:
        """Return the model, in evaluation mode.

        Args:
            dtype: name of a data type. None: that of the file, or float32 for a GGUF file, whose weights are dequantized.

        Raises:
            DonorError: the weights are missing or cannot be read.
        """
        dtype = dtype or ("float32" if "gguf_file" in self.source else "auto")
        try:
            return AutoModelForCausalLM.from_pretrained(**self.source, dtype=dtype).eval()
        except (OSError, ValueError) as error:
            raise DonorError(f"--text {self.name}: the weights cannot be read ({error})") from error


def open_donor(text: str | Path, *, layers: int | None = None) -> Donor:
    """Open the configuration and the tokenizer of a language model.

    Args:
        text: a folder or hub id of a checkpoint in safetensors, or a GGUF file, which may be on the Hub
            ("owner/name/file.gguf").
        layers: the number of layers that are used, from the bottom. None: all.

    Raises:
        DonorError: nothing can be opened there, the packages of GGUF files are missing, or the model has a property that
            Qwen2.5-VL's text model does not have (`refused_properties`).
    """
    source = source_of(text)
    try:
        config = AutoConfig.from_pretrained(**source)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (OSError, ValueError, KeyError) as error:
        raise DonorError(
            f"--text {text}: found no language model ({_first_line(error)}); expected a folder or hub id of a checkpoint in "
            "safetensors, or a GGUF file"
        ) from error
    refused = list(refused_properties(config, layers))
    if refused:
        raise DonorError(f"--text {text}: {'; '.join(refused)}; an exact base is not possible")
    if not tokenizer.is_fast:
        raise DonorError(
            f"--text {text}: found a tokenizer without tokenizer.json; expected one of the tokenizers library"
        )
    on_hub = not Path(text).exists()
    name = str(text) if on_hub else Path(text).resolve().name
    return Donor(name, name if on_hub else None, config, tokenizer, _licence(source, on_hub), source)


def refused_properties(config: Any, layers: int | None = None) -> Iterator[str]:
    """Yield a sentence for each property of a language model that Qwen2.5-VL's text model does not have.

    Args:
        config: the configuration of the language model.
        layers: the number of layers that are used, from the bottom. None: all.
    """
    experts = [name for name in _EXPERTS if getattr(config, name, None)]
    if experts:
        yield f"{experts[0]}: found {getattr(config, experts[0])} (a mixture of experts); expected a dense model"
        return
    if config.model_type not in MODEL_TYPES:
        yield f"model_type: found {config.model_type!r}; expected one of {', '.join(MODEL_TYPES)}"
        return
    expected = {"attention_bias": (False, None), "mlp_bias": (False, None), "hidden_act": ("silu",)}
    for name, values in expected.items():
        if getattr(config, name, values[0]) not in values:
            yield f"{name}: found {getattr(config, name)!r}; expected {values[0]!r}"
    yield from _refused_sizes(config, layers)
    yield from _refused_rotation(config)


def _refused_sizes(config: Any, layers: int | None) -> Iterator[str]:
    if layers is not None and not 1 <= layers <= config.num_hidden_layers:
        yield f"--layers: found {layers}; expected 1 to {config.num_hidden_layers}"
    heads, size = config.num_attention_heads, head_size(config)
    if heads * size != config.hidden_size:
        yield f"head_dim: found {size} × {heads} heads; expected a product of hidden_size={config.hidden_size}"
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if window and (types is None or "sliding_attention" in types[:layers]):
        yield f"sliding_window: found {window}; expected full attention in every layer"
    method = (getattr(config, "quantization_config", None) or {"quant_method": "gguf"}).get("quant_method")
    if method != "gguf":
        yield f"quantization_config: found {method!r}; expected weights that are not quantized, or a GGUF file"


def _refused_rotation(config: Any) -> Iterator[str]:
    rotation = config.rope_parameters
    if rotation["rope_type"] not in _ROPE_TYPES:
        yield f"rope_type: found {rotation['rope_type']!r}; expected one of {', '.join(_ROPE_TYPES)}"
    if rotation.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"partial_rotary_factor: found {rotation['partial_rotary_factor']}; expected 1.0"


def head_size(config: Any) -> int:
    """Return the width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def source_of(text: str | Path, option: str = "--text") -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a folder, a hub id, or a GGUF file.

    Args:
        text: the folder, hub id or GGUF file, which may be on the Hub ("owner/name/file.gguf").
        option: the name of the option in messages.

    Raises:
        DonorError: another file, a GGUF file that does not exist, or missing packages for GGUF files.
    """
    path = Path(text)
    if path.suffix.lower() != _GGUF:
        if path.is_file():
            raise DonorError(f"{option}: found the file {path}; expected a folder, a hub id, or a file *{_GGUF}")
        return {"pretrained_model_name_or_path": str(text)}
    missing = [name for name in _GGUF_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DonorError(
            f"{option} {text}: a GGUF file needs {' and '.join(_GGUF_PACKAGES)}; missing: {', '.join(missing)} "
            "(pip install moon3[gguf])"
        )
    if path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    owner_and_name, file = path.parts[:2], path.parts[2:]
    if path.is_absolute() or not file:
        raise DonorError(f"{option}: found no file {path}; expected a GGUF file, or owner/name/file{_GGUF} on the Hub")
    return {"pretrained_model_name_or_path": "/".join(owner_and_name), "gguf_file": "/".join(file)}


def _licence(source: dict[str, Any], on_hub: bool) -> Licence:
    """Return the licence that the README.md beside the weights states."""
    place = source["pretrained_model_name_or_path"]
    if not on_hub:
        return stated_licence(Path(place))
    page = cached_file(
        place, README_FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return stated_licence(Path(page).parent) if page else Licence()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
