"""Records → vectors: read a record and embed it at once, or think first and embed in the same pass.

Shape suffixes: B batch rows, T tokens of a prompt, R tokens of a reasoning, D size of the vector, d of a prefix, A heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, GenerationConfig

from .tokens_moon import find_raw_tokens

REASONING = ("none", "generate", "given")
_BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass
class MoonEmbedding:
    """What `embed` returns; row b belongs to record `kept[b]`.

    Shapes:
        embeddings: (B, D) float32, each row of length 1.
        matryoshka_embeddings: for each of `config.matryoshka_dims` (B, d) float32 of length 1; None without them.
        modality_gates: (B, A, 3) float32, what each fusion head took from (itself, image, title); None without fusion.
        reasoning: what the processor reads in each row's reasoning (`Reasoning`); None with reasoning="none".
        reasoning_ids: (B, R) int64, what was written after `<think>`, `</think>` included where it was, then padding; None
            unless "generate".
        input_ids, attention_mask: (B, T'), the whole text that the vector was read from, padded on the left.
        kept, skipped, shortened: as in the processor's batch.
    """

    embeddings: torch.Tensor
    matryoshka_embeddings: tuple[torch.Tensor, ...] | None = None
    modality_gates: torch.Tensor | None = None
    reasoning: list[Any] | None = None
    reasoning_ids: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    kept: list[int] = field(default_factory=list)
    skipped: list[Any] = field(default_factory=list)
    shortened: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Thinking:
    """How a reasoning is written.

    Args:
        max_tokens (`int` or `None`): at most so many tokens; None: the configuration's `max_reasoning_tokens`.
        do_sample (`bool`): draw tokens instead of taking the likeliest. Default False.
        temperature (`float`): of the draw, above 0. Default 1.
        top_p (`float`): draw from the likeliest tokens that together have this probability, in (0, 1]. Default 1.

    Raises:
        ValueError: a value out of range.
    """

    max_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"thinking: max_tokens={self.max_tokens}; accepted: 1 or more, or None")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"thinking: temperature={self.temperature}, top_p={self.top_p}; accepted: above 0, and above 0 up to 1"
            )


def embed_records(
    model: Any,
    writer: Callable[[], Any],
    products: Any,
    *,
    reasoning: str = "none",
    processor: Any = None,
    thinking: Thinking | Mapping[str, Any] | None = None,
    **options: Any,
) -> MoonEmbedding:
    """Vectors of product and query records.

    Args:
        model: the `MoonModel`; its mode and its device are used as they are.
        writer: makes the model that writes text from it.
        products: records of products and queries, mixed, or one; or a prepared batch of the processor.
        reasoning: "none": `<emb>` follows the input. "generate": the model first writes attributes, and the vector is read
            one step later in the same pass; without gradient. "given": the record's "reasoning" stands before `<emb>`.
            All three live in one space (MOON3.0, arXiv 2604.00513; the single pass is our design).
        processor: default the one in the folder that the model came from.
        thinking: how to write, a `Thinking` or its arguments.
        **options: of the processor (`on_error`, `form`, `task`, `max_tokens`, …).

    Raises:
        ValueError: another kind of reasoning; a model that does not reason; no processor where the model came from.
        ProductError: a record that cannot be used (with on_error="raise").
    """
    if reasoning not in REASONING:
        raise ValueError(f"reasoning={reasoning!r} is not known; accepted: {', '.join(REASONING)}")
    if reasoning != "none" and model.config.max_reasoning_tokens is None:
        raise ValueError(
            f"reasoning={reasoning!r}: this model does not reason; accepted: 'none', or a moon3 checkpoint"
        )
    thinking = thinking if isinstance(thinking, Thinking) else _read_thinking(thinking or {})
    processor = processor if processor is not None else _own_processor(model)
    if isinstance(products, Mapping) and "input_ids" in products:
        batch = products
        if options:
            raise ValueError(f"{', '.join(options)}: found a prepared batch; accepted with records only")
    else:
        if reasoning != "none":
            options["reasoning"] = reasoning
        batch = processor(records=products, return_tensors="pt", **options)
    if "input_ids" not in batch:
        result = MoonEmbedding(torch.zeros(0, model.config.vector_size, device=model.device))
        result.reasoning = None if reasoning == "none" else []
        return _reported(result, batch)
    tensors = {name: _on(tensor, model) for name, tensor in batch.items()}
    if reasoning == "generate":
        result = think_then_embed(model, writer(), tensors, thinking, processor.tokenizer)
        result.reasoning = processor.read_reasoning(result.reasoning_ids)
    else:
        output = model(**tensors)
        result = MoonEmbedding(output.embeddings, output.matryoshka_embeddings, output.modality_gates)
        result.input_ids, result.attention_mask = tensors["input_ids"], tensors["attention_mask"]
        if reasoning == "given":
            result.reasoning = processor.read_reasoning(_after(tensors["input_ids"], model.config.think_start_token_id))
    return _reported(result, batch)


def _read_thinking(given: Mapping[str, Any]) -> Thinking:
    known = [one.name for one in fields(Thinking)]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"thinking: found {unknown[0]!r}; accepted: {', '.join(known)}")
    return Thinking(**given)


def _reported(result: MoonEmbedding, batch: Any) -> MoonEmbedding:
    """The result with what became of each record."""
    for name in ("kept", "skipped", "shortened"):
        setattr(result, name, getattr(batch, name, []))
    return result


def think_then_embed(
    model: Any, writer: Any, batch: Mapping[str, torch.Tensor], thinking: Thinking, tokenizer: Any
) -> MoonEmbedding:
    """Write a reasoning for each row and read the vector behind it, in one pass.

    The prompt is encoded once and its keys and values are kept; generation goes on from them, row by row finished at
    `</think>`; then one step of three tokens closes what is open and reads `<emb>`, with the finished rows' padding masked.
    The fusion reads the prompt's states. Equal to encoding the whole text again, at a fraction of the cost. Our design.

    Args:
        model: the `MoonModel`; in evaluation mode for the call, because dropout and gradient checkpointing, which keeps no
            cache, belong to training; its modes are restored.
        writer: it with its output layer.
        batch: the processor's tensors with reasoning="generate": prompts that end in `<think>`, padded on the left.
        thinking: how to write.
        tokenizer: whose padding token fills up, and whose end-of-sequence token, too, ends a reasoning.

    Raises:
        ValueError: prompts that do not end in `<think>`.
    """
    modes = [(module, module.training) for module in {*model.modules(), writer}]
    writer.eval()
    try:
        with torch.no_grad():
            return _think_then_embed(model, writer, batch, thinking, tokenizer)
    finally:
        for module, training in modes:
            module.training = training


def _think_then_embed(
    model: Any, writer: Any, batch: Mapping[str, torch.Tensor], thinking: Thinking, tokenizer: Any
) -> MoonEmbedding:
    config = model.config
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    if not bool((ids_BT[:, -1] == config.think_start_token_id).all()):
        raise ValueError("prompts must end in <think> and be padded on the left: processor(…, reasoning='generate')")
    positions = writer._prepare_position_ids_for_generation(ids_BT, {**batch, "past_key_values": None})
    cache = DynamicCache(config=config.text_config)
    prompt = {name: batch[name][:, :-1] for name in _BY_TOKEN if name in batch}
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
    seen = model(
        **prompt,
        **pictures,
        position_ids=positions[..., :-1],
        past_key_values=cache,
        use_cache=True,
        output_embeddings=False,
    )
    raw = None
    if model.fusion is not None:
        raw = find_raw_tokens(config, prompt["input_ids"], prompt["attention_mask"], seen.last_hidden_state)
    settings = generation_config(config, thinking, tokenizer)
    written_BR = writer.generate(
        input_ids=ids_BT, attention_mask=mask_BT, past_key_values=cache, generation_config=settings
    )[:, ids_BT.shape[1] :]
    ending = _Ending(written_BR, settings, config)
    whole_ids = torch.cat([ids_BT, ending.ids], dim=1)
    whole_mask = torch.cat([mask_BT, ending.mask.to(mask_BT.dtype)], dim=1)
    text_B3 = (whole_mask.cumsum(dim=1) - 1)[:, -3:]
    aspects = model._aspect_ids(whole_ids)
    output = model(
        input_ids=whole_ids[:, -3:],
        aspect_ids=None if aspects is None else aspects[:, -3:],
        attention_mask=whole_mask,
        position_ids=torch.cat([text_B3[None], (text_B3 + model.vlm.rope_deltas).expand(3, -1, -1)]),
        past_key_values=cache,
        raw_tokens=raw,
    )
    order = whole_mask.argsort(dim=1, stable=True)  # the masked tokens to the left, the others in their order
    return MoonEmbedding(
        output.embeddings,
        output.matryoshka_embeddings,
        output.modality_gates,
        reasoning_ids=ending.reasoning_ids,
        input_ids=whole_ids.gather(1, order),
        attention_mask=whole_mask.gather(1, order),
    )


class _Ending:
    """How the rows of a generation end: what the cache holds of them, and three more tokens up to `<emb>`.

    All but the last of the R tokens that were written are in the cache. A row that wrote `</think>` there needs `<emb>`
    only; one whose `</think>` came last, or which stopped in another way, needs both; one that was cut off also its last
    token. What stands behind a row's end is masked.

    Args:
        written_BR: what was written.
        settings: of the generation, whose first end token is `</think>`.
        config: MoonConfig.

    Shapes: ids and mask (B, R + 2), what follows the prompt; reasoning_ids (B, R), padded behind the end.
    """

    def __init__(self, written_BR: torch.Tensor, settings: GenerationConfig, config: Any) -> None:
        close, pad = config.think_end_token_id, settings.pad_token_id
        steps = written_BR.shape[1]
        place_R = torch.arange(steps, device=written_BR.device)
        stops_BR = torch.isin(written_BR, torch.tensor(settings.eos_token_id, device=written_BR.device))
        end_B = torch.where(stops_BR, place_R, steps).amin(dim=1)
        inside_BR = place_R < end_B[:, None]
        closed_BR = (place_R == end_B[:, None]) & (written_BR == close)
        self.reasoning_ids = written_BR.masked_fill(~(inside_BR | closed_BR), pad)
        in_cache_BR = (inside_BR | closed_BR)[:, :-1]
        last_B3 = torch.stack(
            [written_BR[:, -1], torch.full_like(end_B, close), torch.full_like(end_B, config.emb_token_id)], dim=1
        )
        last_mask_B3 = torch.stack(
            [inside_BR[:, -1], ~closed_BR[:, :-1].any(dim=1), torch.ones_like(end_B).bool()], dim=1
        )
        self.mask = torch.cat([in_cache_BR, last_mask_B3], dim=1)
        self.ids = torch.cat([written_BR[:, :-1], last_B3], dim=1).masked_fill(~self.mask, pad)


def generation_config(config: Any, thinking: Thinking, tokenizer: Any) -> GenerationConfig:
    """Neutral but for what `thinking` says; tokens that steer the model or stand for pictures are never written."""
    ends = [config.think_end_token_id] + [token for token in [tokenizer.eos_token_id] if token is not None]
    of_base = [f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end")]
    barred: list[Any] = [getattr(config.vlm_config, name, None) for name in of_base]
    barred += [value for name, value in config.to_dict().items() if name.endswith("_token_id")]
    barred += list(getattr(tokenizer, "all_special_ids", ()))
    sampling = {"temperature": thinking.temperature, "top_p": thinking.top_p, "top_k": 0} if thinking.do_sample else {}
    return GenerationConfig(
        max_new_tokens=thinking.max_tokens or config.max_reasoning_tokens,
        do_sample=thinking.do_sample,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=sorted({token for token in barred if isinstance(token, int)} - set(ends)),
        **sampling,
    )


def _after(ids_BT: torch.Tensor, token: int) -> list[list[int]]:
    """Of each row what stands behind the last such token."""
    return [row[len(row) - row[::-1].index(token) :] for row in ids_BT.tolist()]


def _on(tensor: torch.Tensor, model: Any) -> torch.Tensor:
    return tensor.to(model.device, dtype=model.dtype if tensor.is_floating_point() else None)


def _own_processor(model: Any) -> Any:
    """The processor of the checkpoint that the model came from, loaded once."""
    if getattr(model, "_processor", None) is None:
        model._processor = AutoProcessor.from_pretrained(_origin(model, "processor="), **_revision(model))
    return model._processor


def load_output_layer(model: Any) -> torch.Tensor:
    """The untied output layer (vocabulary, H) of the checkpoint that an encoder came from; loads it whole for a moment.

    Raises:
        ValueError: the encoder came from no checkpoint.
    """
    origin = _origin(model, "AutoModelForImageTextToText, whose model has the output layer")
    whole = AutoModelForImageTextToText.from_pretrained(origin, dtype=model.dtype, **_revision(model))
    return whole.lm_head.weight.data


def _origin(model: Any, otherwise: str) -> str:
    if not model.config._name_or_path:
        raise ValueError(f"this model was not loaded from a checkpoint; accepted: {otherwise}")
    return model.config._name_or_path


def _revision(model: Any) -> dict[str, Any]:
    """The very commit that the model came from, whose code was trusted when the model was loaded by it."""
    commit = getattr(model.config, "_commit_hash", None)
    pinned = {} if commit is None else {"revision": commit, "code_revision": commit}
    remote = type(model).__module__.startswith("transformers_modules")
    return pinned | {"trust_remote_code": True} if remote else {k: v for k, v in pinned.items() if k == "revision"}
