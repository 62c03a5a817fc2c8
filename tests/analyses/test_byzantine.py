import re
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.typing import Status
from tracelab_analyses.byzantine import (
    ANALYSIS,
    BLOCK_BYTES,
    byzantine,
    effective_dimension,
    finding,
)

T, N, K = 250, 8, 64


def honest(seed, steps=T, workers=N, directions=K):
    """Return gradients with a common mean that moves, and noise of their own."""
    rng = np.random.default_rng(seed)
    mean = 3 * np.sin(np.arange(steps)[:, None] / 30 + rng.uniform(0, 6, directions))
    return mean[:, None] + rng.standard_normal((steps, workers, directions))


def run(gradient, **options):
    steps = 10 * np.arange(len(gradient))
    found = byzantine(gradient[None], steps, **options)
    return {name: array[0] for name, array in found.items()}


def step_by_step(gradient, short, long, threshold, factor, warm_up, reset=False):
    """Return who is out at which row, by the algorithm as it is written, a step at a time.

    And at which rows there were two or more to look at.
    """
    workers = gradient.shape[1]
    good, out, looked = list(range(workers)), {}, []
    sums = {}
    for number, g in enumerate(gradient):
        # With resets everything begins anew with a long window.
        row = number % long if reset else number
        if reset and row == 0:
            good = list(range(workers))
        if len(good) < 2:
            continue
        looked.append(number)
        leaving = set()
        for length in (short, long):
            if row % length == 0:
                sums[length] = np.zeros_like(gradient[0])
            for i in good:
                sums[length][i] += g[i] / len(good)
            if row % length + 1 < min(warm_up, length):
                continue
            apart = {
                i: {j: np.linalg.norm(sums[length][i] - sums[length][j]) for j in good}
                for i in good
            }
            if threshold is None:
                reach = {i: sorted(apart[i].values())[len(good) // 2] for i in good}
                median = min(good, key=reach.get)
                limit = factor * reach[median]
            else:
                support = {i: sum(d <= threshold for d in apart[i].values()) for i in good}
                enough = [i for i in good if support[i] >= len(good) / 2]
                median = enough[0] if enough else max(good, key=support.get)
                limit = 2 * threshold
            leaving |= {i for i in good if apart[median][i] > limit}
        for i in leaving:
            good.remove(i)
            out.setdefault(i, number)
    return out, looked


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(3, 6),
    windows=st.tuples(st.integers(1, 9), st.integers(10, 25)),
    threshold=st.one_of(st.none(), st.floats(0.5, 4.0)),
    factor=st.floats(1.0, 2.0),
    warm_up=st.integers(1, 6),
    reset=st.booleans(),
)
def test_is_the_algorithm_step_by_step(seed, workers, windows, threshold, factor, warm_up, reset):
    """In few directions, where workers leave again and again."""
    gradient = honest(seed, 40, workers, 4)
    gradient[:, -1] += 0.3
    short, long = windows
    found = run(
        gradient,
        short=short,
        long=long,
        threshold_short=threshold,
        threshold_long=threshold,
        factor=factor,
        warm_up=warm_up,
        reset=reset,
    )
    expected = np.full(workers, np.nan)
    out, looked = step_by_step(gradient, short, long, threshold, factor, warm_up, reset)
    for worker, row in out.items():
        expected[worker] = 10 * row
    np.testing.assert_array_equal(found["thrown_out_at"], expected)
    assert found["n_steps"] == len(looked)
    alone = np.setdiff1d(np.arange(40), looked)
    np.testing.assert_equal(found["stopped_at"], 10 * alone[0] if alone.size else np.nan)


@pytest.mark.parametrize(
    ("attack", "within"),
    [
        (lambda g: -g, 20),
        (lambda g: 20 * g, 20),
        # Too little to see in one gradient: 2 % longer than others', a fifth of a deviation off.
        (lambda g: g + 0.35, 100),
        (lambda g: 1e9 * g, 20),
    ],
    ids=["sign flip", "large norm", "small drift", "huge"],
)
@pytest.mark.parametrize("workers", [4, 9])
def test_one_that_is_not_honest_is_thrown_out_alone(attack, within, workers):
    gradient = honest(1, workers=workers)
    gradient[:, 2] = attack(gradient[:, 2])
    found = run(gradient)
    assert found["status"] == Status.OK
    assert np.flatnonzero(np.isfinite(found["thrown_out_at"])).tolist() == [2]
    assert found["thrown_out_at"][2] <= 10 * within
    assert found["n_thrown_out"] == 1
    assert found["closest_call"] < 1
    rows = np.arange(T) * 10 > found["thrown_out_at"][2]
    assert np.isnan(found["distance_long"][rows, 2]).all()


def test_three_of_ten_are_thrown_out_alone():
    gradient = honest(2, workers=10)
    gradient[:, 1] *= -1
    gradient[:, 5] += 1
    gradient[:, 9] *= 30
    found = run(gradient)
    assert np.flatnonzero(np.isfinite(found["thrown_out_at"])).tolist() == [1, 5, 9]


def test_honest_workers_stay():
    """60 jobs of 64 directions, of which 200 of 500 steps lost none: no more than 1.5 % do.

    Three or more of 60 then have a probability below 6 %; of these seeds there is none.
    """
    lost = sum(run(honest([3, seed]))["n_thrown_out"] > 0 for seed in range(60))
    assert lost == 0


def test_honest_workers_that_differ_in_few_directions_do_not():
    """What `dimension` warns of: all but certain in 4 directions."""
    found = [run(honest([9, seed], directions=4)) for seed in range(20)]
    assert sum(each["n_thrown_out"] > 0 for each in found) > 10
    assert all(each["dimension"] < 5 for each in found)


def test_distances_are_in_units_of_the_limit():
    gradient = honest(4)
    found = run(gradient, threshold_long=40.0, threshold_short=1e9, long=T, warm_up=1)
    sums = gradient.cumsum(axis=0) / N
    apart = np.linalg.norm(sums[:, :, None] - sums[:, None], axis=-1)
    enough = (apart <= 40).sum(axis=2) >= N / 2
    median = enough.argmax(axis=1)
    expected = apart[np.arange(T), median] / 80
    # Gradients are rounded to float32: 250 terms of a few units, of distances of some units.
    np.testing.assert_allclose(found["distance_long"], expected, rtol=0, atol=1e-6)


def test_reset_takes_everybody_back():
    gradient = honest(5)
    gradient[:100, 0] *= -1
    kept, back = run(gradient), run(gradient, reset=True)
    assert kept["thrown_out_at"][0] == back["thrown_out_at"][0]
    assert np.isnan(kept["distance_long"][120:, 0]).all()
    assert np.isfinite(back["distance_long"][120:200, 0]).all()


def test_after_all_but_one_are_thrown_out_a_reset_begins_anew():
    """Who is thrown out in the first window looks at nobody until the second."""
    gradient = honest(5)
    # Less than the noise between honest workers: all but one go as soon as they are looked at.
    strict = {"threshold_short": 1e9, "threshold_long": 1e-3, "long": 50, "warm_up": 5}
    for reset, looked in ((False, 5), (True, 25)):
        found = run(gradient, reset=reset, **strict)
        assert (found["n_steps"], found["stopped_at"]) == (looked, 50)
        distances = np.isfinite(found["distance_long"]).any(axis=1)
        assert np.flatnonzero(distances).tolist() == list(range(4, T, 50))[: looked // 5]
    assert found["n_thrown_out"] == N - 1


def test_who_is_taken_back_is_judged_by_what_comes_after():
    """A short window that goes on over a reset would hold the sums of the others alone."""
    gradient = honest(5) + 5
    gradient[:30, 0] *= -1
    found = run(gradient, reset=True, short=20, long=50, warm_up=5)
    assert np.flatnonzero(np.isfinite(found["thrown_out_at"])).tolist() == [0]
    assert np.isfinite(found["distance_short"][60:, 0]).any()
    # Back from row 50 on, and honest: in no window out again.
    assert np.isfinite(found["distance_short"][54:70, 0]).all()


def test_one_that_ends_early_is_missing_and_not_thrown_out():
    gradient = honest(6)
    gradient[77:, 3] = np.nan
    found = run(gradient)
    assert (found["n_missing"], found["n_thrown_out"]) == (1, 0)
    assert np.isfinite(found["distance_long"][20:77, 3]).any()
    assert np.isnan(found["distance_long"][77:, 3]).all()
    without = run(np.delete(gradient[77:], 3, axis=1))
    assert without["n_workers"] == N - 1


def test_effective_dimension_is_that_of_the_covariance():
    rng = np.random.default_rng(7)
    scales = np.geomspace(1, 0.1, 20)
    truth = np.sum(scales**2) ** 2 / np.sum(scales**4)
    g = rng.standard_normal((4_000, 8, 20)) * scales + rng.standard_normal((4_000, 1, 20))
    # Of 28,000 degrees of freedom: relative error of a few times 1 / sqrt(28,000) = .6 %.
    assert effective_dimension(g) == pytest.approx(truth, rel=0.02)
    few = byzantine(g[None, :100, :, :3], np.arange(100))
    result = byzantine(honest(8)[None], np.arange(T))
    assert few["dimension"][0] < 3 < 50 < result["dimension"][0]


@pytest.mark.parametrize(
    ("gradient", "status"),
    [
        (honest(0)[:, :2], Status.TOO_FEW_SAMPLES),
        (honest(0)[:5], Status.TOO_FEW_SAMPLES),
        (np.zeros((T, N, K)), Status.CONSTANT_INPUT),
        (np.full((T, N, K), np.nan), Status.NON_FINITE_INPUT),
    ],
)
def test_what_cannot_be_said_says_why(gradient, status):
    found = run(gradient)
    assert found["status"] == status
    assert np.isnan(found["thrown_out_at"]).all()


@pytest.mark.parametrize("lost", [[0, 1, 2], [90], [249]])
def test_steps_at_which_nobody_has_a_gradient_are_left_out(lost):
    """A scaled loss that overflows: as if these steps had not been, and nobody is lost by them."""
    gradient = honest(1)
    gradient[:, 2] *= -1
    gradient[lost] = np.inf
    found, without = run(gradient), run(np.delete(gradient, lost, axis=0))
    kept = np.delete(np.arange(T), lost)
    assert (found["status"], found["n_missing"], found["n_steps"]) == (0, 0, T - len(lost))
    for name in ("distance_short", "distance_long"):
        np.testing.assert_array_equal(found[name][kept], without[name])
        assert np.isnan(found[name][lost]).all()
    at = np.where(np.isnan(without["thrown_out_at"]), 0, without["thrown_out_at"]).astype(int) // 10
    expected = np.where(np.isnan(without["thrown_out_at"]), np.nan, 10.0 * kept[at])
    np.testing.assert_array_equal(found["thrown_out_at"], expected)
    assert np.isfinite(expected[2])
    assert np.isfinite(found["closest_call"])


def test_says_where_nobody_was_left_to_look_at():
    warnings = said(honest(1), threshold_long=1e-3, warm_up=5)[2]
    words = "At step 5 fewer than two workers were left .* looked at 5 steps in all"
    assert any(re.search(words, each) for each in warnings)
    assert not any("fewer than two" in each for each in said(honest(1))[2])


def said(gradient, **options):
    found = byzantine(gradient[None], np.arange(len(gradient)), **options)
    dims = {each.name: each.dims for each in ANALYSIS.outputs}
    result = xr.Dataset(
        {name: (dims[name], array) for name, array in found.items()}, {"layer": ["network"]}
    )
    told = finding(result)
    return told.sentence, found, told.warnings


def test_says_how_close_others_came_and_never_nan():
    sentence, found, _ = said(honest(1))
    nearest, error = found["closest_call"][0], found["closest_call_se"][0]
    assert f"came to {nearest:.2f} ± {error:.2f} of the limit" in sentence
    ending = honest(1)
    ending[:, 7] *= -1
    for worker in range(7):
        ending[200 + worker :, worker] = np.nan
    sentence, found, _ = said(ending)
    assert np.isnan(found["closest_call"][0])
    assert "1 would have been thrown out: 7" in sentence
    assert "nobody else has finite gradients to the end" in sentence


@pytest.mark.slow
def test_memory_is_bounded_for_many_workers():
    """Distances of 400 x 400 pairs take 1.3 MB a step: of 128 steps 164 MB, several times."""
    gradient = np.random.default_rng(0).standard_normal((1, 130, 400, 4)).astype(np.float32)
    tracemalloc.start()
    byzantine(gradient, np.arange(130))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * BLOCK_BYTES


def test_declares_what_it_returns():
    assert set(run(honest(0))) == {each.name for each in ANALYSIS.outputs}
