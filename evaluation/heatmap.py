"""Explain in PNG files what a vector is read from: attention over pictures and words, gates, written attributes.

    moon3 heatmap --model DIR --data catalogue|FOLDER|FILE [--split test] [--ids a b | --first N]
        [--queries] [--reasoning none|generate] [--layers 0 1] [--relative] --output FOLDER

MOON's heat maps (arXiv 2508.11999 §5.4) show attention over image and text. The averaging over rows, heads and layers
and the normalisation are our design; see `explain`.

Shape suffixes: T tokens of the product or query, R tokens that the vector is read from, A heads, W words.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageFont
from tqdm import tqdm
from transformers import PreTrainedModel

import evaluation.baselines  # noqa: F401 - registers their models
from evaluation.explanation import Explanation, PictureHeat
from evaluation.heatmap_drawing import draw_explanation, save_explanation
from modeling_moon.tokens_moon import readable_tokens
from processing_moon import ProductError
from processing_moon.images_moon import image_list
from processing_moon.product_moon import is_product, read_product
from product_data.errors import OptionError
from product_data.outputs import require_writable_folder
from product_data.tables import ProductTables
from retrieval.encode import load_for_evaluation

__all__ = ["Explanation", "PictureHeat", "draw_explanation", "eager_attention", "explain", "save_explanation"]

REASONING = ("none", "generate", "given")
FIRST_TOKEN, INSTRUCTION, TEMPLATE = "first token", "instruction", "template and markers"
READ_TOKEN, WRITTEN = "read-out token", "reasoning"
_CORE_CROP = "core crop"
_CONTROL, _REPLACEMENT = "\0", "\ufffd"  # placeholders of a control token and of a part of a character
INDEX_FILE = "index.json"
Picture = tuple[str, np.ndarray, tuple[int, int]]  # name, pixels, rows and columns of image tokens


# ---------------------------------------------------------------------------------------------------------------------
# Reading the attention
# ---------------------------------------------------------------------------------------------------------------------
@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use the "eager" attention, the only implementation that returns weights, and restore the previous implementation.

    Args:
        model: the model; its implementation and those of its parts, which can differ, are restored even after an error.
    """
    # Parents come before their parts, since restoring a parent also changes its parts.
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def explain(
    model: Any,
    processor: Any,
    records: Sequence[Mapping[str, Any]],
    *,
    reasoning: str = "none",
    layers: Sequence[int] | None = None,
    relative: bool = False,
) -> list[Explanation]:
    r"""Explain what the vectors of records are read from.

    `a_k = mean over layers, heads and rows r of A[r, k]`, where A is a decoder layer's attention and the rows are those
    of the tokens that the vector is read from: one for the read-outs "emb" and "last", all attended tokens for "mean".
    Our design, after MOON's heat maps (arXiv 2508.11999 §5.4). a sums to 1 over the tokens; `shares` are its sums over
    sets of tokens. The first tokens of a text attract attention regardless of their content (attention sinks, arXiv
    2309.17453): therefore the first token is a separate set, and heat and word weights are normalised separately,
    within the image tokens and within the words.

    With a mean read-out, only a token itself and later tokens attend to it; early tokens therefore get more even if
    attention is uniform: `u_k = mean over rows r of [k ≤ r] / (r + 1)`. `relative=True` divides a by u before it is
    normalised (not in `shares`); with a single row, u is the same for all tokens and nothing changes.

    For a model with fusion (MOON3.0, arXiv 2604.00513), a is the decoder's attention; `gates` holds the weights of
    pictures and title in the fusion. Written reasoning precedes `<emb>` in the text and is a separate set.

    Args:
        model: a MoonModel, or a MoonForConditionalGeneration.
        processor: its MoonProcessor.
        records: product and query records, as the processor's `records=`; with reasoning="given" they contain it.
        reasoning (`str`): "none"; "generate": the model writes attributes first; "given": those of the record's field
            "reasoning". Default "none".
        layers (`Sequence[int]` or `None`): decoder layers to average. Default: all.
        relative (`bool`): whether heat and word weights are relative to uniform attention. Default False.

    Raises:
        ValueError: a model other than a Moon model, an unknown reasoning, a layer that does not exist, or reasoning with a
            model that does not reason.
        ProductError: a record that cannot be used.

    Relations: `draw_explanation` and `save_explanation` draw the result. Records are computed one at a time: eager
    attention needs heads × T² numbers per layer, and only one layer is in memory at a time.
    """
    encoder = getattr(model, "model", model)
    if getattr(model.config, "model_type", None) != "moon" or not hasattr(encoder, "vlm"):
        raise OptionError(f"model: found {type(model).__name__}, which has no joint attention; expected a Moon model")
    if reasoning not in REASONING:
        raise OptionError(f"reasoning={reasoning!r}; expected one of {', '.join(REASONING)}")
    if reasoning != "none" and getattr(model.config, "max_reasoning_tokens", None) is None:
        raise OptionError(
            f"reasoning={reasoning!r}, but this model does not reason (max_reasoning_tokens is None); expected 'none'"
        )
    chosen = _select_layers(layers, model.config.text_config.num_hidden_layers)
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            return [_explain_record(model, processor, record, reasoning, chosen, relative) for record in records]
    finally:
        encoder.train(was_training)


