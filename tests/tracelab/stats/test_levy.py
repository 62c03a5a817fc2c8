import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from tracelab.errors import UsageError
from tracelab.stats import levy, stable
from tracelab.typing import Status

REFERENCE = json.loads(
    (Path(__file__).parents[3] / "data" / "reference" / "exit_times.json").read_text()
)
# Beyond this many standard errors an unbiased mean of one test of a hundred would not come to lie.
FAR = 4.0


def test_doctests():
    assert doctest.testmod(levy).failed == 0


@pytest.mark.parametrize(
    "row", REFERENCE["getoor"], ids=lambda r: f"{r['alpha']}-{r['d']}-{r['x']}"
)
def test_exact_mean_is_getoors(row):
    found = levy.mean_exit_time(row["alpha"], row["a"], row["x"], row["d"])
    assert found == pytest.approx(row["Etau"], rel=1e-12)


@pytest.mark.parametrize("alpha", [0.8, 1.0, 1.2, 1.5, 1.8, 2.0])
@pytest.mark.parametrize(("dim", "start"), [(1, 0.0), (1, 0.9), (2, 0.5), (3, 0.0)])
def test_free_exits_agree_with_getoor(alpha, dim, start):
    found = levy.exit_times(
        alpha, replicas=4000, seed=1, dim=dim, noise="isotropic", region=levy.Ball(),
        start=[start] + [0.0] * (dim - 1), refine=False,
    )  # fmt: skip
    exact = levy.mean_exit_time(alpha, 1.0, start, dim)
    assert abs(found.mean - exact) < FAR * found.mean_se
    assert found.status == Status.OK
    # Processes of jumps leave a ball without touching its surface, a Brownian motion on it.
    away = np.linalg.norm(found.places, axis=1)
    assert (away >= 1 - 1e-12).all()
    assert np.mean(away > 1 + 1e-9) > 0.5 if alpha <= 1.5 else np.mean(away < 1.01) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.1, 1.5, 1.9, 2.0])
def test_events_have_little_bias(alpha):
    found = levy.exit_times(alpha, replicas=200_000, seed=2, refine=False)
    # A standard error is a fifth of a percent.
    assert found.mean == pytest.approx(levy.mean_exit_time(alpha), rel=0.012)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.2, 1.7, 2.0])
def test_the_grid_converges_to_getoor(alpha):
    """The grid sees no crossing between its points: the bias falls as step^(1/alpha)."""
    means = []
    for step in (4e-3, 1e-3):
        found = levy.exit_times(
            alpha, replicas=10_000, seed=3, method="grid", resolution=step, refine=False
        )
        means.append(found.mean)
    exact = float(levy.mean_exit_time(alpha))
    ratio = 4 ** (1 / alpha)
    limit = (ratio * means[1] - means[0]) / (ratio - 1)
    if alpha == 2:
        assert means[0] > means[1] > exact
    # Errors of one percent each, magnified by the extrapolation.
    error = 0.01 * np.hypot(ratio, 1) / (ratio - 1)
    assert limit == pytest.approx(exact, rel=3 * error)


@pytest.mark.slow
def test_events_and_grid_agree_in_a_quadratic_basin():
    common = {
        "alpha": 1.6,
        "half_width": 1.5,
        "replicas": 3000,
        "potential": levy.Quadratic([1.0, 3.0]),
        "dim": 2,
        "scale": [0.4, 0.6],
        "start": [0.3, 0.0],
        "refine": False,
    }
    events = levy.exit_times(seed=4, **common)
    grid = levy.exit_times(seed=5, method="grid", resolution=2e-3, **common)
    error = np.hypot(events.mean_se, grid.mean_se)
    # The grid is late by about .5 % here.
    assert abs(events.mean - grid.mean) < FAR * error
    which = np.abs(events.places).argmax(axis=1).mean(), np.abs(grid.places).argmax(axis=1).mean()
    assert which[0] == pytest.approx(which[1], abs=FAR * np.sqrt(0.5 / 3000))


@pytest.mark.parametrize("row", REFERENCE["imkeller_pavlyukevich"][:3], ids=lambda r: str(r["eps"]))
def test_deep_basins_follow_the_asymptotics(row):
    found = levy.exit_times(
        row["alpha"], replicas=2000, seed=6, potential=levy.Quadratic(1.0), scale=row["eps"],
        region=levy.Box(-row["b"], row["a"]), refine=False,
    )  # fmt: skip
    # The leading order is short by a power of eps: 5 % at .1, less below.
    off = 0.08 if row["eps"] == 0.1 else 0.04
    assert found.mean == pytest.approx(
        row["Etau_asymptotic"], rel=off + FAR * found.mean_se / found.mean
    )
    # Exits come at a constant rate: mean and standard deviation are equal.
    assert found.times.std() / found.mean == pytest.approx(1, abs=FAR / np.sqrt(2000))


