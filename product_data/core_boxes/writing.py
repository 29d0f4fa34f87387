"""Write detected core boxes into a copy of a data set's tables.

    report = write_core_boxes("shop/", "shop_with_boxes/", open_detector("saliency", weights="u2netp.onnx"))

Products receive `core_box`, of their first picture, and queries with a picture `bbox`; the column `box_by` of both names the
detector and its settings, and is empty for a box that the table had. The tables keep their format and all other columns. MOON
(arXiv 2508.11999 §3.1) detects the core with a grounding model; writing the boxes into the tables is our design, so that
training, evaluation and the embedding job read them, and no model needs the detector.

Each detected box is appended to `core_boxes.jsonl` in the output folder at once. The tables are written when their boxes are
complete, and `core_boxes.json` says "complete" at the end. A run that was stopped at any moment goes on with the same command.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from product_data.atomic_files import write_atomically
from product_data.checking import Issue, IssueLog
from product_data.core_boxes.box_cache import UNREADABLE, BoxCache, Pictured
from product_data.core_boxes.detectors import NamedDetector
from product_data.core_boxes.feed_tables import write_feed_as_table
from product_data.core_boxes.saliency import Detection
from product_data.errors import OptionError
from product_data.feeds.reading import shop_feed
from product_data.folder_lock import locked
from product_data.missing_images import SIBLING
from product_data.picture_files import PictureFetcher, PictureFetching
from product_data.reading import ReadingOptions, Table
from product_data.table_copies import (
    box_columns,
    columns_in,
    copy_table,
    rebased,
    rows_in_parts,
    rows_of,
    same_folder,
)
from product_data.table_files import (
    SUFFIXES,
    ImageSource,
    TableError,
    is_absent,
    is_address,
    parse_box,
    parse_images,
    parse_text,
)
from product_data.tables import find_parts

CACHE, RECORD, LOCK, FEED = "core_boxes.jsonl", "core_boxes.json", "core_boxes.lock", ".feed"
_PICTURES = {"products": "images", "queries": "image", "query_images": "image", "interactions": "query_image"}
_BOXES = {"products": "core_box", "queries": "bbox"}
_TYPED = (".parquet", ".jsonl")
_NO_PICTURE, _KEPT, _DETECTED = "without a picture", "kept", "detected"
_EXAMPLES = 5


@dataclass
class BoxReport:
    """What was written.

    Args:
        counts: table → outcome → number of rows; the outcomes are "kept" (the table had a box), "detected", "without a
            picture", and reasons why there is no box.
        unreadable: the first pictures that cannot be opened, with the reason.
        notes: what else a reader should know.
        issues: cells that could not be read.
        detected (`int`): number of pictures that the detector looked at in this run; the others were known.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    issues: tuple[Issue, ...] = ()
    detected: int = 0

    @property
    def ok(self) -> bool:
        """Whether all pictures could be opened."""
        return not self.unreadable

    def __str__(self) -> str:
        lines = []
        for part, counts in self.counts.items():
            total = counts.total()
            boxed = counts[_KEPT] + counts[_DETECTED]
            others = [f"{count} {reason}" for reason, count in counts.most_common() if reason not in (_KEPT, _DETECTED)]
            lines.append(
                f"{part}: {boxed} of {total} have a box ({counts[_DETECTED]} detected, {counts[_KEPT]} kept)"
                + "".join(f"; {other}" for other in others)
            )
        return "\n".join([*lines, *self.notes, *(str(issue) for issue in self.issues), *self.unreadable])


@dataclass(frozen=True)
class BoxOptions:
    """How boxes are written.

    Args:
        replace (`bool`): detect also where the table has a box, and write what the detector finds, even if that is no box.
            Default False: a box in the table stays.
        images_root: folder that paths of pictures are relative to. Default: the folder of the table.
        fetching: fetches pictures that are URLs. Default `None`: they get no box, which is reported.
        batch_size (`int`): pictures that are opened and detected together. Default 8.
        progress (`bool`): show a progress bar for what takes over three seconds. Default True.
        cache: file that keeps the detected boxes, which several data sets can share. Default: `core_boxes.jsonl` in the output.
    """

    replace: bool = False
    images_root: Path | None = None
    fetching: PictureFetching | None = None
    batch_size: int = 8
    progress: bool = True
    cache: Path | None = None


