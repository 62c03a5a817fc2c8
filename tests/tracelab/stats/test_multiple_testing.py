import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.stats import multiple_testing
from tracelab.stats.multiple_testing import adjusted_pvalues

# Below, numbers have fewer digits.
p_values = st.one_of(st.just(0.0), st.floats(1e-300, 1))
METHODS = ("holm", "benjamini_hochberg", "benjamini_yekutieli")


def slow(p, method):
    """Each adjusted p-value by its definition: an extremum over all p-values on one side of it."""
    m = len(p)
    order = sorted(p)
    harmonic = sum(1 / i for i in range(1, m + 1))
    adjusted = []
    for value in p:
        if method == "holm":
            below = [(m - i) * q for i, q in enumerate(order) if q <= value]
            adjusted.append(min(1, max(below)))
        else:
            factor = harmonic if method == "benjamini_yekutieli" else 1
            above = [factor * m / (i + 1) * q for i, q in enumerate(order) if q >= value]
            adjusted.append(min(1, *above))
    return adjusted


@settings(max_examples=20)
@given(st.lists(p_values, min_size=1, max_size=12), st.sampled_from(METHODS))
def test_agrees_with_the_definitions(p, method):
    np.testing.assert_allclose(adjusted_pvalues(p, method), slow(p, method), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_passed_over(method):
    p = np.random.default_rng(0).uniform(size=12)
    with_nan = np.insert(p, [0, 5, 12], np.nan)
    adjusted = adjusted_pvalues(with_nan, method)
    np.testing.assert_array_equal(adjusted[~np.isnan(with_nan)], adjusted_pvalues(p, method))
    assert np.isnan(adjusted[np.isnan(with_nan)]).all()
    assert np.isnan(adjusted_pvalues([np.nan, np.nan], method)).all()
    assert adjusted_pvalues([], method).shape == (0,)


def test_families_along_an_axis():
    p = np.random.default_rng(1).uniform(size=(3, 7, 2))
    along = adjusted_pvalues(p, "holm", axis=1)
    assert along.shape == p.shape
    np.testing.assert_array_equal(along[2, :, 1], adjusted_pvalues(p[2, :, 1], "holm"))
    together = adjusted_pvalues(p, "holm")
    np.testing.assert_array_equal(together.ravel(), adjusted_pvalues(p.ravel(), "holm"))


def test_false_discoveries_are_bounded():
    """Of 200 tests 40 are of a false null: the mean share of false rejections is at most .1."""
    rng = np.random.default_rng(2)
    p = rng.uniform(size=(2000, 200))
    p[:, :40] *= 1e-3
    rejected = adjusted_pvalues(p, "benjamini_hochberg", axis=1) <= 0.1
    share = rejected[:, 40:].sum(axis=1) / np.maximum(rejected.sum(axis=1), 1)
    # Benjamini & Hochberg (1995), theorem 1: exactly .1 * 160 / 200 for independent tests.
    error = share.std() / np.sqrt(2000)
    assert abs(share.mean() - 0.08) < 4 * error


def test_arguments_that_cannot_be_used_are_named():
    with pytest.raises(UsageError, match=r"no method 'fdr' of multiple testing; choose from holm,"):
        adjusted_pvalues([0.1], "fdr")
    with pytest.raises(
        UsageError, match=r"p-values must be in \[0, 1\], got 1.5; pass on tests' p"
    ):
        adjusted_pvalues([0.1, 1.5])
    with pytest.raises(
        UsageError, match=r"axis 1 is not an axis of p-values with shape \(1,\); ch"
    ):
        adjusted_pvalues([0.1], axis=1)


def test_examples_of_the_docstrings_run():
    assert doctest.testmod(multiple_testing).failed == 0
