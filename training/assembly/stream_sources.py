"""Open the streams of a recipe (parquet files and data sets from the Hub), and identify their columns."""

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from product_data.checking import IssueLog, check_html
from product_data.columns import ColumnError, find_columns
from product_data.table_files import TableError, refuse_undecodable
from product_data.tables import EVERY_SPLIT, ProductTables
from training.batches.streams import (
    SPLIT_COLUMN,
    RowPairs,
    RowStream,
    StreamBatches,
    StreamError,
    StreamSource,
    has_addresses,
    sample_of,
)
from training.libraries.datasets_library import with_features
from training.recipe.arguments import Recipe, RecipeError
from training.recipe.data import reading_of
from training.recipe.pairs import PairArguments

_LOOKED_AT = 100  # rows


def open_streams(recipe: Recipe) -> list[StreamSource]:
    """Open every entry of `data` as a stream, and print the roles of its columns.

    Raises:
        RecipeError: files or a data set cannot be opened, pairs cannot be made from the columns, two data sets have the
            same name, or pictures are given as URLs but allow_urls is false.
    """
    sources: list[StreamSource] = []
    for item in recipe.data.data:
        entry: dict[str, Any] = dict(item) if isinstance(item, dict) else stream_entry(item)
        name = entry.get("name") or Path(str(entry.get("hub") or _first(entry["parquet"]))).stem
        try:
            rows = _encoded_pictures(_open(entry, recipe.data.split))
            if recipe.training.process_index == 0:
                _refuse_invalid_unicode(entry)
            columns = find_columns(_column_names(rows), entry.get("columns"))
        except (ColumnError, StreamError) as error:
            raise RecipeError(f"data: {name}: {error}") from error
        if name in [other.name for other in sources]:
            raise RecipeError(f"data: found two data sets named {name!r}; expected a name: for each of them")
        images = Path(entry["images"]) if "images" in entry else _folder_of(entry)
        weight, mask_groups = entry.get("weight", 1.0), entry.get("mask_groups", recipe.data.mask_groups)
        split = recipe.data.split if SPLIT_COLUMN in columns.unread and recipe.data.split != EVERY_SPLIT else None
        source = StreamSource(name, rows, columns, weight, mask_groups, images, split, reading_of(entry))
        if recipe.training.process_index == 0:
            splits = "" if split is None else f", rows of split {split!r} and 'all'"
            print(f"{name}: streamed in {rows.num_shards} shards{splits}\n  {columns}", flush=True)
            for note in _notes(source):
                print(f"  in the first rows: {note}", flush=True)
        _check_addresses(recipe, source)
        sources.append(source)
    return sources


def stream_entry(place: str) -> dict[str, Any]:
    """Return the mapping for a plain text in `data`: existing files, or otherwise a data set from the Hub."""
    return {"parquet": place} if Path(place).exists() or glob.glob(place) else {"hub": place}


def _first(files: Any) -> str:
    return files if isinstance(files, str) else files[0]


def parquet_files(place: Any) -> list[str]:
    """Return the files of a folder, a pattern, a file, or a list of these, in order.

    Raises:
        StreamError: a path does not match a file.
    """
    files: list[str] = []
    for path in [place] if isinstance(place, str | Path) else place:
        matches = (
            sorted(map(str, Path(path).glob("*.parquet"))) if Path(path).is_dir() else sorted(glob.glob(str(path)))
        )
        if not matches:
            raise StreamError(
                f"parquet: found no file at {path}; expected a parquet file, a pattern, or a folder of them"
            )
        files += matches
    return files


def _with_rows(files: list[str]) -> list[str]:
    """Return the files that have rows, because `datasets` raises an error for empty ones."""
    filled = []
    for file in files:
        try:
            rows = pyarrow.parquet.read_metadata(file).num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise StreamError(
                f"parquet: found {file}, which cannot be read ({error}); expected a parquet file"
            ) from error
        filled += [file] if rows else []
    if not filled:
        raise StreamError(f"parquet: found no rows in {len(files)} files; expected at least one row")
    return filled


