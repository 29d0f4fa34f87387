"""Measure what centring by form changes in a folder of vectors, before its store uses it.

Shape suffixes: Q queries, V vectors, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.mixed_galleries import compare_by_type
from product_data.errors import OptionError
from retrieval.centring import Centring, content_form, read_form
from retrieval.encode import encode, load_for_evaluation
from retrieval.model_kinds import unread_records
from retrieval.stores.interface import StoredProduct
from retrieval.vectors.vector_files import VectorFolder
from retrieval.vectors.vector_types import shortened

PRODUCTS, QUERIES = 5000, 300
"""The most products that are searched in, and the most queries of each type."""


def centring_effect(
    folder: VectorFolder, centring: Centring, *, model: str | None = None, device: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return the shares of each form in results and right answers, and R@10, without and with centring.

    Titles and first pictures of the catalogue's own products are the queries, and their product's vectors the right answers;
    each vector counts as one result. For a picture, the vectors that were made from pictures alone are no right answers and
    are left out for its own product, since one of them was made from the same picture. Our design; with real queries, use
    `evaluation.mixed_galleries.measure_mixed_gallery`.

    Args:
        folder: with a complete state.
        centring: the means of its vectors.
        model: folder or hub id of the model that made the vectors. Default: the one that the folder names.
        device: device of the model. Default: the first GPU, or else the CPU.
        seed (`int`): of the products and queries that are drawn, and of intervals. Default 0.

    Raises:
        OptionError: no product with a title or a readable picture.
        CheckpointError: a model that cannot be loaded.
    """
    rng = np.random.default_rng(seed)
    products = list(folder.products())
    if len(products) > PRODUCTS:
        products = [products[place] for place in sorted(rng.choice(len(products), PRODUCTS, replace=False))]
    vector_VD, owners, forms = _entries(folder, products)
    with_vector = set(owners)
    products = [one for one in products if one.product_id in with_vector]
    queries = [({"text": one.title}, one.product_id) for one in _drawn(rng, [one for one in products if one.title])]
    pictured = [one for one in products if one.images]
    queries += [({"image": one.images[0]}, one.product_id) for one in _drawn(rng, pictured)]
    loaded, processor = load_for_evaluation(model or folder.embedding.model, device=device)
    queries = [query for query in queries if not unread_records(processor, [query[0]], "queries")]
    encoded = encode(loaded, processor, [record for record, _ in queries], kind="query")
    queries = [queries[kept] for kept in encoded.kept]
    own = {one: [row for row, owner in enumerate(owners) if owner == one] for one in {owner for _, owner in queries}}
    types = ["text" if "text" in record else "image" for record, _ in queries]
    left_out = [
        [row for row in own[owner] if forms[row] == "i" and kind == "image"]
        for (_, owner), kind in zip(queries, types, strict=True)
    ]
    right = [sorted(set(own[owner]) - set(out)) for (_, owner), out in zip(queries, left_out, strict=True)]
    kept = [row for row, answers in enumerate(right) if answers]
    if not kept:
        raise OptionError(
            f"{folder.path}: found no product with a title or a readable picture; expected some to search by"
        )
    query_QD = shortened(encoded.vectors[kept], vector_VD.shape[1])
    query_forms = ["t" if types[row] == "text" else "i" for row in kept]
    plain_QV = query_QD @ vector_VD.T
    centred_QV = centring(query_QD, query_forms) @ centring(vector_VD, forms).T
    for place, row in enumerate(kept):
        plain_QV[place, left_out[row]] = centred_QV[place, left_out[row]] = -np.inf
    chosen = [types[row] for row in kept]
    found = compare_by_type(plain_QV, centred_QV, [right[row] for row in kept], forms, chosen, seed)
    return {"galleries": {str(folder.path): {"queries": found}}}


def _entries(folder: VectorFolder, products: list[StoredProduct]) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the vectors of products, whose each one is, and what it was made from."""
    contents = {one.product_id: content_form(one) for one in products}
    parts, owners, forms = [], [], []
    for form in folder.forms:
        for ids, vector_ND in folder.vectors(form):
            wanted = [row for row, one in enumerate(ids) if one in contents]
            parts.append(vector_ND[wanted])
            owners += [ids[row] for row in wanted]
            forms += [read_form(contents[ids[row]], form) for row in wanted]
    return np.concatenate(parts).astype(np.float32), owners, forms


def _drawn(rng: np.random.Generator, products: list[StoredProduct]) -> list[StoredProduct]:
    places = rng.permutation(len(products))[:QUERIES]
    return [products[place] for place in sorted(places)]
