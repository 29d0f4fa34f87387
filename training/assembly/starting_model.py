"""The model that a run starts from: a base made or upcycled, loaded, and the parts that learn chosen."""

import fnmatch
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from evaluation.baselines.dual_tower import DualTower
from modeling_moon import MoonConfig, MoonForConditionalGeneration, MoonModel
from processing_moon import MoonProcessor
from processing_moon.processing_moon import DEFAULT_INSTRUCTIONS
from product_data.atomic_files import PARTIAL, written_whole
from product_data.tables import ProductTables
from training.assembly.token_budget import settle_budget
from training.libraries.accelerate_library import zero_stage
from training.model.checkpoint import mark_adapter, save_moon
from training.model.patch_embedding import patches_by_matrix
from training.model.quantization import quantization_config
from training.model.small_base import make_base
from training.model.upcycle import upcycle
from training.parallel.sharding import is_sharded
from training.recipe.arguments import RecipeError, check_model_reasons
from training.recipe.model import ModelArguments, attention_of
from training.runs.cards import write_adapter_card, write_trained_card
from training.runs.folder import RunFolder
from training.runs.run import Run

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_ROLES = ("system", "user", "assistant")


def prepare_base(run: Run, tables: list[ProductTables]) -> Path:
    """Return the folder of the Moon checkpoint to start from, made in output_dir where it has to be.

    Args:
        run: the model of its cold start, or a `base` of the recipe that is a Moon checkpoint, is used as it is; a base of
            Qwen, or the `small_base` made here, is upcycled into output_dir/base.
        tables: the training split, whose texts a small base's tokenizer is trained on.
    """
    recipe, model = run.recipe, run.recipe.model
    if run.cold_start_model is not None:
        check_model_reasons(recipe, MoonConfig.get_config_dict(run.cold_start_model)[0])
        return run.cold_start_model
    if model.base is not None and _is_moon(model.base):
        if model.moon:
            raise RecipeError(f"moon: found {model.moon} with the Moon checkpoint {model.base}; expected a Qwen base")
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
        found = MoonConfig.get_config_dict(base)[0]
    except (OSError, ValueError) as error:
        raise RecipeError(f"base: {error}") from error
    return found.get("model_type") == MoonConfig.model_type


def texts_of(tables: list[ProductTables], instructions: Mapping[str, str]) -> Iterator[str]:
    """Yield every text of the products and queries as the processor writes them, the instructions, and the roles of the chat.

    Instructions and roles stand in every prompt, so they are repeated until their words become single tokens.
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
        run: its recipe says what to load and how; takes note of the token budget.
        folder: what `prepare_base` returned.
        on_gpu: whether training will run on a GPU.
        tables: the training split, by which `max_tokens` is measured; see `training.assembly.token_budget.settle_budget`.

    Raises:
        RecipeError: what transformers cannot load, or not with this `attn_implementation` or `embedding_dim`.
    """
    try:
        model, processor = _load_start(run, folder, on_gpu, run.recipe.model.quantization)
    except (ValueError, OSError, ImportError) as error:
        raise RecipeError(f"base: {error}") from error
    if not on_gpu:
        patches_by_matrix(model)
    data = run.recipe.data
    note = settle_budget(processor, data.max_tokens, tables, allow_urls=data.allow_urls)
    run.facts["max_tokens"] = processor.max_tokens
    if note is not None:
        run.say(note)
    return model, processor


def _load_start(run: Run, folder: Path, on_gpu: bool, quantization: str) -> tuple[PreTrainedModel, MoonProcessor]:
    recipe, model, data = run.recipe, run.recipe.model, run.recipe.data
    processor = MoonProcessor.from_pretrained(folder)
    processor.core_crop = data.core_crop
    processor.instructions = {**processor.instructions, **(data.instructions or {})}
    if data.max_image_tokens is not None:
        processor.max_image_tokens = data.max_image_tokens
    attention = attention_of(model.attn_implementation, on_gpu)
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


def choose_what_learns(model: PreTrainedModel, arguments: ModelArguments) -> nn.Module:
    """Freeze the parameters that the recipe names, and add adapters.

    Args:
        model: the starting model.
        arguments: `freeze` and `lora`.

    Raises:
        RecipeError: a pattern that fits no parameter, a target that peft does not find, or nothing left to learn.
    """
    for pattern in arguments.freeze:
        names = fnmatch.filter((name for name, _ in model.named_parameters()), pattern)
        if not names:
            raise RecipeError(f"freeze: found no parameter like {pattern!r}; expected a pattern such as '*visual*'")
        for name in names:
            model.get_parameter(name).requires_grad_(False)
    learner: Any = model if arguments.lora is None else _with_adapters(model, dict(arguments.lora))
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise RecipeError(f"freeze: found every parameter frozen by {arguments.freeze}; expected some left to learn")
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
        if parameter.requires_grad:  # in bfloat16 small steps round to nothing; autocast computes in it all the same
            parameter.data = parameter.data.float()
    return adapted


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the model whose output has `.embeddings`; around a writer's encoder, one that writes with its output layer.

    Args:
        model: what was loaded or trained, adapters included.
    """
    writer = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(writer, MoonForConditionalGeneration):
        return model
    encoder = writer.model
    encoder.writer = lambda: MoonForConditionalGeneration.around(encoder, writer.lm_head)
    return encoder


def whole_trained(run: Run, trainer: Any, start: Path) -> nn.Module | None:
    """Return the trained model in one piece and unquantised, to be saved and evaluated.

    Of a sharded or quantised model in the first process alone: what was learned is put into the starting model, loaded anew.
    Adapters learned over a quantised base so meet the weights that it was made of. Called by all processes, because each
    holds a part.

    Args:
        run: its recipe says how the model was loaded and what of it learns.
        trainer: the `training.contrastive.trainer.ContrastiveTrainer` after its training.
        start: the checkpoint that training started from.
    """
    recipe = run.recipe
    if is_sharded(trainer.model) or zero_stage() == 3:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    else:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if recipe.model.quantization == "none":
            return model
        state = {name: value.cpu() for name, value in get_peft_model_state_dict(model).items()}
    if recipe.training.process_index != 0:
        return None
    loaded, _ = _load_start(run, start, on_gpu=False, quantization="none")
    patches_by_matrix(loaded)
    model = choose_what_learns(loaded, recipe.model)
    if recipe.model.quantization == "none":
        model.load_state_dict(state)
    else:
        set_peft_model_state_dict(model, state)
    return model


def save_trained(model: nn.Module, processor: MoonProcessor, folder: Path, start: Path) -> None:
    """Write the trained model and its card so that it loads like any other checkpoint; adapters also by themselves.

    Args:
        model: the trained model; adapters are merged into it.
        processor: its processor.
        folder: where to write.
        start: the checkpoint that training started from, for what training does not touch.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(model, PeftModel):
        with written_whole(RunFolder(folder.parent).adapter) as adapter:
            model.save_pretrained(adapter)
            if not isinstance(model.get_base_model(), DualTower):
                mark_adapter(adapter)
            write_adapter_card(adapter, start)
        dtype = next(parameter.dtype for parameter in model.parameters() if not parameter.requires_grad)
        model = model.merge_and_unload()
        for parameter in model.parameters():  # not model.to(dtype), which would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype)
    if isinstance(model, DualTower):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    else:
        save_moon(model, processor, folder, lm_head_from=start)
    write_trained_card(folder, start)
