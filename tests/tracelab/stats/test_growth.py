"""Laws of growth: exact curves, scipy's least squares, and coverage under correlated deviations."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.signal import lfilter

from tracelab.errors import UsageError
from tracelab.stats import growth as module
from tracelab.stats.growth import LAWS, criteria, fit, predict
from tracelab.typing import Status

TIMES = np.unique(np.geomspace(1, 5_000, 100).round())
TRUTH = {"log": (0.3, 1.7), "power": (0.5, 0.4), "saturation": (10.0, 9.0, 800.0)}


def deviations(rho, sd, seed):
    """AR(1) in single steps, from its stationary law, at the times that are fitted."""
    rng = np.random.default_rng(seed)
    shocks = rng.standard_normal(5_001) * sd * math.sqrt(1 - rho**2)
    shocks[0] /= math.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], shocks)[TIMES.astype(int)]


def curve(law, rho=0.0, sd=0.2, seed=0):
    return predict(law, np.array(TRUTH[law]), TIMES) + deviations(rho, sd, seed)


def test_examples():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("law", LAWS)
def test_exact_laws(law):
    found = fit(TIMES, predict(law, np.array(TRUTH[law]), TIMES), law)
    np.testing.assert_allclose(found.parameters, TRUTH[law], rtol=1e-8)
    assert found.r2 == pytest.approx(1, abs=1e-12)
    assert found.status == Status.OK
    assert (found.parameters_se < 1e-8).all()


@pytest.mark.parametrize("law", LAWS)
def test_least_squares_is_scipys(law):
    def model(t, *parameters):
        return predict(law, np.array(parameters), t)

    d = curve(law, seed=3)
    wanted, covariance = optimize.curve_fit(model, TIMES, d, p0=TRUTH[law], xtol=1e-14, ftol=1e-14)
    found = fit(TIMES, d, law, correlated=False)
    np.testing.assert_allclose(found.parameters, wanted, rtol=1e-5)
    assert found.innovation_share == 1
    np.testing.assert_allclose(found.parameters_se, np.sqrt(np.diag(covariance)), rtol=1e-4)
    assert found.n_effective == TIMES.size
    assert found.correlation == 0


@pytest.mark.parametrize("law", LAWS)
def test_generalized_least_squares_is_scipys_at_the_correlation_found(law):
    def model(t, *parameters):
        return predict(law, np.array(parameters), t)

    d = curve(law, rho=0.98, seed=5)
    found = fit(TIMES, d, law)
    assert found.correlation > 0
    clock = TIMES if found.clock == 0 else np.log(TIMES)
    matrix = np.exp(-np.abs(clock[:, None] - clock) / found.correlation)
    wanted, covariance = optimize.curve_fit(
        model, TIMES, d, p0=TRUTH[law], sigma=matrix, xtol=1e-14, ftol=1e-14
    )
    np.testing.assert_allclose(found.parameters, wanted, rtol=1e-4)
    np.testing.assert_allclose(found.parameters_se, np.sqrt(np.diag(covariance)), rtol=1e-3)
    ones = np.ones(TIMES.size)
    assert found.n_effective == pytest.approx(ones @ np.linalg.solve(matrix, ones))
    # The likelihood of a normal law with that correlation and the likeliest variance.
    rest = d - model(TIMES, *found.parameters)
    variance = rest @ np.linalg.solve(matrix, rest) / TIMES.size
    loglik = stats.multivariate_normal.logpdf(rest, cov=variance * matrix)
    constant = TIMES.size * (1 + math.log(2 * math.pi))
    assert found.deviance + constant == pytest.approx(-2 * loglik, abs=1e-6)


def test_criteria_are_akaikes_for_small_samples():
    fits = [fit(TIMES, curve("log"), law) for law in LAWS]
    assert fits[0].innovation_share == 1
    n = TIMES.size
    for each, found, k in zip(fits, criteria(fits), (4, 4, 5), strict=True):
        wanted = each.deviance + 2 * k + 2 * k * (k + 1) / (n - k - 1)
        assert found == pytest.approx(float(wanted))
    with pytest.raises(UsageError, match="same points only"):
        criteria([fits[0], fit(TIMES[:50], curve("log")[:50], "power")])


def test_smooth_deviations_count_for_little():
    """A wave in log t is no noise: what is new at each point is known from the one before."""
    wave = 0.05 * np.sin(3 * np.log(TIMES))
    base = predict("log", np.array(TRUTH["log"]), TIMES)
    smooth = [fit(TIMES, base + wave, law) for law in LAWS]
    rough = [fit(TIMES, base + deviations(0.0, 0.05, 1), law) for law in LAWS]
    assert smooth[0].innovation_share < 0.3
    assert rough[0].innovation_share == 1
    assert smooth[0].n_effective < 10
    # Evidence is scaled by the share of the likeliest law, alike for all.
    found = criteria(smooth)
    likeliest = min(smooth, key=lambda each: float(each.deviance))
    difference = float(smooth[1].deviance - smooth[0].deviance)
    assert found[1] - found[0] == pytest.approx(float(likeliest.innovation_share) * difference)


@pytest.mark.parametrize("law", LAWS)
def test_no_other_correlation_is_likelier(law):
    """The search against scipy's, from 6 starts, over shape and correlation together."""
    d = curve(law, rho=0.9, seed=8)
    found = fit(TIMES, d, law)

    def score(parameters, clock):
        correlation = math.exp(parameters[-1])
        matrix = np.exp(-np.abs(clock[:, None] - clock) / correlation)
        columns = np.ones((TIMES.size, 1))
        if law == "log":
            columns = np.column_stack([columns, np.log(TIMES)])
        elif law == "power":
            columns = TIMES[:, None] ** parameters[0]
        else:
            columns = np.column_stack([columns, np.exp(-TIMES / math.exp(parameters[0]))])
        root = np.linalg.cholesky(matrix)
        x, y = np.linalg.solve(root, columns), np.linalg.solve(root, d)
        rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        n = TIMES.size
        return n * math.log(rest @ rest / n) + 2 * np.log(np.diag(root)).sum()

    shapes = {"log": [0.0], "power": [0.3, 0.5], "saturation": [6.0, 7.5]}[law]
    least = min(
        optimize.minimize(score, [shape, start], args=(clock,), method="Nelder-Mead").fun
        for shape in shapes
        for clock, starts in ((TIMES, (1.0, 3.0)), (np.log(TIMES), (-2.0,)))
        for start in starts
    )
    assert found.deviance < least + 1e-3


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("law", LAWS)
def test_intervals_cover_the_truth_at_their_rate(law, rho):
    """Of 150 curves 95 %, less 5 binomial standard errors of .0178; wide ones may cover more."""
    inside = np.zeros(len(TRUTH[law]))
    for seed in range(150):
        found = fit(TIMES, curve(law, rho, seed=seed), law)
        truth = np.array(TRUTH[law])
        inside += (found.parameters_low <= truth) & (truth <= found.parameters_high)
    assert (inside / 150 > 0.95 - 5 * 0.0178).all()


