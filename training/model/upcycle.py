"""Convert a Qwen3-VL or Qwen2.5-VL checkpoint into a Moon checkpoint that computes exactly what its base computes.

    moon3 upcycle --base Qwen/Qwen3-VL-2B-Instruct --out moon1-2b --preset moon1

Tensors are read, renamed and written one at a time, so memory stays near the size of an output shard, whatever the size
of the base.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils.logging import tqdm  # hidden with the bars of transformers

from modeling_moon import MoonConfig, MoonForConditionalGeneration
from modeling_moon.configuration_moon import BACKBONES, PRESETS
from modeling_moon.fire_moon import MoonDetailMerger, MoonFire
from modeling_moon.modeling_moon import MoonFusion
from processing_moon import MoonProcessor
from product_data.outputs import OutputError
from training.libraries.pretrained_model import initialize
from training.model.card_facts import write_upcycled_card
from training.model.checkpoint import write_code_and_settings

# Moon's tokens, by the field of MoonConfig that holds their id.
TOKEN_FIELDS = {
    "category_start_token_id": "<|category_start|>",
    "category_end_token_id": "<|category_end|>",
    "attribute_start_token_id": "<|attribute_start|>",
    "attribute_end_token_id": "<|attribute_end|>",
    "emb_token_id": "<emb>",
    "title_start_token_id": "<|title_start|>",
    "title_end_token_id": "<|title_end|>",
    "think_start_token_id": "<think>",
    "think_end_token_id": "</think>",
}
# Names of tensors in checkpoints of the two families on the Hub, oldest first, and Moon's names.
_RENAMES = (
    (r"^(?:model\.)?visual\.", "model.vlm.visual."),
    (r"^(?:model\.)?language_model\.(?:model\.)?", "model.vlm.language_model."),
    (r"^(?:model\.)?(?=(?:layers|embed_tokens|norm)\.)", "model.vlm.language_model."),
)
_FEED_FORWARD = re.compile(r"^(model\.vlm\.language_model\.layers\.(\d+)\.mlp\.)(gate_proj|up_proj|down_proj)\.weight$")
_READ = ["*.safetensors", "*.json", "*.jinja", "*.txt", "README.md"]  # README.md contains the licence
_EMBEDDING = "model.vlm.language_model.embed_tokens.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UpcycleError(ValueError):
    """A base that cannot be converted into a Moon checkpoint."""

    exit_status = 2


def upcycle(
    base: str | Path,
    out: str | Path,
    *,
    preset: str = "moon1",
    dtype: str | None = None,
    seed: int = 0,
    max_shard_gigabytes: float = 4.0,
    overwrite: bool = False,
    limits: dict[str, int] | None = None,
    **moon: Any,
) -> Path:
    """Convert a base checkpoint into a Moon checkpoint.

    Sparse upcycling (arXiv 2212.05055): every expert starts as a copy of the base's feed-forward layer, the router is
    random, and the projection is the identity on the first dimensions. Because routing weights are normalized, the
    hidden states, logits and (prefix) vectors of the new model are those of the base. Fusion and FIRE start at zero.
    New tokens use spare rows of the embedding matrix, or new rows. They start as the mean of the known tokens, and the
    other rows do not change.

    Args:
        base: the folder or hub id of a Qwen3-VL or Qwen2.5-VL checkpoint in safetensors, sharded or not. For
            Qwen3-VL-Embedding, pass `readout="last"`.
        out: the folder to write. It appears only when it is complete.
        preset: "moon1", "moon2" or "moon3".
        dtype: "float32", "bfloat16" or "float16". None: the dtype of each tensor.
        seed: the seed of the routers' weights.
        max_shard_gigabytes: the largest size of a weight file, which also determines the memory.
        overwrite: replace an existing `out`.
        limits: `max_tokens` and `max_image_tokens` of the processor. Default: those of `MoonProcessor.from_base`.
        **moon: arguments of `MoonConfig` that differ from the preset (`embedding_dim`, `readout`, `num_experts`, …),
            and `markers` and `title_markers` of the processor (default: with fusion, and in "moon3" always).

    Returns:
        The folder `out`.

    Raises:
        UpcycleError: the preset or dtype is unknown, `MoonConfig` or the processor rejects a value, the base has an
            unsupported architecture or is not in safetensors, or a tensor is missing, unexpected or of the wrong shape.
        OutputError: `out` exists and `overwrite` is False.
    """
    out = Path(out)
    if preset not in PRESETS:
        raise UpcycleError(f"preset: found {preset!r}; expected one of {', '.join(PRESETS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UpcycleError(f"dtype: found {dtype!r}; expected one of {', '.join(DTYPES)} or None")
    if out.is_file():
        raise OutputError(f"out: found the file {out}; expected a folder to write")
    if out.exists() and not overwrite and any(out.iterdir()):
        raise OutputError(f"out: found {out}, which is not empty; expected another folder, or --overwrite")
    folder = local_folder(base)
    vlm_config = _read_base_config(folder)
    own = {name: moon.pop(name) for name in ("markers", "title_markers") if name in moon} | (limits or {})
    moon.setdefault("embedding_dim", min(256, vlm_config.text_config.hidden_size))
    processor = _processor_of(folder, PRESETS[preset], vlm_config, moon, own)
    old_rows = vlm_config.text_config.vocab_size
    vlm_config.text_config.vocab_size = max(old_rows, len(processor.tokenizer))
    _set_dtype(vlm_config, DTYPES.get(dtype or "") or _stored_dtype(folder))
    ids = _token_ids(processor)
    config = PRESETS[preset](vlm_config, **ids, **_user_turn(processor), **moon)
    config.dtype = vlm_config.dtype
    config.architectures = [MoonForConditionalGeneration.__name__]
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        known = AutoTokenizer.from_pretrained(folder).get_vocab()
        fresh = sorted(id_ for field, id_ in ids.items() if TOKEN_FIELDS[field] not in known)
        tensors = _moon_tensors(folder, config, old_rows, fresh, seed)
        _write_shards(tensors, config, partial, DTYPES.get(dtype or ""), int(max_shard_gigabytes * 1e9))
        write_code_and_settings(config, processor, partial)
        if (folder / "generation_config.json").exists():
            GenerationConfig.from_pretrained(folder).save_pretrained(partial)
        write_upcycled_card(partial, out.name, base, folder, preset=preset, seed=seed)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return out


def _processor_of(
    folder: Path, preset: Any, vlm_config: Any, moon: dict[str, Any], own: dict[str, Any]
) -> MoonProcessor:
    """Return the processor for a preset and arguments of `MoonConfig`. `own` holds arguments of the processor."""
    try:
        planned = preset(vlm_config, **dict.fromkeys(TOKEN_FIELDS, 0), **moon)
        defaults = {
            "markers": planned.readout != "last",
            "title_markers": planned.fusion or preset is PRESETS["moon3"],
        }
        replaced = {name: value for name, value in own.items() if value is not None}
        return MoonProcessor.from_base(
            str(folder),
            readout=planned.readout,
            max_reasoning_tokens=planned.max_reasoning_tokens,
            **defaults | replaced,
        )
    except ValueError as error:
        raise UpcycleError(str(error)) from error


def _token_ids(processor: MoonProcessor) -> dict[str, int]:
    """Return the ids of the tokens that the processor uses, by the field of `MoonConfig`."""
    tokens = dict(TOKEN_FIELDS)
    for prefix, used in (("title", processor.title_markers), ("think", processor.max_reasoning_tokens is not None)):
        if not used:
            tokens = {field: token for field, token in tokens.items() if not field.startswith(prefix)}
    return {field: processor.tokenizer.convert_tokens_to_ids(token) for field, token in tokens.items()}


def _user_turn(processor: MoonProcessor) -> dict[str, Any]:
    """Return the tokens around the user's turn, by the field of `MoonConfig`."""
    prefix, end = processor.user_turn
    return {"user_prefix_ids": prefix, "turn_end_id": end}


