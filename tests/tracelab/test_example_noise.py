"""Analyses of batches that are drawn from the gradients of single examples."""

import numpy as np
import pytest
import xarray as xr
from plans import computed, plan_of

import tracelab
from tracelab import cutting, drawing, engine, loading, memory, planning
from tracelab.contracts import NETWORK
from tracelab.errors import NotRecordedError, UsageError

LAYERS = {"a": (4, 6), "b": (4,), "c": (3,)}
STEPS, EXAMPLES = (0, 3, 10), 60
OWNERS = np.array([0, 0, 0, 1, 1, 2, 0, 1])


def record(path, *, mean=True, minibatches=False, live=False, **attrs):
    """Write gradients of examples of every sketch, heavier in their tails the later the step."""
    rng = np.random.default_rng(2)
    table = (OWNERS, np.array([OWNERS[:i].tolist().count(o) for i, o in enumerate(OWNERS)]))
    given = {"n_data": 500, **attrs}
    with tracelab.create(path, layers=LAYERS) as writer:
        writer.define("examples", attrs=given, coordinates=table)
        if live:
            writer.define("live_examples", kind="examples", attrs=given, coordinates=table)
        if minibatches:
            writer.define(
                "noise", attrs={"batch_size": 8, "replacement": True, "n_data": 500},
                coordinates=table,
            )  # fmt: skip
        for step in STEPS:
            arrays = {
                "sampled": rng.standard_t(3, (EXAMPLES, 8)) + 1,
                "projected": rng.standard_normal((EXAMPLES, 3, 5)) + 1,
            }
            means = {
                "mean_sampled": rng.standard_normal(8),
                "mean_projected": rng.standard_normal((3, 5)),
            }
            for name in ("examples", "live_examples") if live else ("examples",):
                writer.append(name, step=step, **arrays, **(means if mean else {}))
            if minibatches:
                writer.append("noise", step=step, **arrays, **means)
    return tracelab.open(path)


@pytest.fixture
def trace(tmp_path):
    return record(tmp_path / "run.zarr")


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("sketch", ["sampled", "projected"])
@pytest.mark.parametrize("mode", ["batches", "standardized"])
@pytest.mark.parametrize(
    "draws",
    [
        {},
        {"batch_size": 7},
        {"batch_size": 7, "batches": 33, "replacement": False},
        {"batch_size": 90, "batches": 25},
    ],
)
def test_cells_are_those_of_the_public_view(tmp_path, mean, sketch, mode, draws):
    trace = record(tmp_path / "a.zarr", mean=mean)
    plan = plan_of(
        trace, "tail_index", {"sketch": sketch, "mode": mode, **draws},
        steps=slice(1, None), seed=5,
    )  # fmt: skip
    parts = [part for block in plan.blocks for part in loading.load(plan, block, trace)]
    found = {(plan.steps[b.first], plan.labels[b.left]): inputs["noise"] for b, inputs in parts}
    assert set(found) == {(step, label) for step in STEPS[1:] for label in (*LAYERS, NETWORK)}
    for (step, label), samples in found.items():
        # Draws are given to the public view only where there are any.
        options = {"seed": 5, **draws} if draws else {}
        wanted = trace.noise(
            group="examples", step=[step], layer=label, sketch=sketch, **options
        ).values
        if mode == "standardized":
            low, middle, high = np.quantile(wanted, [0.25, 0.5, 0.75], axis=1, keepdims=True)
            wanted = (wanted - middle) / (high - low)
        # The public view sums the layers of the network in float32.
        np.testing.assert_allclose(samples[0], wanted, rtol=1e-5, atol=2e-6)


def test_draws_do_not_depend_on_how_many_are_counted_at_a_time(monkeypatch):
    for replacement in (True, False):
        draws = drawing.Draws.checked(30, batch_size=5, batches=17, replacement=replacement, seed=1)
        whole = draws.counts(4)
        held = draws.at(4)
        monkeypatch.setattr(drawing, "COUNTS", 60)
        np.testing.assert_array_equal(draws.counts(4), whole)
        np.testing.assert_array_equal(draws.at(4).places, held.places)
        assert held.nbytes <= draws.held_bytes
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["tail_index", "gaussianity", "noise_law"])
def test_same_bits_for_any_cutting_and_any_memory(trace, name, monkeypatch):
    parameters = {"batch_size": 4, "batches": 50}
    whole, failures = computed(plan_of(trace, name, parameters), trace)
    assert failures == ()
    assert (whole["n_batches"] == 50).all()
    for module, bound, value in (
        (cutting, "MAX_TASKS", 10_000),
        (cutting, "BLOCK_BYTES", 1),
        (cutting, "SHARED_BYTES", 1),
        (planning, "PIECE_BYTES", 1),
        (loading, "HELD_BYTES", 1),
    ):
        monkeypatch.setattr(module, bound, value)
    plan = plan_of(trace, name, parameters)
    assert len(plan.blocks) == 12
    # On threads, where what is held is bounded as above; of worker processes one analysis tells.
    fine, _ = computed(plan, trace)
    xr.testing.assert_identical(whole, fine)
    if name == "tail_index":
        there, _ = computed(plan, trace, engine.Execution(workers=2))
        xr.testing.assert_identical(whole, there)


