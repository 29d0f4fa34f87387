"""A job that is killed, or that finds the disk full: the same command goes on, and the folder equals an uninterrupted one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
from small_feeds import feed, feed_product

from product_data.atomic_files import PARTIAL
from product_data.folder_lock import FolderInUseError, locked
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.executors.shard_encoder import ShardTask
from retrieval.embedding.job import JobInterruptedError, embed_feed
from retrieval.vectors.shard_files import VectorFileError
from retrieval.vectors.vector_files import LOCK, VectorFolder

pytestmark = pytest.mark.usefixtures("one_thread")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def options(tiny_moon):
    return EmbeddingOptions(str(tiny_moon("qwen3_vl", trained=True)), forms=("t",), batch_size=8, rows_per_shard=16)


def rows_of(folder, form="t"):
    found = [(id_, row) for ids, rows in VectorFolder(folder).vectors(form) for id_, row in zip(ids, rows, strict=True)]
    assert len(dict(found)) == len(found), "a product has two vectors"
    return dict(found)


def embed(products, folder, options):
    return embed_feed(products, folder, options, report=str)


def kill_in_a_write(products, folder, options, pattern, after):
    """Run the job in a process, and kill it while a file is written, once `after` shards are there; return the file."""
    process = FORK.Process(target=embed, args=(products, folder, options))
    process.start()
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        assert process.is_alive(), "the job ended before it could be killed"
        if len(list(folder.glob("shards/*.parquet"))) >= after and any(folder.glob(pattern)):
            os.kill(process.pid, signal.SIGSTOP)
            if partial := list(folder.glob(pattern)):
                process.kill()
                process.join()
                return partial[0]
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.0002)
    raise AssertionError(f"no file {pattern} was seen")


def test_a_job_killed_while_it_writes_goes_on_and_equals_an_uninterrupted_one(tmp_path, options):
    products = [feed_product(tmp_path, number, pictures=0) for number in range(300)]
    embed(products, tmp_path / "whole", options)
    folder = tmp_path / "killed"
    for pattern, after in ((f"shards/*{PARTIAL}", 0), (f"shards/*{PARTIAL}", 4), (f"shards/*{PARTIAL}", 9)):
        assert kill_in_a_write(products, folder, options, pattern, after).name.endswith(f".parquet{PARTIAL}")
    kill_in_a_write(products, folder, options, f"products.parquet{PARTIAL}", 0)
    assert not VectorFolder(folder).complete
    done = embed(products, folder, options)
    assert (done.embedded, done.kept, done.failed) == (0, 300, 0)
    one, two = rows_of(tmp_path / "whole"), rows_of(folder)
    assert one.keys() == two.keys() == {product.row.product_id for product in products}
    np.testing.assert_allclose([two[id_] for id_ in one], list(one.values()), atol=1e-6)
    assert list(VectorFolder(folder).products()) == list(VectorFolder(tmp_path / "whole").products())

    changed = [
        feed_product(tmp_path, 5, title="new", pictures=0),
        *products[8:],
        feed_product(tmp_path, 900, pictures=0),
    ]
    kill_in_a_write(changed, folder, options, f"shards/*{PARTIAL}", 0)
    before = rows_of(folder)  # a reader sees the last complete state
    assert before.keys() == one.keys()
    done = embed(changed, folder, options)
    assert (done.embedded, done.kept, done.removed) == (2, 292, 7)
    after = rows_of(folder)
    assert after.keys() == {product.row.product_id for product in changed}
    assert {id_ for id_ in after.keys() & before.keys() if (after[id_] != before[id_]).any()} == {"p0005"}


def test_a_killed_job_loses_at_most_the_shard_in_work(tmp_path, options):
    products = [feed_product(tmp_path, number, pictures=0) for number in range(100)]
    kill_in_a_write(products, tmp_path / "v", options, f"shards/*{PARTIAL}", 3)
    written = sum(pyarrow.parquet.read_metadata(path).num_rows for path in (tmp_path / "v").glob("shards/*.parquet"))
    done = embed(products, tmp_path / "v", options)
    assert written >= 3 * 16
    assert (done.embedded, done.kept) == (100 - written, written)


def test_only_one_job_uses_a_folder(tmp_path, options):
    products = feed(tmp_path, range(3))
    with locked(tmp_path / "v", LOCK), pytest.raises(FolderInUseError, match=f"in use by process {os.getpid()}"):
        embed(products, tmp_path / "v", options)
    assert embed(products, tmp_path / "v", options).embedded == 3
    assert not (tmp_path / "v" / LOCK).exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    "writer", ["retrieval.vectors.shard_files.pyarrow.parquet.write_table", "retrieval.vectors.product_facts._table"]
)
def test_a_full_disk_stops_the_job_in_a_sentence_and_the_same_command_goes_on(
    tmp_path, options, monkeypatch, number, writer
):
    products = feed(tmp_path, range(60))
    calls = []

    def full(*given, **named):
        calls.append(given)
        if len(calls) > 1 or writer.endswith("._table"):
            raise OSError(number, os.strerror(number))
        return write_table(*given, **named)

    write_table = pyarrow.parquet.write_table
    with monkeypatch.context() as patch:
        patch.setattr(writer, full)
        with pytest.raises(
            JobInterruptedError, match="the disk is full.*run the same command again, which goes on"
        ) as stop:
            embed(products, tmp_path / "v", options)
    assert stop.value.exit_status == 3
    assert not list((tmp_path / "v").rglob(f"*{PARTIAL}"))
    done = embed(products, tmp_path / "v", options)
    assert done.embedded < 60
    assert done.embedded + done.kept == 60
    assert len(rows_of(tmp_path / "v")) == 60


def _with_small_files(products, folder, options, found):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    try:
        embed(products, folder, options)
    except JobInterruptedError as error:
        found.put(str(error))
    else:
        found.put("finished")


def test_a_real_limit_on_file_sizes_is_reported_as_a_full_disk(tmp_path, options):
    products, found = feed(tmp_path, range(60)), FORK.Queue()
    process = FORK.Process(target=_with_small_files, args=(products, tmp_path / "v", options, found))
    process.start()
    assert "a limit on file sizes is reached" in found.get(timeout=120)
    process.join()
    done = embed(products, tmp_path / "v", options)
    assert (done.embedded, done.kept) == (0, 60)  # the shards were small enough, the file of facts was not


def test_too_little_room_for_the_vectors_stops_the_job_after_the_sample(tmp_path, options, monkeypatch):
    products = feed(tmp_path, range(60))
    usage = type("Usage", (), {"total": 10**9, "free": 100})
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.embedding.job.shutil.disk_usage", lambda path: usage)
        with pytest.raises(
            JobInterruptedError, match=r"found 1e-07 GB free; expected .* The 16 products that are done are kept"
        ):
            embed(products, tmp_path / "v", options)
    assert embed(products, tmp_path / "v", options).kept == 16


def test_a_torn_shard_stops_the_job_by_name_and_its_products_are_embedded_again_once_it_is_removed(tmp_path, options):
    products = feed(tmp_path, range(40))
    embed(products, tmp_path / "v", options)
    shard = VectorFolder(tmp_path / "v").shards()[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(
        VectorFileError, match=rf"{shard.name}: found a file that is not complete parquet.*Remove it; moon3 embed"
    ):
        embed(products, tmp_path / "v", options)
    rows = VectorFolder(tmp_path / "v").state.shards[shard.name][0]
    shard.unlink()
    done = embed(products, tmp_path / "v", options)
    assert (done.embedded, done.kept) == (rows, 40 - rows)
    assert len(rows_of(tmp_path / "v")) == 40


def test_a_lost_file_of_facts_is_written_again_without_embedding(tmp_path, options):
    products = feed(tmp_path, range(10))
    embed(products, tmp_path / "v", options)
    (tmp_path / "v" / "products.parquet").unlink()
    done = embed(products[:-1], tmp_path / "v", options)
    assert (done.embedded, done.kept, done.removed) == (0, 9, 1)
    assert len(list(VectorFolder(tmp_path / "v").products())) == 9


def test_a_task_comes_back_from_its_file(tmp_path):
    task = ShardTask(3, [product.row for product in feed(tmp_path, range(2))], [{"mm": "0"}, {"t": "1"}])
    task.write(tmp_path / "000003.task")
    assert ShardTask.read(tmp_path / "000003.task") == replace(task)
