"""From when on a curve follows a law: curves whose start is known."""

import numpy as np
import pytest
from scipy import stats

from tracelab.errors import UsageError
from tracelab.stats.growth import predict
from tracelab.stats.growth_start import candidates, evenly, start_of_regime

STEPS = np.arange(1, 5_001)
TRUTH = {"log": (0.3, 1.7), "power": (0.5, 0.4), "saturation": (10.0, 9.0, 800.0)}


def curve(law, begins=1, sd=0.0, seed=0):
    """A law from a step on, and t^1.5 before."""
    d = predict(law, np.array(TRUTH[law]), STEPS)
    early = begins > STEPS
    d[early] = d[begins - 1] * (STEPS[early] / begins) ** 1.5
    return d + np.random.default_rng(seed).normal(0, sd, STEPS.size) if sd else d


def test_steps_are_even_in_their_logarithm():
    taken = STEPS[evenly(STEPS, 10, 1_000, 5)]
    assert taken.tolist() == [10, 32, 100, 317, 1_000]
    assert STEPS[evenly(STEPS, 1, 5, 100)].tolist() == [1, 2, 3, 4, 5]
    assert evenly(STEPS, 6_000, 7_000, 10).size == 0
    assert evenly(np.array([3, 50, 51]), 1, 100, 10).tolist() == [0, 1, 2]


def test_candidates_reach_a_twelfth_of_the_last_step():
    found = candidates(STEPS)
    np.testing.assert_allclose(found[[0, -1]], [1, 5_000 / 12])
    np.testing.assert_allclose(np.diff(np.log(found)), np.log(5_000 / 12) / 7)
    assert candidates(np.arange(100, 200)).tolist() == [100]


@pytest.mark.parametrize("law", sorted(TRUTH))
def test_an_exact_law_begins_at_once(law):
    assert start_of_regime(STEPS, curve(law)) == 1


@pytest.mark.parametrize("law", sorted(TRUTH))
@pytest.mark.parametrize("begins", [20, 150])
def test_an_exact_law_begins_where_it_does(law, begins):
    """The first candidate that is not before."""
    found = start_of_regime(STEPS, curve(law, begins))
    assert found == candidates(STEPS)[candidates(STEPS) >= begins].min()


@pytest.mark.parametrize("law", sorted(TRUTH))
def test_a_law_under_noise_does_not_begin_in_another_phase(law):
    """Seldom more than one candidate early: with a chance of .9 a curve, of 20 not below 11."""
    begins = 150
    allowed = candidates(STEPS)[candidates(STEPS) < begins].max()
    found = [start_of_regime(STEPS, curve(law, begins, 0.2, seed)) for seed in range(20)]
    assert np.sum(np.array(found) >= allowed) >= stats.binom.ppf(1e-4, 20, 0.9)


def test_where_there_is_no_choice_the_first_step_is_taken():
    assert start_of_regime(STEPS[:5], np.arange(5.0)) == 1
    assert start_of_regime(STEPS[1_000:1_300], np.arange(300.0)) == 1_001
    assert start_of_regime(STEPS, np.ones(STEPS.size)) == 1


def test_the_unit_does_not_matter():
    d = curve("power", 150, 0.2)
    assert start_of_regime(STEPS, d) == start_of_regime(STEPS, 1e5 * d)


@pytest.mark.parametrize(
    ("step", "value", "words"),
    [
        ([], [], "steps must be one or more that rise from 1 on"),
        ([0, 1], [0.0, 1.0], "rise from 1 on"),
        ([2, 1], [0.0, 1.0], "rise from 1 on"),
        ([1, 2], [0.0], "one finite number for each of 2 steps"),
        ([1, 2], [0.0, np.nan], "one finite number for each of 2 steps"),
    ],
)
def test_curves_that_have_no_start(step, value, words):
    with pytest.raises(UsageError, match=words):
        start_of_regime(np.array(step), np.array(value))
