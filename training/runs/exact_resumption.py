"""Checkpoints that a run goes on from exactly, for any trainer built on transformers' Trainer."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from product_data.atomic_files import append_line, cut_lines_after, read_lines
from retrieval.shortened import part_of
from training.libraries.trainer import (
    Step,
    TrainerSteps,
    loss_counters,
    restore_loss_counters,
    sum_of_losses,
    use_plain_cpu_device,
)
from training.parallel.distributed import rank, world_size
from training.runs.folder import RunFolder, mark_complete
from training.runs.full_disk import DiskWatch, check_space


class ResumeError(RuntimeError):
    """A checkpoint that this run cannot continue from."""

    exit_status = 2


class ExactResumption(TrainerSteps):
    """Mixin before a Trainer: whole checkpoints, each process's own state in them, and logs without gap or repetition.

    A checkpoint counts only with its marker, which is written last; see `training.runs.folder`. What the trainer keeps
    beside Trainer's own state goes through `own_state` and `load_own_state`, into `<state_name>_<rank>.pt`. A full disk
    stops all processes together. Writes `metrics.jsonl` (each logged step), `skipped.jsonl` (each unreadable item,
    once) and
    `shortened.jsonl` (each text that was cut and item whose pictures were made smaller, once) in output_dir.

    The trainer sets `save_records` and `save_processor`, called with each checkpoint folder or None, and calls
    `start_resumption` at the end of its constructor.

    Raises:
        DiskFullError: a file could not be written; raised in every process, with the last good checkpoint untouched.
        ResumeError: a checkpoint lacks weights of this model, or was written by another number of processes.
    """

    state_name = "own_state"
    save_records: Callable[[Path], Any] | None
    save_processor: Callable[[Path], Any] | None

    def start_resumption(self: Any) -> None:
        """Begin to watch the disk and the moment when a training begins."""
        use_plain_cpu_device(self.args)
        self.disk = DiskWatch(self.args.output_dir)
        self._resumed: Mapping[str, Any] | None = None
        self._noted: set[tuple[str, str]] = set()
        self._noted_short: set[tuple[str, str, str]] = set()
        self.add_callback(_ContinueExactly(self))

    def own_state(self) -> dict[str, Any]:
        """Return what this process keeps beside Trainer's state, as tensors and plain values."""
        raise NotImplementedError

    def load_own_state(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Take over what `own_state` returned; `checkpoint` is the folder that it comes from."""
        raise NotImplementedError

    def _state_file(self) -> str:
        return f"{self.state_name}_{rank()}.pt"

    @property
    def run_folder(self: Any) -> RunFolder:
        """The folder that the trainer writes to."""
        return RunFolder(Path(self.args.output_dir))

    # Logs

    def log_step(self: Any, logs: Mapping[str, Any]) -> None:
        """Write a training step's log to `metrics.jsonl`."""
        with self.disk.keeping():
            if self.is_world_process_zero():
                append_line(self.run_folder.metrics, {"step": self.state.global_step, **logs})
        self.disk.stop_together(f"step {self.state.global_step} in {self.run_folder.metrics.name}")

    def mean_loss(self: Any) -> float:
        """Return the mean loss of all steps; after a resumption Trainer divides the sum by the steps since."""
        return sum_of_losses(self) / max(self.state.global_step, 1)

    def note_skipped(self: Any, skipped: Sequence[Mapping[str, str]]) -> None:
        """Write each unreadable item to `skipped.jsonl`, once."""
        for skip in skipped:
            if (skip["item"], skip["field"]) not in self._noted:
                self._noted.add((skip["item"], skip["field"]))
                with self.disk.keeping():
                    append_line(self.run_folder.skipped, skip)

    def note_shortened(self: Any, shortened: Sequence[Mapping[str, Any]]) -> None:
        """Write each part of an item that did not fit into the token budget to `shortened.jsonl`, once."""
        for one in shortened:
            if part_of(one) not in self._noted_short:
                self._noted_short.add(part_of(one))
                line = {name: value for name, value in one.items() if name != "row"}
                with self.disk.keeping():
                    append_line(self.run_folder.shortened, line)

    # Saving

    def save_checkpoint(self: Any, save: Step) -> None:
        """Save as Trainer does, then each process's own state, then the marker that makes it count."""
        folder = self.run_folder.checkpoint(self.state.global_step)
        with self.disk.keeping():
            if self.args.should_save:
                if folder.exists():
                    shutil.rmtree(folder)
                check_space(folder.parent)
        self.disk.stop_together(folder.name)
        with self.disk.keeping(), _without_save_limit(self.args):  # Trainer's pruning does not know which are whole
            save()
        with self.disk.keeping():
            counters = {"world_size": world_size(), **loss_counters(self)}
            torch.save(counters | self.own_state(), folder / self._state_file())
            self.save_more(folder)
        self.disk.stop_together(folder.name, folder)
        with self.disk.keeping():
            if self.args.should_save:
                if self.save_records is not None:
                    self.save_records(folder)
                mark_complete(folder)
                self.run_folder.prune(self.args.save_total_limit)
        self.disk.stop_together(folder.name, folder)

    def save_more(self, folder: Path) -> None:
        """Write further files of a checkpoint, before it counts."""

    # A part whose writing fails does not keep a process from the exchanges of the parts that follow.

    def save_weights(self: Any, save: Step, folder: Path) -> None:
        """Save as Trainer does, and the processor beside the weights."""
        with self.disk.keeping():
            save()
            if self.args.should_save and self.save_processor is not None:
                self.save_processor(folder)

    def save_part(self: Any, save: Step) -> None:
        """Save as Trainer does; the error of a full disk is kept."""
        with self.disk.keeping():
            save()

    # Going on

    def after_loading(self: Any, checkpoint: Path) -> None:
        """Take over each process's own state."""
        path = checkpoint / self._state_file()
        state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
        if state.get("world_size") != world_size():
            raise ResumeError(
                f"{checkpoint}: found a run of {state.get('world_size', 'fewer')} processes; "
                f"expected {world_size()}, because each process resumes its own queue"
            )
        self.load_own_state(state, checkpoint)
        self._resumed = state

    def compare_weights(self: Any, warn: Step, missing: Sequence[str], unexpected: Sequence[str]) -> None:
        """Refuse a checkpoint without some of the weights; tied weights are saved once."""
        parameters = dict(self.model.state_dict())
        loaded = {value.data_ptr() for name, value in parameters.items() if name not in missing}
        absent = [name for name in missing if parameters[name].data_ptr() not in loaded]
        if absent or unexpected:
            raise ResumeError(
                f"checkpoint: found no weights for {absent[:5]} and unknown weights {unexpected[:5]}; "
                "expected a checkpoint of this very model"
            )

    def continue_exactly(self: Any) -> None:
        """Called when training begins: put back what Trainer's loop has just set to its initial values."""
        if self.is_world_process_zero():
            cut_lines_after(self.run_folder.metrics, self.state.global_step)
        self._noted = {(line["item"], line["field"]) for line in read_lines(self.run_folder.skipped)}
        self._noted_short = {part_of(line) for line in read_lines(self.run_folder.shortened)}
        if self._resumed is None:
            return
        self.state.compute_steps(self.args, self.state.max_steps)
        restore_loss_counters(self, self._resumed)
        self._resumed = None


class _ContinueExactly(TrainerCallback):
    """Reaches the one moment after Trainer has reset its counters and before the first step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.continue_exactly()


def shortened_rows(shortened: Sequence[Mapping[str, Any]]) -> int:
    """Return how many of a batch's queries and products were cut or made smaller."""
    return len({(one["kind"], one["row"]) for one in shortened})


@contextlib.contextmanager
def _without_save_limit(args: Any) -> Iterator[None]:
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit
