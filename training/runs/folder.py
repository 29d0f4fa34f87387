"""Name the files of a run's folder, and decide which of its checkpoints are complete.

A checkpoint is complete if it has its marker, which is written last and atomically, and every file in the marker has
the listed size. Other checkpoints are left from an interrupted save.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from product_data.atomic_files import PARTIAL, mend_lines, write_atomically

MARKER = "complete.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_COMPLETIONS = re.compile(r"step-(\d+)\.parquet")


@dataclass(frozen=True)
class RunFolder:
    """The output_dir of a training run, with the names of all its files.

    Creating the object does not read or write files. `training.runs.lock` owns the lock, which any folder can have.

    Args:
        path: output_dir, which does not need to exist.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    # Records

    @property
    def recipe(self) -> Path:
        """The resolved recipe, which is written first."""
        return self.path / "resolved_recipe.yaml"

    @property
    def provenance(self) -> Path:
        """Commit, versions, seed, and facts about the data."""
        return self.path / "provenance.json"

    @property
    def finished(self) -> Path:
        """The number of steps, which is written last."""
        return self.path / "finished.json"

    @property
    def metrics(self) -> Path:
        """A line for each logged step."""
        return self.path / "metrics.jsonl"

    @property
    def skipped(self) -> Path:
        """A line for each query or product that could not be read."""
        return self.path / "skipped.jsonl"

    @property
    def shortened(self) -> Path:
        """A line for each part of a query or product that did not fit into the token budget."""
        return self.path / "shortened.jsonl"

    def nonfinite_batch(self, rank: int) -> Path:
        """Return the file in which a process lists the batch whose loss or gradient was not finite."""
        return self.path / f"nonfinite_batch_{rank}.json"

    def results(self, when: str, reasoning: str = "none", table: str | None = None) -> Path:
        """Return the results file of an evaluation.

        Args:
            when: "before" or "after" training.
            reasoning: how queries and products were embedded.
            table: the name of the data set, if there are several.
        """
        name = "_".join(["results", when] + [reasoning] * (reasoning != "none"))
        return self.path / (name + (f"-{table}" if table else "") + ".json")

    def all_results(self, when: str = "") -> list[Path]:
        """Return the existing results files: those from "before" or "after" training, or all of them."""
        return sorted(self.path.glob(f"results_{when}*.json"))

    # Models

    @property
    def final(self) -> Path:
        """The trained model."""
        return self.path / "final"

    @property
    def final_partial(self) -> Path:
        """The trained model during writing."""
        return self.path / (self.final.name + PARTIAL)

    @property
    def adapter(self) -> Path:
        """The adapters, if the recipe trains adapters."""
        return self.path / "adapter"

    @property
    def base(self) -> Path:
        """The Moon checkpoint that was upcycled for this run."""
        return self.path / "base"

    @property
    def small_base(self) -> Path:
        """The small base with random weights, which was upcycled into `base`."""
        return self.path / "small_base"

    @property
    def cold_start(self) -> "RunFolder":
        """The run of the cold start before GRPO."""
        return RunFolder(self.path / "cold_start")

    @property
    def cold_start_recipe(self) -> Path:
        """The recipe of the cold start before GRPO."""
        return self.path / "cold_start_recipe.yaml"

    # Completions

    @property
    def completions(self) -> Path:
        """The folder of the completions of GRPO."""
        return self.path / "completions"

    @property
    def completions_page(self) -> Path:
        """The report on the completions, an HTML page."""
        return self.path / "completions.html"

    def completions_of(self, step: int) -> Path:
        """Return the path of the table with a step's completions."""
        return self.completions / f"step-{step:06d}.parquet"

    def completion_steps(self) -> dict[int, Path]:
        """Return step → path of the table with its completions, in the order of steps."""
        tables = {}
        for path in self.completions.glob("step-*.parquet"):
            if match := _COMPLETIONS.fullmatch(path.name):
                tables[int(match[1])] = path
        return dict(sorted(tables.items()))

    # Checkpoints

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> list[Path]:
        """Return the checkpoint folders, complete or not, by step."""
        if not self.path.is_dir():
            return []
        steps = [(int(match[1]), path) for path in self.path.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
        return [path for _, path in sorted(steps) if path.is_dir()]

    def last_good_checkpoint(self) -> Path | None:
        """Return the complete checkpoint with the highest step, or None."""
        return next((path for path in reversed(self.checkpoints()) if is_complete(path)), None)

    def half_written(self) -> list[Path]:
        """Return the folders of interrupted saves."""
        broken = [path for path in self.checkpoints() if not is_complete(path)]
        return broken + [self.final_partial] * self.final_partial.exists()

    def mend(self) -> list[Path]:
        """Remove incomplete checkpoints and incomplete lines, and return the removed checkpoints."""
        broken = [path for path in self.checkpoints() if not is_complete(path)]
        for path in broken:
            shutil.rmtree(path)
        mend_lines(self.skipped)
        mend_lines(self.shortened)
        return broken

    def prune(self, limit: int | None) -> None:
        """Delete the oldest complete checkpoints beyond a limit.

        Args:
            limit: the number of checkpoints to keep. None or a number below 1: keep all.
        """
        if limit is None or limit < 1:
            return
        good = [path for path in self.checkpoints() if is_complete(path)]
        for path in good[:-limit]:
            (path / MARKER).unlink()  # an interrupted deletion must not leave a folder that looks complete
            shutil.rmtree(path)

    # The whole folder

    def stored_recipe(self) -> dict[str, Any] | None:
        """Return the keys of the stored recipe, or None if there is no run."""
        if not self.recipe.is_file():
            return None
        return yaml.safe_load(self.recipe.read_text(encoding="utf-8"))

    def steps(self) -> int:
        """Return the number of steps of a finished run."""
        return json.loads(self.finished.read_text(encoding="utf-8"))["steps"]

    def left_behind(self) -> list[str]:
        """Return the names of existing files and folders of a run, except checkpoints and results."""
        return [path.name for path in (*self._folders(), *self._files()) if path.exists()]

    def has_trained(self) -> bool:
        """Return whether the folder contains more of a run than its records and its starting model."""
        if self.checkpoints() or self.all_results():
            return True
        lines = (self.metrics, self.skipped, self.shortened, self.finished)
        done = (*lines, self.completions, self.final, self.adapter)
        if any(path.exists() for path in done):
            return True
        return self.cold_start.path.is_dir() and self.cold_start.has_trained()

    def clear(self) -> None:
        """Delete the files of a run and no others. The recipe is deleted last, so that the deletion can be repeated."""
        for path in (*self.checkpoints(), *self._folders()):
            shutil.rmtree(path, ignore_errors=True)
        for path in (*self.all_results(), *self._files()):
            path.unlink(missing_ok=True)

    def _folders(self) -> list[Path]:
        own = [self.small_base, self.base, self.cold_start.path, self.completions, self.final, self.adapter]
        return [*own, self.final_partial, self.path / (self.adapter.name + PARTIAL)]

    def _files(self) -> list[Path]:
        logs = [self.metrics, self.skipped, self.shortened]
        return [self.completions_page, *logs, self.finished, self.provenance, self.cold_start_recipe, self.recipe]


def mark_complete(folder: Path) -> None:
    """Mark a folder as complete: flush its files to disk, and write a marker with their sizes.

    Args:
        folder: a checkpoint or a finished model.
    """
    sizes: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARKER:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_atomically(folder / MARKER, json.dumps({"files": sizes}, indent=1))


def is_complete(folder: Path) -> bool:
    """Return whether the marker exists and every file in it has the listed size."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
