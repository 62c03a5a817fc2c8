"""Binned statistics against those of the values themselves."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from tracelab.errors import UsageError
from tracelab.histogram import Histogram
from tracelab.stats import histograms, models, normality, stable, tails
from tracelab.stats._binned import _weighted
from tracelab.typing import Status

FINE = Histogram(mantissa_bits=7)
TESTS = ("anderson", "cramer_von_mises", "lilliefors")


def drawn(law: str, rows: int, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = {
        "gaussian": lambda: rng.standard_normal((rows, n)),
        "scaled": lambda: 1e-5 * (0.3 + rng.standard_normal((rows, n))),
        "student": lambda: rng.standard_t(5, (rows, n)),
        "uniform": lambda: rng.uniform(-1, 1, (rows, n)),
    }[law]()
    return x.astype(np.float32)


@pytest.mark.parametrize("law", ["gaussian", "scaled", "student", "uniform"])
@pytest.mark.parametrize("n", [200, 5000, 100_000])
def test_statistics_are_those_of_the_values(law: str, n: int) -> None:
    x = drawn(law, 6, n)
    found = histograms.battery(FINE.count(x), FINE)
    exact = normality.battery(x, TESTS)
    for name in TESTS:
        mine, theirs = found[name], exact[name]
        assert (mine.status == Status.OK).all()
        assert (mine.n_samples == n).all()
        scale = math.sqrt(n) if name == "lilliefors" else 1.0
        # Bins of a part p of the law scatter A^2 and W^2 by p, sqrt(n) D by sqrt(p / 4): a bin is
        # 1/128 of its value, at most some .5 % of any of these laws; and what far statistics gain
        # or lose by the deviation, known to 1e-4.
        tolerance = {"anderson": 0.02, "cramer_von_mises": 0.004, "lilliefors": 0.1}[name]
        np.testing.assert_allclose(
            scale * mine.statistic, scale * theirs.statistic, atol=tolerance, rtol=1e-3
        )
    if law in ("gaussian", "scaled"):
        for name, tolerance in zip(TESTS, (0.02, 0.02, 0.12), strict=True):
            difference = np.abs(found[name].pvalue - exact[name].pvalue)
            assert difference.max() < tolerance, name


def test_without_the_scatter_of_bridges_the_statistic_is_too_small() -> None:
    """On average over many samples there is no bias, where a coarse histogram would have one."""
    coarse, n = Histogram(mantissa_bits=4), 500
    x = drawn("gaussian", 400, n)
    found = histograms.battery(coarse.count(x), coarse)
    exact = normality.battery(x, TESTS)
    for name in TESTS:
        difference = found[name].statistic - exact[name].statistic
        error = difference.std() / math.sqrt(400)
        # The mean and deviation themselves are of bins 1/16 wide; a twentieth of the statistic.
        allowed = 4 * error + 0.05 * exact[name].statistic.mean()
        assert abs(difference.mean()) < allowed, name


@pytest.mark.slow
def test_the_size_of_binned_tests() -> None:
    rows = 4000
    counts = FINE.count(drawn("gaussian", rows, 500, seed=1))
    for name, result in histograms.battery(counts, FINE).items():
        rate = (result.pvalue < 0.05).mean()
        assert abs(rate - 0.05) < 4 * math.sqrt(0.05 * 0.95 / rows) + 0.005, name


@pytest.mark.parametrize(
    ("low", "high"),
    [(1e-300, 1e-280), (0.0, 1e-9), (1e-9, 2e-9), (0.1, 0.9), (0.4, 0.41), (0.9, 1 - 1e-12)],
)
@pytest.mark.parametrize(("start", "end"), [(1e-3, 1e-3), (-2e-3, 5e-3), (0.01, -0.02)])
def test_the_weighted_integral(low: float, high: float, start: float, end: float) -> None:
    """In the variable log(F / (1 - F)), where it is smooth, by SciPy."""
    if low == 0.0:
        start = 0.0
    slope = (end - start) / (high - low)

    def integrand(y: float) -> float:
        return float((start + slope * (special.expit(y) - low)) ** 2)

    # Where F is 0 at the lower end, so is the distance, and what lies below 1e-40 is nothing.
    ends = [math.log(max(p, 1e-40 if low == 0 else 0)) - math.log1p(-p) for p in (low, high)]
    exact, _ = integrate.quad(integrand, *ends, limit=500, epsabs=0, epsrel=1e-9)
    ratio = 0.0 if low == 0 else math.log(high) - math.log(low)
    ratio_up = math.log1p(-low) - math.log1p(-high)
    found = _weighted(start, end, low, high, 1 - low, 1 - high, ratio, ratio_up)
    # Three nodes over a quarter of the distance to the pole: 1e-5.
    np.testing.assert_allclose(found, exact, rtol=3e-5)
    mirrored = _weighted(end, start, 1 - high, 1 - low, high, low, ratio_up, ratio)
    np.testing.assert_allclose(mirrored, found, rtol=1e-4)


@pytest.mark.parametrize("law", ["gaussian", "scaled", "student", "uniform"])
def test_moments(law: str) -> None:
    n = 20_000
    x = drawn(law, 4, n)
    found = histograms.moments(FINE.count(x), FINE)
    values = x.astype(np.float64)
    np.testing.assert_allclose(found.mean_se, values.std(axis=-1, ddof=1) / math.sqrt(n), rtol=1e-3)
    np.testing.assert_allclose(found.std_se, found.std / math.sqrt(2 * (n - 1)), rtol=1e-12)
    # A tenth of a standard error.
    assert (np.abs(found.mean - values.mean(axis=-1)) < 0.1 * found.mean_se).all()
    assert (np.abs(found.std - values.std(axis=-1, ddof=1)) < 0.1 * found.std_se).all()
    assert (found.resolution < 0.02).all()
    assert (found.status == Status.OK).all()


@pytest.mark.parametrize("law", ["gaussian", "student", "uniform"])
def test_quantiles_lie_in_their_bins(law: str) -> None:
    x = drawn(law, 5, 3000)
    q = np.array([0.0, 0.001, 0.05, 0.25, 0.5, 0.75, 0.999, 1.0])
    found = histograms.quantile(FINE.count(x), FINE, q)
    # The value whose rank is nearest to (n - 1) q + 1.
    ranks = np.ceil(2999 * q + 0.5).astype(int) - 1
    exact = np.sort(x.astype(np.float64), axis=-1)[:, ranks]
    assert (np.abs(found.value - exact) <= found.width).all()
    assert (found.width <= np.abs(exact) / 64).all()
    one = histograms.quantile(FINE.count(x[0]), FINE, 0.5)
    assert one.value == found.value[0, 4]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(-20, 5), st.integers(1, 399))
def test_invariances(seed: int, octaves: int, split: int) -> None:
    """Sign, powers of two, order, batch and the parts that were added up: the same bits."""
    x = drawn("student", 3, 400, seed) / 4
    counts = FINE.count(x)
    found = histograms.battery(counts, FINE)
    parts = FINE.merge(FINE.count(x[:, :split]), FINE.count(x[:, split:]))
    np.testing.assert_array_equal(parts, counts)
    for name, result in histograms.battery(FINE.count(-x), FINE).items():
        np.testing.assert_allclose(result.statistic, found[name].statistic, rtol=1e-9)
    scaled = histograms.battery(FINE.count(np.ldexp(x, octaves)), FINE)
    for name, result in scaled.items():
        # Within the window of octaves, but for the smallest values.
        np.testing.assert_allclose(result.statistic, found[name].statistic, rtol=1e-9)
        alone = [histograms.battery(each, FINE)[name].pvalue for each in counts]
        np.testing.assert_array_equal(alone, found[name].pvalue)


def test_statuses() -> None:
    x = drawn("gaussian", 6, 50)
    x[1, 0], x[2, 0] = np.nan, -np.inf
    x[3] = 2.5
    x[4] = 1000 + 0.001 * x[4]
    counts = FINE.count(x)
    counts[5] = FINE.count(x[5, :7])
    wanted = [
        "OK",
        "NON_FINITE_INPUT",
        "NON_FINITE_INPUT",
        "CONSTANT_INPUT",
        "CONSTANT_INPUT",
        "TOO_FEW_SAMPLES",
    ]
    for result in histograms.battery(counts, FINE).values():
        assert [Status(each).name for each in result.status] == wanted
        assert np.isfinite(result.pvalue).tolist() == [True, *5 * [False]]
        assert np.isnan(result.statistic[1:]).all()
        assert result.n_samples.tolist() == [50, 49, 49, 50, 50, 7]
    found = histograms.moments(counts, FINE)
    assert [Status(each).name for each in found.status] == [*wanted[:5], "OK"]
    wide = FINE.count(100 + drawn("gaussian", 1, 500)[0])
    assert histograms.anderson(wide, FINE).status == Status.NOT_CONVERGED
    assert histograms.moments(wide, FINE).status == Status.NOT_CONVERGED
    assert abs(histograms.moments(wide, FINE).mean - 100) < 0.5
    nothing = histograms.quantile(np.zeros(FINE.bins, int), FINE, [0.5])
    assert nothing.status == Status.TOO_FEW_SAMPLES
    assert np.isnan(nothing.value).all()
    zeros = histograms.moments(FINE.count(np.array([0.0, 0.0, 1.0, -1.0])), FINE)
    assert zeros.zeros == 2
    assert histograms.anderson(np.zeros((0, FINE.bins), int), FINE).pvalue.shape == (0,)


def test_quantiles_and_distances_of_other_laws_are_scipys() -> None:
    """Kolmogorov's distance by SciPy, of one large sample."""
    x = drawn("student", 1, 50_000, seed=3)[0]
    found = histograms.lilliefors(FINE.count(x), FINE).statistic
    values = x.astype(np.float64)
    theirs = stats.kstest((values - values.mean()) / values.std(ddof=1), "norm").statistic
    np.testing.assert_allclose(found, theirs, rtol=0.01)
    whole = histograms.cramer_von_mises(FINE.count(x), FINE).statistic
    theirs = stats.cramervonmises((values - values.mean()) / values.std(ddof=1), "norm").statistic
    np.testing.assert_allclose(whole, theirs, rtol=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: histograms.anderson(c[:-1], FINE), "counts must be whole numbers, 12"),
        (lambda c: histograms.anderson(c * 1.0, FINE), "got float64 of shape"),
        (lambda c: histograms.anderson(c - 1, FINE), "counts must not be negative, got -1"),
        (lambda c: histograms.battery(c, FINE, ("shapiro",)), "there is no test 'shapiro' of bin"),
        (lambda c: histograms.quantile(c, FINE, 1.5), r"q must be one level in \[0, 1\]"),
        (lambda c: histograms.moments(c, Histogram()), "counts must be whole numbers, 6562"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(FINE.count(np.zeros(3)))


@pytest.mark.parametrize("law", ["gaussian", "scaled", "student", "uniform"])
def test_values_are_counted_as_they_were(law: str) -> None:
    counts = FINE.count(drawn(law, 1, 5000)[0])
    made = histograms.values(counts, FINE)
    assert made.shape == (5000,)
    assert (np.diff(made) >= 0).all()
    again = FINE.count(made.astype(np.float32))
    # A place at the very edge of a bin may round into the next.
    assert np.abs(again.astype(np.int64) - counts).sum() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("n", [1000, 30_000])
@pytest.mark.parametrize("law", ["student", "stable"])
def test_tails_and_laws_of_values_lose_little(law: str, n: int) -> None:
    """On average .05 standard errors, and 2 % of the standard deviation: .2 of an error."""
    rng, rows = np.random.default_rng(1), 10
    shape = (rows, n)
    x = rng.standard_t(3, shape) if law == "student" else stable.rvs(1.6, size=shape, rng=rng)
    x = (1e-3 * x).astype(np.float32)
    made = np.stack([histograms.values(FINE.count(row), FINE) for row in x])
    exact = x.astype(np.float64)
    moved = {}
    for estimator in (tails.hill, tails.moment, tails.pot):
        theirs, mine = estimator(exact, n // 20), estimator(made, n // 20)
        moved[estimator.__name__] = (mine.xi - theirs.xi) / theirs.xi_se
    fits, found = models.fit(exact), models.fit(made)
    for name in ("student_t", "laplace", "generalized_normal", "stable"):
        for parameter, error in fits[name].errors.items():
            change = found[name].parameters[parameter] - fits[name].parameters[parameter]
            moved[f"{name} {parameter}"] = change / error
    for name, change in moved.items():
        # Three standard errors of a mean of ten that scatter as they may.
        assert abs(change.mean()) < 0.05 + 3 * change.std() / np.sqrt(rows), name
        assert np.sqrt(np.mean(change**2)) < 0.2, name


def test_values_of_what_has_none() -> None:
    rows = FINE.count(np.ones((2, 10), np.float32))
    for counts, options, message in (
        (rows, {}, "counts must be of one sample"),
        (
            FINE.count(np.array([1, np.nan], np.float32)),
            {},
            "1 of the values counted were not finite",
        ),
        (rows[0], {"most": 9}, "counts are of 10 values, more than most=9"),
    ):
        with pytest.raises(UsageError, match=message):
            histograms.values(counts, FINE, **options)
    assert histograms.values(np.zeros(FINE.bins, np.int64), FINE).size == 0
    zeros = histograms.values(FINE.count(np.zeros(7, np.float32)), FINE)
    assert zeros.tolist() == [0] * 7
