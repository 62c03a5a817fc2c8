"""Fits of large samples, as points, against those of their sorted values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.stats import stable
from tracelab.stats._stable_cells import LARGE, condense
from tracelab.stats._stable_climb import gaussian, score_sums
from tracelab.stats._stable_density import collapse, new_law, table
from tracelab.stats._stable_fit import fit_sorted
from tracelab.stats._stable_rows import prepare
from tracelab.stats._stable_skew_fit import fit_standardised
from tracelab.typing import Status

SIZE = LARGE + 2001
COLUMNS = ("alpha", "scale", "loc")


def by_sorting(x):
    out = np.zeros((1, 13))
    fit_sorted(np.sort(x)[None], table(), 1.959963984540054, out)
    return out[0]


@pytest.mark.parametrize("alpha", [0.4, 0.8, 1.1, 1.5, 1.9, 1.99, 2.0])
def test_a_large_sample_is_fitted_as_its_sorted_values(alpha):
    x = stable.rvs(alpha, loc=-70, scale=0.02, size=SIZE, rng=np.random.default_rng(1))
    found, exact = stable.fit(x), by_sorting(x)
    assert found.status == Status.OK
    # Cells are a 32nd of |z| + 1/8 wide, in interquartile ranges: second derivatives of
    # log-densities times the scatter of squares in them, h^2 / sqrt(180), about 3e-4 of a score.
    for i, name in enumerate(COLUMNS):
        assert abs(getattr(found, name) - exact[i]) < 1e-3 * getattr(found, f"{name}_se")
    assert abs(found.alpha_low - exact[6]) < 2e-3 * found.alpha_se
    assert abs(found.alpha_high - exact[7]) < 2e-3 * found.alpha_se
    # The same of log-likelihoods, whose sum scatters by 2e-4 sqrt(n).
    assert abs(found.loglik - exact[8]) < 5e-4 * math.sqrt(SIZE)
    assert len(condense(x, -1, 8).points[0][0]) < SIZE // 2


@pytest.mark.parametrize(("alpha", "beta"), [(1.2, 0.7), (1.9, -0.5)])
def test_a_large_skewed_sample_too(alpha, beta):
    x = stable.rvs(alpha, beta, 3, 20, SIZE, np.random.default_rng(2))
    found = stable.fit_skewed(x, parametrization="S0")
    exact = fit_standardised(prepare(x, -1, 20), "S0", 1.959963984540054)
    for name in (*COLUMNS, "beta"):
        difference = getattr(found, name) - getattr(exact, name)
        assert abs(difference) < 1e-3 * getattr(found, f"{name}_se")
    assert abs(found.loglik - exact.loglik) < 5e-4 * math.sqrt(SIZE)
    assert abs(found.beta_high - exact.beta_high) < 1e-2 * found.beta_se


def test_weights_count_values():
    rng = np.random.default_rng(3)
    x, weights = rng.standard_cauchy(50), rng.integers(1, 5, 50)
    law = new_law()
    x0 = collapse(table(), 1.3, 1, law)
    each = np.repeat(x, weights)
    for kernel, rest in ((score_sums, (law, x0, 1.3, 0.9, 0.2)), (gaussian, ())):
        repeated = kernel(each, None, *rest)
        # The same terms in another order.
        np.testing.assert_allclose(kernel(x, weights * 1.0, *rest), repeated, rtol=1e-11)


def test_what_cannot_be_counted_is_sorted():
    rng = np.random.default_rng(4)
    good = rng.standard_normal(SIZE)
    misled = rng.permutation(good)
    misled[:: SIZE // 1024] *= 1e-3
    rounded = np.round(good, 1)
    cells = {
        "good": good,
        "huge outlier": np.where(np.arange(SIZE) == 5, 1e300, good),
        "unlike its every twelfth": misled,
        "zeros": np.where(np.arange(SIZE) % 3, good, 0.0),
        "rounded": rounded,
        "tiny": good * 1e-300,
    }
    found = stable.fit(np.stack(list(cells.values())))
    for i, (name, x) in enumerate(cells.items()):
        exact = by_sorting(x)
        assert found.status[i] == exact[11], name
        assert found.tied_fraction[i] == exact[9], name
        # A climb from another start may end 3e-5 standard errors away.
        tolerance = 1e-3 * found.alpha_se[i]
        assert abs(found.alpha[i] - exact[0]) < tolerance, name
        # Rounded values are not spread over cells, .03 scales wide where most are: h^2 / 24.
        assert abs(found.scale[i] / exact[1] - 1) < 0.03**2 / 24, name
    bad = np.tile(good, (4, 1))
    bad[0, 7], bad[1, 0], bad[2] = np.nan, -np.inf, 3.0
    for fit in (stable.fit, stable.fit_skewed):
        assert fit(bad).status.tolist() == [
            Status.NON_FINITE_INPUT,
            Status.NON_FINITE_INPUT,
            Status.CONSTANT_INPUT,
            Status.OK,
        ]
        assert np.isfinite(fit(bad).alpha).tolist() == [False, False, False, True]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5), st.floats(-3, 3))
def test_order_location_and_scale(seed, loc, log_scale):
    rng = np.random.default_rng(seed)
    x, scale = stable.rvs(1.5, size=SIZE, rng=rng), 10**log_scale
    found, other = stable.fit(x), stable.fit(rng.permutation(loc + scale * -x))
    # Other cells: as far as the sorted values at most, twice.
    assert abs(other.alpha - found.alpha) < 2e-3 * found.alpha_se
    assert abs((other.loc - loc) / scale + found.loc) < 2e-3 * found.loc_se
    assert abs(other.scale / scale - found.scale) < 2e-3 * found.scale_se


def test_rows_do_not_depend_on_each_other():
    x = stable.rvs(1.5, size=(3, SIZE), rng=np.random.default_rng(6)).astype(np.float32)
    x[1] = np.random.default_rng(7).standard_normal(SIZE)
    together, across = stable.fit(x), stable.fit(x.T.astype(np.float64), axis=0)
    for r in range(3):
        alone = stable.fit(x[r])
        for name in (*COLUMNS, "loglik", "alpha_low", "alpha_high"):
            assert getattr(alone, name) == getattr(together, name)[r]
            assert getattr(alone, name) == getattr(across, name)[r]
    assert together.n_samples == SIZE
