"""Stream tables of triplets that are larger than memory, decode them in workers, and resume exactly at any batch.

The main process reads rows in blocks, without decoding pictures. A block is shuffled, split into batches and sent to
the workers of the data loader, which open the pictures. A block depends only on the state of the streams at its start,
so the state of a run consists of that state and the number of batches since then. Our design (precedent: the shuffle
buffer of `datasets`, which loses its contents when a run resumes).
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset

from processing_moon import MoonProcessor
from product_data.columns import ROW_ID, RowColumns, cell_of, content_id, product_fields
from product_data.reading import ReadingOptions
from product_data.table_files import is_absent, is_address, parse_images, undecodable
from product_data.tables import EVERY_SPLIT, ProductRow, ProductTables, QueryRow, ValidationReport
from product_data.text_cells import mended
from training.batches.buckets import Outline, bucket_order
from training.batches.called_teacher import CalledTeacher
from training.batches.collate import PairCollator, UnreadableBatchError
from training.batches.pairs import FORM_OF_TYPE, Pair, PairDataset, PairSource
from training.batches.teacher_vectors import TeacherVectors
from training.batches.variants import VariantDraws
from training.recipe.pairs import PairArguments

SPARES = 4  # additional rows that are sent with a batch, which replace unreadable rows
SPLIT_COLUMN = "split"
_KEPT_STATES = 4096  # more than the number of batches that workers prefetch
_BLOCK_SALT, _SHARD_SALT = 0x626C6F63, 0x73686172


class StreamError(ValueError):
    """A stream that cannot be read or does not have rows."""

    exit_status = 3


@dataclass(frozen=True)
class StreamSource:
    """A streamed table of triplets.

    Args:
        name: the name of the data set.
        rows: a `datasets.IterableDataset` whose pictures are not decoded.
        columns: the roles of its columns.
        weight: the frequency of draws, relative to the other tables.
        mask_groups: whether to exclude variants of the answer from the negatives.
        images: the folder to which paths of pictures are relative.
        split: the value of the column "split" whose rows are read, besides those of "all". None: all rows.
        reading: the options for reading cells.
    """

    name: str
    rows: datasets.IterableDataset
    columns: RowColumns
    weight: float = 1.0
    mask_groups: bool = True
    images: Path = Path()
    split: str | None = None
    reading: ReadingOptions = ReadingOptions()


@dataclass(frozen=True)
class StreamRow:
    """A row that is sent to a worker, with the index of its source and its key (epoch, shard, row), which seeds the draws."""

    source: int
    key: tuple[int, int, int]
    row: dict[str, Any]
    spare: bool = False


@dataclass(frozen=True)
class BadRow:
    """A row from which a pair cannot be made, and the reason."""

    item: str
    reason: str


class RowStream:
    """The rows of a process in an infinite stream. In each epoch, each row of the table occurs once in one process.

    The order of the shards in an epoch is drawn by (seed, epoch). If the number of shards is a multiple of the number
    of processes, each process reads its own shards. Otherwise every process reads all shards and keeps its share of the
    rows (`datasets.distributed.split_dataset_by_node`). A process continues with its next epoch independently of the
    others, so no batch is short and no process waits.

    Args:
        rows: the table.
        seed: the seed of the order of shards.
        rank: the index of this process.
        world_size: the number of processes.
        split: see `StreamSource`.

    Raises:
        StreamError: an epoch does not have rows, a shard cannot be read, or a saved state has a different number of
            shards.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        split: str | None = None,
    ) -> None:
        self.rows, self.seed, self.rank, self.world_size, self.split = rows, seed, rank, world_size, split
        self.shards = rows.num_shards
        self._state: dict[str, Any] = {"epoch": 0, "place": 0, "row": 0, "in_epoch": 0, "shard": None}
        self._opened: datasets.IterableDataset | None = None
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._order_of = lru_cache(maxsize=1)(self._draw_order)

    @property
    def _own_shards(self) -> bool:
        return self.shards % self.world_size == 0

    def _draw_order(self, epoch: int) -> list[int]:
        rng = np.random.default_rng((self.seed, _SHARD_SALT, epoch))
        order = rng.permutation(self.shards).tolist()
        return order[self.rank :: self.world_size] if self._own_shards else order

    def read(self, count: int) -> list[tuple[tuple[int, int, int], dict[str, Any]]]:
        """Return the next rows, each with its key (epoch, shard, row in the shard)."""
        rows: list[tuple[tuple[int, int, int], dict[str, Any]]] = []
        while len(rows) < count:
            shard = self._order_of(self._state["epoch"])[self._state["place"]]
            try:
                row = next(self._open(shard), None)
            except UnicodeDecodeError as error:
                place = ", ".join(undecodable_in(self.rows.shard(num_shards=self.shards, index=shard)))
                raise StreamError(
                    f"shard {shard}{place and f', {place}'}: found text that is not UTF-8 ({error}); expected UTF-8"
                ) from error
            except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
                raise StreamError(f"shard {shard} cannot be read ({type(error).__name__}: {error})") from error
            if row is None:
                self._next_shard()
                continue
            step, offset = (1, 0) if self._own_shards else (self.world_size, self.rank)
            if is_of_split(row, self.split):
                rows.append(((self._state["epoch"], shard, self._state["row"] * step + offset), row))
                self._state["in_epoch"] += 1
            self._state["row"] += 1
        return rows

    def _open(self, shard: int) -> Iterator[dict[str, Any]]:
        if self._iterator is None:
            opened = self.rows.shard(num_shards=self.shards, index=shard)
            if not self._own_shards:
                opened = split_dataset_by_node(opened, rank=self.rank, world_size=self.world_size)
            if self._state["shard"] is not None:
                opened.load_state_dict(self._state["shard"])
            self._opened, self._iterator = opened, iter(opened)
        return self._iterator

    def _next_shard(self) -> None:
        self._opened = self._iterator = None
        self._state |= {"place": self._state["place"] + 1, "row": 0, "shard": None}
        if self._state["place"] < len(self._order_of(self._state["epoch"])):
            return
        if not self._state["in_epoch"]:
            of_split = "" if self.split is None else f" of split {self.split!r}"
            raise StreamError(
                f"process {self.rank} of {self.world_size}: found no rows{of_split}; expected at least one row for each "
                "process"
            )
        self._state |= {"epoch": self._state["epoch"] + 1, "place": 0, "in_epoch": 0}

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next row, as plain numbers and texts."""
        shard = self._opened.state_dict() if self._opened is not None else self._state["shard"]
        return self._state | {"shards": self.shards, "shard": shard}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the position in a state of `state_dict`.

        Raises:
            StreamError: the number of shards has changed, so it is unknown which rows were read.
        """
        shards = state.get("shards", self.shards)  # states of older runs do not contain it
        if shards != self.shards:
            raise StreamError(f"shards: found {self.shards}, but {shards} in the checkpoint; expected the same files")
        self._state = dict(state)
        self._opened = self._iterator = None


