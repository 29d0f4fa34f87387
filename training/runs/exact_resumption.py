"""Write checkpoints from which a run resumes exactly, for any trainer that extends transformers' Trainer."""

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
    """A checkpoint from which this run cannot resume."""

    exit_status = 2


class ExactResumption(TrainerSteps):
    """Mixin that comes before a Trainer: complete checkpoints with the state of each process, and logs without gaps.

    A checkpoint is valid only with its marker, which is written last; see `training.runs.folder`. The trainer's own state
    is saved by `own_state` and restored by `load_own_state`, in `<state_name>_<rank>.pt`. A full disk stops all processes
    together. It writes `metrics.jsonl` (each logged step), `skipped.jsonl` (each unreadable query or product, once) and
    `shortened.jsonl` (each shortened text and reduced picture, once) in output_dir.

    The trainer sets `save_records` and `save_processor`, which are called with each checkpoint folder unless they are
    None, and calls `start_resumption` at the end of its constructor.

    Raises:
        DiskFullError: a file could not be written; raised in every process, with the last valid checkpoint unchanged.
        ResumeError: a checkpoint lacks weights of this model, or was written by a different number of processes.
    """

    state_name = "own_state"
    save_records: Callable[[Path], Any] | None
    save_processor: Callable[[Path], Any] | None

    def start_resumption(self: Any) -> None:
        """Start to watch the disk and the beginning of training."""
        use_plain_cpu_device(self.args)
        self.disk = DiskWatch(self.args.output_dir)
        self._resumed: Mapping[str, Any] | None = None
        self._noted: set[tuple[str, str]] = set()
        self._noted_short: set[tuple[str, str, str]] = set()
        self.add_callback(_ContinueExactly(self))

    def own_state(self) -> dict[str, Any]:
        """Return the state of this process besides that of Trainer, as tensors and plain values."""
        raise NotImplementedError

    def load_own_state(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Restore the state from `own_state`, which was saved in the folder `checkpoint`."""
        raise NotImplementedError

    def _state_file(self) -> str:
        return f"{self.state_name}_{rank()}.pt"

    @property
    def run_folder(self: Any) -> RunFolder:
        """Return the folder of the run."""
        return RunFolder(Path(self.args.output_dir))

    # Logs

    def log_step(self: Any, logs: Mapping[str, Any]) -> None:
        """Write the log of a training step to `metrics.jsonl`."""
        with self.disk.keeping():
            if self.is_world_process_zero():
                append_line(self.run_folder.metrics, {"step": self.state.global_step, **logs})
        self.disk.stop_together(f"step {self.state.global_step} in {self.run_folder.metrics.name}")

    def mean_loss(self: Any) -> float:
        """Return the mean loss of all steps. Trainer would divide the sum by the steps since the run resumed."""
        return sum_of_losses(self) / max(self.state.global_step, 1)

    def note_skipped(self: Any, skipped: Sequence[Mapping[str, str]]) -> None:
        """Write each unreadable query or product to `skipped.jsonl`, once."""
        for skip in skipped:
            if (skip["item"], skip["field"]) not in self._noted:
                self._noted.add((skip["item"], skip["field"]))
                with self.disk.keeping():
                    append_line(self.run_folder.skipped, skip)

    def note_shortened(self: Any, shortened: Sequence[Mapping[str, Any]]) -> None:
        """Write each part of a query or product that did not fit into the token budget to `shortened.jsonl`, once."""
        for part in shortened:
            if part_of(part) not in self._noted_short:
                self._noted_short.add(part_of(part))
                line = {name: value for name, value in part.items() if name != "row"}
                with self.disk.keeping():
                    append_line(self.run_folder.shortened, line)

    # Saving

    def save_checkpoint(self: Any, save: Step) -> None:
        """Save Trainer's checkpoint, the state of each process, and then the marker that makes it valid."""
        folder = self.run_folder.checkpoint(self.state.global_step)
        with self.disk.keeping():
            if self.args.should_save:
                if folder.exists():
                    shutil.rmtree(folder)
                check_space(folder.parent)
        self.disk.stop_together(folder.name)
        with self.disk.keeping(), _without_save_limit(self.args):  # Trainer would also count incomplete ones
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
        """Write additional files of a checkpoint, before its marker."""

    # If writing a part fails, the process still takes part in the collectives of the following parts.

    def save_weights(self: Any, save: Step, folder: Path) -> None:
        """Save the weights like Trainer, and the processor with them."""
        with self.disk.keeping():
            save()
            if self.args.should_save and self.save_processor is not None:
                self.save_processor(folder)

    def save_part(self: Any, save: Step) -> None:
        """Save a part like Trainer, and keep the error of a full disk."""
        with self.disk.keeping():
            save()

    # Resuming

    def after_loading(self: Any, checkpoint: Path) -> None:
        """Restore the state of this process."""
        path = checkpoint / self._state_file()
        state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
        if state.get("world_size") != world_size():
            raise ResumeError(
                f"{checkpoint}: found a checkpoint of {state.get('world_size', 'fewer')} processes; "
                f"expected {world_size()}, because each process resumes its own queue"
            )
        self.load_own_state(state, checkpoint)
        self._resumed = state

    def compare_weights(self: Any, warn: Step, missing: Sequence[str], unexpected: Sequence[str]) -> None:
        """Raise ResumeError for a checkpoint with missing or unknown weights. Tied weights are saved once."""
        parameters = dict(self.model.state_dict())
        loaded = {value.data_ptr() for name, value in parameters.items() if name not in missing}
        absent = [name for name in missing if parameters[name].data_ptr() not in loaded]
        if absent or unexpected:
            raise ResumeError(
                f"checkpoint: found no weights for {absent[:5]} and unknown weights {unexpected[:5]}; "
                "expected a checkpoint of this model"
            )

    def continue_exactly(self: Any) -> None:
        """Restore the values that Trainer has just reset, at the beginning of training."""
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
    """Call `continue_exactly` after Trainer has reset its counters and before the first step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.continue_exactly()


def shortened_rows(shortened: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of a batch's queries and products with shortened parts."""
    return len({(part["kind"], part["row"]) for part in shortened})


@contextlib.contextmanager
def _without_save_limit(args: Any) -> Iterator[None]:
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit
