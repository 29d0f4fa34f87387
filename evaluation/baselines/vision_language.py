"""Vision-language models as embedders: a prompt with pictures and text, and a vector read from the last hidden states.

`vlm_mean=PLACE` and `vlm_last=PLACE` are a plain Qwen3-VL, Qwen2.5-VL, Qwen2-VL or InternVL, which nobody trained to embed
(zero-shot): the mean over the user's tokens, or the last token. They have no recipe of their own, so that prompts and budgets
are those of Moon, with Qwen2.5-VL's default system message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from evaluation.baselines.peers import Peer, PeerConfig, PeerOutput
from evaluation.baselines.tiled_prompts import TiledPromptProcessor
from modeling_moon.tokens_moon import mean_of, user_tokens
from processing_moon import MoonProcessor, PromptProcessor
from processing_moon.pixels_moon import pixel_limits, token_side
from processing_moon.processing_moon import DEFAULT_BUDGETS
from retrieval.model_kinds import KINDS, CheckpointError, ModelKind

TASKS = ("product", "query", "category", "attribute")
QUERY_INSTRUCTION = "Find the product that this shopper is looking for."
"""What models that follow instructions are asked for with a query; products and labels have each model's default."""
PLAIN_INSTRUCTION = "You are a helpful assistant."
QWEN = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
JOINT_NOTE = "one prompt with the pictures and the text"


@dataclass(frozen=True)
class Recipe:
    """How a vision-language model embeds.

    Args:
        kind (`str`): the kind of model.
        readout (`str`): "mean" or "last".
        instruction: task → the system message; empty where the prompt has none.
        max_tokens (`int`): budget of a record, in tokens.
        max_image_tokens (`int` or `None`): budget of a picture; `None` is the checkpoint's own.
        min_image_tokens (`int` or `None`): what a smaller picture is enlarged to; `None` is the checkpoint's own.
    """

    kind: str
    readout: str
    instruction: dict[str, str]
    max_tokens: int
    max_image_tokens: int | None
    min_image_tokens: int | None = None


def own_processor(base: PromptProcessor, recipe: Recipe, chat_template: str | None = None) -> MoonProcessor:
    """Return Moon's processor over a peer's own tokenizer: no token is added, and the prompt is the peer's.

    Args:
        base: the peer's `PromptProcessor`.
        recipe: instructions and budgets.
        chat_template (`str` or `None`): default: the peer's own.
    """
    pictures = base.image_processor
    if recipe.min_image_tokens is not None:
        smallest = recipe.min_image_tokens * token_side(pictures) ** 2
        pictures.size = {"shortest_edge": smallest, "longest_edge": max(smallest, pixel_limits(pictures)[1])}
    return MoonProcessor(
        pictures,
        base.tokenizer,
        chat_template or base.chat_template,
        readout="last",
        markers=False,
        core_crop=False,
        instructions=recipe.instruction,
        max_tokens=recipe.max_tokens,
        max_image_tokens=recipe.max_image_tokens,
    )


class VisionLanguagePeer(Peer):
    r"""A vision-language model whose last hidden states are pooled.

    "last": `v = h_T`, T the last attended token. "mean": `v = mean_{t in U} h_t`, U the user's own tokens (image tokens and
    words, without instruction, chat template and vision markers), as Moon's mean read-out has it.

    Args:
        config: PeerConfig.
        vlm: the model without its output layer.
        readout (`str`): "mean" or "last".
        user_turn: ids that open the user's turn, and the id that ends a turn; see `user_tokens`.
        markers: ids of the tokens around pictures, which the mean leaves out.
    """

    def __init__(
        self,
        config: PeerConfig,
        vlm: Any,
        readout: str,
        user_turn: tuple[list[int] | None, int | None] = (None, None),
        markers: Sequence[int] = (),
    ) -> None:
        super().__init__(config, vlm)
        self.readout, self.user_turn, self.markers = readout, user_turn, list(markers)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> PeerOutput:
        """Embed a batch of input_ids and attention_mask (B, T), with the picture inputs that the model takes."""
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True, **inputs
        )
        state_BTH = output.last_hidden_state
        read_BT = attention_mask.bool()
        if self.readout == "mean":
            read_BT = read_BT & user_tokens(input_ids.masked_fill(~read_BT, -1), *self.user_turn)
            marker_M = torch.tensor(self.markers, dtype=input_ids.dtype, device=input_ids.device)
            return PeerOutput(mean_of(state_BTH, read_BT & ~torch.isin(input_ids, marker_M)))
        place_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_B = torch.where(read_BT, place_T, -1).amax(dim=1)
        return PeerOutput(state_BTH[torch.arange(len(last_B), device=last_B.device), last_B].float())


def _load_plain(readout: str, place: str, dtype: Any = "auto") -> tuple[VisionLanguagePeer, Any]:
    """A plain vision-language model: Qwen's, or InternVL."""
    kind = f"vlm_{readout}"
    config = config_of(kind, place, (*QWEN, "internvl"))
    if config.model_type == "internvl":
        tiled = TiledPromptProcessor.from_pretrained(kind, place, config)
        recipe = Recipe(kind, readout, {}, tiled.max_tokens, None)
        return load_peer(recipe, place, dtype, config, tiled.user_turn, tiled.markers), tiled
    base = PromptProcessor.from_base(place)
    instructions = dict.fromkeys(TASKS, PLAIN_INSTRUCTION)
    recipe = Recipe(kind, readout, instructions, *DEFAULT_BUDGETS)
    processor = own_processor(base, recipe)
    markers = [config.vision_start_token_id, config.vision_end_token_id]
    return load_peer(recipe, place, dtype, config, processor.user_turn, markers), processor


def config_of(kind: str, place: str, accepted: Sequence[str]) -> Any:
    """Return the configuration of a checkpoint.

    Raises:
        CheckpointError: a model type that is not among the accepted ones.
        OSError: no such folder or hub id.
    """
    config = AutoConfig.from_pretrained(place)
    if config.model_type not in accepted:
        raise CheckpointError(f"{kind}={place}: model type {config.model_type!r}; expected {', '.join(accepted)}")
    return config


def load_peer(
    recipe: Recipe,
    place: str,
    dtype: Any,
    config: Any,
    user_turn: tuple[list[int] | None, int | None] = (None, None),
    markers: Sequence[int] = (),
) -> VisionLanguagePeer:
    """Load the model of a checkpoint without its output layer, as a peer.

    Args:
        recipe: how it embeds.
        place: folder or hub id.
        dtype: of the weights; "auto" is that of the checkpoint.
        config: from `config_of`.
        user_turn, markers: of `VisionLanguagePeer`.
    """
    vlm = AutoModel.from_pretrained(place, dtype=dtype)
    named = {"mm": JOINT_NOTE, **asdict(recipe)}
    own = PeerConfig(recipe.kind, config.get_text_config().hidden_size, named, config.to_dict())
    return VisionLanguagePeer(own, vlm, recipe.readout, user_turn, markers)


KINDS["vlm_mean"] = ModelKind(partial(_load_plain, "mean"))
KINDS["vlm_last"] = ModelKind(partial(_load_plain, "last"))
