"""Write the sentences of a card: what the checkpoint is, how it was made, its limits, and what was not measured."""

from __future__ import annotations

import re
from typing import Any

from model_cards.facts import Card, Step
from model_cards.scores import DIRECTIONS, direction

_PAPERS = {"moon1": "2508.11999", "moon2": "2511.12449", "moon3": "2604.00513"}
_BACKBONES = {"qwen3_vl": "Qwen3-VL", "qwen2_5_vl": "Qwen2.5-VL"}
_SIGNS = re.compile(r"[\\`*\[\]<>|#]|(?<!\w)_|_(?!\w)")
_NEVER = (
    "Other languages, fairness between brands or groups of people, and robustness against misleading text or pictures."
)


def escaped(text: str) -> str:
    """Return text on one line, with the special characters of Markdown and HTML escaped.

    Args:
        text: text such as a name that a user chose.
    """
    return _SIGNS.sub(r"\\\g<0>", " ".join(str(text).split()))


def what_it_is(card: Card) -> str:
    """Return a paragraph that describes the checkpoint: architecture, paper and backbone."""
    name = card.settings.get("preset")
    backbone = _BACKBONES.get(card.settings.get("backbone", ""), "a vision-language model")
    paper = _PAPERS.get(name or "")
    of_paper = f" (preset `{name}`, after [arXiv {paper}](https://arxiv.org/abs/{paper}))" if paper else ""
    if card.kind == "adapter":
        return f"LoRA weights of a Moon model{of_paper} over {backbone}. They need the checkpoint that they were trained on."
    if card.kind == "dual_tower":
        return (
            f"A dual tower, the baseline of the Moon project: vision and text layers of {backbone} without a joint transformer. "
            "It embeds a product or a query as one vector."
        )
    return (
        f"A Moon model{of_paper} over {backbone}. It embeds a product or a query (pictures, title, category, attributes, or "
        "words) as one vector."
    )


def making(card: Card) -> list[str]:
    """Return one sentence for each step in the making of the weights."""
    return [_step(step, card.kind) for step in card.steps] or ["Not recorded."]


def _step(step: Step, kind: str) -> str:
    details = ", ".join(escaped(f"{name} {value}") for name, value in step.details.items())
    details = f" ({details})" if details else ""
    data = ", ".join(escaped(data_set.hub_id or data_set.name) for data_set in step.data)
    if step.kind == "unrecorded":
        return f"Not recorded{details}." + (f" Declared afterwards: trained on {data}." if data else "")
    if step.kind == "training":
        merged = " The adapter is merged into the weights." if "LoRA r" in step.details and kind != "adapter" else ""
        return f"Training on {data or 'unrecorded data'}{details}.{merged}"
    name = "a base" if step.base is None else escaped(step.base.name)
    start = f"{name}, made with random weights," if step.base and step.base.random else name
    if kind == "dual_tower":
        return f"Its two towers began as layers of {start}{details}."
    return f"Upcycling: {start} became a Moon model that computes what its base computes{details}."


def limits(card: Card) -> list[str]:
    """Return one sentence for each limit that follows from the facts."""
    trained = [step for step in card.steps if step.kind == "training"]
    sentences = []
    if card.base is not None and card.base.random:
        sentences.append(
            "It started from random weights: it knows its training data only, and pictures of another kind are unknown to it."
        )
    if not trained and card.kind == "moon" and card.steps and card.steps[-1].kind == "upcycling":
        sentences.append(
            "It was upcycled and not trained: it computes the vectors of its base, and its new parts are untrained."
        )
    if trained:
        seed = trained[-1].details.get("seed")
        sentences.append(
            "One training run"
            + ("" if seed is None else f", seed {seed}")
            + ": the intervals are over queries only and do not include the variation between seeds."
        )
    if card.settings.get("max_tokens"):
        sentences.append(
            f"A query or product has at most {card.settings['max_tokens']} tokens, pictures included: longer texts are cut."
        )
    warnings = [(result["benchmark"], warning) for result in card.results for warning in result["warnings"]]
    sentences += [f"{escaped(name)}: {warning.partition('; first:')[0].rstrip('.')}." for name, warning in warnings]
    sentences.append(
        "It is made for search and comparison of products; a similarity is not a statement of fact about a product."
    )
    return list(dict.fromkeys(sentences))


def unmeasured(card: Card) -> list[str]:
    """Return one sentence for each measurement that no results file contains."""
    after = [result for result in card.results if result["side"] == "after"]
    if not after:
        return ["All scores: no results file of these weights was given.", _NEVER]
    sentences = [sentence for result in after for sentence in _missing(result)]
    measured = {width for result in after for width in result["dimensions"]}
    narrow = [str(width) for width in card.sizes.prefixes if str(width) not in measured]
    if narrow:
        sentences.append(f"Quality of the narrower vectors ({', '.join(narrow)}).")
    if any(step.kind == "training" for step in card.steps) and not any(r["side"] == "before" for r in card.results):
        sentences.append("The weights that the training started from, for comparison.")
    return [*sentences, _NEVER]


def _missing(result: dict[str, Any]) -> list[str]:
    name = escaped(result["benchmark"])
    sentences = [
        f"{name}, {DIRECTIONS.get(measure, measure)}: {reason}."
        for measure, reason in result["absent"].items()
        if measure not in {row["direction"] for row in result["retrieval"]}
    ]
    if not result["labels"] and not {"classification", "attributes"} & set(result["absent"]):
        sentences.append(f"{name}: categories and attributes.")
    without = [direction(row) for row in result["retrieval"] if not row.get("R@10_interval")]
    return [*sentences, *([f"{name}: intervals of {', '.join(without)}."] if without else [])]
