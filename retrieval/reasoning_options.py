"""Check how records reason before they are embedded, and how a search handles variants of a right answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modeling_moon.gate_moon import THRESHOLD
from product_data.errors import OptionError

# Modes of reasoning for records; "auto" needs a search, see `VectorCache`.
REASONING = ("none", "generate", "given")
# Modes for products and queries of tables, which contain no reasoning.
ROW_REASONING = ("none", "generate")
QUERY_REASONING = (*ROW_REASONING, "auto")
# Ways for a search to handle variants of a right answer.
VARIANTS = ("left_out", "right", "wrong")


def check_reasoning(model: Any, processor: Any, reasoning: str, accepted: Sequence[str] = REASONING) -> None:
    """Check that a model and its processor support a mode of reasoning.

    Raises:
        ValueError: a mode that is not accepted, or that the model or its processor does not support.
    """
    if reasoning not in accepted:
        raise OptionError(f"reasoning={reasoning!r}; expected one of {', '.join(accepted)}")
    if reasoning == "none":
        return
    for part in (getattr(model, "config", None), processor):
        if getattr(part, "max_reasoning_tokens", None) is None:
            raise OptionError(
                f"reasoning={reasoning!r}: this {'processor' if part is processor else 'model'} "
                f"({type(processor if part is processor else model).__name__}) does not reason, since it lacks "
                "max_reasoning_tokens; expected 'none', or a moon3 checkpoint"
            )


def check_threshold(query_reasoning: str, threshold: float | None) -> float:
    """Return the gate's threshold, by default 0.05; it can only be set for queries that reason when unsure ("auto").

    Raises:
        ValueError: a threshold without "auto", or outside [0, 2].
    """
    if threshold is None:
        return THRESHOLD
    if query_reasoning != "auto":
        raise OptionError(
            f"gate_threshold={threshold} with query_reasoning={query_reasoning!r}; expected query_reasoning='auto'"
        )
    if not 0 <= threshold <= 2:
        raise OptionError(f"gate_threshold={threshold}; expected a number in [0, 2], a difference of two cosines")
    return threshold


def check_variants(variants: str) -> str:
    """Check that `variants` is one of `VARIANTS`, and return it.

    Raises:
        ValueError: an unknown value.
    """
    if variants not in VARIANTS:
        raise OptionError(f"variants={variants!r}; expected one of {', '.join(VARIANTS)}")
    return variants
