"""Give private names of transformers' Trainer public ones: methods to override, and state to read.

No other file in `training/` overrides or reads a private name of Trainer or TrainingArguments. transformers 5.18 to
5.23 use these names and signatures; `tests/training/libraries/test_trainer.py` checks them against the installed
version.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], Any]
"""The original method of Trainer, without arguments."""


class TrainerSteps:
    """Mixin that comes before a Trainer and turns its private methods into public ones.

    By default, each method does what Trainer does. A method that receives a `Step` decides whether, and in which
    context, to call it.
    """

    def save_checkpoint(self, save: Step) -> None:
        """Save the checkpoint of the current step: weights, optimizer, random states and Trainer's state."""
        save()

    def save_weights(self, save: Step, folder: Path) -> None:
        """Save the weights of a checkpoint, or of the finished model, to a folder."""
        save()

    def save_part(self, save: Step) -> None:
        """Save another part of a checkpoint: optimizer and scheduler, or random states."""
        save()

    def after_loading(self, checkpoint: Path) -> None:
        """Act after the weights, the optimizer and the scheduler of a checkpoint are loaded."""

    def compare_weights(self, warn: Step, missing: Sequence[str], unexpected: Sequence[str]) -> None:
        """Handle the names of missing and unexpected weights of a checkpoint."""
        warn()

    def after_preparation(self) -> None:
        """Act after accelerate has prepared the model and the optimizer for training."""

    def after_gradient_norm(self, norm: Any) -> None:
        """Act on the norm of the gradient in each optimizer step, before the weights change."""

    # The private methods of Trainer

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        self.save_checkpoint(functools.partial(super()._save_checkpoint, model, trial))

    def _save(self: Any, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.save_weights(functools.partial(super()._save, output_dir, state_dict), folder)

    def _save_optimizer_and_scheduler(self: Any, output_dir: str) -> None:
        self.save_part(functools.partial(super()._save_optimizer_and_scheduler, output_dir))

    def _save_rng_state(self: Any, output_dir: str) -> None:
        self.save_part(functools.partial(super()._save_rng_state, output_dir))

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.after_loading(Path(checkpoint))

    def _issue_warnings_after_load(self: Any, load_result: Any) -> None:
        warn = functools.partial(super()._issue_warnings_after_load, load_result)
        self.compare_weights(warn, load_result.missing_keys, load_result.unexpected_keys)

    def _prepare_for_training(self: Any, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.after_preparation()
        return prepared

    def _get_grad_norm(self: Any, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.after_gradient_norm(norm)
        return norm


def prepare_inputs(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a batch on the trainer's device, as in `Trainer.training_step`."""
    return trainer._prepare_inputs(inputs)


def sum_of_losses(trainer: Any) -> float:
    """Return the sum of the losses of all logged steps."""
    return trainer._total_loss_scalar


def loss_counters(trainer: Any) -> dict[str, Any]:
    """Return the counters from which Trainer computes the logged loss; see `restore_loss_counters`."""
    return {
        "running_loss": trainer._tr_loss.item(),
        "total_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
    }


def restore_loss_counters(trainer: Any, counters: Mapping[str, Any]) -> None:
    """Restore the counters of `loss_counters`, after Trainer has reset them at the start of training."""
    trainer._tr_loss = torch.tensor(counters["running_loss"], device=trainer.args.device)
    trainer._total_loss_scalar = counters["total_loss"]
    trainer._globalstep_last_logged = counters["last_logged"]


def use_plain_cpu_device(arguments: Any) -> None:
    """Use the device name "cpu" instead of "cpu:0", to which torch cannot load in transformers 5.17."""
    if arguments.device.type == "cpu":
        vars(arguments)["_setup_devices"] = torch.device("cpu")