def local_folder(base: str | Path) -> Path:
    """Return the folder of a base, which is downloaded if it is a hub id.

    Raises:
        UpcycleError: there is no folder, and nothing can be downloaded.
    """
    if Path(base).is_dir():
        return Path(base)
    if Path(base).exists():
        raise UpcycleError(f"base: found the file {base}; expected a checkpoint's folder or a hub id")
    try:
        return Path(snapshot_download(str(base), allow_patterns=_READ))
    except (OSError, ValueError) as error:
        raise UpcycleError(
            f"base: found {base!r}, which is not a folder and cannot be downloaded from the Hub ({error}); expected a "
            "checkpoint's folder or a hub id"
        ) from error


def _read_base_config(folder: Path) -> Any:
    if not (folder / "config.json").exists():
        raise UpcycleError(f"{folder}: found no config.json; expected a checkpoint of {' or '.join(BACKBONES)}")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type not in BACKBONES:
        raise UpcycleError(
            f"{folder}: cannot upcycle model type {model_type!r}; expected one of {', '.join(BACKBONES)} "
            "(dense Qwen3-VL, Qwen3-VL-Embedding and Qwen2.5-VL checkpoints)"
        )
    config = AutoConfig.from_pretrained(folder)
    if not config.tie_word_embeddings and not any(
        moon_name(name) == "lm_head.weight" for name in _stored_names(folder)
    ):
        print(
            f"{folder} does not have an output layer; the embedding matrix is used, so that the model can generate text"
        )
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    return config


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UpcycleError(f"{folder}: found no *.safetensors file; expected one, or several with an index")
    for file in files:
        if not file.exists():
            raise UpcycleError(f"{folder}: found no {file.name}; expected this file, because the index lists it")
    return files


