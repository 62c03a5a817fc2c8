import doctest

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.stats import survival
from tracelab.typing import Status


def weibull_draws(rng, shape, scale, size, limit=np.inf):
    times = scale * rng.weibull(shape, size)
    return np.minimum(times, limit), times > limit


def test_doctests():
    assert doctest.testmod(survival).failed == 0


def test_exponential_mean_and_interval_are_exact_without_censoring():
    times = np.random.default_rng(0).exponential(3.0, 12)
    found = survival.exponential(times, confidence=0.9)
    assert found.mean == pytest.approx(times.mean())
    # Twice the sum over the mean is chi-square with 2n degrees of freedom.
    low, high = 2 * times.sum() / scipy.stats.chi2(24).ppf([0.95, 0.05])
    assert (found.mean_low, found.mean_high) == pytest.approx((low, high))


@pytest.mark.parametrize("limit", [np.inf, 2.0, 0.5])
def test_exponential_intervals_cover(limit):
    rng = np.random.default_rng(1)
    times, censored = weibull_draws(rng, 1, 1.0, (4000, 25), limit)
    found = survival.exponential(times, censored)
    covered = np.mean((found.mean_low < 1) & (found.mean_high > 1))
    # Conservative under censoring; three binomial standard deviations.
    assert covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 4000)
    assert covered < (0.96 if np.isinf(limit) else 0.985)


def test_nothing_happened():
    found = survival.exponential([[2.0, 3.0], [1.0, np.nan]], [[True, True], [False, False]])
    assert found.status.tolist() == [Status.TOO_FEW_SAMPLES, Status.NON_FINITE_INPUT]
    assert np.isnan(found.mean).all()
    # P(no event in 5 units) = exp(-5 / mean) = .05 there.
    assert found.mean_low[0] == pytest.approx(5 / -np.log(0.05))
    assert found.mean_high[0] == np.inf
    assert np.isnan(found.mean_low[1])


def test_weibull_agrees_with_scipy():
    rng = np.random.default_rng(2)
    for shape in (0.4, 1.0, 3.0):
        times, _ = weibull_draws(rng, shape, 7.0, 300)
        found = survival.weibull(times)
        expected, _, scale = scipy.stats.weibull_min.fit(times, floc=0)
        # SciPy's search stops at a relative 1e-4 or so.
        assert found.shape == pytest.approx(expected, rel=1e-3)
        assert found.scale == pytest.approx(scale, rel=1e-3)
        assert found.mean == pytest.approx(
            scipy.stats.weibull_min(float(found.shape), scale=float(found.scale)).mean()
        )


def test_weibull_maximizes_the_censored_likelihood():
    times, censored = weibull_draws(np.random.default_rng(3), 0.7, 2.0, 200, 3.0)
    found = survival.weibull(times, censored)

    def loglik(shape, scale):
        law = scipy.stats.weibull_min(shape, scale=scale)
        return law.logpdf(times[~censored]).sum() + law.logsf(times[censored]).sum()

    k, scale = float(found.shape), float(found.scale)
    h = 1e-3
    grid = [
        [loglik(k * np.exp(i * h), scale * np.exp(j * h)) for j in (-1, 0, 1)] for i in (-1, 0, 1)
    ]
    assert grid[1][1] == np.max(grid)
    information = -np.array(
        [
            [grid[2][1] - 2 * grid[1][1] + grid[0][1], 0],
            [0, grid[1][2] - 2 * grid[1][1] + grid[1][0]],
        ]
    )
    cross = -(grid[2][2] - grid[2][0] - grid[0][2] + grid[0][0]) / 4
    information[0, 1] = information[1, 0] = cross
    se = np.sqrt(np.diag(np.linalg.inv(information / h**2)))
    assert found.shape_se / k == pytest.approx(se[0], rel=1e-4)
    assert found.scale_se / scale == pytest.approx(se[1], rel=1e-4)
    mean = times.sum() / np.count_nonzero(~censored)
    ratio = 2 * (grid[1][1] - loglik(1.0, mean))
    assert found.pvalue == pytest.approx(scipy.stats.chi2(1).sf(ratio), rel=1e-6)


def test_weibull_intervals_cover_and_test_has_its_size():
    times, censored = weibull_draws(np.random.default_rng(4), 1.0, 5.0, (2000, 100), 8.0)
    found = survival.weibull(times, censored)
    assert (found.status == Status.OK).all()
    # 2,000 samples: three binomial standard deviations, and what the normal law misses at n = 100.
    for low, high, true in (
        (found.shape_low, found.shape_high, 1),
        (found.scale_low, found.scale_high, 5),
    ):
        assert np.mean((low < true) & (true < high)) == pytest.approx(0.95, abs=0.02)
    assert np.mean(found.pvalue < 0.05) == pytest.approx(0.05, abs=0.02)


