"""Write the prepared tables of a data set, and a list of everything that differs from its source."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from product_data.atomic_files import write_atomically
from product_data.checking import IssueLog
from product_data.errors import OptionError
from product_data.missing_images import SIBLING
from product_data.preparation.near_duplicates import DuplicateGroup
from product_data.preparation.pair_filter import NONE, JudgedPair, PairOptions
from product_data.preparation.split_assignment import Assignment
from product_data.query_files import write_query_rows
from product_data.reading import ReadingOptions, Table
from product_data.rows import EVERY_SPLIT, ProductRow, QueryRow
from product_data.table_copies import (
    Column,
    columns_in,
    copy_table,
    count_column,
    numbers_column,
    rebased,
    rows_in_parts,
    text_column,
    texts_column,
)
from product_data.table_files import SUFFIXES, TableError, parse_text, read_rows

SOURCE_ROW, PREPARED = "source_row", "prepared"
"""Columns of provenance: the row in the source table, from 0, and what was changed in this row."""
REMOVED, DOWN_WEIGHTED, REPLACED, MOVED, GROUPED = ACTIONS = (
    "removed",
    "down_weighted",
    "replaced",
    "moved",
    "grouped",
)
CHANGE_COLUMNS = ("action", "table", "row", "id", "product_id", "step", "reason")
_PICTURES = {"products": "images", "queries": "image", "query_images": "image", "interactions": "query_image"}


@dataclass(frozen=True)
class Change:
    """One difference from the source.

    Args:
        action (`str`): one of `ACTIONS`.
        table (`str`): "products" or "queries".
        row (`int`): of the source table, from 0; -1 for a query of a log.
        id (`str`): of the product or query.
        product_id (`str`): of a pair, the answer; "" for a whole product or query.
        step (`str`): "duplicates", "splits" or "pairs".
        reason (`str`): for readers.
    """

    action: str
    table: str
    row: int
    id: str
    product_id: str
    step: str
    reason: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what `--restore` names."""
        return self.table, self.id, self.product_id