def _stored_names(folder: Path) -> list[str]:
    names: list[str] = []
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as shard:
            names += shard.keys()
    return names


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of a checkpoint, which is that of its embedding matrix."""
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors file is no dict
                if moon_name(name) == _EMBEDDING:
                    return shard.get_tensor(name).dtype
    raise UpcycleError(f"{folder}: found no token embeddings; expected a complete checkpoint")


def _set_dtype(vlm_config: Any, dtype: torch.dtype) -> None:
    """Set the dtype of a configuration and its parts, so that a model created from it has a single dtype."""
    for config in (vlm_config, vlm_config.text_config, vlm_config.vision_config):
        config.dtype = dtype


def moon_name(name: str) -> str:
    """Return Moon's name of a base tensor. `lm_head.weight` keeps its name."""
    if name.endswith("lm_head.weight"):
        return "lm_head.weight"
    for pattern, replacement in _RENAMES:
        renamed, found = re.subn(pattern, replacement, name, count=1)
        if found:
            return renamed
    return name


def base_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a base with their names in Moon."""
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors file is no dict
                yield moon_name(name), shard.get_tensor(name)


def _moon_tensors(
    folder: Path, config: MoonConfig, old_rows: int, new_ids: list[int], seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the Moon checkpoint, in the order of the base's tensors."""
    generator = torch.Generator().manual_seed(seed)
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in base_tensors(folder):
        feed_forward = _FEED_FORWARD.match(name)
        if feed_forward and int(feed_forward[2]) in config.mixture_layers:
            parts = waiting.setdefault(feed_forward[1], {})
            parts[feed_forward[3]] = tensor
            if len(parts) == 3:
                yield from _expert_tensors(feed_forward[1], waiting.pop(feed_forward[1]), config, generator)
        elif name in (_EMBEDDING, "lm_head.weight"):
            if name == _EMBEDDING or not config.tie_word_embeddings:
                yield name, _with_new_rows(tensor, name, config.vocab_size, old_rows, new_ids)
        else:
            yield name, tensor
    if waiting:
        raise UpcycleError(
            f"{folder}: found incomplete feed-forward layers {', '.join(sorted(waiting))}; expected complete ones"
        )
    if config.embedding_dim is not None:
        yield "model.projection.weight", torch.eye(config.embedding_dim, config.hidden_size).to(config.dtype)
    yield from _new_parts(config, seed)


