"""Prepare the starting model of a run: make or upcycle a base, load it, and choose the trainable parameters."""

import fnmatch
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from evaluation.baselines.dual_tower import DualTower
from modeling_moon import MoonConfig, MoonForConditionalGeneration, MoonModel
from processing_moon import MoonProcessor
from processing_moon.processing_moon import DEFAULT_INSTRUCTIONS
from product_data.atomic_files import PARTIAL
from product_data.errors import OptionError
from product_data.tables import ProductTables
from retrieval.attention import attention_of
from training.assembly.token_budget import set_budget
from training.model.patch_embedding import patches_by_matrix
from training.model.quantization import quantization_config
from training.model.small_base import make_base
from training.model.upcycle import upcycle
from training.recipe.arguments import RecipeError, check_model_reasons
from training.recipe.model import ModelArguments
from training.runs.run import Run

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_ROLES = ("system", "user", "assistant")


def prepare_base(run: Run, tables: list[ProductTables]) -> Path:
    """Return the folder of the Moon checkpoint to start from, which is created in output_dir if necessary.

    Args:
        run: the run. The model of its cold start, or a `base` that is a Moon checkpoint, is returned unchanged. A Qwen
            base, or the `small_base`, is upcycled into output_dir/base.
        tables: the training split, whose texts train the tokenizer of a small base.
    """
    recipe, model = run.recipe, run.recipe.model
    if run.cold_start_model is not None:
        check_model_reasons(recipe, MoonConfig.get_config_dict(run.cold_start_model)[0])
        return run.cold_start_model
    if model.base is not None and _is_moon(model.base):
        if model.moon:
            raise RecipeError(
                f"moon: {model.moon} cannot be applied to the Moon checkpoint {model.base}; expected a Qwen base, or no "
                "moon settings"
            )
        if model.architecture != "moon":
            raise RecipeError(f"base: found a Moon checkpoint for {model.architecture}; expected a Qwen base")
        check_model_reasons(recipe, MoonConfig.get_config_dict(model.base)[0])
        return Path(model.base)
    check_model_reasons(recipe, None)
    out = run.folder.base
    if not (out / "config.json").is_file():
        shutil.rmtree(out, ignore_errors=True)
        base = _qwen_base(run, tables)
        try:
            upcycle(base, out, preset=model.preset, seed=recipe.training.seed, **(model.moon or {}))
        except (ValueError, TypeError, OSError) as error:
            raise RecipeError(f"base or moon: {error}") from error
    return out


def _qwen_base(run: Run, tables: list[ProductTables]) -> str | Path:
    recipe, folder = run.recipe, run.folder.small_base
    if recipe.model.base is not None:
        return recipe.model.base
    if not folder.is_dir():
        partial = folder.with_name(folder.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        sizes = {"seed": recipe.training.seed, **dict(recipe.model.small_base)}  # type: ignore[arg-type]
        try:
            make_base(partial, texts=texts_of(tables, recipe.data.instructions or {}), **sizes)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"small_base: {error}") from error
        partial.rename(folder)
    return folder


def _is_moon(base: str) -> bool:
    config = Path(base) / "config.json"
    if config.is_file():
        return json.loads(config.read_text(encoding="utf-8")).get("model_type") == MoonConfig.model_type
    try:
        values = MoonConfig.get_config_dict(base)[0]
    except (OSError, ValueError) as error:
        raise RecipeError(f"base: {error}") from error
    return values.get("model_type") == MoonConfig.model_type


def texts_of(tables: list[ProductTables], instructions: Mapping[str, str]) -> Iterator[str]:
    """Yield all texts of products and queries as the processor writes them, the instructions, and the chat's roles.

    Instructions and roles occur in every prompt. They are repeated so that their words become single tokens.
    """
    for instruction in (*{**DEFAULT_INSTRUCTIONS, **instructions}.values(), *_ROLES):
        yield from [instruction] * 100
    for table in tables:
        for row in table.products:
            yield row.title
            yield row.description
            yield " > ".join(row.category)
            yield "; ".join(f"{key}: {', '.join(values)}" for key, values in row.attributes.items())
        for query in table.queries:
            yield query.text


