"""Measure whether a search prefers products of one form: its share of the results against its share of right answers.

Shape suffixes: Q queries, P products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FormShare:
    """The place of one form in a gallery and in the results of searches.

    Args:
        gallery (`float`): share of the products.
        results (`float`): share of the first k results of all queries. Without preference it is near `right`.
        right (`float`): share of the right answers.
        found (`float`): share of this form's right answers that are among the first k results of their queries; NaN
            without right answers.
    """

    gallery: float
    results: float
    right: float
    found: float


def form_balance(
    score_QP: np.ndarray, right: Sequence[Sequence[int]], forms: Sequence[str], k: int = 10
) -> dict[str, FormShare]:
    """Return the shares of each form of products.

    Args:
        score_QP: scores of queries and products; -inf for a product that is left out of a ranking.
        right: the right products of each query.
        forms: what each product contains, see `retrieval.centring.content_form`.
        k (`int`): number of results. Default 10. Equal scores are in the order of products.

    Raises:
        ValueError: shapes that do not fit together, no queries, or k below 1.
    """
    queries, products = score_QP.shape
    if not queries or k < 1 or len(right) != queries or len(forms) != products:
        raise ValueError(
            f"form balance: found scores {score_QP.shape}, {len(right)} lists of right answers, {len(forms)} forms and "
            f"k={k}; expected a list for each query, a form for each product, at least one query, and k of 1 or more"
        )
    top_QK = np.argsort(-score_QP, axis=1, kind="stable")[:, : min(k, products)]
    is_real_QK = np.isfinite(np.take_along_axis(score_QP, top_QK, axis=1))
    form_P = np.array(forms)
    answers = [(row, product) for row, some in enumerate(right) for product in some]
    shown = [set(top_K[real_K]) for top_K, real_K in zip(top_QK, is_real_QK, strict=True)]
    shares = {}
    for form in dict.fromkeys(forms):
        own = [(row, product) for row, product in answers if forms[product] == form]
        found = [product in shown[row] for row, product in own]
        shares[form] = FormShare(
            gallery=float((form_P == form).mean()),
            results=float((form_P[top_QK] == form)[is_real_QK].mean()),
            right=len(own) / max(len(answers), 1),
            found=float(np.mean(found)) if found else float("nan"),
        )
    return shares
