"""Exits of the recursion against integral equations, random walks and a plain loop."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quadrature import mean_by_quadrature
from scipy import stats

from tracelab.errors import UsageError
from tracelab.stats import stable
from tracelab.stats.descent import GaussianNoise, RecordedNoise, StableNoise, exit_steps

N = 4000


@pytest.mark.parametrize("curvature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    ("noise", "density"),
    [
        (GaussianNoise([[0.25]]), stats.norm(scale=0.5).pdf),
        (StableNoise([1.0], [0.1]), stats.cauchy(scale=0.1).pdf),
        (StableNoise([1.5], [0.2]), lambda x: stable.pdf(x, 1.5, 0, 0, 0.2)),
        (StableNoise([2.0], [0.5 / math.sqrt(2)]), stats.norm(scale=0.5).pdf),
    ],
)
def test_mean_is_that_of_the_integral_equation(curvature, noise, density):
    found = exit_steps([curvature], 0.4, noise, replicas=N, max_steps=10**6, seed=3)
    assert not found.censored.any()
    expected = mean_by_quadrature(density, curvature, 0.4)
    se = found.times.std(ddof=1) / math.sqrt(N)
    assert abs(found.times.mean() - expected) < 4 * se
    # A few percent: the test can tell.
    assert se < 0.05 * expected


def test_recorded_noise_is_drawn_with_replacement():
    samples = np.array([[0.7], [-0.2], [0.05]])

    def density(edge):
        return mean_by_walk(samples[:, 0], 0.5, edge)

    found = exit_steps([0.5], 0.25, RecordedNoise(samples), replicas=N, seed=1)
    loop = density(0.25)
    spread = math.hypot(found.times.std(ddof=1), loop.std(ddof=1)) / math.sqrt(N)
    assert abs(found.times.mean() - loop.mean()) < 4 * spread


def mean_by_walk(values, curvature, barrier, gradient=0.0, beta=0.0, clip=math.inf):
    rng = np.random.default_rng(99)
    times = []
    for _ in range(N):
        z = m = 0.0
        step = 0
        while z * gradient + 0.5 * curvature * z * z < barrier:
            g = gradient + curvature * z + rng.choice(values)
            g *= min(1.0, clip / abs(g)) if g else 1.0
            m = beta * m + (1 - beta) * g
            z -= m
            step += 1
        times.append(step)
    return np.array(times)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"gradient": 0.1}, {"beta": 0.8}, {"clip": 0.3}, {"beta": 0.5, "clip": 0.4}]
)
def test_gradient_momentum_and_clipping_are_those_of_a_plain_loop(options):
    samples = np.array([0.7, -0.6, 0.3, -0.4])
    loop = mean_by_walk(samples, 0.5, 0.15, **options)
    given = {key: value for key, value in options.items() if key != "beta"}
    found = exit_steps(
        [0.5], 0.15, RecordedNoise(samples[:, None]), replicas=N, seed=1,
        memory=1 / (1 - options.get("beta", 0.0)), **given,
    )  # fmt: skip
    spread = math.hypot(found.times.std(ddof=1), loop.std(ddof=1)) / math.sqrt(N)
    assert abs(found.times.mean() - loop.mean()) < 4 * spread


def test_clipped_steps_make_a_random_walk():
    # Noise far above the clip: steps of +-1, and +-4 is the first place beyond 3.5. E tau = 16.
    h = 1e-9
    found = exit_steps(
        [h], 0.5 * h * 3.5**2, StableNoise([1.2], [1e6]), clip=1.0, replicas=N, seed=2
    )
    assert found.times.min() >= 4
    assert abs(found.times.mean() - 16) < 4 * found.times.std(ddof=1) / math.sqrt(N)
    np.testing.assert_allclose(np.abs(found.places), 4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("clip", "jumps"), [(1.5, 1), (0.7, 2), (0.4, 3)])
def test_clipped_exits_take_the_order_of_the_rate_that_theory_says(clip, jumps):
    """Wang, Oh and Rhee (2022): steps grow like the rate to the power -(1 + (alpha - 1) l*).

    x' = x - clip(rate (x + Z)) from 0 to 1, with Z of tail index 1.3: l* = ceil(1 / clip).
    """
    alpha, rates, logs = 1.3, np.array([0.04, 0.01]), []
    for rate in rates:
        noise = StableNoise([alpha], [0.4 * rate])
        found = exit_steps(
            [rate], 0.5 * rate, noise, clip=clip, replicas=400, max_steps=10**7, seed=4
        )
        assert not found.censored.any()
        logs.append(math.log(found.times.mean()))
    slope = -np.diff(logs)[0] / np.diff(np.log(rates))[0]
    # 400 exponential times a rate: .05 of each log mean.
    error = 0.05 * math.sqrt(2) / math.log(4)
    assert slope == pytest.approx(1 + (alpha - 1) * jumps, abs=4 * error)


def test_correlated_noise_leaves_along_its_direction():
    covariance = 0.1 * np.array([[1.0, 0.99], [0.99, 1.0]])
    found = exit_steps([0.2, 0.2], 1.0, GaussianNoise(covariance), replicas=500)
    assert (np.sign(found.places[:, 0]) == np.sign(found.places[:, 1])).mean() > 0.95
    rise = 0.1 * (found.places**2).sum(axis=1)
    assert (rise[~found.censored] >= 1.0).all()


def test_censored_and_unstable():
    still = exit_steps([0.5], 1e6, GaussianNoise([[1.0]]), replicas=7, max_steps=50)
    assert still.censored.all()
    assert (still.times == 50).all()
    # A curvature above 2 is left without end, by oscillating outwards.
    wild = exit_steps([3.0], 10.0, GaussianNoise([[1e-6]]), replicas=50)
    assert not wild.censored.any()
    assert wild.times.max() < 60


@given(seed=st.integers(0, 100), factor=st.floats(0.01, 100))
def test_scale_of_loss_changes_nothing(seed, factor):
    noise = np.array([[0.3, -0.1], [-0.3, 0.1], [0.2, 0.2], [-0.2, -0.2]])
    one = exit_steps([0.5, 0.2], 0.3, RecordedNoise(noise), replicas=5, seed=seed)
    root = math.sqrt(factor)
    other = exit_steps([0.5, 0.2], 0.3 * factor, RecordedNoise(noise * root), replicas=5, seed=seed)
    # At the barrier rounding may decide; so small a step is rare.
    assert (one.times == other.times).mean() >= 0.8
    np.testing.assert_array_equal(
        one.times, exit_steps([0.5, 0.2], 0.3, RecordedNoise(noise), replicas=5, seed=seed).times
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"barrier": 0.0}, "barrier must be positive"),
        ({"barrier": math.nan}, "barrier must be positive"),
        ({"curvature": [math.nan]}, "curvature must be finite"),
        ({"curvature": [[1.0]]}, "curvature must be finite numbers, one a coordinate"),
        ({"gradient": [1.0, 2.0]}, "gradient must be one number or one for each"),
        ({"gradient": math.inf}, "gradient must be finite"),
        ({"memory": 0.5}, "memory must be at least 1 step"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"replicas": 0}, "replicas must be an integer of at least 1"),
        ({"max_steps": 2.5}, "max_steps must be an integer"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"noise": GaussianNoise([[1.0, 0.0], [0.0, 1.0]])}, "covariance must be of shape"),
        ({"noise": GaussianNoise([[-1.0]])}, "without negative eigenvalues"),
        ({"noise": RecordedNoise([[math.nan]])}, "samples must be finite"),
        ({"noise": RecordedNoise(np.empty((0, 1)))}, "samples must be of shape"),
        ({"noise": StableNoise([2.5], [1.0])}, "alpha"),
    ],
)
def test_bad_arguments_are_named(options, words):
    given = {"curvature": [0.5], "barrier": 1.0, "noise": GaussianNoise([[1.0]]), **options}
    with pytest.raises(UsageError, match=words):
        exit_steps(given.pop("curvature"), given.pop("barrier"), given.pop("noise"), **given)
