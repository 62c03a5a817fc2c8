import json
import math
from functools import partial
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats import stable

REFERENCE = Path(__file__).parents[3] / "data" / "reference"
NOLAN = Path(scipy.__file__).parent / "stats" / "tests" / "data" / "levy_stable"
LAWS = [
    (alpha, beta)
    for alpha in (0.2, 0.5, 0.9, 0.998, 1.0, 1.002, 1.1, 1.5, 1.95, 1.9999)
    for beta in (-1.0, -0.3, 0.0, 0.7, 1.0)
]


def s0(function, x, alpha, beta):
    return function(x, alpha, beta, 0, 1, "S0", "exact")


def fourier(x, alpha, beta, what="pdf", digits=20):
    """Density or distribution in S0 from the characteristic function, along a ray."""
    with mpmath.workdps(digits):
        x, alpha, beta = mpmath.mpf(x), mpmath.mpf(alpha), mpmath.mpf(beta)

        def exponent(t):
            if alpha == 1:
                return -1j * x * t - t * (1 + 1j * beta * 2 / mpmath.pi * mpmath.log(t))
            omega = beta * mpmath.tan(mpmath.pi * alpha / 2)
            return -1j * x * t - t**alpha - 1j * omega * (t - t**alpha)

        # For alpha < 1 the linear term decides where the integrand decays.
        y = x + beta * mpmath.tan(mpmath.pi * alpha / 2) if alpha < 1 else x
        angle = mpmath.mpf("-0.1") if y > 0 else mpmath.mpf("0.1")
        ray = mpmath.exp(1j * angle)

        # e^(-t^alpha) is below 1e-30 beyond.
        last = math.ceil(math.log2(75) / alpha) + 1

        def integrand(r):
            t = r * ray
            value = mpmath.exp(exponent(t)) * ray
            return mpmath.re(value) if what == "pdf" else mpmath.re(1j * value / t)

        # Smooth on every piece, where Gauss's rule takes half the time of the default.
        quad = partial(mpmath.quad, method="gauss-legendre")
        if what == "pdf":
            edges = [0, *(mpmath.mpf(2) ** k for k in range(-24, last))]
            return quad(integrand, edges) / mpmath.pi
        # 1/t at 0 leaves the quarter turn of the ray; the rest is odd in t.
        edges = [0, *(mpmath.mpf(2) ** k for k in range(-60, last))]
        return mpmath.mpf(1) / 2 + (quad(integrand, edges) - angle) / mpmath.pi


def test_pdf_matches_the_reference():
    rows = json.loads((REFERENCE / "stable_pdf_mpmath.json").read_text())["rows"]
    x, alpha, beta = (np.array([row[key] for row in rows]) for key in ("x", "alpha", "beta"))
    expected = np.array([float(row["pdf"]) for row in rows])
    assert len(rows) == 162
    np.testing.assert_allclose(s0(stable.pdf, x, alpha, beta), expected, rtol=1e-11)


def test_nolans_values():
    # Columns x, p, alpha, beta, percentage; alpha from 0.1, where y is rounded at 1e-10.
    x, f, alpha, beta, _ = np.load(NOLAN / "stable-Z1-pdf-sample-data.npy").T
    assert x.size > 4000
    np.testing.assert_allclose(stable.pdf(x, alpha, beta, accuracy="exact"), f, rtol=3e-9)
    x, p, alpha, beta, _ = np.load(NOLAN / "stable-Z1-cdf-sample-data.npy").T
    found = stable.cdf(x, alpha, beta, accuracy="exact")
    # Six values at alpha = 1 are wrong by up to 2 %: the next test has one of them.
    wrong = (alpha == 1) & (np.abs(beta) <= 0.3) & (beta * x > 3) & (np.abs(np.abs(x) - 38) < 4)
    assert wrong.sum() == 6
    np.testing.assert_allclose(found[~wrong], p[~wrong], rtol=1e-10)


