import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.stats import _stable_common, stable
from tracelab.typing import Status

NUMBERS = ("alpha", "alpha_se", "alpha_low", "alpha_high", "loglik", "loglik_gaussian")


def isotropic(alpha, shape, rng):
    """Isotropic stable rows: every column symmetric stable, all tied by one factor a row.

    sqrt(A) times N(0, 2), with A positive alpha/2-stable of Laplace transform exp(-t^(alpha/2)).
    """
    if alpha == 2:
        return math.sqrt(2) * rng.standard_normal(shape)
    scale = math.cos(math.pi * alpha / 4) ** (2 / alpha)
    factor = stable.rvs(alpha / 2, 1, 0, scale, (shape[0], 1), rng)
    return np.sqrt(2 * factor) * rng.standard_normal(shape)


def correlated(alpha, shape, rng):
    """Every column the sum of its own and of one common symmetric stable variable."""
    own = stable.rvs(alpha, size=shape, rng=rng)
    return own + stable.rvs(alpha, size=(shape[0], 1), rng=rng)


def independent(alpha, shape, rng):
    return stable.rvs(alpha, size=shape, rng=rng)


def heterogeneous(x, rng):
    return 100 * rng.standard_normal(x.shape[1]) + x * np.exp(2 * rng.standard_normal(x.shape[1]))


def likelihood(x, found):
    return stable.logpdf(x, found.alpha, 0, found.loc, found.scale).sum()


@pytest.mark.parametrize("alpha", [0.7, 1.3, 1.8])
def test_recovers_alpha_and_every_scale(alpha):
    rng = np.random.default_rng(1)
    scale, loc = np.exp(2 * rng.standard_normal(40)), 50 * rng.standard_normal(40)
    x = loc + scale * stable.rvs(alpha, size=(800, 40), rng=rng)
    found = stable.fit_common(x)
    assert found.status == int(Status.OK)
    assert abs(found.alpha - alpha) < 4 * found.alpha_se
    assert found.alpha_low < alpha < found.alpha_high
    # 1.3 / sqrt(800) and 1.7 / sqrt(800) standard deviations, the largest of 40 of them.
    assert np.max(np.abs(np.log(found.scale / scale))) < 4.5 * 1.3 / math.sqrt(800)
    assert np.max(np.abs((found.loc - loc) / scale)) < 4.5 * 1.8 / math.sqrt(800)
    assert found.n_batches == 800
    assert (found.n_series, found.n_dropped) == (40, 0)


def test_pooled_estimate_is_the_fit_of_all_values():
    x = stable.rvs(1.4, loc=2, size=(50, 12), rng=np.random.default_rng(2))
    common, single = stable.fit_common(x, "shared"), stable.fit(x.ravel())
    for field in ("alpha", "scale", "loc", "loglik", "loglik_gaussian"):
        assert getattr(common, field) == pytest.approx(float(getattr(single, field)), rel=1e-9)
    # Independent values: clusters know what the information knows, up to 1 / sqrt(2 * 50).
    assert common.alpha_se == pytest.approx(float(single.alpha_se), rel=0.4)
    assert common.scale.shape == ()
    assert common.loglik == pytest.approx(likelihood(x, common), rel=1e-9)


def test_one_series_is_a_fit():
    x = stable.rvs(1.6, size=(2000, 1), rng=np.random.default_rng(3))
    common, single = stable.fit_common(x), stable.fit(x[:, 0])
    # But for the correction of the bias, 0.6 / 2000.
    assert common.alpha == pytest.approx(float(single.alpha), abs=1e-3)
    assert common.alpha_se == pytest.approx(float(single.alpha_se), rel=0.2)
    assert common.scale[0] == pytest.approx(float(single.scale), rel=1e-6)


def test_maximum_is_a_maximum():
    rng = np.random.default_rng(4)
    x = heterogeneous(rng.standard_t(3, (400, 30)), rng)
    found = stable.fit_common(x)
    # The correction of the bias takes alpha a little off its maximum, and nothing else.
    assert found.loglik >= likelihood(x, found)
    assert found.loglik == pytest.approx(likelihood(x, found), rel=1e-5)
    for alpha in (found.alpha - 0.05, found.alpha + 0.05):
        each = [
            max(
                stable.logpdf(column, alpha, 0, loc, scale * factor).sum()
                for factor in np.exp(np.linspace(-0.1, 0.1, 9))
            )
            for column, loc, scale in zip(x.T, found.loc, found.scale, strict=True)
        ]
        assert sum(each) < found.loglik
    assert found.loglik_gaussian == pytest.approx(
        -200 * np.sum(np.log(2 * math.pi * x.var(axis=0)) + 1), rel=1e-10
    )


def test_gaussian_coordinates_of_many_scales():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((200, 2000)) * np.exp(rng.standard_normal(2000))
    each, shared = stable.fit_common(x, "each"), stable.fit_common(x, "shared")
    assert each.alpha_high == 2
    assert each.alpha_low > 1.99
    assert shared.alpha_high < 1.2


