"""Read a shop's log of showings: who was shown which product when, and whether it was clicked.

One row is one product that was shown to one user. Columns: user_id, product_id, time, clicked; a simulated log also has
`probability`, the chance of the click that the simulation drew from. Other usual names (user, item_id, timestamp, click, label,
…) are found too. `applications.ctr` learns to predict clicks from such a log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from product_data.checking import Issue, IssueLog
from product_data.interactions import parse_time
from product_data.reading import ReadingOptions, Table
from product_data.table_files import TableError, is_absent, parse_flag, parse_text

SIMULATION = b"moon_simulation"
"""Key of a parquet file's metadata that holds the settings of the simulation which wrote it, as JSON."""


@dataclass(frozen=True, eq=False)
class ImpressionLog:
    """The usable rows of a log, sorted by time; rows with equal times keep the order of the file.

    Shape suffix: N rows.

    Args:
        name (`str`): file of the log, for messages.
        users, products (`tuple[str, ...]`): the ids, in order of first appearance.
        user_N, product_N: index of each row's user and product in them, int64.
        time_N: seconds since 1970 UTC, float64.
        clicked_N: whether the product was clicked, bool.
        probability_N: chance of each click, float64, if the log is simulated; otherwise `None`.
        simulation: settings of the simulation that made the log; `None` for a log of real users.
        issues: rows and columns that were left out.
    """

    name: str
    users: tuple[str, ...]
    products: tuple[str, ...]
    user_N: np.ndarray
    product_N: np.ndarray
    time_N: np.ndarray
    clicked_N: np.ndarray
    probability_N: np.ndarray | None = None
    simulation: Mapping[str, Any] | None = None
    issues: tuple[Issue, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.clicked_N)

    @property
    def digest(self) -> str:
        """16 hex digits that identify the rows."""
        digest = hashlib.sha256(json.dumps([self.users, self.products], ensure_ascii=False).encode())
        for column in (self.user_N, self.product_N, self.time_N, self.clicked_N):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:16]


def read_impressions(source: str | Path | Iterable[Mapping[str, Any]]) -> ImpressionLog:
    """Return the rows of a log; rows that cannot be used are left out and noted in `issues`.

    Args:
        source: a .parquet, .jsonl or .csv file, or rows.

    Raises:
        TableError: no such file, a missing column (the message suggests similar ones), or no usable row.

    Relations: use the table `interactions` of `product_data.tables` for a log of searches that becomes training queries.
    """
    issues = IssueLog()
    table = Table("impressions", source, issues, ReadingOptions())
    for column in ("user_id", "product_id", "time", "clicked"):
        table.require(column)
    rows = [row for index in range(len(table.rows)) if (row := _read_row(table, index)) is not None]
    if not rows:
        raise TableError(
            f"{table.label}: found no usable row among {len(table.rows)}; expected user_id, product_id, time and clicked in "
            "each" + "".join(f"\n  {issue}" for issue in issues.issues())
        )
    order = np.argsort([row[2] for row in rows], kind="stable")
    rows = [rows[place] for place in order]
    users, user_N = _numbered([row[0] for row in rows])
    products, product_N = _numbered([row[1] for row in rows])
    chances = [row[4] for row in rows]
    return ImpressionLog(
        name=table.label,
        users=users,
        products=products,
        user_N=user_N,
        product_N=product_N,
        time_N=np.array([row[2] for row in rows], dtype=np.float64),
        clicked_N=np.array([row[3] for row in rows], dtype=bool),
        probability_N=None if None in chances else np.array(chances, dtype=np.float64),
        simulation=_simulation_of(source),
        issues=issues.issues(),
    )


def _read_row(table: Table, index: int) -> tuple[str, str, float, bool, float | None] | None:
    row, names = table.rows[index], table.names
    values: list[Any] = []
    for column, parse in _PARSERS.items():
        cell = row.get(names[column])
        try:
            if is_absent(cell):
                raise ValueError("found nothing")
            values.append(parse(cell))
        except (ValueError, TypeError) as error:
            table.log.add("broken_impressions", f"row {index}, column {names[column]!r}: {error}")
            return None
    chance = row.get(names.get("probability", ""))
    return values[0], values[1], values[2], values[3], None if chance is None else float(chance)


def _parse_id(cell: Any) -> str:
    text = parse_text(cell)
    if not text:
        raise ValueError("found nothing")
    return text


_PARSERS = {"user_id": _parse_id, "product_id": _parse_id, "time": parse_time, "clicked": parse_flag}


def _numbered(ids: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    number: dict[str, int] = {}
    numbers = [number.setdefault(name, len(number)) for name in ids]
    return tuple(number), np.array(numbers, dtype=np.int64)


def _simulation_of(source: Any) -> dict[str, Any] | None:
    if not isinstance(source, str | Path) or Path(source).suffix.lower() != ".parquet":
        return None
    metadata = pyarrow.parquet.read_schema(source).metadata or {}
    return json.loads(metadata[SIMULATION]) if SIMULATION in metadata else None


def write_impressions(log: ImpressionLog, path: Path) -> None:
    """Write a log as a parquet file that `read_impressions` reads.

    Args:
        log: the log.
        path: the file; an existing one is replaced once the new one is complete.
    """
    from product_data.atomic_files import file_written_whole

    columns: dict[str, Any] = {
        "user_id": [log.users[user] for user in log.user_N],
        "time": log.time_N.astype(np.int64),
        "product_id": [log.products[product] for product in log.product_N],
        "clicked": log.clicked_N,
    }
    if log.probability_N is not None:
        columns["probability"] = log.probability_N
    table = pyarrow.table(columns)
    if log.simulation is not None:
        table = table.replace_schema_metadata({SIMULATION: json.dumps(log.simulation)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_written_whole(path) as partial:
        pyarrow.parquet.write_table(table, partial)
