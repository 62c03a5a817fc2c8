"""Trees against scipy and exact lengths; dimensions of sets whose dimension is known."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from tracelab.errors import UsageError
from tracelab.stats import dimension as module
from tracelab.stats import levy
from tracelab.stats.dimension import (
    default_sizes,
    persistent_homology_dimension,
    tree_length,
)
from tracelab.typing import Status


def estimate(points, **options):
    return persistent_homology_dimension(points, **{"seed": 0, "repeats": 4} | options)


def cantor(levels):
    """Left ends of the intervals of Cantor's construction: 2^levels points."""
    points = np.zeros(1)
    for level in range(1, levels + 1):
        points = np.concatenate([points, points + 2 * 3.0**-level])
    return np.sort(points)[:, None]


def crinkled(n, hurst):
    """A path in which any two points are exactly |i - j|^hurst apart: no tree beats the path."""
    i = np.arange(1, n)
    covariance = (
        i[:, None] ** (2 * hurst) + i ** (2 * hurst) - np.abs(i[:, None] - i) ** (2 * hurst)
    ) / 2
    return np.concatenate([np.zeros((1, n - 1)), np.linalg.cholesky(covariance)])


def expected_length(n, size, hurst):
    """Of a random subset of a crinkled path: a pair k apart is kept with none in between."""
    k = np.arange(1, n - size + 2)
    log_share = special.gammaln(n - k) - special.gammaln(n - k - size + 2)
    log_share += special.gammaln(n - size + 1) - special.gammaln(n + 1)
    log_share += math.log(size) + math.log(size - 1)
    return float(np.sum((n - k) * np.exp(log_share) * k**hurst))


def chain_dimension(n, hurst, sizes):
    """What the exact lengths of a crinkled path of dimension 1 / hurst read at these sizes."""
    lengths = [expected_length(n, size, hurst) for size in sizes]
    return 1 / (1 - np.polyfit(np.log(sizes), np.log(lengths), 1)[0])


def test_examples():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("n", "d", "power"), [(2, 1, 1.0), (60, 1, 0.5), (80, 3, 1.0), (50, 20, 2)]
)
def test_length_is_scipys(n, d, power):
    points = np.random.default_rng(n).standard_normal((3, n, d))
    edges = [minimum_spanning_tree(cdist(cell, cell)).data for cell in points]
    wanted = [np.sum(each**power) for each in edges]
    np.testing.assert_allclose(tree_length(points, power), wanted, rtol=1e-12)


def test_length_on_a_line_is_the_sum_of_gaps():
    points = np.random.default_rng(1).random((2, 100, 1))
    gaps = np.diff(np.sort(points[..., 0]), axis=-1)
    np.testing.assert_allclose(tree_length(points, 0.3), (gaps**0.3).sum(axis=-1), rtol=1e-12)


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0])
def test_length_of_cantor_sets(power):
    """E_k = 2 3^-a E_{k-1} + (1/3 + 3^-k)^a: two thirds of size, joined over the middle gap."""
    wanted = 0.0
    for level in range(1, 9):
        wanted = 2 * 3.0**-power * wanted + (1 / 3 + 3.0**-level) ** power
        assert tree_length(cantor(level), power) == pytest.approx(wanted, rel=1e-10)


def test_points_that_coincide_and_single_ones():
    assert tree_length(np.zeros((5, 3))) == 0
    assert tree_length(np.array([[0.0], [1.0], [0.0], [1.0]])) == 1
    assert tree_length(np.zeros((1, 3))) == 0
    assert np.isnan(tree_length(np.array([[0.0], [np.nan]])))


@pytest.mark.parametrize("hurst", [1 / 1.2, 1 / 1.5, 0.5, 0.25])
def test_crinkled_paths_read_what_their_exact_lengths_say(hurst):
    """Orders are the only chance left; n from 400: 4 standard errors of 6 seeds (t: 0.5 %)."""
    n = 400
    sizes = default_sizes(n)
    points = crinkled(n, hurst)
    found = np.array([estimate(points, seed=seed).dimension for seed in range(6)])
    error = found.std(ddof=1) / math.sqrt(6)
    assert abs(found.mean() - chain_dimension(n, hurst, sizes)) < 4 * error
    # And that is near the truth: at most 0.2 of it.
    assert abs(chain_dimension(n, hurst, sizes) * hurst - 1) < 0.2


