"""Bounds by covering, by hand and against gaps of sets fixed before the data."""

import math

import numpy as np
import pytest
from scipy import stats

from tracelab.errors import UsageError
from tracelab.stats.covering import TERMS, covering_bound, finite_bound


def test_by_hand():
    found = covering_bound(
        3.0, n_data=100, lipschitz=5.0, diameter=2.0, loss_range=2.0, delta=math.exp(-4)
    )
    # n (L D / B)^2 = 100 * 25; balls of radius B / (L sqrt n) = 0.04 in a set of diameter 2.
    assert found.log_balls == pytest.approx(3 * math.log(2 / 0.04))
    log_balls = 1.5 * math.log(2500)
    assert found.bound == pytest.approx(2 * math.sqrt((log_balls + 4) / 200) + 2 * 2 / 10)
    wanted = [2 * math.sqrt(log_balls / 200), 2 * math.sqrt(4 / 200), 0.4]
    np.testing.assert_allclose(found.terms, wanted, rtol=1e-12)
    assert len(TERMS) == found.terms.shape[-1]
    one = finite_bound(50, n_data=100, loss_range=2.0, delta=0.1)
    assert one == pytest.approx(2 * math.sqrt(math.log(500) / 200))


def test_units_do_not_matter():
    one = covering_bound([1.5, 40], n_data=500, lipschitz=3.0, diameter=0.7)
    other = covering_bound([1.5, 40], n_data=500, lipschitz=21.0, diameter=0.1)
    np.testing.assert_allclose(one.bound, other.bound, rtol=1e-12)
    loss = covering_bound([1.5, 40], n_data=500, lipschitz=30.0, diameter=0.7, loss_range=10.0)
    np.testing.assert_allclose(loss.bound, 10 * one.bound, rtol=1e-12)


def test_a_set_smaller_than_a_ball_has_one():
    found = covering_bound(7.0, n_data=100, lipschitz=1e-3, diameter=1.0)
    assert found.log_balls == 0
    assert found.bound == pytest.approx(math.sqrt(math.log(20) / 200) + 0.2)
    assert covering_bound(7.0, n_data=100, lipschitz=0.0, diameter=1.0).log_balls == 0
    # The upper end of an interval of dimensions can be open.
    found = covering_bound([np.inf, np.nan], n_data=100, lipschitz=1e-3, diameter=1.0)
    np.testing.assert_array_equal(found.log_balls, [0, np.nan])
    assert covering_bound(np.inf, n_data=100, lipschitz=1.0, diameter=1.0).bound == np.inf


def test_what_is_missing_is_missing():
    found = covering_bound([np.nan, 2.0], n_data=100, lipschitz=1.0, diameter=1.0)
    assert np.isnan(found.bound).tolist() == [True, False]
    assert np.isnan(covering_bound(2.0, n_data=100, lipschitz=np.nan, diameter=1.0).bound)


@pytest.mark.parametrize("delta", [0.05, 0.5])
def test_gaps_of_a_fixed_set_stay_below(delta):
    """Loss |w - z|, w in [0, 1], z uniform: B = L = D = d = 1 and R(w) = (w^2 + (1 - w)^2) / 2.

    An interval of length 1 is covered by 1 / (2 r) + 1 <= 1 / r balls: no constant is missing, and
    of 400 samples no more than the binomial's upper 1e-6 point may cross.
    """
    w = np.linspace(0, 1, 201)
    risk = (w**2 + (1 - w) ** 2) / 2
    crossed = 0
    for seed in range(400):
        z = np.random.default_rng(seed).random(40)
        gap = (risk - np.abs(w[:, None] - z).mean(axis=1)).max()
        crossed += gap > covering_bound(1.0, n_data=40, lipschitz=1, diameter=1, delta=delta).bound
    assert crossed <= stats.binom.isf(1e-6, 400, delta)


def test_gaps_of_a_finite_set_cross_no_more_often_than_they_may():
    """Independent fair coins, 64 weights: the bound is crossed, and at a rate below delta."""
    draws = np.random.default_rng(0).binomial(50, 0.5, (2_000, 64)) / 50
    rate = np.mean((0.5 - draws).max(axis=1) > finite_bound(64, n_data=50, delta=0.5))
    assert 0 < rate <= 0.5


@pytest.mark.parametrize(("name", "value"), [("loss_range", 0.0), ("delta", 0.0), ("delta", 1.0)])
def test_what_cannot_be_asked_for(name, value):
    with pytest.raises(UsageError, match=f"{name} must be"):
        covering_bound(1.0, n_data=10, lipschitz=1, diameter=1, **{name: value})
    with pytest.raises(UsageError, match=f"{name} must be"):
        finite_bound(10, n_data=10, **{name: value})
