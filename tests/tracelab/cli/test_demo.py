import json
import sys

import numpy as np
import pytest

import tracelab
from tracelab import registry
from tracelab.cli.answers import MORE_STUDIES, STUDIES

RUNS = {"sgd-batch-32": 32, "sgd-batch-512": 512, "adam-batch-32": 32}


@pytest.fixture
def trained(monkeypatch):
    """Stand in for training by traces of Gaussian noise, and for the report by a file."""
    calls = []

    def train(out, quick, *, seed, overwrite, progress):
        calls.append((quick, seed, overwrite))
        rng = np.random.default_rng(seed)
        paths = []
        for name, batch_size in RUNS.items():
            paths.append(out / f"{name}.zarr")
            with tracelab.create(paths[-1], {"fc": (4, 3)}, overwrite=overwrite) as writer:
                writer.define(
                    "noise",
                    sketches=[
                        {"kind": "sample", "k": 6, "seed": 0},
                        {"kind": "project", "k": 5, "seed": 0},
                    ],
                    coordinates=(np.zeros(6, dtype=np.int32), np.arange(6)),
                    attrs={"batch_size": batch_size, "replacement": True, "n_data": 1797},
                )
                for step in (0, 20):
                    writer.append(
                        "noise",
                        step=step,
                        sampled=rng.standard_normal((40, 6)),
                        mean_sampled=np.zeros(6),
                        projected=rng.standard_normal((40, 1, 5)),
                        mean_projected=np.ones((1, 5)),
                    )
                for step in range(21):
                    writer.append("weights", step=step, distance=np.array([step**0.5]))
        return paths

    monkeypatch.setattr(registry, "demo", {"digits": train}.__getitem__)
    monkeypatch.setattr(
        "tracelab.reporting.report", lambda paths, page: page.write_text(f"{len(paths)} traces")
    )
    return calls


def test_says_where_things_are_and_answers_in_three_lines(run, trained, tmp_path):
    out = tmp_path / "demo"
    result = run("demo", "--out", out, "--quick", "--seed", 3)
    assert result.exit_code == 0
    traces, report, empty, *said = result.stdout.splitlines()
    assert traces == f"traces  {' '.join(str(out / f'{name}.zarr') for name in RUNS)}"
    assert report == f"report  {out / 'report.html'}"
    assert (out / "report.html").read_text() == "3 traces"
    assert empty == ""
    assert [line[:2] for line in said] == ["1.", "2.", "3."]
    assert trained == [(True, 3, False)]
    for name in RUNS:
        found = tracelab.open(out / f"{name}.zarr").results
        assert sum(len(found.keys_of(key)) for key in found) == len(STUDIES)


def test_as_json_over_an_earlier_demonstration(run, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("tracelab.jobs.failed_cells", lambda result: 1)
    (tmp_path / "sgd-batch-32.zarr").mkdir()
    result = run("-q", "demo", "--out", tmp_path, "--force", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert [path.rpartition("/")[2] for path in found["traces"]] == [f"{x}.zarr" for x in RUNS]
    assert found["report"] == str(tmp_path / "report.html")
    assert len(found["answers"]) == 3
    assert result.stderr == ""
    assert trained == [(False, 0, True)]
    stored = tracelab.open(tmp_path / "sgd-batch-32.zarr").results
    assert sum(len(stored.keys_of(key)) for key in stored) == len(STUDIES + MORE_STUDIES)
    assert stored["noise_law"].attrs["parameters"]["sketch"] == "sampled"
    assert stored["gaussianity"].attrs["parameters"]["mode"] == "batches"


def test_traces_of_an_earlier_demonstration_are_kept(run, trained, tmp_path):
    (tmp_path / "sgd-batch-32.zarr").mkdir()
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert "holds traces already (sgd-batch-32.zarr); choose another with --out" in result.stderr
    assert trained == []


@pytest.mark.parametrize("module", ["torch", "sklearn", "matplotlib"])
def test_a_missing_extra_is_told_before_any_work(run, trained, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    result = run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 2
    assert "pip install 'tracelab[demo]'" in result.stderr
    assert trained == []
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_quick_demonstration_answers_in_three_lines(run, tmp_path):
    result = run("demo", "--out", tmp_path / "demo", "--quick")
    assert result.exit_code == 0
    assert len(result.stdout.split("\n\n")[1].splitlines()) == 3
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
