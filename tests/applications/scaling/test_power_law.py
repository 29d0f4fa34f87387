"""Power laws: known parameters are found, the floor is chosen by AICc, and what cannot be fitted is refused."""

import numpy as np
import pytest

from applications.scaling.power_law import ScalingError, fit, fit_with_intervals, sentence

X = np.array([10, 30, 100, 300, 1000, 3000])


def noisy(loss_X, size=0.01, seeds=3, seed=0):
    rng = np.random.default_rng(seed)
    return (loss_X[:, None] * np.exp(size * rng.standard_normal((len(loss_X), seeds)))).tolist()


@pytest.mark.parametrize(("a", "b", "c"), [(2.0, 0.3, 0.0), (5.0, 0.5, 0.4), (0.7, -0.1, 0.0)])
def test_known_parameters_are_found(a, b, c):
    found = fit_with_intervals(X, noisy(a * X**-b + c), resamples=60)
    assert found["law"] == ("a·x^(−b) + c" if c else "a·x^(−b)")
    assert found["b"]["value"] == pytest.approx(b, abs=0.05)
    low, high = found["b"]["interval"]
    assert low - 0.02 < b < high + 0.02
    assert found["falls"] == (b > 0)
    if c:
        assert found["c"]["value"] == pytest.approx(c, abs=0.05)


def test_four_points_have_no_floor():
    assert not fit(X[:4], 5.0 * X[:4] ** -0.5 + 0.4).has_floor


def test_an_exponent_whose_interval_contains_0_is_called_so():
    found = [fit_with_intervals(X, noisy(np.full(6, 0.5), size=0.1, seed=seed), resamples=60) for seed in range(12)]
    containing = [one for one in found if one["b"]["interval"][0] <= 0 <= one["b"]["interval"][1]]
    assert len(containing) >= 9
    assert not any(one["falls"] for one in containing)
    assert "the interval contains 0" in sentence("tokens", containing[0])


def test_a_clear_exponent_is_called_by_its_sign():
    assert "the loss falls with tokens" in sentence("tokens", fit_with_intervals(X, noisy(2.0 * X**-0.3), resamples=50))
    assert "GROWS" in sentence("tokens", fit_with_intervals(X, noisy(0.1 * X**0.2), resamples=50))


def test_one_seed_has_no_interval():
    found = fit_with_intervals(X, noisy(2.0 * X**-0.3, seeds=1))
    assert found["b"]["interval"] is None
    assert found["falls"] is None
    assert "one seed" in sentence("tokens", found)


def test_few_values_and_losses_of_0_are_refused():
    with pytest.raises(ScalingError, match="found 3 distinct values of x; expected at least 4"):
        fit([1, 2, 2, 3], [1, 0.9, 0.9, 0.8])
    with pytest.raises(ScalingError, match="numbers above 0"):
        fit([1, 2, 3, 4], [1, 0.9, 0.0, 0.8])
