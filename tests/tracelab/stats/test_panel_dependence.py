"""Dependence of batches, all series together: definitions, size, effective numbers, statuses."""

import math

import numpy as np
import pytest

from tracelab.errors import UsageError
from tracelab.stats import panel_dependence as module
from tracelab.stats.dependence import autocorrelation, dependence
from tracelab.stats.panel_dependence import panel_dependence
from tracelab.typing import Status


def autoregression(rng, rho, batches, series):
    x = rng.standard_normal((batches, series))
    for k in range(1, batches):
        x[k] = rho * x[k - 1] + math.sqrt(1 - rho**2) * x[k]
    return x


def test_is_the_definition():
    rng = np.random.default_rng(0)
    x = rng.standard_t(4, (101, 7)) * np.exp(rng.standard_normal(7))
    found = panel_dependence(x)
    r = autocorrelation(x, 1, axis=0)[:, 1].mean()
    assert found.rho == pytest.approx(r + (1 + 3 * r) / 101, abs=1e-12)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    products = (z[:-1] * z[1:]).mean(axis=1)
    assert found.rho_se == pytest.approx(products.std() / math.sqrt(101), rel=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_size_holds_however_much_series_depend(shared):
    """1,000 cells of independent batches, heavy tails, perhaps one factor for all series."""
    rng = np.random.default_rng([1, shared])
    x = rng.standard_t(3, (1_000, 100, 6))
    if shared:
        x *= rng.chisquare(2, (1_000, 100, 1))
    found = panel_dependence(x)
    for level in (0.05, 0.01):
        error = math.sqrt(level * (1 - level) / 1_000)
        assert np.mean(found.pvalue < level) < level + 4 * error
    # Geyer counts pairs of lags as long as chance makes them positive: some, not a tenth.
    assert found.effective.mean() == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("rho", [0.3, 0.8, -0.4])
def test_effective_number_of_an_autoregression(rho):
    rng = np.random.default_rng(2)
    found = panel_dependence([autoregression(rng, rho, 2_000, 20) for _ in range(20)])
    expected = 2_000 * (1 - rho) / (1 + rho)
    # Geyer's relative error is sqrt(2 (4 m + 1) / n) of one series, m up to 20 pairs at .8; a
    # fifth of it for 20 series, and a twentieth of bias from sums that end early.
    assert found.effective.mean() == pytest.approx(expected, rel=0.1)
    assert found.rho.mean() == pytest.approx(rho, abs=4 * math.sqrt((1 - rho**2) / 2_000 / 400))
    assert (found.pvalue < 1e-10).all()


def test_weak_dependence_is_seen_by_all_series_together():
    """No series alone shows a correlation of .08 in 300 batches; fifty of them do."""
    x = autoregression(np.random.default_rng(3), 0.08, 300, 50)
    alone = dependence(x, axis=0)
    assert np.median(np.abs(alone.rho) / alone.rho_se) < 2
    assert panel_dependence(x).pvalue < 1e-6


def test_units_order_and_neighbours_do_not_matter(monkeypatch):
    rng = np.random.default_rng(4)
    x = autoregression(rng, 0.3, 200, 10)
    found = panel_dependence(x)
    for other in (
        x[:, ::-1],
        x * np.array([1e-150, 1e150, -1.0, 3, 4, 5, 6, 7, 8, 9]) + 1e-160,
        np.column_stack([x, np.full(200, 3.0)]),
    ):
        again = panel_dependence(other)
        for name in ("rho", "rho_se", "effective"):
            np.testing.assert_allclose(getattr(again, name), getattr(found, name), rtol=1e-9)
    monkeypatch.setattr(module, "SERIES_AT_ONCE", 3)
    np.testing.assert_allclose(panel_dependence(x).effective, found.effective, rtol=1e-9)
    together = panel_dependence(np.stack([x * 2, x[::-1]]))
    np.testing.assert_array_equal(together.rho[1], panel_dependence(x[::-1].copy()).rho)


def test_statuses_and_refusals():
    x = np.random.default_rng(0).standard_normal((50, 3))
    broken = x.copy()
    broken[0, 0] = np.nan
    for given, status in (
        (broken, Status.NON_FINITE_INPUT),
        (x[:9], Status.TOO_FEW_SAMPLES),
        (np.ones((50, 3)), Status.CONSTANT_INPUT),
    ):
        found = panel_dependence(given)
        assert found.status == status
        assert np.isnan([found.rho, found.rho_se, found.pvalue, found.effective]).all()
    with pytest.raises(UsageError, match=r"shape \(\.\.\., batch, series\), got shape \(50,\)"):
        panel_dependence(x[:, 0])
