import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.stats import stable
from tracelab.stats._stable_climb import fisher
from tracelab.stats._stable_density import table
from tracelab.typing import Status

REFERENCE = Path(__file__).parents[3] / "data" / "reference"
FIELDS = ("alpha", "alpha_se", "alpha_low", "alpha_high", "scale", "scale_se", "loc", "loc_se")


def standard_errors(alpha, n):
    """Asymptotic standard deviations of alpha, log scale, loc / scale."""
    vv, vu, uu, ll = fisher(table().information, math.log(2 - alpha))
    determinant = vv * uu - vu * vu
    return (
        (2 - alpha) * math.sqrt(uu / determinant / n),
        math.sqrt(vv / determinant / n),
        1 / math.sqrt(ll * n),
    )


def likelihood(x, alpha, loc, scale):
    return stable.logpdf(x, alpha, 0, loc, scale).sum(axis=-1)


def test_information_matches_the_reference():
    rows = json.loads((REFERENCE / "stable_fisher.json").read_text())["rows"]
    for row in rows:
        if row["beta"] == 0:
            sd_alpha, sd_log_scale, _ = standard_errors(row["alpha"], 1)
            # The reference's own quadrature is good to about 1e-3.
            assert sd_alpha == pytest.approx(row["sd_alpha"], rel=1e-3)
            assert sd_log_scale == pytest.approx(row["sd_loggamma"], rel=1e-3)


def test_information_at_alpha_one_is_cauchys():
    # Location and log scale of a Cauchy law: 1/2 each; the table is linear between nodes.
    _, _, uu, ll = fisher(table().information, 0.0)
    assert uu == pytest.approx(0.5, rel=2e-3)
    assert ll == pytest.approx(0.5, rel=2e-3)