@pytest.mark.parametrize(
    ("x", "alpha", "beta"),
    [
        (-40.9756870000882, 1.0, -0.3),
        (1.3, 1.0, 0.9),
        (-2.0, 1.0, 1.0),
        (0.4, 1.0015, -0.7),
        (3.0, 1.05, 0.5),
        (-0.5, 0.6, 0.8),
        (12.0, 1.3, -0.2),
        (2.5, 1.97, 1.0),
    ],
)
def test_density_and_distribution_match_the_characteristic_function(x, alpha, beta):
    f, p = fourier(x, alpha, beta), fourier(x, alpha, beta, "cdf")
    assert float(s0(stable.pdf, x, alpha, beta)) == pytest.approx(float(f), rel=1e-10)
    assert float(s0(stable.cdf, x, alpha, beta)) == pytest.approx(float(p), rel=1e-10)
    assert float(s0(stable.sf, x, alpha, beta)) == pytest.approx(float(1 - p), rel=1e-10)


@pytest.mark.parametrize(("x", "alpha"), [(-7.0, 1.5), (-4.5, 1.2), (-8.0, 1.8)])
def test_light_tails_are_relatively_accurate(x, alpha):
    expected = float(fourier(x, alpha, 1.0, digits=60))
    assert 0 < expected < 1e-8
    assert float(s0(stable.pdf, x, alpha, 1.0)) == pytest.approx(expected, rel=1e-10)


def test_logarithms_go_on_where_densities_underflow():
    # log f ~ -(alpha - 1) (x / alpha)^(alpha / (alpha - 1)) / |cos(pi alpha / 2)|^(1 / (alpha - 1))
    # in S1 on the light side, to a relative log x / x^(alpha / (alpha - 1)).
    for alpha in (1.2, 1.4, 1.7):
        x = np.geomspace(1e3, 1e8, 40)
        power = alpha / (alpha - 1)
        expected = -(alpha - 1) * (x / alpha) ** power
        expected *= abs(math.cos(math.pi * alpha / 2)) ** (1 / (alpha - 1))
        np.testing.assert_allclose(
            stable.logpdf(x, alpha, -1, accuracy="exact"), expected, rtol=1e-4
        )
    x = np.concatenate([-np.geomspace(1e6, 1, 20), np.geomspace(1, 1e6, 20)])
    for alpha in (0.3, 0.7, 0.95, 1.0, 1.1, 1.417, 1.6, 1.99, 2.0):
        for beta in (-1, 1):
            assert np.all(s0(stable.logpdf, x, alpha, beta) < 0)
            assert np.all(s0(stable.cdf, x, alpha, beta) <= 1)


def test_closed_forms():
    x = np.concatenate([np.geomspace(1e-3, 1e10, 60)])
    exact = {"accuracy": "exact"}
    levy = np.exp(-0.5 / x) / np.sqrt(2 * np.pi * x**3)
    np.testing.assert_allclose(stable.pdf(x, 0.5, 1, **exact), levy, rtol=1e-12)
    np.testing.assert_allclose(
        stable.logpdf(x, 0.5, 1, **exact), -0.5 / x - 0.5 * np.log(2 * np.pi * x**3), rtol=1e-12
    )
    np.testing.assert_allclose(
        stable.cdf(x, 0.5, 1, **exact), special.erfc(np.sqrt(0.5 / x)), rtol=1e-12
    )
    np.testing.assert_allclose(
        stable.sf(x, 0.5, 1, **exact), special.erf(np.sqrt(0.5 / x)), rtol=1e-12
    )
    np.testing.assert_allclose(stable.sf(-x, 0.5, -1, **exact), stable.cdf(x, 0.5, 1, **exact))
    assert np.all(stable.pdf(-x, 0.5, 1, **exact) == 0)
    assert np.all(stable.cdf(-x, 0.5, 1, **exact) == 0)
    assert np.all(stable.sf(-x, 0.5, 1, **exact) == 1)
    np.testing.assert_allclose(stable.pdf(x, 1, 0, **exact), 1 / (np.pi * (1 + x * x)), rtol=1e-11)
    np.testing.assert_allclose(stable.sf(x, 1, 0, **exact), np.arctan(1 / x) / np.pi, rtol=1e-11)
    z = np.linspace(-30, 30, 41)
    gaussian = scipy.stats.norm(0, math.sqrt(2))
    np.testing.assert_allclose(stable.pdf(z, 2, 0.5, **exact), gaussian.pdf(z), rtol=1e-11)
    np.testing.assert_allclose(stable.logpdf(z, 2, 0, **exact), gaussian.logpdf(z), rtol=1e-11)
    np.testing.assert_allclose(stable.cdf(z, 2, 0, **exact), gaussian.cdf(z), rtol=1e-11)


