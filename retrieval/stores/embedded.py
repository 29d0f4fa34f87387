"""Keep a catalogue in a LanceDB table: on disk, with filters, words, several vectors for each product, and indices if measured.

    moon_store.json   dimension, fingerprint, means by form of a centred store, and what was decided on indices, see
                      `retrieval.stores.tuning`
    products.lance/   the table; a column of vectors for each form
    store.lock        exists while a process writes

Legend: Q queries, N products, P candidates of a pool, D embedding.
"""

from __future__ import annotations

import json
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lancedb
import numpy as np
import pyarrow
from lancedb.index import FTS, BTree
from lancedb.query import MatchQuery

from product_data.atomic_files import PARTIAL, write_atomically
from product_data.folder_lock import FolderInUseError, locked
from retrieval.centring import Centring
from retrieval.stores.facts import (
    attribute_pairs,
    category_paths,
    from_json,
    most_frequent,
    searched_words,
    split_words,
    to_json,
)
from retrieval.stores.interface import StoreBusyError, StoredProduct, StoreError
from retrieval.stores.postings import FACETS
from retrieval.stores.ranking import SAME_SCORE, TIE, Candidate, best, exact_cosines, pool_sizes, rounded
from retrieval.stores.searching import RankingStore, checked_batch, kept_centring
from retrieval.stores.tuning import BUCKET, BUCKETS, Index, decide, describe, is_current
from retrieval.stores.where import Where, sql_text

SETTINGS_FILE, LOCK_FILE, TABLE = "moon_store.json", "store.lock", "products"
FORMAT = 1
VECTOR = "vector_"
_ID_CHUNK = 500
_WORDS = FTS(
    base_tokenizer="whitespace",
    with_position=False,
    max_token_length=None,
    lower_case=False,
    stem=False,
    remove_stop_words=False,
    ascii_folding=False,
)
_FACTS = pyarrow.schema(
    [
        ("product_id", pyarrow.string()),
        ("facts", pyarrow.string()),
        ("digest", pyarrow.string()),
        ("price", pyarrow.float64()),
        ("brand", pyarrow.string()),
        ("availability", pyarrow.string()),
        ("category_paths", pyarrow.list_(pyarrow.string())),
        ("attribute_pairs", pyarrow.list_(pyarrow.string())),
        ("words", pyarrow.string()),
        (BUCKET, pyarrow.int32()),
    ]
)
Answer = TypeVar("Answer")


