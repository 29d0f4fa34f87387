"""Exchange rates against values by hand."""

import numpy as np
import pytest

from applications.exchange_rate.rates import exchange, leave_one_out_r2, rank_correlation, slope

METRIC_K = np.array([0.1, 0.3, 0.4, 0.6, 0.8, 0.85])


def noisy(values_K, size, seed):
    return values_K[:, None] + size * np.random.default_rng(seed).standard_normal((len(values_K), 200))


def test_a_line_has_its_slope_as_rate_everywhere():
    auc_K = 0.5 + 0.2 * METRIC_K
    found = exchange(auc_K, METRIC_K, noisy(auc_K, 1e-4, 0), noisy(METRIC_K, 1e-4, 1))
    assert found["rate"]["value"] == pytest.approx(0.2)
    assert [rate["value"] for rate in found["rates"]] == pytest.approx([0.2] * 5)
    assert found["rate"]["interval"][0] < 0.2 < found["rate"]["interval"][1]
    assert found["rank_correlation"]["value"] == pytest.approx(1)
    assert found["leave_one_out_R2"]["value"] == pytest.approx(1)
    assert found["change"]["value"] == pytest.approx(0.75)


def test_a_metric_that_does_not_change_beyond_chance_has_no_rate():
    auc_K = 0.5 + 0.2 * METRIC_K
    still_K = np.array([0.50, 0.51, 0.49, 0.50, 0.51, 0.505])
    found = exchange(auc_K, still_K, noisy(auc_K, 1e-4, 0), noisy(still_K, 0.05, 1))
    assert found["rate"] is None
    assert found["rates"] == [None] * 5
    assert found["leave_one_out_R2"]["value"] < 0.5


def test_leave_one_out_r2_is_that_of_refitted_lines():
    auc_K = np.array([0.5, 0.58, 0.55, 0.62, 0.60, 0.66])
    error = total = 0.0
    for left_out in range(6):
        others = np.delete(np.arange(6), left_out)
        line = np.polyfit(METRIC_K[others], auc_K[others], 1)
        error += (auc_K[left_out] - np.polyval(line, METRIC_K[left_out])) ** 2
        total += (auc_K[left_out] - auc_K[others].mean()) ** 2
    assert leave_one_out_r2(METRIC_K, auc_K) == pytest.approx(1 - error / total)
    assert slope(METRIC_K, auc_K) == pytest.approx(np.polyfit(METRIC_K, auc_K, 1)[0])
    assert rank_correlation(METRIC_K, auc_K) == pytest.approx(0.885714, abs=1e-5)


def test_a_metric_without_relation_predicts_no_better_than_the_mean():
    auc_K = np.array([0.6, 0.5, 0.6, 0.5, 0.6, 0.5])
    assert leave_one_out_r2(METRIC_K, auc_K) < 0.2
    assert np.isnan(rank_correlation(np.ones(6), auc_K))
    assert leave_one_out_r2(np.ones(6), auc_K) == pytest.approx(0.0)


def test_few_checkpoints_are_refused():
    few = np.arange(4.0)
    with pytest.raises(ValueError, match="found 4 checkpoints; expected at least 5"):
        exchange(few, few, noisy(few, 1, 0), noisy(few, 1, 1))
