"""The walk through a feed holds ids and hashes of products in memory, and nothing else of them."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np

from product_data.feeds.feed_product import FeedProduct
from product_data.rows import ProductRow
from retrieval.embedding.executors.shard_encoder import ShardTask
from retrieval.embedding.finishing import finish
from retrieval.embedding.survey import Surveyor
from retrieval.vectors.shard_files import ShardRows, write_shard
from retrieval.vectors.vector_files import Embedding, open_or_create

COUNT, SHARD, WORDS = 3_000, 100, "a description of many words " * 200
HELD_BYTES = 400
"""Of each product, after the walk."""
PEAK_BYTES = 1_000
"""Of each product, at the most, with a folder to compare; a record of this feed takes 6,000."""


def products():
    for number in range(COUNT):
        yield FeedProduct(ProductRow(f"sku-{number:010}", f"shoe {number}", WORDS + str(number)))


def traced_walk(folder):
    tracemalloc.start()
    survey = Surveyor(folder, "f", ("mm",), SHARD, 64).walk(products())
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{held / COUNT:.0f} bytes for each product, {peak / COUNT:.0f} at the most")
    return survey, held / COUNT, peak / COUNT


def test_memory_holds_ids_and_hashes_and_not_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.vectors.product_facts._ROWS_IN_MEMORY", 10)
    folder = open_or_create(tmp_path / "v", Embedding("m", "f", {}, ("mm",), "float32"))
    folder.write_job(folder.embedding)
    survey, held, _ = traced_walk(folder)
    assert (survey.products, survey.embedded, survey.rows) == (COUNT, COUNT, COUNT)
    assert len(survey.tasks) == 1 + -(-(COUNT - 64) // SHARD)
    assert held < HELD_BYTES
    for path in survey.tasks:
        task = ShardTask.read(path)
        ids, hashes = [row.product_id for row in task.products], [forms["mm"] for forms in task.hashes]
        vectors = np.eye(1, 8, dtype=np.float32).repeat(len(ids), axis=0)
        rows = ShardRows(ids, ["mm"] * len(ids), hashes, "f", vectors, [None] * len(ids))
        write_shard(folder.shard(task.number), rows.table("float32"))
    finish(folder, survey, replace(folder.embedding, dimension=8), "f", SHARD)
    survey, held, peak = traced_walk(folder)
    assert (survey.products, survey.kept, survey.tasks) == (COUNT, COUNT, [])
    assert held < HELD_BYTES
    assert peak < PEAK_BYTES
