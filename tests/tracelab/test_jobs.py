import json
import shutil

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from traces import STEPS, write_trace

import tracelab
from tracelab import engine, jobs, registry
from tracelab.errors import NotRecordedError, UsageError


@pytest.fixture(scope="module")
def analysed(small, tmp_path_factory):
    """Run everything on a trace; return where it is, and the results."""
    path = shutil.copytree(small, tmp_path_factory.mktemp("analysed") / "a.zarr")
    return path, jobs.analyze(tracelab.open(path))


@pytest.fixture
def no_kernels(monkeypatch):
    """Make every computation fail: what passes was read from the store."""

    def refuse(*_, **__):
        raise AssertionError("something was computed")

    return lambda: monkeypatch.setattr(engine, "stream", refuse)


def test_runs_everything_that_fits_and_stores_it(analysed):
    path, results = analysed
    trace = tracelab.open(path)
    assert set(results) == set(registry.analyses())
    assert set(trace.results) == set(results)
    for name, result in results.items():
        xr.testing.assert_identical(trace.results[name].load(), result.load())


def test_a_second_run_computes_nothing(analysed, no_kernels):
    path, first = analysed
    no_kernels()
    said = []
    second = jobs.analyze(
        tracelab.open(path),
        announce=lambda name, how, counts: said.append((how, counts.computed)),
    )
    assert set(said) == {("stored", 0)}
    for name, result in first.items():
        xr.testing.assert_identical(second[name].load(), result.load())


def test_force_computes_again(trace):
    first = jobs.analyze(trace, "noise_scale")["noise_scale"]
    again = jobs.analyze(trace, "noise_scale", force=True)["noise_scale"]
    assert again.attrs["serial"] == first.attrs["serial"] + 1
    assert len(trace.results.keys_of("noise_scale")) == 1


def test_other_parameters_make_another_result(trace):
    jobs.analyze(trace, "gaussianity", mode="batches")
    jobs.analyze(trace, "gaussianity", mode="pooled")
    found = trace.results.all("gaussianity")
    assert [("mode=pooled" in key) for key in found] == [False, True]
    assert trace.results["gaussianity"].attrs["parameters"]["mode"] == "pooled"


def test_a_grown_trace_is_analysed_anew(tmp_path):
    path = write_trace(tmp_path / "a.zarr", steps=(0, 10))
    first = jobs.analyze(tracelab.open(path), "noise_scale")["noise_scale"]
    longer = write_trace(tmp_path / "b.zarr", steps=(0, 10, 20))
    second = jobs.analyze(tracelab.open(longer), "noise_scale")["noise_scale"]
    assert first.attrs["input_digest"] != second.attrs["input_digest"]
    assert second.sizes["step"] == 3


def test_provenance_says_how_a_number_was_made(trace):
    attrs = jobs.analyze(trace, "tail_index", mode="pooled", seed=3)["tail_index"].attrs
    assert attrs["parameters"]["mode"] == "pooled"
    assert attrs["seed"] == 3
    assert attrs["run"] == trace.run
    assert attrs["software"]["tracelab"] == tracelab.__version__
    assert attrs["finding"].startswith("For the network (pooled), alpha = ")
    assert any("mimic heavy tails" in warning for warning in attrs["warnings"])
    json.dumps(attrs)


def test_shared_parameters_reach_those_that_have_them(trace):
    results = jobs.analyze(trace, ["gaussianity", "noise_scale"], mode="pooled", confidence=0.9)
    assert results["gaussianity"].attrs["parameters"]["mode"] == "pooled"
    assert results["noise_scale"].attrs["parameters"] == {"confidence": 0.9}


