"""Ray on this machine writes the same vectors as the plain executor, also when one of its processes is killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_feeds import feed

from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.model_kinds import CheckpointError
from retrieval.vectors.vector_files import VectorFolder

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one_machine():
    """Ray with two processors, for the tests of this file."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def rows_of(folder):
    return {id_: row for ids, rows in VectorFolder(folder).vectors("mm") for id_, row in zip(ids, rows, strict=True)}


def actors():
    """Return the ids of the processes of Ray that hold a model."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::") and b"ShardActor" in command:
                found.append(int(folder.name))
    return found


def kill_one_after_a_shard(shards, killed):
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and not killed:
        processes = actors()
        if processes and shards.is_dir() and any(path.suffix == ".parquet" for path in shards.iterdir()):
            os.kill(processes[0], signal.SIGKILL)
            killed.append(processes[0])
        time.sleep(0.05)


def test_ray_gives_the_same_files_as_the_plain_executor_also_after_a_process_was_killed(
    tmp_path, tiny_moon, one_machine
):
    products = feed(tmp_path, range(96))
    (tmp_path / "7-0.png").write_bytes(b"no picture")
    options = EmbeddingOptions(str(tiny_moon("qwen3_vl", trained=True)), batch_size=4, rows_per_shard=8)
    embed_feed(products, tmp_path / "local", options, report=lambda said: None)
    killed = []
    killer = threading.Thread(target=kill_one_after_a_shard, args=(tmp_path / "ray" / "shards", killed))
    killer.start()
    done = embed_feed(products, tmp_path / "ray", replace(options, executor="ray", workers=1), report=lambda said: None)
    killer.join()
    assert killed
    assert (done.embedded, done.failed) == (95, 1)
    one, two = rows_of(tmp_path / "local"), rows_of(tmp_path / "ray")
    assert one.keys() == two.keys()
    np.testing.assert_allclose([one[id_] for id_ in one], [two[id_] for id_ in one], atol=1e-6)
    local, by_ray = VectorFolder(tmp_path / "local"), VectorFolder(tmp_path / "ray")
    assert list(local.errors()) == list(by_ray.errors())
    assert list(local.products()) == list(by_ray.products())
    assert {name: rows for name, (rows, _) in local.state.shards.items()} == {
        name: rows for name, (rows, _) in by_ray.state.shards.items()
    }


def test_an_error_of_a_process_is_the_error_of_the_job(tmp_path, one_machine, tiny_base):
    options = EmbeddingOptions(str(tiny_base("qwen3_vl")), executor="ray")
    with pytest.raises(CheckpointError, match="expected a Moon model"):
        embed_feed(feed(tmp_path, range(2)), tmp_path / "v", options, report=lambda said: None)
