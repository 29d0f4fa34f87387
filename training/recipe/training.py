"""Recipe keys of the training: transformers' TrainingArguments with other defaults and a few more keys."""

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

# Optimizers that need the model: before it is loaded, only their library can be checked.
_OPTIMIZERS_OF_A_MODEL = ("galore", "apollo", "lomo")
_RANGES: dict[str, Any] = dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm"), NotNegative)
_RANGES |= dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), Count)
_RANGES |= {"gradient_accumulation_steps": Count, "seed": Annotated[int, Field(ge=0, lt=2**32)]}
_RANGES |= {"train_minutes": Positive | None, "evaluate_products": Count | None}


@dataclass
class MoonTrainingArguments(TrainingArguments):
    """Training: the TrainingArguments of transformers, with other defaults, and the following keys.

    Args:
        train_minutes: a time budget in minutes. Before the first step, the step rate is measured on steps that are then
            discarded, and max_steps is set so that the learning-rate schedule ends with the budget. Set either
            `train_minutes` or `max_steps`.
        evaluate_before: evaluate the model before training and write results_before.json.
        evaluate_after: evaluate the trained model and write results_after.json.
        evaluate_split: the split of these evaluations.
        evaluate_products: the number of products of that split to evaluate on. null: all.
        overwrite: delete the run in output_dir and start again.
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
    """Return every key of TrainingArguments, or of a subclass, with its default."""
    defaults: dict[str, Any] = {}
    for entry in dataclasses.fields(arguments):
        factory = entry.default_factory
        default = entry.default if factory is dataclasses.MISSING else factory()
        defaults[entry.name] = default.value if isinstance(default, enum.Enum) else default
    return defaults


def make_training(values: Mapping[str, Any]) -> MoonTrainingArguments:
    """Check the types and ranges of a recipe's keys and return its TrainingArguments, which transformers checks, too.

    Args:
        values: the keys. Missing keys have their defaults.

    Raises:
        RecipeError: a key is wrong, or transformers raises an error, whose message is included.
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
    """Raise RecipeError for a training run without an end, and for libraries or a launch that this machine does not
    support.

    Raises:
        RecipeError: see above; the message names the key.
    """
    if training.train_minutes is None and training.max_steps < 1:
        raise RecipeError("max_steps and train_minutes: neither is set; expected one of them, greater than 0")
    _check_optimizer(training)
    _check_reports(training)
    if training.n_gpu > 1:
        raise RecipeError(
            f"processes: found one process for {training.n_gpu} GPUs; start the training with: accelerate launch "
            "training/train.py"
        )


def _check_optimizer(training: MoonTrainingArguments) -> None:
    """Raise RecipeError for an optimizer that transformers cannot create, such as one of a missing library."""
    name = optimizer_of(training)
    try:
        Trainer.get_optimizer_cls_and_kwargs(training)
    except (ImportError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, ImportError) or not any(part in name for part in _OPTIMIZERS_OF_A_MODEL):
            raise RecipeError(
                f"optim: found {name!r}: {error}; expected one whose library is installed, with valid optim_args"
            ) from error


def optimizer_of(training: TrainingArguments) -> str:
    """Return the name of the optimizer."""
    return str(getattr(training.optim, "value", training.optim))


def _check_reports(training: MoonTrainingArguments) -> None:
    available = get_available_reporting_integrations()
    for name in list(training.report_to or []):
        if name not in available:
            raise RecipeError(
                f"report_to: found {name!r}, which is not installed; expected one of {', '.join(['none', *available])}"
            )
