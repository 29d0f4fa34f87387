"""Make a small vision-language base with random weights, in the format of the Qwen checkpoints on the Hub.

It replaces `Qwen/Qwen3-VL-*` and `Qwen/Qwen2.5-VL-*` if nothing can be downloaded: in the quickstart, the smoke
recipes, training runs from random weights, and the tests. `training.model.upcycle` converts it like a pretrained
checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from model_cards.facts import RANDOM_TAG, README_FILE
from training.model.card_facts import OUR_LICENCE

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
BACKBONES = ("qwen3_vl", "qwen2_5_vl")
# Vision tokens, by the field of the configuration that holds their id.
TOKEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
# Qwen2's split rule: contractions, words, single digits, punctuation, line ends, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class SmallBaseConfig:
    """The sizes of a small random base. Our design, with the proportions of Qwen3-VL-2B.

    Args:
        backbone: "qwen3_vl" or "qwen2_5_vl".
        hidden_size: width of the text model, a multiple of `head_dim`.
        num_layers: number of decoder layers.
        intermediate_size: width of a dense feed-forward layer and of an expert; None: 2 · `hidden_size`.
        head_dim: width of one attention head, a multiple of 8.
        vision_hidden_size: width of the vision tower, a multiple of 32.
        vision_depth: number of layers of the vision tower, at least 2.
        vocab_size: size of the byte-pair vocabulary, special tokens included, at least 300.
        spare_embeddings: rows of the embedding matrix beyond the vocabulary, as in the Qwen checkpoints.
        tie_word_embeddings: whether the output layer is the embedding matrix.
        max_image_tokens: image tokens of the largest picture (a token covers 32×32 pixels, 28×28 in Qwen2.5-VL).
        min_image_tokens: image tokens of the smallest picture. Smaller pictures, such as core crops, are enlarged.
        initializer_range: standard deviation of the random weights.
        seed: seed of the random weights.
    """

    backbone: str = "qwen3_vl"
    hidden_size: int = 64
    num_layers: int = 2
    intermediate_size: int | None = None
    head_dim: int = 32
    vision_hidden_size: int = 32
    vision_depth: int = 2
    vocab_size: int = 1000
    spare_embeddings: int = 16
    tie_word_embeddings: bool = True
    max_image_tokens: int = 64
    min_image_tokens: int = 1
    initializer_range: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"small_base.backbone: found {self.backbone!r}; expected one of {', '.join(BACKBONES)}")
        for name, divisor in (("hidden_size", self.head_dim), ("vision_hidden_size", 32), ("head_dim", 8)):
            if getattr(self, name) <= 0 or getattr(self, name) % divisor:
                raise ValueError(
                    f"small_base.{name}: found {getattr(self, name)}; expected a positive multiple of {divisor}"
                )
        if self.vision_depth < 2 or self.num_layers < 1:
            raise ValueError(
                f"small_base.vision_depth, num_layers: found {self.vision_depth}, {self.num_layers}; expected at least "
                "2 and at least 1"
            )
        if not 1 <= self.min_image_tokens <= self.max_image_tokens:
            raise ValueError(
                f"small_base.min_image_tokens: found {self.min_image_tokens}; expected 1 to "
                f"max_image_tokens={self.max_image_tokens}"
            )
        if self.vocab_size < 300:
            raise ValueError(
                f"small_base.vocab_size: found {self.vocab_size}; expected at least 300 (256 bytes and special tokens)"
            )


def _train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        padding_side="left",
    )


def _text_config(sizes: SmallBaseConfig, vocab_size: int) -> dict[str, Any]:
    half = sizes.head_dim // 2
    side = (half * 5) // 16  # Qwen3-VL splits 64 rotary frequencies into 24 + 20 + 20
    heads = sizes.hidden_size // sizes.head_dim
    config: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size or 2 * sizes.hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
        "max_position_embeddings": 4096,
        "initializer_range": sizes.initializer_range,
        "tie_word_embeddings": sizes.tie_word_embeddings,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [half - 2 * side, side, side],
        },
    }
    if sizes.backbone == "qwen3_vl":
        config["head_dim"] = sizes.head_dim
        config["rope_parameters"]["mrope_interleaved"] = True
    else:  # the defaults are ids of the full vocabulary
        config |= {"bos_token_id": None, "eos_token_id": None}
    return config


def vision_config(sizes: SmallBaseConfig) -> dict[str, Any]:
    """Return the configuration of the vision tower."""
    config: dict[str, Any] = {
        "depth": sizes.vision_depth,
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": 2 * sizes.vision_hidden_size,
        "num_heads": sizes.vision_hidden_size // 32,
        "out_hidden_size": sizes.hidden_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": sizes.initializer_range,
    }
    if sizes.backbone == "qwen3_vl":
        # A feature that is added after the last layer would not reach other tokens.
        levels = sorted({sizes.vision_depth // 4, sizes.vision_depth // 2})
        config |= {
            "patch_size": 16,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": levels[: sizes.num_layers - 1],
        }
    else:
        config |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [sizes.vision_depth - 1]}
    return config


def preprocessor_config(sizes: SmallBaseConfig, patch_size: int) -> dict[str, Any]:
    """Return the settings of the image processor, as preprocessor_config.json contains them."""
    pixels_per_token = (2 * patch_size) ** 2
    qwen3 = sizes.backbone == "qwen3_vl"
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor" if qwen3 else "Qwen2_5_VLProcessor",
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5] if qwen3 else [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.5, 0.5, 0.5] if qwen3 else [0.26862954, 0.26130258, 0.27577711],
        "size": {
            "shortest_edge": sizes.min_image_tokens * pixels_per_token,
            "longest_edge": sizes.max_image_tokens * pixels_per_token,
        },
    }


_CARD = f"""\
---
license: {OUR_LICENCE}
tags: [{RANDOM_TAG}]
---
# A small base with random weights

`training.model.small_base` made it as a starting point for training from scratch. It has not been trained.
"""


def make_base(folder: str | Path, *, texts: Iterable[str], **sizes: Any) -> Path:
    """Write a random base checkpoint: configuration, weights, tokenizer, chat template and image-processor settings.

    Our design, with the file layout of the Qwen repositories on the Hub. The byte-pair vocabulary is learned from
    `texts`. Its alphabet is bytes, so any text can be tokenized.

    Args:
        folder: the folder to write, which is created if necessary.
        texts: the training texts of the tokenizer: titles, attributes and queries.
        **sizes: the fields of `SmallBaseConfig`.

    Returns:
        The folder.

    Raises:
        ValueError: a size is out of range, or the backbone is unknown.
        TypeError: `SmallBaseConfig` does not have one of the sizes.

    Relations:
        `training.model.upcycle.upcycle` converts the folder into a Moon checkpoint.
    """
    small = SmallBaseConfig(**sizes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(texts, small.vocab_size)
    tokenizer.save_pretrained(folder)
    vision = vision_config(small)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(preprocessor_config(small, vision["patch_size"]), indent=2) + "\n"
    )
    special = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKEN_IDS.items()}
    config = AutoConfig.for_model(
        small.backbone,
        text_config=_text_config(small, len(tokenizer) + small.spare_embeddings),
        vision_config=vision,
        tie_word_embeddings=small.tie_word_embeddings,
        **special,
    )
    config.text_config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(small.seed)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    (folder / README_FILE).write_text(_CARD, encoding="utf-8")
    return folder
