"""Measure searches in galleries of texts, pictures and both, with and without centring by form.

Shape suffixes: Q queries, P products, D width.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation.metrics import paired_difference, recall_at
from evaluation.provenance import provenance
from product_data.atomic_files import write_atomically
from product_data.errors import OptionError
from product_data.outputs import require_writable_file
from product_data.rows import ProductRow
from product_data.tables import ProductTables
from retrieval.centring import Centring, content_form
from retrieval.encode import encode, load_for_evaluation
from retrieval.form_balance import form_balance
from retrieval.upgrade.gallery import ranks

K = 10
_FORM_OF_TYPE = {"text": "t", "image": "i", "both": "mm"}
_DRAWN = ("t", "i", "mm")


def measure_mixed_gallery(
    model: Any, processor: Any, tables: ProductTables, *, draw: bool = False, seed: int = 0, batch_size: int = 32
) -> dict[str, Any]:
    """Return the shares of each form and R@10 by type of query, without and with centring.

    A query has one more right answer for each product that answers it; a reference product is left out of its ranking. Means
    come from the searched products, and queries use the mean of their own form.

    Args:
        model, processor: as for `retrieval.encode.encode`.
        tables: products and queries of one split.
        draw (`bool`): give each product with text and picture only its text, only its picture or both, at random with equal
            chances. Default False: products as they are.
        seed (`int`): of the draw and of intervals. Default 0.
        batch_size (`int`): records per batch. Default 32.

    Raises:
        OptionError: products of one form only, or no query with an answer among the products.
    """
    products, forms = _gallery(tables.products, draw, seed)
    encoded = encode(
        model,
        processor,
        [row.record(form) for row, form in zip(products, forms, strict=True)],
        form="mm",
        batch_size=batch_size,
    )
    products, forms = [products[index] for index in encoded.kept], [forms[index] for index in encoded.kept]
    if len(set(forms)) < 2:
        raise OptionError(
            f"{tables.name}: found products of the form {', '.join(set(forms)) or 'none'} only; expected texts, pictures or "
            "both in one gallery, or --draw"
        )
    place = {row.product_id: number for number, row in enumerate(products)}
    queries = [query for query in tables.queries if any(one in place for one in query.answers)]
    asked = encode(model, processor, [query.record() for query in queries], kind="query", batch_size=batch_size)
    queries = [queries[index] for index in asked.kept]
    if not queries:
        raise OptionError(f"{tables.name}: found no query with an answer among the products; expected at least one")
    centring = Centring.of_catalogue(encoded.vectors, forms)
    query_forms = [_FORM_OF_TYPE[query.type] for query in queries]
    plain_QP = asked.vectors @ encoded.vectors.T
    centred_QP = centring(asked.vectors, query_forms) @ centring(encoded.vectors, forms).T
    for row, query in enumerate(queries):
        if query.reference_product_id in place:
            plain_QP[row, place[query.reference_product_id]] = -np.inf
            centred_QP[row, place[query.reference_product_id]] = -np.inf
    right = [[place[one] for one in query.answers if one in place] for query in queries]
    types = [query.type for query in queries]
    return {
        "products": dict(Counter(forms)),
        "gap": {pair: round(value, 4) for pair, value in centring.gap.items()},
        "skipped": len(encoded.skipped) + len(asked.skipped),
        "queries": compare_by_type(plain_QP, centred_QP, right, forms, types, seed),
    }


def _gallery(rows: Sequence[ProductRow], draw: bool, seed: int) -> tuple[list[ProductRow], list[str]]:
    """Return the products with contents, and the form in which each is searched."""
    rng = np.random.default_rng(seed)
    products = [row for row in rows if content_form(row)]
    forms = [content_form(row) for row in products]
    drawn = rng.choice(_DRAWN, len(products))
    return products, [str(one) if draw and form == "mm" else form for form, one in zip(forms, drawn, strict=True)]


def compare_by_type(
    plain_QP: np.ndarray,
    centred_QP: np.ndarray,
    right: Sequence[Sequence[int]],
    forms: Sequence[str],
    types: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """Return for each type of query, and for all, R@10 and the shares of each form without and with centring.

    Args:
        plain_QP, centred_QP: cosines; -inf for a product that is left out of a ranking.
        right: the right products of each query.
        forms: what each product contains.
        types: the type of each query.
        seed (`int`): of the interval of the difference. Default 0.
    """
    found = {}
    for kind in [*dict.fromkeys(types), "all"]:
        rows = [row for row, one in enumerate(types) if kind in (one, "all")]
        answers = [right[row] for row in rows]
        sides: dict[str, Any] = {}
        hits = []
        for name, score_QP in (("plain", plain_QP[rows]), ("centred", centred_QP[rows])):
            rank_Q = ranks(score_QP, answers)
            hits.append((rank_Q <= K).astype(np.float64))
            shares = form_balance(score_QP, answers, forms, K)
            sides[name] = {
                f"R@{K}": round(recall_at(rank_Q, K), 4),
                "forms": {
                    form: {key: _rounded(value) for key, value in asdict(one).items()} for form, one in shares.items()
                },
            }
        sides["difference"] = paired_difference(*hits, seed=seed)
        found[str(kind)] = {"number": len(rows)} | sides
    return found


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def mixed_gallery_table(results: Mapping[str, Any]) -> str:
    """Return the table of a study: for each gallery and type of query the shares of the forms and R@10."""
    rows = []
    for name, one in results["galleries"].items():
        for kind, sides in one["queries"].items():
            low, high = (100 * bound for bound in sides["difference"]["interval"])
            rows.append(
                [
                    name,
                    f"{kind} ({sides['number']})",
                    _shares(sides["plain"]["forms"], "right"),
                    *(_shares(sides[side]["forms"], "results") for side in ("plain", "centred")),
                    *(f"{100 * sides[side][f'R@{K}']:.1f}" for side in ("plain", "centred")),
                    f"{100 * sides['difference']['difference']:+.1f} ({low:+.1f} to {high:+.1f})",
                ]
            )
    headers = [
        "gallery",
        "queries",
        "right, % t/i/mm",
        "results, % t/i/mm",
        "centred",
        f"R@{K}",
        "centred",
        "difference",
    ]
    return tabulate(rows, headers=headers, disable_numparse=True)


def _shares(forms: Mapping[str, Any], key: str) -> str:
    return "/".join(f"{100 * forms[form][key]:.0f}" if form in forms else "–" for form in _DRAWN)


def write_mixed_study(
    models: Sequence[str], galleries: Mapping[str, ProductTables], output: Path | None, **options: Any
) -> dict[str, Any]:
    """Measure every model in every gallery, and write the results file.

    Args:
        models: folders or hub ids, see `retrieval.encode.load_for_evaluation`.
        galleries: name → products and queries.
        output: results file; None: none is written.
        **options: draw, seed, batch_size: see `measure_mixed_gallery`.

    Raises:
        OptionError: see `measure_mixed_gallery`.
        OutputError: the file cannot be written.
    """
    require_writable_file("--output", output)
    results: dict[str, Any] = {"galleries": {}, "options": options}
    for model in models:
        loaded = load_for_evaluation(model)
        for name, tables in galleries.items():
            key = f"{name}, {Path(model).name if Path(model).name != 'final' else Path(model).parent.name}"
            results["galleries"][key] = measure_mixed_gallery(*loaded, tables, **options)
    results["provenance"] = provenance(int(options.get("seed", 0)))
    if output is not None:
        write_atomically(output, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results
