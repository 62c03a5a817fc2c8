"""Bounds by information of odd input, and of a part of the rows."""

import numpy as np
import pytest
import xarray as xr
from information import BATCHES, SIGMA, bounds

from tracelab.errors import UsageError
from tracelab.typing import Status
from tracelab_analyses.information_bound import ANALYSIS


@pytest.mark.parametrize(
    "levels",
    [
        [SIGMA[::-1], SIGMA[::-1]],
        [SIGMA, 2 * SIGMA],
        [SIGMA * (SIGMA > 0.05)] * 2,
        [[0.1, 0.1, 0.3, 1.0]] * 2,
    ],
)
def test_levels_that_do_not_rise_or_differ_between_rows_are_refused(levels):
    with pytest.raises(UsageError, match=r"perturbed_loss/sigma.* record them with PerturbedLoss"):
        bounds([0, 20], 1.0, 1.0, sigma=np.array(levels))


def test_levels_that_are_not_finite():
    levels = np.tile(SIGMA, (2, 1))
    levels[1, 2] = np.nan
    found = bounds([0, 20], 1.0, 1.0, sigma=levels)
    assert found["status"] == Status.NON_FINITE_INPUT
    assert np.isnan(found["bound"]).all()


def test_a_step_back_tells_as_much():
    rate = np.linspace(0.2, 0.05, 20)
    back = np.where(np.arange(20) % 3, rate, -rate)
    ahead = bounds([0, 7, 20], [1.0, 2.0, 3.0], 1.0, learning_rate=rate)
    for name, values in bounds([0, 7, 20], [1.0, 2.0, 3.0], 1.0, learning_rate=back).items():
        np.testing.assert_array_equal(values, ahead[name])


def warned(found):
    coords = {"layer": ["network"], "step": [0, 20]}
    coords |= {name: list(each) for name, each in ANALYSIS.coords.items()}
    variables = {each.name: (each.dims, found[each.name][None]) for each in ANALYSIS.outputs}
    return ANALYSIS.finding(xr.Dataset(variables, coords)).warnings


def test_estimates_below_nothing_are_not_0_without_error():
    below = np.tile([-3.0, 1.0], (2, BATCHES // 2))
    found = bounds([0, 20], 1.0, 0.0, deviation=below)
    assert (found["trajectory_term"][:, :3] == 0).all()
    assert np.isnan(found["bound_se"][1, :3]).all()
    assert any("below nothing" in warning for warning in warned(found))
    # Weights that did not move.
    still = bounds([0, 20], 1.0, 1.0, learning_rate=np.zeros(20))
    assert (still["bound_se"][:, :3] == 0).all()
    assert not any("below nothing" in warning for warning in warned(still))


def test_rows_do_not_depend_on_later_ones():
    rng = np.random.default_rng(0)
    step = np.array([0, 7, 20, 40, 90])
    variance, ratio = rng.exponential(size=5), rng.exponential(size=(5, SIGMA.size))
    rate, noise = rng.exponential(size=(2, 90))
    whole = bounds(step, variance, ratio, learning_rate=rate, injected_noise=noise, flatness=SIGMA)
    for count in range(1, 5):
        steps = step[count - 1]
        part = bounds(
            step[:count], variance[:count], ratio[:count], learning_rate=rate[:steps],
            injected_noise=noise[:steps], flatness=SIGMA,
        )  # fmt: skip
        for each in ANALYSIS.outputs:
            if "step" in each.dims:
                np.testing.assert_array_equal(part[each.name], whole[each.name][:count])