def write_core_boxes(
    source: str | Path, output: Path, detector: NamedDetector, options: BoxOptions | None = None
) -> BoxReport:
    """Detect the boxes of a data set and write its tables into another folder.

    Args:
        source: a folder of tables, a products table, or the export of a shop system, which becomes products.jsonl.
        output: the folder to write: new, or that of an earlier run.
        detector: detects the boxes.
        options: default `BoxOptions()`.

    Raises:
        TableError: a source that is missing or cannot be read.
        OptionError: the output is the folder of the source, or has other tables.
        FolderInUseError: another process writes into the output.
    """
    options = options or BoxOptions()
    if str(source) == "catalogue":
        raise TableError(
            "catalogue: found the drawn catalogue; expected a folder: moon3 catalogue --output FOLDER writes it"
        )
    _, parts = find_parts(source)
    files = {part: Path(file) for part, file in parts.items()}
    _check_output(output, files)
    report = BoxReport()
    record = {"detector": {"name": detector.name, **detector.settings}, "replace": options.replace}
    with locked(output, LOCK), PictureFetcher(options.fetching) as fetcher:
        _write_record(output, {"complete": False} | record)
        if feed := _feed_of(files.get("products")):
            files["products"] = write_feed_as_table(feed, output / FEED, options.images_root, report.notes)
        cache = BoxCache(options.cache or output / CACHE, detector, options.batch_size)
        _Writer(files, output, cache, options, fetcher, report).write()
        shutil.rmtree(output / FEED, ignore_errors=True)
        report.detected = cache.detected
        _write_record(output, {"complete": True} | record | {"tables": report.counts, "notes": report.notes})
    return report


