"""Tables of triplets larger than memory: read row by row, decoded in worker processes, resumed exactly at any batch.

Rows are read in blocks by the main process, encoded as they are; a block is shuffled, put into batches and handed to the
data loader's workers, which open the pictures. What follows a block depends on the state of the streams at its start alone, so
that the state of a run is that state and the number of batches since. Our design (precedent: the shuffle buffer of
`datasets`, which loses its contents on resumption).
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
from training.batches.collate import PairCollator, UnreadableBatchError
from training.batches.pairs import FORM_OF_TYPE, Pair, PairDataset, PairSource
from training.recipe.pairs import PairArguments

SPARES = 4  # rows that travel with a batch, in case that some of its own cannot be read
SPLIT_COLUMN = "split"
_KEPT_STATES = 4096  # more than the batches that workers can be ahead
_BLOCK_SALT, _SHARD_SALT = 0x626C6F63, 0x73686172


class StreamError(ValueError):
    """A stream that cannot be read, or gives no rows."""

    exit_status = 3


@dataclass(frozen=True)
class StreamSource:
    """One table of triplets.

    Args:
        name: of the data set.
        rows: a `datasets.IterableDataset` whose pictures are not decoded.
        columns: what its columns are.
        weight: how often it is drawn, relative to the others.
        mask_groups: whether variants of the answer are no negatives.
        images: the folder that paths of pictures are relative to.
        split: where the table has a column "split", rows of this one and of "all" are read; None: all rows.
        reading: how cells are read.
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
    """A row on its way to a worker: of which source, and the numbers that seed its draws: epoch, shard, row."""

    source: int
    key: tuple[int, int, int]
    row: dict[str, Any]
    spare: bool = False


@dataclass(frozen=True)
class BadRow:
    """A row of which no pair can be made, and why."""

    item: str
    reason: str


class RowStream:
    """The rows of one process, without end: epoch after epoch, each row of the table once an epoch in one process.

    An epoch reads the shards in an order of its own, drawn by (seed, epoch). Where the number of shards divides by that of
    processes each reads its own shards, otherwise every process reads all and keeps its share of the rows
    (`datasets.distributed.split_dataset_by_node`). A process goes into its next epoch when it is through, whatever the others
    do: no batch is short, and none waits.

    Args:
        rows: the table.
        seed: of the order of shards.
        rank: this process.
        world_size: number of processes.
        split: see `StreamSource`.

    Raises:
        StreamError: an epoch without rows, a shard that cannot be read, or a saved state of another number of shards.
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
        found: list[tuple[tuple[int, int, int], dict[str, Any]]] = []
        while len(found) < count:
            shard = self._order_of(self._state["epoch"])[self._state["place"]]
            try:
                row = next(self._open(shard), None)
            except UnicodeDecodeError as error:
                place = ", ".join(undecodable_in(self.rows.shard(num_shards=self.shards, index=shard)))
                raise StreamError(
                    f"shard {shard}{place and f', {place}'}: not UTF-8 ({error}); expected UTF-8"
                ) from error
            except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
                raise StreamError(f"shard {shard} cannot be read ({type(error).__name__}: {error})") from error
            if row is None:
                self._next_shard()
                continue
            step, offset = (1, 0) if self._own_shards else (self.world_size, self.rank)
            if is_of_split(row, self.split):
                found.append(((self._state["epoch"], shard, self._state["row"] * step + offset), row))
                self._state["in_epoch"] += 1
            self._state["row"] += 1
        return found

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
            wanted = "" if self.split is None else f" of split {self.split!r}"
            raise StreamError(
                f"process {self.rank} of {self.world_size} found no rows{wanted}; expected at least one for each"
            )
        self._state |= {"epoch": self._state["epoch"] + 1, "place": 0, "in_epoch": 0}

    def state_dict(self) -> dict[str, Any]:
        """Return where the next row is read; plain numbers and texts."""
        shard = self._opened.state_dict() if self._opened is not None else self._state["shard"]
        return self._state | {"shards": self.shards, "shard": shard}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            StreamError: the table then had another number of shards, so that nobody knows which rows were read.
        """
        shards = state.get("shards", self.shards)  # states of older runs do not say
        if shards != self.shards:
            raise StreamError(
                f"shards: found {self.shards}, and {shards} where the checkpoint was written; expected the same files"
            )
        self._state = dict(state)
        self._opened = self._iterator = None


def undecodable_in(rows: datasets.IterableDataset) -> list[str]:
    """Return row and column of the first text that is not UTF-8; nothing where there is none."""
    first = 0
    for table in rows.with_format("arrow").iter(batch_size=1024):
        if place := undecodable(table, first):
            return place
        first += table.num_rows
    return []


