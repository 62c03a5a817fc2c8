import doctest
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.stats import mohammadi as module
from tracelab.stats import stable
from tracelab.stats.mohammadi import default_blocks, mohammadi
from tracelab.typing import Status

REFERENCE = Path(__file__).parents[3] / "data" / "reference" / "mohammadi_simsekli.json"


def reference_input(row):
    seed = int(row["rng"].split("(")[1].rstrip(")"))
    rng, shape = np.random.default_rng(seed), tuple(row["shape"])
    draws = {
        "normal": lambda: rng.standard_normal(shape),
        "cauchy": lambda: rng.standard_cauchy(shape),
        "t3": lambda: rng.standard_t(3, shape),
        "laplace": lambda: rng.laplace(size=shape),
    }
    return draws[row["kind"]]()


def test_doctests():
    assert doctest.testmod(module).failed == 0


def test_matches_the_papers_code():
    rows = json.loads(REFERENCE.read_text())["rows"]
    assert len(rows) == 9
    for row in rows:
        found = mohammadi(reference_input(row), axis=0, m=row["K1"], vector_axis=1)
        assert float(found.alpha) == pytest.approx(row["alpha"], rel=1e-12)


def test_follows_the_formula():
    x = np.random.default_rng(1).standard_t(3, 60)
    m = 5
    sums = [abs(sum(x[i : i + m])) for i in range(0, 60, m)]
    inverse = (
        sum(math.log(y) for y in sums) / 12 - sum(math.log(abs(v)) for v in x) / 60
    ) / math.log(m)
    assert float(mohammadi(x, m=m).alpha) == pytest.approx(1 / inverse, rel=1e-12)


# Means of 20 samples of 1e4: data, alpha at m = 2, 10, 100; known to 0.1.
BIAS = {
    "stable 1.2": (1.20, 1.20, 1.22),
    "stable 1.5": (1.49, 1.51, 1.53),
    "stable 1.8": (1.78, 1.79, 1.85),
    "gaussian": (2.02, 2.00, 2.02),
    "laplace": (1.39, 1.62, 1.75),
    "t5": (1.72, 1.80, 1.87),
    "t3": (1.59, 1.65, 1.78),
    "mixture 1": (1.05, 1.22, 1.42),
    "mixture 2": (0.58, 0.71, 0.86),
    "two scales": (0.99, 0.76, 0.87),
    "ar 0.9": (1.03, 1.07, 1.25),
    "shifted": (1.97, 1.94, 1.70),
}


def bias_draws(kind, rng):
    shape = (20, 10_000)
    normal = rng.standard_normal(shape)
    match kind.split():
        case ["stable", alpha]:
            return stable.rvs(float(alpha), size=shape, rng=rng)
        case ["gaussian"]:
            return normal
        case ["laplace"]:
            return rng.laplace(size=shape)
        case ["t5"]:
            return rng.standard_t(5, shape)
        case ["t3"]:
            return rng.standard_t(3, shape)
        case ["mixture", sd]:
            return normal * np.exp(float(sd) * rng.standard_normal(shape))
        case ["two", _]:
            return normal * np.where(rng.random(shape) < 0.1, 1.0, 0.01)
        case ["ar", rho]:
            x = normal.copy()
            for i in range(1, shape[1]):
                x[:, i] += float(rho) * x[:, i - 1]
            return x
        case ["shifted"]:
            return normal + 0.1
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", BIAS)
def test_reads_below_two_for_much_else(kind):
    x = bias_draws(kind, np.random.default_rng(2))
    found = mohammadi(x, m=(2, 10, 100))
    # 1 / mean(1 / alpha): the mean of alpha itself has heavy tails where 1 / alpha is noisy.
    np.testing.assert_allclose(1 / np.mean(1 / found.profile, axis=0), BIAS[kind], atol=0.1)


def test_estimate_is_the_median_of_the_profile():
    x = np.random.default_rng(3).standard_normal((4, 1000))
    found = mohammadi(x)
    assert found.m.tolist() == [2, 5, 10, 20, 50, 100]
    assert found.profile.shape == (4, 6)
    np.testing.assert_allclose(found.alpha, np.median(found.profile, axis=-1), rtol=0.01)
    assert found.n_samples == 1000


