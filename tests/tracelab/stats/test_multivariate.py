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
from scipy import integrate

from tracelab.errors import UsageError
from tracelab.stats import multivariate
from tracelab.stats._normal_distance import gamma_ratio, mean_distance
from tracelab.typing import Status

REFERENCE = Path(__file__).parents[3] / "data" / "reference" / "normality_R.json"


def mardia_skewness(x, **options):
    return multivariate.mardia(x, **options).skewness


def mardia_kurtosis(x, **options):
    return multivariate.mardia(x, **options).kurtosis


ALL = [mardia_skewness, mardia_kurtosis, multivariate.henze_zirkler, multivariate.energy]
PUBLISHED = ALL[:3]


def gram(x, divisor):
    """All y_j . y_k by the inverse of the covariance, no whitening."""
    centred = x - x.mean(axis=0)
    covariance = centred.T @ centred / divisor
    return centred @ np.linalg.solve(covariance, centred.T)


def slow_mardia(x):
    n, d = x.shape
    g = gram(x, n)
    kurtosis = (np.diag(g) ** 2).mean()
    return n / 6 * (g**3).mean(), (kurtosis - d * (d + 2)) / math.sqrt(8 * d * (d + 2) / n)


def slow_henze_zirkler(x):
    n, d = x.shape
    g = gram(x, n)
    beta = 2**-0.5 * ((2 * d + 1) * n / 4) ** (1 / (d + 4))
    total = 0.0
    for j in range(n):
        for k in range(n):
            total += math.exp(-0.5 * beta**2 * (g[j, j] + g[k, k] - 2 * g[j, k])) / n
        total -= (
            2 * (1 + beta**2) ** (-d / 2) * math.exp(-(beta**2) * g[j, j] / (2 * (1 + beta**2)))
        )
    return total + n * (1 + 2 * beta**2) ** (-d / 2)


def slow_energy(x):
    n, d = x.shape
    g = gram(x, n - 1)
    ratio = mpmath.gamma((mpmath.mpf(d) + 1) / 2) / mpmath.gamma(mpmath.mpf(d) / 2)
    near = sum(
        mpmath.sqrt(2) * ratio * mpmath.hyp1f1(-0.5, mpmath.mpf(d) / 2, -g[j, j] / 2)
        for j in range(n)
    )
    pairs = sum(
        math.sqrt(max(g[j, j] + g[k, k] - 2 * g[j, k], 0.0)) for j in range(n) for k in range(n)
    )
    return float(2 * near - n * 2 * ratio - pairs / n)


@pytest.mark.parametrize(("n", "d"), [(10, 1), (20, 2), (40, 5), (30, 12)])
def test_statistics_agree_with_their_definitions(n, d):
    rng = np.random.default_rng((n, d))
    x = rng.standard_t(4, (2, n, d)) @ rng.standard_normal((d, d)) + 5
    found = multivariate.mardia(x, "published")
    henze_zirkler = multivariate.henze_zirkler(x, "published")
    energy = multivariate.energy(x, replicates=19)
    for i in range(2):
        skewness, kurtosis = slow_mardia(x[i])
        assert found.skewness.statistic[i] == pytest.approx(skewness, rel=1e-9)
        assert found.kurtosis.statistic[i] == pytest.approx(kurtosis, rel=1e-9, abs=1e-9)
        assert henze_zirkler.statistic[i] == pytest.approx(slow_henze_zirkler(x[i]), rel=1e-9)
        # Distances of a point to itself are the roots of rounding errors in the slow form.
        assert energy.statistic[i] == pytest.approx(slow_energy(x[i]), rel=1e-6)


def reference_samples():
    """The inputs of the reference values, drawn as data/reference/README.md says."""
    rng = np.random.default_rng(20240601)
    samples = {}
    for n in (5, 8, 12, 20, 50, 200):
        samples[f"norm_{n}"] = rng.standard_normal(n)
        samples[f"t3_{n}"] = rng.standard_t(3, n)
        samples[f"unif_{n}"] = rng.uniform(size=n)
        samples[f"lap_{n}"] = rng.laplace(size=n)
    return samples


