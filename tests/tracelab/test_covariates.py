"""Depth, learning rate and batch size beside results, and tables of all cells of runs."""

import numpy as np
import pytest

import tracelab
from tracelab.covariates import with_covariates
from tracelab.errors import NotRecordedError

LAYERS = {"a": (4, 6), "b": (4,), "c": (3,)}


def record(path, *, rate=0.1, batch_size=8, minibatches=True, steps=True):
    rng = np.random.default_rng(3)
    table = (np.repeat([0, 1], 4), np.tile(np.arange(4) % 3, 2))
    attrs = {"optimizer": {"name": "SGD", "lr": rate}}
    with tracelab.create(path, layers=LAYERS, attrs=attrs) as writer:
        name = "noise" if minibatches else "examples"
        given = {"batch_size": batch_size} if minibatches and batch_size else {}
        writer.define(name, layers=("c", "a"), coordinates=table, attrs={"n_data": 1_000, **given})
        for step in range(0, 12, 2) if steps else ():
            writer.append("steps", step=step, loss=1.0, learning_rate=rate / (1 + step))
        for step in (0, 3, 40):
            writer.append(name, step=step, sampled=rng.standard_t(4, (60, 8)))
    return tracelab.open(path)


def test_covariates_are_those_of_the_cells(tmp_path):
    trace = record(tmp_path / "a.zarr")
    found = with_covariates(tracelab.analyze(trace, "tail_index")["tail_index"], trace)
    assert found["layer"].values.tolist() == ["c", "a", "network"]
    np.testing.assert_array_equal(found["depth"], [2, 0, np.nan])
    # The last row at or before the step: of steps 0, 2 and 10.
    np.testing.assert_allclose(found["learning_rate"], [0.1, 0.1 / 3, 0.1 / 11])
    assert found["learning_rate"].dims == ("step",)
    assert float(found["noise_batch_size"]) == 8
    larger = tracelab.analyze(trace, "tail_index", batch_size=16)["tail_index"]
    assert float(with_covariates(larger, trace)["noise_batch_size"]) == 16


def test_what_a_trace_does_not_say_is_missing(tmp_path):
    trace = record(tmp_path / "a.zarr", batch_size=None, steps=False)
    found = with_covariates(tracelab.analyze(trace, "tail_index")["tail_index"], trace)
    assert np.isnan(found["learning_rate"]).all()
    assert np.isnan(found["noise_batch_size"])
    examples = record(tmp_path / "b.zarr", minibatches=False)
    found = tracelab.analyze(examples, "tail_index")["tail_index"]
    assert float(with_covariates(found, examples)["noise_batch_size"]) == 1


def test_runs_have_a_table_of_all_cells(tmp_path):
    for name, rate, size in (("slow", 0.01, 8), ("fast", 0.1, 32)):
        trace = record(tmp_path / f"{name}.zarr", rate=rate, batch_size=size)
        for given in ({}, {"batch_size": 2 * size}, {"mode": "pooled"}):
            tracelab.analyze(trace, "tail_index", **given)
    runs = tracelab.open_runs(tmp_path)
    table = runs.cells("tail_index", mode="batches")
    # Two runs, two batch sizes, three steps, two layers and the network.
    assert len(table) == 2 * 2 * 3 * 3
    assert list(table)[:6] == [
        "run", "layer", "step", "depth", "learning_rate", "noise_batch_size",
    ]  # fmt: skip
    assert set(table["noise_batch_size"]) == {8, 16, 32, 64}
    assert set(table["optimizer.lr"]) == {0.01, 0.1}
    assert "alpha_profile" not in table
    assert "parameters.mode" not in table
    one = table[
        (table["run"] == "fast") & (table["noise_batch_size"] == 32) & (table["layer"] == "a")
    ]
    stored = tracelab.open(tmp_path / "fast.zarr").results.newest(
        "tail_index", mode="batches", batch_size=None
    )
    np.testing.assert_array_equal(one["alpha"], stored["alpha"].sel(layer="a"))
    np.testing.assert_allclose(one["learning_rate"], [0.1, 0.1 / 3, 0.1 / 11])
    assert set(runs.cells("tail_index")["parameters.mode"]) == {"batches", "pooled"}
    with pytest.raises(NotRecordedError, match="none of 2 runs has such a result of 'tail_index'"):
        runs.cells("tail_index", mode="standardized")
