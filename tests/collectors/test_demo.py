import numpy as np
import pytest
import torch

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors.demo import FULL, QUICK, RUNS, Length, train

TINY = Length(steps=12, batches=6, probes=3, coordinates=4, directions=4)
NAMES = ["sgd-batch-32", "sgd-batch-512", "adam-batch-32"]


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    paths = train(tmp_path_factory.mktemp("demo"), length=TINY)
    return [tracelab.open(path) for path in paths]


def test_three_runs_of_two_batch_sizes_and_two_optimizers(traces):
    assert [run.name for run in RUNS] == NAMES
    assert [trace.groups["noise"].attrs["batch_size"] for trace in traces] == [32, 512, 32]
    assert [trace.attrs["optimizer"]["name"] for trace in traces] == ["SGD", "SGD", "Adam"]
    assert [trace.state for trace in traces] == ["complete"] * 3


def test_everything_asked_for_is_recorded(traces):
    for trace in traces:
        assert trace.groups["statistics"].sizes["step"] == TINY.steps
        # The weights after the last step are recorded too.
        assert trace.groups["weights"]["step"].values.tolist() == [0, 10, TINY.steps]
        noise = trace.groups["noise"]
        assert noise["step"].values.tolist() == [0, 2, 11]
        assert noise.sizes["batch"] == TINY.batches
        assert {"sampled", "projected", "mean_sampled", "squared_deviation"} <= set(noise)
        assert np.isfinite(noise["sampled"].values).all()
        assert np.isfinite(trace.steps["loss"].values).all()


def test_runs_start_from_the_same_weights(traces):
    first = [trace.groups["weights"]["projected"].isel(step=0).values for trace in traces]
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], first[2])


def test_a_seed_fixes_everything_and_no_global_state_moves(traces, tmp_path):
    state = torch.get_rng_state()
    again = train(tmp_path, length=TINY)
    assert torch.equal(torch.get_rng_state(), state)
    for trace, path in zip(traces, again, strict=True):
        other = tracelab.open(path)
        for group, name in (("noise", "sampled"), ("weights", "projected"), ("steps", "loss")):
            np.testing.assert_array_equal(
                trace.groups[group][name].values, other.groups[group][name].values
            )


def test_an_older_trace_is_replaced_on_demand_only(tmp_path):
    train(tmp_path, length=TINY)
    with pytest.raises(UsageError, match=r"sgd-batch-32\.zarr"):
        train(tmp_path, length=TINY)
    calls = []
    train(tmp_path, length=TINY, overwrite=True, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("adam-batch-32", TINY.steps, TINY.steps)
    assert len(calls) == 3 * TINY.steps


def test_probes_are_enough_for_an_interval():
    for length in (FULL, QUICK):
        assert length.batches >= 300
        assert length.probes >= 2
