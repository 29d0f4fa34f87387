"""Compute the fingerprint of what makes a vector: a model's weights, configuration and processor, and the settings.

Vectors can be compared only if their models have the same fingerprint. A store and a folder of vectors therefore name the
model's fingerprint, and each vector of a folder names model and settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from tqdm import tqdm

from product_data.atomic_files import write_atomically
from retrieval.model_kinds import KINDS, CheckpointError, named_kind, require_loadable

CODE_VERSION = 1
"""Part of every fingerprint. Raise it with a change of this project that changes the vectors of an unchanged checkpoint."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_SETTINGS = (".json", ".jinja", ".txt", ".model", ".spm")
_GRAPH = ".onnx"
"""Weights of a folder that has no others; beside others it is a copy in another format."""
_PICTURE_SETTINGS = "preprocessor_config.json"
_UNREAD = ("model_card.json", "generation_config.json", "trainer_state.json", "training_args.bin", "optimizer.pt")
_UNREAD_STARTS = ("rng_state", "scheduler", "contrastive_state")
_OF_SAVING = ("_name_or_path", "_commit_hash", "transformers_version")
"""Keys of config.json that tell how a checkpoint was saved."""
_CACHED_FROM_BYTES = 1 << 26
_READ_BYTES = 1 << 22


def model_fingerprint(model: str | Path) -> str:
    """Return 32 hex digits that identify a model and its processor.

    A folder: SHA-256 of its weight files, its configuration without the keys of saving, and its processor's files; its name
    is no part. A file: its SHA-256. A hub id: the name and the commit, which name all files. "clip=PLACE": the kind, and the
    fingerprints of its places.
    The hash of a large weight file is kept in the user's cache, by the file's path, size and time.

    Args:
        model: folder or hub id; or a kind and its place, see `retrieval.model_kinds`.

    Raises:
        CheckpointError: no such folder or hub id, or a folder without weights.
    """
    require_loadable(model)
    kind, whole = named_kind(model) or ("", str(model))
    digest = hashlib.sha256(f"{CODE_VERSION}\0{kind}\0".encode())
    more, places = KINDS[kind].places(whole) if kind else ("", [whole])
    digest.update(more.encode())
    for place in places:
        _add_place(digest, place)
    return digest.hexdigest()[:32]


def _add_place(digest: Any, place: str) -> None:
    path = Path(place)
    if path.is_dir():
        for name, contents in _digests(path):
            digest.update(f"{name}\0{contents}\0".encode())
    elif path.is_file():
        for file in (path, path.with_name(_PICTURE_SETTINGS)):
            digest.update(f"{file_digest(file) if file.is_file() else None}\0".encode())
    elif place:
        digest.update(f"{place}@{_commit(place)}".encode())


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return 16 hex digits that identify settings: JSON values, regardless of their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def vector_fingerprint(fingerprint: str, settings: Mapping[str, Any]) -> str:
    """Return what a vector's row names: the model's fingerprint, a hyphen, and the digest of the settings."""
    return f"{fingerprint}-{settings_digest(settings)}"


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and digest of each file that a vector depends on, in the order of names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _matters(path))
    if not any(path.suffix in _WEIGHTS for path in files):
        graphs = [path for path in folder.rglob(f"*{_GRAPH}") if path.is_file()]
        if not graphs:
            raise CheckpointError(f"{folder}: found no weights ({', '.join(_WEIGHTS)}); expected a saved checkpoint")
        files = sorted([*files, *graphs])
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.name == "config.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: value for key, value in values.items() if key not in _OF_SAVING}
            yield name, hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
        else:
            yield name, file_digest(path)


def _matters(path: Path) -> bool:
    if path.name in _UNREAD or path.name.startswith(_UNREAD_STARTS):
        return False
    return path.suffix in (*_WEIGHTS, *_SETTINGS)


def _commit(name: str) -> str:
    """Return the commit of a hub id: the newest one, or offline the one in the local cache."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        config = Path(huggingface_hub.hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{name}: found neither a folder nor a model on the hub ({error})") from error
    return config.parent.name


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; that of a large file is kept in the user's cache, by path, size and time."""
    state = path.stat()
    if state.st_size < _CACHED_FROM_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    cache, key = _cache_file(), str(path.resolve())
    known = _read_cache(cache)
    entry = [state.st_size, state.st_mtime_ns]
    if known.get(key, [])[:2] == entry:
        return str(known[key][2])
    digest = hashlib.sha256()
    bar = tqdm(total=state.st_size, desc=f"read {path.name}", unit="B", unit_scale=True, delay=3.0)
    with path.open("rb") as stream, bar:
        while part := stream.read(_READ_BYTES):
            digest.update(part)
            bar.update(len(part))
    with contextlib.suppress(OSError):  # a home that cannot be written: the next run reads the file again
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, json.dumps(_read_cache(cache) | {key: [*entry, digest.hexdigest()]}, indent=1))
    return digest.hexdigest()


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moon" / "fingerprints.json"


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
