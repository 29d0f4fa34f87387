"""Turn a shop's log of searches, clicks, carts and purchases into queries with graded answers.

Graded relevance is one number above 0 for each answer of a query, 1 for a purchase: the query's `positive_weights`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from product_data.errors import OptionError
from product_data.table_files import ImageSource

ACTION_WEIGHTS: Mapping[str, float] = {"purchase": 1.0, "cart": 0.5, "click": 0.25}
_SECONDS_PER_DAY = 86_400.0
_FIRST_DAY, _LAST_DAY = 19000101, 21001231  # numbers between are calendar days if their digits form a date
_END_OF_TIME = 253_402_300_800.0  # the year 10000 in seconds; times in milliseconds exceed it from 1978 on
_UNITS = (1.0, 1e3, 1e6, 1e9)  # units per second
_ACCEPTED_TIMES = "expected seconds since 1970, or text such as 2024-05-31T12:00 or 2024-05-31 12:00:00 UTC"
# A moment and the zone that follows it, with or without a space.
_ZONE = re.compile(
    r"(?P<moment>\d{4}-?\d\d-?\d\d[T ]\d\d[\d:.,]*)\s*"
    r"(?P<zone>[+-]\d\d?(?::?\d\d)?|[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+/-]+)?)"
)


@dataclass(frozen=True)
class InteractionOptions:
    """Options that turn interactions into weights.

    Args:
        action_weights (`Mapping[str, float]`): action → relevance of one such action, above 0 and at most 1; case is
            ignored. Default: purchase 1.0, cart 0.5, click 0.25.
        half_life_days (`float` or `None`): half-life of an interaction in days, counted back from the newest
            interaction of the table; rows without a time count in full. Default `None`: age is ignored.

    Raises:
        ValueError: no action, a weight outside (0, 1], or a half-life of 0 or less.
    """

    action_weights: Mapping[str, float] = field(default_factory=lambda: dict(ACTION_WEIGHTS))
    half_life_days: float | None = None

    def __post_init__(self) -> None:
        if not self.action_weights:
            raise OptionError("action_weights: found none; expected at least one action, such as {'purchase': 1.0}")
        for action, weight in self.action_weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not 0 < weight <= 1:
                raise OptionError(f"action_weights: {action!r}: found {weight!r}; expected above 0 and at most 1")
        if self.half_life_days is not None and not (math.isfinite(self.half_life_days) and self.half_life_days > 0):
            raise OptionError(f"half_life_days: found {self.half_life_days!r}; expected a number above 0, or None")

    def weight_of(self, action: str) -> float | None:
        """Return the weight of one such action, or None if it has none."""
        return {name.casefold(): float(weight) for name, weight in self.action_weights.items()}.get(action.casefold())


@dataclass(frozen=True, slots=True)
class Interaction:
    """One checked row of the log: `key` identifies the query, `weight` is that of the action, `time` is in seconds UTC."""

    key: str
    text: str
    image: ImageSource | None
    product_id: str
    action: str
    weight: float
    count: float = 1.0
    time: float | None = None
    split: str = ""


@dataclass(frozen=True)
class GradedQuery:
    """A query of the log with its answers, best first, and their weights (above 0, at most 1)."""

    key: str
    text: str
    image: ImageSource | None
    positives: tuple[str, ...]
    weights: tuple[float, ...]
    split: str


def query_key(text: str, image: ImageSource | None, image_name: str) -> str:
    """Return a key for a query from its text (case and spacing are ignored) and its picture.

    Args:
        text: the text, or "".
        image: the picture, or None.
        image_name: the picture's path in the table, or "" if it has none; then its bytes identify it.
    """
    words = " ".join(text.casefold().split())
    if image_name or image is None:
        picture = image_name.encode()
    elif isinstance(image, bytes):
        picture = image
    else:
        picture = image.encode() if isinstance(image, str) else image.tobytes()
    return hashlib.blake2b(words.encode() + b"\0" + picture, digest_size=8).hexdigest()


def graded_queries(interactions: Iterable[Interaction], half_life_days: float | None = None) -> list[GradedQuery]:
    """Join the rows of each query, and grade its products.

    `w(q, p) = 1 − Π_a (1 − g_a)^log2(1 + n_a)`. g_a is the weight of action a, and n_a the number of times it happened,
    each weighted by 0.5^(age / half-life). One action has the relevance g_a; repeated actions have more, but never above
    1: clicks never outweigh a purchase of weight 1. Our design (precedent: the noisy-or of independent causes, Pearl,
    Probabilistic Reasoning in Intelligent Systems, 1988; the logarithm damps popular products).

    Args:
        interactions: checked rows; rows with one `key` are one query, with the text and picture of the first row.
        half_life_days: see `InteractionOptions`.

    Returns:
        Queries in order of first appearance. A query's split is the first one given in its rows, or "".
    """
    rows = list(interactions)
    newest = max((row.time for row in rows if row.time is not None), default=0.0)
    first: dict[str, Interaction] = {}
    splits: dict[str, str] = {}
    counts: dict[str, dict[str, dict[str, float]]] = {}
    weights: dict[str, float] = {}
    for row in rows:
        first.setdefault(row.key, row)
        splits[row.key] = splits.get(row.key) or row.split
        of_product = counts.setdefault(row.key, {}).setdefault(row.product_id, {})
        of_product[row.action] = of_product.get(row.action, 0.0) + row.count * _freshness(row, newest, half_life_days)
        weights[row.action] = row.weight
    queries = []
    for key, products in counts.items():
        graded = {product_id: _grade(actions, weights) for product_id, actions in products.items()}
        ranked = sorted(graded, key=lambda product_id: -graded[product_id])  # stable: equal grades keep the log's order
        queries.append(
            GradedQuery(
                key, first[key].text, first[key].image, tuple(ranked), tuple(graded[p] for p in ranked), splits[key]
            )
        )
    return queries


def _freshness(row: Interaction, newest: float, half_life_days: float | None) -> float:
    if half_life_days is None or row.time is None:
        return 1.0
    return 0.5 ** ((newest - row.time) / _SECONDS_PER_DAY / half_life_days)


def _grade(counts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    missed = 1.0
    for action, count in counts.items():
        missed *= (1.0 - weights[action]) ** math.log2(1.0 + count)
    return max(1.0 - missed, float(np.finfo(np.float32).tiny))  # a very old click keeps a weight above 0


def parse_count(value: Any) -> float:
    """Parse how often something happened: a whole number of at least 1.

    Raises:
        ValueError: anything else.
    """
    number = float(value)
    if not number.is_integer() or number < 1:
        raise ValueError(f"found {value!r}; expected a whole number of at least 1")
    return number


def parse_time(value: Any) -> float:
    """Parse a time into seconds since 1970 UTC.

    Text is ISO 8601 or the format of BigQuery and databases: "2024-05-01 10:00:00.123456 UTC", "2024-05-01 10:00:00
    +02", "2024-05-01 10:00:00 America/New_York". Without a zone it is UTC. Fractions keep six digits. A number is in
    seconds or, from 1978 on, in milliseconds, microseconds (as in Google Analytics) or nanoseconds; its size determines
    the unit. Eight digits that form a date (20240531), as text or as a number, are that calendar day; as seconds they
    would lie in 1970.

    Args:
        value: text, a number, a date or a datetime.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = _parse_moment(value)
    if isinstance(value, int | float | np.number) and _FIRST_DAY <= value <= _LAST_DAY:
        value = _day(value)
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if not isinstance(value, int | float | np.number) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"found {value!r}; {_ACCEPTED_TIMES}")
    seconds = float(value)
    for unit in _UNITS:
        if seconds / unit < _END_OF_TIME:
            return seconds / unit
    raise ValueError(f"found {value!r}; {_ACCEPTED_TIMES}")


def _day(number: Any) -> Any:
    """Return the calendar day that eight digits form, or the number itself if they form none."""
    try:
        return datetime.strptime(f"{number:.0f}", "%Y%m%d") if float(number).is_integer() else number
    except ValueError:
        return number


def _parse_moment(text: str) -> datetime:
    match = _ZONE.fullmatch(text.strip())
    try:
        if match is None:
            return datetime.fromisoformat(text.strip())
        moment, zone = datetime.fromisoformat(match["moment"]), match["zone"]
        if re.fullmatch(r"Z|UTC|GMT", zone, re.IGNORECASE):
            return moment.replace(tzinfo=UTC)
        if zone[0] in "+-":
            sign, hours, _, minutes = re.fullmatch(r"([+-])(\d\d?)(:?)(\d\d)?", zone).groups()  # type: ignore[union-attr]
            return datetime.fromisoformat(f"{moment.isoformat()}{sign}{int(hours):02}:{minutes or '00'}")
        return moment.replace(tzinfo=ZoneInfo(zone))
    except (ValueError, OSError, ZoneInfoNotFoundError) as error:
        raise ValueError(f"found {text!r}; {_ACCEPTED_TIMES}") from error
