"""Inputs of which a cell gets every step, and outputs of a layer along steps."""

import numpy as np
import pytest
import xarray as xr
from plans import computed

import tracelab
from tracelab import cutting, planning, reuse
from tracelab.contracts import Analysis, Finding, Input, Reference, Variable
from tracelab.errors import NotRecordedError
from tracelab.typing import Status

LAYERS = {"a": (2, 2), "b": (3,)}
EVERY, PROBED = range(12), (0, 4, 9)


def steps_taken(distance, rate, at, step):
    """Return the distance at each probe over the sum of the rates before it."""
    before = (at[None, :] < step[:, None]) * rate[None, :]
    ratio = distance / (1 + before.sum(axis=1))
    layers = len(distance)
    return {
        "ratio": ratio,
        "ratio_se": np.zeros_like(ratio),
        "n_rates": np.full(layers, rate.size),
        "status": np.zeros(layers),
    }


ANALYSIS = Analysis(
    name="ratio",
    summary="Distance over the rates before",
    version=1,
    inputs=(
        Input(Variable("distance", ("layer", "step"), "weight"), ("weights/distance",), "sum"),
        Input(Variable("step", ("step",), "step", "int64"), ("weights/step",)),
        Input(
            Variable("rate", ("every_step",), "weight^2/loss"),
            ("steps/learning_rate",),
            whole=True,
            collector="a loop with a rate",
        ),
        Input(Variable("at", ("every_step",), "step", "int64"), ("steps/step",), whole=True),
    ),
    outputs=(
        Variable("ratio", ("layer", "step"), description="ratio"),
        Variable("ratio_se", ("layer", "step"), description="its error"),
        Variable("n_rates", ("layer",), dtype="int64", description="rates"),
        Variable("status", ("layer",), dtype="uint8"),
    ),
    cell=("layer",),
    kernel=steps_taken,
    finding=lambda result: Finding("Said."),
    plot=lambda results: None,
    references=(Reference("none"),),
)


@pytest.fixture
def trace(tmp_path):
    with tracelab.create(tmp_path / "run.zarr", LAYERS) as writer:
        for step in EVERY:
            writer.append("steps", step=step, learning_rate=0.5)
            if step in PROBED:
                writer.append("weights", step=step, distance=[1.0 + step, 2.0], norm=np.ones(2))
    return tracelab.open(tmp_path / "run.zarr")


def plan(trace, **options):
    return planning.plan(ANALYSIS, trace, {}, **options)


def test_every_cell_gets_all_steps_of_a_whole_input(trace):
    result, failures = computed(plan(trace), trace)
    assert failures == ()
    assert result["ratio"].dims == ("layer", "step")
    assert result["step"].values.tolist() == list(PROBED)
    assert result["step"].attrs == {"units": "step"}
    assert (result["n_rates"] == len(EVERY)).all()
    before = 1 + 0.5 * np.array(PROBED)
    distance = np.array([[1.0 + step for step in PROBED], [2.0] * 3])
    wanted = np.vstack([distance, distance.sum(0)]) / before
    np.testing.assert_array_equal(result["ratio"], wanted)
    assert (result["status"] == int(Status.OK)).all()


def test_a_selection_of_steps_is_not_one_of_whole_inputs(trace):
    result, _ = computed(plan(trace, steps=slice(1, None)), trace)
    whole, _ = computed(plan(trace), trace)
    xr.testing.assert_identical(result, whole.sel(step=list(PROBED[1:])))


def test_cut_into_single_cells_nothing_changes(trace, monkeypatch):
    whole, _ = computed(plan(trace), trace)
    for name in ("BLOCK_BYTES", "SHARED_BYTES"):
        monkeypatch.setattr(cutting, name, 1)
    monkeypatch.setattr(planning, "PIECE_BYTES", 1)
    fine = plan(trace)
    assert len(fine.blocks) == len(LAYERS) + 1
    xr.testing.assert_identical(computed(fine, trace)[0], whole)


def test_a_row_more_of_a_whole_input_makes_another_result(tmp_path):
    with tracelab.create(tmp_path / "grows.zarr", LAYERS) as writer:
        for step in EVERY:
            writer.append("steps", step=step, learning_rate=0.5)
        for step in PROBED:
            writer.append("weights", step=step, distance=np.ones(2), norm=np.ones(2))
        writer.flush()
        before = tracelab.open(tmp_path / "grows.zarr")
        writer.append("steps", step=len(EVERY), learning_rate=0.5)
        writer.flush()
        after = tracelab.open(tmp_path / "grows.zarr")
        assert plan(before).steps == plan(after).steps
        bases = [reuse.identify(plan(trace), trace).kind.basis for trace in (before, after)]
    assert bases[0] != bases[1]


def test_what_is_lacking_is_named_with_what_records_it(tmp_path):
    with tracelab.create(tmp_path / "bare.zarr", LAYERS) as writer:
        writer.append("weights", step=0, distance=np.ones(2), norm=np.ones(2))
    with pytest.raises(NotRecordedError, match="record it with a loop with a rate; it holds"):
        plan(tracelab.open(tmp_path / "bare.zarr"))
