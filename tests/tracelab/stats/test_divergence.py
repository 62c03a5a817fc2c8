"""Divergences against mpmath, SciPy's root finder, numbers by hand and draws."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from tracelab.errors import UsageError
from tracelab.stats.divergence import bernoulli_kl, bernoulli_kl_inverse, gaussian_kl

inside = st.floats(1e-9, 1 - 1e-9)


def exact(q, p):
    with mpmath.workdps(50):
        q, p = mpmath.mpf(q), mpmath.mpf(p)
        first = q * mpmath.log(q / p) if q else mpmath.mpf(0)
        second = (1 - q) * mpmath.log((1 - q) / (1 - p)) if q != 1 else mpmath.mpf(0)
        return first + second


@pytest.mark.parametrize("q", [0.0, 1e-12, 0.01, 0.3, 0.5, 0.97, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("p", [1e-13, 0.01, 0.0100001, 0.2999999, 0.5, 0.9700000001, 1 - 1e-10])
def test_bernoulli_is_what_fifty_digits_give(q, p):
    # p - q and 1 - q are rounded, and what they enter is at most 1 / p or 1 / (1 - p) as large.
    rounding = 4e-16 * (1 + abs(p - q) / (p * (1 - p)))
    assert float(bernoulli_kl(q, p)) == pytest.approx(float(exact(q, p)), rel=1e-13, abs=rounding)


def test_bernoulli_at_the_ends():
    assert bernoulli_kl(0.0, 0.0) == 0
    assert bernoulli_kl(1.0, 1.0) == 0
    assert np.isinf(bernoulli_kl([0.5, 0.5, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0])).all()
    assert np.isinf(bernoulli_kl(1e-300, 0.0))
    assert bernoulli_kl(1e-300, 0.5) == pytest.approx(np.log(2))
    assert np.isnan(bernoulli_kl([np.nan, 0.5], [0.5, np.nan])).all()


@pytest.mark.parametrize("q", [0.0, 1e-8, 0.003, 0.1, 0.5, 0.9, 1 - 1e-6])
@pytest.mark.parametrize("bound", [1e-13, 1e-9, 1e-4, 0.02, 0.7, 5.0, 25.0])
def test_the_inverse_is_that_of_fifty_digits(q, bound):
    found = float(bernoulli_kl_inverse(q, bound))
    with mpmath.workdps(50):
        low, high = mpmath.mpf(q), mpmath.mpf(1)
        for _ in range(130):
            middle = (low + high) / 2
            low, high = (middle, high) if exact(q, middle) <= bound else (low, middle)
        assert found == pytest.approx(float(low), abs=1e-15)


def test_the_inverse_is_scipys_root():
    for q, bound in ((0.02, 0.1), (0.4, 1e-3), (0.0, 0.3)):

        def gap(p, q=q, bound=bound):
            return float(exact(q, p)) - bound

        root = optimize.brentq(gap, q + 1e-15, 1 - 1e-15, xtol=1e-14)
        assert float(bernoulli_kl_inverse(q, bound)) == pytest.approx(root, abs=1e-12)


def test_the_inverse_at_the_ends():
    np.testing.assert_array_equal(
        bernoulli_kl_inverse([0.2, 1.0, 0.0], [0.0, 0.5, 0.0]), [0.2, 1, 0]
    )
    assert bernoulli_kl_inverse(0.0, 0.25) == -np.expm1(-0.25)
    assert bernoulli_kl_inverse(0.3, np.inf) == 1
    assert np.isnan(bernoulli_kl_inverse([np.nan, 0.1], [1.0, np.nan])).all()
    assert bernoulli_kl_inverse(np.full((2, 1), 0.1), np.ones(3)).shape == (2, 3)


@given(q=inside, bound=st.floats(1e-9, 20))
def test_the_inverse_undoes_the_divergence(q, bound):
    p = float(bernoulli_kl_inverse(q, bound))
    assert q <= p <= 1
    if p < 1 - 1e-9:
        # p is exact to 1e-15 and its rounding; the divergence has slope (p - q) / (p (1 - p)).
        slope = (p - q) / (p * (1 - p))
        assert float(bernoulli_kl(q, p)) == pytest.approx(bound, rel=1e-9, abs=1e-14 * slope)


@given(q=inside, p=inside)
def test_the_divergence_is_not_negative_and_turns_over(q, p):
    assert bernoulli_kl(q, p) >= 0
    assert bernoulli_kl(q, p) >= 2 * (p - q) ** 2 * (1 - 1e-12)
    turned = float(bernoulli_kl(1 - q, 1 - p))
    # 1 - q rounds q by 1e-16, which is 1e-7 of the least q.
    assert turned == pytest.approx(float(bernoulli_kl(q, p)), rel=1e-5, abs=1e-12)


def test_rows_do_not_depend_on_their_neighbours():
    q, bound = np.random.default_rng(0).random((2, 50))
    whole = bernoulli_kl_inverse(q, bound)
    assert all(whole[i] == bernoulli_kl_inverse(q[i], bound[i]) for i in range(50))


def test_gaussians_by_hand():
    # N(1, 1/4) from N(0, 1), d = 1: (1 + 1/4 + log 4 - 1) / 2.
    assert gaussian_kl(1, 0.25, np.log(0.25), 1, 1.0) == pytest.approx((0.25 + np.log(4)) / 2)
    # N((3, 4), diag(1, 2)) from N(0, 5 I): ((25 + 3) / 5 - log 2 + 2 log 5 - 2) / 2.
    by_hand = (28 / 5 - np.log(2) + 2 * np.log(5) - 2) / 2
    assert gaussian_kl(25, 3, np.log(2), 2, 5.0) == pytest.approx(by_hand)
    assert gaussian_kl(0, 7 * 0.3, 7 * np.log(0.3), 7, 0.3) == pytest.approx(0, abs=1e-14)


def test_gaussians_by_draws():
    rng = np.random.default_rng(1)
    mean, start = rng.standard_normal((2, 4))
    covariance = np.diag(rng.uniform(0.1, 2.0, 4))
    draws = rng.multivariate_normal(mean, covariance, 40_000)
    ratios = stats.multivariate_normal(mean, covariance).logpdf(draws)
    ratios -= stats.multivariate_normal(start, 0.7 * np.eye(4)).logpdf(draws)
    found = gaussian_kl(
        np.sum((mean - start) ** 2), np.trace(covariance), np.log(np.diag(covariance)).sum(), 4, 0.7
    )
    # Four standard errors of the mean of the draws.
    assert float(found) == pytest.approx(ratios.mean(), abs=4 * ratios.std() / np.sqrt(40_000))


def test_bad_input():
    with pytest.raises(UsageError, match=r"q must be probabilities in \[0, 1\], got 1\.5"):
        bernoulli_kl(1.5, 0.5)
    with pytest.raises(UsageError, match=r"p must be probabilities in \[0, 1\], got -0\.1"):
        bernoulli_kl(0.5, -0.1)
    with pytest.raises(UsageError, match=r"bound must not be negative, got -1\.0"):
        bernoulli_kl_inverse(0.5, [-1.0, 2.0])
    with pytest.raises(UsageError, match=r"prior_variance must be positive, got 0\.0"):
        gaussian_kl(1, 1, 0, 1, 0.0)
