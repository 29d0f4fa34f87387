"""Embed products and queries: read the records, reason if asked to, and return one vector for each.

Shape suffixes: B batch rows, T tokens of a prompt, N vectors of a gallery, D size of the vector, d of a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

import torch

from .gate_moon import make_gate
from .origin_moon import own_processor
from .outputs_moon import MoonEmbedding
from .thinking_moon import Thinking, think_then_embed

REASONING = ("none", "generate", "given", "auto")


def embed_records(
    model: Any,
    make_writer: Callable[[], Any],
    products: Any,
    *,
    reasoning: str = "none",
    processor: Any = None,
    thinking: Thinking | Mapping[str, Any] | None = None,
    gallery: Any = None,
    threshold: float | None = None,
    **options: Any,
) -> MoonEmbedding:
    """Embed product and query records.

    Args:
        model: the `MoonModel`; its mode and its device stay as they are.
        make_writer: returns the model with its output layer, for generation.
        products: a list of product and query records, a single record, or a batch from the processor.
        reasoning: "none": `<emb>` follows the input. "generate": the model first writes attributes, and the vector is read
            one step later in the same pass; without gradient. "given": the record's "reasoning" precedes `<emb>`.
            "auto": as "none", then as "generate" for the rows that are unsure (`MarginGate`), from the same pass over
            their prompts. All vectors share one space (MOON3.0, arXiv 2604.00513; the single pass and the gate are our
            design).
        processor: default: the processor in the folder that the model came from.
        thinking: how to generate, a `Thinking` or its arguments.
        gallery: for "auto", the vectors (N, D) that will be searched; or (N, d), where d is a Matryoshka size.
        threshold: for "auto", the margin below which a row reasons, in [0, 2]. Default 0.05.
        **options: of the processor (`on_error`, `form`, `task`, `max_tokens`, …).

    Raises:
        ValueError: an unknown kind of reasoning; a model that does not reason; no processor in the folder that the model
            came from; options for a batch that is already prepared; an unknown argument for `Thinking`; see `make_gate`.
        ProductError: a record that cannot be used (with on_error="raise").
    """
    if reasoning not in REASONING:
        raise ValueError(f"reasoning={reasoning!r} is not known; expected one of {', '.join(REASONING)}")
    if reasoning != "none" and model.config.max_reasoning_tokens is None:
        raise ValueError(f"reasoning={reasoning!r}: this model does not reason; expected 'none', or a moon3 checkpoint")
    gate = make_gate(model.config, reasoning, gallery, threshold)
    thinking = _read_thinking(thinking or {})
    processor = own_processor(model) if processor is None else processor
    if isinstance(products, Mapping) and "input_ids" in products:
        if options:
            raise ValueError(f"{', '.join(options)}: found a prepared batch; expected records with these options")
        batch: Any = products
    else:
        if reasoning != "none":
            options["reasoning"] = "generate" if reasoning == "auto" else reasoning
        batch = processor(records=products, return_tensors="pt", **options)
    tensors = {
        name: tensor.to(model.device, dtype=model.dtype if tensor.is_floating_point() else None)
        for name, tensor in batch.items()
    }
    if "input_ids" not in tensors:
        result = _no_rows(model, reasoning)
    elif reasoning in ("generate", "auto"):
        result = think_then_embed(model, make_writer(), tensors, thinking, processor.tokenizer, gate)
        reasoning_BR, reasoned_B = cast(torch.Tensor, result.reasoning_ids), cast(torch.Tensor, result.reasoned)
        readings = iter(processor.read_reasoning(reasoning_BR[reasoned_B]))
        result.reasoning = [next(readings) if reasoned else None for reasoned in reasoned_B.tolist()]
    else:
        result = _embed_as_given(model, tensors, processor, reasoning)
    for name in ("kept", "skipped", "shortened"):
        setattr(result, name, getattr(batch, name, []))
    return result


def _read_thinking(thinking: Thinking | Mapping[str, Any]) -> Thinking:
    if isinstance(thinking, Thinking):
        return thinking
    known = [field.name for field in fields(Thinking)]
    if unknown := [name for name in thinking if name not in known]:
        raise ValueError(f"thinking: unknown key {unknown[0]!r}; expected one of {', '.join(known)}")
    return Thinking(**thinking)


def _no_rows(model: Any, reasoning: str) -> MoonEmbedding:
    """Return the result of a batch in which every record was skipped."""
    result = MoonEmbedding(torch.zeros(0, model.config.vector_size, device=model.device))
    result.reasoning = None if reasoning == "none" else []
    result.reasoned = torch.zeros(0, dtype=torch.bool, device=model.device)
    result.margins = torch.zeros(0, device=model.device) if reasoning == "auto" else None
    return result


def _embed_as_given(model: Any, tensors: dict[str, torch.Tensor], processor: Any, reasoning: str) -> MoonEmbedding:
    """Embed prompts that are complete: those without reasoning, and those with a given one."""
    output = model(**tensors, output_embeddings=True, return_dict=True)
    ids_BT = tensors["input_ids"]
    result = MoonEmbedding(
        output.embeddings,
        output.matryoshka_embeddings,
        output.modality_gates,
        reasoned=torch.full_like(ids_BT[:, 0], reasoning == "given", dtype=torch.bool),
        input_ids=ids_BT,
        attention_mask=tensors["attention_mask"],
    )
    if reasoning == "given":
        start = model.config.think_start_token_id
        after_start = [row[len(row) - row[::-1].index(start) :] for row in ids_BT.tolist()]
        result.reasoning = processor.read_reasoning(after_start)
    return result