def test_energy_in_one_dimension_agrees_with_r():
    expected = json.loads(REFERENCE.read_text())
    samples = reference_samples()
    keys = [key for key in samples if "energy" in expected.get(key, {})]
    assert len(keys) == 12
    for key in keys:
        got = multivariate.energy(samples[key][:, None], replicates=19).statistic
        assert got == pytest.approx(expected[key]["energy"]["stat"], rel=1e-10)


def test_one_dimension_has_the_moments_of_scipy():
    x = np.random.default_rng(0).standard_exponential((3, 50, 1))
    found = multivariate.mardia(x, "published")
    for i in range(3):
        skewness, kurtosis = scipy.stats.skew(x[i, :, 0]), scipy.stats.kurtosis(x[i, :, 0])
        assert found.skewness.statistic[i] == pytest.approx(50 / 6 * skewness**2, rel=1e-11)
        assert found.kurtosis.statistic[i] == pytest.approx(kurtosis / math.sqrt(24 / 50))


@pytest.mark.parametrize("d", [1, 2, 3, 10, 51, 1000])
def test_the_mean_distance_is_the_confluent_hypergeometric_function(d):
    assert gamma_ratio(d / 2) == pytest.approx(
        float(mpmath.gammaprod([mpmath.mpf(d + 1) / 2], [mpmath.mpf(d) / 2])), rel=1e-14
    )
    for norm2 in (0.0, 1e-9, 0.3, 4.0, 77.0, 1e3, 1e6):
        exact = mpmath.hyp1f1(-0.5, mpmath.mpf(d) / 2, -mpmath.mpf(norm2) / 2)
        exact *= mpmath.sqrt(2) * mpmath.gammaprod([mpmath.mpf(d + 1) / 2], [mpmath.mpf(d) / 2])
        # The weights' ratios are multiplied up over 9 sqrt(norm2 / 2) steps.
        assert mean_distance(norm2, d) == pytest.approx(float(exact), rel=5e-14)


def test_the_mean_distance_on_the_line_is_an_integral():
    for a in (0.0, 0.7, 3.0):
        exact = integrate.quad(lambda z, a=a: abs(a - z) * scipy.stats.norm.pdf(z), -12, 12)[0]
        assert mean_distance(a * a, 1) == pytest.approx(exact, rel=1e-7)


def test_published_moments_of_henze_and_zirkler_are_those_of_the_null():
    """Mean and variance of T at n = 200 are within 2 and 8 % of the limits for d = 2 and 5."""
    repeats = 1500
    for d in (2, 5):
        x = np.random.default_rng(d).standard_normal((repeats, 200, d))
        statistic = multivariate.henze_zirkler(x, "published").statistic
        mean, variance = multivariate._henze_zirkler_moments(200, d)
        # Four standard errors, of a variance whose law has a kurtosis below 12; and 2 and 8 %.
        assert statistic.mean() == pytest.approx(
            mean, abs=4 * math.sqrt(variance / repeats) + 0.02 * mean
        )
        assert statistic.var() == pytest.approx(variance, rel=4 * math.sqrt(11 / repeats) + 0.08)


