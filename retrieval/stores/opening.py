"""Open the store of a catalogue, and bring a store up to date with a folder of vectors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from retrieval.centring import LEAST_PRODUCTS, Centring, FormSums, content_form, read_form
from retrieval.stores.exact import ExactStore
from retrieval.stores.exact_search import FirstPass
from retrieval.stores.interface import CLIENT_DIGEST, Store, StoredProduct, StoreError
from retrieval.vectors.vector_files import VectorFolder, is_vector_folder
from retrieval.vectors.vector_types import shortened

if TYPE_CHECKING:
    from retrieval.stores.embedded import EmbeddedStore
    from retrieval.stores.served import ServedStore

QDRANT = "qdrant="
_WITHOUT_SCHEME = re.compile(r"[\w.-]+:\d+")
BATCH_BYTES = 64 * 1024**2
"""Bytes of the vectors of one upsert."""


def open_store(place: str | Path, *, first_pass: FirstPass = "none") -> Store:
    """Open a store for searching; its `about` says which it is.

    Args:
        place: a folder of vectors that `moon3 embed` wrote (its store, if `moon3 index` made one; otherwise exact search over
            its files), the folder of a store, or "qdrant=URL/COLLECTION".
        first_pass: for exact search in memory, see `retrieval.stores.exact_search.FlatVectors`. Default "none".

    Raises:
        StoreError: no such place, or a store whose vectors come from another model than the folder's.
    """
    if str(place).startswith(QDRANT):
        return _served(str(place))
    path = Path(place)
    if is_vector_folder(path):
        folder = VectorFolder(path)
        if not folder.store_folder.exists():
            return exact_store(folder, first_pass=first_pass)
        store = _embedded(folder.store_folder)
        require_fingerprint(store, folder)
        return store
    return _embedded(path)


def create_store(place: str | Path, dimension: int, fingerprint: str, centring: Centring | None = None) -> Store:
    """Open a store for writing, and make it if it does not exist.

    Args:
        place: the folder of a store, or "qdrant=URL/COLLECTION".
        dimension (`int`): of the vectors.
        fingerprint (`str`): of the model that makes them.
        centring: means by form of a new store; an existing centred store keeps its own. Default: none for a new store.

    Raises:
        StoreError: a store of another dimension or model, one that is not centred if `centring` is given, or a folder with
            other contents.
    """
    if str(place).startswith(QDRANT):
        return _served(str(place), dimension, fingerprint, centring)
    return _embedded(Path(place), dimension, fingerprint, centring)


def width_of_store(place: str | Path, folder: VectorFolder) -> int:
    """Return the dimension of the store in a folder, or that of a folder's vectors if there is no store.

    Args:
        place: as for `create_store`.
        folder: the vectors.
    """
    from retrieval.stores.embedded import SETTINGS_FILE

    if str(place).startswith(QDRANT) or not (Path(place) / SETTINGS_FILE).is_file():
        return folder.dimension
    store = _embedded(Path(place))
    try:
        return int(store.dimension)
    finally:
        store.close()


def _embedded(
    path: Path, dimension: int | None = None, fingerprint: str | None = None, centring: Centring | None = None
) -> EmbeddedStore:
    from retrieval.stores.embedded import EmbeddedStore

    return EmbeddedStore(path, dimension, fingerprint, centring)


def _served(
    place: str, dimension: int | None = None, fingerprint: str | None = None, centring: Centring | None = None
) -> ServedStore:
    from retrieval.stores.served import ServedStore

    address, slash, collection = place.removeprefix(QDRANT).rpartition("/")
    if not (slash and address and collection) or address.rstrip("/") in ("http:", "https:"):
        raise StoreError(f"store {place!r}: expected qdrant=URL/COLLECTION, such as qdrant=http://localhost:6333/shop")
    if _WITHOUT_SCHEME.fullmatch(address) and not Path(address).exists():
        raise StoreError(f"store {place!r}: found no http://; expected qdrant=http://{address}/{collection}")
    return ServedStore(address, collection, dimension, fingerprint, centring)


def exact_store(folder: VectorFolder, *, first_pass: FirstPass = "none") -> ExactStore:
    """Load the vectors of a folder into memory for exact search.

    A product whose vectors all have an error is left out, as in every store; `about` has their number.

    Args:
        folder: with a complete state.
        first_pass: see `retrieval.stores.exact_search.FlatVectors`. Default "none".
    """
    state = folder.require_state()
    store = ExactStore(folder.dimension, folder.fingerprint, first_pass=first_pass)
    for batch in batches(_bar(folder.products(), state.products, "products"), 4096):
        store.add_products(batch)
    for form in folder.forms:
        with tqdm(total=state.vectors.get(form), desc=f"vectors {form}", delay=3.0, leave=False) as bar:
            for ids, vector_ND in folder.vectors(form):
                known = np.array([product_id in store for product_id in ids], dtype=bool)
                store.add_vectors(form, store.rows([one for one in ids if one in store]), vector_ND[known])
                bar.update(len(ids))
    left_out = store.delete(store.without_vector())
    store.compact()
    store.about = f"exact search in memory over the {store.count()} products of {folder.path}"
    store.about += f"; {left_out} products without a vector are left out" if left_out else ""
    return store


def folder_centring(folder: VectorFolder) -> Centring:
    """Return the means of a folder's vectors by what the model read.

    Raises:
        StoreError: fewer than two forms with enough products, so that no form can be preferred.
    """
    contents = {product.product_id: content_form(product) for product in folder.products()}
    sums = FormSums()
    for form in folder.forms:
        for ids, vector_ND in folder.vectors(form):
            sums.add(vector_ND, [read_form(contents.get(product_id, form), form) for product_id in ids])
    centring = sums.centring()
    if len(centring.means) < 2:
        counts = ", ".join(f"{count} of {form}" for form, count in sums.counts.items())
        raise StoreError(
            f"{folder.path}: found vectors of these forms: {counts}; expected at least {LEAST_PRODUCTS} of two forms to centre "
            "them"
        )
    return centring


@dataclass(frozen=True)
class SyncCounts:
    """What `sync` changed.

    Args:
        added, replaced, removed, unchanged (`int`): numbers of products.
        without_vector (`int`): products of the folder that are not in the store, because all their vectors have an error.
        of_clients (`int`): products that clients of the service wrote, and that are kept although they are not in the folder.
        compacted (`str`): what the store says about its compaction.
    """

    added: int
    replaced: int
    removed: int
    unchanged: int
    without_vector: int
    of_clients: int
    compacted: str

    def __str__(self) -> str:
        left_out = f", {self.without_vector} without a vector left out" if self.without_vector else ""
        left_out += f", {self.of_clients} of clients kept" if self.of_clients else ""
        return (
            f"{self.added} products added, {self.replaced} replaced, {self.removed} removed, {self.unchanged} unchanged"
            f"{left_out}; {self.compacted}"
        )


def sync(store: Store, folder: VectorFolder) -> SyncCounts:
    """Bring a store up to date with a folder of vectors: write and remove only what differs, then compact.

    A product differs if its digest does. A product that a client of the service wrote stays, unless the folder has a product
    with its id, which then replaces it. Each batch is written whole, so the same call goes on after an interruption. The
    vectors of what differs pass through a temporary file, not through memory. A store of fewer dimensions keeps the first
    numbers of each vector, scaled to unit length: the prefix that a model with Matryoshka widths was trained for (arXiv
    2205.13147).

    Args:
        store: the store to change.
        folder: with a complete state.

    Raises:
        StoreError: the store's vectors come from another model or have more dimensions.
    """
    require_fingerprint(store, folder)
    total = folder.require_state().products
    before = store.digests()
    after: dict[str, str] = {}
    for product in _bar(folder.products(), total, "comparing"):
        after[product.product_id] = product.digest
    changed = [one for one, digest in after.items() if not digest or before.get(one) != digest]
    with tempfile.TemporaryDirectory(prefix="moon3-index-") as scratch:
        vectors = _gathered(folder, changed, Path(scratch), store.dimension)
        written, without = _write_changed(store, folder, dict(zip(changed, range(len(changed)), strict=True)), vectors)
        del vectors
    absent = [one for one in before if one not in after]
    of_clients = {one for one in absent if before[one].startswith(CLIENT_DIGEST)}
    removed = store.delete([one for one in absent if one not in of_clients] + [one for one in without if one in before])
    replaced = sum(one in before for one in written)
    return SyncCounts(
        len(written) - replaced,
        replaced,
        removed,
        len(after) - len(changed),
        len(without),
        len(of_clients),
        store.compact(),
    )


def require_fingerprint(store: Store, folder: VectorFolder) -> None:
    """Check that a store can hold vectors of a folder: those of the same model, whole or their first numbers.

    Raises:
        StoreError: another model's, or the store has more dimensions.
    """
    if store.fingerprint != folder.fingerprint or store.dimension > folder.dimension:
        raise StoreError(
            f"{store.about}: found vectors of the model {store.fingerprint!r} with {store.dimension} dimensions; expected "
            f"those of {folder.path}, {folder.fingerprint!r} with {folder.dimension}. Vectors of two models cannot be "
            "compared: remove the store, and run moon3 index again"
        )


def _gathered(folder: VectorFolder, ids: list[str], scratch: Path, dimension: int) -> dict[str, np.ndarray]:
    """Return form → (N, D) vectors of the given products in files, of `dimension`; a row of NaN where there is none."""
    row = {product_id: number for number, product_id in enumerate(ids)}
    gathered: dict[str, np.ndarray] = {}
    for form in folder.forms if ids else ():
        shape = (len(ids), dimension)
        gathered[form] = room = np.memmap(scratch / form, dtype=np.float32, mode="w+", shape=shape)
        room[:] = np.nan
        for shard_ids, vector_ND in folder.vectors(form):
            wanted = np.array([product_id in row for product_id in shard_ids], dtype=bool)
            rows = [row[product_id] for product_id in shard_ids if product_id in row]
            room[rows] = shortened(vector_ND[wanted], dimension)
    return gathered


def _write_changed(
    store: Store, folder: VectorFolder, row: dict[str, int], vectors: dict[str, np.ndarray]
) -> tuple[list[str], list[str]]:
    """Upsert the products of `row`; return the ids that were written, and those that have no vector."""
    size = max(BATCH_BYTES // (4 * store.dimension * max(len(vectors), 1)), 1)
    written: list[str] = []
    without: list[str] = []
    changed = (product for product in folder.products() if product.product_id in row)
    for batch in batches(_bar(changed, len(row), "indexing"), size):
        rows = np.array([row[product.product_id] for product in batch])
        chosen = {form: np.asarray(room[rows]) for form, room in vectors.items()}
        there = np.zeros(len(batch), dtype=bool)
        for vector_ND in chosen.values():
            there |= ~np.isnan(vector_ND).all(axis=1)
        kept = [product for product, has_vector in zip(batch, there, strict=True) if has_vector]
        without += [product.product_id for product, has_vector in zip(batch, there, strict=True) if not has_vector]
        if kept:
            store.upsert(kept, {form: vector_ND[there] for form, vector_ND in chosen.items()})
            written += [product.product_id for product in kept]
    return written, without


def batches(products: Iterable[StoredProduct], size: int) -> Iterator[list[StoredProduct]]:
    """Yield lists of at most `size` products."""
    left = iter(products)
    while batch := list(islice(left, size)):
        yield batch


def _bar(products: Iterable[StoredProduct], total: int, name: str) -> Any:
    return tqdm(products, total=total, desc=name, unit="product", delay=3.0, leave=False)
