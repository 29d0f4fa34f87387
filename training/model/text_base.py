"""Make a vision-language base from a language model: a Qwen2.5-VL whose text model computes what the language model computes.

    moon3 make-base --text HuggingFaceTB/SmolLM2-135M-Instruct --vision hidden_size=256 depth=4 --out base

A Qwen2 layer has biases in the queries, keys and values, and none elsewhere; a Llama layer without biases is a Qwen2 layer
whose biases are zero. The rotary embedding of Qwen2.5-VL (arXiv 2502.13923 §2.1.2) reads the positions of time, height and
width in three sections of the frequencies; in a text the three positions are equal, so any sections compute the rotary
embedding of the language model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from model_cards.facts import README_FILE
from product_data.atomic_files import written_whole
from product_data.errors import OptionError
from product_data.outputs import OutputError
from training.model.base_tokenizer import prepare_tokenizer
from training.model.corpus_tokens import Corpus, corpus_ids
from training.model.donor import Donor, DonorError, head_size, open_donor
from training.model.pruned_vocabulary import prune_vocabulary
from training.model.small_base import TOKEN_IDS
from training.model.upcycle import DTYPES
from training.model.vision_tower import BACKBONE, VisionTower, random_tower, tower_of

_TEXT, _OUTPUT = "model.language_model.", "lm_head.weight"
_EMBEDDING = f"{_TEXT}embed_tokens.weight"
_SAME_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
)
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ADDED = -1


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a base.

    Args:
        tokenizer: its tokenizer.
        origins: for each row of the embedding matrix, the row of the language model, or -1 for an added token.
        added: the tokens that the language model did not have.
    """

    tokenizer: Any
    origins: list[int]
    added: list[str]

    def new_ids(self, ids: int | Sequence[int] | None) -> Any:
        """Return the ids in the base of one or several ids of the language model."""
        if ids is None or isinstance(ids, int):
            return None if ids is None else self.origins.index(ids)
        return [self.origins.index(id_) for id_ in ids]