def test_batch_sizes_are_results_of_their_own(trace):
    found = {
        size: tracelab.analyze(trace, "tail_index", batch_size=size, batches=300)["tail_index"]
        for size in (2, 8, 64)
    }
    assert len(trace.results.all("tail_index")) == 3
    alphas = [float(found[size]["alpha"].sel(layer="a").mean()) for size in (2, 8, 64)]
    # Means of more values of Student's law with three degrees are closer to Gaussian.
    assert alphas[0] < 1.8 < alphas[1] < alphas[2]
    joined = trace.results.along("tail_index", "batch_size")
    assert joined["alpha"].dims == ("batch_size", "step", "layer")
    assert joined["batch_size"].values.tolist() == [2, 8, 64]
    for size, result in found.items():
        np.testing.assert_array_equal(joined["alpha"].sel(batch_size=size), result["alpha"])
    assert "single examples" in " ".join(found[8].attrs["warnings"])
    with pytest.raises(NotRecordedError, match="no result of 'tail_index' with a value of 'batch"):
        trace.results.along("tail_index", "batch_size", mode="pooled")
    pooled = tracelab.analyze(trace, "tail_index", batch_size=8, mode="pooled")["tail_index"]
    newest = trace.results.along("tail_index", "batch_size")
    xr.testing.assert_equal(newest["alpha"].isel(batch_size=0, drop=True), pooled["alpha"])
    other = tracelab.analyze(trace, "tail_index", batch_size=8, batches=300, seed=1)["tail_index"]
    assert (other["alpha"] != found[8]["alpha"]).any()


def test_the_group_is_chosen(tmp_path):
    trace = record(tmp_path / "a.zarr", minibatches=True, live=True)
    assert plan_of(trace, "tail_index").groups == {"noise": "noise"}
    assert plan_of(trace, "tail_index").sources == {"noise": "noise"}
    for name in ("examples", "live_examples"):
        plan = plan_of(trace, "tail_index", {"group": name})
        assert (plan.groups, plan.sources) == ({"examples": name}, {"noise": "examples"})
    with pytest.raises(
        NotRecordedError, match="'noises' is none of this trace; there are: examples,"
    ):
        plan_of(trace, "tail_index", {"group": "noises"})
    only = record(tmp_path / "b.zarr", live=True)
    assert plan_of(only, "tail_index").groups == {"examples": "examples"}


def test_what_cannot_be_drawn_is_refused_before_anything_is_computed(tmp_path):
    trace = record(tmp_path / "a.zarr", minibatches=True)
    refusals = {
        "batch_size=20 cannot be synthesised from batches of 8": {"batch_size": 20},
        "batches=5, replacement=False: batches are drawn from": {
            "batches": 5, "replacement": False,
        },
        "batch_size=61 without replacement exceeds the 60 recorded examples": {
            "group": "examples", "batch_size": 61, "replacement": False,
        },
    }  # fmt: skip
    for words, parameters in refusals.items():
        with pytest.raises(UsageError, match=words):
            tracelab.analyze(trace, "tail_index", **parameters)
    spoiled = record(tmp_path / "b.zarr", mean_over_examples=False)
    assert plan_of(spoiled, "tail_index").blocks
    with pytest.raises(UsageError, match="mean_over_examples=False"):
        tracelab.analyze(spoiled, "tail_index", batch_size=2)


def test_memory_is_set_aside_for_the_batches(trace):
    few = plan_of(trace, "tail_index", {"batch_size": 4})
    many = plan_of(trace, "tail_index", {"batch_size": 4, "batches": 60_000})
    widest = 8 * 60_000 * 8
    assert memory.needed(many, many.whole) > memory.PEAK * widest
    assert memory.needed(few, few.whole) < memory.READING_BYTES + 2**20
