"""Read and write the reasoning before a vector: `<think>key: value; key: v1, v2</think>`.

The form is our design after LREM (arXiv 2510.14321); the keys are MBE's (MOON, arXiv 2508.11999 App. A). The full-width
signs of Chinese text separate as `; , :` do. A backslash before `\\` or one of these six signs makes it part of a key or a
value (our design, as in CSV dialects with an escape character); every attribute can therefore be written and read back
unchanged. Nothing here needs a tokenizer of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

THINK_START, THINK_END = "<think>", "</think>"
EMB_TOKEN = "<emb>"
# The ten attribute keys of MBE (MOON, arXiv 2508.11999 App. A).
REASONING_KEYS = (
    "colour",
    "category",
    "category modifier",
    "brand",
    "size/specification",
    "material",
    "style elements",
    "fashion style",
    "target demographic",
    "season/occasion",
)
_TWINS = {";": ";；", ",": ",，", ":": ":："}  # a full-width sign separates as its plain twin does
_SIGNS = "".join(_TWINS.values())
_ESCAPE = re.compile(rf"\\([\\{_SIGNS}])")
_CONTROL = re.compile(rf"<\|[^<>|\s]*\|>|{THINK_START}|{THINK_END}|{EMB_TOKEN}")
# Runs of text up to a separator that is not escaped; a backslash before anything else is a backslash.
_RUNS = {sign: re.compile(rf"(?:\\[\\{_SIGNS}]|\\(?![\\{_SIGNS}])|[^\\{both}])*") for sign, both in _TWINS.items()}
_QUOTED = 60


@dataclass(frozen=True)
class Reasoning:
    """The attributes that a model generated, and the parts of its text that cannot be read.

    Args:
        text (`str`): the text between the tags, unchanged.
        attributes (`dict[str, tuple[str, ...]]`): key → values, in their order.
        unparsed (`tuple[str, ...]`): a sentence for each part that cannot be read, with its words.
        closed (`bool`): whether the text has a `</think>`.
    """

    text: str
    attributes: dict[str, tuple[str, ...]]
    unparsed: tuple[str, ...]
    closed: bool

    @property
    def well_formed(self) -> bool:
        """Whether the text is closed, has at least one attribute, and has no unparsed parts."""
        return self.closed and bool(self.attributes) and not self.unparsed


def read_reasoning(text: str) -> Reasoning:
    """Read reasoning text; any string is accepted.

    Runs of white space count as one space; white space around keys and values is ignored.

    Args:
        text: `<think>key: value; key: v1, v2</think>`, with or without the opening tag; `<emb>` may follow.

    Returns:
        `Reasoning`. Its `unparsed` lists: text before `<think>` and after `</think>`; parts without "key: value", without
        a key or without a value; empty values among others; control tokens; repeated keys (the first one is kept).

    Relations: `write_reasoning` is its inverse; `MoonProcessor.read_reasoning` reads ids.
    """
    inside, closing, after = text.partition(THINK_END)
    before, opening, body = inside.partition(THINK_START)
    if not opening:
        before, body = "", inside
    unparsed = [f"before {THINK_START}: {_quote(before)}"] if before.strip() else []
    attributes: dict[str, tuple[str, ...]] = {}
    pieces = _split(body, ";")
    if not pieces[-1].strip():  # a semicolon at the end, or nothing at all
        pieces.pop()
    for piece in pieces:
        if problem := _read_pair(piece, attributes):
            unparsed.append(problem)
    rest = after.strip().removeprefix(EMB_TOKEN).strip()
    if rest:
        unparsed.append(f"after {THINK_END}: {_quote(rest)}")
    return Reasoning(body, attributes, tuple(unparsed), bool(closing))


def read_ids(ids: Any, tokenizer: Any) -> list[Reasoning]:
    """Decode and read what a model generated after `<think>`.

    A row ends at the first `</think>`, otherwise at the first end-of-sequence token; padding is ignored.

    Args:
        ids: (B, R) int64 tensor or array, or a list of rows that may differ in length.
        tokenizer: a tokenizer with `</think>`.

    Returns:
        A `Reasoning` for each of the B rows; ids unknown to the tokenizer are among the unparsed parts.

    Raises:
        ValueError: ids that are not rows of whole numbers of at least 0.
    """
    end = tokenizer.convert_tokens_to_ids(THINK_END)
    return [_read_row(row, tokenizer, end) for row in _id_rows(ids)]


def write_reasoning(attributes: Mapping[str, str | Iterable[str]]) -> str:
    """Write attributes as `<think>key: value; key: v1, v2</think>`.

    `read_reasoning` returns them again, with single spaces, and without empty values or keys that have only such values.

    Args:
        attributes: key → value or values, in the order to write them.

    Raises:
        ValueError: a key that is empty, is not a string, or differs from another key only in spaces; a value that is not a
            string; a control token (`<think>`, `<emb>`, `<|…|>`) in the text.
    """
    text = reasoning_text(attributes)
    if control := _CONTROL.search(text):
        raise ValueError(
            f"write_reasoning: found the control token {control.group()!r} in {_quote(text)}; expected plain text"
        )
    return f"{THINK_START}{text}{THINK_END}"


def reasoning_text(attributes: Mapping[str, str | Iterable[str]]) -> str:
    """Return the text that `write_reasoning` puts between the tags; control tokens in it are not checked.

    Raises:
        ValueError: see `write_reasoning`.
    """
    pairs: dict[str, str] = {}
    for key, entry in attributes.items():
        name = _escape(key, ";,:") if isinstance(key, str) else ""
        if not name:
            raise ValueError(f"reasoning: found key {_quote(key)}; expected keys that are non-empty strings")
        values = [entry] if isinstance(entry, str) else list(entry) if isinstance(entry, Iterable) else [entry]
        for value in values:
            if not isinstance(value, str):
                raise ValueError(
                    f"reasoning: found {_quote(value)} as a value of {_quote(key)}; expected a string or several"
                )
        written = ", ".join(value for value in (_escape(value, ";,") for value in values) if value)
        if written and name in pairs:
            raise ValueError(
                f"reasoning: found the key {_quote(key)} twice; expected each key once, with all its values"
            )
        if written:
            pairs[name] = f"{name}: {written}"
    return "; ".join(pairs.values())


def strip_tags(text: str) -> str:
    """Remove an opening tag at the start of reasoning text, a closing tag at its end, and `<emb>` after that."""
    text = text.strip()
    before = text.removesuffix(EMB_TOKEN).rstrip()
    text = before if before.endswith(THINK_END) else text
    return text.removeprefix(THINK_START).removesuffix(THINK_END).strip()


def _read_row(row: list[int], tokenizer: Any, end: int) -> Reasoning:
    ids = [token for token in row if token != tokenizer.pad_token_id]
    stop = next((token for token in (end, tokenizer.eos_token_id) if token in ids), None)
    ids = ids if stop is None else ids[: ids.index(stop)]
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    reading = read_reasoning(text + THINK_END if stop == end else text)
    unknown = sorted({token for token in ids if tokenizer.convert_ids_to_tokens(token) is None})
    if not unknown:
        return reading
    return replace(reading, unparsed=(*reading.unparsed, f"ids that the tokenizer does not know: {unknown}"))


def _id_rows(ids: Any) -> list[list[int]]:
    rows = ids.tolist() if hasattr(ids, "tolist") else ids
    accepted = "expected rows of whole numbers of at least 0, as (B, R) or a list of rows"
    if not isinstance(rows, list | tuple):
        raise ValueError(f"read_reasoning: found {type(ids).__name__}; {accepted}")
    listed = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    for place, row in enumerate(listed):
        if not isinstance(row, list | tuple):
            raise ValueError(f"read_reasoning: row {place}: found {_quote(row)}; {accepted}")
        for token in row:
            if not isinstance(token, Integral) or isinstance(token, bool) or token < 0:
                raise ValueError(f"read_reasoning: row {place}: found {_quote(token)}; {accepted}")
    return [[int(token) for token in row] for row in listed]


def _read_pair(piece: str, attributes: dict[str, tuple[str, ...]]) -> str | None:
    """Add the attribute in a piece of text to `attributes`; return a description of what cannot be read in it."""
    if control := _CONTROL.search(piece):
        return f"the control token {control.group()} in {_quote(piece)}"
    key_text, *more = _split(piece, ":", 1)
    if not more:
        return f"no 'key: value' in {_quote(piece)}"
    key = _unescape(key_text)
    if not key:
        return f"no key in {_quote(piece)}"
    values = [_unescape(value) for value in _split(more[0], ",")]
    if not any(values):
        return f"no value in {_quote(piece)}"
    if key in attributes:
        return f"the key {_quote(key)} comes again in {_quote(piece)}"
    attributes[key] = tuple(value for value in values if value)
    return None if all(values) else f"an empty value in {_quote(piece)}"


def _split(text: str, separator: str, most: int = -1) -> list[str]:
    """Split a text like `str.split` at separators that are not escaped, at most `most` times (-1: all)."""
    parts: list[str] = []
    start = 0
    while most < 0 or len(parts) < most:
        run = _RUNS[separator].match(text, start)
        end = len(text) if run is None else run.end()
        if end == len(text):
            break
        parts.append(text[start:end])
        start = end + 1
    return [*parts, text[start:]]


def _escape(text: str, separators: str) -> str:
    signs = "".join(_TWINS[separator] for separator in separators)
    return re.sub(rf"[\\{signs}]", lambda match: f"\\{match.group()}", " ".join(text.split()))


def _unescape(text: str) -> str:
    return " ".join(_ESCAPE.sub(r"\1", text).split())


def _quote(value: object) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else repr(value)
    text = text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"
    return repr(text) if isinstance(value, str) else text
