import doctest
import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.stats

from tracelab.errors import UsageError
from tracelab.stats import _stable_law, stable

REFERENCE = Path(__file__).parents[3] / "data" / "reference"
ALPHAS = (0.3, 0.37, 0.4, 0.5, 0.55, 0.7, 0.8, 0.95, 1.0, 1.2, 1.35, 1.6, 1.8, 1.99, 1.99999)


def symmetric(rows):
    return [row for row in rows if row["beta"] == 0]


def series_pdf(x, alpha):
    """Density by its series at 0 (alpha > 1) or infinity (alpha < 1), which converge there."""
    with mpmath.workdps(60):
        x, alpha = mpmath.mpf(x), mpmath.mpf(alpha)
        if alpha > 1:
            terms = (
                (-1) ** k
                * mpmath.gamma((2 * k + 1) / alpha)
                / mpmath.factorial(2 * k)
                * x ** (2 * k)
                for k in range(400)
            )
            return float(mpmath.fsum(terms) / (mpmath.pi * alpha))
        terms = (
            (-1) ** (k + 1)
            * mpmath.gamma(k * alpha + 1)
            / mpmath.factorial(k)
            * mpmath.sin(mpmath.pi * k * alpha / 2)
            * x ** (-k * alpha - 1)
            for k in range(1, 400)
        )
        return float(mpmath.fsum(terms) / mpmath.pi)


def test_doctests():
    assert doctest.testmod(_stable_law).failed == 0
    assert doctest.testmod(stable).failed == 0


def test_pdf_matches_mpmath():
    rows = symmetric(json.loads((REFERENCE / "stable_pdf_mpmath.json").read_text())["rows"])
    assert len(rows) == 54
    for row in rows:
        expected = float(row["pdf"])
        assert float(stable.pdf(row["x"], row["alpha"])) == pytest.approx(expected, rel=1e-8)
        assert float(stable.logpdf(row["x"], row["alpha"])) == pytest.approx(
            math.log(expected), abs=1e-8
        )


@pytest.mark.parametrize(
    ("alpha", "points"),
    [
        # 60 digits leave what these series cancel.
        (0.3, (1e-3, 0.05, 1, 30, 60, 70, 1e6)),
        (0.45, (0.02, 0.3, 2, 63.9, 1e4)),
        (0.75, (0.5, 1, 5, 1e6)),
        (1.25, (0, 0.1, 1, 3)),
        (1.7, (0, 0.3, 2, 3.9, 5)),
        (1.9999, (0, 1, 2.5, 3.8, 4.2, 6)),
    ],
)
def test_pdf_matches_the_series(alpha, points):
    for x in points:
        expected = 1 / math.pi * math.gamma(1 + 1 / alpha) if x == 0 else series_pdf(x, alpha)
        assert float(stable.pdf(x, alpha)) == pytest.approx(expected, rel=2e-8)


def test_pdf_and_cdf_match_r():
    # R's own error: 1e-4 of the density, pstable 1 beyond 30 to 200, quantiles 5e-4.
    reference = json.loads((REFERENCE / "stable_R_stabledist.json").read_text())
    for row in symmetric(reference["pdf_cdf"]):
        assert float(stable.pdf(row["x"], row["alpha"])) == pytest.approx(row["pdf"], rel=2e-4)
        assert float(stable.cdf(row["x"], row["alpha"])) == pytest.approx(row["cdf"], abs=1e-4)
    for row in symmetric(reference["quantile"]):
        assert float(stable.ppf(row["p"], row["alpha"])) == pytest.approx(
            row["q"], rel=1e-3, abs=1e-8
        )


def test_alpha_one_is_cauchy():
    x = np.concatenate([-np.geomspace(1e-6, 1e12, 60), [0], np.geomspace(1e-6, 1e12, 60)])
    np.testing.assert_allclose(stable.pdf(x, 1), scipy.stats.cauchy.pdf(x), rtol=1e-8)
    np.testing.assert_allclose(stable.logpdf(x, 1), scipy.stats.cauchy.logpdf(x), rtol=1e-8)
    # SciPy's own distribution loses the lower tail to cancellation.
    np.testing.assert_allclose(stable.sf(x[x > 1], 1), np.arctan(1 / x[x > 1]) / np.pi, rtol=1e-8)
    np.testing.assert_allclose(stable.cdf(x, 1), scipy.stats.cauchy.cdf(x), atol=1e-9)
    q = np.array([0.001, 0.2, 0.5, 0.9])
    np.testing.assert_allclose(stable.ppf(q, 1), scipy.stats.cauchy.ppf(q), rtol=1e-8, atol=1e-12)


