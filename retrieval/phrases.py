"""Collect a catalogue's attribute values as phrases, embed them, and keep their vectors beside the catalogue's.

Shape suffixes: P phrases, N products, D embedding.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from product_data.atomic_files import file_written_whole
from retrieval.encode import encode
from retrieval.stores.interface import Store, StoredProduct

CATEGORY, BRAND = "category", "brand"
EMBEDDED_AS = ("product", "label")
"""A phrase as a product that has this value alone, or as a label text (task "attribute" or "category")."""
MOST_PHRASES = 5000
_MEAN_OF_PRODUCTS = 10_000


class ExplanationError(ValueError):
    """Raised for what cannot be explained; says what was found and what is expected."""

    exit_status = 2


@dataclass(frozen=True, order=True, slots=True)
class Phrase:
    """One value of an attribute, such as "color: red"; the key of a category is "category", that of a brand "brand"."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}: {self.value}"

    def record(self) -> dict[str, Any]:
        """Return the record of a product that has this value alone."""
        name = str(self)
        if self.key == CATEGORY:
            return {"id": name, "category": [self.value]}
        return {"id": name, "attributes": {self.key: [self.value]}}


def phrases_of(product: StoredProduct) -> tuple[Phrase, ...]:
    """Return what a shop states about a product: its attribute values, its brand and the last level of its category.

    Higher levels are sums of lower ones, so that a decomposition could not tell them apart.
    """
    found = [Phrase(key, value) for key, values in product.attributes.items() for value in values]
    found += [Phrase(CATEGORY, product.category[-1])] if product.category else []
    found += [Phrase(BRAND, product.brand)] if product.brand else []
    same: dict[str, dict[str, Phrase]] = {phrase.key.casefold(): {} for phrase in found}
    for phrase in found:
        # An attribute "category: boots" beside the category "Boots" is one phrase; that of the category stays.
        same[phrase.key.casefold()][phrase.value.casefold()] = phrase
    return tuple(phrase for values in same.values() for phrase in values.values())


def collect_phrases(products: Iterable[StoredProduct], *, most: int = MOST_PHRASES) -> list[Phrase]:
    """Return the most frequent phrases of a catalogue, in alphabetical order.

    Args:
        products: the catalogue.
        most (`int`): number of phrases to keep. Default 5,000.

    Raises:
        ExplanationError: no product has an attribute, a brand or a category.
    """
    counts = Counter(phrase for product in products for phrase in phrases_of(product))
    if not counts:
        raise ExplanationError(
            "catalogue: found no attributes, brands or categories; expected some, since explanations name them"
        )
    ordered = sorted(counts, key=lambda phrase: (-counts[phrase], phrase))
    return sorted(ordered[:most])


@dataclass(frozen=True)
class PhraseDictionary:
    """The vectors of a catalogue's phrases, and the means that centre vectors.

    Args:
        phrases: P phrases.
        vector_PD: (P, D) float32 unit vectors.
        product_mean: form → (D,) mean vector of the catalogue's products.
        query_mean_D: (D,) mean vector of the phrases' values as queries.
    """

    phrases: tuple[Phrase, ...]
    vector_PD: np.ndarray
    product_mean: dict[str, np.ndarray]
    query_mean_D: np.ndarray

    @cached_property
    def row(self) -> dict[Phrase, int]:
        """The row of each phrase."""
        return {phrase: row for row, phrase in enumerate(self.phrases)}

    @cached_property
    def atoms(self) -> np.ndarray:
        """The phrases' vectors minus their mean, as (P, D) float64 unit vectors; 0 for a vector that is the mean."""
        centred_PD = self.vector_PD.astype(np.float64) - self.vector_PD.mean(axis=0, dtype=np.float64)
        norm_P1 = np.linalg.norm(centred_PD, axis=1, keepdims=True)
        return np.where(norm_P1 > 1e-9, centred_PD / np.maximum(norm_P1, 1e-9), 0.0)


