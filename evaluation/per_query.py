"""Keep the rank of each query in a results file, to compare two files query by query.

`per_query` of a results file:

- `asked`: kind of query → id → digest. The kind is the type of the queries ("text", "image", "both"), or "product t" and
  "product i" if the products' own texts or pictures are the queries. The digest is of the query's text, answers, grades and
  known wrong answers, or of the product's text: files are paired only if it is the same. The second query of one id is
  "ID (2)".
- `directions`: direction → `asked` (the kind of query), `gallery` (a digest of the products' ids and texts, and of which
  products are identical or variants), `products` (their number) and `rank`: the rank of each query's best right answer, or "-"
  for a query that this direction does not rank, separated by spaces, in the order of the ids in `asked`. If queries have
  several right answers, nDCG does not follow from these ranks, and `nDCG@k` holds it in the same form.

Shape suffixes: Q queries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from product_data.duplicates import EqualProducts
from product_data.rows import ProductRow, QueryRow

_NOT_ASKED = "-"
_QUERY_DIGITS, _GALLERY_DIGITS = 8, 16


@dataclass(frozen=True)
class QueryValues:
    """The rank and nDCG of each query of one direction.

    Args:
        asked (`str`): "text", "image", "both", "product t" or "product i".
        digests: id of each query → digest of the query and its right answers.
        gallery (`str`): digest of the products.
        products (`int`): number of products.
        rank_Q (`ndarray`): (Q,) float64, the rank of each best right answer, from 1.
        ndcg: k → (Q,) float64 in [0, 1].
    """

    asked: str
    digests: Mapping[str, str]
    gallery: str
    products: int
    rank_Q: np.ndarray
    ndcg: Mapping[int, np.ndarray]

    def values(self, metric: str) -> np.ndarray:
        """Return one value for each query, whose mean is the metric.

        Args:
            metric (`str`): "MRR", "R@k", or "nDCG@k" of a k that was measured.

        Raises:
            KeyError: a k of nDCG that was not measured.
        """
        if metric == "MRR":
            return 1.0 / self.rank_Q
        name, _, k = metric.partition("@")
        return self.ndcg[int(k)] if name == "nDCG" else (self.rank_Q <= int(k)).astype(np.float64)


def distinct(names: Iterable[str]) -> list[str]:
    """Return names without repetition: the second "q1" of a table becomes "q1 (2)"."""
    found: dict[str, None] = {}
    for name in names:
        number, own = 2, name
        while own in found:
            own, number = f"{name} ({number})", number + 1
        found[own] = None
    return list(found)


def query_digest(query: QueryRow) -> str:
    """Return a digest of a query's text and of its right and wrong answers; its picture is identified only by its id."""
    right, wrong = sorted(query.answers.items()), sorted(query.negatives)
    return _digest([[query.type, query.text, right, wrong, query.reference_product_id]], _QUERY_DIGITS)


def product_digest(product: ProductRow) -> str:
    """Return a digest of a product's text; its pictures are identified only by its id."""
    return _digest([product.record("t")], _QUERY_DIGITS)


def gallery_digest(products: Sequence[ProductRow], kept: Iterable[int], equal: EqualProducts, form: str) -> str:
    """Return a digest of a gallery that is the same on every machine and for any order of its products.

    Args:
        products: the rows of the data.
        kept: the places of the products in the gallery.
        equal: the equal products among `products`.
        form (`str`): "mm", "t" or "i".
    """
    kept = list(kept)
    rows: dict[str, list[Any]] = {products[place].product_id: [products[place].record("t")] for place in kept}
    for class_of in (equal.identical(form), equal.identical("t"), equal.variants):
        first: dict[int, str] = {}
        for place in kept:
            name = products[place].product_id
            first[class_of[place]] = min(name, first.get(class_of[place], name))
        for place in kept:
            rows[products[place].product_id].append(first[class_of[place]])
    return _digest((rows[name] for name in sorted(rows)), _GALLERY_DIGITS)


def _digest(lines: Iterable[Any], digits: int) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps(line, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:digits]


def pack(directions: Mapping[str, QueryValues], several: Iterable[str]) -> dict[str, Any]:
    """Return `per_query` of a results file.

    Args:
        directions: direction → values.
        several: the directions in which a query has several right answers, whose nDCG is kept.
    """
    asked: dict[str, dict[str, str]] = {}
    for found in directions.values():
        asked.setdefault(found.asked, {}).update(found.digests)
    several = set(several)
    packed: dict[str, dict[str, Any]] = {}
    for name, found in directions.items():
        written = {"rank": [f"{rank:.0f}" for rank in found.rank_Q]}
        if name in several:
            written |= {f"nDCG@{k}": [f"{value:.6g}" for value in value_Q] for k, value_Q in found.ndcg.items()}
        packed[name] = {"asked": found.asked, "gallery": found.gallery, "products": found.products}
        for column, texts in written.items():
            of_id = dict(zip(found.digests, texts, strict=True))
            packed[name][column] = " ".join(of_id.get(one, _NOT_ASKED) for one in asked[found.asked])
    return {"asked": asked, "directions": packed}


def unpack(per_query: Mapping[str, Any], cutoffs: Sequence[int]) -> dict[str, QueryValues]:
    """Return direction → values of `per_query` of a results file.

    Args:
        per_query: as `pack` makes it.
        cutoffs: the k of nDCG@k that the results have.

    Raises:
        ValueError: the number of ranks differs from that of ids.
    """
    directions = {}
    for name, packed in per_query["directions"].items():
        digests = per_query["asked"][packed["asked"]]
        ranked = packed["rank"].split()
        if len(ranked) != len(digests):
            raise ValueError(f"per_query, {name}: found {len(ranked)} ranks; expected {len(digests)}, one for each id")
        kept = [place for place, rank in enumerate(ranked) if rank != _NOT_ASKED]
        ids = list(digests)
        rank_Q = np.array([float(ranked[place]) for place in kept])
        ndcg = {}
        for k in cutoffs:
            if f"nDCG@{k}" in packed:
                ndcg[k] = np.array([float(value) for value in packed[f"nDCG@{k}"].split() if value != _NOT_ASKED])
            else:  # one right answer for each query
                ndcg[k] = np.where(rank_Q <= k, 1 / np.log2(1 + rank_Q), 0.0)
        own = {ids[place]: digests[ids[place]] for place in kept}
        directions[name] = QueryValues(packed["asked"], own, packed["gallery"], packed["products"], rank_Q, ndcg)
    return directions