def _folder_of(entry: dict[str, Any]) -> Path:
    return Path(parquet_files(entry["parquet"])[0]).parent if "parquet" in entry else Path()


def _open(entry: dict[str, Any], split: str) -> datasets.IterableDataset:
    try:
        if "parquet" in entry:
            files = _with_rows(parquet_files(entry["parquet"]))
            return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        split, revision = entry.get("split", split), entry.get("revision")
        return datasets.load_dataset(entry["hub"], entry.get("config"), split=split, revision=revision, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, StreamError):
            raise
        raise StreamError(
            f"found data that cannot be opened ({type(error).__name__}: {error}); expected parquet files or a data set "
            "from the Hub"
        ) from error


def _encoded_pictures(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """Return the rows with pictures that are not decoded, because the workers decode them."""
    rows = with_features(rows)
    for name, feature in (rows.features or {}).items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(inner, datasets.Image):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return rows


def _column_names(rows: datasets.IterableDataset) -> list[str]:
    """Return the names of the columns; a column of a struct is named "struct.column"."""
    names: list[str] = []
    for name, feature in (rows.features or {}).items():
        inner = [f"{name}.{part}" for part in feature] if isinstance(feature, dict) else []
        names += [name] if not inner or {"bytes", "path"} >= set(feature) else inner
    return names


def _refuse_invalid_unicode(entry: dict[str, Any]) -> None:
    """Raise StreamError for local files with text that is not UTF-8. Data from the Hub is checked when it is read."""
    for file in parquet_files(entry["parquet"]) if "parquet" in entry else ():
        try:
            refuse_undecodable(Path(file))
        except TableError as error:
            raise StreamError(f"parquet: {error}") from error


def _notes(source: StreamSource) -> list[str]:
    """Return the issues with texts in the first rows, as in the report on a table."""
    log = IssueLog()
    try:
        tables = sample_of(source, count=_LOOKED_AT)
    except StreamError:
        return []  # raised where rows are read
    check_html(tables.products, tables.queries, log)
    return [str(issue) for issue in log.issues()]


def _check_addresses(recipe: Recipe, source: StreamSource) -> None:
    """Raise RecipeError for pictures that are given as URLs if allow_urls is false."""
    if recipe.data.allow_urls:
        return
    try:
        first = sample_of(source, count=1)
    except StreamError as error:
        raise RecipeError(f"data: {error}") from error
    if has_addresses(first):
        raise RecipeError(f"data: {source.name}: found pictures given as URLs; expected allow_urls: true")


def sample_tables(sources: list[StreamSource]) -> list[ProductTables]:
    """Return the first thousand rows of each stream, for a tokenizer or a token budget.

    Raises:
        RecipeError: a stream does not have rows.
    """
    try:
        return [sample_of(source) for source in sources]
    except StreamError as error:
        raise RecipeError(f"data: {error}") from error


def stream_batches(
    recipe: Recipe,
    args: Any,
    sources: Sequence[StreamSource],
    options: PairArguments,
    steps: int,
    make_pairs: Callable[..., RowPairs] = RowPairs,
) -> StreamBatches:
    """Return the batches of this process for a number of steps.

    Args:
        recipe: the recipe, with shuffle_rows and bucket_batches.
        args: the training arguments, with batch size, seed and the index of this process.
        sources: the streams from `open_streams`.
        options: the recipe's keys of pairs.
        steps: the number of optimizer steps of the run.
        make_pairs: `RowPairs`, or a function with the same arguments.
    """
    data = recipe.data
    batches = steps * args.gradient_accumulation_steps
    pairs = make_pairs(sources, options, args.seed, batches * args.per_device_train_batch_size)
    seeds = [args.seed + number for number in range(len(sources))]
    streams = [
        RowStream(source.rows, seed, args.process_index, args.world_size, source.split)
        for source, seed in zip(sources, seeds, strict=True)
    ]
    return StreamBatches(
        streams,
        pairs,
        batch_size=args.per_device_train_batch_size,
        batches=batches,
        block_rows=data.shuffle_rows,
        bucket_batches=data.bucket_batches,
    )
