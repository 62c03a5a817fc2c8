import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelab.stats.combination import cauchy_combination


def exact(pvalues):
    """Liu and Xie (2020), equation 1, in 450 digits."""
    with mpmath.workdps(450):
        terms = [mpmath.tan((mpmath.mpf("0.5") - mpmath.mpf(p)) * mpmath.pi) for p in pvalues]
        return float(mpmath.mpf("0.5") - mpmath.atan(mpmath.fsum(terms) / len(terms)) / mpmath.pi)


@given(st.lists(st.floats(1e-200, 1 - 1e-9), min_size=1, max_size=20))
def test_agrees_with_exact_arithmetic(pvalues):
    # 1 - p is known to 1 ulp of p, which the pole at p = 1 amplifies: relative 1e-16 / 1e-9.
    assert cauchy_combination(np.array(pvalues)) == pytest.approx(exact(pvalues), rel=1e-6)


def test_tiny_pvalues_keep_their_digits():
    assert cauchy_combination(np.array([1e-40, 0.5])) == pytest.approx(2e-40, rel=1e-12)


def test_has_its_size_under_dependence():
    """Equicorrelated normals (rho 0.8): the share below .05 is .05, binomial 4 sd at 20,000."""
    rng = np.random.default_rng(5)
    from scipy import stats

    shared = rng.standard_normal((20_000, 1))
    z = np.sqrt(0.8) * shared + np.sqrt(0.2) * rng.standard_normal((20_000, 30))
    combined = cauchy_combination(2 * stats.norm.sf(np.abs(z)))
    # Liu and Xie: the approximation is exact in the tail only; at .05 it is off by under a tenth.
    assert np.mean(combined < 0.05) == pytest.approx(0.05, abs=0.005 + 4 * np.sqrt(0.05 / 20_000))


def test_batches_over_leading_dims_and_passes_nan_on():
    p = np.array([[0.1, 0.2], [np.nan, 0.2]])
    combined = cauchy_combination(p)
    assert combined[0] == cauchy_combination(p[0])
    assert np.isnan(combined[1])