def undecodable_in(rows: datasets.IterableDataset) -> list[str]:
    """Return the row and the column of the first text that is not UTF-8; empty if all texts are."""
    first = 0
    for table in rows.with_format("arrow").iter(batch_size=1024):
        if place := undecodable(table, first):
            return place
        first += table.num_rows
    return []


class RowPairs(Dataset):
    """Make the pair of a row, in a worker, before the pictures are opened.

    The form of the query is drawn by `query_mix` among the forms of the row, or uniformly if the mix has none of them.
    For a row without a query, one is derived from its product. A product without an id is identified by its title and
    picture, so it is never its own negative; so are variants without a column of groups. Answers of the same query in a
    batch of this process are excluded from its negatives. The answers in other processes and in past steps of the queue
    are not known.

    Args:
        sources: the tables.
        options: the recipe's keys of pairs.
        seed: the seed of all draws, together with the key of the row.
        length: the number of rows that the run will see, for the trainer.
        variants: variants of the products, by their ids. Default: none.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        options: PairArguments,
        seed: int,
        length: int,
        variants: VariantDraws | None = None,
    ) -> None:
        self.variants = variants
        self.sources = [replace(source, rows=None) for source in sources]  # type: ignore[arg-type]  # a worker reads no rows
        self.options, self.seed, self.length = options, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: StreamRow) -> Pair | BadRow | StreamRow:
        return row if row.spare else self.pair(row)

    def pair(self, row: StreamRow) -> Pair | BadRow:
        """Return the pair for a row, or the reason why there is none; the result depends only on seed, source and key."""
        try:
            dataset = self._dataset(row)
            pair = dataset.draw_by(self._rng(row))
        except ValueError as error:
            return BadRow(self.name_of(row), str(error))
        query = next((query for rows in dataset.sources[0].queries.values() for query in rows), None)
        return pair if query is None else replace(pair, query_key=_content_key(query))

    def outline(self, row: StreamRow) -> Outline:
        """Return the outline of the row's pair, without opening a picture."""
        try:
            return Outline(*self._dataset(row).outline_by(self._rng(row)))
        except ValueError:
            return Outline("unreadable", 0)  # reported when a worker makes the pair

    def _rng(self, row: StreamRow) -> np.random.Generator:
        return np.random.default_rng((self.seed, row.source, *row.key))

    def name_of(self, row: StreamRow) -> str:
        """Return the name of a row in error messages: its id, the id of its product, or its position."""
        source = self.sources[row.source]
        columns = source.columns.taken.get(ROW_ID, source.columns.taken.get("positive.id", ()))
        ids = [cell_of(row.row, column) for column in columns]
        return (
            f"{source.name}/{mended(ids[0])}"
            if ids and ids[0] is not None
            else f"{source.name}, shard {row.key[1]}, row {row.key[2]}"
        )

    def _dataset(self, row: StreamRow) -> PairDataset:
        """Return a data set that consists of a row."""
        source = self.sources[row.source]
        tables = self.tables(row)
        positive = tables.products[0]
        pairs = PairSource(tables, 1.0, source.mask_groups, streamed=True)
        options = self.options
        if tables.queries:
            forms = [FORM_OF_TYPE[query.type] for query in tables.queries]
            mix = {form: options.query_mix.get(form, 0.0) for form in forms}
            usable = mix if sum(mix.values()) > 0 else dict.fromkeys(forms, 1.0)
            options = replace(options, query_mix=usable, derived_queries=False)
        elif not options.derived_queries:
            raise ValueError("found no query; expected a query, or derived_queries: true")
        for rows in pairs.derivable.values():  # derive queries only from the positive
            rows[:] = [row for row in rows if row is positive]
        return PairDataset([pairs], options, seed=0, length=1, variants=self.variants)

    def tables(self, row: StreamRow) -> ProductTables:
        """Return a row as the tables of a query, with the positive and, if present, the hard negative.

        Raises:
            ValueError: a cell cannot be read, or the product has neither text nor picture.
        """
        source = self.sources[row.source]
        parts = ("positive", "negative") if source.columns.has("negative") else ("positive",)
        products = [product for part in parts if (product := self._product(row, part)) is not None]
        if not products:
            raise ValueError("found a product without text or picture; expected at least one of them")
        queries = (
            self._queries(row, [product.product_id for product in products]) if source.columns.has("query") else []
        )
        report = ValidationReport(source.name, len(products), len(queries), {})
        return ProductTables(source.name, products, queries, report)

    def _product(self, row: StreamRow, part: str) -> ProductRow | None:
        source = self.sources[row.source]
        fields = product_fields(row.row, source.columns, part, source.reading)
        fields["images"] = parse_images([image for image in fields["images"] if image is not None], source.images)
        if not fields.get("title") and not fields["images"]:
            if part == "positive":
                raise ValueError("found a product without text or picture; expected at least one of them")
            return None
        ids = [cell_of(row.row, column) for column in source.columns.taken.get(f"{part}.id", ())]
        name = str(ids[0]) if ids and ids[0] is not None else content_id(fields)
        return ProductRow(product_id=name, **fields)

    def _queries(self, row: StreamRow, products: list[str]) -> list[QueryRow]:
        """Return the query in each of its forms."""
        source = self.sources[row.source]
        fields = product_fields(row.row, source.columns, "query", source.reading)
        images = parse_images([image for image in fields["images"] if image is not None], source.images)
        text, image = fields.get("title", ""), images[0] if images else None
        forms = [form for form, content in (("text", text), ("image", image), ("both", text and image)) if content]
        ids = [cell_of(row.row, column) for column in source.columns.taken.get("query.id", ())]
        name = f"query {ids[0]}" if ids else f"query of {self.name_of(row)}"
        positives, negatives = (products[0],), tuple(name for name in products[1:] if name != products[0])
        box = fields.get("core_box")
        return [QueryRow(name, form, text, image, box, positives, negatives=negatives) for form in forms]


