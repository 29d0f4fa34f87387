"""Publish a checkpoint on the Hugging Face hub, or copy all its files into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 97


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint with its card")
    parser.add_argument("repository", nargs="?", metavar="ORGANISATION/NAME", help="id of the repository on the hub")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="copy the files into a new folder instead of uploading them"
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private if it does not exist")
    parser.add_argument("--dry-run", action="store_true", help="check everything and list the files with their sizes")


def run(chosen: argparse.Namespace) -> None:
    """Check licences, files and metadata, then publish."""
    from model_cards.facts import CardError
    from model_cards.publishing import check_hub_id, prepare_files, push_to_folder, push_to_hub, size_of
    from product_data.outputs import require_writable_folder

    if chosen.repository is None and chosen.to is None:
        raise CardError("ORGANISATION/NAME and --to FOLDER are both missing; expected one of them")
    if chosen.repository is not None:
        check_hub_id(chosen.repository)
    require_writable_folder("--to", chosen.to)
    files = prepare_files(chosen.checkpoint, chosen.repository or chosen.to.name)
    for name, content in files.items():
        print(f"{size_of(content):>15,}  {name}")
    total = f"{len(files)} files, {sum(map(size_of, files.values())):,} bytes"
    if chosen.dry_run:
        print(f"{total}; nothing was published (--dry-run)")
    elif chosen.to is not None:
        push_to_folder(files, chosen.to)
        print(f"copied {total} to {chosen.to}")
    else:
        print(f"published {total} at {push_to_hub(files, chosen.repository, private=chosen.private)}")