@settings(max_examples=10)
@given(
    alpha=st.sampled_from([0.8, 1.5, 2.0]),
    scales=st.sampled_from(["each", "shared"]),
    factor=st.sampled_from([1e-12, 3.0, 1e12]),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 2**32),
)
def test_fits_move_with_the_data(alpha, scales, factor, shift, seed):
    rng = np.random.default_rng(seed)
    x = stable.rvs(alpha, size=(60, 5), rng=rng)
    one, other = stable.fit_common(x, scales), stable.fit_common((x + shift) * factor, scales)
    assert other.alpha == pytest.approx(float(one.alpha), abs=2e-3)
    assert other.alpha_low == pytest.approx(float(one.alpha_low), abs=5e-3)
    assert other.loglik == pytest.approx(
        float(one.loglik) - x.size * math.log(factor), rel=1e-4, abs=1e-2
    )


def test_series_and_batches_come_in_any_order():
    rng = np.random.default_rng(6)
    x = heterogeneous(stable.rvs(1.5, size=(100, 8), rng=rng), rng)
    one = stable.fit_common(x)
    other = stable.fit_common(x[rng.permutation(100)][:, ::-1])
    assert other.alpha == pytest.approx(float(one.alpha), rel=1e-9)
    assert other.alpha_se == pytest.approx(float(one.alpha_se), rel=1e-9)
    np.testing.assert_allclose(other.scale[::-1], one.scale, rtol=1e-9)


@pytest.mark.parametrize("scales", ["each", "shared"])
def test_cells_are_independent_of_their_company(scales):
    rng = np.random.default_rng(7)
    x = stable.rvs(1.7, size=(2, 2, 60, 6), rng=rng)
    x[1, 1] = rng.standard_normal((60, 6))
    x[0, 1, 3, 2] = np.nan
    together = stable.fit_common(x, scales)
    assert together.alpha.shape == (2, 2)
    assert together.scale.shape == ((2, 2, 6) if scales == "each" else (2, 2))
    for cell in np.ndindex(2, 2):
        alone = stable.fit_common(x[cell], scales)
        for field in (*NUMBERS, "status", "scale", "loc", "n_series", "n_dropped", "iterations"):
            np.testing.assert_array_equal(getattr(alone, field), getattr(together, field)[cell])


def test_constant_series_are_dropped_and_counted():
    rng = np.random.default_rng(8)
    x = stable.rvs(1.5, size=(80, 6), rng=rng)
    y = np.insert(x, [0, 3], [7.0, 0.0], axis=1)
    found, bare = stable.fit_common(y), stable.fit_common(x)
    assert (found.n_series, found.n_dropped) == (6, 2)
    assert found.alpha == bare.alpha
    assert np.isnan(found.scale).tolist() == [True, False, False, False, True, False, False, False]
    pooled = stable.fit_common(y, "shared")
    assert (pooled.n_series, pooled.n_dropped) == (6, 2)
    assert pooled.alpha == stable.fit_common(x, "shared").alpha


def test_atoms_are_set_apart():
    rng = np.random.default_rng(9)
    x = stable.rvs(1.5, loc=1, size=(300, 4), rng=rng)
    x[:150, 1] = 0.0
    x[:, 3] = np.where(np.arange(300) < 295, -2.0, x[:, 3])
    found = stable.fit_common(x)
    assert found.status == int(Status.OK)
    assert (found.n_series, found.n_dropped) == (3, 1)
    assert found.tied_fraction == pytest.approx((150 + 295) / 1200)
    assert abs(found.alpha - 1.5) < 4 * found.alpha_se
    alone = stable.fit(x[150:, 1])
    assert found.scale[1] == pytest.approx(float(alone.scale), rel=0.1)
    pooled = stable.fit_common(x, "shared")
    assert pooled.tied_fraction == pytest.approx((150 + 295) / 1200)
    assert abs(pooled.alpha - 1.5) < 4 * pooled.alpha_se


def test_statuses():
    rng = np.random.default_rng(10)
    good = rng.standard_normal((30, 3))
    cells = {
        "good": (good, Status.OK),
        "nan": (np.where(good > 1.5, np.nan, good), Status.NON_FINITE_INPUT),
        "constant": (np.broadcast_to([1.0, 0.0, 2.0], (30, 3)), Status.CONSTANT_INPUT),
        "edge": (np.sign(good) * np.exp(20 * np.abs(good)), Status.NOT_CONVERGED),
    }
    for scales in ("each", "shared"):
        found = stable.fit_common(np.array([x for x, _ in cells.values()]), scales)
        assert [Status(code) for code in found.status] == [status for _, status in cells.values()]
        for field in NUMBERS:
            np.testing.assert_array_equal(
                np.isfinite(getattr(found, field)), [True, False, False, True]
            )
        assert found.n_dropped[2] == 3
        few = stable.fit_common(good[:7], scales)
        assert few.status == int(Status.TOO_FEW_SAMPLES)
        empty = stable.fit_common(np.empty((20, 0)), scales)
        assert empty.status == int(Status.CONSTANT_INPUT)