def test_brownian_exit_from_a_quadratic_basin_is_exact():
    # E tau = integral of Dawson's kind: 2 int_0^a exp(y^2/2) int_0^y exp(-z^2/2) dz dy for
    # dx = -x dt + sqrt(2) dB from 0 (Gardiner 2009, eq. 5.5.21), here by quadrature.
    from scipy.integrate import quad

    width, scale = 1.5, 0.7

    def inner(y):
        below = quad(lambda z: np.exp(-0.5 * (z / scale) ** 2), 0, y)[0]
        return np.exp(0.5 * (y / scale) ** 2) * below

    exact = quad(inner, 0, width)[0] / scale**2
    found = levy.exit_times(2.0, width, 4000, 7, levy.Quadratic(1.0), scale=scale, refine=False)
    assert abs(found.mean - exact) < FAR * found.mean_se


@pytest.mark.slow
def test_slope_of_log_time_is_minus_alpha_in_a_double_well():
    well = levy.DoubleWell(1.0, 1.0)
    for alpha in (1.2, 1.5):
        means, errors, scales = [], [], np.array([0.3, 0.075])
        for scale in scales:
            found = levy.exit_times(
                alpha, replicas=500, seed=8, potential=well, region=levy.Box(-np.inf, 0.0),
                start=-1.0, scale=scale, method="grid", resolution=1e-2, refine=False,
            )  # fmt: skip
            means.append(found.mean)
            errors.append(found.mean_se / found.mean)
        slope = np.diff(np.log(means)) / np.diff(np.log(scales))
        # Higher orders of the noise, as in the quadratic basin, and Monte-Carlo error.
        tolerance = 0.1 + 3 * np.hypot(*errors) / np.log(4)
        assert slope[0] == pytest.approx(-alpha, abs=tolerance)


@pytest.mark.slow
def test_brownian_exits_from_a_double_well_are_exponentially_rare():
    well = levy.DoubleWell(1.0, 1.0)
    means = []
    for temperature in (0.5, 0.3):
        found = levy.exit_times(
            2.0, replicas=600, seed=9, potential=well, region=levy.Box(-np.inf, 0.0), start=-1.0,
            scale=np.sqrt(temperature), method="grid", resolution=2e-3, refine=False,
        )  # fmt: skip
        means.append(found.mean)
    # Exact first passage to the top, by quadrature of the one-dimensional formula.
    from scipy.integrate import quad

    def barrier(x):
        return (1 - x**2) ** 2

    def exact(temperature):
        def inner(y):
            return quad(lambda z: np.exp(-barrier(z) / temperature), -3.5, y)[0]

        outer = quad(lambda y: np.exp(barrier(y) / temperature) * inner(y), -1, 0)[0]
        return outer / temperature

    for mean, temperature in zip(means, (0.5, 0.3), strict=True):
        # The grid is late by some percent; 600 exponential times know their mean to 4 %.
        assert mean == pytest.approx(exact(temperature), rel=0.17)
    assert means[1] > 2.5 * means[0]


@pytest.mark.slow
def test_truncated_jumps_need_several():
    """Wang, Oh and Rhee: slopes of log steps against log rate, -(1 + (alpha - 1) l*)."""
    alpha = 1.4
    for clip, jumps in ((1.5, 1), (0.7, 2)):
        steps = []
        rates = np.array([0.08, 0.02])
        for rate in rates:
            # A step of time `rate` adds rate * Z, with Z of tail index alpha.
            found = levy.exit_times(
                alpha, 1.0, 400, 10, levy.Quadratic(1.0), clip=clip, method="grid",
                resolution=rate, scale=0.4 * rate ** (1 - 1 / alpha), refine=False,
            )  # fmt: skip
            steps.append(found.mean / rate)
        slope = np.diff(np.log(steps)) / np.diff(np.log(rates))
        assert slope[0] == pytest.approx(-(1 + (alpha - 1) * jumps), abs=0.2)


