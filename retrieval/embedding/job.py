"""Embed the products of a feed into a folder of vectors; the same command again embeds only what is new or changed.

    moon3 embed FEED --model M --output VECTORS

A product is embedded again if what the model reads of it has changed (texts, category, attributes, pictures, core box), if the
model or a setting that vectors depend on has changed, or if its last attempt ended in an error. Other facts, such as the price,
are written without embedding; vectors of products that left the feed are removed. A job that was killed goes on with the same
command and loses at most the shards in work.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from product_data.feeds.feed_product import FeedProduct
from product_data.folder_lock import locked
from product_data.full_disk import is_full_disk
from retrieval.embedding.embedding_options import EXECUTORS, EmbeddingOptions
from retrieval.embedding.executors.shard_encoder import EncodedShard
from retrieval.embedding.finishing import finish
from retrieval.embedding.survey import Survey, Surveyor
from retrieval.model_kinds import named_kind
from retrieval.stores.interface import StoreError
from retrieval.vectors.fingerprint import model_fingerprint, vector_fingerprint
from retrieval.vectors.shard_files import write_shard
from retrieval.vectors.vector_files import LOCK, Embedding, State, VectorFolder, open_or_create

SAMPLE_BATCHES = 2
"""Batches of the model in the first shard, from which the time is estimated."""


class EmbeddingJobError(ValueError):
    """A job that is refused before any vector is made or removed."""

    exit_status = 2


class JobInterruptedError(RuntimeError):
    """A job that stopped on a full disk; the same command goes on."""

    exit_status = 3


@dataclass(frozen=True)
class JobReport:
    """What a job did.

    Args:
        embedded, kept, removed, updated, failed (`int`): products that were embedded, whose vectors were kept, that left the
            feed, whose facts changed without embedding, and that have an error (part of neither embedded nor kept).
        seconds (`float`): of the whole job.
        state: the folder's new state.
        synced (`str`): what was done to the folder's store; "" if it has none.
    """

    embedded: int
    kept: int
    removed: int
    updated: int
    failed: int
    seconds: float
    state: State
    synced: str = ""

    def __str__(self) -> str:
        """Return a sentence."""
        facts = f" ({self.updated:,} with new facts)" if self.updated else ""
        return (
            f"embedded {self.embedded:,}, kept {self.kept:,}{facts}, removed {self.removed:,}, failed {self.failed:,} "
            f"in {duration(self.seconds)}" + (f"; {self.synced}" if self.synced else "")
        )


def embed_feed(
    products: Iterable[FeedProduct],
    output: str | Path,
    options: EmbeddingOptions,
    *,
    report: Callable[[str], Any] = print,
) -> JobReport:
    """Bring a folder of vectors up to date with a feed.

    Args:
        products: the products of the feed, which are read once; ids are distinct.
        output: the folder; made if necessary.
        options: options of the job.
        report: called with each sentence on what will be done. Default: print.

    Raises:
        CheckpointError: a model that cannot be used, or vectors that are not finite.
        EmbeddingJobError: a feed without products, or with less than half of the products of the last complete state.
        FolderInUseError: another job uses the folder.
        JobInterruptedError: the disk is full.
        TableError: an id that occurs twice.
        VectorFileError: a folder with other contents, or a file of it that cannot be read.
    """
    begin = time.monotonic()
    output = Path(output)
    for module in options.imports:
        import_module(module)
    embedding = Embedding(
        model_place(options.model),
        model_fingerprint(options.model),
        options.vector_settings(),
        options.forms,
        options.dtype,
    )
    with full_disk_reported(output), locked(output, LOCK):
        folder = open_or_create(output, embedding)
        folder.remove_leftovers()
        fingerprint = vector_fingerprint(embedding.fingerprint, embedding.settings)
        report_changes(folder, embedding, report)
        sample = SAMPLE_BATCHES * options.batch_size
        survey = Surveyor(folder, fingerprint, options.forms, options.rows_per_shard, sample).walk(products)
        refuse_removal(folder, survey, options.allow_removal)
        report(
            f"{survey.products:,} products: {survey.embedded:,} to embed ({survey.rows:,} vectors, {survey.pictures:,} "
            f"pictures), {survey.kept:,} to keep, {survey.removed:,} to remove"
        )
        embedding = replace(embedding, dimension=folder.dimension)
        make_vectors(folder, survey, embedding, options, report)
        state = finish(folder, survey, embedding, fingerprint, options.rows_per_shard)
        synced = sync_store(folder)
    embedded, seconds = survey.embedded - state.errors, time.monotonic() - begin
    return JobReport(embedded, survey.kept, survey.removed, survey.updated, state.errors, seconds, state, synced)


def model_place(model: str) -> str:
    """Return a model's name as a folder of vectors keeps it: that of a folder as an absolute path, for any working folder."""
    kind, place = named_kind(model) or ("", model)
    if not place or not Path(place).is_dir():
        return model
    absolute = str(Path(place).resolve())
    return f"{kind}={absolute}" if kind else absolute


