"""Write Moon checkpoints: weights, processor, the code that loads them, and the files of sentence-transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import modeling_moon
from modeling_moon import SENTENCE_TRANSFORMER_MODULE, MoonForConditionalGeneration
from modeling_moon.configuration_moon import AUTO_MAP
from modeling_moon.saving_moon import weights_under_adapters
from modeling_moon.sentence_transformer_moon import MODALITIES

_CODE = Path(modeling_moon.__file__).parent
_MODEL_FILES = sorted(path.name for path in _CODE.glob("*_moon.py"))


def write_code_and_settings(config: Any, processor: Any, folder: str | Path) -> None:
    """Write all files of a checkpoint except its weights: configuration, processor, code, sentence-transformers' files.

    Args:
        config: the `MoonConfig`.
        processor: the `MoonProcessor`, whose query and product instructions become the prompts "query" and "document".
        folder: the checkpoint's folder, which exists.
    """
    folder = Path(folder)
    config.auto_map = dict(AUTO_MAP)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in _MODEL_FILES:
        shutil.copyfile(_CODE / name, folder / name)
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": processor.instructions["query"], "document": processor.instructions["product"]},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write_modules(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps(MODALITIES, indent=2) + "\n")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings, indent=2) + "\n")


def _write_modules(folder: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": SENTENCE_TRANSFORMER_MODULE}]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")


def mark_adapter(folder: str | Path) -> None:
    """Write the files that lead sentence-transformers to our module, whose error says which model to load instead.

    Args:
        folder: the adapter's folder, which exists.
    """
    _write_modules(Path(folder))
    name = f"{SENTENCE_TRANSFORMER_MODULE.partition('.')[0]}.py"
    shutil.copyfile(_CODE / name, Path(folder) / name)


def save_moon(model: Any, processor: Any, folder: str | Path, *, lm_head_from: str | Path | None = None) -> Path:
    """Write a complete checkpoint for `AutoModel`, `AutoModelForImageTextToText` and `SentenceTransformer`.

    Args:
        model: a `MoonModel` or `MoonForConditionalGeneration`.
        processor: its `MoonProcessor`.
        folder: the folder to write.
        lm_head_from: the checkpoint from which a `MoonModel` was trained. Its generation settings and its output layer,
            if untied, are written with the trained weights, so that the new checkpoint can still generate text.

    Returns:
        The folder.

    Raises:
        ValueError: a `MoonModel` with an untied output layer and without `lm_head_from`, or a model with adapters.
    """
    folder = Path(folder)
    wrapped = weights_under_adapters(model)
    if wrapped:
        raise ValueError(
            f"model: adapters wrap {len(wrapped)} weights, such as {wrapped[0]}; expected the model that "
            "merge_and_unload() returns"
        )
    if lm_head_from is not None or not hasattr(model, "lm_head"):
        model = _with_output_layer(model, lm_head_from)
    model.save_pretrained(folder)
    config = model.config
    config.architectures = [type(model).__name__]
    write_code_and_settings(config, processor, folder)
    return folder


def _with_output_layer(model: Any, donor: str | Path | None) -> Any:
    """Return the model for generation, with the output layer and the generation settings of the donor."""
    if hasattr(model, "lm_head"):
        return model
    if donor is None:
        if model.config.tie_word_embeddings:
            return model
        raise ValueError(
            "lm_head_from: found None for a MoonModel with an untied output layer; expected the checkpoint that it was "
            "trained from"
        )
    whole = MoonForConditionalGeneration.from_pretrained(donor, dtype=model.dtype)
    whole.model, whole.config = model, model.config
    whole.tie_weights()
    return whole