def embed_phrases(
    model: Any, processor: Any, phrases: Sequence[Phrase], *, embedded_as: str = "product", **settings: Any
) -> np.ndarray:
    """Return the (P, D) float32 unit vectors of phrases.

    Args:
        model, processor: as for `retrieval.encode.encode`.
        phrases: the phrases.
        embedded_as (`str`): one of `EMBEDDED_AS`. Default "product".
        **settings: batch_size, progress.

    Raises:
        ExplanationError: another value of `embedded_as`, or a phrase that cannot be encoded.
    """
    if embedded_as not in EMBEDDED_AS:
        raise ExplanationError(f"embedded_as: found {embedded_as!r}; expected one of {', '.join(EMBEDDED_AS)}")
    if embedded_as == "product":
        return _encoded(model, processor, [phrase.record() for phrase in phrases], kind="product", form="t", **settings)
    vector_PD = np.zeros((len(phrases), model.config.vector_size), np.float32)
    for task in ("category", "attribute"):
        rows = [row for row, phrase in enumerate(phrases) if (phrase.key == CATEGORY) == (task == "category")]
        records = [{"id": str(phrases[row]), "text": phrases[row].value} for row in rows]
        vector_PD[rows] = _encoded(model, processor, records, kind="query", task=task, **settings)
    return vector_PD


def _encoded(model: Any, processor: Any, records: Sequence[dict[str, Any]], **options: Any) -> np.ndarray:
    found = encode(model, processor, records, **options)
    if found.skipped:
        first = found.skipped[0]
        raise ExplanationError(f"phrase {first.item!r}: cannot be encoded: {first.reason}")
    return found.vectors


def build_dictionary(model: Any, processor: Any, store: Store, *, folder: Path | None = None) -> PhraseDictionary:
    """Return the dictionary of a store's phrases; from a file if the same one was built before.

    The file's name depends on the model's fingerprint, the phrases and the number of products; files of other states stay.

    Args:
        model, processor: the model that made the store's vectors.
        store: the catalogue.
        folder: folder of the file. Default `None`: it is built each time.

    Raises:
        ExplanationError: as `collect_phrases` and `embed_phrases`.
    """
    products = list(store.products())
    phrases = collect_phrases(products)
    facts = [store.fingerprint, store.dimension, len(products), [str(phrase) for phrase in phrases]]
    digest = hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()[:16]
    path = None if folder is None else folder / f"phrases-{digest}.npz"
    if path is not None and path.is_file():
        return _read(path, phrases)
    texts = [{"id": str(phrase), "text": phrase.value} for phrase in phrases]
    made = PhraseDictionary(
        tuple(phrases),
        shortened(embed_phrases(model, processor, phrases), store.dimension),
        product_means(store, [product.product_id for product in products]),
        shortened(_encoded(model, processor, texts, kind="query"), store.dimension).mean(axis=0),
    )
    if path is not None:
        _write(path, made)
    return made


def product_means(store: Store, product_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Return form → mean vector of a catalogue's products, of at most 10,000 at equal distances in the order of ids."""
    chosen = product_ids[:: max(1, -(-len(product_ids) // _MEAN_OF_PRODUCTS))]
    means = {}
    for form in ("mm", "t", "i"):
        vector_ND = store.vectors(chosen, form)
        vector_ND = vector_ND[np.isfinite(vector_ND).all(axis=1)]
        if len(vector_ND):
            means[form] = vector_ND.mean(axis=0)
    return means


def shortened(vector_ND: np.ndarray, dimension: int) -> np.ndarray:
    """Return the first `dimension` numbers of vectors, scaled to unit length, as a store of shorter vectors keeps them."""
    if vector_ND.shape[1] == dimension:
        return vector_ND
    vector_ND = vector_ND[:, :dimension]
    return vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-12)


def _write(path: Path, made: PhraseDictionary) -> None:
    arrays: Mapping[str, Any] = {f"product_mean_{form}": mean for form, mean in made.product_mean.items()}
    stream = io.BytesIO()
    np.savez(stream, vector_PD=made.vector_PD, query_mean_D=made.query_mean_D, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_written_whole(path) as partial:
        partial.write_bytes(stream.getvalue())


def _read(path: Path, phrases: Sequence[Phrase]) -> PhraseDictionary:
    start = "product_mean_"
    try:
        with np.load(path) as arrays:
            means = {name[len(start) :]: arrays[name] for name in arrays.files if name.startswith(start)}
            return PhraseDictionary(tuple(phrases), arrays["vector_PD"], means, arrays["query_mean_D"])
    except (OSError, ValueError, KeyError) as error:
        raise ExplanationError(f"{path}: cannot be read ({error}); remove it, and it is built again") from error
