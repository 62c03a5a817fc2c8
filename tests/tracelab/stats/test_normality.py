import doctest
import json
import math
from pathlib import Path
from statistics import NormalDist

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats._lilliefors import get_lilliefors_table

from tracelab.errors import UsageError
from tracelab.stats import _battery, normality
from tracelab.stats._epps_pulley import gauss_hermite
from tracelab.stats._gaussian import log_cdf, log_cdf_sums
from tracelab.stats._normality_null import pvalues
from tracelab.stats._probability import probability_rows
from tracelab.stats._shapiro import shapiro_weights
from tracelab.typing import Status

REFERENCE = Path(__file__).parents[3] / "data" / "reference" / "normality_R.json"
ALL = [getattr(normality, name) for name in normality.TESTS]
NEEDS = {"shapiro": 3, "lilliefors": 5}
NO_SORT = ("dagostino", "jarque_bera")
SIMULATED = ("dagostino", "epps_pulley", "jarque_bera", "lilliefors")


def seven(x, **options):
    """All tests of x by name."""
    return normality.battery(x, normality.TESTS, **options)


def reference_samples():
    """The inputs of the reference values, drawn as data/reference/README.md says."""
    rng = np.random.default_rng(20240601)
    samples = {}
    for n in (5, 8, 12, 20, 50, 200, 1000, 4999, 5000):
        samples[f"norm_{n}"] = rng.standard_normal(n)
        samples[f"t3_{n}"] = rng.standard_t(3, n)
        samples[f"unif_{n}"] = rng.uniform(size=n)
        samples[f"lap_{n}"] = rng.laplace(size=n)
    return samples


def slow_anderson(x):
    """A^2 by its definition, 40 digits; no rounding of the standardisation either."""
    with mpmath.workdps(40):
        x = sorted(mpmath.mpf(float(v)) for v in x)
        n = len(x)
        mean = sum(x) / n
        sd = mpmath.sqrt(sum((v - mean) ** 2 for v in x) / (n - 1))
        z = [(v - mean) / sd for v in x]
        total = sum(
            (2 * i + 1) * (mpmath.log(mpmath.ncdf(z[i])) + mpmath.log(mpmath.ncdf(-z[n - 1 - i])))
            for i in range(n)
        )
        return float(-n - total / n)


def slow_shapiro(x):
    """W by Royston (1992), 40 digits, from the polynomials as printed."""
    with mpmath.workdps(40):
        x = sorted(mpmath.mpf(float(v)) for v in x)
        n = len(x)
        p = [(i + 1 - mpmath.mpf(3) / 8) / (n + mpmath.mpf(1) / 4) for i in range(n)]
        m = [mpmath.sqrt(2) * mpmath.erfinv(2 * q - 1) for q in p]
        square = sum(v * v for v in m)
        c = [v / mpmath.sqrt(square) for v in m]
        u = 1 / mpmath.sqrt(n)
        last = [-2.706056, 4.434685, -2.07119, -0.147981, 0.221157, 0]
        last_but_one = [-3.582633, 5.682633, -1.752461, -0.293762, 0.042981, 0]
        last, last_but_one = ([mpmath.mpf(str(v)) for v in row] for row in (last, last_but_one))
        a = list(c)
        if n == 3:
            a = [-mpmath.sqrt(0.5), mpmath.mpf(0), mpmath.sqrt(0.5)]
        else:
            k = 1 if n <= 5 else 2
            a[-1] = c[-1] + mpmath.polyval(last, u)
            rest = square - 2 * m[-1] ** 2
            fixed = 1 - 2 * a[-1] ** 2
            if k == 2:
                a[-2] = c[-2] + mpmath.polyval(last_but_one, u)
                rest -= 2 * m[-2] ** 2
                fixed -= 2 * a[-2] ** 2
            for i in range(k, n - k):
                a[i] = m[i] / mpmath.sqrt(rest / fixed)
            for i in range(k):
                a[i] = -a[n - 1 - i]
        mean = sum(x) / n
        top = sum(ai * xi for ai, xi in zip(a, x, strict=True)) ** 2
        return float(top / sum((v - mean) ** 2 for v in x))


