"""Records → vectors: read a record and embed it at once, think first and embed in the same pass, or think when unsure.

Shape suffixes: B batch rows, T tokens of a prompt, R tokens of a reasoning, D size of the vector, d of a prefix, A heads,
N vectors of a gallery.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, GenerationConfig

from .positions_moon import Positions, find_positions
from .tokens_moon import RawTokens, find_raw_tokens

REASONING = ("none", "generate", "given", "auto")
THRESHOLD = 0.05
_ROWS_PER_BLOCK = 1024
_BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
_COMMIT = re.compile(r"\.([0-9a-f]{40})\.")


@dataclass
class MoonEmbedding:
    """What `embed` returns; row b belongs to record `kept[b]`.

    Shapes:
        embeddings: (B, D) float32, each row of length 1.
        matryoshka_embeddings: for each of `config.matryoshka_dims` (B, d) float32 of length 1; None without them.
        modality_gates: (B, A, 3) float32, what each fusion head took from (itself, image, title); None without fusion.
        reasoning: what the processor reads in each row's reasoning (`Reasoning`), of a row without one None; None with
            reasoning="none".
        reasoning_ids: (B, R) int64, what was written after `<think>`, `</think>` included where it was, then padding; None
            unless "generate" or "auto".
        reasoned: (B,) bool, whether a reasoning stands before the vector.
        margins: (B,) float32, how sure the vector without reasoning was (`MarginGate`); None unless "auto".
        input_ids, attention_mask: (B, T'), the whole text that the vector was read from, padded on the left.
        kept, skipped, shortened: as in the processor's batch.
    """

    embeddings: torch.Tensor
    matryoshka_embeddings: tuple[torch.Tensor, ...] | None = None
    modality_gates: torch.Tensor | None = None
    reasoning: list[Any] | None = None
    reasoning_ids: torch.Tensor | None = None
    reasoned: torch.Tensor | None = None
    margins: torch.Tensor | None = None
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
        min_tokens (`int`): no end is written before so many tokens; to measure what a length costs. Default 0.

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
                f"thinking: temperature={self.temperature}, top_p={self.top_p}; expected above 0, and above 0 up to 1"
            )
        if self.min_tokens < 0 or (self.max_tokens is not None and self.min_tokens > self.max_tokens):
            raise ValueError(
                f"thinking: min_tokens={self.min_tokens}; expected 0 or more, and no more than max_tokens={self.max_tokens}"
            )


class MarginGate:
    """Which vectors are unsure of what they are nearest to: those whose best two gallery items are about as near.

    `margin_b = s_b1 − s_b2`, the largest and the second largest cosine of vector b with the rows of the gallery;
    `unsure_b = margin_b < threshold`. Our design. Precedent: margin sampling of active learning (Scheffer et al. 2001); that
    vectors with and without reasoning complement each other is a finding of UME-R1 (arXiv 2511.00405). There is no learned
    gate: it would need queries labelled with whether reasoning helped them, anew for every checkpoint and gallery, where the
    margin needs nothing and follows the gallery that is searched. What it does not see: near-twins in a gallery make every
    query for them unsure, and a query that is surely wrong stays as it is; `moon3 gate` draws the curve.

    Args:
        gallery: (N, D) tensor or array, vectors of what is searched, of any length but 0; embedded with reasoning or without.
        threshold (`float`): in [0, 2]; 0: nothing is unsure. Default 0.05.

    Raises:
        ValueError: a gallery that is not of numbers (N, D), has fewer than 2 rows, or a row that is 0 or not finite; a
            threshold that is not in [0, 2].
    """

    def __init__(self, gallery: Any, threshold: float = THRESHOLD) -> None:
        accepted = "expected vectors (N, D) of at least 2 items, as a tensor or an array of numbers"
        try:
            gallery_ND = torch.as_tensor(gallery)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"gallery: found {type(gallery).__name__}; {accepted}") from error
        if gallery_ND.ndim != 2 or gallery_ND.shape[0] < 2 or gallery_ND.is_complex():
            raise ValueError(f"gallery: found shape {tuple(gallery_ND.shape)} of {gallery_ND.dtype}; {accepted}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 2:
            raise ValueError(f"threshold={threshold!r}; expected a number in [0, 2], a difference of two cosines")
        self.gallery_ND, self.threshold = gallery_ND.detach().float(), float(threshold)
        self.norm_N = torch.linalg.vector_norm(self.gallery_ND, dim=1)
        bad = ((self.norm_N == 0) | ~self.norm_N.isfinite()).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(f"gallery: rows {bad[:5]} are 0 or not finite; expected vectors that have a direction")

    @property
    def width(self) -> int:
        """Size of the gallery's vectors."""
        return self.gallery_ND.shape[1]

    def margins(self, vector_BD: torch.Tensor, exclude: Sequence[Sequence[int]] | None = None) -> torch.Tensor:
        """The margin of each vector.

        Args:
            vector_BD: of the gallery's width or wider, of any length; of a wider one (Matryoshka) the first part is compared.
            exclude: for each vector the rows of the gallery that it does not search in; None: none.

        Shapes: returns (B,) float32 in [0, 2]; inf where fewer than two rows are left to search in.

        Raises:
            ValueError: vectors that are narrower than the gallery's.
        """
        if vector_BD.shape[1] < self.width:
            raise ValueError(f"vectors of size {vector_BD.shape[1]} and a gallery of size {self.width}")
        gallery_ND, norm_N = self.gallery_ND.to(vector_BD.device), self.norm_N.to(vector_BD.device)
        found = [torch.zeros(0, device=vector_BD.device)]
        for start in range(0, vector_BD.shape[0], _ROWS_PER_BLOCK):
            block_BD = functional.normalize(vector_BD[start : start + _ROWS_PER_BLOCK, : self.width].float(), dim=-1)
            cosine_BN = block_BD @ gallery_ND.T / norm_N
            for row, left_out in enumerate(exclude[start : start + _ROWS_PER_BLOCK] if exclude is not None else ()):
                cosine_BN[row, list(left_out)] = -torch.inf
            best_B2 = cosine_BN.topk(2, dim=1).values
            margin_B = (best_B2[:, 0] - best_B2[:, 1]).clamp(max=2)
            found.append(torch.where(best_B2[:, 1].isfinite(), margin_B, torch.inf))
        return torch.cat(found)

    def unsure(self, margin_B: torch.Tensor) -> torch.Tensor:
        """(B,) bool: which margins are below the threshold."""
        return margin_B < self.threshold


def embed_records(
    model: Any,
    writer: Callable[[], Any],
    products: Any,
    *,
    reasoning: str = "none",
    processor: Any = None,
    thinking: Thinking | Mapping[str, Any] | None = None,
    gallery: Any = None,
    threshold: float | None = None,
    **options: Any,
) -> MoonEmbedding:
    """Vectors of product and query records.

    Args:
        model: the `MoonModel`; its mode and its device are used as they are.
        writer: makes the model that writes text from it.
        products: records of products and queries, mixed, or one; or a prepared batch of the processor.
        reasoning: "none": `<emb>` follows the input. "generate": the model first writes attributes, and the vector is read
            one step later in the same pass; without gradient. "given": the record's "reasoning" stands before `<emb>`.
            "auto": as "none", and the rows that are then unsure (`MarginGate`) as "generate", from the same pass over their
            prompts. All live in one space (MOON3.0, arXiv 2604.00513; the single pass and the gate are our design).
        processor: default the one in the folder that the model came from.
        thinking: how to write, a `Thinking` or its arguments.
        gallery: with "auto", (N, D) vectors that the records will be searched among; or (N, d), d a Matryoshka size.
        threshold: with "auto", the margin below which a row reasons, in [0, 2]. Default 0.05.
        **options: of the processor (`on_error`, `form`, `task`, `max_tokens`, …).

    Raises:
        ValueError: another kind of reasoning; a model that does not reason; no processor where the model came from; "auto"
            without a gallery or with one of another width; a gallery or a threshold without "auto"; see `MarginGate`.
        ProductError: a record that cannot be used (with on_error="raise").
    """
    if reasoning not in REASONING:
        raise ValueError(f"reasoning={reasoning!r} is not known; expected {', '.join(REASONING)}")
    if reasoning != "none" and model.config.max_reasoning_tokens is None:
        raise ValueError(f"reasoning={reasoning!r}: this model does not reason; expected 'none', or a moon3 checkpoint")
    gate = make_gate(model.config, reasoning, gallery, threshold)
    thinking = thinking if isinstance(thinking, Thinking) else _read_thinking(thinking or {})
    processor = processor if processor is not None else _own_processor(model)
    batch = _prepared(products, processor, reasoning, options)
    if "input_ids" not in batch:
        return _reported(_nothing(model, reasoning), batch)
    tensors = {name: _on(tensor, model) for name, tensor in batch.items()}
    if reasoning in ("generate", "auto"):
        result = think_then_embed(model, writer(), tensors, thinking, processor.tokenizer, gate)
        written_BR, reasoned_B = cast(torch.Tensor, result.reasoning_ids), cast(torch.Tensor, result.reasoned)
        read = iter(processor.read_reasoning(written_BR[reasoned_B]))
        result.reasoning = [next(read) if reasoned else None for reasoned in reasoned_B.tolist()]
    else:
        output = model(**tensors, output_embeddings=True, return_dict=True)
        result = MoonEmbedding(output.embeddings, output.matryoshka_embeddings, output.modality_gates)
        result.input_ids, result.attention_mask = tensors["input_ids"], tensors["attention_mask"]
        result.reasoned = torch.full_like(tensors["input_ids"][:, 0], reasoning == "given", dtype=torch.bool)
        if reasoning == "given":
            result.reasoning = processor.read_reasoning(_after(tensors["input_ids"], model.config.think_start_token_id))
    return _reported(result, batch)


def make_gate(config: Any, reasoning: str, gallery: Any, threshold: float | None) -> MarginGate | None:
    """The gate of reasoning="auto", made for a model's vectors; None for other kinds of reasoning.

    Raises:
        ValueError: see `embed_records`.
    """
    if reasoning != "auto":
        for name, value in (("gallery", gallery), ("threshold", threshold)):
            if value is not None:
                raise ValueError(f"{name}= was given with reasoning={reasoning!r}; expected with reasoning='auto'")
        return None
    if gallery is None:
        raise ValueError("reasoning='auto' without gallery=; expected the vectors (N, D) that will be searched among")
    gate = MarginGate(gallery, THRESHOLD if threshold is None else threshold)
    widths = [config.vector_size, *(config.matryoshka_dims or ())]
    if gate.width not in widths:
        raise ValueError(
            f"gallery: vectors of size {gate.width}; accepted for this model: {', '.join(map(str, dict.fromkeys(widths)))}"
        )
    return gate


def _prepared(products: Any, processor: Any, reasoning: str, options: dict[str, Any]) -> Any:
    """The processor's batch of records, or the batch that was given."""
    if isinstance(products, Mapping) and "input_ids" in products:
        if options:
            raise ValueError(f"{', '.join(options)}: found a prepared batch; accepted with records only")
        return products
    if reasoning != "none":
        options["reasoning"] = "generate" if reasoning == "auto" else reasoning
    return processor(records=products, return_tensors="pt", **options)


def _nothing(model: Any, reasoning: str) -> MoonEmbedding:
    """The result of a batch in which every record was skipped."""
    result = MoonEmbedding(torch.zeros(0, model.config.vector_size, device=model.device))
    result.reasoning = None if reasoning == "none" else []
    result.reasoned = torch.zeros(0, dtype=torch.bool, device=model.device)
    result.margins = torch.zeros(0, device=model.device) if reasoning == "auto" else None
    return result


def _read_thinking(given: Mapping[str, Any]) -> Thinking:
    known = [one.name for one in fields(Thinking)]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"thinking: found {unknown[0]!r}; expected {', '.join(known)}")
    return Thinking(**given)


