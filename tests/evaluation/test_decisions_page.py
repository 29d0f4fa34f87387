"""The page of decisions: chains, pairs nearest to a threshold first, and no more pairs than a reader can check."""

from __future__ import annotations

import numpy as np
from stored_products import units

from evaluation.decisions_page import decisions_page
from retrieval.decisions.calibration import Calibrator
from retrieval.decisions.deciding import Calibration, Catalogue, DecisionOptions, Decisions
from retrieval.decisions.groups import join_pairs
from retrieval.decisions.promises import Promise
from retrieval.stores.interface import StoredProduct


def test_chains_have_a_section_and_the_least_probable_pairs_come_first():
    pairs = np.array([(0, 1), (1, 2), (0, 2), *((n, n + 1) for n in range(4, 100, 2))])
    probability = np.array([0.99, 0.97, 0.5, *np.linspace(0.96, 0.999, 48)])
    decision = np.where(probability > 0.9, "same", "doubtful").astype(object)
    catalogue = Catalogue([StoredProduct(f"p{n:02}", f"thing {n:02}") for n in range(102)], units(102), "model")
    decisions = Decisions(pairs, np.zeros((51, 2)), probability, decision, join_pairs(pairs[decision == "same"], 102))
    promise = Promise(0.95, 0.95, 0.9, (), "of the pairs decided 'same', at least 95% are right")
    calibrator = Calibrator(("cosine", "margin"), (0, 0), (1, 1), (1, 1), 0.0)
    warnings = ("the labels are few",)
    calibration = Calibration("model", DecisionOptions(), calibrator, promise, promise, 80, 60, warnings=warnings)
    page = decisions_page(catalogue, calibration, decisions)
    assert "40 of 50 pairs: decided to be the same product" in page
    assert "<h2>Chains</h2>" in page
    assert "2 of their 2 decided pairs" in page
    assert "49 groups of duplicates with 99 products, 1 of them chains." in page
    assert "Of the pairs decided &#39;same&#39;" in page
    assert "the labels are few." in page
    same = page[page.index("<h2>Same</h2>") : page.index("<h2>Doubtful</h2>")]
    assert same.index("thing 04") < same.index("thing 06")  # .960 before .961
    assert "thing 98" not in same  # the most probable pair
    assert page.count("no picture") == 2 * (40 + 1 + 2)