@pytest.mark.slow
def test_momentum_slows_and_adam_follows_its_preconditioner():
    common = {"alpha": 1.5, "half_width": 1.0, "replicas": 1500, "method": "grid", "refine": False}
    well = levy.Quadratic(1.0)
    fast = levy.exit_times(seed=11, potential=well, scale=0.5, resolution=5e-3, **common)
    adam = levy.exit_times(
        seed=12, potential=well, scale=0.5, resolution=5e-3, dynamics=levy.Adam(200.0), **common
    )
    # A first moment that forgets at once is the gradient.
    assert abs(fast.mean - adam.mean) < FAR * np.hypot(fast.mean_se, adam.mean_se)
    halved = levy.exit_times(
        seed=13, potential=well, scale=0.5, resolution=5e-3,
        dynamics=levy.Overdamped(0.5), **common,
    )  # fmt: skip
    same = levy.exit_times(
        seed=14, potential=levy.Quadratic(0.5), scale=0.25, resolution=5e-3, **common
    )
    assert abs(halved.mean - same.mean) < FAR * np.hypot(halved.mean_se, same.mean_se)
    # Strong friction: x of the momentum equation moves as the overdamped one slowed by 1/friction.
    heavy = levy.exit_times(
        seed=15, potential=well, scale=0.5 * 20, resolution=5e-3, dynamics=levy.Underdamped(20.0),
        **common,
    )  # fmt: skip
    slow = levy.exit_times(
        seed=16, potential=levy.Quadratic(1 / 20), scale=0.5, resolution=5e-3, **common
    )
    assert heavy.mean == pytest.approx(slow.mean, rel=0.1 + FAR / np.sqrt(1500))


def test_sublevel_of_a_quadratic_is_an_ellipsoid():
    well = levy.Quadratic([1.0, 4.0])
    common = {
        "alpha": 1.5,
        "replicas": 2000,
        "seed": 17,
        "potential": well,
        "dim": 2,
        "refine": False,
    }
    level = levy.exit_times(
        region=levy.Sublevel(well, 0.5), method="grid", resolution=5e-3, **common
    )
    ball = levy.exit_times(
        region=levy.Ball(1.0, [1.0, 0.5]), method="grid", resolution=5e-3, **common
    )
    np.testing.assert_array_equal(level.times, ball.times)


def test_censoring():
    found = levy.exit_times(1.5, 1.0, 500, 18, max_time=0.3, refine=False)
    whole = levy.exit_times(1.5, 1.0, 500, 18, refine=False)
    assert found.censored.any()
    assert (found.times[found.censored] == 0.3).all()
    share, expected = found.censored.mean(), np.mean(whole.times > 0.3)
    assert share == pytest.approx(expected, abs=FAR * np.sqrt(0.5 / 500))
    assert found.mean == pytest.approx(found.times.sum() / np.count_nonzero(~found.censored))
    none = levy.exit_times(1.5, 100.0, 50, 19, max_time=0.1)
    assert none.status == Status.TOO_FEW_SAMPLES
    assert np.isnan(none.mean)
    assert none.mean_low > 0.1
    assert none.mean_high == np.inf


@pytest.mark.parametrize("method", ["events", "grid"])
def test_a_basin_that_nobody_leaves_ends(method):
    found = levy.exit_times(
        2.0, 1.0, 20, 19, levy.Quadratic(1.0), scale=0.05, method=method, max_steps=2000,
        refine=False,
    )  # fmt: skip
    assert found.censored.all()
    assert (found.times > 0).all()
    assert np.isfinite(found.times).all()
    assert found.status == Status.TOO_FEW_SAMPLES


def test_replicas_do_not_depend_on_how_many_there_are():
    few, many = (levy.exit_times(1.5, replicas=n, seed=20, refine=False) for n in (256, 1000))
    np.testing.assert_array_equal(few.times, many.times[:256])
    again = levy.exit_times(1.5, replicas=256, seed=20, refine=False)
    np.testing.assert_array_equal(few.times, again.times)
    other = levy.exit_times(1.5, replicas=256, seed=21, refine=False)
    assert (other.times != few.times).all()


def test_units_of_space_scale_time():
    plain = levy.exit_times(1.5, 1.0, 300, 22, refine=False)
    wide = levy.exit_times(1.5, 4.0, 300, 22, refine=False)
    np.testing.assert_allclose(wide.times, 4**1.5 * plain.times, rtol=1e-9)
    loud = levy.exit_times(1.5, 4.0, 300, 22, scale=4.0, refine=False)
    np.testing.assert_allclose(loud.times, plain.times, rtol=1e-9)


