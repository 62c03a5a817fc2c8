import math

import numpy as np
import pytest
import scipy.stats

from tracelab.errors import UsageError
from tracelab.stats import stable
from tracelab.typing import Status


def fitted(x):
    found = stable.fit(x)
    return stable.goodness_of_fit(x, found.alpha, found.loc, found.scale)


def test_statistic_follows_its_definition():
    x = stable.rvs(1.4, loc=1, scale=2, size=60, rng=np.random.default_rng(1))
    f = stable.cdf(np.sort(x), 1.4, 0, 1, 2)
    g = stable.sf(np.sort(x), 1.4, 0, 1, 2)
    i = np.arange(1, 61)
    expected = -60 - np.mean((2 * i - 1) * (np.log(f) + np.log(g[::-1])))
    found = stable.goodness_of_fit(x, 1.4, 1, 2)
    assert found.statistic == pytest.approx(expected, rel=1e-10)
    # At alpha = 2 it is the statistic of the normal law.
    z = np.sort(scipy.stats.norm.cdf(x, 1, 2 * math.sqrt(2)))
    expected = -60 - np.mean((2 * i - 1) * (np.log(z) + np.log1p(-z[::-1])))
    assert stable.goodness_of_fit(x, 2, 1, 2).statistic == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("alpha", "n"), [(0.55, 150), (1.1, 40), (1.5, 400), (1.9, 400), (2.0, 60)]
)
def test_level_is_exact(alpha, n):
    # Between the nodes of the table.
    x = stable.rvs(alpha, loc=1, scale=5, size=(1500, n), rng=np.random.default_rng(2))
    pvalue = fitted(x).pvalue
    for level in (0.05, 0.2, 0.5):
        # Four binomial standard deviations, and a tenth for the use of the estimated alpha.
        slack = 4 * math.sqrt(level * (1 - level) / 1500) + 0.1 * level
        assert np.mean(pvalue < level) == pytest.approx(level, abs=slack)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "point"),
    [(1.1, 1.08), (1.3, 0.78), (1.5, 0.68), (1.7, 0.61), (1.9, 0.64), (2.0, 0.71)],
)
def test_points_match_an_independent_simulation(alpha, point):
    # 95 % points at n = 2000 of another implementation, to two digits.
    x = stable.rvs(alpha, size=(2000, 2000), rng=np.random.default_rng(3))
    found = fitted(x)
    assert np.quantile(found.statistic, 0.95) == pytest.approx(point, rel=0.1)
    assert np.mean(found.pvalue < 0.05) == pytest.approx(0.05, abs=0.02)


def test_other_laws_are_rejected():
    rng = np.random.default_rng(4)
    x = np.array([rng.laplace(size=3000), rng.uniform(size=3000), rng.exponential(size=3000)])
    found = fitted(x)
    assert np.all(found.pvalue < 0.01)
    assert np.all(found.pvalue > 0)


def test_pvalue_falls_with_the_statistic():
    rng = np.random.default_rng(5)
    shifts = np.linspace(0, 5, 60)
    x = rng.standard_normal(200)
    found = stable.goodness_of_fit(np.tile(x, (60, 1)), 1.8, shifts, 1.0)
    order = np.argsort(found.statistic)
    assert np.all(np.diff(found.pvalue[order]) <= 0)
    assert np.all((found.pvalue > 0) & (found.pvalue <= 1))


def test_cells_and_units_do_not_matter():
    x = stable.rvs(1.6, size=(2, 3, 100), rng=np.random.default_rng(6))
    together = stable.goodness_of_fit(np.moveaxis(x, -1, 0), 1.6, 0.1, 0.9, axis=0)
    assert together.statistic.shape == (2, 3)
    for cell in np.ndindex(2, 3):
        alone = stable.goodness_of_fit(x[cell], 1.6, 0.1, 0.9)
        assert alone.statistic == together.statistic[cell]
        assert alone.pvalue == together.pvalue[cell]
    scaled = stable.goodness_of_fit(x * 2.0**-40, 1.6, 0.1 * 2.0**-40, 0.9 * 2.0**-40)
    np.testing.assert_array_equal(scaled.statistic, together.statistic)


def test_outliers_keep_the_statistic_finite():
    x = np.append(np.random.default_rng(7).standard_normal(100), 1e30)
    found = stable.goodness_of_fit(x, 2.0, 0.0, 0.7)
    assert np.isfinite(found.statistic)
    assert found.pvalue < 1e-6


def test_statuses():
    x = np.random.default_rng(8).standard_normal((3, 20))
    x[1, 4] = np.nan
    found = stable.goodness_of_fit(x, [1.5, 1.5, np.nan], 0.0, 1.0)
    assert found.status.tolist() == [
        int(Status.OK),
        int(Status.NON_FINITE_INPUT),
        int(Status.NON_FINITE_INPUT),
    ]
    assert np.isfinite(found.pvalue).tolist() == [True, False, False]
    few = stable.goodness_of_fit(x[:1, :7], 1.5, 0.0, 1.0)
    assert few.status.tolist() == [int(Status.TOO_FEW_SAMPLES)]


def test_bad_parameters():
    with pytest.raises(UsageError, match=r"alpha must be in \[0.3, 2\], got 2.5"):
        stable.goodness_of_fit(np.zeros(10), 2.5, 0, 1)
    with pytest.raises(UsageError, match="scale must be positive, got 0"):
        stable.goodness_of_fit(np.zeros(10), 1.5, 0, 0)
