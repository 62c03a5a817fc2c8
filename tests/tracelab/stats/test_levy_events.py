import math

import numpy as np
import pytest
import scipy.stats
from scipy import special
from scipy.integrate import quad

from tracelab.stats import _levy_events, _levy_interval, levy
from tracelab.stats._levy_bridge import crossing
from tracelab.stats._levy_jumps import ladder
from tracelab.stats._levy_words import exponentials, normal, normals, uniform
from tracelab.stats._stable_inverse import new_key, new_keys

# Means at the default resolution are off by less (measured: .5 % at most).
BIAS = 0.0075
# Beyond this many standard errors an unbiased mean of one test of a hundred would not come to lie.
FAR = 4.0


def in_a_well(alpha, scale, curvature, dim=1, start=0.0):
    """Return the mean exit time from the unit ball of a quadratic well, isotropic noise.

    Galerkin's method for ``-scale^alpha (-Delta)^(alpha/2) u - curvature r u' = -1`` in functions
    ``(1 - r^2)^(alpha/2) P_n(2 r^2 - 1)``, Jacobi's polynomials, of which the fractional Laplacian
    makes multiples of P_n (Dyda, Kuznetsov, Kwasnicki, "Fractional Laplace operator and Meijer
    G-function", Constructive Approximation 45, 2017). At the boundary u has powers that the
    functions have not: the error falls as a power of their number, and is extrapolated.
    """
    s, b = 0.5 * alpha, 0.5 * dim - 1

    def with_functions(n):
        k = np.arange(n)
        factor = 2**alpha * np.exp(
            special.gammaln(1 + s + k)
            + special.gammaln(1 + s + b + k)
            - special.gammaln(k + 1)
            - special.gammaln(1 + b + k)
        )
        square = np.exp(
            (s + b + 1) * np.log(2)
            - np.log(2 * k + s + b + 1)
            + special.gammaln(k + s + 1)
            + special.gammaln(k + b + 1)
            - special.gammaln(k + s + b + 1)
            - special.gammaln(k + 1)
        )
        y, weight = special.roots_jacobi(2 * n + 10, 2 * s - 1, b)
        p = special.eval_jacobi(k[:, None], s, b, y)
        slope = (
            0.5 * (k[:, None] + s + b + 1) * special.eval_jacobi(k[:, None] - 1, s + 1, b + 1, y)
        )
        slope[0] = 0
        # r d/dr = 2 (1 + y) d/dy
        drift = 2 * (1 + y) * (0.5 * (1 - y) * slope - 0.5 * s * p)
        matrix = curvature * ((p * weight) @ drift.T) / 2 ** (2 * s - 1)
        matrix += np.diag(scale**alpha * factor * square / 2**s)
        right = np.zeros(n)
        right[0] = square[0] / 2**s
        unit = 1 / np.sqrt(square)
        found = unit * np.linalg.solve(matrix * unit * unit[:, None], unit * right)
        values = special.eval_jacobi(k, s, b, 2 * start**2 - 1)
        return (1 - start**2) ** s * (found @ values)

    few, more, most = (with_functions(n) for n in (60, 120, 240))
    ratio = (most - more) / (more - few)
    rest = (most - more) * ratio / (1 - ratio)
    # What is extrapolated is no more than a sixth of the tolerance of the tests.
    assert abs(rest) < BIAS / 6 * most or alpha < 1.3
    return most + rest


def test_the_solution_in_a_well_is_getoors_without_one_and_kramers_with_brownian_noise():
    assert in_a_well(1.5, 1.0, 1e-9, 3, 0.5) == pytest.approx(levy.mean_exit_time(1.5, 1, 0.5, 3))

    # 2 int_0^1 exp(y^2 / 2) int_0^y exp(-z^2 / 2) dz dy in units of the noise (Gardiner 2009,
    # eq. 5.5.21).
    def inner(y):
        return math.exp(2 * y * y) * quad(lambda z: math.exp(-2 * z * z), 0, y)[0]

    assert in_a_well(2.0, 0.5, 1.0) == pytest.approx(quad(inner, 0, 1)[0] / 0.25, rel=1e-6)


