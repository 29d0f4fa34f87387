"""Check how records reason before they are embedded, and what a search makes of the variants of a right answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modeling_moon.gate_moon import THRESHOLD
from product_data.errors import OptionError

# How records may be embedded; the gate of "auto" belongs to a search, see `VectorCache`.
REASONING = ("none", "generate", "given")
# How rows of tables may be embedded: they give no reasoning of their own.
ROW_REASONING = ("none", "generate")
QUERY_REASONING = (*ROW_REASONING, "auto")
# What a search may make of the variants of a right answer.
VARIANTS = ("left_out", "right", "wrong")


def check_reasoning(model: Any, processor: Any, reasoning: str, accepted: Sequence[str] = REASONING) -> None:
    """Refuse what cannot be, before any work.

    Raises:
        ValueError: a reasoning that is not accepted here, or one that the model or its processor is not made for.
    """
    if reasoning not in accepted:
        raise OptionError(f"reasoning={reasoning!r}; expected {', '.join(accepted)}")
    if reasoning == "none":
        return
    for part in (getattr(model, "config", None), processor):
        if getattr(part, "max_reasoning_tokens", None) is None:
            raise OptionError(
                f"reasoning={reasoning!r}: this {'processor' if part is processor else 'model'} "
                f"({type(processor if part is processor else model).__name__}) does not reason, it has no "
                "max_reasoning_tokens; expected 'none', or a moon3 checkpoint"
            )


def check_threshold(query_reasoning: str, threshold: float | None) -> float:
    """The gate's threshold, by default 0.05; one is accepted for queries that reason when unsure.

    Raises:
        ValueError: a threshold without "auto", or not in [0, 2].
    """
    if threshold is None:
        return THRESHOLD
    if query_reasoning != "auto":
        raise OptionError(
            f"gate_threshold={threshold} with query_reasoning={query_reasoning!r}; expected with query_reasoning='auto'"
        )
    if not 0 <= threshold <= 2:
        raise OptionError(f"gate_threshold={threshold}; expected a number in [0, 2], a difference of two cosines")
    return threshold


def check_variants(variants: str) -> str:
    """What a search makes of variants, if it is one of `VARIANTS`.

    Raises:
        ValueError: it is not.
    """
    if variants not in VARIANTS:
        raise OptionError(f"variants={variants!r}; expected {', '.join(VARIANTS)}")
    return variants
