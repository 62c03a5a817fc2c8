"""Resampling against all resamples there are, SciPy's, exact variances and coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tracelab.errors import UsageError
from tracelab.stats import bootstrap as module
from tracelab.stats.bootstrap import block_length, bootstrap
from tracelab.typing import Status


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def ratio(values: np.ndarray) -> np.ndarray:
    """A skewed statistic: the coefficient of variation."""
    return values.std(axis=-1) / values.mean(axis=-1)


def test_resamples_are_drawn_from_all_there_are() -> None:
    """Of five values there are 3,125 resamples: the exact distribution of their medians."""
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    every = np.median(list(itertools.product(x, repeat=5)), axis=-1)
    n_boot = 20_000
    found = bootstrap(x, lambda v: np.median(v, axis=-1), n_boot=n_boot, method="percentile")
    # Four standard errors of mean, and of a standard deviation by the fourth moment.
    spread = every.std()
    assert abs(found.estimate + found.bias - every.mean()) < 4 * spread / math.sqrt(n_boot)
    error = math.sqrt(((every - every.mean()) ** 4).mean() / spread**4 - 1) / 2
    assert abs(found.se / spread - 1) < 4 * error / math.sqrt(n_boot)
    exact = np.quantile(every, [0.025, 0.975], method="inverted_cdf")
    np.testing.assert_array_equal([found.low, found.high], exact)


@pytest.mark.parametrize("method", ["bca", "percentile", "basic"])
def test_intervals_are_scipys(method) -> None:
    x = np.random.default_rng(0).exponential(size=60)
    n_boot = 20_000
    found = bootstrap(x, ratio, n_boot=n_boot, method=method, confidence=0.9)
    theirs = stats.bootstrap(
        (x,),
        lambda v, axis: v.std(axis=axis) / v.mean(axis=axis),
        n_resamples=n_boot,
        method=method,
        confidence_level=0.9,
        rng=np.random.default_rng(1),
    )
    # Both ends are quantiles at 5 % of 20,000 draws: standard error sqrt(.05 .95 / 20000) / .103
    # standard deviations each, .103 the normal density there; BCa's z0 adds as much. Five of
    # the difference of two.
    error = 5 * math.sqrt(2) * math.sqrt(0.05 * 0.95 / n_boot) / 0.103 * theirs.standard_error
    error *= 2 if method == "bca" else 1
    interval = theirs.confidence_interval
    np.testing.assert_allclose([found.low, found.high], [interval.low, interval.high], atol=error)
    np.testing.assert_allclose(found.se, theirs.standard_error, rtol=5 / math.sqrt(n_boot))


def test_normal_interval() -> None:
    x = np.random.default_rng(2).normal(3, 2, size=(2, 400))
    found = bootstrap(x, mean, n_boot=4000, method="normal")
    np.testing.assert_allclose(found.se, x.std(axis=-1) / 20, rtol=5 / math.sqrt(8000))
    reach = 1.959963984540054 * found.se
    np.testing.assert_allclose(found.low, found.estimate - found.bias - reach)
    np.testing.assert_allclose(found.high, found.estimate - found.bias + reach)


@pytest.mark.slow
def test_coverage_of_a_skewed_mean() -> None:
    """BCa mends what the percentile interval misses on one side."""
    rows = 4000
    x = np.random.default_rng(3).exponential(size=(rows, 30))
    missed = {}
    for method in ("percentile", "bca"):
        found = bootstrap(x, mean, method=method, confidence=0.9)
        missed[method] = (found.low > 1).mean(), (found.high < 1).mean()
    error = 4 * math.sqrt(0.05 * 0.95 / rows)
    balance = {name: abs(low - high) for name, (low, high) in missed.items()}
    assert balance["bca"] < balance["percentile"] - error
    assert abs(sum(missed["bca"]) - 0.1) < abs(sum(missed["percentile"]) - 0.1)


def ar1(rng: np.random.Generator, rows: int, n: int, rho: float) -> np.ndarray:
    x = np.empty((rows, n))
    x[:, 0] = rng.standard_normal(rows) / math.sqrt(1 - rho**2)
    for k in range(1, n):
        x[:, k] = rho * x[:, k - 1] + rng.standard_normal(rows)
    return x


def test_blocks_see_dependence() -> None:
    """The mean of an AR(1) has the variance (1 + rho) / (1 - rho) of independent values'."""
    rho, n = 0.6, 2000
    x = ar1(np.random.default_rng(4), 60, n, rho)
    length = block_length(x)
    # The formula with the exact autocovariances of AR(1): G / sum R = 2 rho / (1 - rho^2).
    exact = (2 * (2 * rho / (1 - rho**2)) ** 2 / (4 / 3)) ** (1 / 3) * n ** (1 / 3)
    assert abs(np.median(length) / exact - 1) < 0.25
    found = bootstrap(x, mean, method="percentile", block=round(exact), n_boot=499)
    alone = bootstrap(x, mean, method="percentile", n_boot=499)
    error = 1 / (1 - rho) / math.sqrt(n)
    # Blocks of b lose about G / (b sum R) of the variance: 10 % here; resampling noise on top.
    assert abs(found.se.mean() / error - 1) < 0.15
    assert alone.se.mean() < 0.6 * error
    covered = ((found.low < 0) & (found.high > 0)).mean()
    assert covered > 0.95 - 0.05 - 4 * math.sqrt(0.05 * 0.95 / 60)


