"""Render a checkpoint's card and write it beside the weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from model_cards.facts import FACTS_FILE, README_FILE, Base, Card, Licence
from model_cards.licences import DECLARED
from model_cards.metadata import EVAL_FOLDER
from model_cards.scores import community_results, dimension_table, index_of, label_table, pair_results, retrieval_table
from model_cards.snippets import snippets
from model_cards.words import escaped, limits, making, unmeasured, what_it_is

MARK = "<!-- Rendered by `moon3 card` from model_card.json. Without this line the file is yours and is not overwritten. -->"
LEVEL = 95
"""Per cent of the resampled means inside an interval of `moon3 evaluate`."""
_ORDER = ["license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model", "tags"]
_TAGS = ("sentence-transformers", "feature-extraction", "multimodal", "e-commerce", "product-search", "moon")


@dataclass(frozen=True)
class ShownResult:
    """One result as the template shows it: heading, a sentence on the searched data, tables as Markdown."""

    heading: str
    words: str
    tables: tuple[str, ...]
    dimensions: str


def render(card: Card) -> str:
    """Return a checkpoint's README.md.

    Args:
        card: the facts. Every number in the text comes from them.
    """
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: names go through the filters
    )
    pages.filters |= {"words": escaped, "cell": _cell, "of_data": _of_data}
    return pages.get_template("card.md.jinja").render(
        card=card,
        mark=MARK,
        level=LEVEL,
        metadata=metadata(card).to_yaml(original_order=_ORDER),
        what=what_it_is(card),
        at_a_glance=_at_a_glance(card),
        snippets=snippets(card),
        licence=_licence(card.licence),
        making=making(card),
        measured=[_shown_result(card, before, after) for before, after in pair_results(card.results)],
        limits=limits(card),
        unmeasured=unmeasured(card),
    )


def metadata(card: Card) -> ModelCardData:
    """Return the hub's metadata of a card, without unknown fields.

    Args:
        card: the facts.
    """
    tags = [*_TAGS, *([card.settings["backbone"]] if "backbone" in card.settings else [])]
    optional = {
        "mixture-of-experts": card.sizes.active is not None,
        "matryoshka": bool(card.sizes.prefixes),
        "lora": card.kind == "adapter",
        "dual-tower": card.kind == "dual_tower",
        "upcycled": {step.kind for step in card.steps} == {"upcycling"},
    }
    tags += [tag for tag, applies in optional.items() if applies]
    base = card.base.hub_id if card.base else None
    hub_data = [data_set.hub_id for data_set in card.data if data_set.hub_id]
    index = index_of(card.results)
    return ModelCardData(
        license=card.licence.id,
        license_name=card.licence.name,
        license_link=card.licence.link,
        library_name="peft" if card.kind == "adapter" else "transformers",
        pipeline_tag="feature-extraction",
        tags=tags,
        base_model=base,
        base_model_relation=None if base is None else "adapter" if card.kind == "adapter" else "finetune",
        datasets=hub_data or None,
        model_name=card.name if index else None,
        eval_results=index or None,
    )


def _at_a_glance(card: Card) -> list[tuple[str, str]]:
    sizes, settings = card.sizes, card.settings
    active = "" if sizes.active is None else f"{sizes.active:,} for a token"
    if sizes.active_in_aspect is not None:
        active += f", {sizes.active_in_aspect:,} for a token of the category or the attributes"
    rows = {
        "Base": "not recorded" if card.base is None else _linked(card.base),
        "Architecture": ", ".join(
            f"{name.removeprefix('num_').replace('_', ' ')} {_setting_text(value)}" for name, value in settings.items()
        ),
        "Vector": f"{sizes.vector} numbers" if sizes.vector else "",
        "Narrower vectors (Matryoshka)": ", ".join(map(str, sizes.prefixes)),
        "Parameters": f"{sizes.parameters:,}",
        "Active parameters": active,
        "Weights": f"{sizes.bytes:,} bytes",
    }
    return [(name, value) for name, value in rows.items() if value]


def _linked(base: Base) -> str:
    if base.hub_id:
        return f"[{base.hub_id}](https://huggingface.co/{base.hub_id})"
    return f"{base.name}, made with random weights" if base.random else base.name


def _setting_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _licence(licence: Licence) -> str:
    if licence.id is None:
        return "The licence of the weights is not declared."
    if licence.name:
        return f"The weights are under {f'[{licence.name}]({licence.link})' if licence.link else licence.name}."
    return f"The weights are under the licence `{licence.id}`."


def _shown_result(card: Card, before: dict[str, Any] | None, after: dict[str, Any]) -> ShownResult:
    facts = after["facts"]
    split = f"split {facts['split']!r}, " if facts.get("split") else ""
    words = (
        f"Measured on {split}{facts.get('products', '–')} products and {facts.get('queries', '–')} queries "
        f"(`{after['file']}`"
    )
    words += f"; before training: `{before['file']}`)." if before else ")."
    tables = [retrieval_table(before, after), label_table(after)]
    shown = tuple(_table(table) for table in tables if len(table) > 1)
    reasoning = {how for side in ("query", "product") if (how := after["reasoning"].get(side, "none")) != "none"}
    heading = after["benchmark"] + (f", reasoning {' and '.join(sorted(reasoning))}" if reasoning else "")
    dimensions = dimension_table(after, card.sizes.vector)
    return ShownResult(heading, words, shown or ("Nothing was scored.",), _table(dimensions) if dimensions else "")


def _table(rows: list[list[str]]) -> str:
    head, *body = [[_cell(cell) for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _of_data(licence: str | None) -> str:
    return "not declared" if licence is None else DECLARED.get(licence, licence)


def is_rendered(path: Path) -> bool:
    """Return whether a README.md has the mark of a rendered card, or does not exist.

    Args:
        path: path of the file.
    """
    return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")


def write_card(folder: Path, card: Card, *, overwrite: bool = False) -> bool:
    """Write `model_card.json`, README.md and `.eval_results/` into a checkpoint's folder.

    Args:
        folder: the checkpoint, which exists.
        card: the facts.
        overwrite (`bool`): replace a README.md without the mark of a rendered card. Default False.

    Returns:
        Whether README.md was written; a user's own file is kept.
    """
    _write(folder / FACTS_FILE, card.to_json())
    for stale in (folder / EVAL_FOLDER).glob("*.yaml"):
        stale.unlink()
    for name, text in community_files(card).items():
        (folder / name).parent.mkdir(exist_ok=True)
        _write(folder / name, text)
    ours = overwrite or is_rendered(folder / README_FILE)
    if ours:
        _write(folder / README_FILE, render(card))
    return ours


def community_files(card: Card) -> dict[str, str]:
    """Return the hub's community results as YAML, by path in the checkpoint.

    Args:
        card: the facts.
    """
    return {
        f"{EVAL_FOLDER}/{name}": yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        for name, entries in community_results(card.results).items()
    }


def _write(path: Path, text: str) -> None:
    """Write a file atomically: a reader finds either the old text or the new one."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