def test_lengths_of_crinkled_paths_by_size():
    """The mean over 200 orders of exact lengths; five standard errors of it."""
    n, sizes = 300, (30, 60, 120)
    points = crinkled(n, 0.5)
    rng = np.random.default_rng(5)
    for size in sizes:
        lengths = [tree_length(points[rng.permutation(n)[:size]]) for _ in range(200)]
        error = np.std(lengths, ddof=1) / math.sqrt(200)
        assert abs(np.mean(lengths) - expected_length(n, size, 0.5)) < 5 * error


@pytest.mark.parametrize("d", [1, 2, 3])
def test_flat_tori(d):
    """Circles and their products have no edge; chords of spacing s are shorter by s^2 / 24.

    With spacing 2 pi n^(-1/d), lengths at the smallest size are off by that share more than at
    the largest, and the slope by no more than it over the logarithm of their ratio. On a circle
    the tree lacks the largest gap besides, a share H_n / n. Five standard errors of 8 sets on top.
    """
    sizes = (300, 400, 550, 750, 1_000)
    found = []
    for seed in range(8):
        angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, (1_200, d))
        points = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
        found.append(float(estimate(points, sizes=sizes, seed=seed, repeats=2).slope))
    bias = (2 * np.pi) ** 2 * sizes[0] ** (-2 / d) / 24
    if d == 1:
        bias += (math.log(sizes[0]) + 0.5772) / sizes[0]
    bias /= math.log(sizes[-1] / sizes[0])
    off = np.mean(found) - (1 - 1 / d)
    assert abs(off) < bias + 5 * np.std(found, ddof=1) / math.sqrt(8)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_cubes(d):
    """The edge: a share d n^(-1/d) lies half a spacing from it, and changes by its own length.

    So E(n) = C n^(1 - 1/d) (1 + b n^(-1/d)) with |b| <= d, and slopes are off by |b| / d n^(-1/d)
    at most, n the smallest size.
    """
    found = []
    for seed in range(8):
        points = np.random.default_rng(seed).random((1_000, d))
        found.append(float(estimate(points, seed=seed).slope))
    off = np.mean(found) - (1 - 1 / d)
    bias = default_sizes(1_000)[0] ** (-1 / d)
    assert abs(off) < bias + 5 * np.std(found, ddof=1) / math.sqrt(8)


@pytest.mark.parametrize(("copies", "power"), [(1, 0.3), (2, 1.0)])
def test_random_points_of_cantor_sets(copies, power):
    """Of dimension log 2 / log 3 a copy.

    E(n) = A (n^s - 1) with s the slope, as the exact recursion has it for whole levels (it begins
    at 0 of one point), has the slope s / (1 - n^-s) at n points: no further off than at the
    smallest size. Sizes span whole periods: a level more is 2 or 4 times the points.
    """
    dimension = copies * math.log(2) / math.log(3)
    sizes = (64, 128, 256, 512) if copies == 1 else (32, 64, 128, 256, 512)
    found = []
    for seed in range(8):
        digits = np.random.default_rng(seed).integers(0, 2, (1_000, copies, 34))
        points = (2 * digits * 3.0 ** -np.arange(1, 35)).sum(axis=-1)
        found.append(float(estimate(points, sizes=sizes, power=power, seed=seed).slope))
    s = 1 - power / dimension
    bias = s / (sizes[0] ** s - 1)
    off = np.mean(found) - s
    assert abs(off) < bias + 5 * np.std(found, ddof=1) / math.sqrt(8)


@pytest.mark.parametrize(("alpha", "d"), [(2.0, 3), (2.0, 10), (1.8, 10), (1.5, 3), (1.5, 10)])
def test_levy_paths(alpha, d):
    """min(alpha, d), but for the steps of a path, as exact lengths of crinkled paths have them.

    Those have no shortcuts, so that theirs is the larger bias; five standard errors of 12 paths.
    """
    n = 1_000
    rng = np.random.default_rng(17)
    steps = levy.draws(alpha, d, (12, n), "isotropic", rng)
    found = [float(estimate(path.cumsum(axis=0), seed=i).dimension) for i, path in enumerate(steps)]
    bias = abs(chain_dimension(n, 1 / alpha, default_sizes(n)) - alpha)
    assert abs(np.mean(found) - alpha) < bias + 5 * np.std(found, ddof=1) / math.sqrt(12)