def exact_standardized(x):
    """Sorted rows of mean 0 and variance 1 (divisor n - 1), 40 digits."""
    x = sorted(mpmath.mpf(float(v)) for v in x)
    n = len(x)
    mean = sum(x) / n
    sd = mpmath.sqrt(sum((v - mean) ** 2 for v in x) / (n - 1))
    return [(v - mean) / sd for v in x]


def slow_cramer(x):
    """W^2 by its definition."""
    with mpmath.workdps(40):
        z = exact_standardized(x)
        n = len(z)
        terms = [(mpmath.ncdf(v) - mpmath.mpf(2 * i + 1) / (2 * n)) ** 2 for i, v in enumerate(z)]
        return float(sum(terms) + mpmath.mpf(1) / (12 * n))


def slow_lilliefors(x):
    """D by its definition."""
    with mpmath.workdps(40):
        p = [mpmath.ncdf(v) for v in exact_standardized(x)]
        n = mpmath.mpf(len(p))
        return float(max(max((i + 1) / n - v, v - i / n) for i, v in enumerate(p)))


def exact_moments(x):
    """Skewness and kurtosis with divisor n."""
    x = [mpmath.mpf(float(v)) for v in x]
    n = len(x)
    mean = sum(x) / n
    m2, m3, m4 = (sum((v - mean) ** k for v in x) / n for k in (2, 3, 4))
    return m3 / m2 ** mpmath.mpf(1.5), m4 / m2**2


def slow_jarque_bera(x):
    with mpmath.workdps(40):
        skewness, kurtosis = exact_moments(x)
        return float(len(x) * (skewness**2 / 6 + (kurtosis - 3) ** 2 / 24))


def slow_epps_pulley(x):
    """T with the 24 nodes of SciPy, every cosine and sine computed."""
    t, weight = scipy.special.roots_hermitenorm(24)
    z = (x - x.mean()) / x.std()
    gap = np.exp(1j * t[:, None] * z).mean(axis=1) - np.exp(-(t**2) / 2)
    return x.size * (weight * np.abs(gap) ** 2).sum() / weight.sum()


@pytest.mark.parametrize("key", sorted(json.loads(REFERENCE.read_text())))
def test_all_agree_with_r(key):
    expected = json.loads(REFERENCE.read_text())[key]
    x = reference_samples()[key]
    names = {
        "shapiro": "shapiro",
        "anderson": "ad",
        "cramer_von_mises": "cvm",
        "lilliefors": "lillie",
        "jarque_bera": "jb",
        "dagostino": "dago",
    }
    results = seven(x, pvalue="published")
    for name, r_name in names.items():
        if r_name not in expected:
            # R's dagoTest wants 20 samples.
            assert (name, x.size) == ("dagostino", 8)
            continue
        statistic, p = (np.ravel(expected[r_name][part])[0] for part in ("stat", "p"))
        # R read the samples as text of 15 digits; that limits how far agreement can go.
        tolerance = {"shapiro": 1e-14, "anderson": 5e-11}.get(name, 1e-12)
        assert results[name].statistic == pytest.approx(statistic, rel=tolerance, abs=0)
        # R subtracts chi-square probabilities from 1.
        absolute = 1e-15 if name in NO_SORT else 0
        relative = {"shapiro": 1e-10, "anderson": 5e-11}.get(name, 5e-12)
        assert results[name].pvalue == pytest.approx(p, rel=relative, abs=absolute)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 11, 12, 51])
def test_statistics_agree_with_their_definitions_in_forty_digits(n):
    x = np.random.default_rng(n).standard_t(3, n)
    assert normality.shapiro(x).statistic == pytest.approx(slow_shapiro(x), rel=0, abs=5e-16)
    if n >= 5:
        exact = slow_lilliefors(x)
        assert normality.lilliefors(x).statistic == pytest.approx(exact, rel=1e-13, abs=0)
    if n >= 8:
        for name, slow in (
            ("anderson", slow_anderson),
            ("cramer_von_mises", slow_cramer),
            ("jarque_bera", slow_jarque_bera),
            ("epps_pulley", slow_epps_pulley),
        ):
            got = getattr(normality, name)(x).statistic
            assert got == pytest.approx(slow(x), rel=1e-12, abs=0), name


