import errno
import io
import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

import tracelab
from tracelab import registry
from tracelab.trace.places import objects


@pytest.fixture
def analysed(run, record):
    path = record()
    run("analyze", path, "-a", "noise_scale", "-p", "confidence=0.9")
    run("analyze", path, "-a", "noise_scale", "-a", "gaussianity")
    return path


def test_lists_every_result_with_its_parameters_and_finding(run, analysed):
    result = run("results", analysed)
    assert result.exit_code == 0
    for text in ("confidence=0.9", "confidence=0.95", "mode=batches", "The gradient noise scale"):
        assert text in result.stdout
    assert "note: Late in training" in result.stdout


def test_the_list_as_json_and_csv(run, analysed):
    listed = json.loads(run("results", analysed, "--json").stdout, parse_constant=pytest.fail)
    assert [each["analysis"] for each in listed] == ["gaussianity", "noise_scale", "noise_scale"]
    assert all(each["finding"] and each["created"] and each["references"] for each in listed)
    assert "rows" not in listed[0]
    frame = pd.read_csv(io.StringIO(run("results", analysed, "--format", "csv").stdout))
    assert list(frame.columns) == ["analysis", "parameters", "created", "finding"]
    assert len(frame) == 3


def test_a_trace_without_results(run, record):
    path = record()
    result = run("results", path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{path}: no results yet; compute them with `tracelab analyze`\n"
    assert run("-q", "results", path).stderr == ""
    assert json.loads(run("results", path, "--json").stdout) == []


def test_numbers_are_those_of_the_most_recent_result(run, analysed):
    result = run("results", analysed, "noise_scale", "--format", "csv")
    frame = pd.read_csv(io.StringIO(result.stdout))
    stored = tracelab.open(analysed).results["noise_scale"]
    assert dict(stored.attrs["parameters"])["confidence"] == 0.95
    assert list(frame.columns[:2]) == ["step", "layer"]
    assert len(frame) == stored["status"].size
    np.testing.assert_allclose(frame["noise_scale_low"], stored["noise_scale_low"].values.ravel())
    assert set(frame["status"]) == {"ok"}


def test_no_number_is_repeated_over_a_dimension_it_does_not_have(run, analysed):
    """As many values in a column as the array has, with the labels that it has."""
    with tracelab.open(analysed) as trace:
        stored = trace.results["gaussianity"].load()
    text = run("results", analysed, "gaussianity", "--format", "csv").stdout
    frame = pd.read_csv(io.StringIO(text), dtype={"n_batches": "Int64"})
    by_dims = {}
    for name in stored.data_vars:
        by_dims.setdefault(stored[name].dims, []).append(name)
    assert len(by_dims) > 1
    by_dims[stored["status"].dims].remove("status")
    assert len(frame) == sum(
        np.prod([stored.sizes[dim] for dim in dims]) for dims, names in by_dims.items() if names
    )
    for dims, names in by_dims.items():
        others = [dim for dim in stored.dims if dim not in dims]
        own = frame[frame[list(dims)].notna().all(axis=1) & frame[others].isna().all(axis=1)]
        for name in names:
            values = own.set_index(list(dims))[name]
            assert frame[name].notna().sum() <= stored[name].size
            for labels, value in stored[name].to_series().items():
                told = values.loc[labels]
                assert told == pytest.approx(value, rel=1e-12, nan_ok=True)
    # Whole numbers are written as such, and each row says whether its cell can be trusted.
    assert not re.search(r"\b30\.0\b", text)
    assert frame["status"].notna().all()


def test_numbers_of_two_kinds_are_not_multiplied_out(run, analysed):
    """Rows of the table and of JSON are those of the CSV."""
    csv = pd.read_csv(
        io.StringIO(run("results", analysed, "gaussianity", "--format", "csv").stdout)
    )
    (found,) = json.loads(run("results", analysed, "gaussianity", "--json").stdout)
    assert len(found["rows"]) == len(csv)
    assert set(found["rows"][0]) == set(csv.columns)
    assert found["rows"][0]["test"] is None
    table = run("results", analysed, "gaussianity").stdout.splitlines()
    assert len(table) == 1 + len(csv)
    assert " - " in table[1]
    assert "<NA>" not in "".join(table)


def test_the_table_names_units(run, analysed):
    heading, *rows = run("results", analysed, "noise_scale").stdout.splitlines()
    assert heading.split()[:3] == ["step", "layer", "noise_scale"]
    assert "trace_cov [(loss/weight)^2]" in heading
    assert len(rows) == 9
    assert len({len(row.rstrip()) for row in rows}) == 1


def test_all_results_side_by_side(run, analysed):
    table = run("results", analysed, "noise_scale", "--all").stdout.splitlines()
    assert table[0].split()[0] == "confidence"
    assert [line.split()[0] for line in table[1:]] == ["0.9"] * 9 + ["0.95"] * 9
    frame = pd.read_csv(
        io.StringIO(run("results", analysed, "noise_scale", "--all", "--format", "csv").stdout)
    )
    assert frame["confidence"].value_counts().to_dict() == {0.9: 9, 0.95: 9}


def test_a_single_result_shows_no_parameter_columns(run, record):
    path = record()
    run("analyze", path, "-a", "noise_scale")
    assert run("results", path, "noise_scale", "--all").stdout.split()[0] == "step"


def test_numbers_as_json_carry_units_and_parameters(run, record):
    path = record(change=lambda gradients: np.full_like(gradients, np.nan))
    run("analyze", path, "-a", "noise_scale")
    (found,) = json.loads(run("results", path, "noise_scale", "--json").stdout)
    assert found["units"]["trace_cov"] == "(loss/weight)^2"
    assert found["parameters"] == {"confidence": 0.95}
    assert len(found["rows"]) == 9
    assert found["rows"][0]["noise_scale"] is None
    assert found["rows"][0]["status"] == "non_finite_input"


def test_numbers_of_an_analysis_that_is_not_installed(run, record, monkeypatch):
    path = record()
    run("analyze", path, "-a", "noise_scale")
    monkeypatch.setattr(registry, "_entries", lambda group: {})
    heading = run("results", path, "noise_scale", "--format", "csv").stdout.splitlines()[0]
    assert heading.split(",")[:2] == ["step", "layer"]
    assert {"n_batches", "noise_scale"} < set(heading.split(","))


def test_parquet_to_a_file_and_to_a_pipe(run, analysed, tmp_path):
    file = tmp_path / "numbers.parquet"
    result = run("results", analysed, "gaussianity", "--format", "parquet", "-o", file)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"wrote {file}\n"
    frame = pd.read_parquet(file)
    assert list(frame.columns[:3]) == ["step", "layer", "test"]
    piped = run("results", analysed, "gaussianity", "--format", "parquet").stdout_bytes
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(piped)), frame)


