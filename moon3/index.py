"""Make or update the store of a catalogue's vectors, for searching with filters and words."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("vectors", type=Path, metavar="VECTORS", help="folder that moon3 embed wrote")
    parser.add_argument(
        "--store", help="folder of the store, or qdrant=URL/COLLECTION (default: the folder store in VECTORS)"
    )


def run(chosen: argparse.Namespace) -> None:
    """Write what differs, compact, and print what was decided."""
    from retrieval.stores.opening import create_store, sync
    from retrieval.vector_files import VectorFolder

    folder = VectorFolder(chosen.vectors)
    folder.require_state()
    store = create_store(chosen.store or folder.store_folder, folder.dimension, folder.fingerprint)
    try:
        print(f"{store.about}: {sync(store, folder)}")
    finally:
        store.close()
