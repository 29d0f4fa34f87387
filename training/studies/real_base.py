"""Compare a base from a language model, and the Moon checkpoints upcycled from it, with the language model itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoTokenizer

from evaluation.provenance import provenance
from modeling_moon import MoonForConditionalGeneration
from modeling_moon.configuration_moon import PRESETS
from product_data.atomic_files import write_atomically
from training.model.corpus_tokens import Corpus, read_corpus, texts_of
from training.model.donor import open_donor
from training.model.upcycle import upcycle

PROMPTS = (
    "Write a short title for a red leather ankle boot with a block heel.",
    "List three attributes of a blue cotton shirt as key: value pairs.",
    "Which category does a cast iron frying pan belong to?",
    "Describe a waterproof hiking jacket in one sentence.",
    "What is the material of a cashmere scarf?",
    "Translate into French: a green glass bottle.",
    "A shopper searches for running shoes. Name two brands.",
    "Write a slogan for an organic dark chocolate bar.",
    "Is a silk tie a gift for a man or for a dog?",
    "用一句话介绍一个红色的皮包。",
)
TOLERANCE = 1e-5
"""Largest difference of a base's last hidden states, and of a Moon's relative to their largest value."""
_NEW_TOKENS = 32


def compare(
    text: str | Path,
    base: str | Path,
    *,
    layers: int | None = None,
    corpus: Corpus | None = None,
    presets: Sequence[str] = tuple(PRESETS),
) -> dict[str, Any]:
    """Compare a base with its language model on ten prompts, in float32.

    Args:
        text: the language model, see `training.model.donor.open_donor`.
        base: the folder that `training.model.text_base.make_text_base` wrote.
        layers: the number of layers that the base kept; the language model is cut in the same way. None: all.
        corpus: the corpus of a pruned vocabulary, of which ten texts are then the prompts. The written texts are not
            compared in this case, because the language model also writes tokens that are not kept.
        presets: the Moon checkpoints that are upcycled from the base and compared as well.

    Returns:
        A dictionary whose `equal` says whether all tokens and written texts are the same, and all differences at most
        `TOLERANCE`.
    """
    donor = open_donor(text, layers=layers)
    model = donor.load("float32")
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = list(PROMPTS) if corpus is None else _texts_throughout(corpus)
    chat = corpus is None and donor.tokenizer.chat_template is not None
    expected_ids = [_ids(donor.tokenizer, prompt, chat) for prompt in prompts]
    ids = [_ids(tokenizer, prompt, chat) for prompt in prompts]
    expected = [_states(model, row) for row in expected_ids]
    written = _written(model, donor.tokenizer, expected_ids) if corpus is None else None
    del model
    names = {"base": str(base), **dict.fromkeys(presets)}
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in tqdm(names, desc="Comparing", unit="model", delay=3.0):
            folder = names[name] or upcycle(base, Path(scratch) / "moon", preset=name, overwrite=True)
            kind = AutoModelForImageTextToText if name == "base" else MoonForConditionalGeneration
            model = kind.from_pretrained(folder, dtype=torch.float32).eval()
            results[name] = _differences(expected, [_states(model, row) for row in ids])
            if written is not None:
                texts = _written(model, tokenizer, ids)
                results[name]["same_texts"] = sum(map(str.__eq__, texts, written))
            del model
    same_tokens = [
        donor.tokenizer.convert_ids_to_tokens(theirs) == tokenizer.convert_ids_to_tokens(ours)
        for theirs, ours in zip(expected_ids, ids, strict=True)
    ]
    compared = {"prompts": len(prompts), "same_tokens": sum(same_tokens), "new_tokens": _NEW_TOKENS, "models": results}
    equal = all(same_tokens) and all(_is_equal(result, len(prompts)) for result in results.values())
    about = {"text": donor.name, "layers": layers, "pruned": corpus is not None, "tokens": len(tokenizer)}
    return {**about, **compared, "written": written, "equal": equal, "provenance": provenance(0)}


def _texts_throughout(corpus: Corpus) -> list[str]:
    """Return up to ten texts at equal distances in a corpus."""
    texts = [text for text in texts_of(*read_corpus(corpus)) if text]
    return texts[:: max(1, len(texts) // len(PROMPTS))][: len(PROMPTS)]


def _ids(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    if chat:
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return tokenizer(prompt, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def _states(model: Any, ids: list[int]) -> Tensor:
    """Return the last hidden states of a text, after the last normalization."""
    return model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]


@torch.no_grad()
def _written(model: Any, tokenizer: Any, rows: list[list[int]]) -> list[str]:
    """Return the greedy text after each prompt; all prompts are one batch, padded on the left."""
    longest = max(map(len, rows))
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows])
    prompts = torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows])
    written = model.generate(input_ids=prompts, attention_mask=mask, max_new_tokens=_NEW_TOKENS, do_sample=False)
    return tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)


def _differences(expected: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, Any]:
    pairs = list(zip(expected, found, strict=True))
    largest = max((ours - theirs).abs().max().item() for theirs, ours in pairs)
    value = max(theirs.abs().max().item() for theirs in expected)
    return {"largest_difference": largest, "largest_value": value, "relative_difference": largest / value}


def _is_equal(result: dict[str, Any], prompts: int) -> bool:
    return result["relative_difference"] <= TOLERANCE and result.get("same_texts", prompts) == prompts


def record(result: dict[str, Any], path: str | Path) -> None:
    """Add the result of one base to a results file, or replace it there.

    Args:
        result: from `compare`.
        path: the JSON file, which is created if necessary.
    """
    path = Path(path)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"bases": []}
    keys = ("text", "layers", "pruned")
    others = [one for one in found["bases"] if any(one[key] != result[key] for key in keys)]
    write_atomically(path, json.dumps({"bases": [*others, result]}, indent=2, ensure_ascii=False) + "\n")


def table(results: dict[str, Any]) -> str:
    """Return the figures of a results file as a Markdown table, a row for each base.

    Args:
        results: the contents of the file that `record` wrote.
    """
    names = ["base", *PRESETS]
    lines = [f"| language model | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for result in results["bases"]:
        cells = [
            f"{found['relative_difference']:.1e}, {found.get('same_texts', '–')}/{result['prompts']}"
            for found in (result["models"][name] for name in names)
        ]
        lines.append(f"| {result['text']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(result: dict[str, Any]) -> str:
    """Return a few lines about a comparison.

    Args:
        result: from `compare`.
    """
    prompts = result["prompts"]
    lines = [f"{result['text']}: same tokens in {result['same_tokens']} of {prompts} prompts"]
    for name, found in result["models"].items():
        texts = f", same text in {found['same_texts']} of {prompts}" if "same_texts" in found else ""
        lines.append(
            f"  {name:6} last hidden states: largest difference {found['largest_difference']:.1e} "
            f"(relative {found['relative_difference']:.1e}){texts}"
        )
    return "\n".join([*lines, "equal" if result["equal"] else "NOT equal"])
