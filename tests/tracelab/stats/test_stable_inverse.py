"""Draws from tables of quantiles, against distribution functions that are integrated."""

import math

import numpy as np
import pytest
import scipy.stats

from tracelab.stats import stable
from tracelab.stats._stable_draws import MANY
from tracelab.stats._stable_inverse import inverse, new_key, transform, words

RIGHT = np.uint64(1 << 63)


def probabilities(count):
    """Words, and the p that they stand for: log-uniform from 2^-64, then uniform to 1/2."""
    rng = np.random.default_rng(0)
    p = np.concatenate([np.exp2(-rng.uniform(1, 63, count)), rng.uniform(0, 0.5, count)])
    random = np.append((p * 2.0**64).astype(np.uint64), np.array([0, 2**63 - 1], dtype=np.uint64))
    return random, (random.astype(np.float64) + 0.5) * 2.0**-64


@pytest.mark.parametrize("alpha", [0.5, 0.8, 1.0, 1.3, 1.7, 1.95, 1.9999, 2.0])
def test_symmetric_quantiles(alpha):
    random, p = probabilities(20)
    for side in (np.uint64(0), RIGHT):
        x = np.empty(p.size)
        transform(inverse(alpha, 0.0), random | side, 0.0, 1.0, x)
        found = (stable.sf if side else stable.cdf)(x, alpha, accuracy="exact")
        np.testing.assert_allclose(found, p, rtol=1e-8)


@pytest.mark.parametrize(("alpha", "beta"), [(1.05, 0.3), (1.3, -0.9), (1.6, 0.5), (1.95, 0.9)])
def test_skewed_quantiles(alpha, beta):
    random, p = probabilities(8)
    for side in (np.uint64(0), RIGHT):
        x = np.empty(p.size)
        transform(inverse(alpha, beta), random | side, 0.0, 1.0, x)
        function = stable.sf if side else stable.cdf
        found = function(x, alpha, beta, parametrization="S0", accuracy="exact")
        np.testing.assert_allclose(found, p, rtol=1e-6)


def test_quantiles_ascend():
    random = np.arange(1_000_000, dtype=np.uint64) * np.uint64(2**63 // 999_999)
    for law in ((1.5, 0.0), (1.7, 0.6)):
        x = np.empty(random.size)
        transform(inverse(*law), random, 0.0, 1.0, x)
        assert np.all(np.diff(x) > 0)
        left_end = x[-1]
        transform(inverse(*law), random | RIGHT, 0.0, 1.0, x)
        assert np.all(np.diff(x) < 0)
        # Both end at the median.
        assert x[-1] == pytest.approx(left_end, abs=1e-8)


def test_where_there_is_no_table():
    assert inverse(0.49, 0.0) is None
    assert inverse(1.04, 0.3) is None
    # Light tails.
    for beta in (-1.0, 0.99, 1.0):
        assert inverse(1.2, beta) is None
        x = stable.rvs(1.2, beta, size=MANY, rng=np.random.default_rng(1), parametrization="S0")
        some = np.sort(x[:400])
        each = stable.cdf(some, 1.2, beta, parametrization="S0")
        assert scipy.stats.kstest(each, "uniform").pvalue > 1e-4


def test_words_are_those_of_splitmix64():
    # The published generator from the state 1234567: rosettacode.org, "Splitmix64".
    key = np.array([1234567, 0x9E3779B97F4A7C15], dtype=np.uint64)
    out = np.empty(5, dtype=np.uint64)
    words(key, 0, out)
    assert out.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    later = np.empty(2, dtype=np.uint64)
    words(key, 3, later)
    assert later.tolist() == out[3:].tolist()


def test_keys():
    rng = np.random.default_rng(2)
    keys = [new_key(rng) for _ in range(500)]
    for _, gamma in keys:
        assert int(gamma) & 1
        assert (int(gamma) ^ (int(gamma) >> 1)).bit_count() >= 24
    assert len({tuple(key.tolist()) for key in keys}) == 500


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 0.0), (1.8, 0.5), (2.0, 0.0)])
def test_many_draws_follow_the_distribution(alpha, beta):
    edges_at = np.linspace(0, 1, 201)[1:-1]
    edges = stable.ppf(edges_at, alpha, beta)
    far_at = np.array([1e-4, 1e-5, 1e-6])
    far = stable.ppf(far_at, alpha, -beta), stable.ppf(far_at, alpha, beta)
    counts, beyond, rng = np.zeros(200), np.zeros((2, 3)), np.random.default_rng(3)
    rounds, size = 10, 2_000_000
    for _ in range(rounds):
        x = stable.rvs(alpha, beta, size=size, rng=rng)
        counts += np.bincount(np.searchsorted(edges, x), minlength=200)
        for side, (each, q) in enumerate(zip((x, -x), far, strict=True)):
            beyond[side] += [np.count_nonzero(each > -end) for end in q]
    n = rounds * size
    # Chi-square of 199 degrees of freedom.
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    # Counts beyond: Poisson, 4.5 deviations for 18 comparisons, and 1 where there are few.
    assert np.all(np.abs(beyond - n * far_at) < 4.5 * np.sqrt(n * far_at) + 1)


def test_shape_seed_location_scale_and_parametrization():
    shape = (2, MANY // 2)
    first, second = (
        stable.rvs(1.4, 0.5, 3, 2, shape, np.random.default_rng(4), "S0") for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape == shape
    standard = stable.rvs(1.4, 0.5, size=shape, rng=np.random.default_rng(4), parametrization="S0")
    np.testing.assert_allclose(first, 3 + 2 * standard, rtol=1e-13)
    moved = stable.rvs(1.4, 0.5, size=shape, rng=np.random.default_rng(4))
    tangent = 0.5 * math.tan(0.7 * math.pi)
    np.testing.assert_allclose(moved, standard + tangent, rtol=1e-9, atol=1e-12)
    # The generator has moved on.
    rng = np.random.default_rng(4)
    one, other = (stable.rvs(1.4, size=MANY, rng=rng) for _ in range(2))
    assert not np.isin(one[:100], other).any()
    assert abs(np.corrcoef(np.sign(one), np.sign(other))[0, 1]) < 5 / math.sqrt(MANY)
