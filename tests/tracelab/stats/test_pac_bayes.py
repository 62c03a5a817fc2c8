"""Bounds against their theorems' own sums, against each other, and against draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special, stats

from tracelab.errors import UsageError
from tracelab.stats.divergence import bernoulli_kl, gaussian_kl
from tracelab.stats.pac_bayes import (
    BETAS,
    catoni,
    catoni_price,
    draws_limit,
    mcallester,
    priced_prior,
    realizable,
    realizable_published,
    seeger,
    seeger_price,
)

risk = st.floats(0, 1)
nats = st.floats(0, 1e4)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 8, 20, 200])
def test_the_price_covers_the_mean_that_the_theorem_needs(n):
    """E exp(n kl(k / n || p)) over binomial k is at most 2 sqrt n, for every p."""
    k = np.arange(n + 1)
    for p in (1e-6, 0.01, 0.3, 0.5, 0.9):
        logs = stats.binom.logpmf(k, n, p) + n * bernoulli_kl(k / n, p)
        mean = special.logsumexp(logs)
        assert mean <= seeger_price(n, 1 - 1e-12) + 1e-11


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_catonis_exponential_has_mean_one(p):
    """Of Bernoulli losses exactly, for every beta."""
    n = 40
    k = np.arange(n + 1)
    for beta in BETAS:
        logs = stats.binom.logpmf(k, n, p) - beta * k - n * np.log1p(p * np.expm1(-beta))
        assert special.logsumexp(logs) == pytest.approx(0, abs=1e-11)


def test_by_hand():
    price = np.log(2 * 10 / 0.05)
    assert seeger_price(100, 0.05) == pytest.approx(price)
    assert mcallester(0.1, 8.0, 100) == pytest.approx(0.1 + 0.2)
    assert seeger(0.0, 30.0, 100) == pytest.approx(1 - np.exp(-0.3))
    bound, beta = catoni(0.1, 8.0, 100)
    exact = [(1 - np.exp(-b * 0.1 - 0.08)) / (1 - np.exp(-b)) for b in BETAS]
    assert bound == pytest.approx(min(exact))
    assert beta == BETAS[np.argmin(exact)]
    assert catoni_price(0.05) == pytest.approx(np.log(24 / 0.05))


@given(empirical=risk, complexity=nats, n=st.integers(1, 10**6))
def test_the_inverse_is_below_the_root_and_the_lines(empirical, complexity, n):
    """Pinsker; and -log(1 - R (1 - exp -b)) - b r <= kl(r || R), over b equal to it."""
    best = float(seeger(empirical, complexity, n))
    assert empirical <= best <= min(1, mcallester(empirical, complexity, n)) + 1e-12
    bound, _ = catoni(empirical, complexity, n)
    assert bound >= best - 1e-12


def test_lines_at_the_best_beta_touch_the_inverse():
    for empirical, rate in ((0.05, 0.02), (0.3, 0.01), (0.0, 0.5)):

        def line(log_beta, empirical=empirical, rate=rate):
            beta = np.exp(log_beta)
            return np.expm1(-beta * empirical - rate) / np.expm1(-beta)

        best = optimize.minimize_scalar(line, bounds=(-8, 4), method="bounded").fun
        assert best == pytest.approx(float(seeger(empirical, rate * 50, 50)), rel=1e-6)
        # Neighbours on the grid differ by a third, which costs at most a few parts in a hundred.
        assert catoni(empirical, rate * 50, 50)[0] <= 1.03 * best


@given(low=risk, high=risk, complexity=nats)
def test_bounds_rise_with_the_empirical_risk(low, high, complexity):
    low, high = sorted((low, high))
    for of in (seeger, mcallester, lambda *each: catoni(*each)[0]):
        assert of(low, complexity, 300) <= of(high, complexity, 300) + 1e-12


def test_missing_risks_stay_missing():
    empirical = np.array([np.nan, 0.2])
    for found in (
        seeger(empirical, 1.0, 9),
        mcallester(empirical, 1.0, 9),
        *catoni(empirical, 1.0, 9),
    ):
        assert np.isnan(found[0])
        assert np.isfinite(found[1])


def test_the_limit_of_draws_fails_no_more_often_than_it_may():
    """Binomial draws: the probability that the limit is below the mean, summed exactly."""
    for m, p, delta in ((10, 0.3, 0.1), (50, 0.1, 0.05), (200, 0.5, 0.01)):
        k = np.arange(m + 1)
        limit = draws_limit(k / m, m, delta)
        missed = stats.binom.pmf(k, m, p)[limit < p].sum()
        assert missed <= delta
        # It is no more than a factor of a few too careful.
        assert missed > delta / 50
    assert draws_limit(0.0, 10, 0.1) == pytest.approx(1 - 0.1**0.1)


def test_the_prior_is_the_best_of_a_long_grid():
    rng = np.random.default_rng(0)
    distance, trace = rng.uniform(0.1, 30, (2, 5))
    det = rng.uniform(-900, -100, 5)
    found = priced_prior(distance, trace, det, 100, largest=0.5, precision=20)
    j = np.arange(1, 3000)[:, None]
    variance = 0.5 * np.exp(-j / 20)
    # 2 log(b log(c / lambda)) + log(pi^2 / 6).
    price = 2 * np.log(20 * np.log(0.5 / variance)) + np.log(np.pi**2 / 6)
    total = gaussian_kl(distance, trace, det, 100, variance) + price
    np.testing.assert_allclose(found.kl + found.price, total.min(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, variance[total.argmin(axis=0), 0], rtol=1e-12)
    np.testing.assert_allclose(found.kl, gaussian_kl(distance, trace, det, 100, found.variance))
    # Prices are those of probabilities that add up to one.
    assert np.exp(-price).sum() < 1


@pytest.mark.parametrize("precision", [1, 3, 100, 10**6, 10**12])
def test_the_best_of_a_grid_is_found_however_fine_it_is(precision):
    """Against 200,000 of its points, evenly spaced, and the first thousand."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        d, total = int(rng.integers(1, 2000)), 10.0 ** rng.uniform(-4, 4)
        # No law of this trace has a larger determinant.
        det = d * np.log(total / 2 / d) - d * rng.exponential()
        found = priced_prior(total / 2, total / 2, det, d, largest=0.5, precision=precision)
        x = np.linspace(0, max(np.log(d / total), 0) + 1, 200_000)
        first = np.arange(1.0, min(1000, 20 * precision))
        j = np.unique(np.concatenate([first, np.maximum(np.round(x * precision), 1)]))
        total_nats = gaussian_kl(
            total / 2, total / 2, det, d, 0.5 * np.exp(-j / precision)
        ) + 2 * np.log(j) + np.log(np.pi**2 / 6)  # fmt: skip
        assert found.kl + found.price == pytest.approx(total_nats.min(), rel=1e-6, abs=1e-5)