@pytest.mark.parametrize("n", [8, 19, 20, 300])
def test_dagostino_agrees_with_scipy(n):
    for x in np.random.default_rng(n).standard_gamma(3.0, (5, n)):
        expected = scipy.stats.skewtest(x).statistic ** 2
        expected += scipy.stats.kurtosistest(x).statistic ** 2
        assert normality.dagostino(x).statistic == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [1000, 20_000])
def test_epps_pulley_by_cells_is_the_sum_over_samples_in_every_zone(n):
    rng = np.random.default_rng(n)
    for x in (rng.standard_normal(n), rng.standard_t(2, n), rng.standard_exponential(n)):
        # The error of a mean of n cosines, n^(-1/2) eps, times its derivative 2 sqrt(n T).
        got = normality.epps_pulley(x).statistic
        assert got == pytest.approx(slow_epps_pulley(x), rel=1e-11, abs=1e-12)


def test_epps_pulley_is_near_its_integral():
    x = np.random.default_rng(20).standard_normal((20, 100))
    for row, got in zip(x, normality.epps_pulley(x).statistic, strict=True):
        z = (row - row.mean()) / row.std()
        # The integral of the squared modulus, term by term (Baringhaus & Henze 1988).
        exact = np.exp(-0.5 * (z[:, None] - z) ** 2).sum() / z.size
        exact += z.size / math.sqrt(3) - math.sqrt(2) * np.exp(-0.25 * z**2).sum()
        assert got == pytest.approx(exact, rel=0.01)


def test_gauss_hermite_integrates_polynomials():
    t, weight = gauss_hermite()
    for power, moment in (
        (0, 1),
        (2, 1),
        (4, 3),
        (6, 15),
        (8, 105),
        (46, math.prod(range(1, 46, 2))),
    ):
        assert (weight * t**power).sum() == pytest.approx(moment, rel=1e-11)


def test_normal_probabilities_agree_with_mpmath_in_every_zone():
    z = np.sort(np.concatenate([np.linspace(-40, 40, 161), np.linspace(-5, 5, 201), [-2.0, 4.0]]))
    p = np.empty((1, z.size))
    probability_rows(z[None], np.zeros(1, dtype=np.uint8), p)
    for value, got in zip(z, p[0], strict=True):
        assert abs(got - float(mpmath.ncdf(value))) < 1e-15, value


def test_shapiro_agrees_with_scipy():
    rng = np.random.default_rng(1)
    for n in (3, 4, 6, 11, 12, 30, 300, 5000):
        for x in rng.standard_gamma(3.0, (5, n)):
            expected = scipy.stats.shapiro(x)
            got = normality.shapiro(x, pvalue="published")
            # SciPy works with weights of single-precision accuracy.
            assert got.statistic == pytest.approx(expected.statistic, rel=0, abs=2e-8)
            assert got.pvalue == pytest.approx(expected.pvalue, rel=2e-5, abs=1e-12)


def test_the_pvalue_of_three_samples_is_exact():
    # W depends on the fraction f of the range below the middle value; under normality the angle
    # arctan(sqrt(3) (2 f - 1)) of the plane of contrasts is uniform, and p is linear in it.
    for f in (0.0, 0.01, 0.3, 0.5):
        angle = abs(math.atan2(2 * f - 1, math.sqrt(3)))
        result = normality.shapiro(np.array([0.0, f, 1.0]))
        assert result.statistic == pytest.approx(math.cos(angle) ** 2, abs=1e-15)
        assert result.pvalue == pytest.approx(1 - 6 / math.pi * angle, abs=1e-7)


def exact_log_cdf(z):
    """log Phi(z) to 40 digits."""
    with mpmath.workdps(40):
        upper_tail = mpmath.erfc(abs(mpmath.mpf(float(z))) / mpmath.sqrt(2)) / 2
        return mpmath.log1p(-upper_tail) if z > 0 else mpmath.log(upper_tail)


def test_log_cdf_agrees_with_mpmath_from_tail_to_tail():
    for z in (-3e4, -100.0, -37.5, -37.0, -36.9, -8.0, -1.0, -0.3, 0.0):
        assert abs(log_cdf(z) / exact_log_cdf(z) - 1) < 1e-15, z
    for z in (1e-9, 0.7, 5.0, 20.0, 37.0):
        # erfc multiplies the rounding of its argument by z^2.
        assert abs(log_cdf(z) / exact_log_cdf(z) - 1) < (1 + z * z) * 3e-16, z


