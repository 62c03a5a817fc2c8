import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from traces import LAYERS, PER_LAYER, write_noise

import tracelab
from tracelab.errors import NotRecordedError, UsageError

RUNS = {"a": (0.1, "SGD", (0, 10, 20)), "b": (0.01, "SGD", (0, 10)), "c": (0.001, "Adam", (0, 10))}
TABLE = (np.repeat([0, 1], PER_LAYER), np.tile(np.arange(PER_LAYER), 2))


def record(path, lr, optimizer, steps, **metadata):
    with tracelab.create(
        path, LAYERS, metadata, attrs={"optimizer": {"name": optimizer, "lr": lr}}
    ) as writer:
        attrs = {"batch_size": 8, "replacement": True, "n_data": 1_000}
        writer.define("noise", attrs=attrs, coordinates=TABLE)
        for step in steps:
            write_noise(writer, step, np.random.default_rng(step))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("runs")
    for name, (lr, optimizer, steps) in RUNS.items():
        record(found / f"{name}.zarr", lr, optimizer, steps, dataset="none")
    for name in ("a", "c"):
        tracelab.analyze(str(found / f"{name}.zarr"), ["noise_scale"])
    return found


@pytest.fixture
def runs(folder):
    return tracelab.open_runs(folder / "*.zarr")


def test_a_pattern_a_folder_and_a_list_are_the_same(folder, runs):
    paths = sorted(folder.glob("*.zarr"))
    for given in (str(folder / "*.zarr"), folder, paths, map(tracelab.open, paths)):
        found = tracelab.open_runs(given)
        assert list(found) == ["a", "b", "c"]
        assert [trace.run for trace in found.values()] == [each.run for each in runs.values()]


def test_what_a_resumption_moved_aside_is_no_run(tmp_path):
    for step in (5, 3):
        with tracelab.create(tmp_path / "a.zarr", {"w": (2,)}, resume=step) as writer:
            for each in range(step, 8):
                writer.append("steps", step=each, loss=1.0)
    for given in (tmp_path / "*.zarr", tmp_path):
        assert list(tracelab.open_runs(given)) == ["a"]
    # Named, it is opened.
    assert list(tracelab.open_runs(tmp_path / "a.superseded-1.zarr")) == ["a.superseded-1"]


def test_the_frame_has_a_row_a_run(folder, runs):
    frame = runs.frame
    assert list(frame.index) == ["a", "b", "c"]
    assert frame["optimizer.lr"].tolist() == [0.1, 0.01, 0.001]
    assert frame["rows"].tolist() == [3, 2, 2]
    assert frame["state"].tolist() == ["complete"] * 3
    assert frame.loc["b", "id"] == tracelab.open(folder / "b.zarr").run
    assert runs.differing == ["optimizer", "optimizer.lr"]


def test_selection_by_hyperparameter(runs):
    assert list(runs.select(optimizer="SGD")) == ["a", "b"]
    assert list(runs.select({"optimizer.lr": slice(0.01, None)}, dataset="none")) == ["a", "b"]
    assert list(runs.select(lr=[0.1, 0.001])) == ["a", "c"]
    assert list(runs.select(lr=lambda lr: lr < 0.05).select(optimizer="SGD")) == ["b"]
    assert len(runs.select(optimizer="LBFGS")) == 0
    with pytest.raises(UsageError, match="no run has a hyper-parameter 'momentun'"):
        runs.select(momentun=0.9)


def test_results_side_by_side_are_those_of_each_run(folder, runs):
    joined = runs.results["noise_scale"]
    assert joined["noise_scale"].dims == ("run", "step", "layer")
    assert joined["run"].values.tolist() == ["a", "c"]
    assert joined["optimizer.lr"].values.tolist() == [0.1, 0.001]
    assert joined.attrs["without"] == ["b"]
    for name in ("a", "c"):
        alone = tracelab.open(folder / f"{name}.zarr").results["noise_scale"]
        side = joined["noise_scale"].sel(run=name, step=alone["step"].values)
        np.testing.assert_array_equal(side, alone["noise_scale"])
    # The step that c does not have.
    assert np.isnan(joined["noise_scale"].sel(run="c", step=20)).all()
    assert np.isnan(joined["status"].sel(run="c", step=20)).all()
    assert list(runs.results) == ["noise_scale"]


def test_results_can_be_indexed_by_a_hyperparameter(runs):
    by_rate = runs.results["noise_scale"].swap_dims(run="optimizer.lr")
    assert by_rate.sel({"optimizer.lr": 0.001})["run"] == "c"