class RowPairs(Dataset):
    """Makes the pair of a row: what a worker does before the pictures are opened.

    The query's form is drawn by `query_mix` among those that the row offers (any that it offers where the mix has none of
    them); a row without a query gets one derived from its product. A product without an id of its own is known by its
    title and picture, so that it is never its own negative; so are variants where no column names their group. Answers of one
    query that meet in a batch of this process are no negatives of it; those of other processes, and of past steps in the
    queue, are not known.

    Args:
        sources: the tables.
        options: how to draw.
        seed: of every draw, together with the row's key.
        length: number of rows that the run will see, for the trainer.
    """

    def __init__(self, sources: Sequence[StreamSource], options: PairArguments, seed: int, length: int) -> None:
        self.sources = [replace(source, rows=None) for source in sources]  # type: ignore[arg-type]  # a worker reads no rows
        self.options, self.seed, self.length = options, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: StreamRow) -> Pair | BadRow | StreamRow:
        return row if row.spare else self.pair(row)

    def pair(self, row: StreamRow) -> Pair | BadRow:
        """Return the row's pair, a pure function of (seed, source, key), or why there is none."""
        try:
            dataset = self._dataset(row)
            pair = dataset.draw_by(self._rng(row))
        except ValueError as error:
            return BadRow(self.name_of(row), str(error))
        query = next((query for rows in dataset.sources[0].queries.values() for query in rows), None)
        return pair if query is None else replace(pair, query_key=_content_key(query))

    def outline(self, row: StreamRow) -> Outline:
        """Return what can be told of the row's pair without opening a picture."""
        try:
            return Outline(*self._dataset(row).outline_by(self._rng(row)))
        except ValueError:
            return Outline("unreadable", 0)  # named when a worker makes the pair

    def _rng(self, row: StreamRow) -> np.random.Generator:
        return np.random.default_rng((self.seed, row.source, *row.key))

    def name_of(self, row: StreamRow) -> str:
        """Return what errors call a row: its own id or its product's, or its place."""
        source = self.sources[row.source]
        columns = source.columns.taken.get(ROW_ID, source.columns.taken.get("positive.id", ()))
        own = [cell_of(row.row, column) for column in columns]
        return (
            f"{source.name}/{mended(own[0])}"
            if own and own[0] is not None
            else f"{source.name}, shard {row.key[1]}, row {row.key[2]}"
        )

    def _dataset(self, row: StreamRow) -> PairDataset:
        """A data set of this one row."""
        source = self.sources[row.source]
        tables = self.tables(row)
        positive = tables.products[0]
        pairs = PairSource(tables, 1.0, source.mask_groups, streamed=True)
        options = self.options
        if tables.queries:
            there = [FORM_OF_TYPE[query.type] for query in tables.queries]
            mix = {form: options.query_mix.get(form, 0.0) for form in there}
            usable = mix if sum(mix.values()) > 0 else dict.fromkeys(there, 1.0)
            options = replace(options, query_mix=usable, derived_queries=False)
        elif not options.derived_queries:
            raise ValueError("found no query; expected one, or derived_queries")
        for rows in pairs.derivable.values():  # only the positive stands for a query
            rows[:] = [row for row in rows if row is positive]
        return PairDataset([pairs], options, seed=0, length=1)

    def tables(self, row: StreamRow) -> ProductTables:
        """Return a row as the tables of one query: its product first, then the hard negative where there is one.

        Raises:
            ValueError: a cell that cannot be read, or a product without text and picture.
        """
        source = self.sources[row.source]
        parts = ("positive", "negative") if source.columns.has("negative") else ("positive",)
        products = [product for part in parts if (product := self._product(row, part)) is not None]
        if not products:
            raise ValueError("the product has neither text nor picture")
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
                raise ValueError("the product has neither text nor picture")
            return None
        own = [cell_of(row.row, column) for column in source.columns.taken.get(f"{part}.id", ())]
        name = str(own[0]) if own and own[0] is not None else content_id(fields)
        return ProductRow(product_id=name, **fields)

    def _queries(self, row: StreamRow, products: list[str]) -> list[QueryRow]:
        """The query in every form that it offers."""
        source = self.sources[row.source]
        fields = product_fields(row.row, source.columns, "query", source.reading)
        images = parse_images([image for image in fields["images"] if image is not None], source.images)
        text, image = fields.get("title", ""), images[0] if images else None
        forms = [form for form, there in (("text", text), ("image", image), ("both", text and image)) if there]
        own = [cell_of(row.row, column) for column in source.columns.taken.get("query.id", ())]
        name = f"query {own[0]}" if own else f"query of {self.name_of(row)}"
        positives, negatives = (products[0],), tuple(name for name in products[1:] if name != products[0])
        box = fields.get("core_box")
        return [QueryRow(name, form, text, image, box, positives, negatives=negatives) for form in forms]


