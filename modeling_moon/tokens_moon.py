"""Find the spans between markers, the tokens that a vector is read from, and the tokens that the fusion reads.

Shape suffixes: B batch rows, T tokens of a row, H hidden width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .configuration_moon import ASPECTS, MoonConfig


def span_ids_from_markers(input_ids_BT: torch.Tensor, markers: list[tuple[int | None, int | None]]) -> torch.Tensor:
    """Return the span of each token: 0 outside all spans, 1 for the first pair of markers, 2 for the second, and so on.

    A token belongs to a span if the last marker before it opens that span; the markers themselves belong to no span. Only
    the text before a token decides; a decoding step with a cache and a pass over the whole text therefore agree. Our design.

    Args:
        input_ids_BT: int64 (B, T).
        markers: for each span, the ids of the tokens that open and close it; a pair of None is never found.

    Returns:
        int64 (B, T) of 0 … number of pairs.
    """
    opened_BT = torch.zeros_like(input_ids_BT)
    is_marker_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
    for number, (start, end) in enumerate(markers, start=1):
        if start is None:
            continue
        opened_BT = torch.where(input_ids_BT == start, number, opened_BT)
        is_marker_BT = is_marker_BT | (input_ids_BT == start) | (input_ids_BT == end)
    positions_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    last_marker_BT = torch.where(is_marker_BT, positions_T, -1).cummax(dim=1).values
    span_BT = opened_BT.gather(1, last_marker_BT.clamp(min=0))
    return torch.where(is_marker_BT | (last_marker_BT < 0), 0, span_BT)


def aspect_ids_from_markers(input_ids_BT: torch.Tensor, config: MoonConfig) -> torch.Tensor:
    """Return the aspect (B, T) of each token: 0 without an aspect, 1 category, 2 attribute. MOON §3.1 speaks of the category
    and attribute substrings of the title; see `span_ids_from_markers`."""
    names = [(f"{aspect}_start_token_id", f"{aspect}_end_token_id") for aspect in ASPECTS]
    return span_ids_from_markers(input_ids_BT, [(getattr(config, start), getattr(config, end)) for start, end in names])


def user_tokens(input_ids_BT: torch.Tensor, prefix: list[int] | None, turn_end: int | None) -> torch.Tensor:
    """Find the tokens of user turns: after the tokens that open a user's turn, before the token that ends it.

    In a prompt of the processor, the user's turn contains the product or query; everything else (instruction, roles, the
    opening of the answer) belongs to the chat template. Our design.

    Args:
        input_ids_BT: int64 (B, T).
        prefix: ids that open a user's turn, `<|im_start|>user` and a line end in Qwen's template; None if unknown.
        turn_end: id that ends any turn.

    Returns:
        (B, T) bool; True at every token of a row without a user turn (plain text without the chat template), and everywhere
        if `prefix` is None.
    """
    every_BT = torch.ones_like(input_ids_BT, dtype=torch.bool)
    if prefix is None or input_ids_BT.shape[1] < len(prefix):
        return every_BT
    windows_BTP = input_ids_BT.unfold(1, len(prefix), 1)
    opens_BT = torch.zeros_like(every_BT)  # True at the last token of an opening
    opens_BT[:, len(prefix) - 1 :] = (windows_BTP == torch.tensor(prefix, device=input_ids_BT.device)).all(dim=-1)
    place_T = torch.arange(1, input_ids_BT.shape[1] + 1, device=input_ids_BT.device)
    opened_BT = (opens_BT * place_T).cummax(dim=1).values
    ended_BT = ((input_ids_BT == turn_end) * place_T).cummax(dim=1).values
    inside_BT = (opened_BT > ended_BT) & ~opens_BT
    return torch.where(opens_BT.any(dim=1, keepdim=True), inside_BT, every_BT)


def content_tokens(input_ids_BT: torch.Tensor, config: MoonConfig) -> torch.Tensor:
    """Return a boolean mask (B, T) of the tokens that the mean read-out averages: image tokens and the words of the product
    or query.

    MOON §3.1 averages the visual and text tokens of the product. The instruction, the chat template and the markers around
    pictures and spans of text are not in the paper, and are left out (our design).
    """
    vlm = config.vlm_config
    markers = [vlm.vision_start_token_id, vlm.vision_end_token_id]
    markers += [getattr(config, f"{span}_{side}_token_id") for span in (*ASPECTS, "title") for side in ("start", "end")]
    marker_M = torch.tensor([token for token in markers if token is not None], device=input_ids_BT.device)
    in_turn_BT = user_tokens(input_ids_BT, config.user_prefix_ids, config.turn_end_id)
    return in_turn_BT & ~torch.isin(input_ids_BT, marker_M)


def token_mask(inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the part (B, T) of the attention mask that belongs to the new tokens, ids (B, T) or embeddings (B, T, H)."""
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
    return attention_mask[:, -inputs.shape[1] :]


