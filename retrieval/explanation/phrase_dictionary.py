"""Make what explanations of a store's matches need: its phrases as words, and readers of its products' vectors; keep both.

Shape suffixes: P phrases, N products, D embedding.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from product_data.atomic_files import file_written_whole
from retrieval.explanation.phrases import (
    ExplanationError,
    Phrase,
    collect_phrases,
    embed_phrases,
    phrases_of,
)
from retrieval.explanation.value_readers import Sums, ValueReaders, stated_values
from retrieval.stores.interface import Store
from retrieval.vectors.vector_types import shortened

MOST_PRODUCTS = 20_000
"""Number of products that readers are fitted to; of a larger catalogue products at equal distances in the order of ids."""


@dataclass
class PhraseDictionary:
    """The phrases of a store, as words and as readers of its products' vectors.

    Args:
        phrases: P phrases.
        word_PD: (P, D) float32 unit vectors of the phrases' values as queries.
        product_ids: ids of the products that readers are fitted to.
        value_NP: (N, P) their stated values, sparse.
        store: the store.
        folder: folder that keeps the readers. Default `None`: memory.
    """

    phrases: tuple[Phrase, ...]
    word_PD: np.ndarray
    product_ids: list[str]
    value_NP: Any
    store: Store
    folder: Path | None = None
    _readers: dict[str, ValueReaders] = field(default_factory=dict)
    _places: dict[str, dict[str, int]] = field(default_factory=dict)

    @cached_property
    def row(self) -> dict[Phrase, int]:
        """The row of each phrase."""
        return {phrase: row for row, phrase in enumerate(self.phrases)}

    def places(self, form: str) -> dict[str, int]:
        """Return the row of each product that the readers of a form are fitted to."""
        self.readers(form)
        return self._places[form]

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the phrases, in alphabetical order."""
        return sorted({phrase.key for phrase in self.phrases})

    @cached_property
    def key_numbers(self) -> np.ndarray:
        """The number of each phrase's key, as (P,) int64."""
        number = {key: place for place, key in enumerate(self.keys)}
        return np.array([number[phrase.key] for phrase in self.phrases])

    @cached_property
    def word_mean(self) -> np.ndarray:
        """The mean of the phrases' values as queries, as (D,) float64."""
        return self.word_PD.mean(axis=0, dtype=np.float64)

    @cached_property
    def word_atoms(self) -> np.ndarray:
        """The phrases' words minus their mean, as (P, D) float64 unit vectors; 0 for a vector that is the mean."""
        return unit_or_zero(self.word_PD - self.word_mean)

    @property
    def forms(self) -> list[str]:
        """The forms of the store's products, "mm" first."""
        return [form for form in ("mm", "t", "i") if form in self.store.forms]

    def readers(self, form: str) -> ValueReaders:
        """Return the readers of the vectors of a form; made once for a state of the store's vectors.

        Args:
            form (`str`): one of `forms`.

        Raises:
            ExplanationError: an unknown form, or a kept file that cannot be read.
        """
        if form not in self.forms:
            raise ExplanationError(f"form: found {form!r}; expected one of the store's forms: {', '.join(self.forms)}")
        if form not in self._readers:
            self._readers[form] = self._made(form)
        return self._readers[form]

    def _made(self, form: str) -> ValueReaders:
        vector_ND = self.store.vectors(self.product_ids, form)
        there_N = np.isfinite(vector_ND).all(axis=1)
        vector_ND, value_NP = vector_ND[there_N], self.value_NP[np.flatnonzero(there_N)]
        ids = [one for one, is_there in zip(self.product_ids, there_N, strict=True) if is_there]
        self._places[form] = {product_id: row for row, product_id in enumerate(ids)}
        parts = [self.store.fingerprint, [str(phrase) for phrase in self.phrases], ids, self.store.dimension]
        indices = value_NP.indices.astype(np.int64).tobytes() + value_NP.indptr.astype(np.int64).tobytes()
        digest = _digest(parts, vector_ND.tobytes(), indices)
        path = None if self.folder is None else self.folder / f"readers-{form}.npz"
        kept = _read(path, digest)
        names = [entry.name for entry in fields(Sums)]
        if kept is not None:
            sums = Sums(int(kept["count"]), *(kept[name] for name in names[1:]))
            rest = {name: kept[name] for name in ("mean_D", "effect_PD", "right_K", "frequent_K")}
            return ValueReaders(
                key_P=self.key_numbers, sums=sums, value_NP=value_NP, noise=float(kept["noise"]), **rest
            )
        made = ValueReaders.fit(vector_ND, value_NP, self.key_numbers)
        arrays = {name: np.asarray(getattr(made.sums, name)) for name in names}
        arrays |= {name: getattr(made, name) for name in ("mean_D", "effect_PD", "right_K", "frequent_K")}
        _write(path, digest, arrays | {"noise": np.asarray(made.noise)})
        return made


def build_dictionary(model: Any, processor: Any, store: Store, *, folder: Path | None = None) -> PhraseDictionary:
    """Return the dictionary of a store's phrases; from files if the same one was made before.

    words.npz depends on the model's fingerprint and the phrases; readers-FORM.npz also on the products' ids, stated values and
    vectors. A file of another state is replaced.

    Args:
        model, processor: the model that made the store's vectors.
        store: the catalogue.
        folder: folder of the files. Default `None`: they are made each time.

    Raises:
        ExplanationError: a catalogue without phrases, a phrase that cannot be encoded, or a kept file that cannot be read.
    """
    products = list(store.products())
    phrases = tuple(collect_phrases(products))
    chosen = products[:: max(1, -(-len(products) // MOST_PRODUCTS))]
    path = None if folder is None else folder / "words.npz"
    digest = _digest([store.fingerprint, store.dimension, [str(phrase) for phrase in phrases]])
    kept = _read(path, digest)
    if kept is None:
        kept = {"word_PD": shortened(embed_phrases(model, processor, phrases), store.dimension)}
        _write(path, digest, kept)
    row = {phrase: place for place, phrase in enumerate(phrases)}
    value_NP = stated_values([phrases_of(product) for product in chosen], row)
    return PhraseDictionary(
        phrases, kept["word_PD"], [product.product_id for product in chosen], value_NP, store, folder
    )


def unit_or_zero(vector_ND: np.ndarray) -> np.ndarray:
    """Return vectors scaled to length 1; 0 for a vector shorter than 1e-9."""
    norm_N1 = np.linalg.norm(vector_ND, axis=-1, keepdims=True)
    return np.where(norm_N1 > 1e-9, vector_ND / np.maximum(norm_N1, 1e-9), 0.0)


def _digest(facts: Sequence[Any], *contents: bytes) -> str:
    found = hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode())
    for content in contents:
        found.update(content)
    return found.hexdigest()


def _write(path: Path | None, digest: str, arrays: dict[str, np.ndarray]) -> None:
    if path is None:
        return
    stream = io.BytesIO()
    np.savez(stream, digest=np.array(digest), **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_written_whole(path) as partial:
        partial.write_bytes(stream.getvalue())


def _read(path: Path | None, digest: str) -> dict[str, np.ndarray] | None:
    """Return the arrays of a file; `None` if there is none, or if it belongs to another state."""
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            if str(arrays["digest"]) != digest:
                return None
            return {name: arrays[name] for name in arrays.files if name != "digest"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ExplanationError(f"{path}: cannot be read ({error}); remove it, and it is made again") from error