@pytest.mark.parametrize("rho", [0.0, 0.99])
@pytest.mark.parametrize("law", LAWS)
def test_the_right_law_is_preferred(law, rho):
    """By 6 or more, in 9 of 10 curves at this noise: of 30, 20 at the least (chance 1e-4)."""
    right = 0
    for seed in range(30):
        d = curve(law, rho, seed=seed)
        found = criteria([fit(TIMES, d, each) for each in LAWS])
        criterion = dict(zip(LAWS, found.tolist(), strict=True))
        others = min(value for each, value in criterion.items() if each != law)
        right += others - criterion[law] >= 6
    assert right >= stats.binom.ppf(1e-4, 30, 0.9)


def test_a_line_has_no_time_of_saturation():
    found = fit(TIMES, 1 + 2e-3 * TIMES, "saturation")
    assert np.isnan(found.parameters).all()
    assert found.status == Status.OK
    assert np.isfinite(found.deviance)


@given(scale=st.floats(1e-6, 1e6), pace=st.floats(0.01, 100), seed=st.integers(0, 1_000))
@settings(max_examples=15, deadline=None)
def test_units_do_not_matter(scale, pace, seed):
    d = curve("power", 0.9, seed=seed)
    one, other = fit(TIMES, d, "power"), fit(pace * TIMES, scale * d, "power")
    assert other.parameters[1] == pytest.approx(one.parameters[1], abs=1e-5)
    assert other.parameters_se[1] == pytest.approx(one.parameters_se[1], rel=1e-3)
    shift = 2 * TIMES.size * math.log(scale)
    assert other.deviance - shift == pytest.approx(one.deviance, abs=1e-3)