@pytest.mark.parametrize("alpha", [0.3, 0.7, 0.9995, 1.0, 1.3, 1.9, 1.99999, 2.0])
def test_symmetric_table_and_integral_agree(alpha):
    # The table is right to 1e-8; the integral shares nothing with it.
    x = np.concatenate([-np.geomspace(1e-4, 1e6, 31), [0.0]])
    for function in (stable.pdf, stable.cdf):
        np.testing.assert_allclose(
            function(x, alpha), function(x, alpha, accuracy="exact"), rtol=1e-8
        )
    logs = stable.logpdf(x, alpha), stable.logpdf(x, alpha, accuracy="exact")
    np.testing.assert_allclose(*logs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("alpha", "beta"), LAWS)
def test_density_is_the_derivative_of_the_distribution(alpha, beta):
    edges = np.concatenate([-np.geomspace(100, 0.1, 6), np.geomspace(0.07, 120, 7)])
    nodes, weights = np.polynomial.legendre.leggauss(20)
    middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    if alpha < 1:
        # Pieces end where the density has its essential singularity.
        singular = -beta * math.tan(math.pi * alpha / 2)
        cell = (edges[:-1] < singular + 1) & (edges[1:] > singular - 1)
        keep = ~cell if alpha > 0.4 else np.zeros(half.size, bool)
    else:
        keep = np.ones(half.size, bool)
    f = s0(stable.pdf, middle[keep, None] + half[keep, None] * nodes, alpha, beta)
    mass = (f * weights).sum(axis=1) * half[keep]
    lower, upper = s0(stable.cdf, edges, alpha, beta), s0(stable.sf, edges, alpha, beta)
    np.testing.assert_allclose(lower + upper, 1, rtol=1e-11)
    np.testing.assert_allclose(np.diff(lower)[keep], mass, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize(("alpha", "beta"), LAWS)
def test_quantiles_invert_the_distribution(alpha, beta):
    q = np.array([1e-12, 1e-3, 0.2, 0.5, 0.77, 0.999])
    for parametrization in ("S0", "S1"):
        law = (alpha, beta, 1.0, 2.0, parametrization, "exact")
        x = stable.ppf(q, *law)
        # Where log P is steep, rounding x alone moves it: by x f / P times 2e-16.
        steep = np.abs(x) * stable.pdf(x, *law) / q * 4e-16
        found = stable.cdf(x, *law)
        assert np.all(np.abs(found / q - 1) < 1e-10 + steep)
        assert np.all(np.diff(x) > 0)


@settings(max_examples=40)
@given(
    alpha=st.floats(0.1, 2.0),
    beta=st.floats(-1, 1),
    x=st.floats(-1e6, 1e6),
    loc=st.floats(-10, 10),
    scale=st.sampled_from([1e-6, 0.5, 3.0, 1e7]),
)
def test_laws_reflect_and_move(alpha, beta, x, loc, scale):
    law = stable.logpdf(x, alpha, beta, 0, 1, "S0", "exact")
    mirrored = stable.logpdf(-x, alpha, -beta, 0, 1, "S0", "exact")
    assert law == pytest.approx(float(mirrored), rel=1e-11, abs=1e-11)
    assert stable.cdf(x, alpha, beta, 0, 1, "S0", "exact") == pytest.approx(
        float(stable.sf(-x, alpha, -beta, 0, 1, "S0", "exact")), rel=1e-9, abs=1e-300
    )
    y = 2.0 + abs(x)
    one = stable.logpdf(y, 1.5, beta, 0, 1, "S1", "exact")
    other = stable.logpdf(y * scale, 1.5, beta, 0, scale, "S1", "exact")
    assert other == pytest.approx(float(one) - math.log(scale), rel=1e-9)
    # S0 and S1 of one law differ by the location only.
    moved = loc - beta * scale * math.tan(math.pi * 1.3 / 2)
    assert stable.logpdf(loc + scale, 1.3, beta, moved, scale, "S1") == pytest.approx(
        float(stable.logpdf(loc + scale, 1.3, beta, loc, scale, "S0")), rel=1e-8, abs=1e-8
    )


def test_alpha_one_in_s1_moves_with_the_logarithm_of_the_scale():
    x, beta, scale = np.linspace(-3, 9, 7), 0.5, 3.0
    shift = 2 / math.pi * beta * scale * math.log(scale)
    np.testing.assert_allclose(
        stable.pdf(x + shift, 1, beta, 0, scale), stable.pdf(x, 1, beta, 0, scale, "S0"), rtol=1e-10
    )
    np.testing.assert_allclose(
        stable.ppf([0.2, 0.9], 1, beta, 0, scale),
        stable.ppf([0.2, 0.9], 1, beta, 0, scale, "S0") + shift,
        rtol=1e-10,
    )


def test_laws_are_continuous_in_alpha_where_the_formula_changes():
    x = np.array([-30.0, -2.0, 0.0, 1.0, 8.0, 1e6])
    for edge in (1 - 3e-3, 1 + 3e-3):
        for beta in (-0.6, 0.2):
            inside, outside = (
                s0(stable.logpdf, x, 1 + (edge - 1) * factor, beta)
                for factor in (1 - 1e-9, 1 + 1e-9)
            )
            # d log f / d alpha is at most log x = 14, times 6e-12.
            np.testing.assert_allclose(inside, outside, rtol=1e-10, atol=2e-10)


def test_edges_of_the_domain():
    x = [np.nan, np.inf, -np.inf]
    np.testing.assert_array_equal(stable.pdf(x, 1.5, 0.5), [np.nan, 0, 0])
    np.testing.assert_array_equal(stable.cdf(x, 0.5, 0.5), [np.nan, 1, 0])
    np.testing.assert_array_equal(stable.sf(x, 1.0, -0.5), [np.nan, 0, 1])
    np.testing.assert_array_equal(
        stable.ppf([0, 1, -0.1, np.nan], 0.5, 1), [0, np.inf] + [np.nan] * 2
    )
    np.testing.assert_array_equal(stable.ppf([0, 1], 1.5, -1), [-np.inf, np.inf])
    # f(0) = cos(theta_0) Gamma(1 + 1/alpha) (1 + zeta^2)^(-1 / (2 alpha)) / pi in S1.
    zeta = 0.5 * math.tan(0.35 * math.pi)
    middle = math.cos(math.atan(zeta) / 0.7) * math.gamma(1 + 1 / 0.7) / math.pi
    middle *= (1 + zeta**2) ** (-0.5 / 0.7)
    np.testing.assert_allclose(stable.pdf([0, 1e-300, -1e-13], 0.7, 0.5), middle, rtol=1e-9)


def test_bad_parameters():
    with pytest.raises(UsageError, match=r"beta must be in \[-1, 1\], got 1.5"):
        stable.pdf(0, 1.5, 1.5)
    with pytest.raises(UsageError, match="accuracy must be 'table' or 'exact', got 'high'"):
        stable.cdf(0, 1.5, accuracy="high")