def test_selection_of_steps_and_layers(trace):
    result = jobs.analyze(trace, "noise_scale", steps=slice(1, None), layers=r"fc\..*")[
        "noise_scale"
    ]
    assert list(result["step"].values) == list(STEPS[1:])
    assert list(result["layer"].values) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ["tail_indx"]}, "no analysis is called 'tail_indx'; did you mean 'tail_index'?"),
        ({"names": ["zzz"]}, "no analysis is called 'zzz'; there are: averaging, "),
        ({"names": []}, "name at least one analysis"),
        ({"names": ["tail_index"], "mode": "mixed"}, "'mode' must be one of batches, pooled"),
        ({"names": ["tail_index"], "mod": "pooled"}, "parameter 'mod'; did you mean 'mode'?"),
        ({"names": ["noise_scale"], "mode": "pooled"}, "noise_scale has a parameter 'mode'"),
        (
            {"names": ["noise_scale"], "layers": "conv.*"},
            "no layer matches 'conv.*'; the trace has",
        ),
        ({"names": ["noise_scale"], "layers": "("}, "layers must be a regular expression"),
        ({"names": ["noise_scale"], "memory": "much"}, "memory must be a positive size"),
        ({"names": ["noise_scale"], "memory": 0}, "memory must be a positive size"),
        ({"names": ["noise_scale"], "workers": 0}, "workers must be at least 1, got 0"),
        (
            {"names": ["noise_scale"], "parameters": {"tail_index": {}}},
            "'tail_index', which is not among those to run: noise_scale",
        ),
        ({"names": ["noise_scale"], "steps": slice(99, None)}, "no recorded step to analyse"),
    ],
)
def test_mistakes_are_named_before_anything_is_computed(trace, no_kernels, options, words):
    no_kernels()
    with pytest.raises(UsageError, match=words):
        jobs.analyze(trace, **options)


def test_nobody_answers_at_the_scheduler(trace, monkeypatch):
    connect = engine._remote
    monkeypatch.setattr(engine, "_remote", lambda address, _: connect(address, 1.0))
    with pytest.raises(UsageError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        jobs.analyze(trace, "noise_scale", scheduler="tcp://127.0.0.1:1")


def test_what_was_not_recorded_is_named(tmp_path):
    with tracelab.create(tmp_path / "a.zarr", {"w": (3,)}) as writer:
        writer.append("weights", step=0, distance=np.zeros(1), norm=np.ones(1))
    trace = tracelab.open(tmp_path / "a.zarr")
    with pytest.raises(
        NotRecordedError, match="needs noise or examples, which this trace does not hold"
    ):
        jobs.analyze(trace, ["tail_index"])
    assert set(jobs.analyze(trace)) == {"weight_diffusion"}
    verdicts = jobs.applicable(trace)
    assert verdicts["weight_diffusion"] is None
    assert "it holds: weights" in verdicts["gaussianity"]


def test_an_empty_trace_fits_no_analysis(tmp_path):
    with tracelab.create(tmp_path / "a.zarr", {"w": (3,)}):
        pass
    with pytest.raises(NotRecordedError, match="no analysis fits this trace"):
        jobs.analyze(tracelab.open(tmp_path / "a.zarr"))


def test_workers_and_memory_give_the_same_bits(trace):
    here = jobs.analyze(trace, "gaussianity")["gaussianity"].load()
    there = jobs.analyze(trace, "gaussianity", workers=2, memory="4GiB", force=True)["gaussianity"]
    xr.testing.assert_equal(here, there.load())


def test_an_existing_scheduler_is_used_and_left_running(trace):
    here = jobs.analyze(trace, "noise_scale")["noise_scale"].load()
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        there = jobs.analyze(trace, "noise_scale", scheduler=cluster.scheduler_address, force=True)[
            "noise_scale"
        ]
        xr.testing.assert_equal(here, there.load())
        with Client(cluster) as client:
            assert len(client.scheduler_info()["workers"]) == 1


def test_a_trace_in_memory_is_analysed_on_threads():
    import zarr

    store = zarr.storage.MemoryStore()
    write_trace(store)
    trace = tracelab.open(store)
    assert set(jobs.analyze(trace, "noise_scale")) == {"noise_scale"}
    assert "noise_scale" in trace.results
    with pytest.raises(UsageError, match="a trace in memory cannot be read by worker processes"):
        jobs.analyze(trace, "noise_scale", workers=1, force=True)


def test_results_open_without_tracelab(trace):
    jobs.analyze(trace, "noise_scale")
    tree = xr.open_datatree(f"{trace.location}/results", engine="zarr", consolidated=False)
    (leaf,) = tree["noise_scale"].children.values()
    assert leaf["noise_scale"].attrs["units"] == "1"


def test_results_of_nothing_say_how_to_get_some(trace):
    with pytest.raises(NotRecordedError, match=r"compute it with tracelab.analyze\(trace, \['x'\]"):
        trace.results["x"]
    assert "0 analyses" in repr(trace.results)
