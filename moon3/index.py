"""Make or update the store of a catalogue's vectors, for searching with filters and words."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import add_device

ORDER = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("vectors", type=Path, metavar="VECTORS", help="folder that moon3 embed wrote")
    parser.add_argument(
        "--store", help="folder of the store, or qdrant=URL/COLLECTION (default: the folder store in VECTORS)"
    )
    parser.add_argument(
        "--centre",
        action="store_true",
        help="print what centring by form changes, and make a new store that subtracts the mean of texts, pictures and both",
    )
    parser.add_argument(
        "--dim",
        type=int,
        help="keep the first DIM numbers of each vector, for a model with Matryoshka widths (default: as the store, or all)",
    )
    parser.add_argument("--model", help="with --centre, the place of the model (default: the one that VECTORS names)")
    add_device(parser)


def run(chosen: argparse.Namespace) -> None:
    """Write what differs, compact, and print what was decided."""
    from product_data.errors import OptionError
    from retrieval.stores.opening import create_store, folder_centring, sync, width_of_store
    from retrieval.vectors.vector_files import VectorFolder

    if chosen.model is not None and not chosen.centre:
        raise OptionError("--model: found no --centre; expected both: only the effect of centring needs the model")
    folder = VectorFolder(chosen.vectors)
    folder.require_state()
    place = chosen.store or folder.store_folder
    dimension = width_of_store(place, folder) if chosen.dim is None else chosen.dim
    if not 1 <= dimension <= folder.dimension:
        raise OptionError(f"--dim: found {dimension}; expected 1 to {folder.dimension}, the width of the vectors")
    if chosen.centre and dimension < folder.dimension:
        raise OptionError("--dim: found --centre; expected one of them: the means are those of whole vectors")
    centring = None
    if chosen.centre:
        import evaluation.baselines  # noqa: F401 - registers the kinds of models
        from evaluation.centring_effect import centring_effect
        from evaluation.mixed_galleries import mixed_gallery_table

        centring = folder_centring(folder)
        print(mixed_gallery_table(centring_effect(folder, centring, model=chosen.model, device=chosen.device)))
    store = create_store(place, dimension, folder.fingerprint, centring)
    try:
        print(f"{store.about}: {sync(store, folder)}")
    finally:
        store.close()