def _reported(result: MoonEmbedding, batch: Any) -> MoonEmbedding:
    """The result with what became of each record."""
    for name in ("kept", "skipped", "shortened"):
        setattr(result, name, getattr(batch, name, []))
    return result


def think_then_embed(
    model: Any,
    writer: Any,
    batch: Mapping[str, torch.Tensor],
    thinking: Thinking,
    tokenizer: Any,
    gate: MarginGate | None = None,
) -> MoonEmbedding:
    """Write a reasoning for each row, or for each unsure row, and read the vector behind it, in one pass.

    The prompt is encoded once and its keys and values are kept; generation goes on from them, row by row finished at
    `</think>`; then one step of three tokens closes what is open and reads `<emb>`, with the finished rows' padding masked.
    The fusion reads the prompt's states. Equal to encoding the whole text again, at a fraction of the cost. With a gate the
    pass over the prompts ends in `<emb>` and gives the vectors without reasoning; that token is dropped from what is kept,
    and generation goes on with the unsure rows only. Our design.

    Args:
        model: the `MoonModel`; in evaluation mode for the call, because dropout and gradient checkpointing, which keeps no
            cache, belong to training; its modes are restored.
        writer: it with its output layer.
        batch: the processor's tensors with reasoning="generate": prompts that end in `<think>`, padded on the left.
        thinking: how to write.
        tokenizer: whose padding token fills up, and whose end-of-sequence token, too, ends a reasoning.
        gate: which rows reason. Default None: all.

    Raises:
        ValueError: prompts that do not end in `<think>`.
    """
    with _evaluating(model, writer), torch.no_grad():
        if not bool((batch["input_ids"][:, -1] == model.config.think_start_token_id).all()):
            raise ValueError(
                "prompts must end in <think> and be padded on the left: processor(…, reasoning='generate')"
            )
        if gate is None:
            return _think(model, writer, _read_prompts(model, batch)[0], thinking, tokenizer)
        prompts, plain = _read_prompts(model, batch, embed=True)
        plain.margins = gate.margins(plain.embeddings)
        unsure_B = gate.unsure(plain.margins)
        if not bool(unsure_B.any()):
            return plain
        thought = _think(model, writer, prompts.only(unsure_B), thinking, tokenizer)
        return _joined(plain, thought, unsure_B, tokenizer.pad_token_id)


