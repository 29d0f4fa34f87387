"""Make enriched titles and new pictures of products for training, as in MOON2.0."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moon3._arguments import TABLES, add_device, add_images_root, add_reading, reading_of

ORDER = 39


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("tables", help=TABLES)
    parser.add_argument(
        "--output", required=True, type=Path, help="folder for the variants; recipes find TABLES/co_augmentation"
    )
    parser.add_argument("--model", help="checkpoint that scores how well picture and title agree (default: no scores)")
    parser.add_argument(
        "--tolerance", type=float, help="keep a variant whose score is at most this below the original's (default: .1)"
    )
    parser.add_argument(
        "--editor",
        default="embedded",
        help="embedded (default), or package.module:function, which maps (picture, instruction) to a picture",
    )
    parser.add_argument(
        "--writer",
        help="writes titles: folder or hub id of a chat model, or package.module:function (default: templates)",
    )
    parser.add_argument("--views", type=int, default=3, help="new pictures of each product (default: 3)")
    parser.add_argument("--titles", type=int, default=2, help="new titles of each product (default: 2)")
    parser.add_argument("--saliency", type=Path, metavar="FILE", help="ONNX file of a U²-Net that cuts products out")
    parser.add_argument("--split", help="the training split (default: train if the tables have it, otherwise all)")
    parser.add_argument("--limit", type=int, help="only the first LIMIT products")
    parser.add_argument("--batch-size", type=int, default=16, help="products of a batch (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: 0)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw what was made into this PNG file")
    parser.add_argument("--sheet-products", type=int, default=12, help="products of the sheet (default: 12)")
    parser.add_argument("--allow-urls", action="store_true", help="download pictures from public hosts")
    parser.add_argument("--overwrite", action="store_true", help="delete variants of other settings")
    parser.add_argument("--quiet", action="store_true", help="hide the progress bar")
    add_device(parser)
    add_images_root(parser)
    add_reading(parser)


def run(chosen: argparse.Namespace) -> int:
    """Make the variants and print the counts. Return 1 if a picture cannot be opened."""
    from evaluation.variant_sheet import variant_sheet
    from product_data.co_augmentation.variant_files import VariantFolder
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_file, require_writable_folder
    from product_data.tables import load_tables
    from training.co_augmentation.editors import open_editor
    from training.co_augmentation.making import MakingOptions, make_variants

    names = ("output", "views", "titles", "batch_size", "seed", "allow_urls", "overwrite")
    options = MakingOptions(**{name: getattr(chosen, name) for name in names}, progress=not chosen.quiet)
    for name in ("limit", "sheet_products"):
        if getattr(chosen, name) is not None and getattr(chosen, name) < 1:
            raise OptionError(f"--{name.replace('_', '-')}: found {getattr(chosen, name)}; expected 1 or more")
    require_writable_folder("--output", chosen.output)
    require_writable_file("--sheet", chosen.sheet)
    tables = load_tables(chosen.tables, images_root=chosen.images_root, reading=reading_of(chosen))
    tables.report.raise_if_fatal()
    split = chosen.split or ("train" if "train" in {row.split for row in tables.products} else None)
    products = tables.select(split).products[: chosen.limit]
    made = make_variants(
        tables.name,
        products,
        options,
        editor=open_editor(chosen.editor, _saliency(chosen)),
        consistency=_consistency(chosen),
        **_writer(chosen),
    )
    print(f"{chosen.output}: {made}")
    if chosen.sheet is not None:
        folder = VariantFolder(chosen.output)
        print(variant_sheet(folder, products, chosen.sheet, most=chosen.sheet_products))
    return int(made.unreadable_count > 0)


def _saliency(chosen: argparse.Namespace) -> Any:
    from product_data.core_boxes.saliency import SaliencyDetector

    return None if chosen.saliency is None else SaliencyDetector(chosen.saliency)


def _consistency(chosen: argparse.Namespace) -> Any:
    import evaluation.baselines  # noqa: F401  makes peers available
    from product_data.errors import OptionError
    from training.co_augmentation.consistency import TOLERANCE, Consistency

    if chosen.model is None:
        if chosen.tolerance is not None:
            raise OptionError("--tolerance: found it without --model; expected the checkpoint that scores")
        print("no --model: variants are kept without a score")
        return None
    tolerance = TOLERANCE if chosen.tolerance is None else chosen.tolerance
    return Consistency(chosen.model, tolerance, chosen.device)


def _writer(chosen: argparse.Namespace) -> dict[str, Any]:
    from product_data.errors import OptionError
    from training.co_augmentation.editors import load_callable
    from training.labels.chat_writer import load_writer

    if chosen.writer is None:
        return {}
    if not chosen.titles:
        raise OptionError("--writer: found it with --titles 0; expected at least one title")
    if ":" in chosen.writer:
        signature = "(questions, seeds) → answers, see training.labels.journal.Writer"
        writer: Any = load_callable("--writer", chosen.writer, signature, 2)
    else:
        writer = load_writer(chosen.writer, chosen.device)
    return {"writer": writer, "writer_name": chosen.writer}
