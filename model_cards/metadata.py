"""Check a card's metadata and community results as the hub would, but offline."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from model_cards.licences import hub_lists, nearest

EVAL_FOLDER = ".eval_results"
_FRONT = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", flags=re.DOTALL)
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
HUB_ID = re.compile(rf"{_PART}/{_PART}")
_DATA_SET_ID = re.compile(rf"(?:{_PART}/)?{_PART}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]{2,8})?|multilingual|code")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:+/-]{0,94}")


def front_matter(text: str) -> dict[str, Any]:
    """Return the metadata at the top of a card.

    Args:
        text: the whole card.

    Raises:
        ValueError: the card has no block between two lines of three hyphens, or the block is not a YAML mapping.
    """
    block = _FRONT.match(text)
    if block is None:
        raise ValueError("found no metadata; expected a YAML block between two '---' lines at the top of the card")
    try:
        values = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        raise ValueError(f"metadata: found no valid YAML ({' '.join(str(error).split())}); expected YAML") from error
    if not isinstance(values, dict):
        raise ValueError(f"metadata: found {type(values).__name__}; expected a mapping of names to values")
    return values


def problems_of(text: str) -> list[str]:
    """Return one sentence for each problem of a card's metadata that the hub would refuse or ignore.

    Args:
        text: the whole card.
    """
    try:
        values = front_matter(text)
    except ValueError as error:
        return [str(error)]
    checks = (_licence, _task, _tags, _ids, _texts, _index)
    return [problem for check in checks for problem in check(values)]


def _known_word(field: str, value: Any, known: list[str], expected: str) -> Iterator[str]:
    if not isinstance(value, str) or value not in known:
        yield f"{field}: found {value!r}{nearest(str(value), known)}; expected {expected}"


def _licence(values: dict[str, Any]) -> Iterator[str]:
    found = values.get("license")
    if found is None:
        yield "license: found nothing; expected an identifier from the hub such as apache-2.0"
        return
    for name in found if isinstance(found, list) else [found]:
        yield from _known_word(
            "license", name, hub_lists()["licences"], "an identifier from the hub such as apache-2.0"
        )
    if found == "other":
        for field in ("license_name", "license_link"):
            if not isinstance(values.get(field), str) or not values[field].strip():
                yield f"{field}: found {values.get(field)!r}; expected text, because the license is other"


def _task(values: dict[str, Any]) -> Iterator[str]:
    if "pipeline_tag" in values:
        yield from _known_word("pipeline_tag", values["pipeline_tag"], hub_lists()["tasks"], "a task from the hub")
    if "base_model_relation" in values:
        known = hub_lists()["base_model_relations"]
        yield from _known_word(
            "base_model_relation", values["base_model_relation"], known, f"one of {', '.join(known)}"
        )


def _tags(values: dict[str, Any]) -> Iterator[str]:
    tags = values.get("tags", [])
    if not isinstance(tags, list):
        yield f"tags: found {tags!r}; expected a list of words"
        return
    lists = hub_lists()
    known = [*lists["tags"], *lists["tasks"], *lists["further_tasks"]]
    for tag in tags:
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            yield f"tags: found {tag!r}; expected a short word of letters, digits and hyphens"
        elif tag.startswith(tuple(lists["reserved_tags"])):
            yield f"tags: found {tag!r}, which the hub derives from another field; expected that field"
        elif tag not in known and (near := nearest(tag.lower(), known)):
            yield f"tags: found {tag!r}{near}; expected the known word, or a word that is less similar to it"


def _ids(values: dict[str, Any]) -> Iterator[str]:
    for field, pattern, expected in (
        ("base_model", HUB_ID, "an id on the hub such as Qwen/Qwen3-VL-2B-Instruct"),
        ("datasets", _DATA_SET_ID, "ids of data sets on the hub"),
    ):
        found = values.get(field, [])
        for name in found if isinstance(found, list) else [found]:
            if not isinstance(name, str) or not pattern.fullmatch(name):
                yield f"{field}: found {name!r}; expected {expected}"


def _texts(values: dict[str, Any]) -> Iterator[str]:
    for field in ("library_name", "license_name", "license_link", "model_name"):
        if field in values and (not isinstance(values[field], str) or not values[field].strip()):
            yield f"{field}: found {values[field]!r}; expected text"
    languages = values.get("language", [])
    for language in languages if isinstance(languages, list) else [languages]:
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            yield f"language: found {language!r}; expected a code such as en, or multilingual"
    metrics = values.get("metrics", [])
    if not isinstance(metrics, list) or not all(isinstance(name, str) for name in metrics):
        yield f"metrics: found {metrics!r}; expected a list of names"


def _index(values: dict[str, Any]) -> Iterator[str]:
    if "model-index" not in values:
        return
    index = values["model-index"]
    if not isinstance(index, list) or not index:
        yield f"model-index: found {_short(index)}; expected a list with the model's results"
        return
    for place, model in enumerate(index):
        where = f"model-index[{place}]"
        if not isinstance(model, dict):
            yield f"{where}: found {_short(model)}; expected a mapping with name and results"
            continue
        yield from _text_at(f"{where}.name", model.get("name"))
        results = model.get("results")
        if not isinstance(results, list) or not results:
            yield f"{where}.results: found {_short(results)}; expected a list"
            continue
        for number, result in enumerate(results):
            yield from _result(f"{where}.results[{number}]", result)


def _result(where: str, result: Any) -> Iterator[str]:
    if not isinstance(result, dict):
        yield f"{where}: found {_short(result)}; expected a mapping with task, dataset and metrics"
        return
    task, data = _mapping(result.get("task")), _mapping(result.get("dataset"))
    known = [*hub_lists()["tasks"], *hub_lists()["further_tasks"]]
    yield from _known_word(f"{where}.task.type", task.get("type"), known, "a task such as information-retrieval")
    for name in ("type", "name"):
        yield from _text_at(f"{where}.dataset.{name}", data.get(name))
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f"{where}.metrics: found {_short(metrics)}; expected a list"
        return
    for number, metric in enumerate(metrics):
        place = f"{where}.metrics[{number}]"
        metric = _mapping(metric)
        yield from _text_at(f"{place}.type", metric.get("type"))
        yield from _value(f"{place}.value", metric.get("value"))
        if not isinstance(metric.get("args", {}), dict):
            yield f"{place}.args: found {_short(metric['args'])}; expected a mapping"


def _text_at(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str) or not value.strip():
        yield f"{where}: found {value!r}; expected text"


def _value(where: str, value: Any) -> Iterator[str]:
    """Check that a value is a finite number, or text with a digit."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number and not (isinstance(value, str) and re.search(r"\d", value)):
        yield f"{where}: found {value!r}; expected a finite number"


