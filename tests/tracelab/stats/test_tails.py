"""Tail estimates against the formulas written out, SciPy's fit, exact laws and known variances."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from tracelab.errors import UsageError
from tracelab.stats import tails
from tracelab.typing import Status

ESTIMATORS = {each.__name__: each for each in (tails.hill, tails.moment, tails.pickands, tails.pot)}


def plain(name: str, x: np.ndarray, k: int) -> float:
    """The definitions, one sample at a time."""
    largest = np.sort(x)[::-1]
    if name == "pickands":
        m = k // 4
        a, b, c = largest[m - 1], largest[2 * m - 1], largest[4 * m - 1]
        return math.log((a - b) / (b - c)) / math.log(2)
    excess = np.log(largest[:k]) - np.log(largest[k])
    if name == "hill":
        return float(excess.mean())
    first, second = excess.mean(), (excess**2).mean()
    return float(first + 1 - 0.5 / (1 - first**2 / second))


@pytest.mark.parametrize("name", ["hill", "moment", "pickands"])
@pytest.mark.parametrize("side", ["both", "upper", "lower"])
def test_the_definitions(name: str, side) -> None:
    x = np.random.default_rng(0).standard_t(2, (3, 2, 300))
    found = ESTIMATORS[name](x, 40, side=side)
    seen = {"both": np.abs(x), "upper": x, "lower": -x}[side]
    for place in np.ndindex(3, 2):
        np.testing.assert_allclose(found.xi[place], plain(name, seen[place], 40), rtol=1e-12)
        level = np.sort(seen[place])[::-1][40] * (-1 if side == "lower" else 1)
        assert found.threshold[place] == level
    assert (found.status == Status.OK).all()
    assert found.n_samples == 300
    assert (found.k == 40).all()


@pytest.mark.parametrize("law", ["heavy", "exponential", "bounded", "short"])
def test_peaks_over_a_threshold_are_scipys(law: str) -> None:
    rng = np.random.default_rng(1)
    x = {
        "heavy": rng.standard_t(2, 3000),
        "exponential": rng.exponential(size=3000),
        # xi = -1/4 and -1/2: tails of (1 - x)^(-1/xi).
        "bounded": 1 - rng.uniform(size=3000) ** 0.25,
        "short": 1 - rng.uniform(size=3000) ** 0.4,
    }[law]
    found = tails.pot(x, 400)
    largest = np.sort(np.abs(x))[::-1]
    excess = largest[:400] - largest[400]
    shape, _, scale = stats.genpareto.fit(excess, floc=0)

    def loglik(xi: float, sigma: float) -> float:
        return float(stats.genpareto.logpdf(excess, xi, scale=sigma).sum())

    # SciPy's simplex stops at 1e-4 of its parameters; ours may be higher, never lower.
    assert loglik(found.xi, found.scale) >= loglik(shape, scale) - 1e-9
    np.testing.assert_allclose(found.xi, shape, atol=1e-3)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-3)
    # At a maximum inside, moving either number by a thousandth lowers the likelihood.
    for step in (-1e-3, 1e-3):
        assert loglik(found.xi + step, found.scale) < loglik(found.xi, found.scale)
        assert loglik(found.xi, found.scale * (1 + step)) < loglik(found.xi, found.scale)


def test_the_exponential_tail_itself() -> None:
    """Excesses whose mean square is twice their squared mean: theta = 0 is the maximum."""
    y = np.array([0.1, 0.2, 0.4, 0.5, 0.8, 1.0, 1.3, 1.7, 2.2])
    low, high = 2.0, 10.0
    for _ in range(200):
        last = 0.5 * (low + high)
        excess = np.append(y, last)
        ratio = (excess**2).mean() / excess.mean() ** 2
        low, high = (last, high) if ratio < 2 else (low, last)
    x = np.append(excess, 0.0) + 5.0
    found = tails.pot(x, len(excess))
    assert abs(found.xi) < 1e-9
    np.testing.assert_allclose(found.scale, excess.mean(), rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "law", "xi"),
    [
        ("hill", "pareto", 0.5),
        ("moment", "pareto", 0.5),
        ("moment", "uniform", -1.0),
        ("pickands", "pareto", 0.5),
        ("pickands", "exponential", 0.0),
        ("pickands", "uniform", -1.0),
        ("pot", "pareto", 0.5),
        ("pot", "exponential", 0.0),
    ],
)
def test_bias_and_standard_error(name: str, law: str, xi: float) -> None:
    """Where the tail is exactly the model's, estimates scatter as their standard errors say."""
    rng, rows, k = np.random.default_rng(2), 800, 400
    x = {
        "pareto": lambda: rng.pareto(2, (rows, 4000)) + (name != "pot"),
        "exponential": lambda: rng.exponential(size=(rows, 4000)),
        "uniform": lambda: rng.uniform(size=(rows, 4000)),
    }[law]()
    found = ESTIMATORS[name](x, k, side="upper")
    assert (found.status == Status.OK).all()
    spread, error = found.xi.std(), found.xi_se.mean()
    # The standard deviation of 800 draws is known to 1 / sqrt(1600); four of these, and 10 % for
    # what is of order 1 / k in variances that hold as k grows.
    assert abs(spread / error - 1) < 0.1 + 0.1
    # The bias is of order 1 / k, a twentieth of the standard error; four errors of the mean.
    assert abs(found.xi.mean() - xi) < 0.1 * error + 4 * error / math.sqrt(rows)


