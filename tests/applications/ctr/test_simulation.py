"""Simulated clicks follow the documented model, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from clicks import SMALL, clicks, shop
from sklearn.metrics import roc_auc_score

from applications.ctr.simulation import BehaviourSettings, key_importance, simulate
from product_data.errors import OptionError
from product_data.rows import ProductRow, QueryRow


def test_a_seed_gives_the_same_log_and_another_seed_another_one():
    assert clicks(0).digest == clicks(0).digest
    assert clicks(0).digest != clicks(1).digest


def test_the_log_says_that_it_is_simulated_and_how():
    log = clicks(7)
    assert log.simulation["seed"] == 7
    assert log.simulation["users"] == SMALL.users
    assert log.simulation["importance"]["colour"] == 1.0


def test_clicks_have_the_stated_probabilities():
    log = clicks(settings=replace(SMALL, users=300))
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        rows = (log.probability_N >= low) & (log.probability_N < high)
        error = 4 * np.sqrt(0.25 / rows.sum())
        assert abs(log.clicked_N[rows].mean() - log.probability_N[rows].mean()) < error


def test_no_product_is_shown_before_it_arrives_and_new_ones_keep_arriving():
    log = clicks(settings=replace(SMALL, new_share=0.5))
    half = log.time_N < np.median(log.time_N)
    first, later = set(log.product_N[half]), set(log.product_N[~half])
    assert len(later - first) >= 5
    everything = clicks(settings=replace(SMALL, new_share=0.0, users=300))
    assert len(set(everything.product_N[: len(everything) // 4])) > 55


def test_a_session_shows_different_products_at_one_time():
    log = clicks()
    sessions = {}
    for user, time, product in zip(log.user_N, log.time_N, log.product_N, strict=True):
        sessions.setdefault((user, time), []).append(product)
    assert all(len(set(shown)) == len(shown) == SMALL.shown for shown in sessions.values())


def test_without_weights_clicks_are_chance_and_taste_alone_makes_users_differ():
    flat = replace(SMALL, users=200, taste=0, relevance=0, popularity=0, price=0, noise=0, intercept=-1)
    log = clicks(settings=flat)
    assert np.allclose(log.probability_N, 1 / (1 + np.e))
    tasted = clicks(settings=replace(flat, taste=2.0))
    mean_P = np.array([tasted.probability_N[tasted.product_N == product].mean() for product in range(60)])
    assert tasted.probability_N.std() > 0.2
    assert mean_P.std() < 0.5 * tasted.probability_N.std()  # the same product is liked by some and not by others


def test_tastes_are_about_attributes():
    """A user likes products that share values: the user's own earlier rate for a colour predicts later clicks."""
    settings = replace(SMALL, users=40, sessions=120, relevance=0, popularity=0, price=0, drift=0, new_share=0)
    log = clicks(settings=settings)
    colours = [row.attributes["colour"][0] for row in shop()]
    early = log.time_N < np.median(log.time_N)
    rate = {}
    for user, product, clicked in zip(log.user_N[early], log.product_N[early], log.clicked_N[early], strict=True):
        rate.setdefault((user, colours[product]), []).append(clicked)
    scores = [
        np.mean(rate.get((user, colours[product]), [0]))
        for user, product in zip(log.user_N[~early], log.product_N[~early], strict=True)
    ]
    assert roc_auc_score(log.clicked_N[~early], scores) > 0.6


def test_the_importance_of_a_key_is_how_often_queries_name_its_value():
    products = [
        ProductRow("1", attributes={"colour": ("dark blue",), "size": ("M",)}),
        ProductRow("2", attributes={"colour": ("red",), "size": ("L",)}),
    ]
    queries = [
        QueryRow("a", "text", text="a Dark-Blue hat", positives=("1",)),
        QueryRow("b", "text", text="redder mittens", positives=("2",)),  # "red" is no word of it
        QueryRow("c", "text", text="anything", positives=("unknown",)),
    ]
    assert key_importance(products, queries) == {"colour": 0.5, "size": 0.0}
    assert key_importance(products, []) == {"colour": 1.0, "size": 1.0}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("users", 0),
        ("shown", 1.5),
        ("new_share", 1.2),
        ("drift", -0.1),
        ("taste", -1.0),
        ("noise", float("nan")),
        ("interest", 0),
    ],
)
def test_a_parameter_out_of_range_is_refused(option, value):
    with pytest.raises(OptionError, match=option):
        BehaviourSettings(**{option: value})


def test_products_that_cannot_be_simulated_are_refused():
    with pytest.raises(OptionError, match="without attributes"):
        simulate([ProductRow("1")] * 20, settings=SMALL)
    with pytest.raises(OptionError, match="at least as many products"):
        simulate(shop(6), settings=replace(SMALL, shown=8))
