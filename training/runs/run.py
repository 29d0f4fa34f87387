"""Hold the state of a training run: its recipe, which does not change, and the facts that it finds."""

import contextlib
import copy
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from evaluation.provenance import provenance
from product_data.atomic_files import write_atomically
from training.batches.variants import VariantDraws
from training.errors import RecipeError
from training.recipe.arguments import Recipe
from training.recipe.same_recipe import differences, differing_keys
from training.runs.exact_resumption import ResumeError
from training.runs.folder import RunFolder
from training.runs.lock import alone_in


class Run:
    """A training run: its recipe, its folder, and the facts that it finds.

    Args:
        recipe: the recipe. With `overwrite`, the first call of `open` clears the folder.
        is_cold_start: whether the run is the cold start of another run.

    Relations:
        `training.train.train` trains the model of a run.
    """

    def __init__(self, recipe: Recipe, is_cold_start: bool = False) -> None:
        self.recipe = recipe
        self.is_cold_start = is_cold_start
        self.folder = RunFolder(Path(str(recipe.training.output_dir)))
        self.facts: dict[str, Any] = {}
        """Facts about the data and the model, for the provenance and the results."""
        self.variants: VariantDraws | None = None
        """Variants of the training's products, from the recipe's `co_augmentation`."""
        self.max_steps = recipe.training.max_steps
        """The number of optimizer steps; below 1 until the step rate is measured for a time budget."""
        self.cold_start_model: Path | None = None
        """The model of a finished cold start, from which GRPO starts instead of the recipe's base."""
        self._clears = recipe.training.overwrite
        self._printed: set[str] = set()

    @property
    def is_first(self) -> bool:
        """Return whether this is the first process of the training."""
        return self.recipe.training.process_index == 0

    @property
    def resolved(self) -> dict[str, Any]:
        """Return the recipe's keys, with the measured number of steps."""
        return {**self.recipe.resolved, "max_steps": self.max_steps}

    def arguments(self, **changes: Any) -> Any:
        """Return a copy of the recipe's training arguments for a trainer, with this run's number of steps.

        Args:
            **changes: arguments that replace those of the recipe.
        """
        arguments = copy.copy(self.recipe.training)
        arguments.max_steps = self.max_steps
        return dataclasses.replace(arguments, **changes) if changes else arguments

    def say(self, text: str) -> None:
        """Print a line in the first process, once in a run."""
        if self.is_first and text not in self._printed:
            self._printed.add(text)
            print(text, flush=True)

    def say_finished(self) -> None:
        """Print the folder of a finished run's model, and how to start again."""
        again = "" if self.is_cold_start else "; --overwrite starts again"
        self.say(f"{self.folder.path}: this run is finished, its model is in {self.folder.final}{again}")

    def write_records(self, folder: Path | None = None) -> None:
        """Write the resolved recipe and the provenance of the run.

        Args:
            folder: a checkpoint. Default: the run's folder.
        """
        records, training = RunFolder(folder or self.folder.path), self.recipe.training
        facts = provenance(
            training.seed,
            recipe=self.recipe.path.name,
            bf16=bool(training.bf16),
            processes=training.world_size,
            **self.facts,
        )
        facts["versions"] |= {package: importlib.metadata.version(package) for package in ("accelerate", "peft", "trl")}
        write_atomically(records.provenance, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        write_atomically(records.recipe, yaml.safe_dump(self.resolved, sort_keys=False, allow_unicode=True))

    # Opening

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the folder in a context. If the run fails before training, its files are removed.

        Raises:
            RecipeError: another run uses the folder.
        """
        with alone_in(self.folder.path, self.recipe.training), self.removed_on_failure():
            yield

    @contextlib.contextmanager
    def removed_on_failure(self) -> Iterator[None]:
        """Remove the files of a run that fails in a context before training, so that a corrected command can start.

        It does nothing if the folder had files of a run before, or with several processes, which may still be reading.
        """
        existed = bool(self.folder.left_behind()) or self.folder.has_trained()
        try:
            yield
        except Exception as error:
            refused = getattr(error, "exit_status", None) == 2
            alone = self.recipe.training.world_size == 1 and self.folder.path.is_dir()
            if refused and alone and not existed and not self.folder.has_trained():
                self.folder.clear()
            raise

    def open(self) -> bool:
        """Check the folder, remove the remains of interrupted saves, and return whether the run is finished.

        The recipe is written first, so all files of the folder belong to the recipe in it.

        Raises:
            RecipeError: the folder has a run with another recipe (the message lists the keys that differ) or without a
                recipe.
        """
        folder = self.folder
        if self._clears and self.is_first:
            folder.clear()
        self._clears = False
        stored = folder.stored_recipe()
        if stored is not None:
            self._continue(stored)
        elif left := folder.left_behind():
            raise RecipeError(
                f"{folder.path} holds {', '.join(left)} of a run without a recipe; "
                "expected another output_dir, or --overwrite"
            )
        elif self.is_first:
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RecipeError(f"output_dir: found {error}; expected a folder that can be created") from error
            self.write_records()
        if self.is_first:
            for path in folder.mend():
                print(f"{path}: removed, because its save was interrupted")
        return folder.finished.is_file()

    def _continue(self, stored: dict[str, Any]) -> None:
        """Restore the number of steps that was measured at the start; raise RecipeError for another recipe."""
        if differing_keys(stored, self.resolved):
            raise RecipeError(
                f"{self.folder.path} holds a run of another recipe ({differences(stored, self.resolved)}); "
                "expected the same recipe to resume, another output_dir, or --overwrite"
            )
        if self.max_steps < 1:
            self.max_steps = stored["max_steps"]

    def checkpoint_to_resume(self) -> Path | None:
        """Return the last complete checkpoint, or None to start from the first step.

        Streams check their shards themselves.

        Raises:
            ResumeError: data sets have changed, so other pairs would be drawn; the message lists them.
        """
        checkpoint = self.folder.last_good_checkpoint()
        if checkpoint is None:
            return None
        facts = json.loads(RunFolder(checkpoint).provenance.read_text(encoding="utf-8"))
        before, now = facts.get("data_digests", {}), self.facts["data_digests"]
        changed = [name for name in now if name in before and before[name] != now[name]]
        if changed:
            raise ResumeError(
                f"data: found other products, queries or answers in {', '.join(changed)} than those of {checkpoint}; "
                "expected the same data to resume, another output_dir, or --overwrite"
            )
        self.say(f"resuming from {checkpoint}")
        return checkpoint
