"""Prepare a data set for training: remove near-duplicates, keep splits apart, and weigh pairs by the entities that both name.

    done = prepare("my_shop/", Path("my_shop_prepared/"), PreparationOptions())

The source is not changed. The output has the same tables, which every other command reads, with two more columns: `source_row`,
and `prepared`, what was changed in the row. Beside them:

    prepare.json           options, counts, versions, and "complete": written last
    changes.csv            every removed, moved, replaced or down-weighted row or pair, with its row in the source and the reason
    duplicates.csv         groups of duplicates: group, product_id, row, kept, reason, score, and the product it was joined with
    duplicate_pairs.csv    the pairs behind them, also those that would have joined contradicting products
    pairs.parquet          every pair of a query and an answer, with its verdict and the entities that were found
    report.html            the same with pictures
    steps/                 what each step has made, for the next run

The steps are pictures, duplicates, splits, pairs, tables, report. Each one keeps what it has made: a run that was stopped goes on
with the same command, and other options repeat only the steps that they change. The stages de-duplication and entity filter are
MOON Embedding's (arXiv 2511.11305); their rules are our design.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from product_data.atomic_files import PARTIAL, write_atomically
from product_data.core_boxes.feed_tables import write_feed_as_table
from product_data.errors import OptionError
from product_data.feeds.reading import shop_feed
from product_data.folder_lock import locked
from product_data.preparation.near_duplicates import (
    REASONS,
    DuplicateFinder,
    DuplicateGroup,
    DuplicateOptions,
    DuplicatePair,
    NearVectors,
)
from product_data.preparation.pair_filter import VERDICTS, judge_pairs, read_pairs, write_pairs
from product_data.preparation.prepared_tables import (
    Findings,
    Plan,
    WritingOptions,
    write_changes,
    write_tables,
)
from product_data.preparation.signature_files import PictureSignatures, pictures_digest, read_signatures
from product_data.preparation.split_assignment import Assignment, assign_splits
from product_data.preparation.step_records import StepRecords, step_key
from product_data.reading import ReadingOptions
from product_data.table_copies import same_folder
from product_data.table_files import SUFFIXES, TableError
from product_data.tables import ProductTables, find_parts, load_tables

STEPS = ("pictures", "duplicates", "splits", "pairs", "tables", "report")
_TABLES = ("products", "queries", "query_images", "interactions", "written_attributes")


class PreparedFolder:
    """The files of a prepared data set; nobody else names them.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "prepare.json"
        self.changes = path / "changes.csv"
        self.duplicates = path / "duplicates.csv"
        self.duplicate_pairs = path / "duplicate_pairs.csv"
        self.pairs = path / "pairs.parquet"
        self.report = path / "report.html"
        self.steps = path / "steps"
        self.signatures = self.steps / "pictures"
        self.splits = self.steps / "new_splits.json"
        self.feed = self.steps / "feed"
        self.lock = "prepare.lock"


@dataclass(frozen=True)
class PreparationOptions:
    """Options of a preparation.

    Args:
        duplicates: when two products are the same.
        writing: what becomes of duplicates and of pairs without a shared entity, and what is restored.
        reading: options for reading cells. Default: `ReadingOptions()`.
        images_root: folder that paths of pictures are relative to. Default: the folder of the table.
        progress (`bool`): whether to show progress bars. Default True.
    """

    duplicates: DuplicateOptions = field(default_factory=DuplicateOptions)
    writing: WritingOptions = field(default_factory=WritingOptions)
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    images_root: Path | None = None
    progress: bool = True


@dataclass(frozen=True)
class Preparation:
    """A finished preparation, as the report shows it.

    Args:
        folder: its files.
        tables: the source.
        findings: duplicates' groups, splits and judged pairs.
        plan: what every row became.
        counts: step → what was counted.
        made: the steps that were made now; the others were done before.
        notes: what else a reader should know.
    """

    folder: PreparedFolder
    tables: ProductTables
    findings: Findings
    plan: Plan
    counts: dict[str, dict[str, Any]]
    made: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