def test_default_blocks():
    assert default_blocks(10_000) == (2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert default_blocks(250) == (2, 5, 10)
    # A prime has no divisors: all lengths then, and a remainder is left out.
    assert default_blocks(251) == (2, 5, 10, 20)
    x = np.random.default_rng(4).standard_normal(251)
    whole = mohammadi(x[:250], m=5)
    assert mohammadi(x, m=5).alpha == pytest.approx(float(whole.alpha), rel=1e-9)


def test_order_matters_and_shuffles_undo_it():
    rng = np.random.default_rng(5)
    scales = np.exp(rng.standard_normal(500))
    x = rng.standard_normal((200, 500)) * scales
    row_major, column_major = mohammadi(x.ravel()), mohammadi(x.T.ravel())
    assert column_major.alpha > row_major.alpha + 0.2
    shuffled = mohammadi(x.T.ravel(), shuffles=5, rng=np.random.default_rng(6))
    assert shuffled.alpha == pytest.approx(float(row_major.alpha), abs=0.15)
    again = mohammadi(x.T.ravel(), shuffles=5, rng=np.random.default_rng(6))
    assert again.alpha == shuffled.alpha


def test_gaussian_coordinates_of_many_scales():
    # The trap: exactly Gaussian coordinates, log-normal scales, pooled as the papers do.
    rng = np.random.default_rng(7)
    x = rng.standard_normal((200, 2000)) * np.exp(rng.standard_normal(2000))
    assert 1.4 < mohammadi(x.ravel()).alpha < 1.6
    assert stable.fit_common(x, "shared").alpha == pytest.approx(1.06, abs=0.1)
    assert stable.fit_common(x, "each").alpha == pytest.approx(2, abs=5e-3)


def test_pooled_scales_of_a_stable_law():
    rng = np.random.default_rng(8)
    x = stable.rvs(1.5, size=(200, 500), rng=rng) * np.exp(rng.standard_normal(500))
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    standardized = stable.fit_common((x - middle) / (high - low), "shared")
    assert standardized.alpha == pytest.approx(1.498, abs=0.02)


@pytest.mark.parametrize(("alpha", "m"), [(1.2, 10), (1.5, 10), (1.8, 2), (2.0, 50), (1.5, None)])
def test_intervals_cover(alpha, m):
    x = stable.rvs(alpha, size=(600, 2000), rng=np.random.default_rng(9))
    found = mohammadi(x, m=m)
    covered = np.mean((found.alpha_low <= alpha) & (found.alpha_high >= alpha))
    # 4 sqrt(.95 * .05 / 600) = .036; the median of the profile is steadier than its parts.
    assert covered > 0.95 - 0.036
    if m is not None:
        spread = np.std(1 / found.alpha)
        claimed = np.sqrt(np.mean((found.alpha_se / found.alpha**2) ** 2))
        assert claimed == pytest.approx(spread, rel=0.15)


@settings(max_examples=20)
@given(factor=st.sampled_from([1e-12, 1e-3, 1e12, -2.0]), seed=st.integers(0, 2**32))
def test_units_do_not_matter(factor, seed):
    x = np.random.default_rng(seed).standard_cauchy(200)
    one, other = mohammadi(x), mohammadi(x * factor)
    np.testing.assert_allclose(one.profile, other.profile, rtol=1e-8)
    assert one.alpha_se == pytest.approx(float(other.alpha_se), rel=1e-8)


def test_cells_are_independent():
    x = np.random.default_rng(10).standard_t(3, (2, 3, 100))
    together = mohammadi(np.moveaxis(x, -1, 0), axis=0)
    for cell in np.ndindex(2, 3):
        alone = mohammadi(x[cell])
        np.testing.assert_array_equal(alone.profile, together.profile[cell])
        assert alone.alpha_high == together.alpha_high[cell]


def test_wide_intervals_have_no_upper_end():
    x = np.random.default_rng(11).standard_normal(20)
    found = mohammadi(x, m=10)
    assert found.alpha_low < found.alpha < found.alpha_high
    assert found.alpha_high == np.inf


def test_zeros_are_counted():
    x = np.random.default_rng(12).standard_normal(1000)
    x[:900] = 0
    found = mohammadi(np.random.default_rng(13).permutation(x))
    assert found.zero_fraction == pytest.approx(0.9)
    assert found.status == int(Status.OK)
    assert np.isfinite(found.alpha)
    vectors = np.column_stack([x, np.zeros(1000)])
    assert mohammadi(vectors, axis=0, vector_axis=1).zero_fraction == pytest.approx(0.9)


def test_statuses():
    x = np.random.default_rng(14).standard_normal((4, 40))
    x[1, 3], x[2], x[3] = np.inf, 0.0, 1.5
    found = mohammadi(x)
    assert found.status.tolist() == [
        int(Status.OK),
        int(Status.NON_FINITE_INPUT),
        int(Status.CONSTANT_INPUT),
        int(Status.CONSTANT_INPUT),
    ]
    assert np.isfinite(found.alpha).tolist() == [True, False, False, False]
    few = mohammadi(x[:1, :19])
    assert few.status.tolist() == [int(Status.TOO_FEW_SAMPLES)]
    assert np.isnan(few.alpha_low[0])


def test_bad_arguments():
    x = np.zeros(40)
    with pytest.raises(UsageError, match="half of the 40 samples, got 21"):
        mohammadi(x, m=21)
    with pytest.raises(UsageError, match="half of the 40 samples, got 1"):
        mohammadi(x, m=(2, 1))
    with pytest.raises(UsageError, match="shuffles need a random generator"):
        mohammadi(x, shuffles=2)
    with pytest.raises(UsageError, match="shuffles must not be negative, got -1"):
        mohammadi(x, shuffles=-1)
    with pytest.raises(UsageError, match=r"confidence must be in \(0, 1\), got 0"):
        mohammadi(x, confidence=0)
