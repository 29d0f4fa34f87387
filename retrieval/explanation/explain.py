r"""Explain which of the shop's attribute values carry the similarity of two vectors.

Each of both vectors is centred, and divided into parts of single values and a residual:

    q = m_q + Σ_p e_p + r_q,    x = m_x + Σ_p f_p + r_x

m is the mean vector of what a vector is one of (products of a form, or queries). The cosine is then exactly

    q·x = Σ_p e_p·f_p  +  Σ_{p≠p'} e_p·f_p'  +  ρ  +  (q·x - q̃·x̃),    q̃ = q - m_q,  x̃ = x - m_x
          shared phrases  different phrases  residual  what all share

with ρ = q̃·x̃ - Σ_p Σ_p' e_p·f_p'. The first sum is what the explanation lists: a phrase contributes as far as both vectors
contain it. The parts come from the kind of a vector:

- a product, or a photo: `f_p = P(p | x) E_p`, the probability that the vector contains the value, times what the value adds to
  a vector (`retrieval.explanation.value_readers`). Products of the explanation are left out of both, so that they do not
  explain themselves;
- words: `e_p = a_p d_p` with the values as queries d_p and `a = ‖q̃‖ · argmin_{w ≥ 0} ½‖q̃/‖q̃‖ - Dᵀw‖² + λ‖w‖₁`, as
  SpLiCE does for CLIP (Bhalla et al., "Interpreting CLIP with Sparse Linear Concept Embeddings", arXiv 2402.10376);
- a weighted sum of words and a picture or product, `q = α t + β p`: α and β times the parts of t and p.

The division into these four parts, and different parts for queries and products, are our design.

Shape suffixes: C candidate phrases, N vectors, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Lasso

from retrieval.explanation.phrase_dictionary import build_dictionary
from retrieval.explanation.phrases import ExplanationError, Phrase, phrases_of
from retrieval.explanation.value_readers import QUERY_NOISE, SHRINKAGE
from retrieval.queries import Query
from retrieval.query_encoder import weighted
from retrieval.search import Searcher
from retrieval.stores.searching import require_uncentred
from retrieval.vectors.vector_types import shortened

DEFAULT_LAMBDA = 0.1
_DIFFERENT_PAIRS = 5
_LEAST_CONTRIBUTION = 1e-5
"""Smaller contributions, of values that are hardly in a vector, are not listed and count as residual."""


@dataclass(frozen=True)
class SharedPhrase:
    """What one phrase contributes to a cosine.

    Args:
        phrase: the phrase.
        contribution (`float`): e_p·f_p, in units of the cosine.
        query_weight, product_weight (`float`): lengths ‖e_p‖ and ‖f_p‖ of the value's parts of both vectors.
        stated (`str`): whom the shop states it about: "both", "query", "product" or "neither".
        read_right (`float` or `None`): share of products held out from the readers whose value of this key is read right;
            `None` where it is not known. A key that is rarely read right is hardly in the vectors.
    """

    phrase: Phrase
    contribution: float
    query_weight: float
    product_weight: float
    stated: str
    read_right: float | None = None


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
                    "read_right": None if entry.read_right is None else round(entry.read_right, 4),
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
    """One of the two vectors, and its parts.

    Args:
        vector_D: (D,) unit vector.
        mean_D: (D,) mean of what it is one of.
        part_CD: (C, D) parts of the candidate phrases.
        stated: the phrases that the shop states about it; empty for words and photos.
        form (`str`): form of the vector; "" for a query.
    """

    vector_D: np.ndarray
    mean_D: np.ndarray
    part_CD: np.ndarray
    stated: Sequence[Phrase] = ()
    form: str = ""

    @property
    def centred(self) -> np.ndarray:
        """The vector minus its mean, as (D,) float64."""
        return self.vector_D.astype(np.float64) - self.mean_D


def explain_match(
    query: Side, product: Side, candidates: Sequence[Phrase], *, read_right: Mapping[str, float] | None = None
) -> MatchExplanation:
    """Explain the cosine of two vectors by the phrases that both contain; see the head of this file.

    Args:
        query, product: both sides; the query can be a product too.
        candidates: C phrases.
        read_right: key → share of held-out products whose value is read right. Default `None`: not known.
    """
    part_CC = query.part_CD @ product.part_CD.T
    cosine = float(query.vector_D.astype(np.float64) @ product.vector_D.astype(np.float64))
    centred = float(query.centred @ product.centred)
    own_C = np.diag(part_CC)
    lengths = [np.linalg.norm(side.part_CD, axis=1) for side in (query, product)]
    known = [set(side.stated) for side in (query, product)]
    shared = tuple(
        SharedPhrase(
            candidates[row],
            float(own_C[row]),
            float(lengths[0][row]),
            float(lengths[1][row]),
            _stated(*(candidates[row] in phrases for phrases in known)),
            (read_right or {}).get(candidates[row].key),
        )
        for row in map(int, np.argsort(-own_C, kind="stable"))
        if abs(own_C[row]) > _LEAST_CONTRIBUTION
    )
    listed = sum(entry.contribution for entry in shared)
    sides = (query, product)
    unexplained = [
        float(((side.centred - side.part_CD.sum(axis=0)) ** 2).sum() / max((side.centred**2).sum(), 1e-12))
        for side in sides
    ]
    return MatchExplanation(
        cosine,
        shared,
        float(part_CC.sum() - own_C.sum()),
        _largest(part_CC, candidates),
        centred - float(part_CC.sum()) + float(own_C.sum()) - listed,
        cosine - centred,
        (unexplained[0], unexplained[1]),
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
        folder: folder that keeps the dictionary. Default `None`: it is made once for each explainer.

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
            query: words, or any other `Query`: the vector that is searched for it is explained.
            form (`str` or `None`): form of the products' vectors. Default `None`: the first of "mm", "t", "i" that the
                product has.
            penalty (`float`): λ of words. Default 0.1.
            every_phrase (`bool`): whether all phrases are candidates, or only those that the shop states about the product or
                products. Default False; without a stated phrase, all are.

        Raises:
            ExplanationError: an unknown product, one without a vector of the form, or a form that no product has.
            SearchError: a query that cannot be encoded.
        """
        query = Query(text=query) if isinstance(query, str) else query
        names = [product_id] if query.like is None else [product_id, query.like]
        found = [self._product(name, form) for name in names]
        row = self.dictionary.row
        stated = {phrase for entry in found for phrase in entry.stated if phrase in row}
        candidates = list(self.dictionary.phrases) if every_phrase or not stated else sorted(stated)
        columns = np.array([row[phrase] for phrase in candidates])
        product, *rest = self._read(found, columns)
        other = rest[0] if rest else None
        if other is None or query.weight is not None:
            other = self._query(query, other, columns, found[0], penalty)
        return explain_match(other, product, candidates, read_right=self._read_right(found[0].form))

    def _product(self, product_id: str, form: str | None) -> _Known:
        product = self.store.get([product_id])[0]
        if product is None:
            raise ExplanationError(
                f"product: found id {product_id!r}; expected the id of one of the {self.store.count():,} products of the store"
            )
        forms = self.dictionary.forms
        if form is not None and form not in forms:
            raise ExplanationError(f"form: found {form!r}; expected one of the store's forms: {', '.join(forms)}")
        for name in forms if form is None else [form]:
            vector_D = self.store.vectors([product_id], name)[0]
            if np.isfinite(vector_D).all():
                return _Known(product_id, vector_D, phrases_of(product), name)
        raise ExplanationError(
            f"product {product_id!r}: found no vector of the form {form or 'mm, t or i'}; expected one"
        )

    def _read(self, products: Sequence[_Known], columns: np.ndarray) -> list[Side]:
        """Return the sides of the products of an explanation."""
        sides = {}
        for form in {product.form for product in products}:
            readers, own = self.dictionary.readers(form), [product for product in products if product.form == form]
            rows, known_SD = self._known(products, form)
            centred_MD = np.stack([product.vector_D for product in own]).astype(np.float64) - readers.mean_D
            for product, part_CD in zip(
                own, readers.parts(centred_MD, columns, without=rows, known_SD=known_SD), strict=True
            ):
                sides[product.product_id] = Side(product.vector_D, readers.mean_D, part_CD, product.stated, form)
        return [sides[product.product_id] for product in products]

    def _known(self, left_out: Sequence[_Known], form: str) -> tuple[list[int], np.ndarray]:
        """Return the rows and centred vectors of the products among those that the readers of a form are fitted to."""
        place = self.dictionary.places(form)
        rows = {place[product.product_id]: product.product_id for product in left_out if product.product_id in place}
        vector_SD = self.store.vectors(list(rows.values()), form)
        kept_S = np.isfinite(vector_SD).all(axis=1)
        centred_SD = vector_SD[kept_S].astype(np.float64) - self.dictionary.readers(form).mean_D
        return [row for row, is_kept in zip(rows, kept_S, strict=True) if is_kept], centred_SD

    def _query(self, query: Query, other: Side | None, columns: np.ndarray, product: _Known, penalty: float) -> Side:
        """Return the side of words, a photo, both, or a weighted sum of words and a photo or product."""
        encoded = self.searcher.encode(query, "none")
        vectors = shortened(encoded.vectors_RD, self.store.dimension)
        words = self._words(vectors[0], columns, penalty) if query.has_text else None
        if query.weight is None and query.image is None and words is not None:
            return words
        if other is None:
            other = self._photo(vectors[-1], columns, product, with_words=query.has_text and query.weight is None)
        if query.weight is None or words is None:
            return other
        sum_D = weighted(words.vector_D, other.vector_D[None], query.weight)[0]
        length = float(np.linalg.norm(query.weight * words.vector_D + (1 - query.weight) * other.vector_D))
        alpha, beta = query.weight / length, (1 - query.weight) / length
        return Side(
            sum_D,
            alpha * words.mean_D + beta * other.mean_D,
            alpha * words.part_CD + beta * other.part_CD,
            other.stated,
        )

    def _words(self, vector_D: np.ndarray, columns: np.ndarray, penalty: float) -> Side:
        atom_CD, mean_D = self.dictionary.word_atoms[columns], self.dictionary.word_mean
        weight_C = decompose((vector_D.astype(np.float64) - mean_D)[None], atom_CD, penalty=penalty)[0]
        return Side(vector_D, mean_D, weight_C[:, None] * atom_CD)

    def _photo(self, vector_D: np.ndarray, columns: np.ndarray, product: _Known, *, with_words: bool) -> Side:
        """Return the side of a photo, read as products' pictures are; as products of the match's form if there are few."""
        wanted = "mm" if with_words else "i"
        has_enough = wanted in self.dictionary.forms and len(self.dictionary.places(wanted)) >= SHRINKAGE
        form = wanted if has_enough else product.form
        readers = self.dictionary.readers(form)
        rows, known_SD = self._known([product], form)
        parts_CD = readers.parts(
            vector_D[None].astype(np.float64) - readers.mean_D,
            columns,
            without=rows,
            known_SD=known_SD,
            least_noise=QUERY_NOISE,
        )
        return Side(vector_D, readers.mean_D, parts_CD[0])

    def _read_right(self, form: str) -> dict[str, float]:
        right_K = self.dictionary.readers(form).right_K
        return {key: float(right) for key, right in zip(self.dictionary.keys, right_K, strict=True) if right == right}


@dataclass(frozen=True)
class _Known:
    """A product of the store: its id, vector, stated phrases and the vector's form."""

    product_id: str
    vector_D: np.ndarray
    stated: tuple[Phrase, ...]
    form: str
