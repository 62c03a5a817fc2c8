"""The fits by quantiles, characteristic function and log-moments."""

import doctest
import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.stats import stable
from tracelab.stats._stable_ecf import GRID, ecf_information
from tracelab.stats._stable_log_moments import log_cumulants
from tracelab.stats._stable_quantile import LEVELS
from tracelab.typing import Status

REFERENCE = Path(__file__).parents[3] / "data" / "reference"
FITS = [stable.fit_quantile, stable.fit_ecf, stable.fit_log_moments, stable.fit_skewed]
SKEWED = [stable.fit_quantile, stable.fit_ecf, stable.fit_skewed]
PARAMETERS = ("alpha", "beta", "scale", "loc")
FIELDS = [f"{name}{end}" for name in PARAMETERS for end in ("", "_se", "_low", "_high")]


def s0(fit, x, **options):
    return (
        fit(x, **options)
        if fit is stable.fit_log_moments
        else fit(x, parametrization="S0", **options)
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", ["quantile", "ecf", "log_moments", "skew_fit"])
def test_doctests(module):
    assert doctest.testmod(import_module(f"tracelab.stats._stable_{module}")).failed == 0


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 0.0), (1.3, 0.5), (1.6, -0.5), (1.8, 0.0)])
def test_errors_are_what_they_say_and_intervals_cover(fit, alpha, beta):
    if fit is stable.fit_log_moments:
        beta = 0.0
    replicas = 500
    x = stable.rvs(
        alpha, beta, 2, 3, (replicas, 2000), np.random.default_rng(1), parametrization="S0"
    )
    found = s0(fit, x)
    assert np.all(found.status == int(Status.OK))
    for name, truth in zip(PARAMETERS, (alpha, beta, 3.0, 2.0), strict=True):
        if name == "beta" and fit is stable.fit_log_moments:
            continue
        estimate, error = getattr(found, name), getattr(found, f"{name}_se")
        # Four standard deviations of a mean and of a standard deviation of 500 normals, the
        # latter 1 / sqrt(1000); 5 % for terms of higher order, which asymptotic errors lack.
        deviation = estimate - truth
        assert abs(np.mean(deviation)) < (4 / math.sqrt(replicas) + 0.1) * np.std(deviation)
        # Errors of beta by quantiles go like 1 / (2 - alpha) with the estimate of alpha, here from
        # .11 to .64; divided by its own, a deviation is too small on average.
        least = 0.65 if (name, fit, alpha) == ("beta", stable.fit_quantile, 1.8) else 0.823
        assert least < np.sqrt(np.mean((deviation / error) ** 2)) < 1.177
        low, high = getattr(found, f"{name}_low"), getattr(found, f"{name}_high")
        # 4 sqrt(.95 .05 / 500) = .039, and a percent for the asymptotics.
        assert np.mean((low <= truth) & (truth <= high)) > 0.94 - 0.039


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(0.6, 0.3), (0.9, -0.8), (1.0, 0.0), (1.2, 0.95), (1.7, -0.4), (1.98, 0.5)],
)
def test_quantile_fit_returns_the_law_of_exact_quantiles(alpha, beta):
    # Of 30 values the 2nd, 8th, 23rd and 29th are quantiles at the levels; the 15th and 16th are
    # on either side of the median.
    quantiles = stable.ppf(LEVELS, alpha, beta, 2.0, 3.0, "S0", "exact")
    x = np.interp((np.arange(30) + 0.5) / 30, LEVELS, quantiles)
    x[[14, 15]] = quantiles[2] + np.array([-1e-3, 1e-3])
    found = stable.fit_quantile(x, parametrization="S0")
    assert found.status == int(Status.OK)
    # The table's error, at most 1e-4 at the smallest alpha, and what it does to beta near 2.
    assert found.alpha == pytest.approx(alpha, abs=2e-4)
    assert found.beta == pytest.approx(beta, abs=2e-4 / (2 - alpha))
    assert found.scale == pytest.approx(3, rel=2e-4)
    assert found.loc == pytest.approx(2, abs=1e-3)


def test_characteristic_function_holds_nearly_all_information():
    rows = json.loads((REFERENCE / "stable_fisher.json").read_text())["rows"]
    for row in rows:
        law = np.array([row["alpha"], row["beta"], 1.0, 0.0])
        error = np.sqrt(np.diag(np.linalg.inv(ecf_information(GRID, law))))
        for got, name in zip(error, ("alpha", "beta", "loggamma", "delta"), strict=True):
            # At most 1 % is lost; none can be won, but for the reference's own 1e-3.
            assert -1e-3 < got / row[f"sd_{name}"] - 1 < 0.01


