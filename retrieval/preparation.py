"""Prepare batches while the model computes: pictures to pixels, text to tokens, in worker processes or in a thread.

Worker processes are those of torch's `DataLoader`, which watches them, ends them with the main process, and passes tensors
through shared memory. They are forked from a server that has imported the libraries ("forkserver"), or spawned where the
system has no such server; they never inherit the threads of the main process.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from processing_moon.picture_cache_moon import PictureCache
from product_data.errors import OptionError

_AHEAD = 2
"""Batches that each worker prepares ahead."""
_DEAD_WORKER = "DataLoader worker"
"""How the message of torch's error begins that a worker died; it names the process id."""


_PASSED_ON = (ValueError, TypeError, OSError, RuntimeError, MemoryError)
"""Errors that the main process raises as they are; torch adds the worker's traceback to any other."""


class WorkerError(RuntimeError):
    """Raised when a worker process died, or could not pass on a batch; says which one and what to change."""

    exit_status = 1


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class BatchTask:
    """Records that a processor turns into one batch.

    Args:
        call (`int`): number of the encode call; shared pictures are kept within one call.
        records: product or query records.
        options: arguments of the processor's call besides the records; "side" is the name of the records' argument.
    """

    call: int
    records: Sequence[dict[str, Any]]
    options: dict[str, Any]


class BatchMaker(Dataset):
    """Turn tasks into batches with a processor; each process has its own copy.

    Args:
        processor: as `retrieval.encode.encode` takes it.
        cache_bytes (`int`): bytes of shared pictures to keep, see `PictureCache`.
    """

    def __init__(self, processor: Any, cache_bytes: int) -> None:
        self.processor, self.cache, self.call = processor, PictureCache(cache_bytes), 0

    def make(self, task: BatchTask) -> Any:
        """Return the batch of a task; records that cannot be read are in its `skipped`."""
        if task.call != self.call:
            self.cache.clear()
            self.call = task.call
        options = dict(task.options)
        side = options.pop("side")
        if hasattr(self.processor, "reduced_decoding"):
            options["picture_cache"] = self.cache
        return self.processor(**{side: list(task.records)}, **options, on_error="skip", return_tensors="pt")

    def __getitem__(self, task: bytes) -> Any:
        """Return the batch of a pickled task with its tensors in shared memory, or the error that prevented it."""
        try:
            batch = self.make(pickle.loads(task))
            for value in batch.values():
                value.share_memory_()
            return batch
        except _PASSED_ON as error:
            return _as_message(error)


class _Tasks:
    """The pickled tasks of the present call, in order; the loader asks for them again in each call."""

    def __init__(self) -> None:
        self.tasks: Sequence[BatchTask] = ()

    def __iter__(self) -> Iterator[bytes]:
        # Pickled here: an error in the queue's own thread would be printed, and the main process would wait forever.
        return (pickle.dumps(task) for task in self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


class BatchPreparation:
    """Prepare the batches of tasks, in order, ahead of the caller.

    At most `2 · workers + 1` prepared batches are in memory (2 without workers), and in each process the pictures of
    `cache_bytes` and those of one record.

    Args:
        processor: as `retrieval.encode.encode` takes it; with workers it must survive pickling.
        workers (`int`): number of worker processes, which start with the first batch and stay until `close`. 0: a thread
            of this process prepares one batch ahead.
        cache_bytes (`int`): bytes of shared pictures that each process keeps.

    Raises:
        OptionError: a negative number of workers.
    """

    def __init__(self, processor: Any, workers: int, cache_bytes: int) -> None:
        if workers < 0:
            raise OptionError(f"workers={workers}; expected 0 or more")
        self.workers, self._maker, self._tasks = workers, BatchMaker(processor, cache_bytes), _Tasks()
        self._loader: DataLoader | None = None

    def batches(self, tasks: Sequence[BatchTask]) -> Iterator[Any]:
        """Return an iterator over the batches of tasks, in their order.

        Raises:
            WorkerError: a worker process died, or shared memory is full.
            Exception: any error of the processor that is not about a single record.
        """
        return self._from_workers(tasks) if self.workers else self._from_thread(tasks)

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        self._loader = None  # the last reference: torch then ends the processes

    def _from_thread(self, tasks: Sequence[BatchTask]) -> Iterator[Any]:
        with ThreadPoolExecutor(max_workers=1) as pool:
            upcoming: Future | None = pool.submit(self._maker.make, tasks[0]) if tasks else None
            for number in range(len(tasks)):
                batch = upcoming.result() if upcoming is not None else None
                upcoming = pool.submit(self._maker.make, tasks[number + 1]) if number + 1 < len(tasks) else None
                yield batch

    def _from_workers(self, tasks: Sequence[BatchTask]) -> Iterator[Any]:
        if not tasks:
            return
        self._tasks.tasks = tasks
        finished = False
        try:
            for batch in self._workers():
                if isinstance(batch, Exception):
                    raise batch
                yield batch
            finished = True
        except RuntimeError as error:
            if not str(error).startswith(_DEAD_WORKER):
                raise
            advice = "a process that was killed has often used up the memory: use fewer workers, smaller batches or workers=0"
            # Without the traceback, whose frames would keep the other workers alive.
            cause = error.with_traceback(None)
            raise WorkerError(f"a process that prepares batches ended: {error}; {advice}") from cause
        finally:
            if not finished:  # batches of this call are still in the queues
                self.close()

    def _workers(self) -> DataLoader:
        if self._loader is None:
            methods = multiprocessing.get_all_start_methods()
            context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
            if "forkserver" in methods:
                context.set_forkserver_preload([__name__])
            self._loader = DataLoader(
                self._maker,
                batch_size=None,
                sampler=self._tasks,
                num_workers=self.workers,
                prefetch_factor=_AHEAD,
                persistent_workers=True,
                multiprocessing_context=context,
                collate_fn=_unchanged,
                worker_init_fn=_quiet_tokenizer,
                generator=torch.Generator(),  # the global one stays as it is
            )
        return self._loader


def _unchanged(batch: Any) -> Any:
    return batch


def _quiet_tokenizer(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism


def _as_message(error: Exception) -> Exception:
    """Return an error that another process can raise."""
    if isinstance(error, RuntimeError) and "shared memory" in str(error):
        return WorkerError(
            f"{error}; expected room for the pixels of a batch: use smaller batches, or a larger /dev/shm"
        )
    try:
        pickle.loads(pickle.dumps(error))
    except (pickle.PickleError, TypeError, AttributeError):  # its arguments are not those of its class
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
