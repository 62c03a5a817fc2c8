"""Mohammadi's estimate by block length: exact expectations, the shape's size, and its readings."""

import math

import numpy as np
import pytest
from scipy import stats

from tracelab.errors import UsageError
from tracelab.stats import stable
from tracelab.stats.mohammadi import mohammadi
from tracelab.stats.mohammadi_profile import BLOCKS, GROUPS, SHAPES, mohammadi_profile
from tracelab.typing import Status


def shape(found):
    return SHAPES[int(found.shape)]


def autoregression(rng, rho, batches, series):
    x = rng.standard_normal((batches, series))
    for k in range(1, batches):
        x[k] = rho * x[k - 1] + math.sqrt(1 - rho**2) * x[k]
    return x


def test_is_the_estimator_of_the_papers_in_each_group():
    """By the other implementation, which has one series and one sample at a time."""
    rng = np.random.default_rng(0)
    x = rng.standard_t(3, (1_007, 4)) * np.array([1e-8, 1.0, 3.0, 1e9])
    found = mohammadi_profile(x)
    parts = x[:1_000].reshape(GROUPS, 100, 4)
    # Lengths of which half a group holds one block are all that the other takes.
    inverse = (1 / mohammadi(parts, axis=1, m=BLOCKS[:-1]).profile).mean(axis=1)
    np.testing.assert_allclose(found.alpha[:-1], 1 / inverse.mean(axis=0), rtol=1e-12)
    error = stats.sem(inverse, axis=0)
    np.testing.assert_allclose(found.alpha_se[:-1], error / inverse.mean(axis=0) ** 2, rtol=1e-10)
    whole = np.log(np.abs(parts.sum(axis=1))) - np.log(np.abs(parts)).mean(axis=1)
    by_group = whole.mean(axis=1) / math.log(100)
    np.testing.assert_allclose(found.alpha[-1], 1 / by_group.mean(), rtol=1e-12)
    each = np.column_stack([inverse, by_group])
    slopes = [-stats.linregress(np.log10(BLOCKS), row).slope for row in each]
    assert found.slope == pytest.approx(np.mean(slopes), rel=1e-9)
    half = stats.t.ppf(0.975, GROUPS - 1) * stats.sem(slopes)
    np.testing.assert_allclose(found.slope_high - found.slope, half, rtol=1e-9)
    np.testing.assert_allclose(found.slope - found.slope_low, half, rtol=1e-9)


def test_together_is_the_flattened_sample():
    x = np.random.default_rng(1).standard_t(3, (100, 6))
    found = mohammadi_profile(x, m=(2, 6), together=True)
    parts = x.reshape(GROUPS, 60)
    inverse = (1 / mohammadi(parts, m=(2, 6)).profile).mean(axis=0)
    np.testing.assert_allclose(found.alpha, 1 / inverse, rtol=1e-12)


def test_expectations():
    """E log |Y| of the sum of two Laplace values is 1/2 less Euler's constant, of one its minus.

    The density of the sum is (1 + |y|) exp(-|y|) / 4. Gaussian neighbours of correlation rho: the
    variance of a block sum is that of independent ones times tau(m).
    """
    rng = np.random.default_rng(2)
    found = mohammadi_profile(rng.laplace(size=(20_000, 20)), m=(2,))
    assert abs(1 / found.alpha[0] - 0.5 / math.log(2)) < 4 * found.alpha_se[0] / found.alpha[0] ** 2
    for rho in (0.9, 0.3, -0.5):
        found = mohammadi_profile(autoregression(rng, rho, 20_000, 20))
        for m, alpha, error in zip(BLOCKS, found.alpha, found.alpha_se, strict=True):
            lags = np.arange(1, m)
            tau = 1 + 2 * np.sum((1 - lags / m) * rho**lags)
            expected = 0.5 + 0.5 * math.log(tau) / math.log(m)
            # Ten groups: Student's t of nine degrees is beyond 5 once in 1,300 times.
            assert abs(1 / alpha - expected) < 5 * error / alpha**2, (rho, m)


@pytest.mark.parametrize("law", ["gaussian", "stable", "centred"])
@pytest.mark.parametrize("together", [False, True])
def test_flat_profiles_are_called_flat(law, together):
    """Ordered and shuffled, 300 cells: at most 1 % are called otherwise, and 4 binomial errors."""
    rng = np.random.default_rng([len(law), together])
    size = (300, 200, 8)
    x = stable.rvs(1.5, size=size, rng=rng) if law == "stable" else rng.standard_normal(size)
    if law == "centred":
        # As where the full-data gradient was not recorded.
        x -= x.mean(axis=1, keepdims=True)
    for order in (None, rng):
        found = mohammadi_profile(x, together=together, rng=order)
        wrong = np.mean(found.shape != SHAPES.index("flat"))
        assert wrong <= 0.01 + 4 * math.sqrt(0.01 * 0.99 / 300)
        covered = (found.slope_low <= 0) & (found.slope_high >= 0)
        if law != "centred":
            assert covered.mean() > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 300)


