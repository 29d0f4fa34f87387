"""Publish a checkpoint: check that it is complete and may be published, then upload it or copy it into a folder."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from model_cards.facts import FACTS_FILE, README_FILE, CardError, read_card
from model_cards.licences import why_not_published
from model_cards.metadata import HUB_ID, community_problems, problems_of
from model_cards.rendering import MARK, render

NOT_PUBLISHED = ("*.partial", "*.pyc", "*/__pycache__/*", "__pycache__/*", ".git/*", ".cache/*", "complete.json") + (
    "optimizer.*",
    "scheduler.*",
    "scaler.*",
    "rng_state*",
    "trainer_state.json",
    "training_args.bin",
    "events.out.*",
)
"""Patterns of files in a checkpoint's folder that are not published."""
_NEEDED = {
    "moon": (
        "config.json",
        "processor_config.json",
        "tokenizer.json",
        "modules.json",
        "config_sentence_transformers.json",
    ),
    "dual_tower": ("config.json", "processor_config.json", "tokenizer.json"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
}
_IMPORTED = re.compile(r"^\s*from \.(\w+) import", flags=re.MULTILINE)


def files_of(folder: Path) -> list[Path]:
    """Return the published files of a checkpoint, sorted, as paths relative to its folder.

    Args:
        folder: the checkpoint.
    """
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [name for name in names if not any(fnmatch.fnmatch(name.as_posix(), pattern) for pattern in NOT_PUBLISHED)]


def missing_files(folder: Path, kind: str) -> list[str]:
    """Return the names of missing files that a checkpoint needs to load elsewhere.

    Args:
        folder: the checkpoint.
        kind: as in `model_cards.facts.Card`.
    """
    needed = {*_NEEDED[kind]}
    if kind != "adapter":
        index = folder / "model.safetensors.index.json"
        needed |= {*_json(index)["weight_map"].values()} if index.is_file() else {"model.safetensors"}
        config = _json(folder / "config.json")
        auto = [
            *config.get("auto_map", {}).values(),
            *_json(folder / "processor_config.json").get("auto_map", {}).values(),
        ]
        needed |= _code(folder, {name.partition(".")[0] for name in auto})
    if kind == "moon" and (folder / "modules.json").is_file():
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        types = [module["type"] for module in modules]
        needed |= _code(folder, {name.partition(".")[0] for name in types if name.count(".") == 1})
    return sorted(name for name in needed if not (folder / name).is_file())


def _code(folder: Path, modules: set[str]) -> set[str]:
    """Return the files of modules, and of all modules in the folder that they import."""
    found: set[str] = set()
    while modules:
        name = modules.pop()
        found.add(name)
        path = folder / f"{name}.py"
        if path.is_file():
            modules |= {*_IMPORTED.findall(path.read_text(encoding="utf-8"))} - found
    return {f"{name}.py" for name in found}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def prepare_files(folder: Path, source: str) -> dict[str, Path | bytes]:
    """Return the files to publish: each relative path with its file, or with its content if it is rendered here.

    A rendered card is rendered again with the new name of the checkpoint; a user's own README.md is not changed.

    Args:
        folder: the checkpoint.
        source: the id on the hub or the name of the folder that the code on the card loads; also the heading of the card.

    Raises:
        CardError: the folder is not a checkpoint, lacks files, is an adapter over a base that only this machine has, has
            data whose licences do not allow publishing, or has metadata that the hub would refuse.
    """
    if not folder.is_dir():
        raise CardError(f"{folder}: found no folder; expected a checkpoint")
    card = read_card(folder)
    if card is None or not (folder / README_FILE).is_file():
        lacking = FACTS_FILE if card is None else README_FILE
        raise CardError(f"{folder}: found no {lacking}; expected a checkpoint with a card, which moon3 card writes")
    missing = missing_files(folder, card.kind)
    if missing:
        raise CardError(f"{folder}: found no {', '.join(missing)}; expected all files that loading needs")
    if card.kind == "adapter" and not HUB_ID.fullmatch(card.adapter_base or ""):
        raise CardError(
            f"{folder}: found an adapter over {card.adapter_base!r}, which is not on the hub; expected the model with the "
            "merged adapter, which the same training wrote"
        )
    refused = why_not_published(card)
    if refused:
        raise CardError("\n".join([f"{folder} cannot be published:", *(f"- {sentence}" for sentence in refused)]))
    files: dict[str, Path | bytes] = {name.as_posix(): folder / name for name in files_of(folder)}
    text = (folder / README_FILE).read_text(encoding="utf-8")
    if MARK in text:
        card = dataclasses.replace(card, name=source.rpartition("/")[2], source=source)
        text = render(card)
        files |= {README_FILE: text.encode(), FACTS_FILE: card.to_json().encode()}
    problems = [*problems_of(text), *community_problems(folder)]
    if problems:
        raise CardError(
            "\n".join([f"the hub would refuse {folder / README_FILE}:", *(f"- {text}" for text in problems)])
        )
    return files


def size_of(content: Path | bytes) -> int:
    """Return the size of a file in bytes.

    Args:
        content: a value of `prepare_files`.
    """
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def push_to_folder(files: dict[str, Path | bytes], target: Path) -> None:
    """Copy a checkpoint into a folder; the folder appears only when it is complete.

    Args:
        files: from `prepare_files`.
        target: the folder, which is empty or does not exist.

    Raises:
        CardError: the target is a file, or a folder that is not empty.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CardError(f"{target}: found a file, or a folder that is not empty; expected the name of a new folder")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, content in files.items():
            place = partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                place.write_bytes(content)
            else:
                shutil.copyfile(content, place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        target.rmdir()
    partial.rename(target)


def check_hub_id(name: str) -> str:
    """Return an id for the hub, after checking it.

    Raises:
        CardError: the hub does not accept the name.
    """
    if not HUB_ID.fullmatch(name) or "--" in name or ".." in name:
        raise CardError(f"found {name!r}; expected an id on the hub, ORGANISATION/NAME")
    return name


def push_to_hub(
    files: dict[str, Path | bytes], repository: str, *, private: bool = False, api: HfApi | None = None
) -> str:
    """Upload a checkpoint in one commit and return its URL.

    Args:
        files: from `prepare_files`.
        repository: id on the hub; the repository is created if it does not exist.
        private (`bool`): whether a new repository is private. Default False.
        api: a client for the hub. Default: a client with the token of `hf auth login`.
    """
    api = api or HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    return str(
        api.create_commit(repository, operations, commit_message="Upload a Moon checkpoint with its card").repo_url
    )
