"""Mine hard negatives with a model: products near to a query and in the category of its answer, but not answers.

    moon3 mine --model DIR --data FOLDER|FILE|catalogue --output FOLDER

OUTPUT/queries.parquet is the queries table with the column `negatives` filled for the queries of the split, ready for a
recipe: data: [{products: …, queries: OUTPUT/queries.parquet}]. OUTPUT/report.json counts the negatives of the queries, and
the reasons why some queries have fewer. OUTPUT/vectors and OUTPUT/mined are kept, so that the same command resumes.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from tqdm import tqdm

import evaluation.baselines  # noqa: F401 - registers its models
from product_data.atomic_files import write_atomically
from product_data.query_files import write_query_rows
from product_data.tables import EVERY_SPLIT, ProductTables, QueryRow
from retrieval.encode import Encoded, config_digest, encode
from retrieval.shortened import shortened_items, shortened_sentence, shortened_summary
from training.assembly.sources import with_splits
from training.batches.negatives import stable_id
from training.mining.hard_negatives import (
    Mined,
    MiningOptions,
    ProductIndex,
    best_candidates,
    choose_negatives,
    similarity_limit,
)

QUERIES_FILE, REPORT_FILE, SETTINGS_FILE = "queries.parquet", "report.json", "mining.json"
_VECTORS, _MINED = "vectors", "mined"
_EXAMPLES = 5
_SAMPLED_BYTES = 2**20


class MiningError(ValueError):
    """Raised if the data cannot be mined, or the folder cannot be used."""

    exit_status = 2


@dataclass(frozen=True)
class MiningJob:
    """The settings of a mining run.

    Args:
        output: folder to write.
        split (`str`): split whose queries get negatives, from the products of that split. A table without splits is split
            as in training. "all": all queries and products. Default "train".
        batch_size (`int`): number of queries or products in a batch of encoding. Default 32.
        shard_rows (`int`): number of queries or products in a shard; an interruption loses at most one shard. Default 1024.
        overwrite (`bool`): replace the results of an earlier mining run in the folder. Default False.
        progress (`bool`): show a progress bar. Default True.
        options: the filters, see MiningOptions.

    Raises:
        MiningError: a number is below 1.
    """

    output: Path
    split: str = "train"
    batch_size: int = 32
    shard_rows: int = 1024
    overwrite: bool = False
    progress: bool = True
    options: MiningOptions = dataclasses.field(default_factory=MiningOptions)

    def __post_init__(self) -> None:
        if min(self.batch_size, self.shard_rows) < 1:
            raise MiningError(
                f"batch-size and shard-rows: found {self.batch_size} and {self.shard_rows}; expected 1 or more"
            )


def mine(model: Any, processor: Any, tables: ProductTables, job: MiningJob, model_path: str = "") -> dict[str, Any]:
    """Mine hard negatives for the queries of a split, and write the queries table with them.

    Args:
        model, processor: from `retrieval.encode.load_for_evaluation`.
        tables: the whole data set.
        job: see MiningJob.
        model_path: folder of the model; its weights distinguish this mining run from one with another model.

    Returns:
        The report: queries, "negatives" (number of negatives → number of queries), "reasons" (why negatives are missing →
        number of queries), examples, "unreadable" (queries and products that could not be encoded), "shortened" (see
        `retrieval.shortened.shortened_summary`) and its limit "max_tokens".

    Raises:
        MiningError: the split has no queries or no products, or the folder holds the results of a mining run with
            another model or other data.
        TableError: the split does not exist.
    """
    split_tables = with_splits(tables) if set(tables.splits) <= {EVERY_SPLIT} and job.split != EVERY_SPLIT else tables
    part = split_tables.select(job.split)
    if not part.queries or not part.products:
        raise MiningError(
            f"{tables.name}, split {job.split!r}: found {len(part.queries)} queries and {len(part.products)} products; "
            "expected at least one of each"
        )
    twice = [name for name, uses in Counter(query.query_id for query in tables.queries).items() if uses > 1]
    if twice:
        raise MiningError(
            f"{tables.name}: found query_id {twice[0]!r} twice; expected a different query_id for each query"
        )
    store = _Store(
        job, part, f"{config_digest(model)} {_weights_digest(model_path)} {_settings_digest(processor)}", model_path
    )
    bar = tqdm(total=len(part.products) + 2 * len(part.queries), unit="record", disable=not job.progress)
    with bar:
        named = {
            kind: store.encode_all(kind, records, (model, processor), bar)
            for kind, records in (
                ("product", [row.record() for row in part.products]),
                ("query", [row.record() for row in part.queries]),
            )
        }
        mined = list(_mine_all(store, part, next(model.parameters()).device, bar))
    write_queries(tables.queries, dict(zip((row.query_id for row in part.queries), mined, strict=True)), job.output)
    shortened = shortened_summary(entry for _, cut in named.values() for entry in cut)
    report = _report(part, mined, {kind: skipped for kind, (skipped, _) in named.items()}, job)
    report |= {"shortened": shortened, "max_tokens": processor.max_tokens}
    write_atomically(job.output / REPORT_FILE, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


class _Store:
    """The folder of a mining run: vectors and mined queries by shard, each written atomically."""

    def __init__(self, job: MiningJob, part: ProductTables, encoder: str, model_path: str) -> None:
        self.folder, self.job = job.output, job
        made_of = {"model": encoder, "data": _data_digest(part), "shard_rows": job.shard_rows}
        mined_by = dataclasses.asdict(job.options) | {"identical_products": "left out"}
        stored_file = self.folder / SETTINGS_FILE
        stored = json.loads(stored_file.read_text(encoding="utf-8")) if stored_file.is_file() else None
        if stored is not None and job.overwrite:
            self._clear(_VECTORS, _MINED)
        elif stored is not None and stored["made_of"] != made_of:
            differing = ", ".join(key for key in made_of if stored["made_of"].get(key) != made_of[key])
            raise MiningError(
                f"{self.folder}: the {differing} of the stored vectors differs; expected another output, or --overwrite"
            )
        elif stored is not None and stored["mined_by"] != mined_by:
            self._clear(_MINED)  # the vectors remain valid
        for name in (_VECTORS, _MINED):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        settings = {"made_of": made_of, "mined_by": mined_by, "model": model_path, "split": job.split}
        write_atomically(stored_file, json.dumps(settings, indent=1) + "\n")

    def _clear(self, *names: str) -> None:
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def starts(self, rows: int) -> range:
        """Return the first row of each shard."""
        return range(0, rows, self.job.shard_rows)

    def encode_all(
        self, kind: str, records: Sequence[dict[str, Any]], encoder: tuple[Any, Any], bar: tqdm
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Encode the missing shards, and return what could not be encoded, and what was shortened."""
        skipped: list[dict[str, Any]] = []
        shortened: list[dict[str, Any]] = []
        bar.set_description(f"vectors of {kind} records")
        for start in self.starts(len(records)):
            path = self._vectors(kind, start)
            chunk = records[start : start + self.job.shard_rows]
            if not _is_written(path):
                found = encode(*encoder, chunk, kind=kind, batch_size=self.job.batch_size, progress=False)
                _write_vectors(path, kind, found, chunk)
            with np.load(path) as shard:
                skipped += json.loads(str(shard["skipped"]))
                shortened += json.loads(str(shard["shortened"]))
            bar.update(len(chunk))
        return skipped, shortened

    def vectors(self, kind: str, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, vectors) of each shard; rows that could not be encoded hold NaN."""
        for start in self.starts(rows):
            with np.load(self._vectors(kind, start)) as shard:
                yield start, torch.from_numpy(shard["vectors"])

    def vectors_of(self, kind: str, wanted: Sequence[int]) -> torch.Tensor:
        """Return the vectors of the selected rows, reading each shard once."""
        found: dict[int, torch.Tensor] = {}
        for start in sorted({row - row % self.job.shard_rows for row in wanted}):
            with np.load(self._vectors(kind, start)) as shard:
                vectors = shard["vectors"]
            end = start + len(vectors)
            found |= {row: torch.from_numpy(vectors[row - start]) for row in set(wanted) if start <= row < end}
        return torch.stack([found[row] for row in wanted])

    def _vectors(self, kind: str, start: int) -> Path:
        return self.folder / _VECTORS / f"{kind}-{start:09d}.npz"

    def mined(self, start: int) -> Path:
        """Return the file of the mined queries that starts at a row."""
        return self.folder / _MINED / f"{start:09d}.parquet"


def _is_written(path: Path) -> bool:
    """Return whether a shard of vectors is written and lists what was shortened."""
    if not path.is_file():
        return False
    with np.load(path) as shard:
        return "shortened" in shard


def _write_vectors(path: Path, kind: str, encoded: Encoded, chunk: Sequence[dict[str, Any]]) -> None:
    vectors = np.full((len(chunk), encoded.vectors.shape[1]), np.nan, dtype=np.float32)
    vectors[encoded.kept] = encoded.vectors
    named = [record.as_dict() | {"item": chunk[record.index]["id"]} for record in encoded.skipped]
    cut = shortened_items(kind, encoded.shortened, [str(record["id"]) for record in chunk])
    skipped, shortened = (np.array(json.dumps(entries, ensure_ascii=False)) for entries in (named, cut))
    _write_whole(path, lambda partial: np.savez(partial, vectors=vectors, skipped=skipped, shortened=shortened))


def _write_whole(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file under a partial name, and rename it when it is complete."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        write(stream)
    partial.replace(path)


def _mine_all(store: _Store, part: ProductTables, device: Any, bar: tqdm) -> Iterator[Mined]:
    """Mine shard by shard, reading the finished shards."""
    index = ProductIndex(part.products, store.job.options)
    bar.set_description("hard negatives")
    for start in store.starts(len(part.queries)):
        path = store.mined(start)
        queries = part.queries[start : start + store.job.shard_rows]
        if not path.is_file():
            mined = list(_mine_block(store, index, part, range(start, start + len(queries)), device))
            table = pyarrow.table(
                {
                    "query_id": [query.query_id for query in queries],
                    "negatives": pyarrow.array([list(query.negatives) for query in mined], _TEXTS),
                    "similarities": pyarrow.array([list(query.similarities) for query in mined], _NUMBERS),
                    "reason": pyarrow.array([query.reason for query in mined], pyarrow.string()),
                }
            )
            _write_whole(path, lambda stream, table=table: pyarrow.parquet.write_table(table, stream))  # type: ignore[misc]
        for row in pyarrow.parquet.read_table(path).to_pylist():
            yield Mined(tuple(row["negatives"]), tuple(row["similarities"]), row["reason"])
        bar.update(len(queries))


def _mine_block(
    store: _Store, index: ProductIndex, part: ProductTables, rows: Sequence[int], device: Any
) -> Iterator[Mined]:
    queries = [part.queries[row] for row in rows]
    options = index.options
    query_BD = store.vectors_of("query", rows)
    positives = [index.rows(query.positives) for query in queries]
    wanted = sorted({row for found in positives for row in found})
    vectors = dict(zip(wanted, store.vectors_of("product", wanted), strict=True)) if wanted else {}
    readable = [[row for row in found if not vectors[row].isnan().any()] for found in positives]
    shards = store.vectors("product", len(index.ids))
    allowed = functools.partial(index.allowed, queries)
    similarity_BK, row_BK = best_candidates(query_BD.to(device), shards, allowed, options.last_rank)
    similarity_BK, row_BK = similarity_BK.cpu(), row_BK.cpu()
    for number, query in enumerate(queries):
        if query_BD[number].isnan().any():
            yield Mined(reason="the query cannot be encoded")
        elif not readable[number]:
            yield Mined(reason="no answer among the products" if not positives[number] else "no answer can be encoded")
        else:
            similarities = [float(query_BD[number] @ vectors[row]) for row in readable[number]]
            rng = np.random.default_rng((options.seed, stable_id(query.query_id)))
            limit = similarity_limit(similarities, options)
            yield choose_negatives(index, similarity_BK[number], row_BK[number], limit, rng)


def write_queries(queries: Sequence[QueryRow], mined: dict[str, Mined], folder: Path) -> Path:
    """Write all queries in the two-table format, with their given negatives followed by the mined ones.

    Args:
        queries: the whole table.
        mined: hard negatives by query id.
        folder: folder of queries.parquet.

    Returns:
        The path of queries.parquet.
    """
    nothing = Mined()
    with_negatives = []
    for query in queries:
        found = mined.get(query.query_id, nothing).negatives
        with_negatives.append(dataclasses.replace(query, negatives=tuple(dict.fromkeys([*query.negatives, *found]))))
    path = folder / QUERIES_FILE
    write_query_rows(path, with_negatives)
    return path


_TEXTS = pyarrow.list_(pyarrow.string())
_NUMBERS = pyarrow.list_(pyarrow.float64())


def _report(
    part: ProductTables, mined: Sequence[Mined], skipped: dict[str, list[dict[str, Any]]], job: MiningJob
) -> dict[str, Any]:
    reasons: dict[str, list[str]] = {}
    for query, found in zip(part.queries, mined, strict=True):
        if found.reason:
            reasons.setdefault(found.reason, []).append(query.query_id)
    counts = Counter(len(found.negatives) for found in mined)
    return {
        "data": part.name,
        "split": job.split,
        "queries": len(part.queries),
        "products": len(part.products),
        "negatives": {str(count): counts[count] for count in sorted(counts)},
        "reasons": {reason: len(names) for reason, names in reasons.items()},
        "examples": {reason: names[:_EXAMPLES] for reason, names in reasons.items()},
        "unreadable": skipped,
        "options": dataclasses.asdict(job.options),
    }


def report_text(report: dict[str, Any]) -> str:
    """Return the report as readable text."""
    lines = [f"{report['data']}, split {report['split']}: {report['queries']} queries, {report['products']} products"]
    lines += [f"  {queries} queries have {count} negatives" for count, queries in report["negatives"].items()]
    for reason, queries in report["reasons"].items():
        more = ", …" if queries > _EXAMPLES else ""
        examples = ", ".join(report["examples"][reason])
        lines.append(f"  {queries} queries have fewer negatives than requested: {reason} ({examples}{more})")
    for kind, unread in report["unreadable"].items():
        lines += [f"  cannot be encoded: {kind} {row['item']}, {row['field']}: {row['reason']}" for row in unread]
    if report["shortened"]["items"]:
        lines.append(f"  {shortened_sentence(report['shortened'], report['max_tokens'])}")
    return "\n".join(lines)


def _weights_digest(model_path: str) -> str:
    """Return a digest of the size and the first and last mebibyte of each file of weights, or of a hub id."""
    folder = Path(model_path)
    files = sorted(folder.glob("*.safetensors")) if model_path and folder.is_dir() else []
    digest = hashlib.blake2b(b"" if files else model_path.encode(), digest_size=8)
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_SAMPLED_BYTES)
            stream.seek(max(0, size - _SAMPLED_BYTES))
            digest.update(f"{path.name} {size} ".encode() + head + stream.read())
    return digest.hexdigest()


def _settings_digest(processor: Any) -> str:
    """Return a digest of the settings of a processor, which determine the prompts and the sizes of pictures."""
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()


def _data_digest(part: ProductTables) -> str:
    digest = hashlib.blake2b(digest_size=8)
    rows: list[Any] = [*part.products, *part.queries]
    for row in rows:
        for image in [*getattr(row, "images", ()), *([row.image] if getattr(row, "image", None) is not None else [])]:
            digest.update(
                image.tobytes() if isinstance(image, Image.Image) else image if isinstance(image, bytes) else b""
            )
        digest.update(repr(dataclasses.replace(row, **_without_pixels(row))).encode())
    return digest.hexdigest()


def _without_pixels(row: Any) -> dict[str, Any]:
    """Return the picture fields of a row with paths only."""
    if hasattr(row, "images"):
        return {"images": tuple(image for image in row.images if isinstance(image, str))}
    return {"image": row.image if isinstance(row.image, str) else None}