@pytest.mark.parametrize(
    ("alpha", "scale"),
    [
        *((alpha, None) for alpha in (1.1, 1.3, 1.5, 1.7, 1.9, 2.0)),
        *((alpha, 0.3) for alpha in (1.1, 1.3, 1.5)),
        pytest.param(1.7, 0.3, marks=pytest.mark.slow),
        # Below, and with less noise, the reference has too thin a boundary layer.
        *((alpha, 0.1) for alpha in (1.5, 1.7, 1.9)),
        pytest.param(2.0, 0.4, marks=pytest.mark.slow),
    ],
)
def test_bias_of_means_in_an_interval(alpha, scale):
    curvature = 0.0 if scale is None else 1.0
    scale = 1.0 if scale is None else scale
    exact = in_a_well(alpha, scale, curvature) if curvature else float(levy.mean_exit_time(alpha))
    found = levy.exit_times(
        alpha, 1.0, 200_000, 1, levy.Quadratic(curvature), scale=scale, refine=False
    )
    assert abs(found.mean - exact) < BIAS * exact + FAR * found.mean_se


@pytest.mark.parametrize("alpha", [1.3, 1.8, 2.0])
@pytest.mark.parametrize(
    ("dim", "start"),
    [(2, 0.0), (2, 0.7), (3, 0.0), pytest.param(20, 0.3, marks=pytest.mark.slow)],
)
def test_bias_of_means_in_a_ball(alpha, dim, start):
    found = levy.exit_times(
        alpha, replicas=20_000, seed=2, region=levy.Ball(), dim=dim, noise="isotropic",
        start=[start] + [0.0] * (dim - 1), refine=False,
    )  # fmt: skip
    exact = float(levy.mean_exit_time(alpha, 1.0, start, dim))
    # Spheres are met as planes: to 1 % in 20 dimensions.
    assert abs(found.mean - exact) < max(BIAS, 0.01 * (dim == 20)) * exact + FAR * found.mean_se


@pytest.mark.parametrize(("alpha", "scale"), [(1.5, 0.3), (1.8, 0.2), (2.0, 0.5)])
def test_bias_of_means_in_a_round_well(alpha, scale):
    exact = in_a_well(alpha, scale, 1.0, 2)
    found = levy.exit_times(
        alpha, 1.0, 20_000, 3, levy.Quadratic(1.0), scale=scale, region=levy.Ball(), dim=2,
        noise="isotropic", refine=False,
    )  # fmt: skip
    assert abs(found.mean - exact) < BIAS * exact + FAR * found.mean_se


def test_a_box_of_independent_coordinates_is_left_by_the_first():
    one = levy.exit_times(1.5, 1.0, 40_000, 4, levy.Quadratic(1.0), scale=0.4, refine=False)
    three = levy.exit_times(
        1.5, 1.0, 20_000, 5, levy.Quadratic(1.0), scale=0.4, dim=3, refine=False
    )
    first = one.times[:39_999].reshape(-1, 3).min(axis=1)
    assert scipy.stats.ks_2samp(first, three.times).pvalue > 1e-3
    assert (
        scipy.stats.ks_2samp(np.abs(three.places).max(axis=1), np.abs(one.places[:, 0])).pvalue
        > 1e-3
    )


def test_isotropic_noise_leaves_a_slab_as_its_coordinate():
    # A coordinate of isotropic noise is stable noise: a box that is infinite but in one
    # coordinate is an interval.
    slab = levy.exit_times(
        1.5, replicas=20_000, seed=6, dim=3, noise="isotropic", refine=False,
        region=levy.Box([-np.inf, -1.0, -np.inf], [np.inf, 1.0, np.inf]),
    )  # fmt: skip
    exact = float(levy.mean_exit_time(1.5))
    assert abs(slab.mean - exact) < BIAS * exact + FAR * slab.mean_se


def test_sides_at_infinity_change_nothing():
    one = levy.exit_times(1.5, replicas=20_000, seed=15, refine=False)
    two = levy.exit_times(
        1.5, replicas=20_000, seed=16, dim=2, region=levy.Box([-1, -np.inf], [1, np.inf]),
        refine=False,
    )  # fmt: skip
    assert scipy.stats.ks_2samp(one.times, two.times).pvalue > 1e-3
    well = {"potential": levy.Quadratic(1.0), "scale": 0.4, "replicas": 20_000, "refine": False}
    half = levy.exit_times(1.5, seed=17, region=levy.Box(-np.inf, 1.0), **well)
    # Of jumps as long as this one of a hundred million would come first.
    wide = levy.exit_times(1.5, seed=18, region=levy.Box(-1e5, 1.0), **well)
    assert scipy.stats.ks_2samp(half.times, wide.times).pvalue > 1e-3