def _new_parts(config: MoonConfig, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the initial weights of fusion, FIRE and its mergers, which do not change the output of the base."""
    with torch.device("meta"):
        model = MoonForConditionalGeneration(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in model.named_modules():
            if isinstance(part, MoonFire | MoonFusion | MoonDetailMerger):
                levels = [part.num_levels] if isinstance(part, MoonFire) else []
                new_part = type(part)(config, *levels)
                initialize(new_part, model)
                yield from ((f"{name}.{key}", tensor.to(config.dtype)) for key, tensor in new_part.state_dict().items())


def _expert_tensors(
    prefix: str, parts: dict[str, torch.Tensor], config: MoonConfig, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    gate_up = torch.cat([parts["gate_proj"], parts["up_proj"]])
    router = torch.randn(config.num_experts, config.hidden_size, generator=generator) * config.initializer_range
    yield f"{prefix}router.weight", router.to(gate_up.dtype)
    if config.expert_routing == "modality":
        yield f"{prefix}preference", torch.zeros(config.num_experts, len(config.objectives), dtype=gate_up.dtype)
    yield f"{prefix}experts.gate_up_proj", gate_up.expand(config.num_experts, -1, -1).contiguous()
    yield f"{prefix}experts.down_proj", parts["down_proj"].expand(config.num_experts, -1, -1).contiguous()


def _with_new_rows(matrix: torch.Tensor, name: str, rows: int, old_rows: int, new_ids: list[int]) -> torch.Tensor:
    """Return the matrix with rows for the new tokens. In the input embedding they are the mean of the known tokens."""
    known = min([old_rows, *new_ids])
    mean = matrix[:known].float().mean(dim=0).to(matrix.dtype)
    grown = matrix
    if rows > matrix.shape[0]:
        grown = torch.cat([matrix, mean.expand(rows - matrix.shape[0], -1)])
    if name == _EMBEDDING:
        grown = grown.clone()
        grown[new_ids] = mean
    return grown


def _write_shards(
    tensors: Iterator[tuple[str, torch.Tensor]],
    config: MoonConfig,
    out: Path,
    dtype: torch.dtype | None,
    max_bytes: int,
) -> None:
    expected = _expected_shapes(config)
    left = dict(expected)
    shards: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    total = 0

    def flush() -> None:
        shards.append(list(shard))
        save_file(shard, out / f"shard-{len(shards):05d}.safetensors", metadata={"format": "pt"})
        shard.clear()

    for name, tensor in tqdm(tensors, total=len(expected), desc="Upcycling", unit="tensor"):
        if name not in left:
            raise UpcycleError(
                f"base: found a tensor {name!r}; expected only tensors of a Moon model with this configuration"
            )
        if tuple(tensor.shape) != left.pop(name):
            raise UpcycleError(f"base: found tensor {name!r} of shape {tuple(tensor.shape)}; expected {expected[name]}")
        tensor = tensor.to(dtype or tensor.dtype).contiguous()
        size = tensor.numel() * tensor.element_size()
        if shard and sum(part.numel() * part.element_size() for part in shard.values()) + size > max_bytes:
            flush()
        shard[name] = tensor
        total += size
    if left:
        raise UpcycleError(
            f"base: {len(left)} tensors are missing, such as {', '.join(sorted(left)[:5])}; expected all"
        )
    flush()
    _name_shards(shards, out, total)


def _name_shards(shards: list[list[str]], out: Path, total_bytes: int) -> None:
    if len(shards) == 1:
        (out / "shard-00001.safetensors").rename(out / "model.safetensors")
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (out / f"shard-{number:05d}.safetensors").rename(out / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _expected_shapes(config: MoonConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a Moon checkpoint's tensors, from a model on the meta device."""
    with torch.device("meta"):
        model = MoonForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight")
    return shapes
