"""Autocorrelations against their sum, statsmodels' test and autoregressions of known dependence."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal
from statsmodels.stats.diagnostic import acorr_ljungbox
from statsmodels.tsa.stattools import acf

from tracelab.errors import UsageError
from tracelab.stats.dependence import autocorrelation, dependence
from tracelab.typing import Status


def ar1(rho: float, rows: int, n: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((rows, n + 500))
    return signal.lfilter([1], [1, -rho], noise, axis=-1)[:, 500:]


@pytest.mark.parametrize("n", [10, 37, 1000])
def test_correlations_are_the_definition(n: int) -> None:
    x = ar1(0.6, 3, n, 0).astype(np.float32)
    lags = min(20, n - 1)
    found = autocorrelation(x, lags)
    for row, mine in zip(x.astype(np.float64), found, strict=True):
        c = row - row.mean()
        expected = [(c[: n - k] * c[k:]).sum() / (c * c).sum() for k in range(lags + 1)]
        np.testing.assert_allclose(mine, expected, atol=1e-12)
        np.testing.assert_allclose(mine, acf(row, nlags=lags, fft=False), atol=1e-12)


def test_ljung_and_boxs_statistic_is_statsmodels() -> None:
    x = ar1(0.1, 4, 300, 1)
    for lags in (1, 10, 25):
        found = dependence(x, lags=lags)
        assert found.lags == lags
        for row in range(4):
            theirs = acorr_ljungbox(x[row], lags=[lags])
            np.testing.assert_allclose(found.ljung_box[row], theirs["lb_stat"], rtol=1e-9)
            np.testing.assert_allclose(found.pvalue[row], theirs["lb_pvalue"], rtol=1e-7)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_autoregressions(rho: float) -> None:
    """Of first order: the mean has the variance of n (1 - rho) / (1 + rho) values."""
    rows, n = 400, 4000
    found = dependence(ar1(rho, rows, n, 2))
    assert (found.status == Status.OK).all()
    true = n * (1 - rho) / (1 + rho)
    # Sums that end at the first pair that noise makes negative scatter by some per cent.
    error = found.effective_se.mean()
    assert abs(np.median(found.effective) - true) < 0.05 * true + 4 * error / math.sqrt(rows)
    assert abs(found.rho.mean() - rho) < 4 * found.rho_se.mean() / math.sqrt(rows) + 2 / n
    assert abs(found.rho.std() / found.rho_se.mean() - 1) < 4 / math.sqrt(2 * rows)
    # The means themselves.
    spread = ar1(rho, rows, n, 3).mean(axis=-1).std() * math.sqrt(1 - rho**2)
    assert abs(spread * math.sqrt(true) - 1) < 4 / math.sqrt(2 * rows)
    if rho >= 0:
        ratio = found.effective.std() / error
        assert 0.5 < ratio < 1.6


def test_the_size_of_the_test() -> None:
    rows = 4000
    found = dependence(np.random.default_rng(4).standard_normal((rows, 200)))
    rate = (found.pvalue < 0.05).mean()
    # Four binomial standard errors, and what ten lags of 200 values are off: some 1 %.
    assert abs(rate - 0.05) < 4 * math.sqrt(0.05 * 0.95 / rows) + 0.01
    assert abs(np.median(found.effective) / 200 - 1) < 0.1


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(1e-200, 1e200), st.floats(-50, 50))
def test_invariances(seed: int, scale: float, shift: float) -> None:
    x = ar1(0.4, 3, 64, seed)
    found = dependence(x)
    moved = dependence(scale * (x + shift))
    for name in ("rho", "ljung_box", "pvalue", "effective"):
        here, there = getattr(found, name), getattr(moved, name)
        np.testing.assert_allclose(there, here, rtol=1e-8, atol=1e-12)
        np.testing.assert_array_equal(getattr(dependence(x.T, axis=0), name), here)
        alone = [getattr(dependence(row), name) for row in x]
        np.testing.assert_allclose(alone, here, rtol=1e-9)
        backwards = getattr(dependence(x[:, ::-1]), name)
        np.testing.assert_allclose(backwards, here, rtol=1e-8, atol=1e-12)


def test_statuses() -> None:
    x = np.random.default_rng(5).standard_normal((4, 50))
    x[1, 2], x[2] = np.nan, 3.0
    found = dependence(x)
    names = [Status(each).name for each in found.status]
    assert names == ["OK", "NON_FINITE_INPUT", "CONSTANT_INPUT", "OK"]
    for each in (found.rho, found.rho_se, found.ljung_box, found.pvalue, found.effective):
        assert np.isfinite(each).tolist() == [True, False, False, True]
    assert np.isnan(autocorrelation(x, 3)[1:3]).all()
    assert (dependence(x[:, :9]).status[[0, 2, 3]] == Status.TOO_FEW_SAMPLES).all()
    assert dependence(np.empty((0, 20))).rho.shape == (0,)
    assert dependence(np.empty((2, 0))).status.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: autocorrelation(x, 20), "lags must be from 1 to 19, below the 20 values"),
        (lambda x: dependence(x, lags=0), "lags must be from 1 to 19"),
        (lambda x: dependence(x + 0j), "samples must be real numbers"),
        (lambda x: dependence(x, axis=2), "axis 2 is not an axis"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(np.random.default_rng(0).standard_normal((2, 20)))