WritePage = Callable[[Preparation], str]
"""Returns the report as HTML."""


def prepare(
    source: str | Path,
    output: Path,
    options: PreparationOptions | None = None,
    *,
    vectors: NearVectors | None = None,
    page: WritePage | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Preparation:
    """Prepare a data set and write its tables into another folder.

    Args:
        source: a folder of tables, a products table, or the export of a shop system, which becomes products.jsonl.
        output: the folder to write: new, or that of an earlier run.
        options: default `PreparationOptions()`.
        vectors: finds near vectors. Default `None`: duplicates are found by pictures and texts alone.
        page: makes the report. Default `None`: no report.
        facts: what prepare.json records besides, such as versions. Default: nothing.

    Raises:
        TableError: a source that is missing, cannot be read or has a fatal problem.
        OptionError: the output is the folder of the source, or has tables of something else.
        FolderInUseError: another process writes into the output.
    """
    options = options or PreparationOptions()
    if str(source) == "catalogue":
        raise TableError(
            "catalogue: found the drawn catalogue; expected a folder: moon3 catalogue --output FOLDER writes it"
        )
    _, parts = find_parts(source)
    files = {part: Path(file) for part, file in parts.items()}
    if "products" not in files:
        raise TableError(f"{source}: found no products table; expected products{{{','.join(SUFFIXES)}}} in that folder")
    folder = PreparedFolder(output)
    _check_output(folder, files)
    with locked(output, folder.lock):
        _write_record(folder, {"complete": False, "source": str(source)})
        return _Job(source, files, folder, options, vectors).run(page, facts or {})


def _check_output(folder: PreparedFolder, files: Mapping[str, Path]) -> None:
    for file in files.values():
        if same_folder(file.parent, folder.path):
            raise OptionError(f"--output {folder.path}: found the folder of the source; expected another folder")
    if not folder.path.is_dir():
        return
    tables = [path for path in folder.path.iterdir() if path.stem in _TABLES and path.suffix in SUFFIXES]
    if tables and not folder.record.is_file():
        raise OptionError(
            f"--output {folder.path}: found {tables[0].name}; expected a new folder, or that of an earlier run"
        )


def _write_record(folder: PreparedFolder, record: Mapping[str, Any]) -> None:
    write_atomically(folder.record, json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n")


class _Job:
    """One run of a preparation."""

    def __init__(
        self,
        source: str | Path,
        files: dict[str, Path],
        folder: PreparedFolder,
        options: PreparationOptions,
        vectors: NearVectors | None,
    ) -> None:
        self.source, self.files, self.folder, self.options, self.vectors = source, files, folder, options, vectors
        self.notes: list[str] = []
        self.records = StepRecords(folder.path, folder.steps)
        for leftover in folder.path.glob(f"*{PARTIAL}"):
            leftover.unlink()
        self._read_feed()
        self.tables = load_tables(dict(self.files), images_root=options.images_root, reading=options.reading)
        self.tables.report.raise_if_fatal()
        self.of_tables = step_key(
            {part: _file_digest(file) for part, file in self.files.items()},
            asdict(options.reading),
            str(options.images_root),
        )

    def run(self, page: WritePage | None, facts: Mapping[str, Any]) -> Preparation:
        """Make the steps that are not done, the record last."""
        counts = {}
        keys = self._keys(page is not None)
        counts["pictures"] = self.records.run("pictures", keys["pictures"], self._pictures)
        counts["duplicates"] = self.records.run("duplicates", keys["duplicates"], self._duplicates)
        groups = read_groups(self.folder)
        counts["splits"] = self.records.run("splits", keys["splits"], lambda: self._splits(groups))
        counts["pairs"] = self.records.run("pairs", keys["pairs"], self._pairs)
        findings = Findings(groups, read_assignment(self.folder), read_pairs(self.folder.pairs))
        plan = Plan(self.tables.products, self.tables.queries, findings, self.options.writing)
        counts["tables"] = self.records.run("tables", keys["tables"], lambda: self._tables(plan))
        done = Preparation(self.folder, self.tables, findings, plan, counts, notes=tuple(self.notes))
        if page is not None:
            self.records.run("report", keys["report"], lambda: self._report(page, done))
        _write_record(self.folder, self._record(counts, keys, facts))
        return Preparation(
            self.folder, self.tables, findings, plan, counts, tuple(self.records.made), tuple(self.notes)
        )

    def _keys(self, with_page: bool) -> dict[str, str]:
        writing = self.options.writing
        keys = {"pictures": step_key("pictures", pictures_digest(self.tables.products))}
        digest = self.vectors.digest if self.vectors is not None else ""
        duplicates = asdict(self.options.duplicates) | ({} if digest else {"cosine": None})
        keys["duplicates"] = step_key("duplicates", keys["pictures"], self.of_tables, duplicates, digest)
        keys["splits"] = step_key("splits", keys["duplicates"])
        keys["pairs"] = step_key("pairs", self.of_tables)
        of_writing = asdict(writing) | {"restored": sorted(writing.restored)}
        keys["tables"] = step_key("tables", keys["splits"], keys["pairs"], of_writing)
        keys["report"] = step_key("report", keys["tables"], with_page)
        return keys

    def _record(self, counts: Mapping[str, Any], keys: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
        writing = self.options.writing
        return {
            "complete": True,
            "source": str(self.source),
            "source_files": {
                part: {"file": str(file), "sha256": _file_digest(file)} for part, file in self.files.items()
            },
            "options": {
                "duplicates": writing.duplicates,
                **asdict(self.options.duplicates),
                "vectors": self.vectors.digest if self.vectors is not None else None,
                "unrelated_pairs": writing.pairs.unrelated,
                "pair_weight": writing.pairs.weight,
                "restored": [list(entry) for entry in sorted(writing.restored)],
            },
            "counts": counts,
            "notes": self.notes,
            "keys": keys,
            **facts,
        }

    def _read_feed(self) -> None:
        products = self.files["products"]
        if products.suffix.lower() in (".parquet", ".jsonl"):
            return
        try:
            feed = shop_feed(products)
        except TableError:
            return  # its columns are not known: the reader of tables says what it expects
        if feed is None:
            return
        shutil.rmtree(self.folder.feed, ignore_errors=True)
        root = self.options.images_root
        self.files["products"] = write_feed_as_table(feed, self.folder.feed, root, self.notes)

    def _pictures(self) -> tuple[list[Path], dict[str, Any]]:
        found = self._signatures()
        counts = {
            "products": len(self.tables.products),
            "with a picture": len(found.pictured),
            "without a picture": sum(not row.images for row in self.tables.products),
            "unreadable": len(found.unreadable),
            "examples": [
                f"{self.tables.products[row].product_id}: {why}" for row, why in list(found.unreadable.items())[:5]
            ],
        }
        return sorted(self.folder.signatures.glob("*.npz")), counts

    def _signatures(self) -> PictureSignatures:
        return read_signatures(self.tables.products, self.folder.signatures, progress=self.options.progress)

    def _duplicates(self) -> tuple[list[Path], dict[str, Any]]:
        found = self._signatures()
        products = self.tables.products
        finder = DuplicateFinder(products, found.signatures, found.pictured, self.vectors, self.options.progress)
        pairs = finder.pairs(self.options.duplicates)
        groups, refused = finder.groups(pairs)
        _write_duplicates(self.folder, [row.product_id for row in products], pairs, groups, refused)
        by_reason = Counter(pair.reason for pair in pairs)
        counts = {
            "pairs": {reason: by_reason[reason] for reason in REASONS},
            "refused pairs": len(refused),
            "groups": len(groups),
            "products in groups": sum(len(group.rows) for group in groups),
            "pictures that too many products share": finder.crowded,
        }
        return [self.folder.duplicate_pairs, self.folder.duplicates], counts

    def _splits(self, groups: Sequence[DuplicateGroup]) -> tuple[list[Path], dict[str, Any]]:
        found = assign_splits(self.tables.products, groups)
        write_atomically(self.folder.splits, json.dumps(asdict(found)) + "\n")
        moves = Counter(f"{self.tables.products[row].split} → {split}" for row, split in found.split.items())
        counts = {
            "groups in several splits": found.crossing,
            "products moved": dict(moves),
            "groups joined": len(found.group),
        }
        return [self.folder.splits], counts

    def _pairs(self) -> tuple[list[Path], dict[str, Any]]:
        judged = judge_pairs(self.tables.products, self.tables.queries, progress=self.options.progress)
        write_pairs(self.folder.pairs, judged)
        verdicts = Counter(pair.verdict for pair in judged)
        return [self.folder.pairs], {"pairs": len(judged)} | {verdict: verdicts[verdict] for verdict in VERDICTS}

    def _tables(self, plan: Plan) -> tuple[list[Path], dict[str, Any]]:
        write_changes(self.folder.changes, plan.changes)
        root = self.options.images_root
        files = write_tables(self.files, self.tables.queries, plan, self.folder.path, root)
        counts: dict[str, Any] = {
            "products": len(plan.products) - len(plan.removed_products),
            "queries": len(plan.queries) - len(plan.removed_queries),
            "changes": plan.counts(),
        }
        return [*files, self.folder.changes], counts

    def _report(self, page: WritePage, done: Preparation) -> tuple[list[Path], dict[str, Any]]:
        write_atomically(self.folder.report, page(done))
        return [self.folder.report], {}


_PAIR_COLUMNS = ("left", "right", "reason", "score", "titles", "joined")
_GROUP_COLUMNS = ("group", "product_id", "row", "kept", "reason", "score", "titles", "with", "with_row")


def _write_duplicates(
    folder: PreparedFolder,
    ids: Sequence[str],
    pairs: Sequence[DuplicatePair],
    groups: Sequence[DuplicateGroup],
    refused: Sequence[DuplicatePair],
) -> None:
    not_joined = set(refused)
    _write_csv(
        folder.duplicate_pairs,
        _PAIR_COLUMNS,
        [
            (ids[pair.left], ids[pair.right], pair.reason, pair.score, pair.titles, str(pair not in not_joined).lower())
            for pair in pairs
        ],
    )
    rows = []
    for number, group in enumerate(groups, start=1):
        for row in group.rows:
            pair = group.joined_by[row]
            other = pair.right if pair.left == row else pair.left
            kept = str(row == group.kept).lower()
            rows.append((number, ids[row], row, kept, pair.reason, pair.score, pair.titles, ids[other], other))
    _write_csv(folder.duplicates, _GROUP_COLUMNS, rows)


def read_groups(folder: PreparedFolder) -> list[DuplicateGroup]:
    """Read the groups of a prepared folder."""
    with folder.duplicates.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    groups = []
    for members in found.values():
        joined = {}
        for row in members:
            own, other = int(row["row"]), int(row["with_row"])
            left, right = min(own, other), max(own, other)
            joined[own] = DuplicatePair(left, right, row["reason"], float(row["score"]), float(row["titles"]))
        kept = next(int(row["row"]) for row in members if row["kept"] == "true")
        groups.append(DuplicateGroup(tuple(joined), kept, joined))
    return groups


def read_assignment(folder: PreparedFolder) -> Assignment:
    """Read the new splits and groups of a prepared folder."""
    found = json.loads(folder.splits.read_text(encoding="utf-8"))
    rows = {name: {int(row): value for row, value in found[name].items()} for name in ("split", "group")}
    return Assignment(**rows, crossing=found["crossing"])


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, stream.getvalue())


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
