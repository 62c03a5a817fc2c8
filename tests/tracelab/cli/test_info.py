import json

import pytest

import tracelab
from tracelab import registry


def test_says_what_there_is_and_what_can_be_analysed(run, record):
    path = record()
    result = run("info", path)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["trace", str(path)]
    words = [line.split() for line in lines]
    assert ["weights", "9", "in", "2", "layers"] in words
    assert ["fc.weight", "parameter", "[3,", "2]"] in words
    (group,) = (line for line in words if line[:2] == ["noise", "noise"])
    assert group[2:6] == ["3", "0", "to", "20"]
    assert group[-2:] == ["full,", "mean_full"]
    verdicts = dict(line.split(maxsplit=1) for line in lines[-len(registry.analyses()) :])
    assert verdicts["noise_scale"] == "can be computed"
    assert "which this trace does not hold" in verdicts["weight_diffusion"]


def test_as_json(run, record):
    path = record()
    found = json.loads(run("info", path, "--json").stdout, parse_constant=pytest.fail)
    with tracelab.open(path) as trace:
        assert found["run"] == trace.run
    assert found["groups"]["noise"]["rows"] == 3
    assert found["groups"]["noise"]["bytes"] > 0
    assert found["analyses"]["noise_scale"] == {"applicable": True, "reason": None}
    assert found["analyses"]["weight_diffusion"]["applicable"] is False
    assert sorted(found["analyses"]) == sorted(registry.analyses())


def test_facts_are_shown_where_they_are_known(run, tmp_path):
    path = tmp_path / "run.zarr"
    attrs = {"optimizer": {"name": "SGD", "lr": 0.1, "nesterov": False, "foreach": None}}
    with tracelab.create(path, {"fc": (2,)}, {"dataset": "none"}, attrs=attrs) as writer:
        writer.mark_incomplete("a collector failed")
    text = run("info", path).stdout
    assert "optimizer  name=SGD, lr=0.1, nesterov=False\n" in text
    assert "metadata   dataset=none\n" in text
    assert "incomplete - a collector failed" in text
    assert "model" not in text
    assert "nothing recorded yet" in text


def test_many_layers_and_arrays_are_cut_short(run, tmp_path):
    path = tmp_path / "run.zarr"
    names = [f"layer{index}" for index in range(25)]
    with tracelab.create(path, dict.fromkeys(names, (2,))) as writer:
        writer.append("steps", step=0, loss=1.0, a=1.0, b=1.0, c=1.0, d=1.0, e=1.0, f=1.0)
    text = run("info", path).stdout
    assert "layer19" in text
    assert "layer20" not in text
    assert "... and 5 more: see --json" in text
    assert text.count(", ...") == 1
    assert len(json.loads(run("info", path, "--json").stdout)["layers"]) == 25


def test_a_trace_with_no_rows(run, record):
    result = run("info", record(steps=0))
    assert result.exit_code == 0
    assert "tail_index" in result.stdout


def test_what_is_no_trace(run, tmp_path):
    missing = run("info", tmp_path / "none.zarr")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "none.zarr" in missing.stderr
    (tmp_path / "notes.txt").write_text("no trace")
    assert run("info", tmp_path).exit_code == 3
    (tmp_path / "zarr.json").write_text("{ damaged")
    damaged = run("info", tmp_path, "--json")
    assert (damaged.exit_code, damaged.stdout) == (3, "")
    assert len(damaged.stderr.splitlines()) == 1
