"""Make a folder's shards a complete state: choose the rows that belong to it, merge small shards, write the facts.

A shard whose rows all belong to the state keeps its file. Shards that lose rows, and small ones, are merged into new ones. The
old files are removed after the new state is written, so that a job which is killed here loses nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
from tqdm import tqdm

from retrieval.embedding.survey import Hashes, Survey, key_rows
from retrieval.stores.interface import StoredProduct
from retrieval.vectors.shard_files import read_shard, shard_dimension, write_shard
from retrieval.vectors.vector_files import Embedding, State, VectorFolder, shard_number

Key = tuple[str, str]
"""(form, product id)"""


def finish(folder: VectorFolder, survey: Survey, embedding: Embedding, fingerprint: str, rows_per_shard: int) -> State:
    """Write the complete state of a job whose shards are all written, and return it.

    Args:
        folder: the folder of vectors.
        survey: what the job had to do; its `wanted` is used up.
        embedding: what made the vectors; its dimension is that of the shards.
        fingerprint (`str`): of model and settings.
        rows_per_shard (`int`): vectors per shard.

    Raises:
        VectorFileError: a shard that cannot be read.
        RuntimeError: a vector is missing, a defect of an executor.
    """
    counts = {form: len(ids) for form, ids in survey.wanted.items()}
    chosen, errors = choose_rows(folder, survey.wanted, fingerprint)
    for form, _ in errors:
        counts[form] -= 1
    shards = merge_shards(folder, chosen, rows_per_shard)
    for path in list(shards)[:1]:
        embedding = replace(embedding, dimension=shard_dimension(path))
    failed = {product_id: "" for _, product_id in errors}
    for form, product_id in sorted(errors):
        failed[product_id] += f"{form} {errors[form, product_id]} "

    def completed(product: StoredProduct) -> StoredProduct:
        if product.product_id not in failed:
            return product
        of_errors = hashlib.sha256(failed[product.product_id].encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return replace(product, digest=f"{product.digest}-{of_errors}")

    products = survey.facts.write(folder.products_file, completed)
    next_shard = max([*map(shard_number, shards), *map(shard_number, chosen)], default=-1) + 1
    sizes = {path.name: (rows, path.stat().st_size) for path, rows in shards.items()}
    size = folder.products_file.stat().st_size
    state = State(embedding, sizes, next_shard, products, size, counts, len(failed))
    folder.write_state(state)
    folder.remove_leftovers()
    folder.pictures.keep_only(survey.shown)
    return state


def choose_rows(
    folder: VectorFolder, wanted: Hashes, fingerprint: str
) -> tuple[dict[Path, np.ndarray], dict[Key, str]]:
    """Choose for each wanted key one row: its oldest vector, or else its error, the older one of two with the same reason.

    Args:
        folder: the folder of vectors.
        wanted: keys and hashes of their contents; it is used up.
        fingerprint (`str`): of model and settings.

    Returns: for each shard, which of its rows are chosen, (N,) bool; and the reasons of the keys with errors.
    """
    chosen: dict[Path, np.ndarray] = {}
    failed: dict[Key, tuple[str, Path, int]] = {}
    for path, rows in key_rows(folder):
        chosen[path] = np.zeros(len(rows), bool)
        for index, (product_id, form, hash_, own, error) in enumerate(rows):
            ids = wanted.get(form, {})
            if own != fingerprint or ids.get(product_id) != bytes.fromhex(hash_):
                continue
            key = (form, product_id)
            if error is None:
                chosen[path][index] = True
                ids.pop(product_id)
                failed.pop(key, None)
            elif key not in failed or failed[key][0] != error:
                failed[key] = (error, path, index)
    for (form, product_id), (_, path, index) in failed.items():
        chosen[path][index] = True
        wanted[form].pop(product_id)
    if lost := [(form, product_id) for form, ids in wanted.items() for product_id in ids]:
        raise RuntimeError(f"{folder.path}: {len(lost)} vectors were not made; first: {lost[0]}")
    return chosen, {key: reason for key, (reason, _, _) in failed.items()}


def merge_shards(folder: VectorFolder, chosen: dict[Path, np.ndarray], rows_per_shard: int) -> dict[Path, int]:
    """Write the chosen rows of shards that lose rows, and of small ones, into new shards.

    Returns: path → number of rows, of all shards of the state; the replaced ones are still on the disk.
    """
    kept = {path: len(rows) for path, rows in chosen.items() if rows.all() and len(rows) > rows_per_shard // 2}
    merged = [path for path, rows in chosen.items() if rows.any() and path not in kept]
    if len(merged) == 1 and chosen[merged[0]].all():
        return kept | {merged[0]: len(chosen[merged[0]])}
    number = max(map(shard_number, chosen), default=-1) + 1
    for table in _tables(merged, chosen, rows_per_shard):
        path = folder.shard(number)
        write_shard(path, table)
        kept[path] = len(table)
        number += 1
    return kept


def _tables(paths: list[Path], chosen: dict[Path, np.ndarray], rows_per_shard: int) -> Iterator[pyarrow.Table]:
    """Yield the chosen rows of shards as tables of at most `rows_per_shard` rows."""
    held: list[pyarrow.Table] = []
    for path in tqdm(paths, desc="merge shards", unit=" shards", delay=3.0):
        held.append(read_shard(path).filter(pyarrow.array(chosen[path])))
        while sum(map(len, held)) >= rows_per_shard:
            table = pyarrow.concat_tables(held)
            yield table.slice(0, rows_per_shard)
            held = [table.slice(rows_per_shard)]
    if sum(map(len, held)):
        yield pyarrow.concat_tables(held)