def test_alpha_two_is_gaussian():
    gaussian = scipy.stats.norm(1.0, 3.0 * math.sqrt(2))
    x = np.linspace(-60, 60, 101)
    np.testing.assert_allclose(stable.pdf(x, 2, 0, 1, 3), gaussian.pdf(x), rtol=1e-8)
    np.testing.assert_allclose(stable.logpdf(x, 2, 0, 1, 3), gaussian.logpdf(x), rtol=1e-12)
    np.testing.assert_allclose(stable.cdf(x, 2, 0, 1, 3), gaussian.cdf(x), rtol=1e-10)
    np.testing.assert_allclose(stable.sf(x, 2, 0, 1, 3), gaussian.sf(x), rtol=1e-10)
    q = np.array([1e-300, 1e-9, 0.3, 0.5, 0.99])
    np.testing.assert_allclose(stable.ppf(q, 2, 0, 1, 3), gaussian.ppf(q), rtol=1e-10)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_density_is_the_derivative_of_the_distribution(alpha):
    # Through octaves, the end of the body and of the table; P falls by the integral of f.
    edges = np.concatenate([np.geomspace(1e-5, 1e3, 60), [3.87, 3.88, 63.8, 64.1]])
    edges.sort()
    nodes, weights = np.polynomial.legendre.leggauss(20)
    middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    f = stable.pdf(middle[:, None] + half[:, None] * nodes, alpha)
    mass = (f * weights).sum(axis=1) * half
    upper = stable.sf(edges, alpha)
    np.testing.assert_allclose(upper[:-1] - upper[1:], mass, rtol=1e-7, atol=1e-13)
    assert float(stable.cdf(0, alpha)) == pytest.approx(0.5, abs=1e-8)
    np.testing.assert_allclose(stable.cdf(-edges, alpha), upper, rtol=1e-14)


@pytest.mark.parametrize("alpha", [*ALPHAS, 2.0])
def test_ppf_inverts_cdf(alpha):
    q = np.concatenate([np.geomspace(1e-60, 0.4, 40), [0.5, 0.6, 0.999, 1 - 1e-9]])
    x = stable.ppf(q, alpha)
    np.testing.assert_allclose(stable.cdf(x, alpha), q, rtol=1e-10)
    assert np.all(np.diff(x) > 0)
    # The quantile of 1 - q is the negative one only as far as 1 - q is exact.
    np.testing.assert_allclose(stable.ppf(1 - q[-3:], alpha), -x[-3:], rtol=1e-5)


def test_edges_of_the_domain():
    np.testing.assert_array_equal(stable.pdf([np.nan, np.inf, -np.inf], 1.5), [np.nan, 0, 0])
    np.testing.assert_array_equal(stable.cdf([np.nan, np.inf, -np.inf], 1.5), [np.nan, 1, 0])
    np.testing.assert_array_equal(stable.sf([np.inf, -np.inf], 2), [0, 1])
    np.testing.assert_array_equal(stable.logpdf([np.inf, -np.inf], 0.5), [-np.inf, -np.inf])
    np.testing.assert_array_equal(
        stable.ppf([0, 0.5, 1, -0.1, 1.1, np.nan], 1.5),
        [-np.inf, 0, np.inf, np.nan, np.nan, np.nan],
    )
    # Where the density underflows its logarithm does not: log f ~ log(alpha C) - 2.5 log x.
    tail = math.log(1.5 * math.gamma(1.5) * math.sin(0.75 * math.pi) / math.pi)
    assert float(stable.logpdf(1e200, 1.5)) == pytest.approx(tail - 2.5 * math.log(1e200), rel=1e-9)


def test_arguments_broadcast():
    x, alpha = np.linspace(-2, 3, 5), np.array([[0.5], [1.5], [2.0], [1.5]])
    loc, scale = np.array([[0.0], [1.0], [2.0], [3.0]]), 2.0
    together = stable.pdf(x, alpha, 0, loc, scale)
    assert together.shape == (4, 5)
    for i in range(4):
        np.testing.assert_array_equal(
            together[i], stable.pdf((x - loc[i]) / scale, alpha[i, 0]) / scale
        )
    assert stable.pdf(0.0, 1.5).shape == ()
    np.testing.assert_array_equal(stable.pdf(x, 1.5, 0, 1, 2, "S0"), stable.pdf(x, 1.5, 0, 1, 2))


