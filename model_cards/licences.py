"""Check the identifiers of licences, and whether licences allow weights to be published."""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import Any

import yaml

from model_cards.facts import Card, CardError, Licence

DECLARED = {
    "own": "the publisher's own",
    "permitted": "its owner permits that weights trained on it are published",
    "none": "its owner has granted no licence",
}
"""Words that can be declared for a data set instead of an identifier from the hub."""


@functools.cache
def hub_lists() -> dict[str, Any]:
    """Return the names that the hub knows, by the keys of `hub_lists.yaml`."""
    return yaml.safe_load(Path(__file__).with_name("hub_lists.yaml").read_text(encoding="utf-8"))


def nearest(word: str, known: list[str]) -> str:
    """Return "; did you mean 'x'?" if a known word is similar, otherwise an empty string."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_data_licence(name: str, licence: str) -> str:
    """Return the declared licence of a data set, after checking it.

    Args:
        name: name of the data set.
        licence: an identifier from the hub, or a word of `DECLARED`.

    Raises:
        CardError: the licence is unknown.
    """
    known = [*hub_lists()["licences"], *DECLARED]
    if licence not in known:
        raise CardError(
            f"licence of {name}: found {licence!r}{nearest(str(licence), known)}; expected an identifier from the hub such as "
            f"cc-by-4.0, or one of {', '.join(DECLARED)}"
        )
    return licence


def check_licence(licence: Licence) -> Licence:
    """Return the licence of weights, after checking it.

    Raises:
        CardError: the hub does not know the id, or "other" lacks a name or a link.
    """
    known = hub_lists()["licences"]
    if licence.id not in known:
        near = nearest(str(licence.id), known)
        raise CardError(
            f"--licence: found {licence.id!r}{near}; expected an identifier from the hub such as apache-2.0"
        )
    if (licence.id == "other") != bool(licence.name and licence.link):
        raise CardError(
            f"--licence {licence.id}: found the name {licence.name!r} and the link {licence.link!r}; expected both with other, "
            "and neither with any other licence"
        )
    return licence


def is_noncommercial(licence: str) -> bool:
    """Return whether a licence forbids commercial use."""
    return "-nc" in licence or licence in hub_lists()["noncommercial"]


def why_not_published(card: Card) -> list[str]:
    """Return one sentence for each licence that does not allow the weights to be published.

    Our rule: weights trained on a data set without a licence, or under a licence that forbids derived works, cannot be
    published. If a data set's licence forbids commercial use, the licence of the weights must forbid it too. If the licence of
    their base is not permissive, the weights keep it.

    Args:
        card: the facts of the checkpoint.
    """
    obstacles = [_of_data(data_set.name, data_set.licence, card.licence) for data_set in card.data]
    if any(step.kind == "unrecorded" and not step.data for step in card.steps) or not card.steps:
        obstacles.append(
            "the training data of the weights is not recorded; declare each data set with moon3 card CHECKPOINT "
            "--data-licence NAME=LICENCE"
        )
    obstacles += [
        _of_base(step.base.name, step.base.licence, card.licence)
        for step in card.steps
        if step.base and step.base.licence
    ]
    return [sentence for sentence in obstacles if sentence]


def _of_data(name: str, licence: str | None, weights: Licence) -> str | None:
    declare = f"; declare it with moon3 card CHECKPOINT --data-licence {name}=LICENCE"
    if licence in (None, "unknown"):
        return f"data set {name}: found no licence{declare}"
    if licence in ("none", "other"):
        why = (
            "its owner has granted no licence" if licence == "none" else "licence 'other' does not say what it permits"
        )
        return f"data set {name}: {why}; expected a licence that permits derived works, or 'permitted' by its owner"
    if "-nd" in licence:
        return f"data set {name}: {licence} forbids derived works; expected data that permits them"
    if is_noncommercial(licence) and not is_noncommercial(weights.id or ""):
        return (
            f"data set {name}: {licence} forbids commercial use, and the weights are under {weights.id}; expected data that "
            "permits it"
        )
    return None


def _of_base(name: str, licence: Licence, weights: Licence) -> str | None:
    if licence.id in (None, "unknown", *hub_lists()["permissive"]) or licence == weights:
        return None
    return f"base {name}: its licence {licence.name or licence.id} binds derived weights; found {weights.name or weights.id}"