def readable_tokens(
    attention_mask_BT: torch.Tensor, config: MoonConfig, input_ids_BT: torch.Tensor | None
) -> torch.Tensor:
    """Find the tokens that a vector is read from: those of the product or query, the last `<emb>`, or the last attended one.

    Args:
        attention_mask_BT: 1 where a token is attended.
        config: its `readout` chooses: "mean" (MOON §3.1), "emb" (MOON3.0) or "last" (bases that are embedders).
        input_ids_BT: int64 (B, T); None only with "last", or with "mean" where `config.user_prefix_ids` is None.

    Returns:
        (B, T) bool, at least one per row.

    Raises:
        ValueError: a row without a token to read from (the message has its index); missing `input_ids`.
    """
    chosen_BT, wanted = attention_mask_BT.bool(), "attended token"
    if input_ids_BT is None and (config.readout == "emb" or (config.readout == "mean" and config.user_prefix_ids)):
        where = "the <emb> token is" if config.readout == "emb" else "the tokens of the product or query are"
        raise ValueError(
            f"readout {config.readout!r} needs input_ids: {where} found by the ids; expected input_ids, or "
            "output_embeddings=False with inputs_embeds"
        )
    if config.readout == "emb":
        chosen_BT, wanted = chosen_BT & (input_ids_BT == config.emb_token_id), "<emb> token"
    elif config.readout == "mean" and config.user_prefix_ids and input_ids_BT is not None:
        chosen_BT, wanted = chosen_BT & content_tokens(input_ids_BT, config), "token of a product or query"
    if not torch.compiler.is_compiling() and not bool(chosen_BT.any(dim=1).all()):
        rows = (~chosen_BT.any(dim=1)).nonzero()[:, 0].tolist()
        raise ValueError(f"rows {rows} of the batch have no {wanted} to read a vector from")
    if config.readout == "mean":
        return chosen_BT
    positions_T = torch.arange(chosen_BT.shape[1], device=chosen_BT.device)
    last_B = torch.where(chosen_BT, positions_T, -1).amax(dim=1)
    return positions_T == last_B[:, None]


def mean_of(states_BTH: torch.Tensor, set_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean (B, H) float32 over the tokens of a set; zero for a row without such tokens."""
    weight_BT1 = set_BT[:, :, None].float()
    return (states_BTH.float() * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1.0)


class RawTokens(NamedTuple):
    """Inputs of the fusion: states (B, T, H) of the input by `config.fusion_source`, its last hidden states or the inputs of
    the text model, and masks (B, T) bool of its image and title tokens. They precede the reasoning, and attention is causal:
    reasoning cannot change them."""

    states_BTH: torch.Tensor
    is_image_BT: torch.Tensor
    is_title_BT: torch.Tensor


def find_raw_tokens(
    config: MoonConfig,
    input_ids: torch.Tensor,
    mask_BT: torch.Tensor,
    states_BTH: torch.Tensor,
) -> RawTokens:
    """Return the inputs of the fusion, from a pass over the input.

    Args:
        config: MoonConfig, for the ids of image tokens and title markers.
        input_ids: (B, T), with image tokens and title markers.
        mask_BT: 1 for attended tokens.
        states_BTH: of the tokens, by `config.fusion_source`.

    Relations: `require_raw_tokens` refuses a pass that lacks them.
    """
    title = [(config.title_start_token_id, config.title_end_token_id)]
    attended_BT = mask_BT.bool()
    is_image_BT = attended_BT & (input_ids == config.image_token_id)
    is_title_BT = attended_BT & (span_ids_from_markers(input_ids, title) == 1) & ~is_image_BT
    return RawTokens(states_BTH, is_image_BT, is_title_BT)


def input_dtype(layer: torch.nn.Linear, states: torch.Tensor) -> torch.dtype:
    """Return the dtype of a linear layer's input: its own, or that of the states if its weights are quantised (integers, or
    packed)."""
    weight = layer.weight
    return weight.dtype if isinstance(weight, torch.Tensor) and weight.is_floating_point() else states.dtype


def refuse_unseen_images(
    input_ids: torch.Tensor | None, image_token_id: int, token_types: torch.Tensor | None = None
) -> None:
    """Refuse image tokens without pictures: their placeholder would be embedded like a word.

    Args:
        input_ids: (B, T).
        image_token_id: of the placeholder.
        token_types: (B, T), 0 where a token is text regardless of its id, such as a generated one; None: the ids decide.

    Raises:
        ValueError: rows with image tokens.
    """
    if input_ids is None or torch.compiler.is_compiling():
        return
    is_image_BT = input_ids == image_token_id
    has_image_B = (is_image_BT if token_types is None else is_image_BT & (token_types != 0)).any(dim=1)
    if bool(has_image_B.any()):
        rows = has_image_B.nonzero()[:, 0].tolist()
        raise ValueError(f"rows {rows} of the batch have image tokens but there are no pixel_values")


def require_raw_tokens(input_ids: torch.Tensor | None, past_tokens: int) -> None:
    """Refuse a pass without the inputs of the fusion; see `find_raw_tokens`.

    Raises:
        ValueError: missing `input_ids`, or a decoding step.
    """
    if input_ids is None:
        raise ValueError("fusion needs input_ids: image tokens and title markers are found by their ids")
    if past_tokens:
        raise ValueError("fusion in a decoding step needs raw_tokens from the prefill pass")


# Arguments of other models that would otherwise be passed on to the layers, which ignore them.
_UNREAD = {
    "output_router_logits": "output_router_stats=True, which gives expert_load, expert_gates and router_loss",
    "pixel_values_videos": "pixel_values, of pictures",
    "video_grid_thw": "image_grid_thw, of pictures",
}


def refuse_unread_arguments(
    input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, others: dict[str, Any]
) -> None:
    """Refuse arguments that would be ignored: the second of two inputs, and arguments of other models; remove the latter if
    they are None or False.

    Raises:
        ValueError: such an argument; the message says which one to use instead.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("expected exactly one of input_ids and inputs_embeds")
    for name, accepted in _UNREAD.items():
        value = others.pop(name, None)
        if value is not None and value is not False:
            raise ValueError(f"Moon does not read {name}; expected {accepted}")
