"""Each form of query against each form of product: a three by three matrix of text, image and both.

The five directions of MOON2.0 and MOON3.0 (arXiv 2511.12449, 2604.00513) are five of its cells; all nine show what a form of
query finds whatever the products have. Our design.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.benchmarks.retrieval import Measures, direction_scores
from evaluation.metrics import CUTOFFS
from product_data.rows import PRODUCT_FORMS
from retrieval.encode import VectorCache

QUERY_FORMS = {"t": "text", "i": "image", "mm": "both"}


def evaluate_form_matrix(
    cache: VectorCache, *, cutoffs: Sequence[int] = CUTOFFS, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The scores of every form of query against every form of product.

    Returns: form of the query ("t", "i", "mm") → form of the product → scores as `evaluate_retrieval` has them, or None;
        "absent", "t2mm" and so on → why there is no score. Where the data has no queries of text (image), t→i (i→t) asks with
        the products' own parts, as there.
    """
    absent: dict[str, str] = {}
    how = Measures(tuple(cutoffs), resamples, seed)
    matrix: dict[str, Any] = {
        asked: {form: direction_scores(cache, f"{asked}2{form}", kind, form, absent, how) for form in PRODUCT_FORMS}
        for asked, kind in QUERY_FORMS.items()
    }
    return matrix | {"absent": absent}
