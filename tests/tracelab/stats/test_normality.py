import doctest
import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.stats import normality
from tracelab.stats._gaussian import log_cdf, log_cdf_sums
from tracelab.typing import Status

REFERENCE = Path(__file__).parents[3] / "data" / "reference" / "normality_R.json"
BOTH = [normality.anderson, normality.shapiro]


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


@pytest.mark.parametrize("key", sorted(json.loads(REFERENCE.read_text())))
def test_both_agree_with_r(key):
    expected = json.loads(REFERENCE.read_text())[key]
    results = normality.battery(reference_samples()[key])
    shapiro, anderson = results["shapiro"], results["anderson"]
    # R read the samples as text of 15 digits; that limits how far agreement can go.
    assert shapiro.statistic == pytest.approx(expected["shapiro"]["stat"], rel=0, abs=1e-14)
    assert shapiro.pvalue == pytest.approx(expected["shapiro"]["p"], rel=1e-10, abs=0)
    assert anderson.statistic == pytest.approx(expected["ad"]["stat"], rel=5e-11, abs=0)
    assert anderson.pvalue == pytest.approx(expected["ad"]["p"], rel=5e-11, abs=0)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 11, 12, 51])
def test_statistics_agree_with_their_definitions_in_forty_digits(n):
    x = np.random.default_rng(n).standard_t(3, n)
    assert normality.shapiro(x).statistic == pytest.approx(slow_shapiro(x), rel=0, abs=5e-16)
    if n >= 8:
        assert normality.anderson(x).statistic == pytest.approx(slow_anderson(x), rel=1e-13, abs=0)


def test_shapiro_agrees_with_scipy():
    rng = np.random.default_rng(1)
    for n in (3, 4, 6, 11, 12, 30, 300, 5000):
        for x in rng.standard_gamma(3.0, (5, n)):
            expected = scipy.stats.shapiro(x)
            got = normality.shapiro(x)
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
    for result in normality.battery(x).values():
        assert abs((result.pvalue < 0.05).mean() - 0.05) < tolerance


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
    for result in normality.battery(x).values():
        assert (result.pvalue < 0.05).mean() > 0.97


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
    clean = normality.battery(x)
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
        for name, result in normality.battery(x.astype(dtype)).items():
            np.testing.assert_array_equal(result.status, expected)
            assert result.status.dtype == np.uint8
            bad = result.status != Status.OK
            assert np.isnan(result.statistic[bad]).all()
            assert np.isnan(result.pvalue[bad]).all()
            if dtype == np.float64:
                np.testing.assert_array_equal(result.statistic[~bad], clean[name].statistic[~bad])


@pytest.mark.parametrize(("function", "minimum"), [(normality.anderson, 8), (normality.shapiro, 3)])
def test_too_few_samples_are_a_status(function, minimum):
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
    x = np.random.default_rng(10).standard_normal(5001)
    assert normality.shapiro(x[:5000]).status == Status.OK
    for call in (normality.shapiro, normality.battery):
        with pytest.raises(
            UsageError,
            match="shapiro test is valid up to 5000 samples, got 5001; use anderson, or test a "
            "random subsample of at most 5000",
        ):
            call(x)
    assert normality.anderson(x).status == Status.OK


def test_arguments_that_cannot_be_used_are_named():
    x = np.zeros((4, 10))
    with pytest.raises(UsageError, match=r"no test of normality 'ad'; choose from anderson, shap"):
        normality.battery(x, names=["ad"])
    with pytest.raises(UsageError, match=r"real numbers, got dtype complex128; convert them to fl"):
        normality.anderson(x.astype(complex))
    with pytest.raises(UsageError, match=r"axis 2 is not an axis of samples with shape \(4, 10\)"):
        normality.shapiro(x, axis=2)
    with pytest.raises(UsageError, match=r"axis -1 is not an axis of samples with shape \(\); cho"):
        normality.shapiro(3.0)


@pytest.mark.parametrize("function", BOTH)
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


@pytest.mark.parametrize("function", BOTH)
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
    expected = normality.battery(x)
    for view in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        for name, result in normality.battery(view).items():
            np.testing.assert_array_equal(result.statistic, expected[name].statistic)
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("scale", [5e-324, 1e-320, 1e-300, 1e-100, 1e100, 1e300, 1.79e308])
def test_scales_from_the_smallest_to_the_largest_number(scale):
    # Multiples of 1/8 in [-1, 1]; the smallest scales hold the multiples exactly as integers.
    k = np.random.default_rng(14).integers(-8, 9, 64).astype(np.float64)
    k[:2] = -8, 8
    x = k * scale if scale < 1e-300 else k / 8 * scale
    for function in BOTH:
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
    for function in BOTH:
        assert function(x).status == Status.OK
        assert function(x).statistic == pytest.approx(function(two_points).statistic, rel=1e-13)


seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(8, 300)


@given(seeds, sizes, st.integers(-900, 900))
def test_powers_of_two_change_no_bit(seed, n, exponent):
    x = np.random.default_rng(seed).standard_t(2, n)
    scaled = normality.battery(np.ldexp(x, exponent))
    for name, result in normality.battery(x).items():
        assert result.statistic == scaled[name].statistic
        assert result.pvalue == scaled[name].pvalue


@given(seeds, sizes, st.floats(1e-6, 1e6), st.floats(-1e6, 1e6), st.booleans())
def test_location_scale_and_sign_do_not_matter(seed, n, scale, shift, flip):
    x = np.random.default_rng(seed).standard_normal(n)
    moved = (-x if flip else x) * scale + shift * scale
    # Adding the shift rounds each sample by up to eps * |shift| standard deviations.
    tolerance = 1e-12 + 100 * np.finfo(float).eps * abs(shift)
    for name, result in normality.battery(x).items():
        other = normality.battery(moved)[name]
        assert other.statistic == pytest.approx(result.statistic, rel=0, abs=n * tolerance)


@given(seeds, sizes)
def test_order_changes_no_bit(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.standard_cauchy(n)
    permuted = normality.battery(rng.permutation(x))
    for name, result in normality.battery(x).items():
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
    whole = normality.battery(x)
    for name, function in (("anderson", normality.anderson), ("shapiro", normality.shapiro)):
        parts = [function(part) for part in np.split(x, cuts)]
        for field in ("statistic", "pvalue", "status", "n_samples"):
            joined = np.concatenate([getattr(part, field) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole[name], field))


def test_blocks_of_rows_change_no_bit():
    # 700 rows of 200 samples are five blocks; one row is one block.
    x = np.random.default_rng(15).standard_normal((700, 200))
    x[163, 0] = np.nan
    x[500] = 1.0
    whole = normality.battery(x)
    for i in (0, 162, 163, 164, 337, 500, 664, 699):
        for name, result in normality.battery(x[i]).items():
            for field in ("statistic", "pvalue", "status"):
                one, many = getattr(result, field), getattr(whole[name], field)
                np.testing.assert_array_equal(one, many[i])


def test_examples_of_the_docstrings_run():
    assert doctest.testmod(normality).failed == 0