def test_hills_interval_is_exact_for_a_pareto_tail() -> None:
    rows = 20_000
    x = np.random.default_rng(3).pareto(1.3, (rows, 60)) + 1
    found = tails.hill(x, 12, confidence=0.9)
    below = (found.xi_low > 1 / 1.3).mean(), (found.xi_high < 1 / 1.3).mean()
    # 5 % on either side; four binomial standard errors.
    tolerance = 4 * math.sqrt(0.05 * 0.95 / rows)
    np.testing.assert_allclose(below, 0.05, atol=tolerance)
    ratio = 12 * found.xi * 1.3
    assert stats.kstest(ratio, stats.gamma(12).cdf).pvalue > 1e-3
    assert ((found.alpha_low < found.alpha) & (found.alpha < found.alpha_high)).all()
    np.testing.assert_allclose(found.alpha * found.xi, 1, rtol=1e-14)


@pytest.mark.slow
def test_the_threshold_is_the_closest_of_all() -> None:
    """A Pareto tail glued to a uniform body: the least distance, by a plain search."""
    rng = np.random.default_rng(4)
    x = np.where(rng.uniform(size=(4, 500)) < 0.3, rng.pareto(2, (4, 500)) + 1, 0)
    x = np.where(x == 0, rng.uniform(0.01, 1, (4, 500)), x)
    chosen = tails.threshold(x, candidates=1000)
    for row, k in zip(x, chosen, strict=True):
        largest, least = np.sort(row)[::-1], {}
        for each in range(8, 500):
            law = stats.pareto(1 / plain("hill", row, each), scale=largest[each])
            least[each] = stats.kstest(largest[:each], law.cdf).statistic
        assert min(least, key=lambda each: (round(least[each], 12), each)) == k
    # About 150 of the values are of the tail.
    assert ((chosen > 60) & (chosen < 300)).all()
    assert (tails.hill(x).k == tails.threshold(x)).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thresholds_are_those_of_the_powerlaw_package() -> None:
    """It counts the value at the threshold to the tail; a value more or less, and so its index."""
    import powerlaw

    rng = np.random.default_rng(11)
    for x in (rng.pareto(1.5, 1000) + 1, np.abs(rng.standard_t(1.2, 1000))):
        theirs = powerlaw.Fit(x, verbose=False)
        k = int(tails.threshold(x, candidates=1000))
        ordered = np.sort(x)[::-1]
        own = int((x >= theirs.xmin).sum())
        assert abs(own - k) <= max(2, 0.02 * k)
        alike = tails.hill(x, own - 1)
        assert ordered[own - 1] == theirs.xmin == alike.threshold
        # Hill's estimate of k values, and theirs of k + 1 with one of logarithm 0.
        np.testing.assert_allclose(alike.xi * (own - 1) / own, 1 / (theirs.alpha - 1), rtol=1e-9)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_stability_is_the_estimate_at_every_threshold(name: str) -> None:
    x = np.random.default_rng(5).standard_t(3, (2, 3, 400))
    found = tails.stability(x, name, np.array([100, 20, 57]), side="upper")
    assert found.k.tolist() == [20, 57, 100]
    for place, k in enumerate([20, 57, 100]):
        one = ESTIMATORS[name](x, k, side="upper")
        for field in ("xi", "xi_se", "xi_low", "xi_high", "threshold"):
            np.testing.assert_array_equal(getattr(found, field)[..., place], getattr(one, field))
    usual = tails.stability(x, name)
    assert usual.k[0] == 8
    assert usual.k[-1] == 200
    assert len(usual.k) <= 100


