"""Show decided and doubtful pairs of products, or pairs to label, with their pictures, as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.pages import inline_picture, render
from processing_moon import ProductError, open_image
from retrieval.decisions.deciding import DIFFERENT, DOUBTFUL, SAME, Calibration, Catalogue, Decisions
from retrieval.decisions.pair_scores import PairScorer

_TEMPLATE = Path(__file__).with_suffix(".html.jinja")
_MOST_PAIRS, _SIDE = 40, 168


def decisions_page(catalogue: Catalogue, calibration: Calibration, decisions: Decisions) -> str:
    """Return a page with the promises, the number of pairs by decision, and pairs with pictures.

    The pairs nearest to a threshold are shown first: they are the ones to check.

    Args:
        catalogue, calibration, decisions: from `retrieval.decisions.deciding`.
    """
    sections = []
    chains = [group for group in decisions.groups if group.is_chain]
    notes = {
        SAME: "decided to be the same product; the least probable ones first",
        DOUBTFUL: "neither promise covers these pairs; the most probable ones first",
        DIFFERENT: "decided to be different products; the most probable ones (of being the same) first",
    }
    for decision, note in notes.items():
        rows = decisions.rows_of(decision)
        if len(rows):
            shown = (rows[::-1] if decision == SAME else rows)[:_MOST_PAIRS]
            sections.append(
                _section(
                    decision.capitalize(), f"{len(shown)} of {len(rows)} pairs: {note}", catalogue, decisions, shown
                )
            )
    if chains:
        sections.append(_chain_section(chains, catalogue, decisions))
    counts = [(name, int((decisions.decision_P == name).sum())) for name in notes]
    groups = sum(len(group.rows) for group in decisions.groups)
    return render(
        _TEMPLATE,
        title="Same products",
        sentences=[
            _sentence(calibration.same.sentence),
            _sentence(calibration.different.sentence),
            f"{calibration.labelled} labelled candidates, {calibration.labelled_same} of them the same product. "
            f"{len(decisions.groups)} groups of duplicates with {groups} products, {len(chains)} of them chains.",
            *(
                [f"Nothing is decided about {len(catalogue.without)} products without a vector."]
                if catalogue.without
                else []
            ),
        ],
        warnings=calibration.warnings,
        counts=counts,
        sections=sections,
    )


def labelling_page(catalogue: Catalogue, pair_P2: np.ndarray, neighbours: int) -> str:
    """Return a page with the pictures of pairs to label, in the order of to_label.csv.

    Args:
        catalogue: products and vectors.
        pair_P2: (P, 2) rows.
        neighbours: number of neighbours of the margin.
    """
    feature_PF = PairScorer.of(catalogue.vector_ND, neighbours).features(pair_P2)
    pairs = [_pair(catalogue, pair, features, None) for pair, features in zip(pair_P2, feature_PF, strict=True)]
    note = "in the order of to_label.csv; fill its column same with 1 (the same product) or 0"
    section = {"title": f"{len(pairs)} candidates", "note": note, "pairs": pairs}
    return render(_TEMPLATE, title="Pairs to label", sentences=[], warnings=(), counts=[], sections=[section])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _section(
    title: str, note: str, catalogue: Catalogue, decisions: Decisions, rows: Sequence[int] | np.ndarray
) -> dict[str, Any]:
    pairs = [
        _pair(catalogue, decisions.pair_P2[row], decisions.feature_PF[row], float(decisions.probability_P[row]))
        for row in rows
    ]
    return {"title": title, "note": note, "pairs": pairs}


def _chain_section(chains: Sequence[Any], catalogue: Catalogue, decisions: Decisions) -> dict[str, Any]:
    """Return the decided pairs of groups in which another pair is not decided."""
    inside = {row: number for number, group in enumerate(chains) for row in group.rows}
    rows = [row for row in decisions.rows_of(SAME) if int(decisions.pair_P2[row][0]) in inside]
    rows.sort(key=lambda row: inside[int(decisions.pair_P2[row][0])])
    note = (
        f"{len(chains)} groups in which some pair is not decided itself: a = b and b = c join a and c, which no promise "
        f"covers. {min(len(rows), _MOST_PAIRS)} of their {len(rows)} decided pairs"
    )
    return _section("Chains", note, catalogue, decisions, rows[:_MOST_PAIRS])


def _pair(catalogue: Catalogue, pair: np.ndarray, features: np.ndarray, probability: float | None) -> dict[str, Any]:
    sides = []
    for row in pair:
        product = catalogue.products[row]
        picture = _inline(next(iter(product.images), None))
        sides.append({"product_id": product.product_id, "title": product.title, "picture": picture})
    scores = {"cosine": f"{features[0]:.3f}", "margin": f"{features[1]:.3f}"}
    return {"sides": sides, "probability": "" if probability is None else f"{probability:.3f}"} | scores


def _inline(source: Any) -> str:
    """Return the `src` of a picture; "" if there is none, or if it cannot be read or is not on this machine."""
    if source is None:
        return ""
    try:
        return inline_picture(open_image(source), _SIDE)
    except ProductError:
        return ""
