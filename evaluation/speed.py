"""Compare the speed of our code with that of an alternative with the same result, interleaved in one process.

    moon3 bench encode --output speed.json [--only NAME] [--model DIR]

The file holds {name: {"ours_seconds", "other_seconds", "ratio", …}}: medians over the repeats, and the median of the
ratios ours / other within a repeat: below 1, ours is faster. Machines are noisy: trust the ratio, not the
seconds. The cost of reasoning ("reasoning_8", "reasoning_16", "reasoning_32", "reasoning_auto", each against vectors
without reasoning) also has items per second of both; its five ways alternate in the same rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from tabulate import tabulate
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel

import evaluation.baselines  # noqa: F401 - registers their models
from evaluation.provenance import provenance
from modeling_moon import MoonConfig, MoonModel
from modeling_moon.gate_moon import MarginGate
from modeling_moon.modeling_moon import MoonGuidedMoE, MoonModalityMoE
from modeling_moon.routing_moon import find_guided
from modeling_moon.thinking_moon import Thinking, generation_config, think_then_embed
from product_data.catalogue.making import make_catalogue
from product_data.errors import OptionError
from retrieval.encode import encode, load_for_evaluation

_WIDTH = 256
_TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
}
# As in Qwen3-VL-2B, a picture costs the vision tower about as much as its tokens cost the text model.
_VISION = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_heads": 4,
    "out_hidden_size": _WIDTH,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [1],
}
_BATCH, _TOKENS, _PRODUCTS = 8, 128, 64
_IMAGE_TOKENS, _REASONING = 256, 32
_LENGTHS, _GALLERY = (8, 16, 32), 1000


@dataclass(frozen=True)
class Comparison:
    """Two ways to compute the same result.

    Args:
        ours, other: functions without arguments that compute it once.
        about: description of both, for the file.
    """

    ours: Callable[[], Any]
    other: Callable[[], Any]
    about: str


@dataclass(frozen=True)
class Series:
    """Several ways to compute something, all compared with one other way in the same rounds.

    Args:
        ways: name → a function without arguments that computes it once.
        other: the way that each of them is compared with.
        about: name → description of the comparison, for the file.
        items: number of vectors that each way returns.
    """

    ways: Mapping[str, Callable[[], Any]]
    other: Callable[[], Any]
    about: Mapping[str, str]
    items: int


def _base_config(**text: Any) -> Any:
    return AutoConfig.for_model("qwen3_vl", text_config=_TEXT | text, vision_config=_VISION)


def _marked_tokens(config: MoonConfig) -> torch.Tensor:
    """Return random text with a quarter of category tokens and a quarter of attribute tokens, as in a product."""
    ids_BT = torch.randint(16, 512, (_BATCH, _TOKENS), generator=torch.Generator().manual_seed(0))
    for place, marker in ((_TOKENS // 2, 1), (_TOKENS * 3 // 4, 2), (_TOKENS * 3 // 4 + 1, 3), (_TOKENS - 1, 4)):
        ids_BT[:, place] = marker
    return ids_BT


def _moon_config(**text: Any) -> MoonConfig:
    markers = ("category_start", "category_end", "attribute_start", "attribute_end")
    ids = {f"{name}_token_id": number for number, name in enumerate(markers, start=1)}
    return MoonConfig.moon1(_base_config(**text), embedding_dim=None, **ids)


def _mixture_step(mixture_class: type, config: MoonConfig, implementation: str, *inputs: Any) -> Callable[[], None]:
    """Return a function that runs a forward and backward pass of one mixture with an implementation of its experts."""
    config.text_config._experts_implementation = implementation
    torch.manual_seed(0)
    mixture = mixture_class(config)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return lambda: mixture(*inputs).sum().backward()


_WIDE: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 1}


def grouped_experts(_: Any) -> Comparison:
    """Compare grouped products with the loop over experts: forward and backward of a mixture, 2 of 4 experts active."""
    hidden = torch.randn(_BATCH, _TOKENS // 2, _WIDE["hidden_size"], requires_grad=True)
    ours, other = (
        _mixture_step(MoonModalityMoE, MoonConfig.moon2(_base_config(**_WIDE), embedding_dim=None), name, hidden)
        for name in ("grouped_mm", "eager")
    )
    return Comparison(ours, other, "one moon2 mixture, forward + backward: grouped_mm / loop over experts")


def guided_experts(_: Any) -> Comparison:
    """Compare a guided mixture, half of its tokens guided, with the loop over experts: forward and backward."""
    hidden = torch.randn(_BATCH, _TOKENS // 2, _WIDE["hidden_size"], requires_grad=True)
    aspects = (torch.arange(_TOKENS // 2) * 8 // _TOKENS - 1).clamp(min=0).expand(_BATCH, -1)
    guided = find_guided(aspects)
    ours, other = (
        _mixture_step(MoonGuidedMoE, _moon_config(**_WIDE), name, hidden, guided) for name in ("grouped_mm", "eager")
    )
    return Comparison(ours, other, "one moon1 mixture, forward + backward: dense products / loop over free experts")


def upcycled_forward(_: Any) -> Comparison:
    """Compare the forward pass of an upcycled text model (2 active experts) with a dense model of the same active width."""
    torch.manual_seed(0)
    config = _moon_config()
    moon = MoonModel(config).eval()
    dense = AutoModel.from_config(_base_config(intermediate_size=4 * _WIDTH)).eval()
    ids = torch.randint(16, 512, (_BATCH, _TOKENS))
    mask = torch.ones_like(ids)

    def run(model: Any, **options: Any) -> Callable[[], Any]:
        return torch.inference_mode()(lambda: model(input_ids=ids, attention_mask=mask, use_cache=False, **options))

    return Comparison(
        run(moon), run(dense), "text forward: Moon, 2 of 4 experts active / dense layers of twice the width"
    )


def guided_forward(_: Any) -> Comparison:
    """Compare Moon's forward pass on text that is half category and attributes with that on the same text without markers."""
    torch.manual_seed(0)
    moon = MoonModel(_moon_config()).eval()
    marked = _marked_tokens(moon.config)
    plain = marked.clamp(min=16)

    def run(ids: torch.Tensor) -> Callable[[], Any]:
        return torch.inference_mode()(lambda: moon(input_ids=ids, attention_mask=torch.ones_like(ids)))

    return Comparison(run(marked), run(plain), "text forward: half of the tokens guided / none guided")