@pytest.mark.parametrize("alpha", [0.6, 1.1, 1.5, 1.9])
def test_estimates_are_efficient_and_intervals_cover(alpha):
    n, replicas = 500, 800
    x = stable.rvs(alpha, loc=2, scale=3, size=(replicas, n), rng=np.random.default_rng(7))
    found = stable.fit(x)
    assert np.all(found.status == int(Status.OK))
    errors = standard_errors(alpha, n)
    deviations = (
        found.alpha - alpha,
        np.log(found.scale / 3),
        (found.loc - 2) / 3,
    )
    for deviation, error in zip(deviations, errors, strict=True):
        # The root mean square of 800 normals varies by 1 / sqrt(1600) = 2.5 %: four of it.
        assert np.sqrt(np.mean(deviation**2)) / error == pytest.approx(1, abs=0.1)
    for name, truth in (("alpha", alpha), ("scale", 3), ("loc", 2)):
        low, high = getattr(found, f"{name}_low"), getattr(found, f"{name}_high")
        covered = np.mean((low <= truth) & (truth <= high))
        # Asymptotic intervals may miss a percent more; 4 sqrt(0.95 * 0.05 / 800) = 0.031.
        assert covered > 0.94 - 0.031
    assert np.all(found.alpha_high <= 2)
    assert np.all(found.loglik >= likelihood(x, alpha, 2, 3) - 1e-6)
    np.testing.assert_allclose(
        found.loglik,
        likelihood(x, found.alpha[:, None], found.loc[:, None], found.scale[:, None]),
        rtol=1e-9,
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize("alpha", [1.1, 1.3, 1.5, 1.7, 1.8, 1.9, 1.95])
def test_coverage(alpha, n):
    replicas = 2000
    x = stable.rvs(alpha, size=(replicas, n), rng=np.random.default_rng((8, n)))
    found = stable.fit(x)
    for name, truth in (("alpha", alpha), ("scale", 1), ("loc", 0)):
        low, high = getattr(found, f"{name}_low"), getattr(found, f"{name}_high")
        covered = np.mean((low <= truth) & (truth <= high))
        # Near 2 the few outliers that tell are a Poisson count: there coverage swings, .93 at
        # (1.95, 1000). Noise: 3 sqrt(.0475 / 2000) = .015.
        assert covered > 0.93 - 0.015


def test_gaussian_data_read_two():
    x = np.random.default_rng(9).standard_normal((400, 500)) * 2 + 1
    found = stable.fit(x)
    exactly = found.alpha == 2
    # P(alpha = 2) is about .85; .07 is four binomial standard deviations.
    assert np.mean(exactly) == pytest.approx(0.85, abs=0.07)
    assert np.all(found.alpha_high[exactly] == 2)
    assert np.mean(found.alpha_high == 2) > 0.96
    assert np.all(found.alpha_low < 2)
    np.testing.assert_allclose(found.loc[exactly], x[exactly].mean(axis=1), rtol=1e-10)
    np.testing.assert_allclose(
        found.scale[exactly], x[exactly].std(axis=1) / math.sqrt(2), rtol=1e-10
    )
    np.testing.assert_array_equal(found.loglik[exactly], found.loglik_gaussian[exactly])
    # Likelihood ratio at the lower end, profiled: by definition the normal quantile squared.
    low = found.alpha_low[exactly][0]
    profile = max(
        likelihood(x[exactly][0], low, loc, scale)
        for loc in found.loc[exactly][0] + np.linspace(-0.05, 0.05, 11)
        for scale in found.scale[exactly][0] * np.linspace(0.97, 1.0, 61)
    )
    assert 2 * (found.loglik[exactly][0] - profile) == pytest.approx(1.959964**2, rel=0.02)


def test_intervals_near_two_reach_it_when_they_should():
    x = stable.rvs(1.98, size=(400, 300), rng=np.random.default_rng(10))
    found = stable.fit(x)
    ratio = 2 * (found.loglik - found.loglik_gaussian)
    near = found.alpha + 5 * found.alpha_se > 2
    assert np.all((found.alpha_high == 2)[near] == (ratio <= 1.959964**2)[near])
    covered = np.mean((found.alpha_low <= 1.98) & (found.alpha_high >= 1.98))
    assert covered > 0.919


@pytest.mark.parametrize("kind", ["t", "laplace", "uniform", "exponential", "mixture", "bimodal"])
def test_other_laws_reach_their_maximum(kind):
    rng = np.random.default_rng(11)
    n = 1500
    x = {
        "t": rng.standard_t(3, n),
        "laplace": rng.laplace(size=n),
        "uniform": rng.uniform(size=n),
        "exponential": rng.exponential(size=n),
        "mixture": rng.standard_normal(n) * np.exp(2 * rng.standard_normal(n)),
        "bimodal": np.concatenate([rng.standard_normal(n // 2) - 5, rng.standard_normal(n // 2)]),
    }[kind]
    found = stable.fit(x)
    assert found.status == int(Status.OK)
    trials = stable.rvs(2.0, size=(400, 3), rng=rng) * 0.01
    others = [
        likelihood(
            x,
            np.clip(found.alpha + a, stable.ALPHA_MIN, 2),
            found.loc + found.scale * b,
            found.scale * math.exp(c),
        )
        for a, b, c in trials
    ]
    assert found.loglik >= max(others) - 1e-6


@settings(max_examples=25)
@given(
    shift=st.floats(-1e3, 1e3),
    factor=st.sampled_from([1e-12, 1e-3, 1.0, 7.5, 1e12]),
    alpha=st.sampled_from([0.5, 1.0, 1.6, 2.0]),
    seed=st.integers(0, 2**32),
)
def test_fits_move_with_the_data(shift, factor, alpha, seed):
    x = stable.rvs(alpha, size=400, rng=np.random.default_rng(seed))
    one, other = stable.fit(x), stable.fit((x + shift) * factor)
    # Shifted data are rounded to 1e-16 of the shift; the climb stops within 3e-5 standard errors.
    assert other.alpha == pytest.approx(float(one.alpha), abs=2e-4)
    assert other.scale == pytest.approx(factor * float(one.scale), rel=2e-4)
    assert other.loc == pytest.approx(
        factor * (float(one.loc) + shift), abs=2e-4 * factor * float(one.scale)
    )
    assert other.loglik == pytest.approx(float(one.loglik) - 400 * math.log(factor), rel=1e-6)


def test_sign_flips_the_location_only():
    x = stable.rvs(1.4, loc=3, size=500, rng=np.random.default_rng(12))
    one, other = stable.fit(x), stable.fit(-x)
    assert other.alpha == pytest.approx(float(one.alpha), abs=1e-6)
    assert other.loc == pytest.approx(-float(one.loc), abs=1e-5)


def test_cells_are_independent_of_their_company():
    x = stable.rvs(1.7, size=(2, 3, 150), rng=np.random.default_rng(13))
    x[1] = np.random.default_rng(14).standard_normal((3, 150))
    together = stable.fit(x)
    along = stable.fit(np.moveaxis(x, -1, 0), axis=0)
    for i, j in np.ndindex(2, 3):
        alone = stable.fit(x[i, j])
        for field in (*FIELDS, "loglik", "loglik_gaussian", "iterations", "tied_fraction"):
            assert getattr(alone, field) == getattr(together, field)[i, j]
            assert getattr(alone, field) == getattr(along, field)[i, j]
    assert together.alpha.shape == (2, 3)
    assert together.n_samples == 150
    assert np.all(together.beta == 0)
    assert np.all(together.beta_se == 0)


def test_float32_is_read_as_the_float64_of_the_same_values():
    x = stable.rvs(1.5, size=300, rng=np.random.default_rng(15)).astype(np.float32)
    assert stable.fit(x).alpha == stable.fit(x.astype(np.float64)).alpha
    assert stable.fit(x).alpha.dtype == np.float64
    # Not overwritten.
    y = x.astype(np.float64)
    stable.fit(y)
    np.testing.assert_array_equal(x, y.astype(np.float32))


def test_atoms_are_set_apart():
    rng = np.random.default_rng(16)
    x = stable.rvs(1.5, loc=1, size=2000, rng=rng)
    for value in (0.0, -0.37):
        with_atom = rng.permutation(np.concatenate([x, np.full(3000, value)]))
        found, bare = stable.fit(with_atom), stable.fit(x)
        assert found.status == int(Status.OK)
        assert found.tied_fraction == pytest.approx(0.6)
        for field in FIELDS:
            assert getattr(found, field) == getattr(bare, field)
    # A few ties, as rounding makes them, stay.
    x[:150] = 0.5
    found = stable.fit(x)
    assert found.tied_fraction == 0
    assert np.isfinite(found.alpha)


def test_two_atoms_and_rounded_data():
    rng = np.random.default_rng(17)
    x = np.concatenate([rng.standard_normal(400), np.zeros(200), np.ones(200)])
    assert stable.fit(x).tied_fraction == pytest.approx(0.5)
    rounded = stable.fit(np.round(rng.standard_normal(4000), 1))
    assert rounded.tied_fraction == 0
    assert rounded.alpha > 1.9


def test_statuses():
    rng = np.random.default_rng(18)
    good = rng.standard_normal(50)
    cells = {
        "good": (good, Status.OK),
        "nan": (np.where(np.arange(50) == 3, np.nan, good), Status.NON_FINITE_INPUT),
        "inf": (np.where(np.arange(50) == 3, -np.inf, good), Status.NON_FINITE_INPUT),
        "constant": (np.full(50, 2.5), Status.CONSTANT_INPUT),
        "zeros": (np.where(np.arange(50) < 2, good, 0.0), Status.TOO_FEW_SAMPLES),
        "two values": (np.repeat([0.0, 1.0], 25), Status.TOO_FEW_SAMPLES),
        "edge": (np.sign(good) * np.exp(12 * np.abs(good)), Status.NOT_CONVERGED),
    }
    found = stable.fit(np.array([x for x, _ in cells.values()]))
    assert [Status(code) for code in found.status] == [status for _, status in cells.values()]
    for i, (_, status) in enumerate(cells.values()):
        fitted = status in (Status.OK, Status.NOT_CONVERGED)
        for field in (*FIELDS, "loglik", "loglik_gaussian", "beta"):
            assert np.isfinite(getattr(found, field)[i]) == fitted
    assert found.alpha[-1] == pytest.approx(stable.ALPHA_MIN)
    few = stable.fit(good[:7])
    assert few.status == int(Status.TOO_FEW_SAMPLES)
    assert np.isnan(few.alpha)
    assert stable.fit(np.empty((2, 0))).status.tolist() == [int(Status.TOO_FEW_SAMPLES)] * 2
    assert stable.fit(np.empty((0, 9))).alpha.shape == (0,)


def test_confidence_widens_intervals():
    x = stable.rvs(1.5, size=400, rng=np.random.default_rng(19))
    wide, narrow = stable.fit(x, confidence=0.99), stable.fit(x, confidence=0.68)
    assert wide.alpha_low < narrow.alpha_low < narrow.alpha < narrow.alpha_high < wide.alpha_high
    assert wide.scale_low < narrow.scale_low < narrow.scale < narrow.scale_high < wide.scale_high
    assert wide.loc_low < narrow.loc_low < narrow.loc < narrow.loc_high < wide.loc_high


def test_mohammadi_as_a_method():
    x = stable.rvs(1.5, size=(2, 10_000), rng=np.random.default_rng(20))
    found = stable.fit(x, method="mohammadi")
    assert np.all(np.abs(found.alpha - 1.5) < 0.1)
    assert np.all(np.isnan(found.scale))
    assert np.all(found.alpha_high <= 2)
    cancelling = np.tile([1.0, -1.01], 500) * (1 + 0.01 * np.random.default_rng(21).random(1000))
    negative = stable.fit(cancelling, method="mohammadi")
    assert negative.status == int(Status.NOT_CONVERGED)


def test_bad_arguments():
    with pytest.raises(UsageError, match="method must be 'mle' or 'mohammadi', got 'hill'"):
        stable.fit(np.zeros(10), method="hill")
    with pytest.raises(UsageError, match=r"confidence must be in \(0, 1\), got 95"):
        stable.fit(np.zeros(10), confidence=95)


def test_without_a_level_there_are_no_intervals():
    rng = np.random.default_rng(30)
    x = np.stack([stable.rvs(alpha, size=300, rng=rng) for alpha in (1.3, 1.9, 2.0)])
    found, bare = stable.fit(x), stable.fit(x, confidence=None)
    error = np.where(found.alpha < 2, found.alpha_se, 0)
    assert (np.abs(bare.alpha - found.alpha) <= 0.003 * error).all()
    for name in ("scale", "loc"):
        moved = np.abs(getattr(bare, name) - getattr(found, name))
        assert (moved <= 0.004 * getattr(found, f"{name}_se")).all()
    assert (found.loglik - bare.loglik <= 1e-5).all()
    np.testing.assert_array_equal(bare.status, found.status)
    for name in ("alpha_se", "alpha_low", "alpha_high", "scale_low", "loc_high"):
        assert np.isnan(getattr(bare, name)).all()
    with pytest.raises(UsageError, match="needs a confidence level"):
        stable.fit(x, method="mohammadi", confidence=None)