# Models that are in training mode and think now: how many calls do, and which modules go back to training after the last.
_thinking: dict[int, tuple[int, list[torch.nn.Module]]] = {}
_thinking_lock = threading.Lock()


@contextlib.contextmanager
def _evaluating(model: Any, writer: Any) -> Iterator[None]:
    """Evaluation mode while at least one call thinks with the model; then each module's own mode again."""
    key = id(model)
    with _thinking_lock:
        calls, switched = _thinking.get(key, (0, []))
        switched = switched + [module for module in {*model.modules(), writer} if module.training]
        for module in switched:
            module.training = False
        _thinking[key] = calls + 1, switched
    try:
        yield
    finally:
        with _thinking_lock:
            calls, switched = _thinking.pop(key)
            if calls > 1:
                _thinking[key] = calls - 1, switched
            else:
                for module in switched:
                    module.training = True


@dataclass
class _Prompts:
    """Prompts that end in `<think>`, and what a pass over them left: keys and values of all but that token.

    Shapes: ids_BT, mask_BT (B, T) int64; positions of all T tokens.
    """

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    cache: Any
    raw: RawTokens | None
    positions: Positions

    def only(self, chosen_B: torch.Tensor) -> _Prompts:
        """The chosen rows; the others' keys and values are freed."""
        self.cache.batch_select_indices(chosen_B.nonzero()[:, 0])
        raw = None if self.raw is None else RawTokens(*(part[chosen_B] for part in self.raw))
        positions = Positions(self.positions.all_4BT[:, chosen_B], self.positions.offset_B1[chosen_B])
        return _Prompts(self.ids_BT[chosen_B], self.mask_BT[chosen_B], self.cache, raw, positions)