def test_ecf_information_is_that_of_the_covariance():
    # The variances of the estimating functions, by simulation of one law.
    law = np.array([1.4, 0.6, 1.3, 0.2])
    grid = np.array([0.1, 0.7])
    x = stable.rvs(1.4, 0.6, 0.2, 1.3, 400_000, np.random.default_rng(2), parametrization="S0")
    values = np.concatenate([1 - np.cos(np.outer(grid, x)), np.sin(np.outer(grid, x))])

    def phi(law):
        alpha, beta, scale, loc = law
        t = grid * scale
        turn = math.tan(math.pi * alpha / 2) * (t - t**alpha)
        value = np.exp(-(t**alpha) + 1j * (loc * grid - beta * turn))
        return np.concatenate([1 - value.real, value.imag])

    steps = 1e-6 * np.diag([1, 1, law[2], 1])
    slopes = np.array([(phi(law + h) - phi(law - h)) / 2e-6 for h in steps]).T
    expected = slopes.T @ np.linalg.solve(np.cov(values), slopes)
    # Relative errors of variances are about sqrt(2 / 4e5) = 2e-3, times a condition of some 10.
    np.testing.assert_allclose(ecf_information(grid, law), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0])
def test_cumulants_of_logarithms(alpha):
    # By quadrature: log |X| has density 2 |x| f(x).
    t = np.linspace(-40, 60 / alpha, 20_001)
    weights = 2 * np.exp(t + stable.logpdf(np.exp(t), alpha)) * (t[1] - t[0])
    mean = weights @ t
    second, third, fourth = (weights @ (t - mean) ** k for k in (2, 3, 4))
    assert mean == pytest.approx(np.euler_gamma * (1 / alpha - 1), abs=1e-8)
    found = log_cumulants(np.array(alpha))
    expected = (second, third, fourth - 3 * second**2)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("fit", SKEWED)
def test_sign_flips_beta_and_location(fit):
    x = stable.rvs(1.4, 0.5, 3, size=800, rng=np.random.default_rng(3))
    for parametrization in ("S0", "S1"):
        one, other = (fit(y, parametrization=parametrization) for y in (x, -x))
        assert other.alpha == pytest.approx(float(one.alpha), abs=1e-5)
        assert other.beta == pytest.approx(-float(one.beta), abs=1e-4)
        assert other.loc == pytest.approx(-float(one.loc), abs=1e-3)
        assert other.loc_se == pytest.approx(float(one.loc_se), rel=1e-3)


@pytest.mark.parametrize("fit", SKEWED)
def test_s1_is_the_same_law(fit):
    x = stable.rvs(1.6, -0.4, 3, 2, 900, np.random.default_rng(4))
    one, other = fit(x, parametrization="S0"), fit(x)
    z = np.linspace(-5, 9, 5)
    np.testing.assert_allclose(
        stable.cdf(z, one.alpha, one.beta, one.loc, one.scale, "S0"),
        stable.cdf(z, other.alpha, other.beta, other.loc, other.scale, "S1"),
        rtol=1e-8,
    )
    # In S1 the location is the mean, which tails make less certain.
    assert other.loc_se > one.loc_se


@pytest.mark.parametrize("fit", SKEWED)
def test_location_errors_in_s1(fit):
    x = stable.rvs(1.6, 0.4, 2, 3, (400, 2000), np.random.default_rng(5))
    found = fit(x)
    # As above, and the S1 location is further from linear in the data.
    assert np.std(found.loc) / np.median(found.loc_se) == pytest.approx(1, abs=0.14 + 0.05)


@settings(max_examples=15)
@given(
    shift=st.floats(-100, 100),
    factor=st.sampled_from([1e-12, 0.3, 1e12]),
    alpha=st.sampled_from([0.9, 1.4, 1.9]),
    fit=st.sampled_from(FITS),
    seed=st.integers(0, 2**32),
)
def test_fits_move_with_the_data(shift, factor, alpha, fit, seed):
    x = stable.rvs(alpha, size=400, rng=np.random.default_rng(seed))
    one, other = s0(fit, x), s0(fit, (x + shift) * factor)
    # Shifted data are rounded to 1e-14; iterations stop within 1e-4 standard errors.
    assert other.alpha == pytest.approx(float(one.alpha), abs=1e-3)
    assert other.scale == pytest.approx(factor * float(one.scale), rel=1e-3)
    expected = factor * (float(one.loc) + shift)
    assert other.loc == pytest.approx(expected, abs=2e-3 * factor * float(one.scale))