def test_one_threshold_for_each_sample() -> None:
    x = np.random.default_rng(6).standard_t(3, (5, 300))
    ks = np.array([10, 100, 10, 57, 200])
    for name, estimator in ESTIMATORS.items():
        found = estimator(x, ks)
        for row, k in enumerate(ks):
            alone = estimator(x[row], int(k))
            assert found.xi[row] == alone.xi, name


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(ESTIMATORS)),
    st.floats(1e-100, 1e100),
    st.integers(8, 150),
)
def test_scale_order_batch_and_dtype(seed: int, name: str, scale: float, k: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, (3, 200)).astype(np.float32)
    estimator = ESTIMATORS[name]
    found = estimator(x, k)
    # Two floats of float64 rounding in differences of the values, relative to the smallest.
    moved = estimator(x.astype(np.float64) * scale, k)
    np.testing.assert_allclose(moved.xi, found.xi, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(estimator(rng.permuted(x, axis=1), k).xi, found.xi)
    np.testing.assert_array_equal(
        estimator(-x, k, side="lower").xi, estimator(x, k, side="upper").xi
    )
    np.testing.assert_array_equal(estimator(x.T, k, axis=0).xi, found.xi)
    np.testing.assert_array_equal([estimator(row, k).xi for row in x], found.xi)


def test_location_does_not_matter_to_pickands_and_peaks() -> None:
    x = np.random.default_rng(7).standard_t(3, (3, 500))
    for estimator in (tails.pickands, tails.pot):
        there, here = (estimator(each, 100, side="upper").xi for each in (x + 1024, x))
        np.testing.assert_allclose(there, here, rtol=1e-7)


def test_statuses() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_t(3, (7, 100))
    x[1, 3], x[2, 5] = np.nan, np.inf
    x[3] = 2.0
    x[4] = 0.0
    x[5, 10:] = 0.0
    x[6, :50] = 9.0
    wanted = {
        "hill": ["OK", *2 * ["NON_FINITE_INPUT"], "CONSTANT_INPUT", *2 * ["TOO_FEW_SAMPLES"]],
        "moment": ["OK", *2 * ["NON_FINITE_INPUT"], "CONSTANT_INPUT", *2 * ["TOO_FEW_SAMPLES"]],
        "pickands": ["OK", *2 * ["NON_FINITE_INPUT"], *2 * ["CONSTANT_INPUT"], "CONSTANT_INPUT"],
        # Most excesses are zero: the likelihood grows as xi does.
        "pot": ["OK", *2 * ["NON_FINITE_INPUT"], *2 * ["CONSTANT_INPUT"], "NOT_CONVERGED"],
    }
    for name, estimator in ESTIMATORS.items():
        found = estimator(x, 40)
        statuses = [Status(each).name for each in found.status]
        assert statuses[:6] == wanted[name], name
        missing = found.status != Status.OK
        numbers = (found.xi, found.xi_se, found.xi_low, found.xi_high, found.threshold)
        for each in numbers:
            assert np.isnan(each[missing]).all()
            assert np.isfinite(each[~missing]).all()
    few = tails.hill(rng.pareto(1, (2, 8)))
    assert (few.status == Status.TOO_FEW_SAMPLES).all()
    assert tails.hill(rng.pareto(1, (2, 50)), 7).status.tolist() == [2, 2]
    assert tails.hill(np.empty((0, 20))).xi.shape == (0,)
    assert tails.pot(np.empty((3, 0))).status.tolist() == [2, 2, 2]
    # A density that grows towards the end of its support: no maximum with xi > -1.
    assert tails.pot(1 - rng.uniform(size=500) ** 3, 100).status == Status.NOT_CONVERGED


def test_a_tail_that_falls_faster_than_any_power() -> None:
    found = tails.moment(np.random.default_rng(9).uniform(size=2000), 200)
    assert found.xi < 0
    assert found.alpha == np.inf
    short = tails.pot(1 - np.random.default_rng(9).uniform(size=4000) ** 0.7, 1500)
    assert short.xi < -0.5
    assert np.isnan(short.xi_se)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tails.hill(x, 50), "k must be from 1 to 49, one less than the 50 samples"),
        (lambda x: tails.hill(x, 0.1), "k must be whole numbers of values, got dtype float64"),
        (lambda x: tails.hill(x, np.array([10, 12])), r"k has the shape \(2,\), samples \(3,\)"),
        (lambda x: tails.hill(x, 10, side="left"), "side must be 'both', 'upper' or 'lower'"),
        (lambda x: tails.hill(x, 10, confidence=95), r"confidence must be in \(0, 1\), got 95"),
        (lambda x: tails.hill(x + 0j, 10), "samples must be real numbers, got dtype complex128"),
        (lambda x: tails.hill(x, 10, axis=2), "axis 2 is not an axis of samples"),
        (lambda x: tails.stability(x, "zipf"), "there is no estimator 'zipf' of tails"),
        (lambda x: tails.stability(x, "hill", np.array([3, 99])), "k must be from 1 to 49"),
        (lambda x: tails.threshold(x, candidates=0), "candidates must be at least 1, got 0"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(np.random.default_rng(0).pareto(2, (3, 50)))


def test_gamma_interval_is_the_chi_square_one() -> None:
    """The interval of Hill's estimate in its textbook form."""
    found = tails.hill(np.random.default_rng(10).pareto(2, 500) + 1, 80)
    low, high = stats.chi2(160).ppf([0.025, 0.975])
    np.testing.assert_allclose([found.xi_low, found.xi_high], 160 * found.xi / [high, low])
    assert special.gammaincinv(80, 0.5) < 80
