"""Make a Qwen2.5-VL base whose text model is a real language model, for upcycling."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from training.model.upcycle import DTYPES

    parser.add_argument(
        "--text",
        required=True,
        help="the language model (Qwen2, Llama or Mistral without sliding window): folder or hub id of a checkpoint in "
        "safetensors, or a GGUF file",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--layers", type=int, help="number of layers to keep, from the bottom (default: all)")
    parser.add_argument(
        "--prune-vocabulary",
        nargs="+",
        metavar="CORPUS",
        help="keep the tokens of these corpora only: text files, or folders or files of product tables",
    )
    parser.add_argument(
        "--vision",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="sizes of a random vision tower: hidden_size=256 depth=4 max_image_tokens=256 min_image_tokens=4 (the "
        "defaults); or the folder or hub id of a Qwen2.5-VL checkpoint",
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="data type of the weights (default: that of the text model)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="JSON",
        help="compare the base, and the Moon checkpoints upcycled from it, with the language model; add the figures to "
        "this file; exit with status 1 if they differ",
    )


def run(chosen: argparse.Namespace) -> int:
    """Write the base, and compare it with the language model on request."""
    from product_data.outputs import require_writable_file, require_writable_folder
    from training.model.text_base import make_text_base

    require_writable_folder("--out", chosen.out)
    require_writable_file("--check", chosen.check)
    options = {name: getattr(chosen, name) for name in ("layers", "dtype", "seed", "overwrite")}
    vision = vision_of(chosen.vision)
    path = make_text_base(chosen.text, chosen.out, corpus=chosen.prune_vocabulary, vision=vision, **options)
    print(f"wrote {path}")
    if chosen.check is None:
        return 0
    from training.studies.real_base import compare, record, summary

    result = compare(chosen.text, path, layers=chosen.layers, corpus=chosen.prune_vocabulary)
    record(result, chosen.check)
    print(summary(result))
    return 0 if result["equal"] else 1


def vision_of(words: list[str]) -> dict[str, int] | str | None:
    """Return sizes from KEY=VALUE words, a checkpoint from a single word, or None without words.

    Raises:
        OptionError: several words of which one is not KEY=VALUE, or a value that is not a whole number.
    """
    from product_data.errors import OptionError

    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    sizes = {}
    for word in words:
        key, _, value = word.partition("=")
        if not value.isdecimal():
            raise OptionError(f"--vision: found {word!r}; expected KEY=VALUE with a whole number, such as depth=4")
        sizes[key] = int(value)
    return sizes or None
