"""GME (arXiv 2412.16855) by the recipe of its reference code, `gme_inference.py`: `gme=PLACE`.

Queries have an instruction as the system message, products and labels "You are a helpful assistant."; `<|endoftext|>` follows the
generation prompt, and its state is the vector; a record has at most 1,800 tokens, a picture 256 to 1,280. Where the reference
cuts the end of a prompt that is too long, and the token that is read with it, the text is shortened here, and
where it resizes a picture twice, it is resized once.
"""

from __future__ import annotations

from typing import Any

from evaluation.baselines.vision_language import (
    PLAIN_INSTRUCTION,
    QUERY_INSTRUCTION,
    TASKS,
    Recipe,
    VisionLanguagePeer,
    config_of,
    load_peer,
    own_processor,
)
from processing_moon import MoonProcessor, PromptProcessor
from retrieval.model_kinds import KINDS, ModelKind

KIND = "gme"
END_OF_TEXT = "<|endoftext|>"
MAX_TOKENS, MAX_IMAGE_TOKENS, MIN_IMAGE_TOKENS = 1800, 1280, 256


def load(place: str, dtype: Any = "auto") -> tuple[VisionLanguagePeer, MoonProcessor]:
    """Load a GME checkpoint.

    Args:
        place: folder or hub id, such as "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct".
        dtype: of the weights; "auto" is that of the checkpoint.

    Raises:
        CheckpointError: a checkpoint of another architecture.
        OSError: no such folder or hub id.
    """
    config = config_of(KIND, place, ("qwen2_vl",))
    instructions = dict.fromkeys(TASKS, PLAIN_INSTRUCTION) | {"query": QUERY_INSTRUCTION}
    recipe = Recipe(KIND, "last", instructions, MAX_TOKENS, MAX_IMAGE_TOKENS, MIN_IMAGE_TOKENS)
    base = PromptProcessor.from_base(place)
    processor = own_processor(base, recipe, f"{base.chat_template}{{{{- '{END_OF_TEXT}' -}}}}")
    return load_peer(recipe, place, dtype, config), processor


KINDS[KIND] = ModelKind(load)
