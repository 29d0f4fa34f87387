"""Measure what a chat model writes about products: share parsed, agreement with labels, cost."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 152


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", required=True, help="folder or hub id of a chat model, or a GGUF file")
    parser.add_argument("--data", required=True, nargs="+", help="data folders or products files with labels")
    parser.add_argument("--products", type=int, default=32, help="number of products of each data set (default: 32)")
    parser.add_argument("--attempts", type=int, default=2, help="attempts for an unreadable answer (default: 2)")
    parser.add_argument("--batch-size", type=int, default=8, help="number of questions in a batch (default: 8)")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="maximum length of an answer (default: 96)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn products and of second attempts")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if available)")
    parser.add_argument("--output", type=Path, default=Path("results/annotations.json"))
    parser.add_argument("--run-folder", type=Path, default=Path("runs/annotation_study"))
    parser.add_argument("--overwrite", action="store_true", help="delete answers of another model or setting")


def run(chosen: argparse.Namespace) -> None:
    """Ask the model, measure, and print the page."""
    from training.labels.chat_writer import load_writer
    from training.studies.annotation_study import AnnotationStudy, study

    names = ("products", "attempts", "batch_size", "seed", "overwrite")
    model = Path(chosen.model).name if Path(chosen.model).exists() else chosen.model
    options = AnnotationStudy(model, **{name: getattr(chosen, name) for name in names})
    study(
        chosen.data,
        lambda: load_writer(chosen.model, chosen.device, chosen.max_new_tokens),
        options,
        chosen.output,
        chosen.run_folder,
    )
    print(chosen.output.with_suffix(".md").read_text(encoding="utf-8"))
