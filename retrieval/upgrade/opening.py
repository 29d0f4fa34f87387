"""Open a folder of vectors for a new model: the old store, the new model's vectors, and the adapter between them."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from retrieval.stores.exact import ExactStore
from retrieval.stores.interface import Store
from retrieval.stores.opening import open_store
from retrieval.upgrade.mixed_store import MixedStore
from retrieval.upgrade.sampling import UpgradeError
from retrieval.upgrade.upgrade_folder import Upgrade, UpgradeFolder
from retrieval.vectors.shard_files import read_shard
from retrieval.vectors.vector_files import VectorFolder, is_vector_folder

Hashes = dict[tuple[str, str], str]
"""(product id, form) → hash of what the model read, see `retrieval.vectors.content_hash`."""
_BATCH = 4096


def open_upgraded(place: str | Path, fingerprint: str) -> Store:
    """Open a folder of vectors for the queries of a model: one store, or a mixed one if `moon3 upgrade` fitted an adapter.

    Args:
        place: as for `retrieval.stores.opening.open_store`.
        fingerprint (`str`): of the model that encodes the queries.

    Raises:
        UpgradeError: vectors of another model without an adapter for this one, or files that cannot be read.
        StoreError: a store that cannot be opened.
    """
    store = open_store(place)
    found = with_adapter(store, place, fingerprint)
    if found.fingerprint == fingerprint:
        return found
    store.close()
    upgrade = UpgradeFolder(place).read()
    known = "no adapter" if upgrade is None else f"an adapter for {upgrade.new.model}"
    raise UpgradeError(
        f"{place}: found vectors of the model {store.fingerprint!r} and {known}; expected vectors of the model "
        f"{fingerprint!r}, or an adapter for it: run moon3 upgrade {place} MODEL"
    )


def with_adapter(store: Store, place: str | Path, fingerprint: str) -> Store:
    """Return a mixed store if a folder has an adapter from a model to the vectors of its store; otherwise the store.

    Args:
        store: from `retrieval.stores.opening.open_store`.
        place: as for `open_store`.
        fingerprint (`str`): of the model that encodes the queries.

    Raises:
        UpgradeError: files of an upgrade that cannot be read, or an adapter for another old model.
    """
    if store.fingerprint == fingerprint or not is_vector_folder(place):
        return store
    upgrade = UpgradeFolder(place).read()
    if upgrade is None or fingerprint != upgrade.new.fingerprint:
        return store
    return MixedStore(store, new_group(store, VectorFolder(place), UpgradeFolder(place).vectors(), upgrade), upgrade)


def new_group(old: Store, old_vectors: VectorFolder, new_vectors: VectorFolder | None, upgrade: Upgrade) -> ExactStore:
    """Return the new model's vectors in memory, with the old store's facts.

    A product counts only if both models read the same contents of it; one that was embedded again by the old model after
    its texts or pictures changed keeps its old vectors until the next backfill.

    Args:
        old: the store of all products.
        old_vectors, new_vectors: the folders of both models; `None` before the first job of the new one has ended.
        upgrade: the adapter between both models.
    """
    group = ExactStore(upgrade.new.dimension, upgrade.new.fingerprint)
    if new_vectors is None or not new_vectors.complete:
        return group
    hashes = content_hashes(new_vectors)
    ids = {product_id for product_id, _ in hashes}
    current = same_contents(content_hashes(old_vectors, ids), hashes)
    waiting = iter(sorted(current))
    while batch := list(islice(waiting, _BATCH)):
        group.add_products([product for product in old.get(batch) if product is not None])
    for form in new_vectors.forms:
        for form_ids, vector_ND in new_vectors.vectors(form):
            kept_N = np.array([one in current and one in group for one in form_ids], dtype=bool)
            chosen = [one for one, kept in zip(form_ids, kept_N, strict=True) if kept]
            if chosen:
                group.add_vectors(form, group.rows(chosen), vector_ND[kept_N])
    return group


def same_contents(old: Hashes, new: Hashes) -> set[str]:
    """Return the ids of products of which both models read the same in every form that the new one has."""
    changed = {product_id for (product_id, form), found in new.items() if old.get((product_id, form)) != found}
    return {product_id for product_id, _ in new} - changed


def content_hashes(folder: VectorFolder, ids: Collection[str] | None = None) -> Hashes:
    """Return the hashes of what a folder's vectors were made from; products without a vector have none.

    Args:
        folder: with a complete state.
        ids: products to return. Default: all.
    """
    hashes: Hashes = {}
    for path in tqdm(folder.shards(), desc="read contents", delay=3.0, leave=False):
        rows = read_shard(path, ("product_id", "form", "content_hash", "error"))
        columns = (rows[name].to_pylist() for name in ("product_id", "form", "content_hash", "error"))
        for product_id, form, found, error in zip(*columns, strict=True):
            if error is None and (ids is None or product_id in ids):
                hashes[product_id, form] = found
    return hashes
