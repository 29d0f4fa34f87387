"""Hold what a training finds out while it goes on, beside its recipe, which does not change."""

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
from training.errors import RecipeError
from training.recipe.arguments import Recipe
from training.recipe.same_recipe import differences, differing_keys
from training.runs.exact_resumption import ResumeError
from training.runs.folder import RunFolder
from training.runs.lock import alone_in


class Run:
    """One training: its recipe, its folder, and the facts that are found on the way.

    Args:
        recipe: what to train, frozen. With `overwrite` the folder is cleared by the first `open`, and by no later one.
        is_cold_start: whether the run is a part of another.

    Relations:
        `training.train.train` takes a run from its recipe to its trained model.
    """

    def __init__(self, recipe: Recipe, is_cold_start: bool = False) -> None:
        self.recipe = recipe
        self.is_cold_start = is_cold_start
        self.folder = RunFolder(Path(str(recipe.training.output_dir)))
        self.facts: dict[str, Any] = {}
        """What was found about the data and the model, for the provenance and the results."""
        self.max_steps = recipe.training.max_steps
        """Optimizer steps; below 1 until the step rate was measured for a time budget."""
        self.cold_start_model: Path | None = None
        """The model that a finished cold start left, to begin the stage with in place of the recipe's base."""
        self._clears = recipe.training.overwrite
        self._said: set[str] = set()

    @property
    def is_first(self) -> bool:
        """Whether this is the first of the training's processes."""
        return self.recipe.training.process_index == 0

    @property
    def resolved(self) -> dict[str, Any]:
        """The recipe's keys, with the steps that a time budget came to."""
        return {**self.recipe.resolved, "max_steps": self.max_steps}

    def arguments(self, **changes: Any) -> Any:
        """Return the recipe's training arguments for a trainer, which may change them, with this run's number of steps.

        Args:
            **changes: arguments that differ from the recipe's.
        """
        arguments = copy.copy(self.recipe.training)
        arguments.max_steps = self.max_steps
        return dataclasses.replace(arguments, **changes) if changes else arguments

    def say(self, text: str) -> None:
        """Print a line in the first process, once however often the training is assembled."""
        if self.is_first and text not in self._said:
            self._said.add(text)
            print(text, flush=True)

    def say_finished(self) -> None:
        """Print where the model of a finished run is, and how to begin again."""
        again = "" if self.is_cold_start else "; --overwrite starts again"
        self.say(f"{self.folder.path}: this run is finished, its model is in {self.folder.final}{again}")

    def write_records(self, folder: Path | None = None) -> None:
        """Write the recipe as it is run, and where the run comes from.

        Args:
            folder: a checkpoint. Default: the run's own folder.
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
        """Hold the folder's lock, and clear away what a refused beginning leaves.

        Raises:
            RecipeError: another run is at work in the folder.
        """
        with alone_in(self.folder.path, self.recipe.training), self.forgotten_if_refused():
            yield

    @contextlib.contextmanager
    def forgotten_if_refused(self) -> Iterator[None]:
        """Clear away what was begun and refused before anything was trained, so that the corrected command can follow.

        Only where nothing of a run existed before, and in one process: others may still be reading.
        """
        held = bool(self.folder.left_behind()) or self.folder.has_trained()
        try:
            yield
        except Exception as error:
            refused = getattr(error, "exit_status", None) == 2
            alone = self.recipe.training.world_size == 1 and self.folder.path.is_dir()
            if refused and alone and not held and not self.folder.has_trained():
                self.folder.clear()
            raise

    def open(self) -> bool:
        """Look at what the folder holds, clear away what interrupted saves left, and return whether the run is finished.

        The recipe is written here, before anything else: whatever the folder holds was made by the recipe beside it.

        Raises:
            RecipeError: another recipe was run there (names the keys that differ), or one that is not known.
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
                f"{folder.path} holds {', '.join(left)} of a run whose recipe is missing; "
                "expected another output_dir, or --overwrite"
            )
        elif self.is_first:
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RecipeError(f"output_dir: {error}; expected a folder that can be made") from error
            self.write_records()
        if self.is_first:
            for path in folder.mend():
                print(f"{path}: removed, its save was interrupted")
        return folder.finished.is_file()

    def _continue(self, stored: dict[str, Any]) -> None:
        """Take over the steps that were measured when the run began; refuse another recipe."""
        if differing_keys(stored, self.resolved):
            raise RecipeError(
                f"{self.folder.path} holds a run of another recipe ({differences(stored, self.resolved)}); "
                "expected the same recipe to resume, another output_dir, or --overwrite"
            )
        if self.max_steps < 1:
            self.max_steps = stored["max_steps"]

    def checkpoint_to_resume(self) -> Path | None:
        """Return the last good checkpoint, or None to begin; refuse data of which other pairs would be drawn.

        Streams look at their own shards.

        Raises:
            ResumeError: names the data sets that have changed.
        """
        checkpoint = self.folder.last_good_checkpoint()
        if checkpoint is None:
            return None
        facts = json.loads(RunFolder(checkpoint).provenance.read_text(encoding="utf-8"))
        before, now = facts.get("data_digests", {}), self.facts["data_digests"]
        changed = [name for name in now if name in before and before[name] != now[name]]
        if changed:
            raise ResumeError(
                f"data: found other products, queries or answers in {', '.join(changed)} than {checkpoint} was trained on; "
                "expected the same data to resume, another output_dir, or --overwrite"
            )
        self.say(f"resuming from {checkpoint}")
        return checkpoint