@pytest.mark.slow
def test_standard_errors_are_no_smaller_than_the_scatter():
    """Of 40 squares and 40 Brownian paths: the jackknife's mean variance is not below theirs.

    A variance of 40 values has a relative standard error of sqrt(2/39) = .23: five of them, above
    for paths as well (of independent points the jackknife's is too large, by Efron and Stein).
    """
    squares = [np.random.default_rng(seed).random((600, 2)) for seed in range(40)]
    paths = [
        np.random.default_rng(seed).standard_normal((600, 5)).cumsum(axis=0) for seed in range(40)
    ]
    for kind, sets in (("square", squares), ("path", paths)):
        found = [estimate(points, seed=i) for i, points in enumerate(sets)]
        scatter = np.var([each.slope for each in found], ddof=1)
        mean = np.mean([each.slope_se**2 for each in found])
        assert mean > scatter / (1 + 5 * 0.23)
        if kind == "path":
            assert mean < scatter * (1 + 5 * 0.23)


def test_a_straight_path_has_dimension_one():
    direction = np.random.default_rng(0).standard_normal(6)
    found = estimate(np.linspace(0, 1, 400)[:, None] * direction)
    # Ends are missed: a share 2 / size of the length at the smallest size.
    assert found.dimension == pytest.approx(1, abs=2 / default_sizes(400)[0])
    assert found.status == Status.OK


@given(
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-10, 10),
    seed=st.integers(0, 100),
    power=st.sampled_from([0.5, 1.0]),
)
@settings(max_examples=15, deadline=None)
def test_unit_place_and_rotation_do_not_matter(scale, shift, seed, power):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((120, 3)).cumsum(axis=0)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    one = estimate(points, power=power)
    other = estimate(scale * (points @ rotation + shift), power=power)
    for name in ("dimension", "dimension_se", "curvature", "r2"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(
        other.log_length - one.log_length, power * math.log(scale), atol=1e-8
    )


@pytest.mark.parametrize("exponent", [-600, 600])
def test_squares_that_are_no_numbers_are_not_needed(exponent):
    points = np.random.default_rng(5).standard_normal((120, 3)).cumsum(axis=0)
    one, other = estimate(points), estimate(np.ldexp(points, exponent))
    assert other.status == Status.OK
    assert (other.dimension, other.dimension_se) == (one.dimension, one.dimension_se)
    np.testing.assert_allclose(
        other.log_length - one.log_length, exponent * math.log(2), rtol=1e-12
    )


@given(seed=st.integers(0, 1_000))
@settings(max_examples=15, deadline=None)
def test_the_order_of_points_does_not_matter_to_a_tree(seed):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((40, 4))
    shuffled = points[rng.permutation(40)]
    assert tree_length(shuffled) == pytest.approx(float(tree_length(points)), rel=1e-12)


def test_rows_do_not_know_each_other_and_seeds_decide():
    points = np.random.default_rng(3).standard_normal((2, 2, 150, 3))
    together = estimate(points)
    for cell in np.ndindex(2, 2):
        alone = estimate(points[cell])
        for name in ("dimension", "slope_se", "log_length", "status"):
            np.testing.assert_array_equal(getattr(together, name)[cell], getattr(alone, name))
    assert estimate(points[0, 0], seed=1).slope != estimate(points[0, 0], seed=2).slope


def test_intervals_hold_the_estimate_and_open_where_the_slope_may_be_one():
    found = estimate(np.random.default_rng(4).standard_normal((4, 150, 12)))
    assert (found.status == Status.OK).all()
    assert (found.dimension_low < found.dimension).all()
    assert (found.dimension < found.dimension_high).all()
    assert np.isinf(found.dimension_high).any()


@pytest.mark.parametrize(
    ("points", "status"),
    [
        (np.zeros((200, 2)), Status.CONSTANT_INPUT),
        (np.full((200, 2), np.nan), Status.NON_FINITE_INPUT),
        (np.r_[np.full((1, 2), np.inf), np.ones((199, 2))], Status.NON_FINITE_INPUT),
        (np.random.default_rng(0).random((99, 2)), Status.TOO_FEW_SAMPLES),
        (np.eye(200), Status.NOT_CONVERGED),
    ],
)
def test_what_has_no_dimension_says_why(points, status):
    found = estimate(points)
    assert found.status == status
    assert np.isnan(found.dimension)
    assert np.isnan(found.log_length).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (10, 20)}, "at least three different numbers from 2 to 180"),
        ({"sizes": (10, 20, 181)}, "nine tenths of the 200 points"),
        ({"sizes": (1, 20, 40)}, "from 2 to 180"),
        ({"power": 0.0}, "power must be above 0"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_what_cannot_be_asked_for(options, message):
    with pytest.raises(UsageError, match=message):
        estimate(np.zeros((200, 2)), **options)


def test_points_need_two_dimensions():
    with pytest.raises(UsageError, match="as one column"):
        tree_length(np.zeros(5))
