"""Own the folder of a catalogue's vectors: its file names, the last complete state, and the reading of it.

    job.json          what the embedding job in work, or the last one, is asked for
    shards/           NNNNNN.parquet: vectors and errors, see `retrieval.vectors.shard_files`
    products.parquet  the facts of all products, sorted by id, see `retrieval.vectors.product_facts`
    complete.json     the last complete state: which shards belong to it; written last
    pictures/         pictures that the feed holds as bytes, see `retrieval.vectors.picture_folder`
    store/            a store, if `moon3 index` made one
    phrases/          what explanations of matches keep, see `retrieval.explanation.phrase_dictionary`
    work/, embed.lock what a job in work keeps; no part of a state

A job adds shards under new names and replaces complete.json at its end. Until then readers see the state before it, also
after the job was killed. Our design; the precedent is the manifest of table formats such as Delta Lake and Iceberg.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute

from product_data.atomic_files import PARTIAL, write_atomically
from retrieval.stores.interface import StoredProduct
from retrieval.vectors.picture_folder import PictureFolder
from retrieval.vectors.product_facts import read_products
from retrieval.vectors.shard_files import VectorFileError, check_vectors, read_shard
from retrieval.vectors.vector_types import unit_vectors

FORMAT = 1
"""Version of the folder's layout."""
JOB, COMPLETE, LOCK = "job.json", "complete.json", "embed.lock"
_SHARD = re.compile(r"\d{6,}\.parquet")


@dataclass(frozen=True)
class Embedding:
    """What made the vectors of a folder.

    Args:
        model (`str`): place of the model, as it was given.
        fingerprint (`str`): of the model, see `retrieval.vectors.fingerprint`.
        settings: what else a vector depends on: reasoning, vector_dtype, ….
        forms: forms that products are embedded in.
        dtype (`str`): type of the stored vectors, one of `retrieval.vectors.vector_types.DTYPES`.
        dimension (`int`): of the vectors; 0 until the first vector is made.
    """

    model: str
    fingerprint: str
    settings: dict[str, Any]
    forms: tuple[str, ...]
    dtype: str
    dimension: int = 0


@dataclass(frozen=True)
class State:
    """A complete state of a folder.

    Args:
        embedding: what made its vectors.
        shards: name → (rows, bytes) of its shards.
        next_shard (`int`): number of the first shard that is younger than this state.
        products, products_bytes (`int`): number of products, and size of their file.
        vectors: form → number of vectors.
        errors (`int`): number of products that have an error in a form.
    """

    embedding: Embedding
    shards: dict[str, tuple[int, int]] = field(default_factory=dict)
    next_shard: int = 0
    products: int = 0
    products_bytes: int = 0
    vectors: dict[str, int] = field(default_factory=dict)
    errors: int = 0