class EmbeddedStore(RankingStore):
    """A store in a folder, for one process that writes and any number that read.

    The search is exact unless `compact` found an index that is both needed and good enough: see
    `retrieval.stores.tuning.decide`.

    Args:
        path: the folder.
        dimension (`int`), fingerprint (`str`): of a store to create; an existing one must agree. Default: an existing store.
        centring: means by form of a store to create; an existing centred store keeps its own. Default: none.

    Raises:
        StoreError: no store there, another dimension or fingerprint, one that is not centred if `centring` is given, or
            settings that cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        dimension: int | None = None,
        fingerprint: str | None = None,
        centring: Centring | None = None,
    ) -> None:
        self.path = Path(path)
        self.about = f"LanceDB store in {self.path}"
        if not self._settings_file.is_file():
            if dimension is None or fingerprint is None:
                raise StoreError(f"{self.path}: found no {SETTINGS_FILE}; expected a store that moon3 index made")
            self._require_new_folder()
            self._settings: dict[str, Any] = {
                "format": FORMAT,
                "dimension": dimension,
                "fingerprint": fingerprint,
                "indices": {},
            } | ({} if centring is None else {"centring": centring.as_dict()})
            with self._writing():
                self._write_settings()
        self._settings = self._read_settings()
        self.dimension, self.fingerprint = self._settings["dimension"], self._settings["fingerprint"]
        if (dimension or self.dimension, fingerprint or self.fingerprint) != (self.dimension, self.fingerprint):
            raise StoreError(
                f"{self.path}: found a store of the model {self.fingerprint!r} with {self.dimension} dimensions; expected "
                f"{fingerprint!r} with {dimension}. Remove the store to make one for another model"
            )
        self.centring = kept_centring(self._settings.get("centring"), centring, str(self.path))
        if self.centring is not None:
            self.about += ", centred by form"
        self._connection = lancedb.connect(self.path, read_consistency_interval=timedelta(0))
        self._opened: Any = None

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of which the store has vectors."""
        table = self._table()
        names = () if table is None else table.schema.names
        return tuple(sorted(name.removeprefix(VECTOR) for name in names if name.startswith(VECTOR)))

    @property
    def indices(self) -> dict[str, dict[str, Any]]:
        """What the last compaction, by any process, decided for each form: see `retrieval.stores.tuning.Decision`."""
        return dict(self._read_settings()["indices"])

    def upsert(self, products: Sequence[StoredProduct], vectors: Mapping[str, np.ndarray]) -> None:
        """Add or replace products: see `retrieval.stores.interface.Store.upsert`. The write is one new version."""
        batch = checked_batch(products, vectors, self.dimension, self.centring)
        if not products:
            return
        with self._writing():
            table = self._table_with(tuple(batch))
            rows = _rows(products, batch, table.schema)
            if table.count_rows() == 0:
                table.add(rows)
            else:
                merge = table.merge_insert("product_id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(rows)

    def delete(self, product_ids: Iterable[str]) -> int:
        """Remove products; return how many of the ids were in the store."""
        ids = sorted(set(product_ids))
        with self._writing():
            table = self._table()
            chunks = _chunks(ids) if table is not None else ()
            return sum(table.delete(_id_is_in(chunk)).num_deleted_rows for chunk in chunks)

    def get(self, product_ids: Sequence[str]) -> list[StoredProduct | None]:
        """Return products by id, in the given order; None for an unknown id."""
        found: dict[str, StoredProduct] = {}
        for rows in self._rows_of(product_ids, ["product_id", "facts"]):
            products = map(from_json, rows["facts"].to_pylist())
            found |= zip(rows["product_id"].to_pylist(), products, strict=True)
        return [found.get(product_id) for product_id in product_ids]

    def vectors(self, product_ids: Sequence[str], form: str) -> np.ndarray:
        """Return (N, D) float32 vectors by id; a row of NaN where there is none."""
        found = np.full((len(product_ids), self.dimension), np.nan, dtype=np.float32)
        if form in self.forms:
            by_id: dict[str, np.ndarray] = {}
            for rows in self._rows_of(product_ids, ["product_id", VECTOR + form]):
                by_id |= zip(rows["product_id"].to_pylist(), _vectors(rows[VECTOR + form]), strict=True)
            for number, product_id in enumerate(product_ids):
                if product_id in by_id:
                    found[number] = by_id[product_id]
        return found

    def nearest(
        self, query_QD: np.ndarray, k: int, where: Where | None, forms: Sequence[str], exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each query the k products with the nearest vectors: see `RankingStore.nearest`."""
        table = self._table()
        if table is None:
            return [[] for _ in query_QD]
        condition = _condition(where, exclude)
        indices = {form: self._index(form) for form in forms if form in self.forms}
        answers = []
        for query_D in query_QD:
            found: list[Candidate] = []
            for form, index in indices.items():
                found += self.nearest_of_form(query_D, k, form, condition, index)
            answers.append(best(found, k))
        return answers

    def nearest_of_form(
        self, query_D: np.ndarray, k: int, form: str, condition: str | None, index: Index | None
    ) -> list[Candidate]:
        """Return the k products with the nearest vectors of a form, best first.

        Args:
            query_D: (D,) float32.
            k (`int`): number of products.
            form (`str`): one of `forms`.
            condition: SQL that products must satisfy, or None.
            index: settings of the form's index; None searches exactly.
        """
        candidates: list[Candidate] = []
        for pool in pool_sizes(k):
            rows = self._reading(lambda size=pool: self._nearest_rows(query_D, size, form, condition, index))  # type: ignore[misc]
            scores = exact_cosines(query_D, _vectors(rows[VECTOR + form]))
            ids = rows["product_id"].to_pylist()
            candidates = [Candidate(*pair, form) for pair in zip(ids, scores.tolist(), strict=True)]
            if index is not None or len(rows) < pool:
                break
            if 1 - rows["_distance"].to_numpy().max() < np.sort(scores)[-k] - TIE:
                break
        return best(candidates, k)

    def _nearest_rows(
        self, query_D: np.ndarray, pool: int, form: str, condition: str | None, index: Index | None
    ) -> pyarrow.Table:
        column = VECTOR + form
        query = self._table().search(query_D, vector_column_name=column).distance_type("dot")
        query = query.bypass_vector_index() if index is None else index.apply(query, filtered=condition is not None)
        if condition is not None:
            query = query.where(condition, prefilter=True)
        return query.select(["product_id", column, "_distance"]).limit(pool).to_arrow()

    def matching(
        self, words: Sequence[str], k: int, where: Where | None, exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each text the k products with the highest BM25 score: see `RankingStore.matching`."""
        condition = _condition(where, exclude)
        return [self._matching(split_words(text), k, condition) for text in words]

    def _matching(self, words: Sequence[str], k: int, condition: str | None) -> list[Candidate]:
        if not words or self._table() is None:
            return []
        candidates: list[Candidate] = []
        for pool in pool_sizes(k):
            rows = self._reading(lambda size=pool: self._matching_rows(words, size, condition))  # type: ignore[misc]
            scores = rows["_score"].to_numpy()
            ids = rows["product_id"].to_pylist()
            candidates = [Candidate(one, rounded(score)) for one, score in zip(ids, scores, strict=True)]
            if len(rows) < pool or scores.min() < np.sort(scores)[-k] * (1 - SAME_SCORE):
                break
        return best(candidates, k)

    def _matching_rows(self, words: Sequence[str], pool: int, condition: str | None) -> pyarrow.Table:
        query = self._table().search(MatchQuery(" ".join(words), "words"), query_type="fts")  # type: ignore[call-arg]
        if condition is not None:
            query = query.where(condition, prefilter=True)
        return query.select(["product_id", "_score"]).limit(pool).to_arrow()

    def products(self, where: Where | None = None) -> Iterator[StoredProduct]:
        """Iterate over the products in the order of ids."""
        ids = sorted(self._scan(["product_id"], where)["product_id"].to_pylist())
        for chunk in _chunks(ids):
            yield from (product for product in self.get(chunk) if product is not None)

    def digests(self) -> dict[str, str]:
        """Return product id → digest of every product."""
        rows = self._scan(["product_id", "digest"], None)
        return dict(zip(rows["product_id"].to_pylist(), rows["digest"].to_pylist(), strict=True))

    def count(self, where: Where | None = None) -> int:
        """Return the number of products."""
        condition = _condition(where, frozenset())
        return self._count(condition)

    def facets(self, where: Where | None = None, *, limit: int = 20) -> dict[str, dict[str, int]]:
        """Return value → number of products: see `retrieval.stores.interface.Store.facets`."""
        rows = self._scan(list(FACETS.values()), where)
        counts = {}
        for name, column in FACETS.items():
            values = rows[column].to_pylist()
            counter = Counter(one for value in values for one in (value if isinstance(value, list) else [value]))
            counts[name] = most_frequent(counter.items(), limit)
        return counts

    def compact(self) -> str:
        """Merge small files, remove old versions, decide on indices; return a sentence on what was done."""
        with self._writing():
            table = self._table()
            if table is None:
                return "nothing to compact: the store is empty"
            self._settings = self._read_settings()
            sentences = [self._decide(table, form) for form in self.forms]
            if not any(index.columns == ["product_id"] for index in table.list_indices()):
                table.create_index("product_id", config=BTree())
            before = len(table.list_versions())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # readers open the newest version again: `_reading`
                table.optimize()  # merges files and updates indices, which makes versions
                table.optimize(cleanup_older_than=timedelta(0))
            removed = max(before - len(table.list_versions()), 0)
            return "; ".join([f"{removed} old versions removed", *sentences])

    def _decide(self, table: Any, form: str) -> str:
        """Decide on the index of a form, unless the last decision still holds, and return what was decided."""
        column = VECTOR + form
        vectors = table.count_rows(f"{column} IS NOT NULL")
        last = self._settings["indices"].get(form)
        if last is not None and is_current(last, vectors, self.dimension):
            return f"form {form}: {last['sentence']}, as before"
        decision = decide(self, form, vectors, lambda config: table.create_index(column, config=config))
        if decision.index is None:
            for index in table.list_indices():
                if index.columns == [column]:
                    table.drop_index(index.name)
        self._settings["indices"][form] = decision.as_json() | {"sentence": describe(decision)}
        self._write_settings()
        return f"form {form}: {describe(decision)}"

    def sample(self, form: str, number: int) -> tuple[list[str], np.ndarray]:
        """Return ids and (Q, D) vectors of a random sample of the products that have a vector of a form."""
        ids = sorted(self._select(["product_id"], f"{VECTOR}{form} IS NOT NULL")["product_id"].to_pylist())
        places = np.random.default_rng(0).permutation(len(ids))[:number]
        chosen = [ids[place] for place in sorted(places)]
        return chosen, self.vectors(chosen, form)

    def close(self) -> None:
        """Release the files."""
        self._opened = None

    @property
    def _settings_file(self) -> Path:
        return self.path / SETTINGS_FILE

    def _require_new_folder(self) -> None:
        """Check that a store can be made here.

        Raises:
            StoreError: a file, or a folder with other contents.
        """
        if self.path.is_symlink() and not self.path.exists():
            raise StoreError(f"{self.path}: found a link to nothing; expected a folder")
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path}: found a file; expected the folder of a store, or a new one")
        ours = (LOCK_FILE, SETTINGS_FILE + PARTIAL)
        names = sorted(file.name for file in self.path.iterdir()) if self.path.is_dir() else []
        if foreign := [name for name in names if name not in ours]:
            raise StoreError(
                f"{self.path}: found {foreign[0]} and no {SETTINGS_FILE}; expected a store, or a new or empty folder. If this "
                "was a store, remove it and run moon3 index again"
            )

    def _read_settings(self) -> dict[str, Any]:
        try:
            settings = json.loads(self._settings_file.read_text(encoding="utf-8"))
            known = {name: settings[name] for name in ("format", "dimension", "fingerprint", "indices")}
            known |= {"centring": settings["centring"]} if "centring" in settings else {}
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self._settings_file}: found {error!r}; expected the file of a store") from error
        if known["format"] != FORMAT:
            raise StoreError(f"{self._settings_file}: found format {known['format']!r}; expected {FORMAT}")
        return known

    def _write_settings(self) -> None:
        write_atomically(self._settings_file, json.dumps(self._settings, indent=1, ensure_ascii=False) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with locked(self.path, LOCK_FILE):
                yield
        except FolderInUseError as error:
            raise StoreBusyError(f"{error}. One process writes to a store at a time") from error

    def _table(self) -> Any:
        """Return the table at its newest version; None if nothing was written yet."""
        if self._opened is None and (self.path / f"{TABLE}.lance").is_dir():
            self._opened = self._connection.open_table(TABLE)
        return self._opened

    def _table_with(self, forms: Sequence[str]) -> Any:
        """Return the table with a column of vectors for each of the forms."""
        vector_type = pyarrow.list_(pyarrow.float32(), self.dimension)
        fields = [pyarrow.field(VECTOR + form, vector_type) for form in forms]
        table = self._table()
        if table is None:
            schema = pyarrow.schema([*_FACTS, *fields])
            self._opened = table = self._connection.create_table(TABLE, schema=schema, exist_ok=True)
        for field in fields:
            if field.name not in table.schema.names:
                table.add_columns(field)
        if not any(index.columns == ["words"] for index in table.list_indices()):
            table.create_index("words", config=_WORDS)
        return table

    def _index(self, form: str) -> Index | None:
        return Index.from_json(self.indices.get(form, {}).get("index"))

    def _count(self, condition: str | None) -> int:
        return 0 if self._table() is None else self._reading(lambda: self._table().count_rows(condition))

    def _scan(self, columns: list[str], where: Where | None) -> pyarrow.Table:
        if self._table() is None:
            return _FACTS.empty_table().select(columns)
        return self._reading(lambda: self._select(columns, _condition(where, frozenset())))

    def _rows_of(self, product_ids: Sequence[str], columns: list[str]) -> Iterator[pyarrow.Table]:
        if self._table() is not None:
            for chunk in _chunks(sorted(set(product_ids))):
                yield self._reading(lambda ids=chunk: self._select(columns, _id_is_in(ids)))  # type: ignore[misc]

    def _select(self, columns: list[str], condition: str | None) -> pyarrow.Table:
        query = self._table().search().select(columns)
        return (query if condition is None else query.where(condition)).to_arrow()

    def _reading(self, read: Callable[[], Answer], attempts: int = 5) -> Answer:
        """Return what a function reads; it reads again if a writer removed the version that it had started to read."""
        for attempt in range(attempts):
            try:
                return read()
            except (RuntimeError, OSError, ValueError) as error:
                if attempt == attempts - 1 or "not found" not in str(error).lower():
                    raise
                time.sleep(0.05 * 2**attempt)
                self._table().checkout_latest()
        raise AssertionError("unreachable")


def _rows(
    products: Sequence[StoredProduct], vectors: Mapping[str, np.ndarray], schema: pyarrow.Schema
) -> pyarrow.Table:
    columns: dict[str, Any] = {
        "product_id": [product.product_id for product in products],
        "facts": [to_json(product) for product in products],
        "digest": [product.digest for product in products],
        "price": [product.price for product in products],
        "brand": [product.brand for product in products],
        "availability": [product.availability for product in products],
        "category_paths": [category_paths(product) for product in products],
        "attribute_pairs": [attribute_pairs(product) for product in products],
        "words": [" ".join(searched_words(product)) for product in products],
        BUCKET: [zlib.crc32(product.product_id.encode()) % BUCKETS for product in products],
    }
    arrays = []
    for field in schema:
        if field.name in columns:
            arrays.append(pyarrow.array(columns[field.name], type=field.type))
            continue
        vector_ND = vectors.get(field.name.removeprefix(VECTOR))
        if vector_ND is None:
            arrays.append(pyarrow.nulls(len(products), type=field.type))
        else:
            missing_N = np.isnan(vector_ND).all(axis=1)
            flat = pyarrow.array(np.where(missing_N[:, None], 0, vector_ND).ravel(), type=pyarrow.float32())
            mask = pyarrow.array(missing_N)
            arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, vector_ND.shape[1], mask=mask))
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _vectors(column: pyarrow.ChunkedArray) -> np.ndarray:
    """Return (P, D) float32 vectors of a column; a row of NaN for null."""
    array = pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], type=column.type)
    found = np.full((len(array), array.type.list_size), np.nan, dtype=np.float32)
    there = array.is_valid().to_numpy(zero_copy_only=False)
    found[there] = array.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, array.type.list_size)
    return found


def _condition(where: Where | None, exclude: Iterable[str]) -> str | None:
    """Return a filter and excluded ids as SQL; None without either."""
    clauses = [where.sql()] if where is not None and where.conditions else []
    left_out = sorted(exclude)
    if left_out:
        clauses.append(f"(NOT {_id_is_in(left_out)})")
    return " AND ".join(clauses) or None


def _id_is_in(product_ids: Iterable[str]) -> str:
    return f"product_id IN ({', '.join(map(sql_text, product_ids))})"


def _chunks(product_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(product_ids), _ID_CHUNK):
        yield product_ids[start : start + _ID_CHUNK]