def write_changes(path: Path, changes: Iterable[Change]) -> None:
    """Write changes as CSV, atomically."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CHANGE_COLUMNS)
    writer.writerows([getattr(change, name) for name in CHANGE_COLUMNS] for change in changes)
    write_atomically(path, stream.getvalue())


def read_restored(path: Path) -> frozenset[tuple[str, str, str]]:
    """Return (table, id, product_id) of what a file asks to keep: rows of changes.csv, or of a file like it.

    Args:
        path: .csv, .jsonl or .parquet with the columns table, id and product_id; rows whose action is neither "removed" nor
            "down_weighted" are not read.

    Raises:
        TableError: no such file, or a missing column.
    """
    rows = read_rows(path)
    for name in ("table", "id"):
        if rows and name not in rows[0]:
            raise TableError(f"{path}: found no column {name!r}; expected the columns of changes.csv, table and id")
    kept = [row for row in rows if row.get("action", REMOVED) in (REMOVED, DOWN_WEIGHTED)]
    return frozenset(
        (parse_text(row["table"]), parse_text(row["id"]), parse_text(row.get("product_id"))) for row in kept
    )


@dataclass(frozen=True)
class Findings:
    """What the steps before have found.

    Args:
        groups: duplicates' groups.
        assignment: new splits and groups.
        judged: judged pairs.
    """

    groups: Sequence[DuplicateGroup]
    assignment: Assignment
    judged: Sequence[JudgedPair]


@dataclass(frozen=True)
class WritingOptions:
    """What becomes of what was found.

    Args:
        duplicates (`str`): "remove" all but one product of a group, or "keep" all. Default "remove".
        pairs: what becomes of pairs without a shared entity.
        restored: (table, id, product_id) of what is neither removed nor down-weighted.

    Raises:
        OptionError: another value of `duplicates`.
    """

    duplicates: str = "remove"
    pairs: PairOptions = field(default_factory=PairOptions)
    restored: frozenset[tuple[str, str, str]] = frozenset()

    def __post_init__(self) -> None:
        if self.duplicates not in ("remove", "keep"):
            raise OptionError(f"duplicates: found {self.duplicates!r}; expected remove or keep")


class Plan:
    """Decide what each product and query becomes; nothing is written.

    Args:
        products, queries: the source.
        findings: of the steps before.
        options: see `WritingOptions`.
    """

    def __init__(
        self,
        products: Sequence[ProductRow],
        queries: Sequence[QueryRow],
        findings: Findings,
        options: WritingOptions,
    ) -> None:
        self.options, assignment = options, findings.assignment
        self.changes: list[Change] = []
        self.kept_for: dict[str, str] = {}
        """Removed product → the product that stays for it."""
        self._moved = {products[row].product_id for row in assignment.split}
        self._affected: set[str] = set()  # products that moved, and those that stay for products of other splits
        self._verdict = {(pair.row, pair.product_id): pair for pair in findings.judged}
        self._notes: dict[int, list[str]] = defaultdict(list)
        self.removed_products = self._remove_duplicates(products, findings.groups)
        self._members: Counter[str | None] = Counter(
            assignment.group.get(row, product.group)
            for row, product in enumerate(products)
            if row not in self.removed_products
        )
        self.products = [self._product(row, product, assignment) for row, product in enumerate(products)]
        self.product_notes = {row: "; ".join(notes) for row, notes in self._notes.items()}
        self._affected |= self._moved
        self._split_of = {row.product_id: row.split for row in self.products}
        self.query_notes: dict[int, str] = {}
        self.queries = [self._query(row, query) for row, query in enumerate(queries)]
        self.removed_queries = frozenset(row for row, query in enumerate(self.queries) if query is None)

    def counts(self) -> dict[str, int]:
        """Return the numbers of changes by table, step and action."""
        found = Counter(
            f"{change.table[:-1] if not change.product_id else 'pair'}s {change.action} ({change.step})"
            for change in self.changes
        )
        return dict(sorted(found.items()))

    def _remove_duplicates(self, products: Sequence[ProductRow], groups: Sequence[DuplicateGroup]) -> frozenset[int]:
        removed = set()
        for group in groups:
            kept = products[group.kept].product_id
            for row in group.rows:
                name = products[row].product_id
                if row == group.kept or self.options.duplicates == "keep":
                    continue
                if ("products", name, "") in self.options.restored:
                    self._notes[row].append(f"restored: duplicate of {kept}")
                    continue
                pair = group.joined_by[row]
                reason = f"duplicate of {kept} ({pair.reason}, {pair.score:.3f})"
                self.changes.append(Change(REMOVED, "products", row, name, "", "duplicates", reason))
                self._notes[group.kept].append(f"duplicates: stays for {name}")
                self.kept_for[name] = kept
                self._affected.add(kept)
                removed.add(row)
        return frozenset(removed)

    def _product(self, row: int, product: ProductRow, assignment: Assignment) -> ProductRow:
        if row in self.removed_products:
            return product
        name = product.product_id
        if (split := assignment.split.get(row)) is not None:
            reason = f"{product.split} → {split}: a duplicate is there"
            self.changes.append(Change(MOVED, "products", row, name, "", "splits", reason))
            self._notes[row].append(f"split: {product.split} → {split}")
            product = replace(product, split=split)
        if (group := assignment.group.get(row)) is not None and self._members[group] > 1:
            reason = f"{product.group or 'no group'} → {group}: they share a duplicate"
            self.changes.append(Change(GROUPED, "products", row, name, "", "splits", reason))
            self._notes[row].append(f"group: {product.group or 'none'} → {group}")
            product = replace(product, group=group)
        return product

    def _query(self, row: int, query: QueryRow) -> QueryRow | None:
        notes: list[str] = []
        answers = self._answers(row, query, notes)
        split = self._split(row, query, answers, notes)
        reachable = {}
        for name, weight in answers.items():
            own = self._split_of.get(name, split)
            if name in self._affected and EVERY_SPLIT not in (own, split) and own != split:
                self._note(REMOVED, row, query, name, "splits", f"the answer is in {own} now", notes)
            else:
                reachable[name] = weight
        if query.positives and not reachable and not query.positive_categories:
            reason = "all of its answers are removed"
            self.changes.append(Change(REMOVED, "queries", row, query.query_id, "", "pairs", reason))
            return None
        weights = tuple(reachable.values())
        graded = bool(query.positive_weights) or any(weight != 1 for weight in weights)
        negatives = tuple(dict.fromkeys(self.kept_for.get(name, name) for name in query.negatives))
        reference = query.reference_product_id
        changed = replace(
            query,
            positives=tuple(reachable),
            positive_weights=weights if graded else (),
            negatives=tuple(name for name in negatives if name not in reachable),
            split=split,
            reference_product_id=self.kept_for.get(reference, reference) if reference else reference,
        )
        for name in ("negatives", "reference_product_id"):
            if getattr(changed, name) != getattr(query, name):
                notes.append(f"duplicates: {name} follow the products that stay")
        if notes:
            self.query_notes[row] = "; ".join(notes)
        return changed if notes else query

    def _answers(self, row: int, query: QueryRow, notes: list[str]) -> dict[str, float]:
        """Return the answers that stay, with their weights; a removed product is replaced by the one that stays for it."""
        answers: dict[str, float] = {}
        pairs = self.options.pairs
        for name, weight in query.answers.items():
            judged = self._verdict.get((row, name))
            restored = ("queries", query.query_id, name) in self.options.restored
            if judged is not None and judged.verdict == NONE and pairs.unrelated != "keep" and not restored:
                reason = f"the query names {', '.join(judged.named)}; the product has none of these"
                if pairs.unrelated == "drop":
                    self._note(REMOVED, row, query, name, "pairs", reason, notes)
                    continue
                weight *= pairs.weight
                self._note(DOWN_WEIGHTED, row, query, name, "pairs", f"weight {weight:g}: {reason}", notes)
            if (kept := self.kept_for.get(name)) is not None:
                self._note(REPLACED, row, query, name, "duplicates", f"by {kept}", notes)
            target = name if kept is None else kept
            answers[target] = max(weight, answers.get(target, 0.0))
        return answers

    def _split(self, row: int, query: QueryRow, answers: Mapping[str, float], notes: list[str]) -> str:
        """Return the split of a query: its own if one of its answers is there, otherwise that of its first answer."""
        splits = [self._split_of[name] for name in answers if name in self._split_of]
        moved = self._moved & {*answers, *query.positives}
        if not moved or not splits or {query.split, EVERY_SPLIT} & {*splits} or query.split == EVERY_SPLIT:
            return query.split
        reason = f"{query.split} → {splits[0]}: its answers moved"
        self.changes.append(Change(MOVED, "queries", row, query.query_id, "", "splits", reason))
        notes.append(f"split: {query.split} → {splits[0]}")
        return splits[0]

    def _note(
        self, action: str, row: int, query: QueryRow, product_id: str, step: str, reason: str, notes: list[str]
    ) -> None:
        self.changes.append(Change(action, "queries", row, query.query_id, product_id, step, reason))
        notes.append(f"{step}: {product_id} {action} ({reason})")


def write_tables(
    files: Mapping[str, Path], queries: Sequence[QueryRow], plan: Plan, output: Path, images_root: Path | None
) -> list[Path]:
    """Write the prepared tables, and return their files.

    Tables keep their format and all columns; products and queries get the columns `source_row` and `prepared`. With a log,
    the queries are written as queries.parquet, because a log has no place for the weight of one pair.

    Args:
        files: table → file of the source.
        queries: the source's queries, those of the log last.
        plan: what is written.
        output: the folder.
        images_root: folder that paths of pictures are relative to. Default: the folder of each table.
    """
    written = []
    with_log = "interactions" in files
    parts = [part for part in files if part != "interactions" and not (with_log and part == "queries")]
    for part in (*parts, *(("queries",) if with_log else ())):
        suffix = ".parquet" if with_log and part == "queries" else files[part].suffix.lower()
        target = output / f"{part}{suffix}"
        for stale in output.glob(f"{part}.*"):
            if stale.suffix in SUFFIXES and stale != target:
                stale.unlink()  # of an earlier run with a source of another format
        if with_log and part == "queries":
            _write_log(target, queries, plan, _rows_of_table(files))
        else:
            _copy(part, files[part], target, plan, images_root)
        written.append(target)
    if not with_log and "queries" not in files:
        for stale in output.glob("queries.*"):
            if stale.suffix in SUFFIXES:
                stale.unlink()
    return written


def _rows_of_table(files: Mapping[str, Path]) -> int:
    """Return the number of rows of the queries table, whose queries come before those of the log."""
    return sum(map(len, rows_in_parts(files["queries"]))) if "queries" in files else 0


def _write_log(target: Path, queries: Sequence[QueryRow], plan: Plan, of_table: int) -> None:
    rows = [row for row, query in enumerate(plan.queries) if query is not None]
    write_query_rows(
        target,
        [query for query in plan.queries if query is not None],
        {
            count_column(SOURCE_ROW): [row if row < of_table else None for row in rows],
            text_column(PREPARED): [plan.query_notes.get(row, "") for row in rows],
        },
    )


def _copy(part: str, source: Path, target: Path, plan: Plan, images_root: Path | None) -> None:
    folders = tuple(dict.fromkeys((images_root or source.parent, source.parent / SIBLING)))
    pictures = tuple({_PICTURES.get(part, ""), "image"} - {""})
    editor = _Editor(part, source, plan)
    first = 0

    def edit(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
        nonlocal first
        cells = rebased(rows, pictures, folders) | editor.cells(rows, first)
        first += len(rows)
        return cells

    copy_table(source, target, editor.columns, edit, editor.left_out)


class _Editor:
    """Make the new cells of one table."""

    def __init__(self, part: str, source: Path, plan: Plan) -> None:
        self.part, self.plan = part, plan
        columns = columns_in(source)
        names = Table(part, [dict.fromkeys(columns)], IssueLog(), ReadingOptions()).names
        self.names = {name: names.get(name, name) for name in self._fields(columns, names)}
        self.columns = self._columns()
        self.left_out = self._left_out(source, names)

    def _fields(self, columns: Sequence[str], names: Mapping[str, str]) -> list[str]:
        """Return the columns that change in any row."""
        plan = self.plan
        if self.part == "products":
            changed = [("split", any(change.action == MOVED for change in plan.changes))]
            changed.append(("group", any(change.action == GROUPED for change in plan.changes)))
        elif self.part == "queries":
            graded = any(query is not None and query.positive_weights for query in plan.queries)
            changed = [
                ("positives", "positives" in names),
                ("positive_weights", graded),
                ("negatives", "negatives" in names),
            ]
            changed += [("split", any(change.action == MOVED for change in plan.changes))]
            changed += [("reference_product_id", "reference_product_id" in names)]
        else:
            return []
        return [name for name, is_changed in changed if is_changed]

    def _columns(self) -> list[Column]:
        make: dict[str, Callable[[str], Column]] = {
            "positives": texts_column,
            "negatives": texts_column,
            "positive_weights": numbers_column,
        }
        columns = [make.get(name, text_column)(column) for name, column in self.names.items()]
        return columns + ([count_column(SOURCE_ROW), text_column(PREPARED)] if self._is_changed else [])

    @property
    def _is_changed(self) -> bool:
        return self.part in ("products", "queries")

    def _left_out(self, source: Path, names: Mapping[str, str]) -> frozenset[int]:
        if self.part == "products":
            return self.plan.removed_products
        if self.part == "queries":
            return self.plan.removed_queries
        if self.part != "written_attributes":
            return frozenset()
        ids = [parse_text(row.get(names["product_id"])) for rows in rows_in_parts(source) for row in rows]
        return frozenset(row for row, name in enumerate(ids) if name in self.plan.kept_for)

    def cells(self, rows: list[dict[str, Any]], first: int) -> dict[str, list[Any]]:
        """Return the new cells of rows of which `first` is the number of the first one."""
        if not self._is_changed:
            return {}
        numbers = range(first, first + len(rows))
        plan = self.plan
        new: Sequence[ProductRow | QueryRow | None] = plan.products if self.part == "products" else plan.queries
        notes = plan.product_notes if self.part == "products" else plan.query_notes
        cells: dict[str, list[Any]] = {SOURCE_ROW: list(numbers), PREPARED: [notes.get(row, "") for row in numbers]}
        for name, column in self.names.items():
            cells[column] = [
                _cell(getattr(new[number], name, None), row.get(column), number in notes)
                for number, row in zip(numbers, rows, strict=True)
            ]
        return cells


def _cell(value: Any, before: Any, is_changed: bool) -> Any:
    """Return the new cell of a changed row; otherwise the cell as it was."""
    if not is_changed:
        return before
    return (list(value) or None) if isinstance(value, tuple) else value
