"""The recipe's keys of the training itself: transformers' TrainingArguments with our defaults and a few further keys."""

import dataclasses
import enum
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, create_model
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from training.errors import RecipeError
from training.recipe.checking import CONFIG, NOT_FOR_RECIPES, Count, NotNegative, Positive, make_group

# Optimizers that are made with the model: before it is loaded, only whether their library is there can be said.
_OPTIMIZERS_OF_A_MODEL = ("galore", "apollo", "lomo")
_RANGES: dict[str, Any] = dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm"), NotNegative)
_RANGES |= dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), Count)
_RANGES |= {"gradient_accumulation_steps": Count, "seed": Annotated[int, Field(ge=0, lt=2**32)]}
_RANGES |= {"train_minutes": Positive | None, "evaluate_products": Count | None}


@dataclass
class MoonTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with our defaults and these further keys.

    Args:
        train_minutes: a time budget in minutes: the step rate is measured on throwaway steps, and max_steps set from
            it once, before the first real step, so that the learning-rate schedule ends with the budget.
        evaluate_before: evaluate the model before training, into results_before.json.
        evaluate_after: evaluate the trained model, into results_after.json.
        evaluate_split: the split that these evaluations use.
        evaluate_products: evaluate on this many products of that split; None: on all.
        overwrite: start again in an output_dir that holds a run.
    """

    warmup_steps: float = 0.05
    lr_scheduler_type: str = "cosine"
    save_total_limit: int | None = 2
    bf16: bool | None = None  # type: ignore[assignment]
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False
    dataloader_drop_last: bool = True
    remove_unused_columns: bool = False
    train_sampling_strategy: str = "sequential"
    ddp_find_unused_parameters: bool | None = False
    ddp_broadcast_buffers: bool | None = False
    train_minutes: float | None = None
    evaluate_before: bool = False
    evaluate_after: bool = False
    evaluate_split: str = "test"
    evaluate_products: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.bf16 is None:
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = not self.fp16 and on_gpu and torch.cuda.is_bf16_supported()
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        super().__post_init__()


def training_defaults(arguments: type[TrainingArguments]) -> dict[str, Any]:
    """Return every key of TrainingArguments, or of our own, with its default."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(arguments):
        factory = entry.default_factory
        default = entry.default if factory is dataclasses.MISSING else factory()
        found[entry.name] = default.value if isinstance(default, enum.Enum) else default
    return found


def make_training(values: Mapping[str, Any]) -> MoonTrainingArguments:
    """Return TrainingArguments of a recipe's keys, checked: first their types and ranges, then by transformers itself.

    Args:
        values: the keys; those left out have their defaults.

    Raises:
        RecipeError: names the key, or says what transformers says.
    """
    hints = typing.get_type_hints(MoonTrainingArguments)
    fields: dict[str, Any] = {
        entry.name: (_RANGES.get(entry.name, hints[entry.name]), None)
        for entry in dataclasses.fields(MoonTrainingArguments)
        if entry.init and entry.name not in NOT_FOR_RECIPES
    }
    config = ConfigDict(**CONFIG, protected_namespaces=())
    make_group(create_model("TrainingKeys", __config__=config, **fields), values)
    try:
        return MoonTrainingArguments(**values)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"recipe: {error}") from error


def check_training(training: MoonTrainingArguments) -> None:
    """Refuse a training without an end, and what this machine does not have.

    Raises:
        RecipeError: names the key, what was found and what is expected.
    """
    if training.train_minutes is None and training.max_steps < 1:
        raise RecipeError("max_steps and train_minutes: found neither; expected one of them, greater than 0")
    _check_optimizer(training)
    _check_reports(training)
    if training.n_gpu > 1:
        raise RecipeError(f"found {training.n_gpu} GPUs in one process; expected accelerate launch training/train.py")


def _check_optimizer(training: MoonTrainingArguments) -> None:
    """Refuse an optimizer whose library is not there, as transformers itself finds it."""
    name = optimizer_of(training)
    try:
        Trainer.get_optimizer_cls_and_kwargs(training)
    except (ImportError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, ImportError) or not any(part in name for part in _OPTIMIZERS_OF_A_MODEL):
            raise RecipeError(
                f"optim: found {name!r}: {error}; expected one whose library is installed, with its own optim_args"
            ) from error


def optimizer_of(training: TrainingArguments) -> str:
    """Return the name of the optimizer."""
    return str(getattr(training.optim, "value", training.optim))


def _check_reports(training: MoonTrainingArguments) -> None:
    available = get_available_reporting_integrations()
    for name in list(training.report_to or []):
        if name not in available:
            raise RecipeError(
                f"report_to: found {name!r}, which is not installed; expected {', '.join(['none', *available])}"
            )
