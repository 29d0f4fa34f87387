"""Centre vectors by form, so that a gallery of texts, pictures and both is not ranked by form.

Shape suffixes: N vectors, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from product_data.rows import PRODUCT_FORMS

LEAST_PRODUCTS = 20
"""Number of products of a form below which its mean is not used."""


class HasContents(Protocol):
    """What `content_form` reads; a `ProductRow` and a `StoredProduct` have it."""

    @property
    def title(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def category(self) -> Sequence[str]: ...
    @property
    def attributes(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def images(self) -> Sequence[Any]: ...


def content_form(product: HasContents) -> str:
    """Return what a product contains: "t" text, "i" pictures, "mm" both; "" for neither."""
    has_text = bool(product.title or product.description or product.category or product.attributes)
    return ("mm" if product.images else "t") if has_text else ("i" if product.images else "")


def read_form(contents: str, form: str) -> str:
    """Return what a model read for a vector of a form: for "mm" what the product contains, otherwise the form.

    Args:
        contents (`str`): see `content_form`.
        form (`str`): of the vector.
    """
    return contents or form if form == "mm" else form


@dataclass(frozen=True)
class Centring:
    """The mean vector of each form of a catalogue, which is subtracted from products and queries.

    `x' = (x - m_f) / ‖x - m_f‖`, with m_f the mean of the catalogue's products of form f. A constant offset between
    forms, the modality gap, then no longer ranks all products of one form before those of another.

    Source: "Closing the modality gap for mixed modality search", arXiv 2507.19054, which subtracts the mean of each modality;
    a mean for products with both is our extension.

    Args:
        means: form → its mean, (D,) float32. Vectors of a form without a mean do not change.
        counts: form → number of products of that mean.

    Relations: a store that is made with it applies it to its products, and `retrieval.search.Searcher` to the queries of such
    a store. `retrieval.form_balance.form_balance` shows its effect; `moon3 form-balance` and `moon3 index --centre` print it.
    """

    means: Mapping[str, np.ndarray]
    counts: Mapping[str, int]

    @classmethod
    def of_catalogue(cls, vector_ND: np.ndarray, forms: Sequence[str]) -> Centring:
        """Return the means of a catalogue's products.

        Args:
            vector_ND: unit vectors of products.
            forms: what each product contains, see `content_form`. A form of fewer than 20 products has no mean.

        Raises:
            ValueError: numbers of vectors and forms that differ, or an unknown form.
        """
        _check(vector_ND, forms)
        sums = FormSums()
        sums.add(vector_ND, forms)
        return sums.centring()

    def __call__(self, vector_ND: np.ndarray, forms: Sequence[str]) -> np.ndarray:
        """Return the centred unit vectors of products or queries.

        Args:
            vector_ND: unit vectors.
            forms: what each product or query contains.

        Raises:
            ValueError: numbers of vectors and forms that differ, or an unknown form.
        """
        _check(vector_ND, forms)
        centred_ND = vector_ND.astype(np.float32).copy()
        form_N = np.array(forms)
        for form, mean_D in self.means.items():
            centred_ND[form_N == form] -= mean_D
        length_N1 = np.linalg.norm(centred_ND, axis=1, keepdims=True)
        return centred_ND / np.maximum(length_N1, 1e-12)

    @property
    def gap(self) -> dict[str, float]:
        """Return for each pair of forms the distance of their means, such as {"t, i": 0.4}; 0 without a modality gap."""
        names = [form for form in PRODUCT_FORMS if form in self.means]
        return {
            f"{one}, {two}": float(np.linalg.norm(self.means[one] - self.means[two]))
            for place, one in enumerate(names)
            for two in names[place + 1 :]
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the means in types of JSON, to keep with a store."""
        return {
            "means": {form: mean.tolist() for form, mean in self.means.items()},
            "counts": {form: int(count) for form, count in self.counts.items()},
        }

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Centring:
        """Return the centring that `as_dict` describes."""
        means = {form: np.array(mean, dtype=np.float32) for form, mean in values["means"].items()}
        return cls(means, dict(values["counts"]))


class FormSums:
    """Sums of a catalogue's vectors by form, from which its means follow; the vectors come in batches."""

    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}
        self.counts: Counter[str] = Counter()

    def add(self, vector_ND: np.ndarray, forms: Sequence[str]) -> None:
        """Add vectors with what each was made from."""
        form_N = np.array(forms)
        for form, count in Counter(forms).items():
            self.sums[form] = self.sums.get(form, 0) + vector_ND[form_N == form].sum(axis=0, dtype=np.float64)
            self.counts[form] += count

    def centring(self) -> Centring:
        """Return the means of the forms with at least `LEAST_PRODUCTS` vectors."""
        counts = {form: count for form, count in self.counts.items() if count >= LEAST_PRODUCTS}
        return Centring({form: (self.sums[form] / count).astype(np.float32) for form, count in counts.items()}, counts)


def _check(vector_ND: np.ndarray, forms: Sequence[str]) -> None:
    if len(vector_ND) != len(forms):
        raise ValueError(f"forms: found {len(forms)} for {len(vector_ND)} vectors; expected one for each")
    if unknown := sorted(set(forms) - set(PRODUCT_FORMS)):
        raise ValueError(f"forms: found {unknown[0]!r}; expected some of {', '.join(PRODUCT_FORMS)}")