@pytest.mark.parametrize(("n", "d"), [(12, 2), (30, 4)])
def test_published_laws_of_mardia_have_the_mean_of_the_statistics(n, d):
    repeats = 20_000
    x = np.random.default_rng((11, n, d)).standard_normal((repeats, n, d))
    found = multivariate.mardia(x, "published")
    freedom = d * (d + 1) * (d + 2) / 6
    # What the correction for small n is for (Mardia 1974): a chi-square of the right mean.
    corrected = scipy.stats.chi2.isf(found.skewness.pvalue, freedom)
    error = corrected.std() / math.sqrt(repeats)
    assert abs(corrected.mean() - freedom) < 4 * error
    # The statistics keep their sign, p-values their distance from the mean.
    score = scipy.stats.norm.isf(found.kurtosis.pvalue / 2)
    statistic = found.kurtosis.statistic
    centre = statistic - np.where(statistic > statistic.mean(), score, -score)
    assert np.median(centre) == pytest.approx(
        statistic.mean(), abs=4 * statistic.std() / math.sqrt(repeats)
    )


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize(("n", "d"), [(20, 2), (60, 5)])
def test_the_simulated_test_has_its_size(function, n, d):
    repeats = 4000
    x = np.random.default_rng((1, n, d)).standard_normal((repeats, n, d))
    pvalue = function(x, replicates=4000).pvalue
    for level in (0.05, 0.2, 0.5):
        # Both samples are random: their binomial variances add up. 24 comparisons.
        deviation = math.sqrt(2 * level * (1 - level) / repeats)
        assert abs((pvalue <= level).mean() - level) < 4 * deviation


@pytest.mark.parametrize("function", PUBLISHED)
def test_the_published_test_has_nearly_its_size_at_large_n(function):
    repeats = 2000
    x = np.random.default_rng(2).standard_normal((repeats, 200, 3))
    share = (function(x, pvalue="published").pvalue <= 0.05).mean()
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / repeats) + 0.01


@pytest.mark.parametrize("function", ALL)
def test_other_laws_are_rejected(function):
    rng = np.random.default_rng(3)
    heavy = rng.standard_t(3, (100, 100, 3))
    skewed = rng.standard_exponential((100, 100, 3))
    assert (function(heavy, replicates=999).pvalue < 0.05).mean() > 0.9
    assert (function(skewed, replicates=999).pvalue < 0.05).mean() > 0.9


def test_kurtosis_is_tested_on_both_sides():
    light = np.random.default_rng(4).uniform(size=(20, 200, 2))
    for pvalue in ("simulated", "published"):
        found = mardia_kurtosis(light, pvalue=pvalue)
        assert (found.statistic < 0).all()
        assert (found.pvalue < 0.01).mean() > 0.9


def test_bad_cells_have_a_status_and_leave_the_others_alone():
    x = np.random.default_rng(5).standard_normal((7, 20, 3))
    clean = [function(x, replicates=19) for function in ALL]
    x[1, 0, 0] = np.nan
    x[2, 19, 2] = -np.inf
    x[3, :, 1] = 2.0
    x[4, :, 2] = x[4, :, 0] - 3 * x[4, :, 1] + 1
    x[5, :5, 0] = np.inf
    expected = [
        Status.OK,
        Status.NON_FINITE_INPUT,
        Status.NON_FINITE_INPUT,
        Status.CONSTANT_INPUT,
        Status.CONSTANT_INPUT,
        Status.NON_FINITE_INPUT,
        Status.OK,
    ]
    for function, before in zip(ALL, clean, strict=True):
        result = function(x, replicates=19)
        assert result.status.tolist() == expected
        bad = result.status != Status.OK
        assert np.isnan(result.statistic[bad]).all()
        assert np.isnan(result.pvalue[bad]).all()
        np.testing.assert_array_equal(result.statistic[~bad], before.statistic[~bad])
        np.testing.assert_array_equal(result.pvalue[~bad], before.pvalue[~bad])


@pytest.mark.parametrize("function", ALL)
def test_no_more_samples_than_dimensions_are_too_few(function):
    x = np.random.default_rng(6).standard_normal((2, 4, 3))
    assert (function(x, replicates=19).status == Status.OK).all()
    result = function(x[:, :3], replicates=19)
    assert (result.status == Status.TOO_FEW_SAMPLES).all()
    assert np.isnan(result.statistic).all()
    assert np.isnan(result.pvalue).all()
    assert (result.n_samples == 3).all()


