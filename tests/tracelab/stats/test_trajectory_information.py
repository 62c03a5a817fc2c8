"""Sums over the steps of a path, against sums of 40 digits and finite differences."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelab.stats.trajectory_information import (
    THEORIES,
    Steps,
    information,
    least_information,
)

TOTALS = np.array([0.003, 0.4, 1.0, 30.0])


def path(seed=0, count=60, rows=5, levels=4):
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(count))
    before = np.cumsum(share) - share
    at = np.linspace(0, rows - 1, count)
    with np.errstate(divide="ignore"):
        log_before = 0.5 * np.log(np.maximum(before, 0))
    return Steps(
        rng.exponential(size=count) ** 2 / share,
        rng.exponential(size=count) ** 3,
        np.maximum(before, 0),
        log_before,
        np.floor(at).astype(np.int64),
        at - np.floor(at),
        rng.exponential(size=(rows, levels)),
        np.cumsum(rng.exponential(size=levels)) - 3,
    )


def exact(steps, theory, total, n_weights, constant, parts=(1, 1)):
    """Return the sum step by step, of 40 digits; np.interp reads the table."""
    with mpmath.workdps(40):
        nats = mpmath.mpf(0)
        for t in range(len(steps.inverse)):
            place = steps.log_before[t] + np.log(total)
            rows = (steps.left[t], min(steps.left[t] + 1, len(steps.sensitivity) - 1))
            first, second = (np.interp(place, steps.log_sigma, steps.sensitivity[r]) for r in rows)
            change = steps.before[t] * total**2 * (first + steps.part[t] * (second - first))
            v, change = mpmath.mpf(steps.variance[t]) * parts[0], mpmath.mpf(change) * parts[1]
            a = mpmath.mpf(steps.inverse[t]) / mpmath.mpf(total) ** 2
            if theory == "neu":
                nats += a * (v + change) * constant / 2
            else:
                power = (mpmath.sqrt(v) + mpmath.sqrt(change)) ** 2 if theory == "minkowski" else v
                nats += mpmath.log1p(a * power / n_weights) * n_weights / 2
        return float(nats)


@pytest.mark.parametrize("theory", THEORIES)
@pytest.mark.parametrize("shape", [(60, 5, 4), (60, 1, 4), (60, 5, 1), (1, 1, 1)])
def test_sums_against_forty_digits(theory, shape):
    steps = path(1, *shape)
    found = least_information(steps, TOTALS, n_weights=7, constant=3.0)
    for k, total in enumerate(TOTALS):
        wanted = exact(steps, theory, total, 7, 3.0)
        # Rounding of 60 terms, all of one sign, and of np.interp's slopes.
        assert found[THEORIES.index(theory), k] == pytest.approx(wanted, rel=1e-13)
        each = information(steps, theory, total, n_weights=7, constant=3.0)
        assert each.nats == pytest.approx(wanted, rel=1e-13)
        for parts, alone in (((1, 0), each.variance_only), ((0, 1), each.sensitivity_only)):
            assert alone == pytest.approx(exact(steps, theory, total, 7, 3.0, parts), rel=1e-13)


@pytest.mark.parametrize("scale", [1e-12, 1e30, 1e100])
def test_sums_of_tiny_and_of_huge_ratios_keep_their_digits(scale):
    """A product of 1 + x would lose the first and overflow with the others."""
    steps = path(2)
    steps = steps._replace(inverse=steps.inverse * scale)
    found = least_information(steps, TOTALS, n_weights=7, constant=2.0)
    for number, theory in enumerate(THEORIES):
        for k, total in enumerate(TOTALS):
            wanted = exact(steps, theory, total, 7, 2.0)
            assert found[number, k] == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize("theory", THEORIES)
def test_derivatives_against_differences(theory):
    steps, total = path(3), 0.7
    found = information(steps, theory, total, n_weights=7, constant=2.0)
    rng = np.random.default_rng(4)
    rows = rng.exponential(size=len(steps.sensitivity))
    right = np.minimum(steps.left + 1, len(rows) - 1)
    by_step = rows[steps.left] + steps.part * (rows[right] - rows[steps.left])

    def moved(h, table):
        other = steps._replace(
            variance=steps.variance * 0 + by_step * (1 + h * (table is None)),
            sensitivity=steps.sensitivity + (0 if table is None else h * table),
        )
        return information(other, theory, total, n_weights=7, constant=2.0)

    # Central differences: of order h^2, and rounding over h.
    h = 1e-5
    at = moved(0.0, None)
    slope = (moved(h, None).nats - moved(-h, None).nats) / (2 * h)
    assert at.by_variance @ rows == pytest.approx(slope, rel=1e-7)
    table = rng.exponential(size=steps.sensitivity.shape)
    slope = (moved(h, table).nats - moved(-h, table).nats) / (2 * h)
    wanted = np.sum(at.by_sensitivity * table)
    assert wanted == pytest.approx(slope, rel=1e-7, abs=1e-9)
    assert (wanted == 0) == (theory == "wang_mao")
    assert found.by_sensitivity.shape == steps.sensitivity.shape


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_units_of_weights_do_not_matter(seed, unit):
    """V in 1 / weight^2 and rates in weight^2 leave nats as they are, within rounding."""
    steps = path(seed, 12, 3, 3)
    other = steps._replace(
        inverse=steps.inverse * unit**4,
        variance=steps.variance / unit**2,
        sensitivity=steps.sensitivity / unit**4,
        log_sigma=steps.log_sigma + np.log(unit),
    )
    one, two = (
        least_information(each, TOTALS * scale, n_weights=3, constant=2.0)
        for each, scale in ((steps, 1.0), (other, unit))
    )
    np.testing.assert_allclose(one, two, rtol=1e-9)


def test_a_step_without_noise_that_tells_something_has_no_bound():
    steps = path(5)
    inverse = steps.inverse.copy()
    inverse[7] = np.inf
    for variance in (0.0, 1.0):
        steps = steps._replace(inverse=inverse, variance=steps.variance * variance)
        assert not np.isfinite(least_information(steps, TOTALS, n_weights=3, constant=2.0)[0]).any()
