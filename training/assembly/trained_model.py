"""Assemble the trained model from its shards and adapters, and save it as a checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from evaluation.baselines.dual_tower import DualTower
from modeling_moon import MoonForConditionalGeneration
from processing_moon import MoonProcessor
from product_data.atomic_files import written_whole
from training.assembly.starting_model import load_model, make_trainable
from training.libraries.accelerate_library import zero_stage
from training.model.checkpoint import mark_adapter, save_moon
from training.model.patch_embedding import patches_by_matrix
from training.parallel.sharding import is_sharded
from training.runs.cards import write_adapter_card, write_trained_card
from training.runs.folder import RunFolder
from training.runs.run import Run


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the model whose output has `.embeddings`. The encoder of a generating model can use its output layer.

    Args:
        model: the loaded or trained model, with its adapters.
    """
    writer = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(writer, MoonForConditionalGeneration):
        return model
    encoder = writer.model
    encoder.writer = lambda: MoonForConditionalGeneration.around(encoder, writer.lm_head)
    return encoder


def whole_trained(run: Run, trainer: Any, start: Path) -> nn.Module | None:
    """Return the trained model, neither sharded nor quantized, for saving and evaluation.

    For a sharded or quantized model, the first process loads the starting model again and adds the trained weights; the
    others return None. Adapters that were trained on a quantized base are therefore merged into its original weights.
    All processes must call the function, because each has a part of the weights.

    Args:
        run: the run.
        trainer: the `training.contrastive.trainer.ContrastiveTrainer`, after training.
        start: the checkpoint from which training started.
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
    loaded, _ = load_model(run, start, on_gpu=False, quantization="none")
    patches_by_matrix(loaded)
    model = make_trainable(loaded, recipe.model)
    if recipe.model.quantization == "none":
        model.load_state_dict(state)
    else:
        set_peft_model_state_dict(model, state)
    return model


def save_trained(model: nn.Module, processor: MoonProcessor, folder: Path, start: Path) -> None:
    """Write the trained model and its card as a complete checkpoint; adapters are also written separately.

    Args:
        model: the trained model, into which adapters are merged.
        processor: its processor.
        folder: the folder to write.
        start: the checkpoint from which training started, for weights and settings that are not trained.
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
        for parameter in model.parameters():  # model.to(dtype) would also round the rotary frequencies
            parameter.data = parameter.data.to(dtype)
    if isinstance(model, DualTower):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    else:
        save_moon(model, processor, folder, lm_head_from=start)
    write_trained_card(folder, start)
