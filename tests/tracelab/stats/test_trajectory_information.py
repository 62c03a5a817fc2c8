"""Sums over the steps of a path, against sums of 40 digits and finite differences."""

import itertools

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelab.stats.trajectory_information import (
    THEORIES,
    Steps,
    information,
    least,
)

TOTALS = np.array([0.003, 0.4, 1.0, 30.0])


def path(seed=0, count=60, rows=5, levels=4):
    rng = np.random.default_rng(seed)
    share = rng.exponential(size=count)
    through = np.cumsum(share)
    before = np.concatenate([[0.0], through[:-1]])
    at = np.linspace(0, rows - 1, count)
    with np.errstate(divide="ignore"):
        log_before = 0.5 * np.log(before)
    return Steps(
        rng.exponential(size=count) ** 2 / share,
        rng.exponential(size=count) ** 3,
        before,
        log_before,
        through,
        np.floor(at).astype(np.int64),
        at - np.floor(at),
        rng.exponential(size=(rows, levels)),
        np.cumsum(rng.exponential(size=levels)) - 3,
    )


def exact(steps, count, theory, total, n_weights, constant, parts=(1, 1)):
    """Return the sum step by step, of 40 digits; np.interp reads the table."""
    with mpmath.workdps(40):
        nats = mpmath.mpf(0)
        unit = mpmath.mpf(total) ** 2 / mpmath.mpf(steps.through[count - 1])
        for t in range(count):
            place = steps.log_before[t] + 0.5 * np.log(float(unit))
            rows = (steps.left[t], min(steps.left[t] + 1, len(steps.sensitivity) - 1))
            first, second = (np.interp(place, steps.log_sigma, steps.sensitivity[r]) for r in rows)
            change = steps.before[t] * unit * (first + steps.part[t] * (second - first))
            v, change = mpmath.mpf(steps.variance[t]) * parts[0], change * parts[1]
            a = mpmath.mpf(steps.inverse[t]) / unit
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
    for count, total in itertools.product({1, len(steps.inverse) // 2 + 1}, TOTALS):
        found = information(steps, count, theory, total, n_weights=7, constant=3.0)
        wanted = exact(steps, count, theory, total, 7, 3.0)
        # Rounding of 60 terms, all of one sign, and of np.interp's slopes.
        assert found.nats == pytest.approx(wanted, rel=1e-13)
        for parts, alone in (((1, 0), found.variance_only), ((0, 1), found.sensitivity_only)):
            wanted = exact(steps, count, theory, total, 7, 3.0, parts)
            assert alone == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize("count", [1, 60, 200])
def test_the_least_is_that_of_all_sums(count):
    """Wherever a search stops adding up."""
    rng = np.random.default_rng(count)
    ways, places = (path(6, 200), path(7, 200)), set()
    options = {"n_weights": 7, "constant": 2.0}
    nats = np.array([
        [[information(way, count, theory, total, **options).nats for total in TOTALS]
         for way in ways]
        for theory in THEORIES
    ])  # fmt: skip
    for _ in range(200):
        scale = np.exp(rng.normal(-4, 4))
        extra = np.exp(rng.normal(0, 3)) * rng.exponential(size=TOTALS.size)
        found = least(ways, count, TOTALS, extra, scale=scale, **options)
        for values, place in zip(np.sqrt(scale * nats) + extra, found, strict=True):
            assert place == np.unravel_index(np.argmin(values), values.shape)
            places.add(place)
    assert len(places) >= TOTALS.size


def test_of_equals_the_first_is_chosen():
    steps = path(8)
    still = steps._replace(variance=0 * steps.variance, sensitivity=0 * steps.sensitivity)
    options = {"n_weights": 3, "scale": 1.0, "constant": 2.0}
    assert least([still, still], 9, TOTALS, np.zeros(4), **options) == ((0, 0),) * 3
    assert least([still, still], 9, TOTALS, np.eye(4)[0], **options) == ((0, 1),) * 3
    unknown = np.array([np.nan, 1.0, 1.0, 0.5])
    assert least([still, still], 9, TOTALS, unknown, **options) == ((0, 3),) * 3
    assert least([still], 9, TOTALS, np.full(4, np.nan), **options) == (None,) * 3


@pytest.mark.parametrize("scale", [1e-12, 1e30, 1e100])
@pytest.mark.parametrize("theory", THEORIES)
def test_sums_of_tiny_and_of_huge_ratios_keep_their_digits(theory, scale):
    """A product of 1 + x would lose the first and overflow with the others."""
    steps = path(2)
    steps = steps._replace(inverse=steps.inverse * scale)
    for total in TOTALS:
        found = information(steps, 60, theory, total, n_weights=7, constant=2.0)
        assert found.nats == pytest.approx(exact(steps, 60, theory, total, 7, 2.0), rel=1e-13)


@pytest.mark.parametrize("theory", THEORIES)
def test_derivatives_against_differences(theory):
    steps, total = path(3), 0.7
    rng = np.random.default_rng(4)
    rows = rng.exponential(size=len(steps.sensitivity))
    right = np.minimum(steps.left + 1, len(rows) - 1)
    by_step = rows[steps.left] + steps.part * (rows[right] - rows[steps.left])
    table = rng.exponential(size=steps.sensitivity.shape)

    def moved(of_variance, of_table):
        other = steps._replace(
            variance=by_step * (1 + of_variance), sensitivity=steps.sensitivity + of_table * table
        )
        return information(other, 50, theory, total, n_weights=7, constant=2.0)

    # Central differences: of order h^2, and rounding over h.
    h, at = 1e-5, moved(0.0, 0.0)
    slope = (moved(h, 0.0).nats - moved(-h, 0.0).nats) / (2 * h)
    assert at.by_variance @ rows == pytest.approx(slope, rel=1e-7)
    slope = (moved(0.0, h).nats - moved(0.0, -h).nats) / (2 * h)
    found = np.sum(at.by_sensitivity * table)
    assert found == pytest.approx(slope, rel=1e-7)
    assert (found == 0) == (theory == "wang_mao")


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6), st.sampled_from(THEORIES))
def test_units_of_weights_and_of_shares_do_not_matter(seed, unit, theory):
    """V in 1 / weight^2 and rates in weight^2 leave nats as they are, within rounding."""
    steps = path(seed, 12, 3, 3)
    other = steps._replace(
        inverse=steps.inverse * unit**4 / 7.0,
        variance=steps.variance / unit**2,
        before=steps.before * 7.0,
        log_before=steps.log_before + 0.5 * np.log(7.0),
        through=steps.through * 7.0,
        sensitivity=steps.sensitivity / unit**4,
        log_sigma=steps.log_sigma + np.log(unit),
    )
    one, two = (
        information(each, 11, theory, 0.4 * scale, n_weights=3, constant=2.0).nats
        for each, scale in ((steps, 1.0), (other, unit))
    )
    assert one == pytest.approx(two, rel=1e-9)


@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_a_step_that_tells_something_and_gets_no_noise_has_no_bound(variance):
    steps = path(5)
    inverse = steps.inverse.copy()
    inverse[7] = np.inf
    silent = steps._replace(inverse=inverse, variance=steps.variance * variance)
    options = {"n_weights": 3, "scale": 1.0, "constant": 2.0}
    assert least([silent], 20, TOTALS, np.zeros(4), **options) == (None,) * 3
    assert {way for way, _ in least([silent, steps], 20, TOTALS, np.zeros(4), **options)} == {1}
    assert None not in least([silent], 7, TOTALS, np.zeros(4), **options)