def test_a_way_down_the_well_past_a_side_is_seen():
    # For dx = -x dt + sqrt(2) s dB the mean time to a lower level c from x is the integral from c
    # to x of int_y^inf exp((y^2 - z^2) / 2 s^2) dz / s^2 (Gardiner 2009, eq. 5.5.24).
    noise, low, start = 0.1, -0.2, 1.5

    def inner(y):
        # exp(t^2) erfc(t) is erfcx.
        return math.sqrt(math.pi / 2) * special.erfcx(y / (noise * math.sqrt(2))) / noise

    exact = quad(inner, low, start)[0]
    found = levy.exit_times(
        2.0, replicas=20_000, seed=19, potential=levy.Quadratic(1.0), scale=noise, start=start,
        region=levy.Box(low, 3.0), refine=False,
    )  # fmt: skip
    assert abs(found.mean - exact) < BIAS * exact + FAR * found.mean_se


@pytest.mark.parametrize(
    ("alpha", "curvature", "scale"), [(1.5, 0.0, 1.0), (1.7, 1.0, 0.3), (1.3, 1.0, 0.1), (2, 2, 1)]
)
def test_one_dimension_is_the_general_kernel_draw_by_draw(alpha, curvature, scale):
    start, low, high = np.array([0.1]), np.array([-1.0]), np.array([1.3])
    bend, scales = np.array([float(curvature)]), np.array([float(scale)])
    rungs = ladder(
        np.array([float(alpha)]), scales, bend, 0.5 * (high - low),
        np.minimum(start - low, high - start), None, False, 0.5,
    )  # fmt: skip
    keys = new_keys(3, np.random.default_rng(7))
    longest = 1e4 / curvature if curvature else math.inf
    rest = rungs, longest, 50.0, 10_000
    times, places, censored = np.empty((2, 600)), np.empty((2, 600, 1)), np.empty((2, 600), bool)
    strides = (
        _levy_interval.exits(
            0.1, float(curvature), float(scale), -1.0, 1.3, *rest, keys.copy(), 256, times[0],
            places[0, :, 0], censored[0],
        ),
        _levy_events.exits(
            start, bend, scales, False, _levy_events.BOX, low, high, *rest, keys.copy(), 256,
            times[1], places[1], censored[1],
        ),
    )  # fmt: skip
    assert strides[0] == strides[1]
    # Compilers may fuse a product and a sum in one and not in the other.
    np.testing.assert_allclose(times[0], times[1], rtol=1e-9)
    np.testing.assert_allclose(places[0], places[1], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(censored[0], censored[1])


@pytest.mark.parametrize("alpha", [0.7, 1.2, 1.8, 2.0])
@pytest.mark.parametrize("dim", [1, 3])
def test_the_ladder_keeps_cumulants(alpha, dim):
    """Of all jumps up to a length, the integrals of ``r^p`` over the Levy measure."""
    one, none = np.ones(dim), np.zeros(dim)
    parts = ladder(np.full(dim, alpha), one, none, one, one, None, dim > 1, 0.5)
    tail = (
        2**alpha
        * math.gamma((dim + alpha) / 2)
        / math.gamma(dim / 2)
        * special.rgamma(1 - alpha / 2)
    )
    for rung in (0, 3, parts.rate.shape[1] - 1):
        cutoff, rate = parts.cutoff[0, rung], parts.rate[0, rung]
        above = rate * parts.share[0, rung]
        assert above == pytest.approx(tail * cutoff**-alpha, rel=1e-12)
        for power in (2, 4, 6):
            measure = (
                alpha * tail / (power - alpha) * cutoff ** (power - alpha)
                if alpha < 2
                else 2.0 * (power == 2)
            )
            found = (rate - above) * (parts.atom[0] * cutoff) ** power
            if power == 2:
                found += dim * parts.diffusion[0, rung]
                measure = measure if alpha < 2 else 2.0 * dim
            assert found == pytest.approx(measure, rel=1e-12, abs=1e-300)


def test_deep_wells_need_no_jumps_of_one_length():
    one = np.ones(1)
    parts = ladder(np.array([1.5]), 0.05 * one, one, one, one, None, False, 0.5)
    assert parts.share[0, 0] == 1
    assert parts.share[0, -1] < 1
    free = ladder(np.array([1.5]), 0.05 * one, 0 * one, one, one, None, False, 0.5)
    assert free.share[0, 0] < 1


def test_random_numbers():
    key = new_key(np.random.default_rng(8))
    for draw, law in ((exponentials, scipy.stats.expon), (normals, scipy.stats.norm)):
        x = np.empty(200_000)
        draw(key, x)
        assert scipy.stats.kstest(x, law.cdf).pvalue > 1e-3
        # Neighbours are independent: their correlation has a standard error of n^(-1/2).
        assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < FAR / math.sqrt(x.size)
    few = [normal(key) for _ in range(5000)]
    assert scipy.stats.kstest(few, "norm").pvalue > 1e-3
    assert scipy.stats.kstest([uniform(key) for _ in range(5000)], "uniform").pvalue > 1e-3


def test_bridges_cross_as_brownian_motions_do():
    """A Brownian motion passes a level a at a time with the law of ``a^2 / z^2``, z normal."""
    key = new_key(np.random.default_rng(9))
    level, variance = 0.7, 1.3
    ends = np.sqrt(variance) * np.random.default_rng(10).standard_normal(10_000)
    parts = np.array([crossing(level, level - end, variance, 0.0, key) for end in ends])

    def law(p):
        return 2 * scipy.stats.norm.sf(level / np.sqrt(variance * p))

    crossed = parts[parts <= 1]
    share = law(1.0)
    assert crossed.size / ends.size == pytest.approx(
        share, abs=FAR * math.sqrt(share * (1 - share) / ends.size)
    )
    assert scipy.stats.kstest(crossed, lambda p: law(p) / share).pvalue > 1e-3


@pytest.mark.parametrize("noise", ["independent", "isotropic"])
def test_a_level_of_a_quadratic_is_an_ellipsoid(noise):
    well = levy.Quadratic([1.0, 4.0, 9.0])
    common = {
        "alpha": 1.6, "replicas": 3000, "potential": well, "dim": 3, "noise": noise, "scale": 0.5,
        "start": [0.2, 0.0, 0.1], "refine": False,
    }  # fmt: skip
    level = levy.exit_times(seed=11, region=levy.Sublevel(well, 0.5), method="events", **common)
    ball = levy.exit_times(seed=11, region=levy.Ball(1.0, [1, 1 / 2, 1 / 3]), **common)
    np.testing.assert_array_equal(level.times, ball.times)
    assert (well.value(level.places) >= 0.5 * (1 - 1e-12)).all()


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["independent", "isotropic"])
def test_levels_of_a_quadratic_agree_with_the_grid(noise):
    curvature = np.geomspace(1, 4, 8)
    well = levy.Quadratic(curvature)
    common = {
        "alpha": 1.5, "replicas": 3000, "potential": well, "dim": 8, "noise": noise, "scale": 0.2,
        "region": levy.Sublevel(well, 0.5), "refine": False,
    }  # fmt: skip
    events = levy.exit_times(seed=12, method="events", **common)
    means = [
        levy.exit_times(seed=seed, method="grid", resolution=step, **common)
        for seed, step in ((13, 8e-3), (14, 2e-3))
    ]
    # The grid's error goes as step^(1/alpha).
    ratio = 4 ** (1 / 1.5)
    limit = (ratio * means[1].mean - means[0].mean) / (ratio - 1)
    error = np.hypot(ratio * means[1].mean_se, means[0].mean_se) / (ratio - 1)
    assert abs(events.mean - limit) < BIAS * limit + FAR * np.hypot(error, events.mean_se)


def test_a_level_that_is_no_ellipsoid_is_left_to_the_grid():
    flat = levy.Quadratic([1.0, 0.0])
    with pytest.raises(levy.UsageError, match="does not take the region Sublevel"):
        levy.exit_times(1.5, dim=2, region=levy.Sublevel(flat, 0.5), method="events")