def load_start(
    run: Run, folder: Path, on_gpu: bool, tables: Sequence[ProductTables] = ()
) -> tuple[PreTrainedModel, MoonProcessor]:
    """Load model and processor, with the recipe's limits on tokens and pictures.

    Args:
        run: the run. The token budget is recorded in its facts.
        folder: the folder from `prepare_base`.
        on_gpu: whether training runs on a GPU.
        tables: the training split, on which `max_tokens: auto` is measured; see
            `training.assembly.token_budget.set_budget`.

    Raises:
        RecipeError: transformers cannot load the model, or cannot load it with this `attn_implementation` or
            `embedding_dim`.
    """
    attention_in(run, on_gpu)  # refused by its own name, before the model is loaded
    try:
        model, processor = load_model(run, folder, on_gpu, run.recipe.model.quantization)
    except (ValueError, OSError, ImportError) as error:
        raise RecipeError(f"base: {error}") from error
    if not on_gpu:
        patches_by_matrix(model)
    data = run.recipe.data
    note = set_budget(processor, data.max_tokens, tables, allow_urls=data.allow_urls)
    run.facts["max_tokens"] = processor.max_tokens
    if note is not None:
        run.say(note)
    return model, processor


def attention_in(run: Run, on_gpu: bool) -> str:
    """Return the attention implementation of a recipe.

    Args:
        run: the run.
        on_gpu: whether the model will be on a GPU.

    Raises:
        RecipeError: it needs a GPU, a package or half precision; the message says which.
    """
    training = run.recipe.training
    dtype = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    try:
        return attention_of(run.recipe.model.attn_implementation, on_gpu, dtype)
    except OptionError as error:
        raise RecipeError(str(error)) from error


def load_model(run: Run, folder: Path, on_gpu: bool, quantization: str) -> tuple[PreTrainedModel, MoonProcessor]:
    """Load model and processor as the recipe says, with weights of a given quantization.

    Args:
        run: the run.
        folder: the starting checkpoint.
        on_gpu: whether training will run on a GPU.
        quantization: "none", "8bit" or "4bit".
    """
    recipe, model, data = run.recipe, run.recipe.model, run.recipe.data
    processor = MoonProcessor.from_pretrained(folder)
    processor.core_crop = data.core_crop
    processor.instructions = {**processor.instructions, **(data.instructions or {})}
    if data.max_image_tokens is not None:
        processor.max_image_tokens = data.max_image_tokens
    attention = attention_in(run, on_gpu)
    if model.architecture == "dual_tower":
        base = model.base or run.folder.small_base
        tower = DualTower.from_base(base, processor, embedding_dim=(model.moon or {}).get("embedding_dim", 256))
        tower.set_attn_implementation(attention)
        return tower.float(), processor
    dtype = torch.bfloat16 if model.lora and recipe.training.bf16 else torch.float32
    options: dict[str, Any] = {"attn_implementation": attention, "dtype": dtype}
    quantized = quantization_config(quantization)
    if quantized is not None:
        place = {"": recipe.training.device}
        options |= {"quantization_config": quantized, "device_map": place, "dtype": torch.bfloat16}
    kind = MoonModel if recipe.reasoning.stage == "contrastive" else MoonForConditionalGeneration
    return kind.from_pretrained(folder, **options), processor


def make_trainable(model: PreTrainedModel, arguments: ModelArguments) -> nn.Module:
    """Freeze the parameters that the recipe selects, and add adapters.

    Args:
        model: the starting model.
        arguments: the recipe's keys of the model, `freeze` and `lora`.

    Raises:
        RecipeError: a pattern does not match a parameter, peft does not find a target, or all parameters are frozen.
    """
    for pattern in arguments.freeze:
        names = fnmatch.filter((name for name, _ in model.named_parameters()), pattern)
        if not names:
            raise RecipeError(f"freeze: found no parameter like {pattern!r}; expected a pattern such as '*visual*'")
        for name in names:
            model.get_parameter(name).requires_grad_(False)
    learner: Any = model if arguments.lora is None else _with_adapters(model, dict(arguments.lora))
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise RecipeError(f"freeze: found {arguments.freeze}, which freezes all parameters; expected fewer patterns")
    return learner


def _with_adapters(model: PreTrainedModel, lora: dict[str, Any]) -> PeftModel:
    try:
        config = LoraConfig(
            r=lora.get("r", 16),
            lora_alpha=lora.get("alpha", 32),
            lora_dropout=lora.get("dropout", 0.0),
            target_modules=lora.get("target_modules", _ATTENTION),
            target_parameters=lora.get("target_parameters"),
            modules_to_save=lora.get("modules_to_save"),
        )
        adapted = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"lora: {error}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # in bfloat16, small updates round to zero; autocast still computes in bfloat16
            parameter.data = parameter.data.float()
    return adapted
