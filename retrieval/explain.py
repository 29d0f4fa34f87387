r"""Explain which of the shop's attribute values carry the similarity of two vectors.

Both vectors are centred and decomposed into few phrases with non-negative weights, as SpLiCE does for CLIP (Bhalla et al.,
"Interpreting CLIP with Sparse Linear Concept Embeddings", arXiv 2402.10376):

    w = argmin_{w ≥ 0} ½‖x̃/‖x̃‖ - Dᵀw‖² + λ‖w‖₁,   x = m + x̃,   x̃ = ‖x̃‖ Dᵀw + r

D holds the centred unit vectors of the candidate phrases, m is the mean vector of what x is one of (products of a form, or
queries), r the residual. With a = ‖x̃‖ w, the cosine of a query q and a product x is exactly

    q·x = Σ_p a_{q,p} a_{x,p} ‖d_p‖²  +  Σ_{p≠p'} a_{q,p} a_{x,p'} d_p·d_{p'}  +  ρ  +  (q·x - q̃·x̃)
          shared phrases              different phrases                   residual   what all share

with ρ = x̂_q·r_x + r_q·x̂_x + r_q·r_x. The first sum is what the explanation lists: a phrase contributes as far as both vectors
contain it. The expansion into these four parts is our design.

Shape suffixes: P phrases, C candidate phrases, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Lasso

from retrieval.phrases import ExplanationError, Phrase, PhraseDictionary, build_dictionary, phrases_of, shortened
from retrieval.queries import Query, SearchError
from retrieval.search import Searcher
from retrieval.stores.searching import require_uncentred

DEFAULT_LAMBDA = 0.1
_DIFFERENT_PAIRS = 5


@dataclass(frozen=True)
class SharedPhrase:
    """What one phrase contributes to a cosine.

    Args:
        phrase: the phrase.
        contribution (`float`): a_q·a_x‖d‖², in units of the cosine; 0 or more.
        query_weight, product_weight (`float`): weights a of both vectors.
        stated (`str`): whom the shop states it about: "both", "query", "product" or "neither".
    """

    phrase: Phrase
    contribution: float
    query_weight: float
    product_weight: float
    stated: str


@dataclass(frozen=True)
class MatchExplanation:
    """The parts of the cosine of a query (or product) and a product; they sum to `cosine`.

    Args:
        cosine (`float`): q·x.
        shared: phrases that both vectors contain, the largest contribution first.
        different (`float`): the part of pairs of different phrases, such as "color: red" and "color: orange".
        different_pairs: the largest of these pairs and their contributions.
        residual (`float`): the part that the candidate phrases do not describe.
        common (`float`): the part of the means: what all queries and products share.
        unexplained (`tuple`): shares of ‖q̃‖² and ‖x̃‖² in the residuals; 0 if phrases describe the vector completely.
        form (`str`): form of the product's vector.
    """

    cosine: float
    shared: tuple[SharedPhrase, ...]
    different: float
    different_pairs: tuple[tuple[Phrase, Phrase, float], ...]
    residual: float
    common: float
    unexplained: tuple[float, float]
    form: str = ""

    @property
    def share_explained(self) -> float | None:
        """The part of the centred similarity q̃·x̃ that shared phrases carry; None if that similarity is not positive."""
        similarity = self.cosine - self.common
        return sum(entry.contribution for entry in self.shared) / similarity if similarity > 1e-6 else None

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation in types of JSON; contributions are in units of the cosine."""
        return {
            "form": self.form,
            "cosine": round(self.cosine, 6),
            "shared": [
                {
                    "key": entry.phrase.key,
                    "value": entry.phrase.value,
                    "contribution": round(entry.contribution, 6),
                    "query_weight": round(entry.query_weight, 6),
                    "product_weight": round(entry.product_weight, 6),
                    "stated": entry.stated,
                }
                for entry in self.shared
            ],
            "different": round(self.different, 6),
            "different_pairs": [
                {"query": str(a), "product": str(b), "contribution": round(value, 6)}
                for a, b, value in self.different_pairs
            ],
            "residual": round(self.residual, 6),
            "common": round(self.common, 6),
            "share_explained": None if self.share_explained is None else round(self.share_explained, 6),
            "unexplained": {"query": round(self.unexplained[0], 6), "product": round(self.unexplained[1], 6)},
        }