def make_text_base(
    text: str | Path,
    out: str | Path,
    *,
    layers: int | None = None,
    corpus: Corpus | None = None,
    vision: Mapping[str, int] | str | Path | None = None,
    dtype: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a Qwen2.5-VL checkpoint whose text model is a language model of the Qwen2 or Llama family.

    Without `layers` and `corpus`, hidden states and logits of texts are exactly those of the language model. With `corpus`
    they are for the texts of the corpus, and for others that only contain kept tokens. Embeddings of added tokens, and
    their rows of the output layer, are the mean of the known ones (Hewitt, 2021, "Initializing New Word Embeddings for
    Pretrained Language Models").

    Args:
        text: the language model, see `training.model.donor.open_donor`.
        out: the folder to write. It appears only when it is complete.
        layers: number of layers to keep, from the bottom. None: all.
        corpus: keep the tokens of this corpus only, see `training.model.corpus_tokens.read_corpus`. None: keep all.
        vision: sizes of a random vision tower, see `training.model.vision_tower.random_tower`, or the folder or hub id of a
            Qwen2.5-VL checkpoint. None: the default sizes.
        dtype: "float32", "bfloat16" or "float16". None: that of the language model; float32 for a GGUF file.
        seed: the seed of random weights.
        overwrite: replace an existing `out`.

    Returns:
        The folder `out`.

    Raises:
        DonorError: the language model cannot be opened, or has a property that Qwen2.5-VL's text model does not have.
        OptionError: an unknown dtype, or unusable sizes of the vision tower.
        TableError: the corpus cannot be read.
        VocabularyError: the tokenizer cannot be pruned.
        OutputError: `out` exists and `overwrite` is False.

    Relations:
        `training.model.upcycle.upcycle` converts the folder into a Moon checkpoint. `training.model.small_base.make_base`
        makes a base with a random text model.
    """
    out = Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"--dtype: found {dtype!r}; expected one of {', '.join(DTYPES)}")
    if out.is_file() or (out.exists() and not overwrite and any(out.iterdir())):
        raise OutputError(f"--out: found {out}; expected a new or empty folder, or --overwrite for a folder")
    donor = open_donor(text, layers=layers)
    width = donor.config.hidden_size
    if vision is None or isinstance(vision, Mapping):
        tower = random_tower(vision or {}, width, seed)
    else:
        tower = tower_of(vision, width, seed)
    with written_whole(out) as folder:
        folder.mkdir(parents=True)
        (folder / "preprocessor_config.json").write_text(json.dumps(tower.preprocessor, indent=2) + "\n")
        vocabulary = _write_tokenizer(donor, folder, corpus)
        model = donor.load(dtype)
        config = _base_config(donor, vocabulary, tower, layers)
        tensors = _text_tensors(model, config, vocabulary)
        tensors |= {f"model.visual.{name}": tensor.to(model.dtype) for name, tensor in tower.tensors.items()}
        _write_weights(config, tensors, _generation_config(model, vocabulary), folder)
        (folder / README_FILE).write_text(_card(donor, vocabulary, tower, layers, corpus is not None), encoding="utf-8")
    return out


def _write_tokenizer(donor: Donor, folder: Path, corpus: Corpus | None) -> Vocabulary:
    """Write the tokenizer of the base, and return its vocabulary."""
    added = prepare_tokenizer(donor.tokenizer, donor.name)
    donor.tokenizer.save_pretrained(folder)
    kept: Sequence[int] = range(max(len(donor.tokenizer), donor.config.vocab_size))
    if corpus is not None:
        config = donor.config
        special = [getattr(config, name, None) for name in _SPECIAL_IDS]
        flat = {id_ for ids in special if ids is not None for id_ in ([ids] if isinstance(ids, int) else ids)}
        kept = prune_vocabulary(folder, corpus_ids(folder, corpus) | flat)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    new = set(donor.tokenizer.convert_tokens_to_ids(added))
    return Vocabulary(tokenizer, [_ADDED if id_ in new else id_ for id_ in kept], added)


def _base_config(donor: Donor, vocabulary: Vocabulary, tower: VisionTower, layers: int | None) -> Any:
    """Return the configuration of the base."""
    config, tokenizer = donor.config, vocabulary.tokenizer
    text = {name: getattr(config, name) for name in _SAME_FIELDS}
    text |= {name: vocabulary.new_ids(getattr(config, name, None)) for name in _SPECIAL_IDS[:2]}
    rotation = {name: value for name, value in config.rope_parameters.items() if name != "partial_rotary_factor"}
    return AutoConfig.for_model(
        BACKBONE,
        text_config=text
        | {
            "vocab_size": len(vocabulary.origins),
            "num_hidden_layers": layers or config.num_hidden_layers,
            "pad_token_id": tokenizer.pad_token_id,
            "use_sliding_window": False,
            "rope_parameters": rotation | {"mrope_section": rotary_sections(head_size(config))},
            "tie_word_embeddings": config.tie_word_embeddings,
        },
        vision_config=tower.config.to_dict(),
        tie_word_embeddings=config.tie_word_embeddings,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKEN_IDS.items()},
    )


def rotary_sections(head_dim: int) -> list[int]:
    """Return the number of rotary frequencies for time, height and width: 1/4, 3/8 and 3/8, as in Qwen2.5-VL.

    Args:
        head_dim: width of an attention head, an even number.
    """
    frequencies = head_dim // 2
    side = frequencies * 3 // 8
    return [frequencies - 2 * side, side, side]


def _text_tensors(model: Any, config: Any, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Return the weights of the text model and of the output layer, by their names in the base."""
    stored = {name.replace("model.", _TEXT, 1): tensor for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        expected = AutoModelForImageTextToText.from_config(config).state_dict()
    tensors = {}
    for name, shape in ((name, tensor.shape) for name, tensor in expected.items() if ".visual." not in name):
        if name in (_EMBEDDING, _OUTPUT):
            tensors[name] = _rows(stored[name], vocabulary.origins, len(vocabulary.tokenizer))
        elif name in stored:
            tensors[name] = stored[name]
        elif name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            tensors[name] = torch.zeros(shape, dtype=model.dtype)
        if name not in tensors or tensors[name].shape != shape:
            found = tuple(tensors[name].shape) if name in tensors else "none"
            raise DonorError(f"tensor {name}: found {found}; expected shape {tuple(shape)}")
    left = [name for name in stored if name not in expected and not _is_cut(name, config)]
    if left:
        raise DonorError(f"tensor {left[0]}: found a weight that Qwen2.5-VL's text model does not have")
    if config.tie_word_embeddings:
        tensors[_OUTPUT] = tensors[_EMBEDDING]
    return tensors


def _is_cut(name: str, config: Any) -> bool:
    layer = name.removeprefix(f"{_TEXT}layers.").split(".")[0]
    return layer.isdecimal() and int(layer) >= config.text_config.num_hidden_layers


def _rows(matrix: Tensor, origins: Sequence[int], known: int) -> Tensor:
    """Return the rows of the kept tokens, and the mean of the known tokens' rows for added ones."""
    origin = torch.tensor(origins)
    rows = origin.clamp(max=matrix.shape[0] - 1)
    of_tokens = origin[:known]
    mean = matrix[of_tokens[of_tokens >= 0]].float().mean(dim=0).to(matrix.dtype)
    taken = matrix[rows.clamp(min=0)]
    taken[(origin == _ADDED) | (origin >= matrix.shape[0])] = mean
    return taken


def _generation_config(model: Any, vocabulary: Vocabulary) -> GenerationConfig:
    settings = model.generation_config
    for name in _SPECIAL_IDS[:2]:
        setattr(settings, name, vocabulary.new_ids(getattr(settings, name)))
    settings.pad_token_id = vocabulary.tokenizer.pad_token_id
    return settings


def _write_weights(config: Any, tensors: dict[str, Tensor], generation: GenerationConfig, folder: Path) -> None:
    config.dtype = config.text_config.dtype = config.vision_config.dtype = tensors[_EMBEDDING].dtype
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    model.generation_config = generation
    model.save_pretrained(folder)


def _card(donor: Donor, vocabulary: Vocabulary, tower: VisionTower, layers: int | None, pruned: bool) -> str:
    """Return the README.md of a base, whose metadata states the licence of the language model."""
    facts = {"license": donor.licence.id, "license_name": donor.licence.name, "license_link": donor.licence.link}
    facts["base_model"] = donor.hub_id
    lines = [f"{name}: {value}" for name, value in facts.items() if value]
    cuts = [f"Its first {layers} of {donor.config.num_hidden_layers} layers." if layers else "All of its layers."]
    cuts.append(f"{len(vocabulary.tokenizer)} tokens{', those of a corpus' if pruned else ''}.")
    random = "all weights" if len(tower.random) == len(tower.tensors) else ", ".join(sorted(tower.random)) or "none"
    return "\n".join(
        [
            *(["---", *lines, "---"] if lines else []),
            f"# A base from {donor.name}",
            "",
            "`moon3 make-base` made it. Its text model computes what the language model computes.",
            "",
            f"- Text model: {donor.name}. {' '.join(cuts)}",
            f"- Added tokens, whose embeddings are the mean of the others: {', '.join(vocabulary.added) or 'none'}.",
            f"- Random weights of the vision tower: {random}.",
            "",
        ]
    )
