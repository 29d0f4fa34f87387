"""Remove tokens from a byte-pair tokenizer, so that the texts of a corpus keep their tokens and any text can be tokenized.

Byte-pair encoding joins, again and again, the adjacent pair of the lowest rank. Every token of a text is therefore the
result of the same joins as the token alone. A vocabulary that contains, with each token, all results of its joins
encodes the texts of the corpus exactly as before: all joins of these texts are kept, and those that are left keep their
order. (Our design. The idea of cutting a vocabulary to a corpus is that of Abdaoui et al., arXiv 2010.05609.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from tqdm import tqdm
from transformers import AutoTokenizer

from product_data.atomic_files import write_atomically

_FILE = "tokenizer.json"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


class VocabularyError(ValueError):
    """A tokenizer whose vocabulary cannot be pruned exactly."""

    exit_status = 2


def prune_vocabulary(folder: str | Path, needed_ids: Iterable[int]) -> list[int]:
    """Remove all tokens from the tokenizer of a folder that neither a corpus nor the tokenizer itself needs.

    Kept are the needed tokens with the results of their joins, every byte, and the tokens that were added to the
    byte-pair vocabulary, such as the special ones. The order of the ids stays.

    Args:
        folder: the folder, whose `tokenizer.json` is changed.
        needed_ids: the ids of all tokens in a corpus and in the prompts around it.

    Returns:
        The old id of each new id.

    Raises:
        VocabularyError: the tokenizer is not a byte-pair tokenizer without affixes, or cannot be loaded with its new ids.
    """
    folder = Path(folder)
    written = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    model = written["model"]
    if model["type"] != "BPE" or any(model.get(name) for name in _AFFIXES):
        raise VocabularyError(
            f"{folder / _FILE}: found a {model['type']} tokenizer{' with affixes' if model['type'] == 'BPE' else ''}; "
            "expected a byte-pair tokenizer without affixes"
        )
    old_ids = dict(model["vocab"]) | {token["content"]: token["id"] for token in written["added_tokens"]}
    kept = _kept_tokens(written, old_ids, set(needed_ids))
    order = sorted(kept, key=old_ids.__getitem__)
    new_ids = {token: number for number, token in enumerate(order)}
    model["vocab"] = {token: new_ids[token] for token in order if token in model["vocab"]}
    model["merges"] = [pair for pair in model["merges"] if _is_kept(pair, kept)]
    for token in written["added_tokens"]:
        token["id"] = new_ids[token["content"]]
    _renumber(written.get("post_processor"), new_ids)
    write_atomically(folder / _FILE, json.dumps(written, ensure_ascii=False))
    loaded = AutoTokenizer.from_pretrained(folder).get_vocab()
    if loaded != new_ids:
        raise VocabularyError(
            f"{folder / _FILE}: found a tokenizer that does not keep the order of its ids when loaded"
        )
    return [old_ids[token] for token in order]


def _kept_tokens(written: Mapping[str, Any], old_ids: Mapping[str, int], needed: set[int]) -> set[str]:
    """Return the needed tokens with the results of their joins, every byte, and the added tokens."""
    model = written["model"]
    added = {token["content"] for token in written["added_tokens"]}
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    fixed = added | {token for token in model["vocab"] if token in alphabet or _BYTE.fullmatch(token)}
    if model.get("unk_token") is not None:
        fixed.add(model["unk_token"])
    ranks = {_pair(pair): rank for rank, pair in enumerate(model["merges"])}
    kept = set(fixed)
    wanted = [token for token, id_ in old_ids.items() if id_ in needed and token not in fixed]
    for token in tqdm(wanted, desc="Pruning the vocabulary", unit="token", delay=3.0):
        kept.add(token)
        kept.update(part for part in _joins(token, ranks) if part in model["vocab"])
    return kept


def _joins(token: str, ranks: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """Yield the characters of a token and the results of the joins that make it, by the rank of each pair."""
    parts = list(token)
    yield from parts
    while len(parts) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(parts)))
        if rank == len(ranks):
            return
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        yield parts[place]


def _pair(pair: str | list[str]) -> tuple[str, str]:
    """Return the two sides of a pair, which older files write as one string."""
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left, right


def _is_kept(pair: str | list[str], kept: set[str]) -> bool:
    left, right = _pair(pair)
    return left in kept and right in kept and left + right in kept


def _renumber(processor: Any, new_ids: Mapping[str, int]) -> None:
    """Replace the ids of special tokens in a post-processor, in place."""
    if processor is None:
        return
    if processor["type"] == "Sequence":
        for part in processor["processors"]:
            _renumber(part, new_ids)
    elif processor["type"] == "TemplateProcessing":
        for special in processor["special_tokens"].values():
            special["ids"] = [new_ids[token] for token in special["tokens"]]
    elif processor["type"] != "ByteLevel":
        raise VocabularyError(
            f"{_FILE}, post_processor: found {processor['type']}; expected TemplateProcessing or ByteLevel"
        )