def _content_key(query: QueryRow) -> str:
    """Return a key of a query that depends on its text and picture, but not on the drawn form."""
    return content_id(
        {"title": " ".join(query.text.casefold().split()), "images": [query.image] if query.image is not None else []}
    )


class StreamBatches:
    """The batch sampler of a streaming run, which yields lists of rows instead of indices.

    The data loader of torch iterates it in the main process and sends each list to a worker. Each block of rows is
    shuffled (and bucketed) by (seed, process, block). Each batch also contains some rows of the next batch as spares.

    Args:
        streams: a stream for each source.
        pairs: makes the pairs.
        batch_size: the number of pairs of a process and micro-step.
        batches: the number of batches of the run.
        block_rows: the number of rows that are shuffled together, rounded up to whole batches.
        bucket_batches: the number of batches in a window within which similar pairs are grouped; 0 to disable.
    """

    def __init__(
        self,
        streams: Sequence[RowStream],
        pairs: RowPairs,
        *,
        batch_size: int,
        batches: int,
        block_rows: int = 1024,
        bucket_batches: int = 0,
    ) -> None:
        self.streams, self.pairs = list(streams), pairs
        self.batch_size, self.batches = batch_size, batches
        self.block_rows = -(-block_rows // batch_size) * batch_size
        self.bucket_batches = bucket_batches
        self._start: dict[str, Any] = {"consumed": 0, "block": 0, "offset": 0, "streams": None}
        self._states: OrderedDict[int, dict[str, Any]] = OrderedDict({0: self._start})

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[StreamRow]]:
        yield from itertools.islice(self._all_batches(), self.batches)

    def _all_batches(self) -> Iterator[list[StreamRow]]:
        """Yield all batches. Those before the loaded state are empty, because the trainer skips them."""
        number, offset = self._start["consumed"], self._start["offset"]
        yield from ([] for _ in range(number))
        if self._start["streams"] is not None:
            for stream, state in zip(self.streams, self._start["streams"], strict=True):
                stream.load_state_dict(state)
        for block in itertools.count(self._start["block"]):
            states = [stream.state_dict() for stream in self.streams]
            for place, batch in enumerate(self._block(block)):
                if place >= offset:
                    number += 1
                    self._states[number] = {"consumed": number, "block": block, "offset": place + 1, "streams": states}
                    if len(self._states) > _KEPT_STATES:
                        self._states.popitem(last=False)
                    yield batch
            offset = 0

    def _block(self, block: int) -> list[list[StreamRow]]:
        """Read a block and form its batches."""
        rng = np.random.default_rng((self.pairs.seed, _BLOCK_SALT, self.streams[0].rank, block))
        weights = np.array([source.weight for source in self.pairs.sources], dtype=np.float64)
        counts = rng.multinomial(self.block_rows, weights / weights.sum())
        rows = [
            StreamRow(number, key, row)
            for number, (stream, count) in enumerate(zip(self.streams, counts, strict=True))
            for key, row in stream.read(int(count))
        ]
        rows = [rows[index] for index in rng.permutation(len(rows))]
        if self.bucket_batches:
            window = self.bucket_batches * self.batch_size
            rows = [
                rows[start + index]
                for start in range(0, len(rows), window)
                for index in bucket_order(
                    [self.pairs.outline(row) for row in rows[start : start + window]], self.batch_size, rng
                )
            ]
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        if len(batches) == 1:
            return batches
        following = [*batches[1:], batches[0]]
        return [
            [*batch, *(replace(row, spare=True) for row in spares[:SPARES])]
            for batch, spares in zip(batches, following, strict=True)
        ]

    def state_dict(self, consumed: int) -> dict[str, Any]:
        """Return the state after a number of trained batches, even if workers have prefetched more.

        Args:
            consumed: the number of batches that the run has trained on.

        Raises:
            StreamError: the batch has not been yielded yet, or was yielded too long ago.
        """
        if consumed not in self._states:
            raise StreamError(f"consumed: found {consumed}; expected {min(self._states)} to {max(self._states)}")
        return self._states[consumed]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batches that a state has consumed. Iteration begins with as many empty batches."""
        self._start = dict(state)
        self._states = OrderedDict({self._start["consumed"]: self._start})


class StreamCollator:
    """`PairCollator` for batches of a stream, in which spare rows replace rows from which a pair cannot be made.

    Args:
        processor: the processor.
        pairs: makes the pairs of spare rows; `training.labels.reasoning.ReasonedRows` if reasoning is given.
        allow_urls, forms, reasoning, earlier, teachers: see `PairCollator`.

    Raises:
        UnreadableBatchError: no row of the batch and no spare can be read.

    Shapes:
        See `PairCollator`.
    """

    def __init__(
        self,
        processor: MoonProcessor,
        pairs: RowPairs,
        allow_urls: bool = False,
        forms: bool = False,
        reasoning: str = "none",
        earlier: Any = None,
        teachers: Sequence[TeacherVectors | CalledTeacher] = (),
    ) -> None:
        self.processor, self.pairs = processor, pairs
        self.settings: dict[str, Any] = {"allow_urls": allow_urls, "forms": forms, "reasoning": reasoning}
        self.settings |= {"earlier": earlier, "teachers": teachers}

    def __call__(self, items: Sequence[Pair | BadRow | StreamRow]) -> dict[str, Any]:
        spares = [item for item in items if isinstance(item, StreamRow)]
        skipped: list[dict[str, str]] = []

        def next_spare(*_: int) -> Pair | None:
            while spares:
                pair = self.pairs.pair(spares.pop(0))
                if isinstance(pair, Pair):
                    return pair
                skipped.append({"item": pair.item, "field": "row", "reason": pair.reason})
            return None

        kept: list[Pair] = []
        for item in items:
            if isinstance(item, BadRow):
                skipped.append({"item": item.item, "field": "row", "reason": item.reason})
                spare = next_spare()
                kept += [spare] if spare is not None else []
            elif isinstance(item, Pair):
                kept.append(item)
        if not kept:
            reasons = "; ".join(f"{skip['item']}: {skip['reason']}" for skip in skipped[:5])
            raise UnreadableBatchError(f"batch: found no readable pair; expected at least one: {reasons}")
        batch = PairCollator(self.processor, next_spare, **self.settings)(kept)
        return batch | {"skipped": skipped + batch["skipped"]}


def sample_of(source: StreamSource, count: int = 1000) -> ProductTables:
    """Return the first rows of a stream as tables.

    Args:
        source: the stream.
        count: the number of rows.

    Raises:
        StreamError: the stream does not have rows, or none of them can be read.
    """
    pairs = RowPairs([source], PairArguments(), seed=0, length=count)
    sampled, reasons = [], []
    rows = (row for row in source.rows if is_of_split(row, source.split))
    for number, row in enumerate(itertools.islice(rows, count)):
        try:
            sampled.append(pairs.tables(StreamRow(0, (0, 0, number), row)))
        except ValueError as error:
            reasons.append(str(error))
    if not sampled:
        of_split = "" if source.split is None else f" of split {source.split!r}"
        reason = f"found no readable rows ({reasons[0]})" if reasons else f"found no rows{of_split}"
        raise StreamError(f"{source.name}: {reason}; expected at least one")
    products = [row for tables in sampled for row in tables.products]
    queries = [query for tables in sampled for query in tables.queries[:1]]
    return ProductTables(source.name, products, queries, ValidationReport(source.name, len(products), len(queries), {}))


def is_of_split(row: Mapping[str, Any], split: str | None) -> bool:
    """Return whether a row belongs to a split: its own split is missing, "all", or the requested one."""
    return split is None or is_absent(row.get(SPLIT_COLUMN)) or row[SPLIT_COLUMN] in (split, EVERY_SPLIT)


def has_addresses(tables: ProductTables) -> bool:
    """Return whether any picture is given as an http(s) URL."""
    return any(is_address(image) for row in tables.products for image in row.images)