def test_bad_arguments():
    with pytest.raises(UsageError, match="scales must be 'each' or 'shared', got 'all'"):
        stable.fit_common(np.zeros((10, 2)), "all")
    with pytest.raises(UsageError, match=r"confidence must be in \(0, 1\), got 1"):
        stable.fit_common(np.zeros((10, 2)), confidence=1)
    with pytest.raises(UsageError, match=r"x must have shape .* got shape \(10,\)"):
        stable.fit_common(np.zeros(10))


def coverage(alpha, shape, scales, law, replicas, rng):
    """Return how often the interval covers, and the mean error in root-mean-square errors."""
    covered, errors = 0, []
    for _ in range(replicas):
        x = law(alpha, shape, rng)
        found = stable.fit_common(x if scales == "shared" else heterogeneous(x, rng), scales)
        covered += bool(found.alpha_low <= alpha <= found.alpha_high)
        errors.append(float(found.alpha) - alpha)
    return covered / replicas, np.mean(errors) / np.sqrt(np.mean(np.square(errors)))


@pytest.mark.parametrize("law", [independent, correlated])
@pytest.mark.parametrize("scales", ["each", "shared"])
@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_intervals_cover(alpha, scales, law):
    covered, _ = coverage(alpha, (100, 16), scales, law, 120, np.random.default_rng(11))
    # .93 less four binomial standard deviations.
    assert covered > 0.93 - 4 * math.sqrt(0.93 * 0.07 / 120)


@pytest.mark.slow
@pytest.mark.parametrize("law", [independent, correlated, isotropic])
@pytest.mark.parametrize("scales", ["each", "shared"])
@pytest.mark.parametrize("shape", [(20, 64), (100, 64), (200, 128), (500, 64)])
@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.8, 2.0])
def test_coverage(alpha, shape, scales, law):
    replicas = 200
    rng = np.random.default_rng((12, *shape))
    covered, bias = coverage(alpha, shape, scales, law, replicas, rng)
    # Rare batches extreme in all series, and twenty clusters, are documented to cover less.
    expected = 0.93
    if law is isotropic and alpha == 1.8:
        expected = 0.88
    if shape[0] == 20 and law is not independent:
        expected = 0.75
    assert covered > expected - 3 * math.sqrt(expected * (1 - expected) / replicas)
    if law is independent and alpha < 1.9 and shape[0] >= 100:
        # The mean of 200 errors is 0 +- .07; without the correction of the bias it is near .7.
        assert abs(bias) < 0.3


def test_own_scales_bring_no_bias():
    # 6,000 series of 40: uncorrected .7 / 40 too high, which is five standard errors.
    x = stable.rvs(1.8, size=(40, 6000), rng=np.random.default_rng(13))
    found = stable.fit_common(x)
    assert abs(found.alpha - 1.8) < 3 * found.alpha_se
    assert _stable_common.uncorrected(x, "each") - found.alpha > 3 * found.alpha_se


@pytest.mark.parametrize("scales", ["each", "shared"])
def test_without_a_level_there_is_only_the_estimate(scales):
    x = stable.rvs(1.6, size=(2, 60, 5), rng=np.random.default_rng(20))
    found, bare = stable.fit_common(x, scales), stable.fit_common(x, scales, None)
    for name in ("alpha", "scale", "loc", "loglik", "loglik_gaussian", "status"):
        np.testing.assert_array_equal(getattr(bare, name), getattr(found, name))
    assert np.isnan([bare.alpha_se, bare.alpha_low, bare.alpha_high]).all()


@pytest.mark.parametrize("law", ["gaussian", "stable", "laplace", "mixed"])
def test_a_start_from_the_series_own_fits_ends_at_the_same_maximum(law):
    rng = np.random.default_rng(21)
    x = {
        "gaussian": lambda: rng.standard_normal((500, 20)),
        "stable": lambda: stable.rvs(1.4, size=(500, 20), rng=rng),
        "laplace": lambda: rng.laplace(size=(500, 20)),
        "mixed": lambda: np.column_stack(
            [rng.standard_normal((500, 10)), stable.rvs(1.2, size=(500, 10), rng=rng)]
        ),
    }[law]() * np.exp(rng.standard_normal(20))
    x[:, 3] = 5.0
    own = stable.fit(x, axis=0, confidence=None)
    found, cold = stable.fit_common(x, start=own), stable.fit_common(x)
    # A climb ends a hundredth of a standard error of a series' scale from the maximum.
    assert found.alpha == pytest.approx(float(cold.alpha), abs=1e-3 * float(cold.alpha_se) + 1e-12)
    assert found.loglik == pytest.approx(float(cold.loglik), abs=1e-2)
    np.testing.assert_allclose(found.scale, cold.scale, rtol=2e-3)
    if law == "laplace":
        assert found.iterations < cold.iterations
    with pytest.raises(UsageError, match="start must be the fit of each of the 20 series"):
        stable.fit_common(x, "shared", start=own)
