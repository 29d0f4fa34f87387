"""What a card says in sentences: what the checkpoint is, how it was made, its limits, and what was not measured."""

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
    """Return text on one line, with a backslash before what Markdown or HTML would take for its own.

    Args:
        text: such as a name that a person gave.
    """
    return _SIGNS.sub(r"\\\g<0>", " ".join(str(text).split()))


def what_it_is(card: Card) -> str:
    """Return one paragraph: what the checkpoint is and what it is of."""
    name = card.settings.get("preset")
    backbone = _BACKBONES.get(card.settings.get("backbone", ""), "a vision-language model")
    paper = _PAPERS.get(name or "")
    of_paper = f" (preset `{name}`, after [arXiv {paper}](https://arxiv.org/abs/{paper}))" if paper else ""
    if card.kind == "adapter":
        return f"LoRA weights of a Moon model{of_paper} over {backbone}. They need the checkpoint that they were trained on."
    if card.kind == "dual_tower":
        return (
            f"A dual tower, the baseline of the Moon project: vision and text layers of {backbone} without a transformer that "
            "sees both. One vector for a product or a query."
        )
    return (
        f"A Moon model{of_paper} over {backbone}: one vector for a product or a query, whatever it consists of: pictures, title, "
        "category, attributes, or words."
    )


def making(card: Card) -> list[str]:
    """Return how the weights were made, a sentence for each step."""
    return [_step(step, card.kind) for step in card.steps] or ["Not recorded."]


def _step(step: Step, kind: str) -> str:
    details = ", ".join(escaped(f"{name} {value}") for name, value in step.details.items())
    details = f" ({details})" if details else ""
    data = ", ".join(escaped(one.hub_id or one.name) for one in step.data)
    if step.kind == "unrecorded":
        return f"Not recorded{details}." + (f" Declared afterwards: trained on {data}." if data else "")
    if step.kind == "training":
        merged = " The adapter is merged into the weights." if "LoRA r" in step.details and kind != "adapter" else ""
        return f"Training on {data or 'data that is not recorded'}{details}.{merged}"
    name = "a base" if step.base is None else escaped(step.base.name)
    start = f"{name}, made with random weights," if step.base and step.base.random else name
    if kind == "dual_tower":
        return f"Its two towers began as layers of {start}{details}."
    return f"Upcycling: {start} became a Moon that computes what its base computes{details}."


def limits(card: Card) -> list[str]:
    """Return what to keep in mind, a sentence each; the sentences follow from the facts."""
    trained = [step for step in card.steps if step.kind == "training"]
    said = []
    if card.base is not None and card.base.random:
        said.append(
            "It started from random weights: it knows its training data, and pictures of another kind are foreign to it."
        )
    if not trained and card.kind == "moon" and card.steps and card.steps[-1].kind == "upcycling":
        said.append(
            "It was upcycled and not trained: its vectors are its base's, and its new parts have learned nothing yet."
        )
    if trained:
        seed = trained[-1].details.get("seed")
        said.append(
            "One training"
            + ("" if seed is None else f", seed {seed}")
            + ": how much another seed would change is not in the intervals, which are over queries alone."
        )
    if card.settings.get("max_tokens"):
        said.append(
            f"An item takes at most {card.settings['max_tokens']} tokens, pictures included: longer texts are cut to fit."
        )
    warnings = [(result["benchmark"], warning) for result in card.results for warning in result["warnings"]]
    said += [f"{escaped(name)}: {warning.partition('; first:')[0].rstrip('.')}." for name, warning in warnings]
    said.append(
        "It is made for search and comparison of products; a similarity is no statement of fact about a product."
    )
    return list(dict.fromkeys(said))


def unmeasured(card: Card) -> list[str]:
    """Return what no results file says, a sentence each."""
    after = [result for result in card.results if result["side"] == "after"]
    if not after:
        return ["Anything: no results file of these weights was given.", _NEVER]
    said = [sentence for result in after for sentence in _missing(result)]
    measured = {width for result in after for width in result["dimensions"]}
    narrow = [str(width) for width in card.sizes.prefixes if str(width) not in measured]
    if narrow:
        said.append(f"Quality of the narrower vectors ({', '.join(narrow)}).")
    if any(step.kind == "training" for step in card.steps) and not any(r["side"] == "before" for r in card.results):
        said.append("The weights that the training started from, for comparison.")
    return [*said, _NEVER]


def _missing(result: dict[str, Any]) -> list[str]:
    name = escaped(result["benchmark"])
    said = [
        f"{name}, {DIRECTIONS.get(what, what)}: {why}."
        for what, why in result["absent"].items()
        if what not in {row["direction"] for row in result["retrieval"]}
    ]
    if not result["labels"] and not {"classification", "attributes"} & set(result["absent"]):
        said.append(f"{name}: categories and attributes.")
    without = [direction(row) for row in result["retrieval"] if not row.get("R@10_interval")]
    return [*said, *([f"{name}: intervals of {', '.join(without)}."] if without else [])]