def test_weibull_statuses():
    found = survival.weibull(
        [[1.0, 1, 2, 3], [1, 2, 3, 4], [0, 0, 1, 1], [np.inf, 1, 2, 3]],
        [[False, False, True, True], [False] * 4, [False] * 4, [False] * 4],
    )
    assert found.status.tolist() == [
        Status.TOO_FEW_SAMPLES, Status.OK, Status.TOO_FEW_SAMPLES, Status.NON_FINITE_INPUT
    ]  # fmt: skip
    assert np.isnan(found.shape[[0, 2, 3]]).all()
    assert survival.weibull(np.zeros((0, 5))).shape.shape == (0,)


def test_kaplan_meier_by_hand():
    # Kaplan and Meier's own kind of table: 5 at risk, an event, a censoring, two events, one left.
    curve = survival.kaplan_meier([1.0, 2, 3, 3, 5], [False, True, False, False, True])
    assert curve.time.tolist() == [1, 3]
    np.testing.assert_allclose(curve.survival, [4 / 5, 4 / 5 * 1 / 3])
    assert curve.at_risk.tolist() == [5, 3]
    greenwood = curve.survival * np.sqrt(np.cumsum([1 / (5 * 4), 2 / (3 * 1)]))
    np.testing.assert_allclose(curve.se, greenwood)
    assert ((curve.low < curve.survival) & (curve.survival < curve.high)).all()
    assert survival.kaplan_meier([1.0, 2], [True, True]).time.size == 0
    last = survival.kaplan_meier([1.0, 2.0])
    assert last.survival[-1] == 0
    assert np.isnan(last.high[-1])


def test_kaplan_meier_covers():
    rng = np.random.default_rng(5)
    inside = []
    for _ in range(400):
        times, censored = weibull_draws(rng, 1, 1.0, 60, 2.0)
        curve = survival.kaplan_meier(times, censored)
        at = np.searchsorted(curve.time, 0.7) - 1
        inside.append(curve.low[at] < np.exp(-0.7) < curve.high[at])
    # Three binomial standard deviations of 400 intervals.
    assert np.mean(inside) == pytest.approx(0.95, abs=0.033)


def test_log_rank_by_hand():
    # Of 1, 2 | 3, 4 the first sample is expected to have 2/4 + 1/3 of the events.
    found = survival.log_rank([[1.0, 2.0], [3.0, 4.0]])
    expected, variance = 2 / 4 + 1 / 3, 1 / 4 + 2 / 9
    assert found.statistic == pytest.approx((2 - expected) ** 2 / variance)
    assert found.pvalue == pytest.approx(scipy.stats.chi2(1).sf(found.statistic))
    assert found.degrees == 1
    assert survival.log_rank([[1.0], [2.0]], [[True], [True]]).status == Status.TOO_FEW_SAMPLES


def test_bad_input():
    for call, message in (
        (lambda: survival.exponential([-1.0]), "times must not be negative"),
        (lambda: survival.exponential([1.0], [1]), "censored must be true or false"),
        (lambda: survival.exponential([1.0, 2.0], [True] * 3), "of the shape of the times"),
        (lambda: survival.exponential([1.0], confidence=1), "confidence"),
        (lambda: survival.weibull(["a"]), "real numbers"),
        (lambda: survival.kaplan_meier([[1.0], [2.0]]), "one axis"),
        (lambda: survival.kaplan_meier([np.nan]), "times must be finite"),
        (lambda: survival.log_rank([[1.0]]), "two samples or more"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_the_unit_of_time_does_not_matter(seed, unit):
    times, censored = weibull_draws(np.random.default_rng(seed), 0.8, 1.0, (3, 20), 1.5)
    plain, scaled = (survival.weibull(factor * times, censored) for factor in (1.0, unit))
    np.testing.assert_allclose(scaled.shape, plain.shape, rtol=1e-7)
    np.testing.assert_allclose(scaled.scale, unit * plain.scale, rtol=1e-7)
    permuted = np.random.default_rng(0).permutation(20)
    again = survival.weibull(times[:, permuted], censored[:, permuted])
    np.testing.assert_allclose(again.shape, plain.shape, rtol=1e-7)
