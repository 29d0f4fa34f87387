"""Lock a run's folder against other runs: see `product_data.folder_lock`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed

from product_data.folder_lock import FolderInUseError, release, take
from training.errors import RecipeError

LOCK_FILE = "run.lock"


@contextlib.contextmanager
def alone_in(folder: Path, training: Any = None) -> Iterator[None]:
    """Hold the lock of a folder in the first process of a run, for the duration of a context.

    Args:
        folder: the run's folder, which is created if necessary.
        training: the recipe's TrainingArguments, for the number of processes. None: a single process.

    Raises:
        RecipeError: raised in every process: another run uses the folder or may use it, or the folder cannot be
            written.
    """
    problem: Exception | None = None
    first = training is None or training.process_index == 0
    is_new = not folder.exists()
    if first:
        try:
            take(folder, LOCK_FILE)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            problem = RecipeError(f"output_dir: found {error}; expected a folder that can be created and written")
        except FolderInUseError as error:
            problem = RecipeError(str(error))
        except OSError as error:
            problem = error
    reasons: list[Any] = [None if problem is None else str(problem)]
    if training is not None and training.world_size > 1:
        torch.distributed.broadcast_object_list(reasons, src=0, device=training.device)
    if problem is not None:
        raise problem
    if reasons[0] is not None:
        raise RecipeError(f"process {training.process_index} stops with the first: {reasons[0]}")
    try:
        yield
    finally:
        if first:
            release(folder, LOCK_FILE)
            if is_new:  # remove the empty folder of a run that did not start
                with contextlib.suppress(OSError):  # the folder is not empty
                    folder.rmdir()
