"""What the analyses say about noise whose law is known, through a stored trace."""

import numpy as np
import pytest

import tracelab
from tracelab.stats import stable
from tracelab.typing import Status

MODES = ("batches", "standardized", "pooled")


def store(path, probes):
    """Write probes (step, batch, coordinate) of one layer's noise."""
    with tracelab.create(path, layers={"w": (probes.shape[-1],)}) as writer:
        for step, values in enumerate(probes):
            writer.append("noise", step=step, sampled=values)
    return tracelab.open(path)


@pytest.fixture(scope="module")
def mixed_scales(tmp_path_factory):
    """Exactly Gaussian coordinates whose scales are log-normal with standard deviation 1."""
    rng = np.random.default_rng(20_240_601)
    scales = np.exp(rng.standard_normal(2_000))
    return store(
        tmp_path_factory.mktemp("mixed") / "mixed.zarr",
        rng.standard_normal((2, 200, 2_000)) * scales,
    )


def test_pooling_gaussian_noise_of_mixed_scales_reads_heavy_tails(mixed_scales):
    """Expected 1.06 by maximum likelihood and 1.45 to 1.55 by Mohammadi; not quite what is found.

    Over 12 other seeds: 1.078 to 1.106 (mean 1.092), and 1.505 to 1.581 (mean 1.536). The spread
    is that of the drawn scales, so the upper bound of the second is wider than expected.
    """
    found = tracelab.analyze(mixed_scales, "tail_index", mode="pooled")["tail_index"]
    assert found["alpha"].values == pytest.approx(1.06, abs=0.05)
    assert np.all((found["alpha_mohammadi"] > 1.45) & (found["alpha_mohammadi"] < 1.60))
    assert np.all(found["alpha_high"] < 1.5)
    # The control gives the artefact away, and the warning says so.
    assert found["alpha_control"].values == pytest.approx(found["alpha"].values, abs=0.05)
    assert any("mimic heavy tails" in warning for warning in found.attrs["warnings"])


@pytest.mark.parametrize("mode", ["batches", "standardized"])
def test_the_other_modes_call_it_gaussian(mixed_scales, mode):
    found = tracelab.analyze(mixed_scales, "tail_index", mode=mode)["tail_index"]
    assert np.all(found["alpha"] > 1.99)
    assert np.all(found["alpha_high"] == 2)


@pytest.mark.parametrize("mode", MODES)
def test_gaussianity_of_mixed_scales(mixed_scales, mode):
    found = tracelab.analyze(mixed_scales, "gaussianity", mode=mode)["gaussianity"]
    rate = found["rejection_rate"]
    if mode == "pooled":
        assert np.all(rate == 1)
        assert np.all(found["rejection_rate_control"] == 1)
        assert any("even when each is exactly Gaussian" in w for w in found.attrs["warnings"])
    elif mode == "batches":
        # 2,000 independent series: 5 % within 5 binomial standard deviations of 0.5 %.
        assert rate.values == pytest.approx(0.05, abs=0.025)
        assert np.all(found["rejection_rate_corrected"] < 0.005)
    else:
        # Four p-values, each uniform on multiples of 1/20: one may be at 1/20.
        assert np.sum(found["pvalue"].values <= 0.05) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.8])
def test_intervals_cover_alpha_at_their_rate(tmp_path, alpha, mode):
    """200 probes of 200 batches of 32 coordinates, interval of 95 %: at least 95 % - 4 sd."""
    rng = np.random.default_rng([int(10 * alpha), MODES.index(mode)])
    scales = np.ones(32) if mode == "pooled" else np.exp(rng.standard_normal(32))
    trace = store(tmp_path / "a.zarr", scales * stable.rvs(alpha, size=(200, 200, 32), rng=rng))
    found = tracelab.analyze(trace, "tail_index", mode=mode)["tail_index"]
    assert np.all(found["status"] == int(Status.OK))
    inside = (found["alpha_low"] <= alpha) & (alpha <= found["alpha_high"])
    assert float(inside.mean()) > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 200)
    # Not by being too wide: the mean is as near as 200 estimates of that spread must be.
    spread = float(found["alpha"].std())
    assert float(found["alpha"].mean()) == pytest.approx(alpha, abs=4 * spread / np.sqrt(200))


def test_stable_noise_fits_a_stable_law_and_laplace_noise_does_not(tmp_path):
    rng = np.random.default_rng(8)
    draws = {
        "stable": stable.rvs(1.5, size=(1, 1_000, 20), rng=rng),
        "laplace": rng.laplace(size=(1, 1_000, 20)),
    }
    rates = {}
    for name, values in draws.items():
        found = tracelab.analyze(store(tmp_path / f"{name}.zarr", values), "tail_index")
        rates[name] = float(found["tail_index"]["gof_rejection_rate"][0, 0])
        assert float(found["tail_index"]["alpha"][0, 0]) < 1.9
    # 20 series at 5 %: more than 5 rejections have probability 3e-4.
    assert rates["stable"] <= 0.25
    assert rates["laplace"] > 0.5


@pytest.mark.slow
def test_standardized_gaussianity_has_its_size_when_coordinates_depend(tmp_path):
    """Jointly Gaussian coordinates of rank 3: 100 cells, reject at 5 % within 4 binomial sd."""
    rng = np.random.default_rng(11)
    mixing = rng.standard_normal((3, 40))
    probes = rng.standard_normal((100, 100, 3)) @ mixing
    found = tracelab.analyze(store(tmp_path / "a.zarr", probes), "gaussianity", mode="standardized")
    rate = found["gaussianity"]["rejection_rate"].mean("step").values
    assert np.all(rate < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 100))


def test_series_of_dead_units_do_not_spoil_a_cell(tmp_path):
    """A coordinate that is zero in seven of ten minibatches has no density; the others do."""
    rng = np.random.default_rng(3)
    probes = stable.rvs(1.6, size=(1, 300, 12), rng=rng)
    alone = tracelab.analyze(store(tmp_path / "a.zarr", probes), "tail_index")["tail_index"]
    dead = probes.copy()
    dead[0, :210, :2] = 0
    both = tracelab.analyze(store(tmp_path / "b.zarr", dead), "tail_index")["tail_index"]
    assert int(both["status"][0, 0]) == int(Status.OK)
    assert int(both["n_dropped"][0, 0]) == 2
    assert int(both["n_series"][0, 0]) == 10
    assert float(both["alpha"][0, 0]) == pytest.approx(
        float(alone["alpha"][0, 0]), abs=3 * float(alone["alpha_se"][0, 0])
    )
