"""Fit each kind of adapter on what a sample offers: products' vectors, and short texts of products as queries.

Shape suffixes: T texts, V vectors of products, D width of the new model, E width of the old model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from retrieval.centring import HasContents
from retrieval.upgrade.adapters import RIDGE, Adapter, Pairs, fit_affine, fit_network, fit_procrustes
from retrieval.upgrade.gallery import Gallery

RANKS = (16, 64)
"""Ranks of the affine correction that are tried, besides the full one."""
TEXT_WEIGHTS = (0.03, 0.1, 0.3, 1.0)
"""Weights of a pair of a text that are tried; a pair of a product has the weight 1."""
TEXT_RIDGE = 0.003
"""Ridge of the affine maps that texts take part in, which have several times the pairs."""


@dataclass(frozen=True)
class Texts:
    """Vectors of short texts of products, read as queries.

    Args:
        new_TD: by the new model.
        product_T: index of each one's product.
        old_TE: by the old model; `None` if it is not available.
    """

    new_TD: np.ndarray
    product_T: np.ndarray
    old_TE: np.ndarray | None = None


@dataclass(frozen=True)
class Material:
    """What adapters are fitted on.

    Args:
        old, new: the products' vectors; row v of both is the same product in the same form.
        texts: short texts of products; `None` without any.
    """

    old: Gallery
    new: Gallery
    texts: Texts | None = None

    def pairs(self, products: np.ndarray, weight: float = 0.0, *, to_queries: bool = False) -> Pairs:
        """Return the pairs of some products, which are numbered from 0 in their order.

        Args:
            products: their indices, ascending.
            weight (`float`): of each text's pair. Default 0: vectors of products alone.
            to_queries (`bool`): map a text to the old model's vector of it. Default False: to the old vectors of its product,
                which a search compares it with; each of them has its share of the weight.
        """
        kept_V = np.isin(self.new.product_V, products)
        new_VD, old_VE, product_V = self.new.vector_VD[kept_V], self.old.vector_VD[kept_V], self.new.product_V[kept_V]
        parts = [(new_VD, old_VE, np.ones(len(new_VD)), product_V)]
        if self.texts is not None and weight > 0:
            kept_T = np.isin(self.texts.product_T, products)
            text_TD, product_T = self.texts.new_TD[kept_T], self.texts.product_T[kept_T]
            if to_queries:
                assert self.texts.old_TE is not None
                parts.append((text_TD, self.texts.old_TE[kept_T], np.full(len(text_TD), weight), product_T))
            else:
                # each text beside each of its product's vectors
                row_T, row_V = np.nonzero(product_T[:, None] == product_V)
                share_P = weight / np.bincount(self.old.product_V)
                parts.append((text_TD[row_T], old_VE[row_V], share_P[product_T[row_T]], product_T[row_T]))
        new_ND, old_NE, weight_N, product_N = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Pairs(new_ND, old_NE, weight_N, np.searchsorted(products, product_N))

    def searched(self, products: np.ndarray) -> Gallery:
        """Return the old vectors of some products, which are numbered from 0 in their order."""
        kept_V = np.isin(self.old.product_V, products)
        return Gallery(self.old.vector_VD[kept_V], np.searchsorted(products, self.old.product_V[kept_V]))


@dataclass(frozen=True)
class Recipe:
    """One way to fit an adapter.

    Args:
        name (`str`): as reports write it.
        fit: fits it on the products of an ascending list of indices.
        weight (`float`): of a text's pair; 0 without texts.
    """

    name: str
    fit: Callable[[np.ndarray], Adapter]
    weight: float = 0.0


def linear_recipes(material: Material) -> Iterator[Recipe]:
    """Yield the linear adapters, the simplest first: on products alone, then with texts of each weight."""
    full = min(material.new.vector_VD.shape[1], material.old.vector_VD.shape[1])
    yield Recipe("procrustes", lambda products: _procrustes(material.pairs(products)))
    for rank in (*(rank for rank in RANKS if rank < full), full):
        yield Recipe(f"affine, rank {rank}", partial(_affine, material, rank))
    if material.texts is None:
        return
    for target in ("products",) if material.texts.old_TE is None else ("products", "queries"):
        for weight in TEXT_WEIGHTS:
            name = f"affine, texts to {target}, weight {weight:g}"
            fit = partial(_affine, material, full, weight=weight, to_queries=target == "queries")
            yield Recipe(name, fit, weight if target == "products" else 0.0)


def network_recipes(material: Material, weight: float, seed: int) -> Iterator[Recipe]:
    """Yield the networks: one on products alone, and one that also learns to search, with texts if there are any.

    Args:
        material: what they are fitted on.
        weight (`float`): of a text's pair in the second one.
        seed (`int`): see `retrieval.upgrade.adapters.fit_network`.
    """
    yield Recipe("network", lambda products: fit_network(material.pairs(products), _procrustes, seed=seed))
    yield Recipe(
        "network, search" if weight == 0 else f"network, search, texts to products, weight {weight:g}",
        lambda products: fit_network(
            material.pairs(products, weight), _full_affine, material.searched(products), seed=seed
        ),
        weight,
    )


def _procrustes(pairs: Pairs) -> Adapter:
    return fit_procrustes(pairs.weight_N[:, None] * pairs.new_ND, pairs.old_NE)


def _full_affine(pairs: Pairs) -> Adapter:
    rank = min(pairs.new_ND.shape[1], pairs.old_NE.shape[1])
    return fit_affine(pairs.new_ND, pairs.old_NE, rank, pairs.weight_N, TEXT_RIDGE)


def _affine(
    material: Material, rank: int, products: np.ndarray, *, weight: float = 0.0, to_queries: bool = False
) -> Adapter:
    pairs = material.pairs(products, weight, to_queries=to_queries)
    return fit_affine(pairs.new_ND, pairs.old_NE, rank, pairs.weight_N, RIDGE if weight == 0 else TEXT_RIDGE)


def short_texts(product: HasContents, rng: random.Random) -> list[str]:
    """Return texts of a product as a person would type them: its title and a part of it, values of attributes, a sentence.

    Our design; Drift-Adapter (arXiv 2509.23471) fits on
    samples of queries, which a catalogue need not have.

    Args:
        product: with any of title, category, attributes and description.
        rng: draws the words and values.
    """
    words = product.title.replace(",", " ").split()
    values = [value for some in product.attributes.values() for value in some]
    sentences = [part.strip() for part in re.split(r"[.!?\n]", product.description) if part.strip()]
    half = rng.sample(range(len(words)), (len(words) + 1) // 2)
    texts = [product.title, " ".join(words[place] for place in sorted(half))]
    texts.append(" ".join([*rng.sample(values, min(3, len(values))), *product.category[-1:]]))
    texts.append(rng.choice(sentences) if sentences else "")
    return [text for text in dict.fromkeys(texts) if text]