def community_problems(folder: Path) -> list[str]:
    """Return one sentence for each problem of `.eval_results/*.yaml` that the hub would refuse.

    The fields follow the hub's page on evaluation results: dataset.id, dataset.task_id and value are required.

    Args:
        folder: the checkpoint.
    """
    problems = []
    for path in sorted((folder / EVAL_FOLDER).glob("*.yaml")):
        where = f"{EVAL_FOLDER}/{path.name}"
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            problems.append(f"{where}: cannot be read ({error}); expected YAML")
            continue
        if not isinstance(entries, list) or not entries:
            problems.append(f"{where}: found {_short(entries)}; expected a list of results")
            continue
        for number, entry in enumerate(entries):
            problems += _entry(f"{where}[{number}]", entry)
    return problems


def _entry(where: str, entry: Any) -> Iterator[str]:
    entry = _mapping(entry)
    data = _mapping(entry.get("dataset"))
    if not isinstance(data.get("id"), str) or not HUB_ID.fullmatch(data["id"]):
        yield f"{where}.dataset.id: found {data.get('id')!r}; expected the id of a benchmark on the hub, owner/name"
    yield from _text_at(f"{where}.dataset.task_id", data.get("task_id"))
    yield from _value(f"{where}.value", entry.get("value"))
    if "date" in entry:
        try:
            datetime.datetime.fromisoformat(str(entry["date"]))
        except ValueError:
            yield f"{where}.date: found {entry['date']!r}; expected a date in ISO 8601"
    source = entry.get("source", {"url": "https://"})
    if not isinstance(source, dict) or not str(source.get("url", "")).startswith("https://"):
        yield f"{where}.source.url: found {_short(source)}; expected a URL that begins with https://"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
