"""Qwen3-VL-Embedding (arXiv 2601.04720) by the recipe of its reference code: `qwen3_vl_embedding=PLACE`.

The instruction is the system message, by default "Represent the user's input."; the vector is the state of the last token of the
generation prompt; a record has at most 8,192 tokens, a picture 4 to 1,800. The reference embeds the text "NULL" for a picture
that cannot be read; here such a record is skipped and named, as everywhere.
"""

from __future__ import annotations

from typing import Any

from evaluation.baselines.vision_language import (
    QUERY_INSTRUCTION,
    TASKS,
    Recipe,
    VisionLanguagePeer,
    config_of,
    load_peer,
    own_processor,
)
from processing_moon import MoonProcessor, PromptProcessor
from processing_moon.processing_moon import EMBEDDER_BUDGETS, EMBEDDER_INSTRUCTION
from retrieval.model_kinds import KINDS, ModelKind

KIND = "qwen3_vl_embedding"
MIN_IMAGE_TOKENS = 4


def load(place: str, dtype: Any = "auto") -> tuple[VisionLanguagePeer, MoonProcessor]:
    """Load a Qwen3-VL-Embedding checkpoint.

    Args:
        place: folder or hub id, such as "Qwen/Qwen3-VL-Embedding-2B".
        dtype: of the weights; "auto" is that of the checkpoint.

    Raises:
        CheckpointError: a checkpoint of another architecture.
        OSError: no such folder or hub id.
    """
    config = config_of(KIND, place, ("qwen3_vl",))
    instructions = dict.fromkeys(TASKS, EMBEDDER_INSTRUCTION) | {"query": QUERY_INSTRUCTION}
    recipe = Recipe(KIND, "last", instructions, *EMBEDDER_BUDGETS, MIN_IMAGE_TOKENS)
    return load_peer(recipe, place, dtype, config), own_processor(PromptProcessor.from_base(place), recipe)


KINDS[KIND] = ModelKind(load)