def _select_layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(depth))
    wrong = [layer for layer in layers if isinstance(layer, bool) or layer not in range(depth)]
    if wrong or not len(layers):
        raise OptionError(f"layers={list(layers)!r}; expected one or more of 0 to {depth - 1}, the decoder layers")
    return tuple(sorted(set(layers)))


def _explain_record(
    model: Any, processor: Any, record: Mapping[str, Any], reasoning: str, layers: tuple[int, ...], relative: bool
) -> Explanation:
    encoder = getattr(model, "model", model)
    inputs, written = _inputs(model, processor, record, reasoning)
    ids_T = inputs["input_ids"][0].cpu().numpy()
    readable_1T = readable_tokens(inputs["attention_mask"], encoder.config, inputs["input_ids"])
    readable_T = readable_1T[0].cpu().numpy()
    attention_T, output = _read_attention(encoder, inputs, np.flatnonzero(readable_T), layers)
    pictures = _pictures(inputs, processor, record)
    words, parts, word_of_T = _words(ids_T, processor, record, has_pictures=bool(pictures))
    image_T = ids_T == encoder.config.image_token_id
    set_of_T = _template_sets(ids_T, processor, encoder.config, readable_T)
    set_of_T[word_of_T >= 0] = [parts[word] for word in word_of_T[word_of_T >= 0]]
    set_of_T[image_T] = [name for name, _, (rows, columns) in pictures for _ in range(rows * columns)]
    shares = {name: float(attention_T[set_of_T == name].sum()) for name in dict.fromkeys(set_of_T)}
    weight_T = attention_T / _uniform(readable_T) if relative else attention_T
    sizes = np.cumsum([rows * columns for _, _, (rows, columns) in pictures])[:-1]
    heats = np.split(_normalised(weight_T[image_T]), sizes) if pictures else []
    word_weights_W = np.bincount(word_of_T[word_of_T >= 0], weight_T[word_of_T >= 0], minlength=len(words))
    gates = getattr(output, "modality_gates", None)
    product = is_product(record)
    return Explanation(
        record_id=str(record.get("id", "product" if product else "query")),
        kind="product" if product else "query",
        readout=encoder.config.readout,
        layers=layers,
        relative=relative,
        pictures=tuple(
            PictureHeat(name, pixels, heat.reshape(grid))
            for (name, pixels, grid), heat in zip(pictures, heats, strict=True)
        ),
        words=words,
        word_parts=parts,
        word_weights=_normalised(word_weights_W),
        shares=shares,
        attention=attention_T.astype(np.float32),
        input_ids=ids_T,
        gates=None if gates is None else gates[0].float().cpu().numpy(),
        reasoning=written,
    )


