import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tracelab
from tracelab import engine, planning
from tracelab.errors import NotRecordedError
from tracelab.typing import Status
from tracelab_analyses.training_noise import ANALYSIS, training_noise

D, B = 40, 8


def micro_batches(rng, steps, count, signal, factor=1.0):
    """Return gradients (step, batch, D) of norm squared `signal` with covariance of trace D / B."""
    mean = np.full(D, np.sqrt(signal / D))
    return factor * (mean + rng.standard_normal((steps, count, D)) / np.sqrt(B))


def run(gradients, **options):
    norm = np.sum(gradients**2, axis=-1)[None]
    count = gradients.shape[1]
    own = gradients - gradients.mean(axis=1, keepdims=True)
    deviation = count / max(count - 1, 1) * np.sum(own**2, axis=-1)[None]
    found = training_noise(norm, deviation, np.arange(len(gradients)), np.array(B), **options)
    return {name: array[0] for name, array in found.items()}


def test_is_the_estimate_of_two_sizes():
    """As McCandlish et al. write it, from norms at the micro-batch's size and at that of all."""
    count = 4
    g = micro_batches(np.random.default_rng(0), 60, count, 2.0)
    small, big = np.mean(np.sum(g**2, axis=-1)), np.mean(np.sum(g.mean(axis=1) ** 2, axis=-1))
    square = (count * B * big - B * small) / (count * B - B)
    trace = (small - big) / (1 / B - 1 / (count * B))
    found = run(g)
    assert found["signal"][0] == pytest.approx(square, rel=1e-10)
    assert B * found["trace_cov"][0] == pytest.approx(trace, rel=1e-10)
    assert found["noise_scale"][0] == pytest.approx(trace / square, rel=1e-10)


@pytest.mark.parametrize("count", [2, 5])
def test_without_bias(count):
    """60,000 steps in windows of 6,000: trace and signal within 4 standard errors of the truth."""
    found = run(micro_batches(np.random.default_rng(1), 60_000, count, 1.0))
    for name, truth in (("trace_cov", D / B), ("signal", 1.0), ("noise_scale", D / 1.0)):
        error = found[f"{name}_se"]
        assert (np.abs(found[name] - truth) < 4 * error).all(), name
        assert (error < 0.1 * truth).all()
        # The windows' scatter is what the errors say: chi-squared of 10, 99.9 % in 1.5 to 30.
        assert 1.5 < np.sum((found[name] - truth) ** 2 / error**2) < 30


