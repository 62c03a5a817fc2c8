import io
import json

import pandas as pd
import pytest

import tracelab


@pytest.fixture
def three(run, record, tmp_path):
    paths = [record(name, steps=steps) for name, steps in (("a", 2), ("b", 3), ("c", 2))]
    run("analyze", paths[0], paths[1], "-a", "noise_scale", "-a", "tail_index")
    return tmp_path


def test_runs_are_listed(run, three):
    result = run("runs", three)
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["run", "state", "rows", "results"]
    assert [row.split()[0] for row in rows] == ["a", "b", "c"]
    listed = json.loads(run("runs", three, "--json").stdout, parse_constant=pytest.fail)
    assert [each["rows"] for each in listed] == [{"noise": 2}, {"noise": 3}, {"noise": 2}]
    assert listed[0]["results"] == ["noise_scale", "tail_index"]
    assert listed[0]["hyperparameters"] == {"metadata.dataset": "none"}
    frame = pd.read_csv(io.StringIO(run("runs", three, "--format", "csv").stdout))
    assert frame["metadata.dataset"].tolist() == ["none"] * 3


def test_runs_are_found_by_hyperparameter(run, three):
    assert run("runs", three, "-w", "dataset=none").stdout.count("complete") == 3
    result = run("runs", three, "-w", "dataset!=none")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no run is like that\n")
    wrong = run("runs", three, "-w", "datset=none")
    assert wrong.exit_code == 2
    assert "did you mean 'metadata.dataset'" in wrong.stderr
    assert run("runs", three, "-w", "dataset").exit_code == 2


def test_compare_shows_the_stored_numbers(run, three):
    listed = json.loads(run("compare", three, "--json").stdout, parse_constant=pytest.fail)
    alpha = {
        each["run"]: each
        for each in listed
        if each["analysis"] == "tail_index" and each["quantity"] in ("alpha", None)
    }
    for name, step in (("a", 10), ("b", 20)):
        stored = tracelab.open(three / f"{name}.zarr").results["tail_index"]
        cell = stored.sel(layer="network", step=step)
        found = alpha[name]
        assert (found["layer"], found["step"]) == ("network", step)
        for key, variable in (("estimate", "alpha"), ("low", "alpha_low"), ("high", "alpha_high")):
            assert found[key] == float(cell[variable])
        assert found["samples"]["n_batches"] == 24
    assert (alpha["c"]["estimate"], alpha["c"]["status"]) == (None, "no result")


def test_compare_as_a_table(run, three):
    result = run("compare", three, "-a", "noise_scale", "--by", "dataset", "--step", "20")
    title, heading, *rows = result.stdout.splitlines()
    assert title == "noise_scale"
    assert heading.split()[:2] == ["metadata.dataset", "run"]
    assert heading.split()[-1] == "status"
    assert [row.split()[-1] for row in rows] == ["cell", "ok", "result"]


def test_compare_as_csv_has_a_row_an_estimate(run, three):
    frame = pd.read_csv(io.StringIO(run("compare", three, "--format", "csv").stdout))
    assert {"run", "quantity", "estimate", "low", "high", "n_batches", "status"} <= set(frame)
    # Alpha, its control and the slope of the block profile, of two runs; one has no result.
    assert (frame["analysis"] == "tail_index").sum() == 7


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--by", "lr"], "no run has a hyper-parameter 'lr'"),
        (["-a", "gausianity"], "did you mean 'gaussianity'"),
        (["-a", "gaussianity"], "none of 3 runs has a result of gaussianity"),
    ],
)
def test_compare_says_what_is_wrong(run, three, arguments, sentence):
    result = run("compare", three, *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_no_trace(run, tmp_path):
    for command in ("runs", "compare"):
        result = run(command, tmp_path / "*.zarr")
        assert result.exit_code == 2
        assert "there is no trace" in result.stderr