def _read_prompts(
    model: Any, batch: Mapping[str, torch.Tensor], *, embed: bool = False
) -> tuple[_Prompts, MoonEmbedding]:
    """A pass over the prompts without `<think>`; with `embed` one with `<emb>` in its place, and the vectors there."""
    config = model.config
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    positions = find_positions(model.vlm, ids_BT == config.image_token_id, mask_BT, batch.get("image_grid_thw"))
    cache = DynamicCache(config=config.text_config)
    seen_ids, length = ids_BT, ids_BT.shape[1] - 1
    if embed:
        last_B1 = torch.full_like(ids_BT[:, -1:], config.emb_token_id)
        seen_ids, length = torch.cat([ids_BT[:, :-1], last_B1], dim=1), ids_BT.shape[1]
    prompt = {name: batch[name][:, :length] for name in _BY_TOKEN if name in batch} | {
        "input_ids": seen_ids[:, :length]
    }
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
    seen = model(
        **prompt,
        **pictures,
        position_ids=positions.all_4BT[..., :length],
        past_key_values=cache,
        use_cache=True,
        output_embeddings=embed,
        return_dict=True,
    )
    raw = None
    if model.fusion is not None:
        raw = find_raw_tokens(config, prompt["input_ids"], prompt["attention_mask"], seen.last_hidden_state)
    plain = MoonEmbedding(
        seen.embeddings,
        seen.matryoshka_embeddings,
        seen.modality_gates,
        reasoning_ids=ids_BT[:, :0],
        reasoned=torch.zeros_like(ids_BT[:, 0], dtype=torch.bool),
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
    )
    if embed:
        cache.crop(-1)
    return _Prompts(ids_BT, mask_BT, cache, raw, positions), plain