@pytest.mark.parametrize("fit", FITS)
def test_cells_are_independent_of_their_company(fit):
    x = stable.rvs(1.7, 0.3, size=(2, 3, 150), rng=np.random.default_rng(6))
    x[1, 1] = np.random.default_rng(7).standard_normal(150)
    x[0, 1, 3] = np.nan
    together, along = fit(x), fit(np.moveaxis(x, -1, 0), axis=0)
    shuffled = fit(np.random.default_rng(8).permutation(x, axis=-1))
    single = fit(x.astype(np.float32)), fit(x.astype(np.float32).astype(np.float64))
    assert together.alpha.shape == (2, 3)
    for cell in np.ndindex(2, 3):
        alone = fit(x[cell])
        for field in (*FIELDS, "loglik", "status", "iterations", "tied_fraction"):
            value = getattr(together, field)[cell]
            np.testing.assert_array_equal(getattr(alone, field), value)
            np.testing.assert_array_equal(getattr(along, field)[cell], value)
            np.testing.assert_array_equal(getattr(shuffled, field)[cell], value)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(single[0], field), getattr(single[1], field))


@pytest.mark.parametrize("fit", FITS)
def test_statuses(fit):
    good = stable.rvs(1.5, size=50, rng=np.random.default_rng(9))
    cells = {
        "good": (good, Status.OK),
        "nan": (np.where(np.arange(50) == 3, np.nan, good), Status.NON_FINITE_INPUT),
        "inf": (np.where(np.arange(50) == 3, np.inf, good), Status.NON_FINITE_INPUT),
        "constant": (np.full(50, 2.5), Status.CONSTANT_INPUT),
        "zeros": (np.where(np.arange(50) < 5, good, 0.0), Status.TOO_FEW_SAMPLES),
        "middle": (np.repeat([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 5), Status.OK),
    }
    found = fit(np.array([x for x, _ in cells.values()]))
    assert [Status(code) for code in found.status[:-1]] == [s for _, s in cells.values()][:-1]
    fitted = np.isin(found.status, [int(Status.OK), int(Status.NOT_CONVERGED)])
    for field in FIELDS:
        if field not in ("beta_se",):
            np.testing.assert_array_equal(np.isfinite(getattr(found, field)), fitted)
    assert found.n_samples == 50
    assert fit(good[:19]).status == int(Status.TOO_FEW_SAMPLES)
    assert fit(np.empty((2, 0))).status.tolist() == [int(Status.TOO_FEW_SAMPLES)] * 2
    assert fit(np.empty((0, 30))).alpha.shape == (0,)
    with pytest.raises(UsageError, match=r"confidence must be in \(0, 1\), got 95"):
        fit(good, confidence=95)


@pytest.mark.parametrize("fit", FITS)
def test_atoms_are_set_apart(fit):
    rng = np.random.default_rng(10)
    x = stable.rvs(1.5, loc=1, size=1000, rng=rng)
    found, bare = fit(rng.permutation(np.concatenate([x, np.zeros(600)]))), fit(x)
    assert found.tied_fraction == pytest.approx(600 / 1600)
    for field in FIELDS:
        assert getattr(found, field) == getattr(bare, field)


@pytest.mark.parametrize("fit", FITS)
def test_gaussian_data(fit):
    x = np.random.default_rng(11).standard_normal((300, 1000)) * 2 + 1
    found = s0(fit, x)
    # 4 sqrt(.95 .05 / 300) = .05.
    assert np.mean(found.alpha_high == 2) > 0.90
    gaussian = found.alpha == 2
    assert np.mean(gaussian) > 0.25
    np.testing.assert_array_equal(found.beta[gaussian], 0)
    if fit is not stable.fit_log_moments:
        assert np.all(np.isinf(found.beta_se[gaussian]))
        np.testing.assert_array_equal(found.beta_low[gaussian], -1)
        np.testing.assert_array_equal(found.beta_high[gaussian], 1)
    # sqrt(.5 / 1000) of log scale by the likelihood; less than three times that by others.
    assert np.std(found.scale) < 3 * math.sqrt(2) * math.sqrt(0.5 / 1000)
    assert np.mean(found.loc) == pytest.approx(1, abs=4 * 2 * 1.3 / math.sqrt(300_000))


@pytest.mark.parametrize("fit", SKEWED)
def test_parametrization_is_checked(fit):
    with pytest.raises(UsageError, match="parametrization must be 'S0' or 'S1', got 'S2'"):
        fit(np.arange(30.0), parametrization="S2")


def test_heavier_tails_than_the_table_do_not_converge():
    x = stable.rvs(0.3, size=2000, rng=np.random.default_rng(12))
    for fit, low in ((stable.fit_quantile, 0.5), (stable.fit_skewed, 0.8)):
        found = fit(x)
        assert found.status == int(Status.NOT_CONVERGED)
        assert found.alpha == pytest.approx(low)
    assert abs(stable.fit_log_moments(x).alpha - 0.3) < 0.05


@pytest.mark.parametrize(
    "fit",
    [stable.fit, stable.fit_skewed, stable.fit_ecf, stable.fit_quantile, stable.fit_log_moments],
)
def test_complex_samples_are_refused(fit):
    with pytest.raises(UsageError, match="samples must be real numbers, got dtype complex128"):
        fit(np.ones((2, 50)) * 1j)