def report_changes(folder: VectorFolder, embedding: Embedding, report: Callable[[str], Any]) -> None:
    """Say that the folder's vectors are made again, if the model or the settings have changed."""
    if folder.state is None:
        return
    old = folder.embedding
    changed = {name: (old.settings.get(name), value) for name, value in embedding.settings.items()}
    what = [f"{name} {before} → {now}" for name, (before, now) in changed.items() if before != now]
    if old.fingerprint != embedding.fingerprint:
        what.insert(
            0, f"the model {old.model} ({old.fingerprint[:8]}) → {embedding.model} ({embedding.fingerprint[:8]})"
        )
    if what:
        report(f"{folder.path}: all products are embedded again, because this has changed: {'; '.join(what)}")


def refuse_removal(folder: VectorFolder, survey: Survey, allowed: bool) -> None:
    """Refuse to go on without products, or without most of those that the folder has.

    Raises:
        EmbeddingJobError: the feed has no products, or over half of the last complete state's products are not in it, and
            this is not allowed.
    """
    before = folder.state.products if folder.state else 0
    if allowed or (survey.products and survey.removed * 2 <= before):
        return
    folder.remove_leftovers()
    if not before:
        raise EmbeddingJobError("the feed: found no products; expected at least one")
    raise EmbeddingJobError(
        f"the feed: found {survey.products:,} products, and {survey.removed:,} of the {before:,} in {folder.path} are not among "
        "them; expected over half of them. Nothing was removed: check the feed, or add --allow-removal"
    )


def make_vectors(
    folder: VectorFolder,
    survey: Survey,
    embedding: Embedding,
    options: EmbeddingOptions,
    report: Callable[[str], Any],
) -> None:
    """Make and write the vectors of all tasks.

    Raises:
        JobInterruptedError: the disk has less room than the vectors need.
    """
    folder.write_job(embedding)
    if not survey.tasks:
        return
    executor = import_module(f"retrieval.embedding.executors.{EXECUTORS[options.executor]}")
    fingerprint = vector_fingerprint(embedding.fingerprint, embedding.settings)
    is_first = True
    with tqdm(total=survey.embedded, desc="embed products", unit=" products", delay=3.0) as bar:
        for shard in executor.run(survey.tasks, options, fingerprint):
            write_shard(folder.shard(shard.number), shard.rows.table(options.dtype))
            (folder.work_folder / f"{shard.number:06}.task").unlink(missing_ok=True)
            done = len(set(shard.rows.product_ids))
            if is_first:
                folder.write_job(replace(embedding, dimension=shard.rows.vectors_ND.shape[1]))
                report_estimate(folder, survey, shard, done, options, report)
            is_first = False
            bar.update(done)


def report_estimate(
    folder: VectorFolder,
    survey: Survey,
    shard: EncodedShard,
    done: int,
    options: EmbeddingOptions,
    report: Callable[[str], Any],
) -> None:
    """Estimate time and space from the first shard, whose work is kept.

    Raises:
        JobInterruptedError: the disk has less room than that.
    """
    left, rate = survey.embedded - done, done / max(shard.seconds, 1e-9)
    if not left:
        return
    size = folder.shard(shard.number).stat().st_size / done * left
    time_left = duration(left / rate / options.models())
    report(
        f"{done:,} products took {shard.seconds:.1f} s: about {time_left} for the other {left:,}, and {size / 1e9:.2g} GB for "
        "their vectors"
    )
    usage = shutil.disk_usage(folder.path)
    if usage.total and usage.free < size:
        raise JobInterruptedError(
            f"{folder.path}: found {usage.free / 1e9:.2g} GB free; expected {size / 1e9:.2g} GB for the vectors. The "
            f"{done:,} products that are done are kept: free some space and run the same command again"
        )


def sync_store(folder: VectorFolder) -> str:
    """Bring the folder's store up to date, if it has one, and return a sentence on it; the vectors are complete in any case."""
    if not folder.store_folder.is_dir():
        return ""
    from retrieval.stores.opening import create_store, sync, width_of_store  # needs moon3[retrieval]

    try:
        width = width_of_store(folder.store_folder, folder)
        store = create_store(folder.store_folder, width, folder.fingerprint)
        try:
            return f"its store: {sync(store, folder)}"
        finally:
            store.close()
    except StoreError as error:
        return f"its store is NOT up to date: {error}"


@contextlib.contextmanager
def full_disk_reported(output: Path) -> Iterator[None]:
    """Raise `JobInterruptedError` for an error of a full disk, a quota or a limit on file sizes."""
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise JobInterruptedError(
            f"{output}: the disk is full, or a quota or a limit on file sizes is reached ({error}). Complete shards are kept: "
            "free some space and run the same command again, which goes on"
        ) from error


def duration(seconds: float) -> str:
    """Return a duration in words, such as "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