def test_weighted_sums_of_log_cdf_agree_with_mpmath_in_every_zone():
    z = np.concatenate([np.linspace(-40, 40, 81), np.linspace(-4, 4, 161), [1.25, 3.25, -3.25]])
    status = np.zeros(1, dtype=np.uint8)
    out = np.empty(1)
    for value in z:
        lower, upper = exact_log_cdf(value), exact_log_cdf(-value)
        for weight in (-1.0, 0.0, 0.8):
            log_cdf_sums(np.array([[value]]), status, np.array([weight]), out)
            exact = float(1 + lower + upper + weight * (lower - upper))
            assert out[0] == pytest.approx(exact, rel=2e-15, abs=2e-14)


def test_sums_of_many_terms_keep_their_digits():
    # 4 n eps is what a sum of n terms of order one may lose if it is done with care.
    n = 200_000
    z = np.sort(np.random.default_rng(2).standard_normal(n))
    weights = np.arange(1 - n, n, 2) / n
    out = np.empty(1)
    log_cdf_sums(z[None], np.zeros(1, dtype=np.uint8), weights, out)
    lower = np.array([log_cdf(v) for v in z])
    upper = np.array([log_cdf(v) for v in -z])
    exact = math.fsum(1.0 + (lower + upper) + weights * (lower - upper))
    assert abs(out[0] - exact) < 4 * n * np.finfo(float).eps


@pytest.mark.parametrize("n", [12, 50, 500])
def test_the_five_percent_test_rejects_five_percent_of_gaussian_samples(n):
    repeats = 10_000
    x = np.random.default_rng(3).standard_normal((repeats, n))
    # Four standard deviations of a binomial share, and what the published p-value formulas are
    # off by (their size is .046 to .053).
    tolerance = 4 * math.sqrt(0.05 * 0.95 / repeats) + 0.004
    for result in seven(x).values():
        assert abs((result.pvalue < 0.05).mean() - 0.05) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 20, 23, 127, 1200])
def test_simulated_pvalues_are_uniform_between_the_sizes_of_the_table(n):
    repeats = min(400_000, 60_000_000 // n)
    x = np.random.default_rng((17, n)).standard_normal((repeats, n))
    for name, result in normality.battery(x, SIMULATED).items():
        for level in (0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001):
            # The table itself was made of at least 300,000 series, whose binomial error adds up;
            # 180 comparisons in all. Rounding and interpolating it costs below .5 % of p.
            deviation = math.sqrt(level * (1 - level) * (1 / repeats + 1 / 300_000))
            share = (result.pvalue <= level).mean()
            assert abs(share - level) < 4.5 * deviation + 0.005 * level, (name, level)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4_000, 30_000, 100_000])