def test_blocks_are_runs_of_the_circle() -> None:
    """The draws themselves: blocks of consecutive values, cut to the length of the sample."""
    n, block = 23, 5
    seen = []

    def record(values: np.ndarray) -> np.ndarray:
        seen.append(values)
        return values.mean(axis=-1)

    bootstrap(np.arange(n), record, method="basic", block=block, n_boot=99)
    resamples = seen[1].reshape(99, n)
    for resample in resamples.astype(int):
        for begin in range(0, n, block):
            part = resample[begin : begin + block]
            assert ((part - part[0]) % n == np.arange(len(part))).all()
    starts = resamples[:, ::block].ravel()
    assert len(np.unique(starts)) == n


@settings(max_examples=10)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["bca", "percentile", "basic", "normal"]),
    st.integers(1, 40),
)
def test_samples_do_not_depend_on_each_other(seed: int, method, at_once: int) -> None:
    """Batch split, axis, seeds, and how many resamples are in memory at a time."""
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=(2, 3, 21))
    options = {"n_boot": 99, "method": method, "seed": seed}
    found = bootstrap(x, ratio, **options)
    values = module._VALUES
    try:
        module._VALUES = 21 * at_once
        again = bootstrap(np.moveaxis(x, -1, 0), ratio, axis=0, **options)
    finally:
        module._VALUES = values
    for place in np.ndindex(2, 3):
        alone = bootstrap(x[place], ratio, **options)
        for name in ("estimate", "se", "bias", "low", "high"):
            # Means over the last axis of arrays of other shapes add in another order.
            expected = getattr(alone, name)
            for each in (found, again):
                np.testing.assert_allclose(getattr(each, name)[place], expected, rtol=1e-9)
    scaled = bootstrap(1e6 * x, ratio, **options)
    np.testing.assert_allclose(scaled.low, found.low, rtol=1e-9)
    assert not np.array_equal(bootstrap(x, ratio, **options | {"seed": seed + 1}).se, found.se)


def test_block_lengths() -> None:
    rng = np.random.default_rng(5)
    white = block_length(rng.standard_normal((200, 500)))
    assert np.median(white) < 5
    assert ((white >= 1) & (white <= 500 / 3)).all()
    x = rng.standard_normal((4, 500))
    x[0, 1], x[1] = np.nan, 3.0
    assert np.isnan(block_length(x)).tolist() == [True, True, False, False]
    assert np.isnan(block_length(x[:, :9])).all()
    # A trend has no lag at which correlations end; the bound on lengths holds.
    assert block_length(np.arange(100.0)) <= 30
    scaled = block_length(ar1(rng, 3, 400, 0.5))
    assert scaled.shape == (3,)


def test_statuses() -> None:
    rng = np.random.default_rng(6)
    x = rng.exponential(size=(5, 40))
    x[1, 2] = np.inf
    x[2] = 3.0
    x[3] = -np.abs(x[3])
    found = bootstrap(x, lambda v: np.log(v.mean(axis=-1) * np.sign(v[..., 0])))
    statuses = [Status(each).name for each in found.status]
    assert statuses == ["OK", "NON_FINITE_INPUT", "CONSTANT_INPUT", "OK", "OK"]
    for each in (found.estimate, found.se, found.bias, found.low, found.high):
        assert np.isfinite(each).tolist() == [True, False, False, True, True]
    with np.errstate(invalid="ignore"):
        broken = bootstrap(x[[0, 3]], lambda v: np.sqrt(v.mean(axis=-1)))
    assert [Status(each).name for each in broken.status] == ["OK", "FAILED"]
    assert (bootstrap(x[:, :2], mean).status[[0, 2]] == Status.TOO_FEW_SAMPLES).all()
    short = bootstrap(x, mean, method="basic", block=20)
    assert short.status.tolist() == [2, 3, 2, 2, 2]
    assert bootstrap(np.empty((0, 9)), mean).se.shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: bootstrap(x, mean, n_boot=50), "n_boot must be at least 99"),
        (lambda x: bootstrap(x, mean, method="abc"), "method must be one of bca, percentile"),
        (lambda x: bootstrap(x, mean, confidence=95), r"confidence must be in \(0, 1\), got 95"),
        (lambda x: bootstrap(x, mean, block=0, method="basic"), "block must be from 1 to the 30"),
        (lambda x: bootstrap(x, mean, block=3), "method='bca' is for independent values"),
        (lambda x: bootstrap(x, np.mean), "statistic must reduce the last axis"),
        (lambda x: bootstrap(x + 0j, mean), "samples must be real numbers, got dtype complex128"),
        (lambda x: block_length(x, axis=3), "axis 3 is not an axis of samples"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(np.random.default_rng(0).standard_normal((2, 30)))
