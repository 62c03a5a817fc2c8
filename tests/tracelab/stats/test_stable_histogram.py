"""Fits of counted values against those of the values themselves."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.histogram import Histogram
from tracelab.stats import _stable_histogram, stable
from tracelab.typing import Status

FINE = Histogram(mantissa_bits=7)
NAMES = ("alpha", "scale", "loc")


def test_doctests():
    assert doctest.testmod(_stable_histogram).failed == 0


def shifts(counted, whole, names=NAMES):
    """Return the differences of the estimates in standard errors, shape (name, row)."""
    return np.array(
        [
            (getattr(counted, name) - getattr(whole, name)) / getattr(whole, f"{name}_se")
            for name in names
        ]
    )


def draws(alpha, rows, n, loc=0.0, beta=0.0):
    rng = np.random.default_rng((round(100 * alpha), n))
    return stable.rvs(alpha, beta, loc, size=(rows, n), rng=rng, parametrization="S0")


@pytest.mark.parametrize("loc", [0, 5])
@pytest.mark.parametrize("alpha", [1.1, 1.5, 1.9])
@pytest.mark.parametrize(("rows", "n"), [(60, 1000), (20, 9000)])
def test_nothing_is_lost(alpha, loc, rows, n):
    x = draws(alpha, rows, n, loc)
    counted, whole = stable.fit_histogram(FINE.count(x), FINE), stable.fit(x)
    assert np.all(counted.status == Status.OK)
    assert np.all(counted.n_samples == n)
    found = shifts(counted, whole)
    # The goal: a mean shift of .05 standard errors, and a loss of 1.02, so a scatter of .2.
    assert np.all(np.abs(found.mean(axis=1)) < 0.05)
    assert np.all(np.mean(found**2, axis=1) < 1.02**2 - 1)
    for name in NAMES:
        error = f"{name}_se"
        # Errors go with the estimates, which differ by .04: those of alpha fall to 2 like
        # sqrt(2 - alpha), a standard error of which is .1 of 2 - alpha at most in these samples.
        np.testing.assert_allclose(getattr(counted, error), getattr(whole, error), rtol=0.02)
    # Within bins of a relative width 1/128 the log-likelihood of a value scatters by
    # (1 + alpha) / (128 sqrt(12)) at most while tails are counted in the window; 6 of those.
    bound = 6 * 3 / (128 * math.sqrt(12)) * math.sqrt(n)
    if loc == 0 and alpha > 1.2:
        assert np.all(np.abs(counted.loglik - whole.loglik) < bound)


@pytest.mark.slow
@pytest.mark.parametrize("loc", [0, 5])
@pytest.mark.parametrize("alpha", [1.1, 1.5, 1.9, 2.0])
def test_nothing_is_lost_of_a_million_values(alpha, loc):
    x = draws(alpha, 6, 1_000_000, loc)
    counted = stable.fit_histogram(np.stack([FINE.count(row) for row in x]), FINE)
    found = shifts(counted, stable.fit(x))
    # A scatter of .2 moves the mean of six by .08.
    assert np.all(np.abs(found.mean(axis=1)) < 0.05 + 0.08)
    assert np.all(np.mean(found**2, axis=1) < 1.02**2 - 1)


def test_bins_are_taken_as_sloped():
    """Coarse bins: as if values lay about their middles the scale would be .2 errors too large."""
    coarse, n = Histogram(mantissa_bits=4), 100_000
    x = draws(1.7, 6, n, loc=2)
    found = shifts(stable.fit_histogram(coarse.count(x), coarse), stable.fit(x))
    # The mean of six that scatter by .2.
    assert np.all(np.abs(found.mean(axis=1)) < 0.05 + 0.2 / math.sqrt(6))


def test_tails_beyond_the_window():
    """From 8 on there is one bin an octave, with 3 % of the values."""
    narrow, n = Histogram(mantissa_bits=7, exponents=(-12, 3)), 9000
    x = draws(1.3, 30, n)
    counted = stable.fit_histogram(narrow.count(x), narrow)
    found = shifts(counted, stable.fit(x))
    assert np.all(np.abs(found.mean(axis=1)) < 0.05 + 0.2 / math.sqrt(30))
    assert np.all(found.std(axis=1) < 0.2)


@pytest.mark.parametrize(("alpha", "beta"), [(1.2, 0.6), (1.5, -0.5), (1.8, 0.0)])
@pytest.mark.parametrize("loc", [0, 5])
def test_skewed_fits(alpha, beta, loc):
    x = draws(alpha, 12, 4000, loc, beta)
    counted = stable.fit_histogram(FINE.count(x), FINE, "skewed", parametrization="S0")
    whole = stable.fit_skewed(x, parametrization="S0")
    found = shifts(counted, whole, ("alpha", "beta", "scale", "loc"))
    assert np.all(np.abs(found.mean(axis=1)) < 0.05)
    assert np.all(np.mean(found**2, axis=1) < 1.02**2 - 1)
    located = stable.fit_histogram(FINE.count(x), FINE, "skewed")
    tangent = np.tan(np.pi * counted.alpha / 2) * counted.beta * counted.scale
    np.testing.assert_allclose(located.loc, counted.loc - tangent, rtol=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(1.2, 0.6), (1.8, 0.0)])
@pytest.mark.parametrize("loc", [0, 5])
def test_fits_by_quantiles(alpha, beta, loc):
    n = 20_000
    x = draws(alpha, 30, n, loc, beta)
    counted = stable.fit_histogram(FINE.count(x), FINE, "quantile", parametrization="S0")
    whole = stable.fit_quantile(x, parametrization="S0")
    found = shifts(counted, whole, ("alpha", "beta", "scale", "loc"))
    # The goal; a scatter of .2 moves the mean of 30 by .04.
    assert np.all(np.mean(found**2, axis=1) < 1.02**2 - 1)
    assert np.all(np.abs(found.mean(axis=1)) < 0.05 + 0.04)
    few = shifts(
        stable.fit_histogram(FINE.count(x[:, :100]), FINE, "quantile", parametrization="S0"),
        stable.fit_quantile(x[:, :100], parametrization="S0"),
        ("scale", "loc"),
    )
    # So few values are bins apart: quantiles are those between two of them.
    assert np.all(np.abs(few) < 0.2)
    assert np.all(np.isnan(counted.loglik))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-8, 3), st.integers(1, 799))
def test_invariances(seed, octaves, split):
    """Parts that were added up and batches: the same bits. Powers of two and signs: equivariant."""
    x = stable.rvs(1.6, size=(2, 800), rng=np.random.default_rng(seed))
    counts = FINE.count(x)
    found = stable.fit_histogram(counts, FINE)
    parts = FINE.merge(FINE.count(x[:, :split]), FINE.count(x[:, split:]))
    merged = stable.fit_histogram(parts, FINE)
    for name in (*NAMES, "alpha_low", "alpha_high", "loglik"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(found, name))
        alone = [getattr(stable.fit_histogram(each, FINE), name) for each in counts]
        np.testing.assert_array_equal(alone, getattr(found, name))
    wide = Histogram(mantissa_bits=7, exponents=(-50, 30))
    found = stable.fit_histogram(wide.count(x), wide)
    scaled = stable.fit_histogram(wide.count(np.ldexp(x, octaves)), wide)
    flipped = stable.fit_histogram(wide.count(-x), wide)
    # Climbs end within 1e-4 standard errors of the maximum; from the other side bins are taken
    # together differently.
    assert np.all(np.abs(shifts(flipped, found, ("alpha", "scale"))) < 1e-3)
    assert np.all(np.abs(flipped.loc + found.loc) < 1e-3 * found.loc_se)
    # The same bins, all of whose edges are multiplied.
    for name, power in (("alpha", 0), ("loc", -octaves), ("scale", -octaves)):
        unscaled = np.ldexp(getattr(scaled, name), power)
        np.testing.assert_allclose(unscaled, getattr(found, name), rtol=1e-9)


def test_statuses():
    rng = np.random.default_rng(1)
    x = np.tile(rng.standard_normal(300), (7, 1))
    x[1, 0], x[2, 0] = np.nan, np.inf
    x[3] = 2.5
    x[4] = 100 + 0.5 * x[4]
    counts = FINE.count(x)
    counts[5] = FINE.count(x[5, :7])
    counts[6] = 0
    wanted = [
        Status.OK,
        Status.NON_FINITE_INPUT,
        Status.NON_FINITE_INPUT,
        Status.CONSTANT_INPUT,
        Status.NOT_CONVERGED,
        Status.TOO_FEW_SAMPLES,
        Status.TOO_FEW_SAMPLES,
    ]
    for method in ("symmetric", "skewed", "quantile"):
        found = stable.fit_histogram(counts, FINE, method)
        assert found.status.tolist() == wanted
        assert np.isfinite(found.scale).tolist() == [True, *3 * [False], True, False, False]
        assert found.n_samples.tolist() == [300, 299, 299, 300, 300, 7, 0]
    assert stable.fit_histogram(FINE.count(x[0, :15]), FINE).status == Status.OK
    few = stable.fit_histogram(FINE.count(x[0, :15]), FINE, "skewed")
    assert few.status == Status.TOO_FEW_SAMPLES
    assert stable.fit_histogram(counts.reshape(7, 1, -1), FINE).alpha.shape == (7, 1)
    assert stable.fit_histogram(counts[:0], FINE).alpha.shape == (0,)


def test_atoms_are_set_apart():
    x = stable.rvs(1.5, loc=1, size=2000, rng=np.random.default_rng(2))
    bare = stable.fit_histogram(FINE.count(x), FINE)
    for value in (0.0, -0.37):
        found = stable.fit_histogram(FINE.count(np.append(x, np.full(3000, value))), FINE)
        assert found.status == Status.OK
        # With the atom go the few values of its bin.
        assert found.tied_fraction == pytest.approx(0.6, abs=0.005)
        assert np.all(np.abs(shifts(found, bare)) < 0.15)
    only = stable.fit_histogram(FINE.count(np.append(np.zeros(3000), 0.1)), FINE)
    assert only.status == Status.CONSTANT_INPUT
    assert np.isnan(only.alpha)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: stable.fit_histogram(c[:-1], FINE), "counts must be whole numbers, 12"),
        (lambda c: stable.fit_histogram(c - 1, FINE), "counts must not be negative, got -1"),
        (
            lambda c: stable.fit_histogram(c, FINE, "ecf"),
            "method must be 'symmetric', 'skewed' or 'quantile', got 'ecf'",
        ),
        (lambda c: stable.fit_histogram(c, FINE, confidence=2), "confidence must be in"),
        (
            lambda c: stable.fit_histogram(c, FINE, parametrization="S2"),
            "parametrization must be 'S0' or 'S1', got 'S2'",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(UsageError, match=message):
        call(FINE.count(np.arange(30.0)))