@pytest.mark.parametrize("function", [stable.pdf, stable.logpdf, stable.cdf, stable.sf, stable.ppf])
def test_bad_parameters(function):
    with pytest.raises(UsageError, match=r"alpha must be in \(0, 2\], got 2.1"):
        function(0.5, 2.1)
    with pytest.raises(UsageError, match="scale must be positive, got 0"):
        function(0.5, 1.5, scale=0)
    with pytest.raises(UsageError, match="parametrization must be 'S0' or 'S1', got 'S2'"):
        function(0.5, 1.5, parametrization="S2")


@pytest.mark.parametrize("alpha", [0.3, 0.8, 1.0, 1.5, 1.95, 2.0])
def test_draws_follow_the_distribution(alpha):
    x = stable.rvs(alpha, loc=1.0, scale=2.0, size=20_000, rng=np.random.default_rng(1))
    result = scipy.stats.kstest(x, lambda z: stable.cdf(z, alpha, 0, 1.0, 2.0))
    assert result.pvalue > 1e-4


@pytest.mark.parametrize("parametrization", ["S0", "S1"])
def test_skewed_draws_match_r(parametrization):
    rows = json.loads((REFERENCE / "stable_R_stabledist.json").read_text())["pdf_cdf"]
    n = 40_000
    for alpha, beta in sorted({(row["alpha"], row["beta"]) for row in rows}):
        x = stable.rvs(
            alpha, beta, 0.5, 2.0, n, np.random.default_rng(2), parametrization=parametrization
        )
        # R's values are S0, where an S1 law lies beta * scale * tan(pi alpha / 2) further right.
        tangent = math.tan(math.pi * alpha / 2) if parametrization == "S1" else 0.0
        z = (x - 0.5) / 2.0 - beta * tangent
        for row in rows:
            if (row["alpha"], row["beta"]) == (alpha, beta):
                p = row["cdf"]
                if p == 1:  # where R gives up
                    continue
                # Five binomial standard deviations, for some 300 comparisons.
                assert abs(np.mean(z <= row["x"]) - p) < 5 * math.sqrt(p * (1 - p) / n) + 1e-4


def test_draws_at_alpha_one_with_skewness():
    # E exp(iuX) = exp(-|u| (1 + i beta 2/pi sign(u) log|u|)) in S1, at u = 0.7.
    x = stable.rvs(1.0, 0.5, size=200_000, rng=np.random.default_rng(3))
    u = 0.7
    expected = np.exp(-u * (1 + 0.5j * 2 / math.pi * math.log(u)))
    assert abs(np.exp(1j * u * x).mean() - expected) < 5 / math.sqrt(200_000)
    # Scaling by 3 in S1 brings 2/pi beta 3 log 3; S0 has no such term.
    scaled = stable.rvs(1.0, 0.5, scale=3.0, size=200_000, rng=np.random.default_rng(3))
    shift = 2 / math.pi * 0.5 * 3 * math.log(3)
    np.testing.assert_allclose(scaled, 3 * x + shift, rtol=1e-9, atol=1e-9)
    other = stable.rvs(
        1.0, 0.5, scale=3.0, size=200_000, rng=np.random.default_rng(3), parametrization="S0"
    )
    np.testing.assert_allclose(other, 3 * x, rtol=1e-9, atol=1e-9)


def test_draws_are_continuous_in_alpha_in_s0():
    args = {"beta": 0.8, "size": 1000, "parametrization": "S0"}
    at_one = stable.rvs(1.0, rng=np.random.default_rng(4), **args)
    near = stable.rvs(1.0 + 1e-6, rng=np.random.default_rng(4), **args)
    nearest = stable.rvs(1.0 + 1e-12, rng=np.random.default_rng(4), **args)
    np.testing.assert_allclose(near, at_one, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(nearest, at_one, rtol=1e-12)


def test_draws_refuse_bad_parameters():
    with pytest.raises(UsageError, match=r"alpha must be in \(0, 2\], got 0"):
        stable.rvs(0)
    with pytest.raises(UsageError, match=r"beta must be in \[-1, 1\], got 2"):
        stable.rvs(1.5, 2)
    with pytest.raises(UsageError, match="scale must be positive, got -1"):
        stable.rvs(1.5, scale=-1)
    with pytest.raises(UsageError, match="parametrization must be"):
        stable.rvs(1.5, parametrization="S3")
    assert stable.rvs(1.5).shape == ()