def test_centring_by_the_sample_is_no_shape():
    """Thousands of series see that block sums lack m/K of the variance; it is allowed for."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((8, 200, 4_000))
    centred = mohammadi_profile(x - x.mean(axis=1, keepdims=True), rng=rng)
    m = np.array([2, 5, 10, 20])
    # 1/alpha falls by the logarithm of what is left of the variance over 2 log m.
    lost = -0.5 * (np.log1p(-m / 200) - np.log1p(-1 / 200)) / np.log(m)
    expected = stats.linregress(np.log10(m), lost).slope
    error = centred.slope.std(ddof=1) / math.sqrt(8)
    # Seven degrees of freedom: beyond 5.4 once in a thousand times.
    assert abs(centred.slope.mean() - expected) < 5.4 * error
    assert centred.slope.mean() > 5.4 * error
    # At a one-sided .5 %, two or more of eight once in 1,400 times.
    assert (centred.shape == SHAPES.index("rising")).sum() <= 1


def test_errors_are_those_of_dependent_series():
    """Series of one minibatch share a factor: the scatter over cells is the standard error."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((300, 200, 10)) * rng.chisquare(3, (300, 200, 1))
    for together in (False, True):
        found = mohammadi_profile(x, m=(2, 10), together=together, rng=rng)
        inverse, error = 1 / found.alpha, found.alpha_se / found.alpha**2
        # A standard deviation of 300 cells is known to 4 %, the mean square of errors to 3 %.
        ratio = np.sqrt(np.mean(error**2, axis=0)) / inverse.std(axis=0, ddof=1)
        np.testing.assert_allclose(ratio, 1, atol=4 * 0.05)


def test_readings():
    rng = np.random.default_rng(3)
    n = (4_000, 30)
    mixture = rng.standard_normal(n) * np.exp(rng.standard_normal(n))
    for x in (rng.laplace(size=n), rng.standard_t(3, n), mixture):
        assert shape(mohammadi_profile(x, rng=rng)) == "rising"
    assert shape(mohammadi_profile(rng.standard_normal(n) + 0.1, rng=rng)) == "falling"
    # Random order takes away what neighbours have in common, and only that.
    dependent = autoregression(rng, 0.3, *n)
    ordered, shuffled = mohammadi_profile(dependent), mohammadi_profile(dependent, rng=rng)
    assert shape(ordered) == "rising"
    assert shape(shuffled) == "flat"
    assert ordered.alpha[0] < 1.6 < 1.9 < shuffled.alpha[0]
    # Scales that differ between series are a mixture only if values are thrown together.
    scaled = rng.standard_normal(n) * np.exp(rng.standard_normal(30))
    assert shape(mohammadi_profile(scaled, rng=rng)) == "flat"
    assert shape(mohammadi_profile(scaled, rng=rng, together=True)) == "rising"


def test_units_signs_and_neighbours_do_not_matter():
    rng = np.random.default_rng(4)
    x = rng.standard_t(4, (3, 500, 5))
    found = mohammadi_profile(x)
    alone = mohammadi_profile(x[1])
    np.testing.assert_array_equal(found.alpha[1], alone.alpha)
    np.testing.assert_array_equal(found.slope[1], alone.slope)
    other = mohammadi_profile(x[1] * np.array([-1.0, 1e-30, 1e30, 7.0, 1.0])[::-1])
    np.testing.assert_allclose(other.alpha, alone.alpha, rtol=1e-9)
    swapped = mohammadi_profile(x[1][:, ::-1])
    np.testing.assert_allclose(swapped.alpha, alone.alpha, rtol=1e-12)
    narrow = x.astype(np.float32)
    np.testing.assert_array_equal(
        mohammadi_profile(narrow).alpha, mohammadi_profile(narrow.astype(np.float64)).alpha
    )
    # One zero, as centring by the median leaves it, hardly moves anything; a dead unit goes.
    zero = x[1].copy()
    zero[7, 2] = 0
    np.testing.assert_allclose(mohammadi_profile(zero).alpha, alone.alpha, rtol=0.01)
    dead = np.column_stack([x[1], np.zeros(500), np.where(np.arange(500) % 3, x[1][:, 0], 0)])
    np.testing.assert_array_equal(mohammadi_profile(dead).alpha, alone.alpha)


def test_statuses_and_refusals():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 2))
    broken = x.copy()
    broken[3, 1] = np.inf
    for given, status in (
        (broken, Status.NON_FINITE_INPUT),
        (x[:19], Status.TOO_FEW_SAMPLES),
        (np.zeros((100, 2)), Status.CONSTANT_INPUT),
    ):
        found = mohammadi_profile(given)
        assert found.status == status
        assert np.isnan([*found.alpha, *found.alpha_se, found.slope, found.slope_low]).all()
        assert shape(found) == "none"
    # Two batches a group hold blocks of two, and no slope.
    few = mohammadi_profile(x[:20])
    assert few.status == Status.OK
    assert np.isfinite(few.alpha).tolist() == [True] + 5 * [False]
    assert np.isnan(few.slope)
    assert shape(few) == "none"
    with pytest.raises(UsageError, match="at least 2, got 1"):
        mohammadi_profile(x, m=(1, 2))
    with pytest.raises(UsageError, match=r"shape \(\.\.\., batch, series\), got shape \(100,\)"):
        mohammadi_profile(x[:, 0])
    with pytest.raises(UsageError, match="confidence"):
        mohammadi_profile(x, confidence=1.0)