def decompose(centred_ND: np.ndarray, atom_CD: np.ndarray, *, penalty: float = DEFAULT_LAMBDA) -> np.ndarray:
    """Return the non-negative sparse weights a = ‖x̃‖ w of centred vectors over phrases; see the head of this file.

    Args:
        centred_ND: (N, D) centred vectors x̃; a vector of zeros has no weights.
        atom_CD: (C, D) centred unit vectors of phrases.
        penalty (`float`): λ, above 0; a phrase whose cosine with x̃ is below λ gets none of it. Default 0.1.

    Shapes: returns (N, C) float64.

    Raises:
        ExplanationError: vectors of different sizes, a vector with a NaN, or a penalty that is not positive.
    """
    if centred_ND.shape[1] != atom_CD.shape[1]:
        raise ExplanationError(
            f"vectors: found {centred_ND.shape[1]} numbers; expected {atom_CD.shape[1]}, as the phrases have"
        )
    if not np.isfinite(centred_ND).all() or not np.isfinite(atom_CD).all():
        raise ExplanationError("vectors: found numbers that are not finite; expected finite numbers")
    if not penalty > 0:
        raise ExplanationError(f"penalty: found {penalty}; expected a number above 0")
    centred_ND = centred_ND.astype(np.float64)
    norm_N1 = np.linalg.norm(centred_ND, axis=1, keepdims=True)
    unit_ND = centred_ND / np.maximum(norm_N1, 1e-12)
    # scikit-learn divides the squared error by the number of rows, here D.
    lasso = Lasso(alpha=penalty / atom_CD.shape[1], fit_intercept=False, positive=True, tol=1e-6, max_iter=20_000)
    weight_NC = lasso.fit(atom_CD.astype(np.float64).T, unit_ND.T).coef_.reshape(len(unit_ND), len(atom_CD))
    return weight_NC * norm_N1


@dataclass(frozen=True)
class Side:
    """One of the two vectors.

    Args:
        vector_D: (D,) unit vector.
        mean_D: (D,) mean of what it is one of.
        stated: the phrases that the shop states about it; empty for a query.
        form (`str`): form of the vector; "" for a query.
    """

    vector_D: np.ndarray
    mean_D: np.ndarray
    stated: Sequence[Phrase] = ()
    form: str = ""


def explain_match(
    query: Side,
    product: Side,
    dictionary: PhraseDictionary,
    *,
    penalty: float = DEFAULT_LAMBDA,
    every_phrase: bool = False,
) -> MatchExplanation:
    """Explain the cosine of two vectors by the phrases that both contain; see the head of this file.

    Args:
        query, product: both sides; the query can be a product too.
        dictionary: the catalogue's phrases.
        penalty (`float`): λ. Default 0.1.
        every_phrase (`bool`): whether all phrases are candidates, or only those that the shop states about either side.
            Default False; without a stated phrase, all are.

    Raises:
        ExplanationError: as `decompose`.
    """
    stated = {phrase for side in (query, product) for phrase in side.stated if phrase in dictionary.row}
    candidates = list(dictionary.phrases) if every_phrase or not stated else sorted(stated)
    atom_CD = dictionary.atoms[[dictionary.row[phrase] for phrase in candidates]]
    centred_2D = np.stack([side.vector_D.astype(np.float64) - side.mean_D for side in (query, product)])
    query_C, product_C = decompose(centred_2D, atom_CD, penalty=penalty)
    part_CC = np.outer(query_C, product_C) * (atom_CD @ atom_CD.T)
    cosine = float(query.vector_D.astype(np.float64) @ product.vector_D.astype(np.float64))
    centred = float(centred_2D[0] @ centred_2D[1])
    own_C = np.diag(part_CC)
    order = [int(row) for row in np.argsort(-own_C, kind="stable") if own_C[row] > 0]
    known = [set(side.stated) for side in (query, product)]
    shared = tuple(
        SharedPhrase(
            candidates[row],
            float(own_C[row]),
            float(query_C[row]),
            float(product_C[row]),
            _stated(*(candidates[row] in phrases for phrases in known)),
        )
        for row in order
    )
    residual_2D = centred_2D - np.stack([query_C, product_C]) @ atom_CD
    squared_2 = np.maximum((centred_2D**2).sum(axis=1), 1e-12)
    unexplained = (residual_2D**2).sum(axis=1) / squared_2
    return MatchExplanation(
        cosine,
        shared,
        float(part_CC.sum() - own_C.sum()),
        _largest(part_CC, candidates),
        centred - float(part_CC.sum()),
        cosine - centred,
        (float(unexplained[0]), float(unexplained[1])),
        product.form,
    )