def test_a_prior_that_is_wanted_wider_than_the_grid_is_the_widest():
    found = priced_prior(1e6, 1.0, 0.0, 10, largest=1.0, precision=10)
    assert found.variance == pytest.approx(np.exp(-0.1))
    assert found.price == pytest.approx(np.log(np.pi**2 / 6))


def test_what_is_missing_has_no_prior():
    found = priced_prior([1.0, np.nan, 1.0], [1.0, 1.0, np.inf], 0.0, 3)
    assert np.isfinite(found.kl).tolist() == [True, False, False]


@pytest.mark.parametrize("theory", ["seeger", "catoni"])
def test_the_bound_of_any_posterior_fails_no_more_often_than_it_may(theory):
    """Classifiers of known risks, a posterior chosen after the data to break the bound.

    K classifiers, uniform prior, and of all one-classifier posteriors (KL = log K) the one whose
    bound lies farthest below its risk. Errors at one example are independent of each other.
    """
    rng = np.random.default_rng(3)
    n, k, delta, trials = 60, 30, 0.2, 2000
    risks = rng.uniform(0.02, 0.5, k)
    empirical = rng.binomial(n, risks, (trials, k)) / n
    if theory == "seeger":
        bounds = seeger(empirical, np.log(k) + seeger_price(n, delta), n)
    else:
        bounds = catoni(empirical, np.log(k) + catoni_price(delta), n)[0]
    crossed = (bounds < risks).any(axis=1).sum()
    # 4 standard errors of a share of delta.
    assert crossed <= trials * (delta + 4 * np.sqrt(delta * (1 - delta) / trials))
    # Without the divergence it fails more often: the trial can tell.
    price = seeger_price(n, delta) if theory == "seeger" else catoni_price(delta)
    careless = seeger(empirical, price - np.log(2 * np.sqrt(n)), n)
    assert (careless < risks).any(axis=1).mean() > delta


def test_realizable_by_hand():
    # Two classifiers of ten have no error on 20 examples.
    found = realizable(np.log(0.2), 20, 0.05)
    assert found == pytest.approx(1 - np.exp(-(np.log(5) + np.log(20)) / 20))
    looser = realizable_published(np.log(0.2), 20, 0.05)
    assert -np.log1p(-looser) + np.log1p(-found) == pytest.approx((2 * np.log(20) + 1) / 20)


def test_labels_of_a_gaussian_process_are_learnt_as_the_bound_says():
    """Risks of the prior given the labels of random examples, by rejection, over 300 targets.

    Functions on 40 points, of signs of a Gaussian process; targets are others of them.
    """
    rng = np.random.default_rng(7)
    x = np.linspace(0, 4, 40)
    root = np.linalg.cholesky(np.exp(-((x[:, None] - x) ** 2) / 2) + 1e-9 * np.eye(40))
    prior = rng.standard_normal((60_000, 40)) @ root.T > 0
    trials, n, delta, crossed, careless, tight = 300, 8, 0.2, 0, 0, 0
    for target in rng.standard_normal((trials, 40)) @ root.T > 0:
        examples = rng.integers(40, size=n)
        fits = (prior[:, examples] == target[examples]).all(axis=1)
        if not fits.any():
            continue
        risk = (prior[fits] != target).mean()
        bound = realizable(np.log(fits.mean()), n, delta)
        crossed += bound < risk
        # Without the evidence it is below the risk more often than it may; and it says something.
        careless += realizable(0.0, n, 0.8) < risk
        tight += bound < 0.6
    assert crossed <= stats.binom.ppf(0.999, trials, delta)
    assert careless > stats.binom.ppf(0.999, trials, delta)
    assert tight > trials / 4


def test_bad_input():
    with pytest.raises(
        UsageError, match=r"largest and precision must be positive numbers, got 0\.0 and 100"
    ):
        priced_prior(1.0, 1.0, 0.0, 3, largest=0.0)
    with pytest.raises(UsageError, match="confidence must be in"):
        seeger_price(10, 0.0)
