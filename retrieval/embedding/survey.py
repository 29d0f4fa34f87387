"""Walk through a feed once, and find which products are to be embedded, which are kept, and which have left.

Products to embed go to files of the work folder, one for each shard, and facts to sorted files there. In memory remain, for each
product and form, its id and a hash: at most 300 bytes, and 600 while they are compared with those of an existing folder (a test
measures them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from processing_moon import ProductError
from product_data.feeds.feed_product import FeedProduct
from product_data.rows import ProductRow
from product_data.table_files import TableError
from retrieval.embedding.executors.shard_encoder import ShardTask
from retrieval.stores.interface import StoredProduct
from retrieval.vectors.content_hash import content_hash, has_content
from retrieval.vectors.picture_folder import key_of
from retrieval.vectors.product_facts import SortedProducts, read_digests, stored_product
from retrieval.vectors.shard_files import read_shard
from retrieval.vectors.vector_files import VectorFolder, shard_number

KEY_COLUMNS = ("product_id", "form", "content_hash", "fingerprint", "error")
Hashes = dict[str, dict[str, bytes]]
"""form → product id → hash of its content."""


@dataclass
class Survey:
    """What a job has to do.

    Args:
        wanted: form → product id → hash of its content, of each product of the feed.
        tasks: files of the products to embed, one for each shard.
        facts: the facts of all products.
        products, embedded, pictures, rows (`int`): number of products, of products to embed, and of their pictures and vectors.
        kept (`int`): products of which every vector is kept.
        removed (`int`): products of the last complete state that are not in the feed.
        updated (`int`): kept products whose facts, such as the price, have changed.
        shown: keys of the pictures that the facts name in the folder's own pictures, see `retrieval.vectors.picture_folder`.
    """

    wanted: Hashes
    facts: SortedProducts
    tasks: list[Path] = field(default_factory=list)
    products: int = 0
    embedded: int = 0
    pictures: int = 0
    rows: int = 0
    kept: int = 0
    removed: int = 0
    updated: int = 0
    shown: set[bytes] = field(default_factory=set)


class Surveyor:
    """Walk through a feed.

    Args:
        folder: the folder of vectors.
        fingerprint (`str`): of model and settings.
        forms: forms to embed each product in.
        rows_per_shard (`int`): vectors per shard. The first shard has at most `sample` products, to measure the pace.
        sample (`int`): see above.
    """

    def __init__(
        self, folder: VectorFolder, fingerprint: str, forms: tuple[str, ...], rows_per_shard: int, sample: int
    ) -> None:
        self.folder, self.fingerprint, self.forms = folder, fingerprint, forms
        self._sizes = rows_per_shard, sample
        shards = folder.all_shards()
        self._next = max(map(shard_number, shards), default=-1) + 1
        self._held: list[tuple[ProductRow, dict[str, str]]] = []
        self._held_rows = 0

    def walk(self, products: Iterable[FeedProduct]) -> Survey:
        """Return what the job has to do for a feed.

        Raises:
            TableError: two products have one id.
            VectorFileError: a file of the folder that cannot be read, or is not one of its own.
        """
        self.folder.work_folder.mkdir()
        survey = Survey({form: {} for form in self.forms}, SortedProducts(self.folder.work_folder / "facts"))
        made, before = made_hashes(self.folder, self.fingerprint, self.forms), self._facts_before()
        for product in products:  # a feed has a progress bar of its own
            self._take(product, survey, made, before)
        self._write_task(survey)
        survey.removed = len(before)
        return survey

    def _facts_before(self) -> dict[str, str]:
        """Return product id → digest of the facts in the last complete state; "" if its file of facts is lost."""
        if not self.folder.state:
            return {}
        if self.folder.products_file.is_file():
            digests = read_digests(self.folder.products_file)
            return {product_id: digest.partition("-")[0] for product_id, digest in digests.items()}
        return {
            row[0]: "" for path, rows in key_rows(self.folder) if path.name in self.folder.state.shards for row in rows
        }

    def _take(self, product: FeedProduct, survey: Survey, made: Hashes, before: dict[str, str]) -> None:
        row = product.row
        if any(row.product_id in ids for ids in survey.wanted.values()):
            raise TableError(f"the feed: found product_id {row.product_id!r} twice; expected each id once")
        hashes = wanted_hashes(row, self.forms)
        kept = stored_product(product, shown=self._shown(row, survey))
        facts = facts_digest(kept)
        of_vectors = hashlib.sha256(f"{self.fingerprint} {sorted(hashes.items())}".encode()).hexdigest()[:16]
        survey.facts.add(replace(kept, digest=f"{facts}-{of_vectors}"))
        for form, hash_ in hashes.items():
            survey.wanted[form][row.product_id] = bytes.fromhex(hash_)
        missing = {
            form: hash_ for form, hash_ in hashes.items() if made[form].get(row.product_id) != bytes.fromhex(hash_)
        }
        survey.products += 1
        was = before.pop(row.product_id, None)
        if missing:
            self._hold(row, missing, survey)
        else:
            survey.kept += 1
            survey.updated += was is not None and was != facts

    def _shown(self, row: ProductRow, survey: Survey) -> Path | None:
        """Keep the first picture of a product, if it has no path or URL, and return its file; None if it cannot be read."""
        if not row.images or isinstance(row.images[0], str):
            return None
        try:
            file = self.folder.pictures.add(row.images[0])
        except ProductError:  # the embedding names the picture and the reason
            return None
        survey.shown.add(key_of(file))
        return file

    def _hold(self, row: ProductRow, missing: dict[str, str], survey: Survey) -> None:
        survey.embedded += 1
        survey.rows += len(missing)
        survey.pictures += len(row.images) if missing.keys() - {"t"} else 0
        self._held.append((row, missing))
        self._held_rows += len(missing)
        rows_per_shard, sample = self._sizes
        if self._held_rows >= rows_per_shard or (not survey.tasks and len(self._held) >= sample):
            self._write_task(survey)

    def _write_task(self, survey: Survey) -> None:
        if self._held:
            path = self.folder.work_folder / f"{self._next:06}.task"
            ShardTask(self._next, [row for row, _ in self._held], [hashes for _, hashes in self._held]).write(path)
            survey.tasks.append(path)
            self._next += 1
        self._held, self._held_rows = [], 0


def wanted_hashes(row: ProductRow, forms: tuple[str, ...]) -> dict[str, str]:
    """Return form → content hash for the forms that a product is embedded in.

    A form that shows nothing of the product, such as "i" without pictures, is left out. A product that none of the forms shows
    keeps the first one, which becomes an error.
    """
    shown = [form for form in forms if has_content(row.record(form))] or forms[:1]
    return {form: content_hash(row, form) for form in shown}


def facts_digest(product: StoredProduct) -> str:
    """Return 16 hex digits for the facts that a store keeps of a product, which has no digest yet."""
    return hashlib.sha256(repr(product).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def made_hashes(folder: VectorFolder, fingerprint: str, forms: tuple[str, ...]) -> Hashes:
    """Return the hashes of the vectors that a folder has of model and settings, also of a job that was killed."""
    made: Hashes = {form: {} for form in forms}
    for _, rows in key_rows(folder):
        for product_id, form, hash_, own, error in rows:
            if own == fingerprint and error is None and form in made:
                made[form][product_id] = bytes.fromhex(hash_)
    return made


def key_rows(folder: VectorFolder) -> Iterator[tuple[Path, list[tuple[Any, ...]]]]:
    """Yield each shard of a folder with the `KEY_COLUMNS` of its rows.

    Raises:
        VectorFileError: a shard that cannot be read.
    """
    for path in tqdm(folder.all_shards(), desc="read shards", unit=" shards", delay=3.0):
        table = read_shard(path, KEY_COLUMNS)
        yield path, list(zip(*(table[name].to_pylist() for name in KEY_COLUMNS), strict=True))