def _stated(query: bool, product: bool) -> str:
    return {(True, True): "both", (True, False): "query", (False, True): "product"}.get((query, product), "neither")


def _largest(part_CC: np.ndarray, candidates: Sequence[Phrase]) -> tuple[tuple[Phrase, Phrase, float], ...]:
    """Return the pairs of different phrases whose contributions are largest in size."""
    part_CC = part_CC - np.diag(np.diag(part_CC))
    order = np.argsort(-np.abs(part_CC), axis=None, kind="stable")[:_DIFFERENT_PAIRS]
    places = zip(*np.unravel_index(order, part_CC.shape), strict=True)
    return tuple((candidates[a], candidates[b], float(part_CC[a, b])) for a, b in places if part_CC[a, b] != 0)


class MatchExplainer:
    """Explain matches of a store's products with queries and with each other.

    Args:
        searcher: a store and the model of its vectors.
        folder: folder that keeps the phrases' vectors. Default `None`: they are made once for each explainer.

    Raises:
        ExplanationError: a catalogue without attributes, brands and categories.
        StoreError: a store that is centred by form.
    """

    def __init__(self, searcher: Searcher, *, folder: Path | None = None) -> None:
        require_uncentred(searcher.store.centring, "explanations")
        self.searcher, self.store = searcher, searcher.store
        encoder = searcher.encoder
        self.dictionary = build_dictionary(encoder.model, encoder.processor, self.store, folder=folder)

    def explain(
        self,
        product_id: str,
        query: Query | str,
        *,
        form: str | None = None,
        penalty: float = DEFAULT_LAMBDA,
        every_phrase: bool = False,
    ) -> MatchExplanation:
        """Explain why a product matches a query.

        Args:
            product_id: id of the product.
            query: words, a `Query`, or `Query(like=ID)` for another product of the store.
            form (`str` or `None`): form of the products' vectors. Default `None`: the first of "mm", "t", "i" that exists.
            penalty, every_phrase: see `explain_match`.

        Raises:
            ExplanationError: an unknown product, one without a vector of the form, or a form that no product has.
            SearchError: a query that cannot be encoded.
        """
        query = Query(text=query) if isinstance(query, str) else query
        product = self._product(product_id, form)
        if query.like is not None and query.weight is None:
            other = self._product(query.like, form)
        else:
            other = Side(self._query_vector(query), self._query_mean(query, form))
        return explain_match(other, product, self.dictionary, penalty=penalty, every_phrase=every_phrase)

    def _product(self, product_id: str, form: str | None) -> Side:
        product = self.store.get([product_id])[0]
        if product is None:
            raise ExplanationError(
                f"product: found id {product_id!r}; expected the id of one of the {self.store.count():,} products of the store"
            )
        for name in self._forms(form):
            vector_D = self.store.vectors([product_id], name)[0]
            if np.isfinite(vector_D).all():
                return Side(vector_D, self.dictionary.product_mean[name], phrases_of(product), name)
        raise ExplanationError(
            f"product {product_id!r}: found no vector of the form {form or 'mm, t or i'}; expected one"
        )

    def _forms(self, form: str | None) -> list[str]:
        known = list(self.dictionary.product_mean)
        if form is not None and form not in known:
            raise ExplanationError(f"form: found {form!r}; expected one of the store's forms: {', '.join(known)}")
        return known if form is None else [form]

    def _query_vector(self, query: Query) -> np.ndarray:
        if query.weight is not None:
            raise ExplanationError("query: found a weight; expected words, a picture, both, or a product")
        encoded = self.searcher.encoder.encode_queries([query])[0]
        if isinstance(encoded, SearchError):
            raise encoded
        return shortened(encoded.vectors_RD, self.store.dimension)[0]

    def _query_mean(self, query: Query, form: str | None) -> np.ndarray:
        """Return the mean of what a query is one of: words of queries; for a picture, of the products' pictures."""
        if query.image is None:
            return self.dictionary.query_mean_D
        means = self.dictionary.product_mean
        wanted = "mm" if query.has_text else "i"
        return means[wanted] if wanted in means else means[self._forms(form)[0]]
