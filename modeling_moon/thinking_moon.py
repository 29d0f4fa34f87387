"""Generate reasoning and read the vector after it, in one pass over the prompt.

Shape suffixes: B batch rows, T tokens of a prompt, R reasoning tokens, D size of the vector.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig

from .gate_moon import MarginGate
from .outputs_moon import MoonEmbedding
from .positions_moon import Positions, find_positions
from .tokens_moon import RawTokens


@dataclass(frozen=True)
class Thinking:
    """Settings for generating reasoning.

    Args:
        max_tokens (`int` or `None`): maximum number of tokens. Default None: the configuration's `max_reasoning_tokens`.
        do_sample (`bool`): sample tokens instead of taking the most probable one. Default False.
        temperature (`float`): of the sampling, above 0. Default 1.
        top_p (`float`): sample from the most probable tokens that together have this probability, in (0, 1]. Default 1.
        min_tokens (`int`): minimum number of tokens before `</think>`, to measure the cost of a length. Default 0.

    Raises:
        ValueError: a value out of range.
    """

    max_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    min_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"thinking: max_tokens={self.max_tokens}; expected 1 or more, or None")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"thinking: temperature={self.temperature}, top_p={self.top_p}; expected a temperature above 0 and a top_p "
                "in (0, 1]"
            )
        if self.min_tokens < 0 or (self.max_tokens is not None and self.min_tokens > self.max_tokens):
            raise ValueError(
                f"thinking: min_tokens={self.min_tokens}; expected 0 or more, and at most max_tokens={self.max_tokens}"
            )


def think_then_embed(
    model: Any,
    writer: Any,
    batch: Mapping[str, torch.Tensor],
    thinking: Thinking,
    tokenizer: Any,
    gate: MarginGate | None = None,
) -> MoonEmbedding:
    """Generate reasoning for each row, or for each unsure row, and read the vector after it, in one pass.

    The prompt is encoded once, and its keys and values are kept. Generation continues from them; a row is finished at
    `</think>`. One step of three tokens then closes the open rows and reads `<emb>`, with the padding of the finished rows
    masked. The fusion reads the prompt's tokens. The result equals that of encoding the whole text again, at a fraction of
    the cost. With a gate, the pass over the prompts ends in `<emb>` and returns the vectors without reasoning; that token
    is dropped from the cache, and generation continues with the unsure rows only. Our design.

    Args:
        model: the `MoonModel`. It is in evaluation mode during the call, because dropout and gradient checkpointing (which
            keeps no cache) belong to training; the modes of its modules are restored.
        writer: the same model with its output layer.
        batch: tensors of the processor with reasoning="generate": prompts that end in `<think>`, padded on the left.
        thinking: how to generate.
        tokenizer: of the model; its padding token fills the rows, and its end-of-sequence token is never generated.
        gate: decides which rows reason. Default None: all of them.

    Raises:
        ValueError: prompts that do not end in `<think>`.
    """
    with _evaluation_mode(model, writer), torch.no_grad():
        if not bool((batch["input_ids"][:, -1] == model.config.think_start_token_id).all()):
            raise ValueError(
                "prompts must end in <think> and be padded on the left: processor(…, reasoning='generate')"
            )
        if gate is None:
            return _think(model, writer, _encode_prompts(model, batch)[0], thinking, tokenizer)
        prompts, plain = _encode_prompts(model, batch, embed=True)
        plain.margins = gate.margins(plain.embeddings)
        unsure_B = gate.unsure(plain.margins)
        if not bool(unsure_B.any()):
            return plain
        reasoned = _think(model, writer, prompts.select(unsure_B), thinking, tokenizer)
        return _merge(plain, reasoned, unsure_B, tokenizer.pad_token_id)


# For each model in training mode that generates now: the number of calls, and the modules that return to training mode
# after the last of them.
_in_use: dict[int, tuple[int, list[torch.nn.Module]]] = {}
_in_use_lock = threading.Lock()


@contextlib.contextmanager
def _evaluation_mode(model: Any, writer: Any) -> Iterator[None]:
    """Switch a model to evaluation mode while any thread generates with it, then restore the mode of each module."""
    key = id(model)
    with _in_use_lock:
        calls, switched = _in_use.get(key, (0, []))
        switched = switched + [module for module in {*model.modules(), writer} if module.training]
        for module in switched:
            module.training = False
        _in_use[key] = calls + 1, switched
    try:
        yield
    finally:
        with _in_use_lock:
            calls, switched = _in_use.pop(key)
            if calls > 1:
                _in_use[key] = calls - 1, switched
            else:
                for module in switched:
                    module.training = True


@dataclass
class _Prompts:
    """Prompts that end in `<think>`, with the keys and values of all tokens but that one.

    Shapes: ids_BT, mask_BT (B, T) int64; positions of all T tokens.
    """

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    cache: Any
    raw: RawTokens | None
    positions: Positions

    def select(self, chosen_B: torch.Tensor) -> _Prompts:
        """Return the chosen rows; keys and values of the other rows are freed."""
        self.cache.batch_select_indices(chosen_B.nonzero()[:, 0])
        raw = None if self.raw is None else RawTokens(*(part[chosen_B] for part in self.raw))
        positions = Positions(self.positions.all_4BT[:, chosen_B], self.positions.offset_B1[chosen_B])
        return _Prompts(self.ids_BT[chosen_B], self.mask_BT[chosen_B], self.cache, raw, positions)


def _encode_prompts(
    model: Any, batch: Mapping[str, torch.Tensor], *, embed: bool = False
) -> tuple[_Prompts, MoonEmbedding]:
    """Encode the prompts without `<think>`; with `embed`, put `<emb>` in its place and read the vectors there."""
    config = model.config
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    positions = find_positions(model.vlm, ids_BT == config.image_token_id, mask_BT, batch.get("image_grid_thw"))
    cache = DynamicCache(config=config.text_config)
    length = ids_BT.shape[1] if embed else ids_BT.shape[1] - 1
    prompt = {
        name: batch[name][:, :length] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in batch
    }
    if embed:
        emb_B1 = torch.full_like(ids_BT[:, -1:], config.emb_token_id)
        prompt["input_ids"] = torch.cat([ids_BT[:, :-1], emb_B1], dim=1)
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
    output = model(
        **prompt,
        **pictures,
        position_ids=positions.all_4BT[..., :length],
        past_key_values=cache,
        use_cache=True,
        output_embeddings=embed,
        return_dict=True,
    )
    plain = MoonEmbedding(
        output.embeddings,
        output.matryoshka_embeddings,
        output.modality_gates,
        reasoning_ids=ids_BT[:, :0],
        reasoned=torch.zeros_like(ids_BT[:, 0], dtype=torch.bool),
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
    )
    if embed:
        cache.crop(-1)
    return _Prompts(ids_BT, mask_BT, cache, output.raw_tokens, positions), plain


def _think(model: Any, writer: Any, prompts: _Prompts, thinking: Thinking, tokenizer: Any) -> MoonEmbedding:
    """Continue the prompts: generate, close, and read `<emb>`."""
    config = model.config
    ids_BT, mask_BT, cache = prompts.ids_BT, prompts.mask_BT, prompts.cache
    settings = generation_config(config, thinking, tokenizer)
    written_BR = writer.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=prompts.positions.all_4BT,
        past_key_values=cache,
        generation_config=settings,
    )[:, ids_BT.shape[1] :]
    ending = _Ending(written_BR, settings, config)
    whole_ids = torch.cat([ids_BT, ending.ids], dim=1)
    whole_mask = torch.cat([mask_BT, ending.mask.to(mask_BT.dtype)], dim=1)
    text_B3 = (whole_mask.cumsum(dim=1) - 1)[:, -3:]
    aspects = model.find_aspect_ids(whole_ids)
    output = model(
        input_ids=whole_ids[:, -3:],
        aspect_ids=None if aspects is None else aspects[:, -3:],
        attention_mask=whole_mask,
        position_ids=torch.cat([text_B3[None], (text_B3 + prompts.positions.offset_B1).expand(3, -1, -1)]),
        past_key_values=cache,
        raw_tokens=prompts.raw,
        output_embeddings=True,
        return_dict=True,
    )
    order = whole_mask.argsort(dim=1, stable=True)  # the masked tokens to the left, the others in their order
    return MoonEmbedding(
        output.embeddings,
        output.matryoshka_embeddings,
        output.modality_gates,
        reasoning_ids=ending.reasoning_ids,
        reasoned=torch.ones_like(ids_BT[:, 0], dtype=torch.bool),
        input_ids=whole_ids.gather(1, order),
        attention_mask=whole_mask.gather(1, order),
    )


def _merge(plain: MoonEmbedding, reasoned: MoonEmbedding, chosen_B: torch.Tensor, pad: int) -> MoonEmbedding:
    """Replace the chosen rows of `plain` with those of `reasoned`; rows of tokens get the width of the reasoned ones."""

    def replace(
        before: torch.Tensor | None, after: torch.Tensor | None, fill: int = 0, pad_left: bool = True
    ) -> torch.Tensor:
        rows, new_rows = cast(torch.Tensor, before), cast(torch.Tensor, after)  # "auto" has both
        missing = new_rows.shape[1] - rows.shape[1]
        wide = functional.pad(rows, [missing, 0] if pad_left else [0, missing], value=fill) if missing else rows.clone()
        wide[chosen_B] = new_rows
        return wide

    merged = MoonEmbedding(replace(plain.embeddings, reasoned.embeddings), reasoned=chosen_B, margins=plain.margins)
    if plain.matryoshka_embeddings is not None and reasoned.matryoshka_embeddings is not None:
        pairs = zip(plain.matryoshka_embeddings, reasoned.matryoshka_embeddings, strict=True)
        merged.matryoshka_embeddings = tuple(replace(before, after) for before, after in pairs)
    if plain.modality_gates is not None:
        merged.modality_gates = replace(plain.modality_gates, reasoned.modality_gates)
    merged.reasoning_ids = replace(plain.reasoning_ids, reasoned.reasoning_ids, pad, pad_left=False)
    merged.input_ids = replace(plain.input_ids, reasoned.input_ids, pad)
    merged.attention_mask = replace(plain.attention_mask, reasoned.attention_mask)
    return merged


class _Ending:
    """The ends of the rows of a generation: the part that the cache holds, and three more tokens up to `<emb>`.

    The cache holds all but the last of the R generated tokens. A row whose `</think>` is in the cache needs `<emb>` only; a
    row whose `</think>` came last needs both; a row that was cut off needs its last token as well. Tokens after a row's
    `</think>` are masked.

    Args:
        written_BR: the generated tokens.
        settings: of the generation, for its padding token.
        config: MoonConfig.

    Shapes: ids and mask (B, R + 2), the tokens after the prompt; reasoning_ids (B, R), padded after the end.
    """

    def __init__(self, written_BR: torch.Tensor, settings: GenerationConfig, config: Any) -> None:
        close, pad = config.think_end_token_id, settings.pad_token_id
        steps = written_BR.shape[1]
        place_R = torch.arange(steps, device=written_BR.device)
        end_B = torch.where(written_BR == close, place_R, steps).amin(dim=1)
        inside_BR = place_R < end_B[:, None]
        kept_BR = place_R <= end_B[:, None]
        self.reasoning_ids = written_BR.masked_fill(~kept_BR, pad)
        last_B3 = torch.stack(
            [written_BR[:, -1], torch.full_like(end_B, close), torch.full_like(end_B, config.emb_token_id)], dim=1
        )
        last_mask_B3 = torch.stack([inside_BR[:, -1], end_B >= steps - 1, torch.ones_like(end_B).bool()], dim=1)
        self.mask = torch.cat([kept_BR[:, :-1], last_mask_B3], dim=1)
        self.ids = torch.cat([written_BR[:, :-1], last_B3], dim=1).masked_fill(~self.mask, pad)


def generation_config(config: Any, thinking: Thinking, tokenizer: Any) -> GenerationConfig:
    """Return neutral generation settings with those of `thinking`; only `</think>` ends the reasoning.

    Args:
        config: MoonConfig.
        thinking: how to generate.
        tokenizer: of the model.

    Relations: `never_written` lists the suppressed tokens. GRPO samples its rollouts with the same settings.
    """
    sampling = {"temperature": thinking.temperature, "top_p": thinking.top_p, "top_k": 0} if thinking.do_sample else {}
    return GenerationConfig(
        max_new_tokens=thinking.max_tokens or config.max_reasoning_tokens,
        min_new_tokens=thinking.min_tokens or None,
        do_sample=thinking.do_sample,
        eos_token_id=[config.think_end_token_id],
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=never_written(config, tokenizer),
        **sampling,
    )


def never_written(config: Any, tokenizer: Any) -> list[int]:
    """Return the sorted ids that reasoning must not contain: control tokens, image placeholders, and unused ids.

    These are the tokens that the configuration names, all tokens added to the tokenizer's vocabulary (padding, ends of
    texts, chat and vision markers, tools; the processor escapes them in every given text), and the rows of the output layer
    without a token; `</think>` is allowed. Our design.

    Args:
        config: MoonConfig.
        tokenizer: of the model; a tokenizer without a vocabulary adds no ids.
    """
    of_base = [f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end")]
    barred: list[Any] = [getattr(config.vlm_config, name, None) for name in of_base]
    barred += [value for name, value in config.to_dict().items() if name.endswith("_token_id")]
    barred += [*getattr(tokenizer, "all_special_ids", ()), *getattr(tokenizer, "added_tokens_decoder", ())]
    rows = config.vocab_size
    spare = list(range(len(tokenizer), rows)) if hasattr(tokenizer, "__len__") else []
    barred += [token for token in spare if tokenizer.convert_ids_to_tokens(token) is None]
    return sorted({token for token in barred if isinstance(token, int) and token < rows} - {config.think_end_token_id})