def test_refinement_is_the_difference_of_resolutions():
    found = levy.exit_times(1.5, replicas=2000, seed=23, method="grid", resolution=0.02)
    assert found.refinement < -3 * found.refinement_se  # coarser grids are later
    exact = levy.exit_times(1.5, replicas=2000, seed=23)
    assert abs(exact.refinement) < FAR * exact.refinement_se


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.6, 2.0])
def test_draws(alpha):
    rng = np.random.default_rng(24)
    independent = levy.draws(alpha, 3, 20_000, rng=rng)
    isotropic = levy.draws(alpha, 3, (4, 5000), "isotropic", rng)
    assert isotropic.shape == (4, 5000, 3)
    turned = isotropic.reshape(-1, 3) @ np.array([0.6, 0.0, 0.8])

    def law(x):
        return stable.cdf(x, alpha)

    for x in (*independent.T, *isotropic.reshape(-1, 3).T, turned):
        # One of the seven would fail one time in a thousand.
        assert scipy.stats.kstest(x, law).pvalue > 1e-4
    if alpha < 2:
        # Large jumps are of one coordinate, or of all.
        big = np.abs(independent[np.abs(independent).max(axis=1) > 100])
        ratio = np.sort(big, axis=1)[:, 1] / big.max(axis=1)
        flat = isotropic.reshape(-1, 3)
        together = np.abs(flat[np.abs(flat).max(axis=1) > 100])
        shared = np.sort(together, axis=1)[:, 1] / together.max(axis=1)
        assert np.median(ratio) < 0.1
        assert np.median(shared) > 0.3


def test_each_coordinate_has_its_alpha():
    x = levy.draws([1.2, 2.0], 2, 10_000, rng=np.random.default_rng(25))
    fitted = stable.fit(x, axis=0)
    np.testing.assert_allclose(fitted.alpha, [1.2, 2.0], atol=0.06)


def test_paths_have_the_stationary_law_of_their_equation():
    # Ornstein-Uhlenbeck: stationary scale (sigma^alpha / (alpha theta))^(1/alpha).
    alpha, theta, sigma = 1.5, 2.0, 0.7
    path = levy.paths(alpha, 600, 0.01, np.zeros((2000, 1)), 26, levy.Quadratic(theta), scale=sigma)
    assert path.shape == (601, 2000, 1)
    last = path[-1, :, 0] / (sigma**alpha / (alpha * theta)) ** (1 / alpha)
    assert scipy.stats.kstest(last, lambda x: stable.cdf(x, alpha)).pvalue > 1e-3


def test_bad_input():
    call = levy.exit_times
    for arguments, message in (
        ({"alpha": 2.5}, r"alpha must be in \(0, 2\]"),
        ({"alpha": [1.2, 1.5]}, "alpha must be one number or one for each of the 1 coordinates"),
        ({"alpha": [1.2, 1.5], "dim": 2, "noise": "isotropic"}, "isotropic noise has one alpha"),
        ({"half_width": 0.0}, "half_width must be positive"),
        ({"replicas": 0}, "replicas must be an integer of at least 1"),
        ({"seed": -1}, "seed must be"),
        ({"start": 1.0}, "start must be within the region"),
        ({"scale": np.nan}, "scale must be positive and finite"),
        ({"noise": "white"}, "noise must be"),
        ({"method": "exact"}, "method must be"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"max_time": np.nan}, "max_time must be positive"),
        ({"resolution": 0.0}, "resolution must be positive"),
        ({"method": "events", "clip": 1.0}, "does not take clipping"),
        ({"method": "events", "potential": levy.Quadratic(-1.0)}, "a negative curvature"),
        ({"method": "events", "potential": levy.DoubleWell()}, "the potential DoubleWell"),
        ({"method": "events", "dynamics": levy.Adam()}, "the dynamics Adam"),
    ):
        with pytest.raises(UsageError, match=message):
            call(**arguments)
    with pytest.raises(UsageError, match="low must be below high"):
        levy.Box(1.0, 1.0)
    with pytest.raises(UsageError, match="needs a potential with values"):
        levy.Sublevel(levy.Potential(lambda x: x), 1.0)
    with pytest.raises(UsageError, match="within the radius"):
        levy.mean_exit_time(1.5, 1.0, 2.0)
    with pytest.raises(UsageError, match=r"shape \(replica, d\)"):
        levy.paths(1.5, 3, 0.1, [0.0])