def test_the_size_holds_far_beyond_the_published_formulas(n):
    repeats = 200_000_000 // n
    rng = np.random.default_rng((18, n))
    rejected = dict.fromkeys(normality.TESTS, 0)
    height = max(1, 500_000 // n)
    for start in range(0, repeats, height):
        found = seven(rng.standard_normal((min(height, repeats - start), n)))
        for name, result in found.items():
            rejected[name] += int((result.pvalue < 0.05).sum())
    for name, count in rejected.items():
        # Four binomial deviations; Shapiro-Wilk's table was made of 50,000 to 15,000 series at
        # each of these sizes. And what published p-values are off by (.048 to .053).
        deviation = math.sqrt(0.05 * 0.95 * (1 / repeats + 1 / 30_000))
        assert abs(count / repeats - 0.05) < 4 * deviation + 0.003, (name, count / repeats)


def test_moment_tests_have_a_chi_square_limit():
    statistic = np.linspace(0.05, 18.0, 60)
    for name in NO_SORT:
        got = pvalues(name, 10**12, statistic)
        # Cubic interpolation of the points.
        np.testing.assert_allclose(got, np.exp(-0.5 * statistic), rtol=2e-3)


def test_epps_pulley_has_the_limit_of_its_covariance():
    # The integral operator at 251 equal steps, not at the test's 24 nodes.
    t = np.linspace(-8, 8, 251)
    weight = scipy.stats.norm.pdf(t) * (t[1] - t[0])
    s, u = np.meshgrid(t, t)
    kernel = np.exp(-((s - u) ** 2) / 2)
    kernel -= (1 + s * u + (s * u) ** 2 / 2) * np.exp(-(s**2 + u**2) / 2)
    eigenvalues = np.linalg.eigvalsh(np.sqrt(weight)[:, None] * kernel * np.sqrt(weight))[-30:]
    # The mean of the limit: the integral of the variance, in closed form.
    assert eigenvalues.sum() == pytest.approx(1 - 3**-0.5 * (1 + 1 / 3 + 1 / 6), rel=1e-6)
    drawn = np.random.default_rng(22).chisquare(1, (400_000, 30)) @ eigenvalues
    for level in (0.5, 0.1, 0.05, 0.01):
        got = pvalues("epps_pulley", 10**12, np.quantile(drawn, [1 - level]))[0]
        # Four binomial deviations, of these draws and of ten times as many in the table.
        assert abs(got - level) < 4 * math.sqrt(1.1 * level * (1 - level) / 400_000)


@pytest.mark.parametrize("n", [5, 10, 20, 40, 100])
def test_lilliefors_has_the_points_of_statsmodels_simulation(n):
    # Levels and sizes of its table; between them it interpolates coarsely.
    for level in (0.1, 0.05, 0.01, 0.005, 0.001):
        point = get_lilliefors_table(dist="norm").crit(level, n)
        got = pvalues("lilliefors", n, np.array([point]))[0]
        # Four binomial deviations of 2e6 series, and as many for its own, unstated.
        assert got == pytest.approx(level, rel=4 * math.sqrt((1 - level) / level / 1e6))


def test_simulated_pvalues_fall_with_the_statistic_to_their_bound():
    statistic = np.geomspace(1e-9, 1e3, 8000)
    for name in (*SIMULATED, "shapiro"):
        sizes = (7000, 30_000, 999_999) if name == "shapiro" else (10, 20, 21, 480, 7000, 10**6)
        for n in sizes:
            p = pvalues(name, n, statistic)
            assert (np.diff(p) <= 0).all()
            assert p[0] == 1.0
            assert p[-1] == pytest.approx(1e-4, rel=1e-9)
            if n < 20:
                continue
            # One sample more moves the points by at most 5 %, the share of it among the samples,
            # and a logit by the slope of the steepest, 10, times that.
            more = pvalues(name, n + 1, statistic)
            middle = (p > 1e-3) & (p < 0.99)
            logit, next_logit = (np.log(q[middle] / (1 - q[middle])) for q in (p, more))
            assert np.abs(next_logit - logit).max() < 0.5, (name, n)


def test_shapiro_above_five_thousand_samples_has_the_simulated_null():
    # Mean and standard deviation of log(1 - W) of an independent simulation.
    for n, mean, sd in ((20_000, -9.220, 0.352), (100_000, -10.762, 0.326)):
        y = mean + sd * np.array([-1.0, 0.0, 1.0, 1.645])
        p = pvalues("shapiro", n, np.exp(y))
        # Nearly normal: the skewness moves these by a few hundredths.
        np.testing.assert_allclose(p, [0.841, 0.5, 0.159, 0.05], rtol=0, atol=0.04)


def test_shapiro_weights_are_those_of_the_standard_library_quantiles():
    for n in (6, 50, 4999, 5000):
        half = n // 2
        m = [-NormalDist().inv_cdf((i + 0.625) / (n + 0.25)) for i in range(half)]
        a = shapiro_weights(n)
        # All but the two outer weights are proportional to Blom's scores.
        inner = a[::-1][2:half] / np.array(m[2:])
        np.testing.assert_allclose(inner, inner[0], rtol=1e-12)
        assert math.fsum(a * a) == pytest.approx(1.0, abs=1e-14)


def test_tests_by_moments_need_no_sort(monkeypatch):
    x = np.random.default_rng(19).standard_normal((5, 100))
    expected = seven(x)

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(_battery, "standardize", refuse)
    for name, result in normality.battery(x, NO_SORT).items():
        np.testing.assert_array_equal(result.pvalue, expected[name].pvalue)
    with pytest.raises(AssertionError):
        normality.epps_pulley(x)


def test_a_two_point_sample_has_finite_moments_statistics():
    x = np.tile([-1.0, 1.0], 500)
    results = normality.battery(x, NO_SORT, pvalue="published")
    assert results["jarque_bera"].statistic == pytest.approx(1000 / 24 * 4)
    assert results["dagostino"].statistic > 100
    assert results["dagostino"].pvalue < 1e-20


def test_pvalues_of_three_gaussian_samples_are_uniform():
    repeats = 20_000
    x = np.random.default_rng(4).standard_normal((repeats, 3))
    p = np.sort(normality.shapiro(x).pvalue)
    distance = np.abs(p - (np.arange(repeats) + 0.5) / repeats).max() + 0.5 / repeats
    # Kolmogorov: P(distance > 2.5 / sqrt(repeats)) = 2 exp(-2 * 2.5^2) = 7e-6.
    assert distance < 2.5 / math.sqrt(repeats)


@pytest.mark.parametrize("law", ["uniform", "laplace", "standard_exponential"])
def test_other_laws_are_rejected(law):
    x = getattr(np.random.default_rng(5), law)(size=(200, 500))
    for name, result in seven(x).items():
        assert (result.pvalue < 0.05).mean() > (0.9 if name == "lilliefors" else 0.97), name


@pytest.mark.parametrize("n", [30, 3000])
def test_an_outlier_of_any_size_has_a_finite_statistic(n):
    x = np.random.default_rng(6).standard_normal(n)
    x[n // 3] = 1e30
    results = normality.battery(x)
    # The other samples collapse to one point at -1/sqrt(n); the outlier lies at (n - 1)/sqrt(n).
    z = np.full(n, -1 / math.sqrt(n))
    z[-1] = (n - 1) / math.sqrt(n)
    i = np.arange(1, n + 1)
    log_cdf_z, log_cdf_minus_z = scipy.stats.norm.logcdf(z), scipy.stats.norm.logcdf(-z)
    expected = -n - ((2 * i - 1) * (log_cdf_z + log_cdf_minus_z[::-1])).sum() / n
    assert results["anderson"].statistic == pytest.approx(expected, rel=1e-9)
    assert results["anderson"].pvalue < 1e-9
    assert 0 < results["shapiro"].statistic < 0.2
    assert 0 <= results["shapiro"].pvalue < 1e-9


def test_the_pvalue_of_anderson_falls_to_its_floor_and_stays():
    x = np.random.default_rng(7).standard_normal((40, 2000))
    x[:, :1000] += np.linspace(0, 60, 40)[:, None]
    result = normality.anderson(x)
    order = np.argsort(result.statistic)
    assert (np.diff(result.pvalue[order]) <= 1e-3).all()
    assert result.statistic.max() > 153
    assert result.pvalue.min() == 3.7e-24


def test_bad_rows_have_a_status_and_leave_the_others_alone():
    x = np.random.default_rng(8).standard_normal((8, 40))
    clean = seven(x)
    x[1, 3] = np.nan
    x[2, 39] = np.inf
    x[3, 0] = -np.inf
    x[4] = -7.25
    x[5, :20] = np.nan
    x[6] = np.inf
    expected = [
        Status.OK,
        Status.NON_FINITE_INPUT,
        Status.NON_FINITE_INPUT,
        Status.NON_FINITE_INPUT,
        Status.CONSTANT_INPUT,
        Status.NON_FINITE_INPUT,
        Status.NON_FINITE_INPUT,
        Status.OK,
    ]
    for dtype in (np.float64, np.float32):
        for name, result in seven(x.astype(dtype)).items():
            np.testing.assert_array_equal(result.status, expected)
            assert result.status.dtype == np.uint8
            bad = result.status != Status.OK
            assert np.isnan(result.statistic[bad]).all()
            assert np.isnan(result.pvalue[bad]).all()
            if dtype == np.float64:
                np.testing.assert_array_equal(result.statistic[~bad], clean[name].statistic[~bad])


@pytest.mark.parametrize("function", ALL)
def test_too_few_samples_are_a_status(function):
    minimum = NEEDS.get(function.__name__, 8)
    x = np.random.default_rng(9).standard_normal((2, minimum))
    assert (function(x).status == Status.OK).all()
    for n in range(minimum):
        result = function(x[:, :n])
        assert (result.status == Status.TOO_FEW_SAMPLES).all()
        assert np.isnan(result.statistic).all()
        assert np.isnan(result.pvalue).all()
        assert (result.n_samples == n).all()


def test_a_battery_gives_each_test_its_own_status():
    results = normality.battery(np.array([[1.0, 2.0, 4.0, 5.0], [1.0, 1.0, 1.0, 1.0]]))
    assert results["anderson"].status.tolist() == [Status.TOO_FEW_SAMPLES] * 2
    assert results["shapiro"].status.tolist() == [Status.OK, Status.CONSTANT_INPUT]


def test_shapiro_refuses_what_it_was_not_calibrated_for():
    x = np.random.default_rng(10).standard_normal(1_000_001)
    assert normality.shapiro(x[:-1]).status == Status.OK
    for call in (normality.shapiro, normality.battery):
        with pytest.raises(
            UsageError,
            match="shapiro test is valid up to 1000000 samples, got 1000001; use anderson, or test "
            "a random subsample of at most 1000000",
        ):
            call(x)
    assert normality.anderson(x).status == Status.OK
    with pytest.raises(
        UsageError,
        match="p-values of the shapiro test were published up to 5000 samples, got 5001; use "
        "pvalue='simulated'",
    ):
        normality.shapiro(x[:5001], pvalue="published")


def test_shapiro_has_royston_s_pvalue_where_that_has_its_size():
    x = np.random.default_rng(21).standard_normal((4, 5000))
    for n, same in ((3000, True), (3001, False), (5000, False)):
        published = normality.shapiro(x[:, :n], pvalue="published").pvalue
        simulated = normality.shapiro(x[:, :n]).pvalue
        assert (published == simulated).all() == same
        # Their 5 % tests reject .043 and .05 at 5,000: a fifth of a small p-value.
        np.testing.assert_allclose(published, simulated, rtol=0.3)


def test_arguments_that_cannot_be_used_are_named():
    x = np.zeros((4, 10))
    with pytest.raises(UsageError, match=r"no test of normality 'ad'; choose from anderson, shap"):
        normality.battery(x, names=["ad"])
    with pytest.raises(UsageError, match=r"one of simulated, published, got 'exact'; leave it ou"):
        normality.lilliefors(x, pvalue="exact")
    with pytest.raises(UsageError, match=r"real numbers, got dtype complex128; convert them to fl"):
        normality.anderson(x.astype(complex))
    with pytest.raises(UsageError, match=r"axis 2 is not an axis of samples with shape \(4, 10\)"):
        normality.shapiro(x, axis=2)
    with pytest.raises(UsageError, match=r"axis -1 is not an axis of samples with shape \(\); cho"):
        normality.shapiro(3.0)


@pytest.mark.parametrize("function", ALL)
def test_shapes_and_dtypes_of_results(function):
    x = np.random.default_rng(11).standard_normal((3, 20, 2))
    result = function(x, axis=1)
    for values, dtype in (
        (result.statistic, np.float64),
        (result.pvalue, np.float64),
        (result.status, np.uint8),
        (result.n_samples, np.int64),
    ):
        assert values.shape == (3, 2)
        assert values.dtype == dtype
    assert (result.n_samples == 20).all()
    one = function(x[1, :, 1])
    assert one.pvalue.shape == ()
    assert one.pvalue == result.pvalue[1, 1]
    assert function(np.empty((0, 20))).pvalue.shape == (0,)
    assert function(np.empty((4, 0))).status.tolist() == [Status.TOO_FEW_SAMPLES] * 4


@pytest.mark.parametrize("function", ALL)
def test_other_dtypes_are_computed_in_float64(function):
    x = np.random.default_rng(12).standard_normal((5, 100))
    for values in (
        x.astype(np.float32),
        x.astype(np.float16),
        x.astype(">f8"),
        (100 * x).astype(np.int16),
        [[float(v) for v in row] for row in x],
    ):
        exact = np.asarray(values).astype(np.float64)
        np.testing.assert_array_equal(function(values).pvalue, function(exact).pvalue)


def test_input_is_not_changed_and_layout_does_not_matter():
    x = np.random.default_rng(13).standard_normal((6, 50))
    x.flags.writeable = False
    kept = x.copy()
    expected = seven(x)
    for view in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        for name, result in seven(view).items():
            np.testing.assert_array_equal(result.statistic, expected[name].statistic)
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("scale", [5e-324, 1e-320, 1e-300, 1e-100, 1e100, 1e300, 1.79e308])
def test_scales_from_the_smallest_to_the_largest_number(scale):
    # Multiples of 1/8 in [-1, 1]; the smallest scales hold the multiples exactly as integers.
    k = np.random.default_rng(14).integers(-8, 9, 64).astype(np.float64)
    k[:2] = -8, 8
    x = k * scale if scale < 1e-300 else k / 8 * scale
    for function in ALL:
        expected, got = function(k), function(x)
        assert got.status == Status.OK
        assert got.statistic == pytest.approx(expected.statistic, rel=1e-12)
        assert got.pvalue == pytest.approx(expected.pvalue, rel=1e-10)


@pytest.mark.parametrize("centre", [1.0, -1e300, 3e-308])
def test_a_row_constant_up_to_one_last_digit_is_a_two_point_sample(centre):
    x = np.full(20, centre)
    x[7] = np.nextafter(centre, np.inf)
    two_points = np.zeros(20)
    two_points[0] = 1.0
    for function in ALL:
        assert function(x).status == Status.OK
        assert function(x).statistic == pytest.approx(function(two_points).statistic, rel=1e-13)


seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(8, 300)


@given(seeds, sizes, st.integers(-900, 900))
def test_powers_of_two_change_no_bit(seed, n, exponent):
    x = np.random.default_rng(seed).standard_t(2, n)
    scaled = seven(np.ldexp(x, exponent))
    for name, result in seven(x).items():
        assert result.statistic == scaled[name].statistic
        assert result.pvalue == scaled[name].pvalue


@given(seeds, sizes, st.floats(1e-6, 1e6), st.floats(-1e6, 1e6), st.booleans())
def test_location_scale_and_sign_do_not_matter(seed, n, scale, shift, flip):
    x = np.random.default_rng(seed).standard_normal(n)
    moved = (-x if flip else x) * scale + shift * scale
    # Adding the shift rounds each sample by up to eps * |shift| standard deviations.
    tolerance = 1e-12 + 100 * np.finfo(float).eps * abs(shift)
    moved_results = seven(moved)
    for name, result in seven(x).items():
        other = moved_results[name]
        # The moment tests' statistics are large where a sample is far out.
        size = max(1.0, float(result.statistic)) if name in NO_SORT else 1.0
        assert other.statistic == pytest.approx(result.statistic, rel=0, abs=n * size * tolerance)


@given(seeds, sizes)
def test_order_changes_no_bit(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.standard_cauchy(n)
    permuted = seven(rng.permutation(x))
    for name, result in seven(x).items():
        if name in NO_SORT:
            # Sums in another order, of an outlier's powers among others.
            assert permuted[name].statistic == pytest.approx(result.statistic, rel=1e-9, abs=1e-9)
        else:
            assert result.statistic == permuted[name].statistic
            assert result.pvalue == permuted[name].pvalue


@settings(max_examples=30)
@given(seeds, st.integers(1, 60), sizes, st.data())
def test_a_row_does_not_depend_on_its_batch(seed, n_rows, n, data):
    x = np.random.default_rng(seed).standard_t(3, (n_rows, n))
    if n_rows > 1:
        x[0, 0] = np.nan
        x[1] = 1.0
    cuts = sorted(data.draw(st.lists(st.integers(0, n_rows), max_size=4)))
    whole = seven(x)
    for function in ALL:
        name = function.__name__
        parts = [function(part) for part in np.split(x, cuts)]
        for field in ("statistic", "pvalue", "status", "n_samples"):
            joined = np.concatenate([getattr(part, field) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole[name], field))


def test_blocks_of_rows_change_no_bit():
    # 700 rows of 200 samples are five blocks; one row is one block.
    x = np.random.default_rng(15).standard_normal((700, 200))
    x[163, 0] = np.nan
    x[500] = 1.0
    whole = seven(x)
    for i in (0, 162, 163, 164, 337, 500, 664, 699):
        for name, result in seven(x[i]).items():
            for field in ("statistic", "pvalue", "status"):
                one, many = getattr(result, field), getattr(whole[name], field)
                np.testing.assert_array_equal(one, many[i])


def test_examples_of_the_docstrings_run():
    assert doctest.testmod(normality).failed == 0
    assert doctest.testmod(_battery).failed == 0
