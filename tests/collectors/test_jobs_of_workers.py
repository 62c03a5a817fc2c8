"""What analyses say of real jobs of four processes that talk by gloo."""

from pathlib import Path

import numpy as np
import pytest
from plans import computed
from proofs.jobs import ATTACKS, attacked, centres, noisy_mean, quadratic
from proofs.processes import launch

import tracelab
from tracelab import planning
from tracelab.typing import Status
from tracelab_analyses import byzantine, tail_index, training_noise, worker_drift

distributed = pytest.importorskip("torch.distributed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo"),
]
WORLD = 4


def analysed(folder: Path, analysis, steps=None, **parameters):
    trace = tracelab.open(folder / "run.zarr")
    plan = planning.plan(analysis, trace, analysis.resolve(parameters), steps=steps)
    result, failures = computed(plan, trace)
    assert failures == ()
    return result


@pytest.mark.parametrize("attack", ATTACKS)
def test_who_is_not_honest_is_thrown_out_alone(attack: str, tmp_path: Path) -> None:
    launch(attacked, WORLD, tmp_path, 120, attack)
    result = analysed(tmp_path, byzantine.ANALYSIS)
    row = result.sel(layer="network")
    assert row["status"] == Status.OK
    assert row["dimension"] > byzantine.FEW_DIRECTIONS
    out = np.flatnonzero(np.isfinite(row["thrown_out_at"].values)).tolist()
    assert out == ([] if attack == "honest" else [2])
    said = byzantine.finding(result).sentence
    assert ("2 (step" in said) == (attack != "honest")
    if attack == "small drift":
        # Not by any gradient of its own: norms and cosines are those of the others.
        assert row["thrown_out_at"][2] > 20
        norms = tracelab.open(tmp_path / "run.zarr").groups["workers/worker"]
        lengths = norms["gradient_squared_norm"].sum("layer").values
        assert np.median(lengths[:, 2]) < 1.3 * np.median(lengths[:, 0])


@pytest.mark.parametrize(("period", "gossip"), [(5, 0.0), (1, 0.0), (100, 0.3), (4, 0.25)])
def test_drift_is_that_of_the_full_vectors_and_its_closed_form(period, gossip, tmp_path) -> None:
    r"""Weights ``s`` steps behind an average are ``c_i + (1 - r)^s (x - c_i)``.

    So the consensus distance is ``(1 - (1 - r)^s)^2`` times the variance of the ``c_i``.
    """
    steps, rate = 12, 0.2
    found = launch(quadratic, WORLD, tmp_path, steps, period, rate, gossip)
    weights = np.stack([each["weights"] for each in found], axis=1)
    result = analysed(tmp_path, worker_drift.ANALYSIS)
    row = result.sel(layer="x")
    exact = np.square(weights - weights.mean(1, keepdims=True)).sum(2).mean(1)
    np.testing.assert_allclose(row["consensus"], exact, rtol=1e-9, atol=1e-12)
    own = weights - centres(WORLD).numpy()
    scatter = np.square(own - own.mean(1, keepdims=True)).sum(2).mean(1)
    np.testing.assert_allclose(row["scatter"], scatter, rtol=1e-9, atol=1e-12)
    unit = own / np.linalg.norm(own, axis=2, keepdims=True)
    cosines = np.einsum("tik,tjk->tij", unit, unit)[:, ~np.eye(WORLD, dtype=bool)]
    np.testing.assert_allclose(row["cosine"], cosines.mean(1), rtol=1e-9)
    if not gossip:
        behind = np.arange(steps) % period
        spread = np.square(centres(WORLD).numpy() - centres(WORLD).numpy().mean(0)).sum(1).mean()
        closed = (1 - (1 - rate) ** behind) ** 2 * spread
        np.testing.assert_allclose(row["consensus"], closed, rtol=1e-9, atol=1e-12)
    together = np.flatnonzero(row["synchronized"].values).tolist()
    assert together == [step for step in range(steps) if step % period == 0]
    expected = period if period < steps else None
    found_period = worker_drift.synchronization_period(row["step"].values, row["synchronized"])
    assert found_period == expected
    said = worker_drift.finding(result).sentence
    if expected is None:
        assert "never meet" in said
    else:
        assert ("same at every" if period == 1 else f"meet every {period} steps") in said


def test_noise_of_ranks_and_passes_is_the_datas(tmp_path: Path) -> None:
    """Of examples with unit variance in 40 weights, at .5 from the mean in each: 40 / 10 = 4."""
    size = 5
    launch(noisy_mean, WORLD, tmp_path, 60, 6, size)
    result = analysed(tmp_path, training_noise.ANALYSIS, group="workers/micro_batches")
    row = result.sel(layer="x").isel(window=0)
    assert (row["status"], row["n_batches"], row["n_steps"]) == (Status.OK, 24, 60)
    assert row["noise_scale_se"] < 0.3
    assert abs(row["noise_scale"] - 4.0) < 4 * row["noise_scale_se"]
    # Of one pass: a sixth of the mean of five examples.
    assert abs(row["trace_cov"] * 36 * size - 40) < 4 * 36 * size * row["trace_cov_se"]
    # The only noise there is: read without being named.
    again = analysed(tmp_path, training_noise.ANALYSIS)
    np.testing.assert_array_equal(again["noise_scale"], result["noise_scale"])
    tails = analysed(tmp_path, tail_index.ANALYSIS, slice(6), group="workers/micro_batches")
    tails = tails.sel(layer="x")
    assert (tails["status"] == Status.OK).all()
    assert (tails["n_batches"] == 24).all()
    # Gaussian noise: intervals reach 2, but for one of 20.
    assert (tails["alpha_high"] > 1.99).sum() >= 5
    # Workers have the same weights and data: what parts their gradients is noise, of 40 / 30 each.
    drift = analysed(tmp_path, worker_drift.ANALYSIS).sel(layer="x")
    assert drift["synchronized"].all()
    difference = drift["dissimilarity"].values
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / np.sqrt(60)
    # Three degrees of freedom of 4 workers and 40 weights, in 60 steps: sd of a mean 1.7 %.
    assert drift["scatter"].mean() == pytest.approx(40 / 30 * 0.75, rel=0.07)