def test_arguments_that_cannot_be_used_are_named():
    x = np.zeros((5, 2))
    with pytest.raises(UsageError, match=r"real numbers, got dtype complex128; convert them to fl"):
        multivariate.energy(x.astype(complex))
    with pytest.raises(UsageError, match=r"shape \(..., n, d\) with d >= 1, got \(5,\); give one"):
        multivariate.mardia(x[:, 0])
    with pytest.raises(
        UsageError, match=r"pvalue must be one of simulated, published, got 'exact'"
    ):
        multivariate.henze_zirkler(x, pvalue="exact")
    with pytest.raises(UsageError, match=r"replicates must be at least 19, got 9; fewer Gaussian"):
        multivariate.energy(x, replicates=9)


@pytest.mark.parametrize("function", ALL)
def test_shapes_and_dtypes(function):
    x = np.random.default_rng(7).standard_normal((2, 3, 15, 2))
    result = function(x, replicates=19)
    assert result.statistic.shape == result.pvalue.shape == result.status.shape == (2, 3)
    assert (result.n_samples == 15).all()
    one = function(x[1, 2], replicates=19)
    assert one.statistic.shape == ()
    assert one.statistic == result.statistic[1, 2]
    for values in (x.astype(np.float32), (100 * x).astype(np.int32), x.astype(">f8")):
        exact = function(values.astype(np.float64), replicates=19)
        np.testing.assert_array_equal(function(values, replicates=19).statistic, exact.statistic)
    assert function(np.empty((0, 10, 2)), replicates=19).pvalue.shape == (0,)


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e300, 1.79e308])
def test_scales_from_the_smallest_to_the_largest_number(scale):
    k = np.random.default_rng(8).integers(-8, 9, (30, 2)).astype(np.float64)
    k[0] = 8, -8
    x = k * scale if scale < 1e-300 else k / 8 * scale
    for function in ALL:
        expected = function(k, replicates=19).statistic
        assert function(x, replicates=19).statistic == pytest.approx(expected, rel=1e-11)


def test_seeds_decide_the_pvalues_and_nothing_else_does():
    x = np.random.default_rng(9).standard_normal((3, 25, 2))
    first = multivariate.energy(x, replicates=200, seed=1)
    multivariate._null.cache_clear()
    np.random.default_rng(0).standard_normal(5)
    again = multivariate.energy(x[::-1], replicates=200, seed=1)
    np.testing.assert_array_equal(first.pvalue, again.pvalue[::-1])
    other = multivariate.energy(x, replicates=200, seed=2)
    assert (first.pvalue != other.pvalue).any()
    np.testing.assert_array_equal(first.statistic, other.statistic)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=30)
@given(seeds, st.integers(1, 4), st.integers(8, 40))
def test_affine_maps_and_order_do_not_matter(seed, d, n):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(5, (n, d))
    # A rotation times scales between 1/4 and 4: a condition number of at most 16.
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    moved = rng.permutation(x @ rotation * 2 ** rng.uniform(-2, 2, d) + rng.standard_normal(d))
    for function in ALL:
        expected = function(x, replicates=19).statistic
        got = function(moved, replicates=19).statistic
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=20)
@given(seeds, st.integers(1, 9), st.data())
def test_a_cell_does_not_depend_on_its_batch(seed, n_cells, data):
    x = np.random.default_rng(seed).standard_normal((n_cells, 12, 3))
    cuts = sorted(data.draw(st.lists(st.integers(0, n_cells), max_size=3)))
    for function in ALL:
        whole = function(x, replicates=19)
        parts = [function(part, replicates=19) for part in np.split(x, cuts)]
        for field in ("statistic", "pvalue", "status"):
            joined = np.concatenate([getattr(part, field) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, field))


def test_blocks_of_cells_change_no_bit():
    x = np.random.default_rng(10).standard_normal((70, 1000, 5))
    whole = multivariate.mardia(x, "published")
    for i in (0, 51, 52, 69):
        one = multivariate.mardia(x[i], "published")
        assert one.skewness.statistic == whole.skewness.statistic[i]
        assert one.kurtosis.pvalue == whole.kurtosis.pvalue[i]


def test_examples_of_the_docstrings_run():
    assert doctest.testmod(multivariate).failed == 0