def _inputs(
    model: Any, processor: Any, record: Mapping[str, Any], reasoning: str
) -> tuple[dict[str, torch.Tensor], Any]:
    """Return the model's tensors for a record, with any reasoning in `input_ids`, and the parsed reasoning or None."""
    options = {"reasoning": "given"} if reasoning == "given" else {}
    batch = processor(records=[record], return_tensors="pt", **options)
    parameter = next(model.parameters())
    inputs = {
        name: value.to(parameter.device, dtype=parameter.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }
    if reasoning == "generate":
        output = model.embed([record], reasoning="generate", processor=processor)
        ids_1T = output.input_ids[:, output.attention_mask[0].bool()]
        image_1T = (ids_1T == model.config.image_token_id).long()
        inputs |= {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T), "mm_token_type_ids": image_1T}
        return inputs, output.reasoning[0]
    if reasoning == "given":
        ids_T = inputs["input_ids"][0].cpu().numpy()
        start, _ = _reasoning_span(ids_T, model.config)
        return inputs, processor.read_reasoning(ids_T[None, start:])[0]
    return inputs, None


def _read_attention(
    encoder: Any, inputs: Mapping[str, torch.Tensor], rows_R: np.ndarray, layers: tuple[int, ...]
) -> tuple[np.ndarray, Any]:
    """Return a (T,) float64 of one record, and the model's output; each layer's weights are averaged immediately."""
    rows = torch.from_numpy(rows_R).to(inputs["input_ids"].device)
    means: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        means.append(output[1][0].index_select(1, rows).double().mean(dim=(0, 1)).cpu())

    attentions = [encoder.vlm.language_model.layers[layer].self_attn for layer in layers]
    hooks = [attention.register_forward_hook(keep) for attention in attentions]
    try:
        with eager_attention(encoder):
            output = encoder(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(means).mean(dim=0).numpy(), output


def _uniform(readable_T: np.ndarray) -> np.ndarray:
    """Return u (T,): the attention that each token gets if all rows attend equally to all tokens that they see."""
    per_row_T = np.where(readable_T, 1 / (1 + np.arange(len(readable_T))), 0.0)
    uniform_T = np.cumsum(per_row_T[::-1])[::-1] / readable_T.sum()
    return np.where(uniform_T > 0, uniform_T, 1.0)  # tokens that no row sees get no attention


def _normalised(weights: np.ndarray) -> np.ndarray:
    total = weights.sum()
    return (weights / total if total > 0 else weights).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The meaning of tokens
# ---------------------------------------------------------------------------------------------------------------------
def _pictures(inputs: Mapping[str, torch.Tensor], processor: Any, record: Mapping[str, Any]) -> list[Picture]:
    """Return name, pixels and (rows, columns) of tokens of each picture, in the order of the model's input."""
    if "image_grid_thw" not in inputs:
        return []
    grids = inputs["image_grid_thw"].cpu().tolist()
    patches = inputs["pixel_values"].float().cpu().split([rows * columns for _, rows, columns in grids])
    merge = processor.image_processor.merge_size
    sources = image_list(record.get("images", record.get("image")))
    names = [f"picture {number + 1}" for number in range(len(sources) if sources is not None else 1)]
    if len(names) < len(grids):
        names.insert(1, _CORE_CROP)
    return [
        (name, _pixels(part.numpy(), rows, columns, processor.image_processor), (rows // merge, columns // merge))
        for name, part, (_, rows, columns) in zip(names, patches, grids, strict=True)
    ]


def _pixels(patches: np.ndarray, rows: int, columns: int, settings: Any) -> np.ndarray:
    """Reconstruct a picture (height, width, 3) uint8 from its patches by the inverse of the processor's steps."""
    patch, merge, frames = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    first = patches.reshape(rows // merge, columns // merge, merge, merge, 3, frames, patch, patch)[:, :, :, :, :, 0]
    values = first.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
    if settings.do_normalize:
        values = values * np.asarray(settings.image_std) + np.asarray(settings.image_mean)
    if settings.do_rescale:
        values = values / settings.rescale_factor
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _words(
    ids_T: np.ndarray, processor: Any, record: Mapping[str, Any], *, has_pictures: bool
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Return the words of a record's text, the part of each, and the word (T,) of each token, -1 for none."""
    tokenizer = processor.tokenizer
    start, end = _text_span(ids_T, tokenizer, processor, has_pictures)
    pieces = _pieces(ids_T, start, end, tokenizer)
    characters = [(character, number) for number, (text, _) in enumerate(pieces) for character in text]
    part_of = _parts_of([character for character, _ in characters], record)
    words: list[str] = []
    parts: list[str] = []
    word_of_T = np.full(len(ids_T), -1)
    before = " "
    for (character, number), part in zip(characters, part_of, strict=True):
        if not character.isspace() and character != _CONTROL:
            starts_word = before.isspace() or before == _CONTROL or parts[-1] != part
            tokens = pieces[number][1]
            first_of_token = word_of_T[tokens[0]] < 0
            if starts_word or (first_of_token and (_is_wide(character) or _is_wide(before))):
                words.append("")
                parts.append(part)
            words[-1] += character
            if first_of_token:  # a token that ends one word and begins the next counts for the first
                word_of_T[tokens] = len(words) - 1
        before = character
    return tuple(words), tuple(parts), word_of_T


def _is_wide(character: str) -> bool:
    """Return whether a character belongs to a script that is written without spaces (Chinese, Japanese, …)."""
    return unicodedata.east_asian_width(character) in "WF"


def _text_span(ids_T: np.ndarray, tokenizer: Any, processor: Any, has_pictures: bool) -> tuple[int, int]:
    """Return start and end of a record's text: after its pictures or the user's header, and before the turn's end."""
    start_id, end_id = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    if has_pictures:
        after = tokenizer.convert_tokens_to_ids(processor.vision_end_token)
        start = int(np.flatnonzero(ids_T == after)[-1]) + 1
    else:
        turns = np.flatnonzero(ids_T == start_id)
        header = tokenizer("user\n", add_special_tokens=False)["input_ids"]
        start = int(turns[1]) + 1 + len(header)
    return start, start + int(np.flatnonzero(ids_T[start:] == end_id)[0])


def _pieces(ids_T: np.ndarray, start: int, end: int, tokenizer: Any) -> list[tuple[str, list[int]]]:
    """Return the text and positions of each token; tokens that form one character are merged."""
    control = set(tokenizer.added_tokens_decoder)
    pieces: list[tuple[str, list[int]]] = []
    waiting: list[int] = []
    for position in range(start, end):
        if int(ids_T[position]) in control:
            pieces += [(_REPLACEMENT, waiting)] if waiting else []
            pieces.append((_CONTROL, [position]))
            waiting = []
            continue
        waiting.append(position)
        text = tokenizer.decode(ids_T[waiting].tolist(), clean_up_tokenization_spaces=False)
        if not text.endswith(_REPLACEMENT) or position == end - 1:
            pieces.append((text, waiting))
            waiting = []
    return pieces


def _parts_of(characters: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    """Return the part of the text that each character belongs to, by comparison with the record; parts can be cut off.

    White space is ignored, because the processor inserts some into control tokens in a user's text.
    """
    if not is_product(record):
        return ["text"] * len(characters)
    text = read_product({name: value for name, value in record.items() if name != "reasoning"}, 0).text
    known = [("title", text.title), ("category", text.category)]
    known += [("attributes", pair) for pair in text.attributes] + [("description", text.description)]
    parts = ["text"] * len(characters)
    remaining = [place for place, character in enumerate(characters) if not character.isspace()]
    for name, whole in known:
        wanted = "".join(whole.split())
        while wanted and remaining and characters[remaining[0]] == _CONTROL:  # the marker that opens a part
            remaining.pop(0)
        rest = "".join(characters[place] for place in remaining)
        if name == "attributes":  # a pair is complete or missing, and follows a separator
            wanted = next((start for start in (wanted, ";" + wanted) if wanted and rest.startswith(start)), "")
        same = len(os.path.commonprefix([wanted, rest]))
        for place in remaining[:same]:
            parts[place] = name
        remaining = remaining[same:]
    return parts


def _template_sets(ids_T: np.ndarray, processor: Any, config: Any, readable_T: np.ndarray) -> np.ndarray:
    """Return the set (T,) of each token that belongs neither to a word nor to a picture."""
    set_of_T = np.full(len(ids_T), TEMPLATE, dtype=object)
    turn_ends = np.flatnonzero(ids_T == processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
    set_of_T[: turn_ends[0]] = INSTRUCTION
    set_of_T[slice(*_reasoning_span(ids_T, config))] = WRITTEN
    if config.readout != "mean":
        set_of_T[np.flatnonzero(readable_T)[-1]] = READ_TOKEN
    set_of_T[0] = FIRST_TOKEN
    return set_of_T


def _reasoning_span(ids_T: np.ndarray, config: Any) -> tuple[int, int]:
    """Return the start and end of the reasoning inside its opening and closing tokens; (0, 0) if there is none."""
    start_id, end_id = (getattr(config, f"think_{side}_token_id", None) for side in ("start", "end"))
    opened = [] if start_id is None else np.flatnonzero(ids_T == start_id).tolist()
    if not opened:
        return 0, 0
    start = opened[-1] + 1
    closed = np.flatnonzero(ids_T[start:] == end_id).tolist()
    return start, start + closed[0] if closed else len(ids_T)


# ---------------------------------------------------------------------------------------------------------------------
# A folder of pictures: one PNG per record, and an index
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class HeatmapOptions:
    """Options for drawing heat maps of a data set.

    Args:
        queries (`bool`): draw queries instead of products. Default False.
        ids (`Sequence[str]` or `None`): draw these products (or queries), in this order. Default: all.
        first (`int` or `None`): draw only the first this many. Default: all.
        reasoning (`str`): "none", or "generate": the model writes attributes first. Default "none".
        layers (`Sequence[int]` or `None`): decoder layers to average. Default: all.
        relative (`bool`): show heat relative to uniform attention. Default False.
        font (`Path` or `None`): font file, for scripts that Pillow's font lacks. Default: a font of the system.
        without_text (`bool`): draw records with pictures and text a second time without their text, beside the first, as
            MOON does (arXiv 2508.11999 §5.4). Default False.
        overwrite (`bool`): draw existing pictures again. Default False.

    Raises:
        OptionError: a number below 1, or a file that is not a font.
    """

    queries: bool = False
    ids: Sequence[str] | None = None
    first: int | None = None
    reasoning: str = "none"
    layers: Sequence[int] | None = None
    relative: bool = False
    font: Path | None = None
    without_text: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.first is not None and self.first < 1:
            raise OptionError(f"--first {self.first}; expected 1 or more")
        if self.font is not None:
            try:
                ImageFont.truetype(str(self.font))
            except OSError as error:
                raise OptionError(f"--font {self.font}: {error}; expected a font file") from error

    @property
    def kind(self) -> str:
        """The kind of the records: "query" or "product"."""
        return "query" if self.queries else "product"


@dataclass
class _Index:
    """The index file of a folder: settings and entries of its pictures, and records that could not be read."""

    path: Path
    settings: dict[str, Any]
    items: dict[str, dict[str, Any]]
    unreadable: list[dict[str, str]]

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any], *, overwrite: bool) -> _Index:
        """Open the index of a folder, with the entries of pictures that have the same settings.

        Raises:
            ValueError: pictures with different settings without `overwrite`, or an index.json that is not an index of heat
                maps.
        """
        path = folder / INDEX_FILE
        if not path.is_file():
            return cls(path, settings, {}, [])
        before = _read_index(path)
        items = {entry["id"]: entry for entry in before["items"]}
        other = sorted(name for name in settings if before["settings"].get(name) != settings[name])
        if other and not overwrite:
            raise OptionError(
                f"{folder}: its pictures were drawn with other settings ({', '.join(other)}); use the same settings, another "
                "--output, or --overwrite, which removes them"
            )
        if other:
            for entry in items.values():
                (folder / Path(entry["file"]).name).unlink(missing_ok=True)
            items = {}
        return cls(path, settings, items, [])

    def has(self, record_id: str) -> bool:
        """Return whether the picture of a record exists."""
        return record_id in self.items and (self.path.parent / self.items[record_id]["file"]).is_file()

    def file_of(self, record_id: str) -> str:
        """Return the file name of a record's picture: its id, with a digest if the id is not a safe or unique name."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", record_id)[:100].strip(".") or "item"
        taken = {entry["file"].casefold() for other, entry in self.items.items() if other != record_id}
        if safe != record_id or f"{safe}.png".casefold() in taken:
            safe = f"{safe}-{hashlib.sha256(record_id.encode()).hexdigest()[:8]}"
        return f"{safe}.png"

    def write(self) -> None:
        """Write the file atomically."""
        content = {"settings": self.settings, "items": list(self.items.values()), "unreadable": self.unreadable}
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, self.path)


def _read_index(path: Path) -> dict[str, Any]:
    accepted = f"expected another --output, or a folder without {INDEX_FILE}"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OptionError(f"{path}: not JSON ({error}); {accepted}") from error
    entries = index.get("items") if isinstance(index, dict) and isinstance(index.get("settings"), dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and {"id", "file"} <= entry.keys() for entry in entries
    ):
        raise OptionError(f"{path}: not an index of heat maps; {accepted}")
    return index


def draw_heatmaps(
    checkpoint: str,
    tables: ProductTables,
    output: Path,
    options: HeatmapOptions,
    *,
    split: str = "test",
    device: str | None = None,
) -> dict[str, int]:
    """Draw a PNG for each product or query of a data set, and write index.json; existing pictures are kept.

    Args:
        checkpoint: folder or hub id of a Moon checkpoint.
        tables: the data set.
        output: the output folder; it is made if missing.
        options: the records to draw, and how.
        split (`str`): the split to draw from; "all" for all products and queries. Default "test".
        device (`str` or `None`): device of the model. Default: the first GPU, or else the CPU.

    Returns:
        The numbers of "drawn", "kept" and "unreadable" records.

    Raises:
        OptionError: nothing to draw, an unknown id, or a folder with pictures that were drawn with different settings.
        OutputError: a folder that cannot be written.
        TableError: no such split.
        CheckpointError: a checkpoint that cannot be used.
    """
    require_writable_folder("--output", output)
    records = _records(tables.select(split), split, options)
    model, processor = load_for_evaluation(checkpoint, device=device)
    output.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": str(checkpoint),
        "data": tables.name,
        "kind": options.kind,
        "reasoning": options.reasoning,
        "layers": None if options.layers is None else sorted(set(options.layers)),
        "relative": options.relative,
        "without_text": options.without_text or None,  # an index of an earlier version does not have the key
    }
    index = _Index.open(output, settings, overwrite=options.overwrite)
    wanted = [record for record in records if options.overwrite or not index.has(record["id"])]
    arguments: dict[str, Any] = {name: getattr(options, name) for name in ("reasoning", "layers", "relative")}
    for record in tqdm(wanted, desc="explain", unit=" records"):
        parts = [record, *_pictures_alone(record)] if options.without_text else [record]
        try:
            explanation, *alone = explain(model, processor, parts, **arguments)
        except ProductError as error:
            print(f"not drawn: {error}", file=sys.stderr)
            index.unreadable.append({"id": record["id"], "field": error.field, "reason": error.reason})
        else:
            name = index.file_of(record["id"])
            save_explanation(explanation, output / name, options.font, *alone)
            index.items[record["id"]] = {"file": name, **explanation.as_dict()}
            if alone:
                index.items[record["id"]]["without_text"] = alone[0].as_dict()
        index.write()
    failed = len(index.unreadable)
    return {"drawn": len(wanted) - failed, "kept": len(records) - len(wanted), "unreadable": failed}


def _pictures_alone(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the record with nothing but its pictures and their box; nothing for a record without pictures or text."""
    kept = {name: value for name, value in record.items() if name in ("id", "image", "images", "core_box") and value}
    has_pictures, has_text = {"image", "images"} & set(kept), set(record) - set(kept)
    return [kept] if has_pictures and any(record[name] for name in has_text) else []


def _records(tables: ProductTables, split: str, options: HeatmapOptions) -> list[dict[str, Any]]:
    """Return the records to explain, in the order of the table or of the ids."""
    rows: dict[str, Any] = (
        {row.query_id: row for row in tables.queries}
        if options.queries
        else {row.product_id: row for row in tables.products}
    )
    if options.ids is not None:
        for name in options.ids:
            if name not in rows:
                near = difflib.get_close_matches(name, rows, n=1)
                hint = f"; the nearest is {near[0]!r}" if near else ""
                raise OptionError(f"--ids: {tables.name}, split {split!r}: found no {options.kind} {name!r}{hint}")
        rows = {name: rows[name] for name in options.ids}
    if not rows:
        raise OptionError(f"{tables.name}, split {split!r}: found no {options.kind}; expected at least one")
    return [row.record() for row in list(rows.values())[: options.first]]