def test_intervals_hold_their_level():
    """2,000 windows of 30 steps: 95 % within 4 sd of a share, and 2 % for skewed squares."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        found = run(micro_batches(rng, 300, 3, 0.6))
        inside += np.sum(
            (found["noise_scale_low"] <= D / 0.6) & (found["noise_scale_high"] >= D / 0.6)
        )
    assert abs(inside / 2_000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2_000) + 0.02


def test_a_signal_near_nothing_leaves_the_upper_end_open():
    """Two standard errors from 0: intervals are closed or not, and lower ends hold alike.

    Each end is missed by 2.5 %, within 4 sd of a share of 1,000 windows and 1 % for skewness.
    """
    rng = np.random.default_rng(5)
    found = [run(micro_batches(rng, 300, 3, 0.18)) for _ in range(100)]
    low = np.concatenate([each["noise_scale_low"] for each in found])
    high = np.concatenate([each["noise_scale_high"] for each in found])
    assert 0.2 < np.isinf(high).mean() < 0.8
    missed = np.mean(low > D / 0.18)
    assert missed < 0.025 + 4 * np.sqrt(0.025 * 0.975 / 1_000) + 0.01


def test_a_gradient_that_noise_hides_is_not_told():
    g = micro_batches(np.random.default_rng(3), 400, 2, 0.0)
    found = run(g)
    known = np.isfinite(found["noise_scale"])
    assert 0 < known.sum() < 10
    assert np.isinf(found["noise_scale_high"][known]).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    factor=st.floats(1e-3, 1e3),
    order=st.permutations(range(4)),
)
def test_invariances(seed, factor, order):
    """A factor of all losses, the order of passes, and steps that lack one."""
    g = micro_batches(np.random.default_rng(seed), 90, 4, 4.0)
    base, other = run(g), run(factor * g[:, order])
    for name in ("noise_scale", "noise_scale_se", "noise_scale_low", "noise_scale_high"):
        np.testing.assert_allclose(other[name], base[name], rtol=1e-8)
    lacking = np.insert(g, [3, 40], np.nan, axis=0)
    found = run(lacking[:, :, :])
    assert (found["n_missing"], found["n_steps"].sum()) == (2, 90)


@pytest.mark.parametrize(
    ("gradients", "status"),
    [
        (np.ones((40, 1, D)), Status.TOO_FEW_SAMPLES),
        (np.ones((4, 3, D)), Status.TOO_FEW_SAMPLES),
        (np.ones((40, 3, D)), Status.CONSTANT_INPUT),
        (np.full((40, 3, D), np.nan), Status.NON_FINITE_INPUT),
    ],
)
def test_what_cannot_be_estimated_says_why(gradients, status):
    assert run(gradients)["status"] == status


def test_reads_what_was_recorded_of_passes(tmp_path):
    """From full vectors, with a step that has fewer, and beside a probe of other noise."""
    g = micro_batches(np.random.default_rng(4), 30, 3, 4.0)
    with tracelab.create(tmp_path / "a", {"u": (25,), "v": (15,)}) as writer:
        writer.define("micro_batches", kind="noise", attrs={"batch_size": B})
        writer.define("noise", attrs={"batch_size": 64})
        for step, row in enumerate(g):
            kept = row.copy()
            kept[2:] = np.nan if step == 7 else kept[2:]
            writer.append("micro_batches", step=step, full=kept)
        writer.append("noise", step=0, full=np.ones((5, D)))
    trace = tracelab.open(tmp_path / "a")
    plan = planning.plan(ANALYSIS, trace, ANALYSIS.resolve({}))
    ((_, outputs, failures),) = engine.stream(plan, trace, engine.Execution())
    assert not failures
    assert plan.labels == ("u", "v", "network")
    expected = run(np.delete(g, 7, axis=0))
    for name in ("noise_scale", "trace_cov", "signal", "noise_scale_high"):
        # Gradients are rounded to float32 when they are stored.
        np.testing.assert_allclose(outputs[name][2], expected[name], rtol=1e-5)
    assert outputs["n_missing"].tolist() == [1, 1, 1]


def test_the_size_of_a_probes_batches_is_not_that_of_micro_batches(tmp_path):
    """A noise scale from the norms of one and the size of the other is of neither."""
    with tracelab.create(tmp_path / "a", {"u": (25,), "v": (15,)}) as writer:
        writer.define("micro_batches", kind="noise")
        writer.define("noise", attrs={"batch_size": 64})
        for step in range(10):
            writer.append("micro_batches", step=step, full=np.ones((2, D)))
            writer.append("noise", step=step, full=np.ones((5, D)))
    trace = tracelab.open(tmp_path / "a")
    with pytest.raises(NotRecordedError, match=r"MicroBatches\(batches=2, batch_size=...\)"):
        planning.plan(ANALYSIS, trace, ANALYSIS.resolve({}))
    named = planning.plan(ANALYSIS, trace, ANALYSIS.resolve({"group": "noise"}))
    assert named.reads["batch_size"].value == 64


@pytest.mark.parametrize("begins", [True, False])
def test_a_rank_that_never_began_leaves_the_others_to_be_read(begins, tmp_path):
    """Two of three ranks: the numbers are of their passes, and who lacks is said."""
    g = micro_batches(np.random.default_rng(4), 30, 4, 4.0)
    path = tmp_path / "a"
    with tracelab.create(path, {"u": (25,), "v": (15,)}, run="job", world_size=3):
        pass
    ranks = {0: g[:, :2], 2: g[:, 2:]} | ({1: g[:0]} if begins else {})
    for rank, rows in ranks.items():
        options = {"rank": rank, "world_size": 3, "run": "job"}
        with tracelab.create(path, {"u": (25,), "v": (15,)}, **options) as writer:
            writer.define("micro_batches", kind="noise", attrs={"batch_size": B})
            for step, row in enumerate(rows):
                writer.append("micro_batches", step=step, full=row)
    result = tracelab.analyze(str(path), "training_noise")["training_noise"]
    row = result.sel(layer="network")
    assert (row["status"], row["n_batches"], row["n_missing"]) == (Status.OK, 4, 0)
    expected = run(g)
    for name in ("noise_scale", "trace_cov"):
        # Gradients are rounded to float32 when they are stored.
        np.testing.assert_allclose(row[name], expected[name], rtol=1e-5)
    words = (
        "Of rank 1 nothing is recorded in workers/micro_batches: the result is of the other 2 of "
        "3 ranks."
    )
    assert words in result.attrs["warnings"]


def test_declares_what_it_returns():
    found = run(micro_batches(np.random.default_rng(0), 30, 2, 1.0))
    assert set(found) == {each.name for each in ANALYSIS.outputs}