def _reasoning_batch() -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a moon3 model and a batch of prompts: picture and core crop of 256 image tokens each, and 96 tokens of text."""
    torch.manual_seed(0)
    spans = [f"{span}_{side}" for span in ("category", "attribute", "title", "think") for side in ("start", "end")]
    ids = {f"{name}_token_id": number for number, name in enumerate([*spans, "emb"], start=1)}
    base = AutoConfig.for_model(
        "qwen3_vl",
        text_config=_TEXT,
        vision_config=_VISION,
        image_token_id=12,
        video_token_id=13,
        tie_word_embeddings=True,
    )
    base.vision_start_token_id, base.vision_end_token_id = 14, 15
    model = MoonModel(MoonConfig.moon3(base, embedding_dim=None, max_reasoning_tokens=_REASONING, **ids)).eval()
    side = 2 * int(_IMAGE_TOKENS**0.5)  # patches; two by two form a token
    text = torch.randint(16, 512, (_BATCH, 96))
    text[:, 0], text[:, 40], text[:, -1] = (
        ids["title_start_token_id"],
        ids["title_end_token_id"],
        ids["think_start_token_id"],
    )
    picture = torch.full((_BATCH, _IMAGE_TOKENS + 2), 12)
    picture[:, 0], picture[:, -1] = 14, 15
    tokens = torch.cat([picture, picture, text], dim=1)
    vision = model.config.vision_config
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return model, {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == 12).long(),
        "pixel_values": torch.randn(2 * _BATCH * side * side, patch),
        "image_grid_thw": torch.tensor([[1, side, side]] * (2 * _BATCH)),
    }


def think_then_embed_in_one_pass(_: Any) -> Comparison:
    """Compare writing 32 tokens of reasoning and the vector in one pass with generating, then encoding the text."""
    model, batch = _reasoning_batch()
    tokenizer = SimpleNamespace(eos_token_id=None, pad_token_id=0)
    thinking, writer = Thinking(), model.writer()
    settings = generation_config(model.config, thinking, tokenizer)
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    end = torch.tensor([[model.config.think_end_token_id, model.config.emb_token_id]]).expand(_BATCH, -1)

    @torch.no_grad()
    def two_passes() -> Any:
        written = writer.generate(**batch, generation_config=settings)
        whole = torch.cat([written, end], dim=1)
        return model(input_ids=whole, attention_mask=torch.ones_like(whole), **pictures).embeddings

    def one_pass() -> Any:
        return think_then_embed(model, writer, batch, thinking, tokenizer).embeddings

    torch.testing.assert_close(one_pass(), two_passes(), rtol=1e-4, atol=1e-4)
    return Comparison(
        one_pass,
        two_passes,
        f"{_BATCH} products, {_REASONING} reasoning tokens: think and embed in one pass / generate, then encode again",
    )


def reasoning_cost(_: Any) -> Series:
    """Compare vectors after 8, 16 and 32 reasoning tokens, and after 32 for only the unsure half, with vectors without any.

    `min_tokens` prevents an early end: even a model with random weights writes all tokens.
    """
    model, batch = _reasoning_batch()
    tokenizer, writer = SimpleNamespace(eos_token_id=None, pad_token_id=0), model.writer()
    plain = batch | {"input_ids": batch["input_ids"].clone()}
    plain["input_ids"][:, -1] = model.config.emb_token_id
    gallery = torch.randn(_GALLERY, model.config.vector_size, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def without() -> Any:
        return model(**plain).embeddings

    def think(tokens: int, gate: MarginGate | None = None) -> Callable[[], Any]:
        thinking = Thinking(max_tokens=tokens, min_tokens=tokens)
        return lambda: think_then_embed(model, writer, batch, thinking, tokenizer, gate)

    margins = MarginGate(gallery).margins(without()).sort().values
    half = MarginGate(gallery, float(margins[_BATCH // 2 - 1 : _BATCH // 2 + 1].mean()))
    ways = {str(tokens): think(tokens) for tokens in _LENGTHS} | {"auto": think(_REASONING, half)}
    about = {str(n): f"{_BATCH} products to vectors: {n} tokens of reasoning first / no reasoning" for n in _LENGTHS}
    about["auto"] = (
        f"{_BATCH} products to vectors: {_REASONING} tokens for the unsure half of them (auto) / no reasoning"
    )
    for name, way in ways.items():
        output = way()
        rows, tokens = (_BATCH // 2, _REASONING) if name == "auto" else (_BATCH, int(name))
        if (int(output.reasoned.sum()), output.reasoning_ids.shape[1]) != (rows, tokens):
            raise RuntimeError(
                f"reasoning_{name}: found {tuple(output.reasoning_ids.shape)} tokens; expected {rows} × {tokens}"
            )
    return Series(ways, without, about, _BATCH)


def encode_products(model: Path | None) -> Comparison:
    """Compare `retrieval.encode` with `SentenceTransformer.encode`: the same checkpoint, products and batch size.

    Raises:
        NeedsModelError: no checkpoint is given.
    """
    if model is None:
        raise NeedsModelError("encode_products needs --model DIR, a Moon checkpoint")
    products, _ = make_catalogue(products=_PRODUCTS, queries_per_product=0, progress=False)
    records = [{"title": row["title"], "images": row["images"], "category": row["category_path"]} for row in products]
    ours, processor = load_for_evaluation(model)
    other = SentenceTransformer(str(model))
    return Comparison(
        lambda: encode(ours, processor, records, batch_size=32, progress=False),
        lambda: other.encode(records, batch_size=32, show_progress_bar=False),
        f"{_PRODUCTS} catalogue products to vectors: retrieval.encode / SentenceTransformer.encode",
    )


class NeedsModelError(ValueError):
    """Raised for a comparison that needs a checkpoint if none is given."""

    exit_status = 2


COMPARISONS: dict[str, Callable[[Path | None], Comparison | Series]] = {
    "grouped_experts": grouped_experts,
    "guided_experts": guided_experts,
    "upcycled_forward": upcycled_forward,
    "guided_forward": guided_forward,
    "think_then_embed": think_then_embed_in_one_pass,
    "reasoning": reasoning_cost,
    "encode_products": encode_products,
}


def compare(comparison: Comparison, *, repeats: int = 15, warm_up: int = 2) -> dict[str, Any]:
    """Time both sides alternately.

    Args:
        comparison: the two ways to time.
        repeats: timed repeats of each side; the sides take turns going first. Default 15.
        warm_up: untimed repeats before the timed ones. Default 2.

    Returns:
        ours_seconds and other_seconds (medians), ratio (median of ours / other within a repeat), ratio_range, about.

    Raises:
        ValueError: fewer than 1 repeat.
    """
    seconds = _seconds({"ours": comparison.ours, "other": comparison.other}, repeats, warm_up)
    return _result(seconds["ours"], seconds["other"]) | {"about": comparison.about}


def compare_series(series: Series, *, repeats: int = 15, warm_up: int = 2) -> dict[str, dict[str, Any]]:
    """Time all ways of a series alternately.

    Args:
        series: the ways to time.
        repeats, warm_up: as for `compare`.

    Returns:
        Name → the result of `compare` with ours_items_per_second and other_items_per_second (from the medians).

    Raises:
        ValueError: fewer than 1 repeat.
    """
    seconds = _seconds({"": series.other, **series.ways}, repeats, warm_up)
    other = seconds.pop("")
    results = {name: _result(own, other) | {"about": series.about[name]} for name, own in seconds.items()}
    for result in results.values():
        for side in ("ours", "other"):
            result[f"{side}_items_per_second"] = series.items / result[f"{side}_seconds"]
    return results


def _seconds(ways: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round; the ways take turns going first."""
    if repeats < 1:
        raise OptionError(f"repeats={repeats}; expected 1 or more")
    for _ in range(warm_up):
        for way in ways.values():
            way()
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            ways[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _result(ours: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    ratios = [own / against for own, against in zip(ours, other, strict=True)]
    return {
        "ours_seconds": statistics.median(ours),
        "other_seconds": statistics.median(other),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "repeats": len(ratios),
    }


def speed_table(results: dict[str, Any]) -> str:
    """Return results as a Markdown table: comparison, ratio ours / other and, if known, items per second of both."""
    rows = [[result["about"], f"{result['ratio']:.2f}", _items(result)] for result in results.values()]
    heads = ["ours / other", "ratio", "items/s, ours / other"]
    if not any(row[2] for row in rows):
        rows, heads = [row[:2] for row in rows], heads[:2]
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def _items(result: Mapping[str, Any]) -> str:
    rates = [result.get(f"{side}_items_per_second") for side in ("ours", "other")]
    return " / ".join(f"{rate:.1f}" for rate in rates if rate is not None)


def measure_speed(
    output: Path, only: Sequence[str] | None = None, model: Path | None = None, repeats: int = 15
) -> dict[str, Any]:
    """Run comparisons and write the results file after each.

    Args:
        output: the JSON file.
        only: names of `COMPARISONS`. Default: all that can run.
        model: a Moon checkpoint, for the comparisons that need one.
        repeats (`int`): number of rounds. Default 15.

    Returns:
        Name → result, as in the file.

    Raises:
        NeedsModelError: one of `only` needs a model. Without `only`, such a comparison is left out.
        OptionError: fewer than 1 repeat.
    """
    results: dict[str, Any] = {}
    for name in tqdm(only or list(COMPARISONS), desc="comparisons"):
        try:
            comparison = COMPARISONS[name](model)
        except NeedsModelError as error:
            if only:
                raise
            print(f"left out: {error}", file=sys.stderr)
            continue
        if isinstance(comparison, Series):
            series = compare_series(comparison, repeats=repeats)
            measured = {f"{name}_{way}": result for way, result in series.items()}
        else:
            measured = {name: compare(comparison, repeats=repeats)}
        results |= {key: result | {"provenance": provenance(0)} for key, result in measured.items()}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results