def _think(model: Any, writer: Any, prompts: _Prompts, thinking: Thinking, tokenizer: Any) -> MoonEmbedding:
    """Go on from the prompts: write, close, and read `<emb>`."""
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
    aspects = model._aspect_ids(whole_ids)
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


def _joined(plain: MoonEmbedding, thought: MoonEmbedding, chosen_B: torch.Tensor, pad: int) -> MoonEmbedding:
    """`plain` with the rows of `thought` in the places that were chosen; token rows as wide as those of `thought`."""

    def put(before: torch.Tensor | None, thought: torch.Tensor | None, fill: int = 0, side: int = 0) -> torch.Tensor:
        rows, new_rows = cast(torch.Tensor, before), cast(torch.Tensor, thought)  # "auto" gives both
        missing = new_rows.shape[1] - rows.shape[1]
        wide = (
            functional.pad(rows, [missing, 0] if side == 0 else [0, missing], value=fill) if missing else rows.clone()
        )
        wide[chosen_B] = new_rows
        return wide

    joined = MoonEmbedding(put(plain.embeddings, thought.embeddings), reasoned=chosen_B, margins=plain.margins)
    if plain.matryoshka_embeddings is not None and thought.matryoshka_embeddings is not None:
        pairs = zip(plain.matryoshka_embeddings, thought.matryoshka_embeddings, strict=True)
        joined.matryoshka_embeddings = tuple(put(one, other) for one, other in pairs)
    if plain.modality_gates is not None:
        joined.modality_gates = put(plain.modality_gates, thought.modality_gates)
    joined.reasoning_ids = put(plain.reasoning_ids, thought.reasoning_ids, pad, side=1)
    joined.input_ids = put(plain.input_ids, thought.input_ids, pad)
    joined.attention_mask = put(plain.attention_mask, thought.attention_mask)
    return joined


class _Ending:
    """How the rows of a generation end: what the cache holds of them, and three more tokens up to `<emb>`.

    All but the last of the R tokens that were written are in the cache. A row that wrote `</think>` there needs `<emb>`
    only; one whose `</think>` came last needs both; one that was cut off also its last token. What stands behind a row's
    `</think>` is masked.

    Args:
        written_BR: what was written.
        settings: of the generation, for its padding token.
        config: MoonConfig.

    Shapes: ids and mask (B, R + 2), what follows the prompt; reasoning_ids (B, R), padded behind the end.
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
    """Neutral but for what `thinking` says. Only `</think>` ends a reasoning, and `never_written` names what is barred.

    Relations: the joint stage of a training draws its rollouts by the same two rules.
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
    """Return the ids that no reasoning may hold, sorted: they steer the model, stand for pictures, or mean nothing.

    These are the tokens that the configuration names, all that were added to the tokenizer's vocabulary (padding, ends of
    texts, chat and vision markers, tools: what the processor escapes in every given text), and the rows of the output layer
    that no token belongs to; `</think>` excepted. Our design.

    Args:
        config: MoonConfig.
        tokenizer: of the model; one without vocabulary adds none.
    """
    of_base = [f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end")]
    barred: list[Any] = [getattr(config.vlm_config, name, None) for name in of_base]
    barred += [value for name, value in config.to_dict().items() if name.endswith("_token_id")]
    barred += [*getattr(tokenizer, "all_special_ids", ()), *getattr(tokenizer, "added_tokens_decoder", ())]
    rows = config.vocab_size
    spare = list(range(len(tokenizer), rows)) if hasattr(tokenizer, "__len__") else []
    barred += [token for token in spare if tokenizer.convert_ids_to_tokens(token) is None]
    return sorted({token for token in barred if isinstance(token, int) and token < rows} - {config.think_end_token_id})


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
        raise ValueError(f"this model was not loaded from a checkpoint; expected {otherwise}")
    return model.config._name_or_path


def _revision(model: Any) -> dict[str, Any]:
    """The very commit that the model came from, whose code was trusted when the model was loaded by it."""
    code = _COMMIT.search(type(model).__module__)  # the configuration of transformers 5.18 does not name it
    commit = getattr(model.config, "_commit_hash", None) or (None if code is None else code[1])
    pinned = {} if commit is None else {"revision": commit, "code_revision": commit}
    remote = type(model).__module__.startswith("transformers_modules")
    return pinned | {"trust_remote_code": True} if remote else {k: v for k, v in pinned.items() if k == "revision"}