def _write_record(output: Path, record: dict[str, Any]) -> None:
    write_atomically(output / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _feed_of(products: Path | None) -> Path | None:
    """Return a products file that is the export of a shop system, or None."""
    if products is None or products.suffix.lower() in _TYPED:
        return None
    try:
        return shop_feed(products)
    except TableError:
        return None  # its columns are not known: the reader of tables says what it expects


def _check_output(output: Path, files: dict[str, Path]) -> None:
    for file in files.values():
        if same_folder(file.parent, output):
            raise OptionError(f"--output {output}: found the folder of the source; expected another folder")
    if not output.is_dir():
        return
    tables = [path for path in output.iterdir() if path.stem in (*_PICTURES, "written_attributes")]
    tables = [path for path in tables if path.suffix in SUFFIXES]
    if tables and not (output / RECORD).is_file():
        raise OptionError(
            f"--output {output}: found {tables[0].name}; expected a new folder, or that of an earlier run"
        )


class _Writer:
    """Write the tables of one data set."""

    def __init__(
        self,
        files: dict[str, Path],
        output: Path,
        cache: BoxCache,
        options: BoxOptions,
        fetcher: PictureFetcher,
        report: BoxReport,
    ) -> None:
        self.files, self.output, self.cache, self.options = files, output, cache, options
        self.fetcher, self.report, self.log = fetcher, report, IssueLog()
        self.of_images: dict[str, Detection] = {}

    def write(self) -> None:
        """Write all tables, those with boxes last."""
        for part, file in self.files.items():
            stale = [path for path in self.output.glob(f"{part}.*") if path.suffix in SUFFIXES]
            for path in stale:
                if path.suffix != file.suffix.lower():
                    path.unlink()  # of an earlier run with a source of another format
            if part == "query_images":
                self.of_images = self._detect_query_images(self._wanted_images())
            if part not in _BOXES:
                self._copy(part)
        if "interactions" in self.files:
            self.report.notes.append(
                "interactions: pictures of this log get no box, because it has no column for boxes"
            )
        for part in (part for part in _BOXES if part in self.files):
            self._copy(part)
        self.report.issues = tuple(issue for issue in self.log.issues() if issue.kind == "malformed_cells")

    def _copy(self, part: str) -> None:
        source, counts = self.files[part], Counter[str]()
        column = self._box_column(part)
        pictures = tuple({_PICTURES.get(part, ""), "image"} - {""})
        with self._bar(part, rows_of(source), hidden=column is None) as bar:

            def edit(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
                cells: dict[str, list[Any]] = rebased(rows, pictures, self._folders(source))
                if column is not None:
                    cells[column], cells["box_by"] = self._boxes(part, rows, counts, bar)
                return cells

            copy_table(
                source, self.output / f"{part}{source.suffix.lower()}", box_columns(column) if column else (), edit
            )
        if column is not None:
            self.report.counts[part] = counts

    def _box_column(self, part: str) -> str | None:
        """Return the column of boxes of a table, which may have another of its names, or None."""
        if part not in _BOXES:
            return None
        names = Table(part, [dict.fromkeys(columns_in(self.files[part]))], IssueLog(), ReadingOptions()).names
        return names.get(_BOXES[part], _BOXES[part])

    def _boxes(
        self, part: str, rows: list[dict[str, Any]], counts: Counter[str], bar: tqdm
    ) -> tuple[list[Any], list[Any]]:
        """Return the cells of boxes and of their detector, and count the outcomes."""
        table = self._table(part, rows)
        column = table.names.get(_BOXES[part], _BOXES[part])
        boxes = [row.get(column) for row in rows]
        makers = [row.get("box_by") for row in rows]
        asked: list[tuple[int, Pictured]] = []
        for place, (name, picture, detection) in enumerate(self._pictures(part, table)):
            given = table.cell(place, name, _BOXES[part], parse_box, None)
            if given is not None and not self.options.replace:
                counts[_KEPT] += 1
            elif detection is not None:
                self._settle(place, name, detection, (boxes, makers, counts))
            elif picture is None:
                counts[_NO_PICTURE] += 1
            else:
                title = table.text(place, name, "title") if part == "products" else table.text(place, name, "text")
                asked.append((place, Pictured(name, picture, title or None)))
        bar.update(len(rows) - len(asked))
        for part_of in _parts(asked, self.options.batch_size):
            found = self.cache.detections(self._fetched([pictured for _, pictured in part_of]))
            for (place, pictured), detection in zip(part_of, found, strict=True):
                self._settle(place, pictured.name, detection, (boxes, makers, counts))
            bar.update(len(part_of))
        return boxes, makers

    def _settle(
        self, place: int, name: str, detection: Detection, into: tuple[list[Any], list[Any], Counter[str]]
    ) -> None:
        boxes, makers, counts = into
        boxes[place] = None if detection.box is None else list(detection.box)
        makers[place] = self.cache.detector.label if detection.box is not None else None
        if detection.box is not None:
            counts[_DETECTED] += 1
        elif detection.reason.startswith(UNREADABLE):
            counts[UNREADABLE] += 1
            if len(self.report.unreadable) < _EXAMPLES:
                self.report.unreadable.append(f"{name!r}: {detection.reason}")
        else:
            counts[f"without a box: {detection.reason}"] += 1

    def _pictures(self, part: str, table: Table) -> Iterator[tuple[str, ImageSource | None, Detection | None]]:
        """Yield the name of each row, and its first picture, or what was detected in the picture of its `image_id`."""
        key = "product_id" if part == "products" else "query_id"
        table.require(key)
        for place, own in enumerate(table.ids(key)):
            name = own or f"row {place}"
            picture = self._picture(part, table, place, name)
            image_id = table.cell(place, name, "image_id", parse_text, "") if part == "queries" else ""
            if picture is None and image_id in self.of_images:
                yield name, None, self.of_images[image_id]
            elif picture is None and image_id:
                yield name, _existing(image_id, self._folders(self.files[part])), None
            else:
                yield name, picture, None

    def _picture(self, part: str, table: Table, place: int, name: str) -> ImageSource | None:
        folders = self._folders(self.files[part])
        pictures = table.cell(place, name, _PICTURES[part], lambda value: parse_images(value, Path()), ())
        return _existing(pictures[0], folders) if pictures else None

    def _wanted_images(self) -> set[str]:
        """Return the ids of pictures whose queries need a box."""
        wanted: set[str] = set()
        for rows in rows_in_parts(self.files["queries"]) if "queries" in self.files else ():
            table = self._table("queries", rows, IssueLog())
            for place in range(len(rows)):
                if self.options.replace or table.cell(place, "", "bbox", parse_box, None) is None:
                    wanted.add(table.cell(place, "", "image_id", parse_text, ""))
        return wanted

    def _detect_query_images(self, wanted: set[str]) -> dict[str, Detection]:
        found: dict[str, Detection] = {}
        source = self.files["query_images"]
        with self._bar("query_images", rows_of(source)) as bar:
            for rows in rows_in_parts(source):
                table = self._table("query_images", rows)
                table.require("image_id")
                asked = []
                for place, name in enumerate(table.ids("image_id")):
                    picture = self._picture("query_images", table, place, name) if name in wanted else None
                    if picture is not None:
                        asked.append(Pictured(name, picture))
                bar.update(len(rows) - len(asked))
                for part in _parts(asked, self.options.batch_size):
                    detections = self.cache.detections(self._fetched(part))
                    found.update(zip((pictured.name for pictured in part), detections, strict=True))
                    bar.update(len(part))
        return found

    def _fetched(self, pictures: list[Pictured]) -> list[Pictured]:
        """Return pictures with files in place of URLs, if they may be fetched."""
        addresses = [str(pictured.picture) for pictured in pictures if is_address(pictured.picture)]
        if self.options.fetching is None or not addresses:
            return pictures
        files = self.fetcher.fetch(addresses).files
        return [
            Pictured(entry.name, files.get(str(entry.picture), entry.picture), entry.title)
            if is_address(entry.picture)
            else entry
            for entry in pictures
        ]

    def _table(self, part: str, rows: list[dict[str, Any]], log: IssueLog | None = None) -> Table:
        return Table(part, rows, log or self.log, ReadingOptions())

    def _folders(self, source: Path) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((self.options.images_root or source.parent, source.parent / SIBLING)))

    def _bar(self, part: str, rows: int, hidden: bool = False) -> tqdm:
        return tqdm(
            total=rows, desc=f"core boxes of {part}", unit="row", delay=3.0, disable=hidden or not self.options.progress
        )


def _existing(picture: ImageSource, folders: Iterable[Path]) -> ImageSource:
    """Return a picture; of a relative path, that of the first folder that has the file."""
    if not isinstance(picture, str) or is_absent(picture) or is_address(picture):
        return picture
    places = [folder / picture for folder in folders]
    return str(next((place for place in places if place.is_file()), places[0]))


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
