"""Measure the duration of a step, and convert a time budget into a number of steps."""

import shutil
import time
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from training.assembly.stages import MakeTrainer
from training.runs.run import Run

_WARM_UP_STEPS, _LEAST_MEASURED_STEPS = 3, 5
_MOST_STEPS = 10_000
_MEASURED_SHARE = 0.02  # of a time budget


def set_max_steps(run: Run, make_trainer: MakeTrainer, model: nn.Module) -> None:
    """Set the number of steps of a run from its time budget, unless it is known, and write the recipe with it.

    Args:
        run: a run whose recipe sets max_steps or train_minutes.
        make_trainer: see `training.assembly.stages.trainer_factory`.
        model: the model to train.
    """
    args, minutes = run.recipe.training, run.recipe.training.train_minutes
    if run.max_steps < 1 and minutes is not None:
        seconds = seconds_per_step(run, make_trainer, model, budget_seconds=_MEASURED_SHARE * minutes * 60)
        steps = torch.tensor(max(1, round(minutes * 60 / seconds)), device=args.device)
        if args.world_size > 1:
            torch.distributed.broadcast(steps, src=0)
        run.max_steps = int(steps)
        if run.is_first:
            shutil.rmtree(run.folder.completions, ignore_errors=True)  # of the measured steps
            print(f"{seconds:.3f} seconds a step: {run.max_steps} steps in {minutes:g} minutes", flush=True)
    if run.is_first and run.folder.last_good_checkpoint() is None:
        run.write_records()


def seconds_per_step(run: Run, make_trainer: MakeTrainer, model: nn.Module, budget_seconds: float = 0.0) -> float:
    """Return the mean duration of optimizer steps on the first pairs of a run, and restore all weights.

    The measurement takes at least `budget_seconds` and eight steps, of which the first three do not count.
    """
    learning = [tensor for tensor in [*model.parameters(), *model.buffers()] if _may_change(tensor)]
    before = [tensor.detach().to("cpu", copy=True) for tensor in learning]
    clock = StepClock(budget_seconds)
    quiet: dict[str, Any] = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    trainer = make_trainer(run.arguments(max_steps=_MOST_STEPS, **quiet), _MOST_STEPS)
    trainer.remove_callback(PrinterCallback)  # its summary would look like that of the run
    trainer.add_callback(clock)
    if run.is_first:
        print("measuring the step rate …")
    trainer.train()
    with torch.no_grad():
        for tensor, value in zip(learning, before, strict=True):
            tensor.copy_(value)
    model.zero_grad()
    return clock.seconds_per_step()


def _may_change(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad or not isinstance(tensor, nn.Parameter)


class StepClock(TrainerCallback):
    """Stop training after enough steps have been timed.

    Args:
        budget_seconds: the minimum duration of the measurement.
    """

    def __init__(self, budget_seconds: float) -> None:
        self.budget_seconds = budget_seconds
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.ends.append(time.perf_counter())
        measured = len(self.ends) - _WARM_UP_STEPS
        timed = self.ends[-1] - self.ends[min(_WARM_UP_STEPS, len(self.ends)) - 1]
        enough = torch.tensor(measured >= _LEAST_MEASURED_STEPS and timed >= self.budget_seconds, device=args.device)
        if args.world_size > 1:  # clocks differ, but all processes must stop at the same step
            torch.distributed.broadcast(enough, src=0)
        control.should_training_stop = bool(enough)
        return control

    def seconds_per_step(self) -> float:
        """Return the mean duration of the steps that count."""
        counted = self.ends[_WARM_UP_STEPS - 1 :]
        return (counted[-1] - counted[0]) / (len(counted) - 1)