def test_results_of_other_parameters_are_told_apart(folder, tmp_path, caplog):
    for name in ("a", "c"):
        shutil.copytree(folder / f"{name}.zarr", tmp_path / f"{name}.zarr")
    tracelab.analyze(str(tmp_path / "c.zarr"), ["noise_scale"], confidence=0.5)
    runs = tracelab.open_runs(tmp_path)
    with caplog.at_level(logging.WARNING, "tracelab"):
        mixed = runs.result("noise_scale")
    assert mixed["parameters.confidence"].values.tolist() == [0.95, 0.5]
    assert "different confidence; name one, such as confidence=0.95" in caplog.text
    same = runs.result("noise_scale", confidence=0.95)
    assert "parameters.confidence" not in same.coords
    width = mixed["noise_scale_high"] - mixed["noise_scale_low"]
    wider = same["noise_scale_high"] - same["noise_scale_low"]
    assert (wider.sel(run="c", step=0) > width.sel(run="c", step=0)).all()
    with pytest.raises(NotRecordedError, match=r"none of 2 runs has a result of .*confidence=0.1"):
        runs.result("noise_scale", confidence=0.1)


def test_groups_are_lazy_and_side_by_side(folder, runs):
    group = runs.groups["noise"]
    assert group["projected"].chunks is not None
    assert group["projected"].dims[0] == "run"
    alone = tracelab.open(folder / "b.zarr").groups["noise"]
    xr.testing.assert_equal(
        group["projected"].sel(run="b", step=[0, 10]).reset_coords(drop=True),
        alone["projected"].reset_coords(drop=True),
    )
    assert list(runs.groups) == ["noise"]
    with pytest.raises(NotRecordedError, match="none of 3 runs has a group 'weights'"):
        runs.groups["weights"]


def test_one_broken_trace_does_not_take_the_others_along(folder, tmp_path, caplog):
    shutil.copytree(folder / "a.zarr", tmp_path / "a.zarr")
    shutil.copytree(folder / "b.zarr", tmp_path / "b.zarr")
    (tmp_path / "b.zarr" / "zarr.json").write_text("{")
    (tmp_path / "no_trace").mkdir()
    with caplog.at_level(logging.WARNING, "tracelab"):
        runs = tracelab.open_runs(tmp_path / "*")
    assert list(runs) == ["a"]
    assert list(runs.unreadable) == [str(tmp_path / "b.zarr")]
    assert "b.zarr is damaged" in caplog.text


def test_names_tell_runs_apart(folder, tmp_path):
    for place in ("x/a.zarr", "y/a.zarr", "y/b.zarr"):
        shutil.copytree(folder / "a.zarr", tmp_path / place)
    assert list(tracelab.open_runs(tmp_path / "**" / "*.zarr")) == ["x/a", "y/a", "b"]


def test_a_run_that_lacks_a_hyperparameter(folder, tmp_path):
    record(tmp_path / "odd.zarr", 0.5, "SGD", (0,), width=3)
    runs = tracelab.open_runs([folder / "a.zarr", tmp_path / "odd.zarr"])
    assert runs.frame["metadata.width"].isna().tolist() == [True, False]
    assert list(runs.select(width=3)) == ["odd"]
    assert list(runs.select(width=None)) == ["a"]
    assert runs.groups["noise"]["metadata.dataset"].to_series().isna().tolist() == [False, True]
    assert isinstance(runs.frame, pd.DataFrame)


@pytest.mark.parametrize("given", ["nothing/*.zarr", [], "nothing.zarr"])
def test_no_trace_is_a_sentence(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no trace at"):
        tracelab.open_runs(given)


def test_an_unknown_run_is_a_sentence(runs):
    with pytest.raises(NotRecordedError, match="no run is called 'd'; there are: a, b, c"):
        runs["d"]


def test_reprs_say_what_differs(runs):
    assert "a: complete, optimizer=SGD, optimizer.lr=0.1" in repr(runs)
    assert "<table" in runs._repr_html_()


def test_results_that_are_kept_elsewhere(folder, tmp_path):
    store = tmp_path / "results"
    tracelab.analyze(str(folder / "b.zarr"), ["noise_scale"], out=store)
    assert tracelab.open_runs(folder / "*.zarr").results["noise_scale"].attrs["without"] == ["b"]
    runs = tracelab.open_runs(folder / "*.zarr", results=store)
    assert runs.results["noise_scale"].attrs["without"] == []
