import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from tracelab.typing import Status
from tracelab_analyses.weight_diffusion import ANALYSIS, weight_diffusion

STEPS = np.arange(0, 5_001)


def fit(distance, step=STEPS, **parameters):
    found = weight_diffusion(np.atleast_2d(distance), step, **parameters)
    return {name: values[0] for name, values in found.items()}


def log_law(a, c, sd=0.0, seed=0):
    noise = np.random.default_rng(seed).normal(0, sd, STEPS.size) if sd else 0.0
    return np.where(STEPS > 0, a + c * np.log(np.maximum(STEPS, 1)) + noise, 0.0)


def power_law(k, nu, sd=0.0, seed=0):
    noise = np.random.default_rng(seed).normal(0, sd, STEPS.size) if sd else 0.0
    return k * STEPS**nu + noise


def test_exact_log_law_is_found():
    found = fit(log_law(0.3, 1.7))
    assert found["log_slope"] == pytest.approx(1.7, rel=1e-10)
    assert found["log_r2"] == pytest.approx(1, abs=1e-12)
    assert found["preferred"] == 1
    assert found["status"] == Status.OK


def test_exact_power_law_is_found():
    found = fit(power_law(0.2, 0.37))
    assert found["power_exponent"] == pytest.approx(0.37, abs=1e-8)
    assert found["power_r2"] == pytest.approx(1, abs=1e-12)
    assert found["preferred"] == 2


def test_power_fit_agrees_with_scipy_curve_fit():
    d = power_law(0.2, 0.37, sd=0.05, seed=3)
    used = np.unique(np.searchsorted(STEPS[1:], np.geomspace(1, 5_000, 100))) + 1
    (_, nu), covariance = optimize.curve_fit(
        lambda t, k, nu: k * t**nu, STEPS[used].astype(float), d[used], p0=(0.2, 0.4)
    )
    found = fit(d)
    assert found["power_exponent"] == pytest.approx(nu, abs=1e-6)
    # The same standard error but for the effective sample size.
    n = used.size
    wanted = np.sqrt(covariance[1, 1] * (n - 2) / (found["n_effective"] - 2))
    assert found["power_exponent_se"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("law", ["log", "power"])
def test_intervals_cover_the_truth_at_their_rate(law):
    """400 runs of white residuals: 95 %, 5 binomial sd of 0.011; rho >= 0 errs on the wide side."""
    inside = 0
    for seed in range(400):
        if law == "log":
            found, truth, name = fit(log_law(0.3, 1.7, 0.1, seed)), 1.7, "log_slope"
        else:
            found, truth, name = fit(power_law(0.5, 0.4, 0.1, seed)), 0.4, "power_exponent"
        inside += found[f"{name}_low"] <= truth <= found[f"{name}_high"]
    assert 0.95 - 5 * 0.011 < inside / 400 <= 1


def test_dependent_residuals_widen_the_interval():
    rng = np.random.default_rng(7)
    walk = np.cumsum(rng.normal(0, 0.02, STEPS.size))
    white = rng.normal(0, walk.std(), STEPS.size)
    base = log_law(0.3, 1.7)
    assert fit(base + walk)["n_effective"] < 0.5 * fit(base + white)["n_effective"]


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 1_000))
@settings(max_examples=25)
def test_the_unit_of_weight_does_not_matter(scale, seed):
    d = power_law(0.5, 0.4, 0.05, seed)
    one, other = fit(d), fit(scale * d)
    assert other["power_exponent"] == pytest.approx(one["power_exponent"], abs=1e-6)
    assert other["log_slope"] == pytest.approx(scale * one["log_slope"], rel=1e-9)
    assert other["delta_aic"] == pytest.approx(one["delta_aic"], rel=1e-3, abs=1e-3)


def test_layers_do_not_know_each_other():
    rows = np.stack([log_law(0.3, 1.7, 0.1, 1), power_law(0.2, 0.4, 0.1, 2)])
    together = weight_diffusion(rows, STEPS)
    for index, row in enumerate(rows):
        alone = weight_diffusion(row[None], STEPS)
        for name, values in together.items():
            np.testing.assert_array_equal(values[index], alone[name][0])


def test_start_leaves_early_steps_out():
    assert fit(log_law(0.3, 1.7), start=1_000)["n_samples"] <= 100
    assert fit(np.where(STEPS < 1_000, 50.0, log_law(0.3, 1.7)), start=1_000)[
        "log_slope"
    ] == pytest.approx(1.7, rel=1e-9)


@pytest.mark.parametrize(
    ("distance", "step", "status"),
    [
        (np.zeros(1), np.zeros(1, int), Status.TOO_FEW_SAMPLES),
        (np.arange(5.0), np.arange(5), Status.TOO_FEW_SAMPLES),
        (np.full(100, 2.0), np.arange(100), Status.CONSTANT_INPUT),
        (np.r_[np.arange(99.0), np.nan], np.arange(100), Status.NON_FINITE_INPUT),
        (np.r_[np.arange(99.0), np.inf], np.arange(100), Status.NON_FINITE_INPUT),
    ],
)
def test_what_cannot_be_fitted_says_why(distance, step, status):
    found = fit(distance, step)
    assert found["status"] == status
    assert np.isnan(found["log_slope"])


def test_declares_what_it_returns():
    found = weight_diffusion(log_law(0.3, 1.7)[None], STEPS)
    assert set(found) == {variable.name for variable in ANALYSIS.outputs}