def _content_key(query: QueryRow) -> str:
    """Name a query of a row by all that it says, whatever form of it is drawn."""
    return content_id(
        {"title": " ".join(query.text.casefold().split()), "images": [query.image] if query.image is not None else []}
    )


class StreamBatches:
    """The batch sampler of a streaming run: yields lists of rows in place of indices.

    torch's data loader iterates it in the main process and sends each list to a worker. Each block of rows is shuffled (and
    bucketed) by (seed, process, block). With each batch travel some rows of the next as spares.

    Args:
        streams: one a source.
        pairs: makes the pairs.
        batch_size: pairs of one process and micro-step.
        batches: how many to yield, all of the run.
        block_rows: rows that are shuffled among each other, rounded up to whole batches.
        bucket_batches: batches of like items are formed within windows of so many; 0: not.
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
        """Every batch; those before the loaded state are empty, for whoever skips them."""
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
        """Return the state after so many batches were trained on, whatever workers have fetched beyond them.

        Args:
            consumed: batches trained on since the beginning of the run.

        Raises:
            StreamError: a batch that was not yielded, or too long ago.
        """
        if consumed not in self._states:
            raise StreamError(f"consumed: found {consumed}; expected {min(self._states)} to {max(self._states)}")
        return self._states[consumed]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches that a state had consumed; iteration begins with as many empty batches."""
        self._start = dict(state)
        self._states = OrderedDict({self._start["consumed"]: self._start})


class StreamCollator:
    """`PairCollator` for batches of a stream: spare rows stand in for those of which no pair can be made.

    Args:
        processor: makes the tensors.
        pairs: makes the pairs of spare rows; `training.labels.reasoning.ReasonedRows` where reasonings are given.
        allow_urls, forms, reasoning: as `PairCollator`.

    Raises:
        UnreadableBatchError: nothing of the batch and its spares can be read.

    Shapes:
        As `PairCollator`.
    """

    def __init__(
        self,
        processor: MoonProcessor,
        pairs: RowPairs,
        allow_urls: bool = False,
        forms: bool = False,
        reasoning: str = "none",
    ) -> None:
        self.processor, self.pairs = processor, pairs
        self.settings: dict[str, Any] = {"allow_urls": allow_urls, "forms": forms, "reasoning": reasoning}

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
            reasons = "; ".join(f"{one['item']}: {one['reason']}" for one in skipped[:5])
            raise UnreadableBatchError(f"no pair of this batch can be made: {reasons}")
        batch = PairCollator(self.processor, next_spare, **self.settings)(kept)
        return batch | {"skipped": skipped + batch["skipped"]}


def sample_of(source: StreamSource, count: int = 1000) -> ProductTables:
    """Return the first rows of a stream as tables: texts for a tokenizer, and what its pictures are.

    Args:
        source: the stream.
        count: how many rows.

    Raises:
        StreamError: no rows, or not one that can be read.
    """
    pairs = RowPairs([source], PairArguments(), seed=0, length=count)
    found, reasons = [], []
    rows = (row for row in source.rows if is_of_split(row, source.split))
    for number, row in enumerate(itertools.islice(rows, count)):
        try:
            found.append(pairs.tables(StreamRow(0, (0, 0, number), row)))
        except ValueError as error:
            reasons.append(str(error))
    if not found:
        wanted = "" if source.split is None else f" of split {source.split!r}"
        reason = f"no row can be read: {reasons[0]}" if reasons else f"found no rows{wanted}"
        raise StreamError(f"{source.name}: {reason}")
    products = [row for tables in found for row in tables.products]
    queries = [query for tables in found for query in tables.queries[:1]]
    return ProductTables(source.name, products, queries, ValidationReport(source.name, len(products), len(queries), {}))


def is_of_split(row: Mapping[str, Any], split: str | None) -> bool:
    """Return whether a row is to be read: its own split is absent, "all", or the one that is asked for."""
    return split is None or is_absent(row.get(SPLIT_COLUMN)) or row[SPLIT_COLUMN] in (split, EVERY_SPLIT)


def has_addresses(tables: ProductTables) -> bool:
    """Return whether pictures are given as http(s) addresses."""
    return any(is_address(image) for row in tables.products for image in row.images)