def test_rows_do_not_know_each_other():
    rows = np.stack([[curve("log"), curve("power")], [np.ones(TIMES.size), curve("saturation")]])
    together = fit(TIMES, rows, "power")
    assert together.status[1, 0] == Status.CONSTANT_INPUT
    for cell in np.ndindex(2, 2):
        alone = fit(TIMES, rows[cell], "power")
        for name in ("parameters", "parameters_low", "deviance", "clock", "status"):
            np.testing.assert_array_equal(getattr(together, name)[cell], getattr(alone, name))


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (np.full(20, 3.0), Status.CONSTANT_INPUT),
        (np.r_[np.arange(19.0), np.nan], Status.NON_FINITE_INPUT),
        (np.r_[np.arange(19.0), np.inf], Status.NON_FINITE_INPUT),
        (np.arange(9.0), Status.TOO_FEW_SAMPLES),
        (np.empty(0), Status.TOO_FEW_SAMPLES),
    ],
)
def test_what_cannot_be_fitted_says_why(value, status):
    found = fit(np.arange(1.0, value.size + 1), value, "log")
    assert found.status == status
    assert np.isnan(found.parameters).all()
    assert np.isnan(found.deviance)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TIMES, TIMES, "cubic"), "law must be one of log, power, saturation, got 'cubic'"),
        ((TIMES, TIMES[:-1], "log"), "one value for each of the last axis"),
        ((TIMES - 1, TIMES, "log"), "above 0 and rising, got 0 first"),
        ((TIMES[::-1], TIMES, "log"), "above 0 and rising"),
        ((np.r_[TIMES[:-1], np.inf], TIMES, "log"), "finite, above 0 and rising"),
    ],
)
def test_what_cannot_be_asked_for(arguments, message):
    with pytest.raises(UsageError, match=message):
        fit(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cubic", [1, 2, 3], TIMES), "law must be one of log, power, saturation, got 'cubic'"),
        ((0, [1, 2, 3], TIMES), "law must be one of log, power, saturation, got 0"),
        (
            ("log", [1, 2, 3], TIMES),
            r"'log' must be intercept, slope along .* got the shape \(3,\)",
        ),
        (("saturation", 1.0, TIMES), r"must be level, amplitude, time along .* shape \(\)"),
        (("log", [1, 2], [0, 1]), r"time must be a row of finite numbers above 0, got \[0, 1\]"),
        (("log", [1, 2], [1, np.nan]), "time must be a row of finite numbers above 0"),
        (("log", [1, 2], 3.0), r"time must be a row of finite numbers above 0, got 3\.0"),
        (("log", ["a", "b"], TIMES), r"parameters must be an array of real numbers, got \['a'"),
    ],
)
def test_what_cannot_be_predicted(arguments, message):
    with pytest.raises(UsageError, match=message):
        predict(*arguments)


def test_other_arguments_that_are_no_numbers_or_laws():
    for options, message in (
        ({"time": ["a"] * 20}, "time must be an array of real numbers"),
        ({"value": [[1.0], [1.0, 2.0]]}, "value must be an array of real numbers"),
        ({"value": TIMES + 1j}, "value must be an array of real numbers"),
        ({"law": ["log"]}, r"law must be one of .* got \['log'\]"),
        ({"correlated": "no"}, "correlated must be True or False, got 'no'"),
    ):
        with pytest.raises(UsageError, match=message):
            fit(**{"time": TIMES, "value": TIMES, "law": "log"} | options)


def test_criteria_need_fits_of_the_same_cells():
    with pytest.raises(UsageError, match="compares fits of laws, got none"):
        criteria([])
    one, two = fit(TIMES, TIMES, "log"), fit(TIMES, np.stack([TIMES] * 2), "power")
    words = rf"got {TIMES.size} points of shape \(\), {TIMES.size} points of shape \(2,\); fit all"
    with pytest.raises(UsageError, match=words):
        criteria([one, two])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [0, 5, 6, 9])
def test_too_few_points_have_no_criterion(size):
    t = np.arange(1.0, size + 1)
    assert np.isnan(criteria([fit(t, t, law) for law in LAWS])).all()