def test_parquet_is_not_written_to_a_terminal(run, analysed, monkeypatch):
    # `tracelab.cli.results` is the command; its module has the same name.
    monkeypatch.setattr(sys.modules["tracelab.cli.results"], "is_terminal", lambda: True)
    result = run("results", analysed, "noise_scale", "--format", "parquet")
    assert result.exit_code == 2
    assert "name a file with -o" in result.stderr


def test_parquet_needs_its_extra(run, analysed, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("results", analysed, "noise_scale", "--format", "parquet")
    assert result.exit_code == 2
    assert "pip install 'tracelab[all]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tail_index"], "no result of 'tail_index'; results: gaussianity, noise_scale"),
        (["--all"], "--all needs the NAME"),
        (["noise_scale", "--format", "xls"], "'xls' is not one of"),
        (["noise_scale", "-o", "/no/such/folder/x.csv"], "No such file or directory"),
    ],
)
def test_wrong_usage(run, analysed, arguments, words):
    result = run("results", analysed, *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert result.stdout == ""


def test_what_is_no_trace(run, tmp_path):
    (tmp_path / "notes.txt").write_text("no trace")
    assert run("results", tmp_path / "none.zarr").exit_code == 2
    assert run("results", tmp_path).exit_code == 3


def test_results_kept_elsewhere(run, record, tmp_path):
    path, out = record(), tmp_path / "kept"
    archive = shutil.make_archive(str(path), "zip", path)
    refused = run("analyze", archive, "-a", "noise_scale")
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"Error: {archive}: results cannot be stored in {archive} (it is read-only); "
        "give another place for them: --out RESULTS, or analyze(trace, out=...)\n"
    )
    assert run("analyze", archive, "-a", "noise_scale", "--out", out).exit_code == 0
    again = run("analyze", archive, "-a", "noise_scale", "--out", out)
    assert again.stderr == f"{archive}: everything was stored; nothing was computed\n"
    assert run("results", archive).stdout == ""
    assert "noise_scale  20" in run("results", archive, "--results", out).stdout
    numbers = run("results", archive, "noise_scale", "--results", out, "--format", "csv").stdout
    assert len(numbers.splitlines()) == 1 + 9
    wrong = run("results", archive, "--results", tmp_path / "none")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "there are no results at" in wrong.stderr
    page = tmp_path / "page.html"
    assert run("report", archive, "-o", page).exit_code == 2
    assert run("report", archive, "-o", page, "--results", out).exit_code == 0
    assert "noise_scale" in page.read_text()


def test_a_damaged_result_is_told_with_its_remedy(run, analysed):
    (file,) = analysed.glob("results/gaussianity/*/status/c.*")
    file.write_bytes(b"")
    result = run("results", analysed, "gaussianity")
    assert result.exit_code == 3
    assert "is damaged (the checksum of status/c.0.0 differs); compute it again" in result.stderr
    assert run("results", analysed, "noise_scale").exit_code == 0
    again = run("analyze", analysed, "-a", "gaussianity")
    assert "gaussianity  computed" in again.stdout
    assert run("results", analysed, "gaussianity").exit_code == 0


def test_a_full_disk_is_one_sentence(run, record, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = record()
    monkeypatch.setattr(objects, "put", full)
    result = run("analyze", path, "-a", "noise_scale")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: {path}: results cannot be written to {path}: No space left on device; what was "
        "stored before is kept, and the same command goes on once it can be written\n"
    )
