"""Say where the weights of a model come from: published, random, or trained, and then on what and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evaluation.baselines.random_towers import RANDOM
from model_cards.facts import FACTS_FILE, RANDOM_TAG, README_FILE, Card, CardError, read_card
from model_cards.metadata import front_matter
from retrieval.model_kinds import named_kind

UNRECORDED = "not recorded"


def weights_of(model: str, declared: Mapping[str, str] | None = None) -> str:
    """Return where the weights of a model come from, in the words of a table.

    Args:
        model: folder or hub id, or a peer such as "clip=PLACE" or "bm25".
        declared: model → what a person says of its weights, for a folder that does not record it. Default: nothing.

    Returns: what is declared, followed by "(declared)"; or "none" (BM25), "random", "published" (a hub id), "trained
        from random, 120 steps on grocery, fashion" (from the record beside the weights, `model_card.json`; without "from random"
        if the base was published), "base, not trained" (an upcycled published base), or "not recorded".
    """
    if declared and model in declared:
        return f"{declared[model]} (declared)"
    named = named_kind(model)
    place = named[1] if named is not None else model
    if named is not None and (not place or place == RANDOM):
        return "random" if place else "none"
    folder = Path(place)
    if not folder.is_dir():
        return "published"
    try:
        card = read_card(folder) if (folder / FACTS_FILE).is_file() else None
        tags = front_matter((folder / README_FILE).read_text(encoding="utf-8")).get("tags") or []
    except (OSError, ValueError, CardError):
        return UNRECORDED
    if card is not None:
        return _of_card(card)
    return "random" if RANDOM_TAG in tags else UNRECORDED


def _of_card(card: Card) -> str:
    trained = [step for step in card.steps if step.kind == "training"]
    if any(step.kind == "unrecorded" for step in card.steps):
        return UNRECORDED
    random = card.base is not None and card.base.random
    if not trained:
        return "random" if random else "base, not trained"
    counts = [count for step in trained if isinstance(count := step.details.get("steps"), int) and count > 0]
    steps = f", {sum(counts):,} steps" if len(counts) == len(trained) else ""
    names = ", ".join(dict.fromkeys(data.name for step in trained for data in step.data))
    return f"trained{' from random' if random else ''}{steps}" + (f" on {names}" if names else "")