class VectorFolder:
    """The folder of a catalogue's vectors, as `moon3 embed` writes it.

    `state` is the last complete state, `None` before the first one; `embedding` is what made its vectors, or, before the
    first complete state, what the job in work is asked for.

    Args:
        path: the folder.

    Raises:
        VectorFileError: not such a folder, a folder of another format, or a complete.json or job.json that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.state = self._read_state()
        found = self.state.embedding if self.state else self._read_job()
        if found is None:
            raise VectorFileError(
                f"{self.path}: found neither {self.complete_file.name} nor {self.job_file.name}; expected a folder that "
                "moon3 embed wrote"
            )
        self.embedding = found

    @property
    def job_file(self) -> Path:
        """Return the file of the job's settings."""
        return self.path / JOB

    @property
    def complete_file(self) -> Path:
        """Return the file of the last complete state."""
        return self.path / COMPLETE

    @property
    def products_file(self) -> Path:
        """Return the file of the products' facts."""
        return self.path / "products.parquet"

    @property
    def shards_folder(self) -> Path:
        """Return the folder of the shards."""
        return self.path / "shards"

    @property
    def store_folder(self) -> Path:
        """Return the folder of the store, which need not exist."""
        return self.path / "store"

    @property
    def pictures(self) -> PictureFolder:
        """Return the folder of pictures that a feed holds as bytes."""
        return PictureFolder(self.path / "pictures")

    @property
    def phrases_folder(self) -> Path:
        """Return the folder of what explanations of matches keep, which need not exist."""
        return self.path / "phrases"

    @property
    def work_folder(self) -> Path:
        """Return the folder of what a job in work keeps."""
        return self.path / "work"

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the model that made the vectors."""
        return self.embedding.fingerprint

    @property
    def dimension(self) -> int:
        """Return the dimension of the vectors."""
        return self.embedding.dimension

    @property
    def forms(self) -> tuple[str, ...]:
        """Return the forms that products are embedded in."""
        return self.embedding.forms

    @property
    def complete(self) -> bool:
        """Return whether the folder has a complete state."""
        return self.state is not None

    def products(self) -> Iterator[StoredProduct]:
        """Yield the facts of all products in the order of ids, also of those whose vectors have an error.

        Raises:
            VectorFileError: no complete state, or a file that does not belong to it.
        """
        state = self.require_state()
        size = self.products_file.stat().st_size if self.products_file.is_file() else None
        if size != state.products_bytes:
            raise VectorFileError(
                f"{self.products_file}: found {'no file' if size is None else f'{size} bytes'}; expected the "
                f"{state.products_bytes} bytes that {self.complete_file.name} names. Run moon3 embed again"
            )
        yield from read_products(self.products_file)

    def vectors(self, form: str) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield the vectors of one form, shard by shard.

        Yields: N product ids, and their (N, D) float32 unit vectors.

        Raises:
            VectorFileError: no complete state, a form that products were not embedded in, or a shard that is missing, torn
                or does not belong to the state.
        """
        columns = ("product_id", "form", "error", "vector", *(("scale",) if self.embedding.dtype == "int8" else ()))
        if form not in self.forms:
            raise VectorFileError(f"{self.path}: found no form {form!r}; expected one of {', '.join(self.forms)}")
        for path in self.shards():
            rows = read_shard(path, columns)
            check_vectors(path, rows, self.embedding.dtype, self.dimension)
            is_wanted = pyarrow.compute.and_(
                pyarrow.compute.equal(rows["form"], form), pyarrow.compute.is_null(rows["error"])
            )
            rows = rows.filter(is_wanted)
            if len(rows):
                yield rows["product_id"].to_pylist(), unit_vectors(rows)

    def errors(self) -> Iterator[tuple[str, str, str]]:
        """Yield (product id, form, reason) of each vector that could not be made.

        Raises:
            VectorFileError: as for `vectors`.
        """
        for path in self.shards():
            rows = read_shard(path, ("product_id", "form", "error"))
            rows = rows.filter(pyarrow.compute.is_valid(rows["error"]))
            yield from zip(*(rows[name].to_pylist() for name in ("product_id", "form", "error")), strict=True)

    def shards(self) -> list[Path]:
        """Return the shards of the last complete state.

        Raises:
            VectorFileError: no complete state, or a shard that is missing or has another size.
        """
        paths = []
        for name, (_, size) in self.require_state().shards.items():
            paths.append(path := self.shards_folder / name)
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                raise VectorFileError(
                    f"{path}: found {'no file' if found is None else f'{found} bytes'}; expected the {size} bytes that "
                    f"{self.complete_file.name} names. Remove the shard and {self.complete_file.name}; moon3 embed then "
                    "makes its vectors again"
                )
        return paths

    def require_state(self) -> State:
        """Return the last complete state.

        Raises:
            VectorFileError: there is none yet.
        """
        if self.state is None:
            raise VectorFileError(
                f"{self.path}: the embedding job has not finished: {self.complete_file.name} is missing; expected a "
                "complete job: run the same moon3 embed again, which goes on"
            )
        return self.state

    def all_shards(self) -> list[Path]:
        """Return all shards, also those of a job in work, by number.

        Raises:
            VectorFileError: a file in the shards' folder that is not a shard by its name.
        """
        files = sorted(self.shards_folder.iterdir()) if self.shards_folder.is_dir() else []
        files = [file for file in files if not file.name.endswith(PARTIAL)]
        if foreign := [file for file in files if not _SHARD.fullmatch(file.name)]:
            raise VectorFileError(
                f"{foreign[0]}: found a file that is not a shard; expected names such as 000000.parquet. "
                "Move it out of this folder"
            )
        return sorted(files, key=shard_number)

    def shard(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.shards_folder / f"{number:06}.parquet"

    def write_job(self, embedding: Embedding) -> None:
        """Write what the job is asked for."""
        self.shards_folder.mkdir(parents=True, exist_ok=True)
        _write(self.job_file, asdict(embedding))
        if self.state is None:
            self.embedding = embedding

    def write_state(self, state: State) -> None:
        """Write a complete state, after all its files."""
        _write(self.complete_file, asdict(state))
        self.state, self.embedding = state, state.embedding

    def remove_leftovers(self) -> None:
        """Remove the work folder, files that were not written whole, and shards that the last state replaced."""
        shutil.rmtree(self.work_folder, ignore_errors=True)
        for partial in [*self.path.glob(f"*{PARTIAL}"), *self.shards_folder.glob(f"*{PARTIAL}")]:
            partial.unlink()
        if self.state:
            for path in self.all_shards():
                if path.name not in self.state.shards and shard_number(path) < self.state.next_shard:
                    path.unlink()

    def _read_job(self) -> Embedding | None:
        values = _read(self.job_file)
        return None if values is None else _embedding(values, self.job_file)

    def _read_state(self) -> State | None:
        values = _read(self.complete_file)
        if values is None:
            return None
        try:
            embedding = _embedding(values.pop("embedding"), self.complete_file)
            shards = {name: (rows, size) for name, (rows, size) in values.pop("shards").items()}
            return State(embedding, shards, **values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(self.complete_file, error) from error


def shard_number(path: Path) -> int:
    """Return the number of a shard."""
    return int(path.stem)


def is_vector_folder(path: str | Path) -> bool:
    """Return whether a path is a folder that `moon3 embed` wrote."""
    return any((Path(path) / name).is_file() for name in (COMPLETE, JOB))


def open_or_create(path: str | Path, embedding: Embedding) -> VectorFolder:
    """Return the folder of vectors; a new one, or an empty folder, gets the job's settings.

    Raises:
        VectorFileError: a file, or a folder with other contents.
    """
    folder = Path(path)
    if not is_vector_folder(folder):
        names = sorted(file.name for file in folder.iterdir() if file.name != LOCK) if folder.is_dir() else []
        if names or (folder.exists() and not folder.is_dir()):
            raise VectorFileError(
                f"{folder}: found {names[0] if names else 'a file'}; expected a new or empty folder, or one that moon3 "
                "embed wrote"
            )
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / JOB, asdict(embedding))
    return VectorFolder(folder)


def _write(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, json.dumps({"format": FORMAT} | values, indent=1, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    """Return the values of a file of this folder; `None` if there is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(version, int):
        raise _unreadable(path, TypeError(f"format {version!r}"))
    if version != FORMAT:
        raise VectorFileError(
            f"{path}: found format {version}; expected format {FORMAT}. "
            + ("Use the moon3 that wrote it, or a newer one" if version > FORMAT else "Embed into a new folder")
        )
    return values


def _embedding(values: dict[str, Any], path: Path) -> Embedding:
    try:
        return Embedding(**values | {"forms": tuple(values["forms"])})
    except (KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> VectorFileError:
    return VectorFileError(
        f"{path}: cannot be read ({type(error).__name__}: {error}); expected the file that moon3 embed wrote"
    )
