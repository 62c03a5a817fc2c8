import json

import numpy as np
import pytest

import tracelab
from tracelab import cells, engine
from tracelab.cli.analyze import parse_assignments, parse_slice
from tracelab.errors import UsageError

FAST = ("-a", "noise_scale")


def outcomes(result):
    return json.loads(result.stdout, parse_constant=pytest.fail)


def test_prints_what_was_found_and_stores_it(run, record):
    path = record()
    result = run("analyze", path, *FAST)
    assert result.exit_code == 0
    first, line = result.stdout.splitlines()
    assert first == str(path)
    finding = tracelab.open(path).results["noise_scale"].attrs["finding"]
    assert line == f"  noise_scale  computed  {finding}"
    assert result.stderr == ""


def test_a_second_run_computes_nothing(run, record, monkeypatch):
    path = record()
    before = run("analyze", path, *FAST)
    monkeypatch.setattr(engine, "stream", lambda *_: pytest.fail("a stored result was computed"))
    again = run("analyze", path, *FAST)
    assert again.exit_code == 0
    assert again.stdout == before.stdout.replace("computed", "stored  ")
    assert again.stderr == f"{path}: everything was stored; nothing was computed\n"


def test_a_stored_result_is_computed_again_on_demand(run, record):
    path = record()
    run("analyze", path, *FAST)
    assert (
        outcomes(run("analyze", path, *FAST, "--force", "--json"))[0]["results"][0]["state"]
        == "computed"
    )


def test_another_parameter_is_another_result(run, record):
    path = record()
    run("analyze", path, *FAST)
    (other,) = outcomes(run("analyze", path, *FAST, "-p", "confidence=0.9", "--json"))[0]["results"]
    assert (other["state"], other["parameters"]["confidence"]) == ("computed", 0.9)
    assert len(tracelab.open(path).results.all("noise_scale")) == 2


def test_json_says_everything(run, record):
    path = record()
    (outcome,) = outcomes(run("analyze", path, *FAST, "--json"))
    assert outcome["trace"] == str(path)
    assert outcome["error"] is None
    (found,) = outcome["results"]
    assert found["analysis"] == "noise_scale"
    assert found["cells"] == found["computed_cells"] == 3 * 3
    assert found["reused_cells"] == found["failed_cells"] == found["unreadable_cells"] == 0
    assert found["failures"] == []
    assert found["finding"].startswith("The gradient noise scale of the network is")


def test_all_that_fits_is_the_default(run, record):
    path = record(steps=1)
    (outcome,) = outcomes(run("analyze", path, "--json"))
    names = {found["analysis"] for found in outcome["results"]}
    assert {"gaussianity", "noise_scale", "tail_index"} <= names
    assert "weight_diffusion" not in names


def test_steps_and_layers_choose_the_cells(run, record):
    path = record(steps=5)
    arguments = ("--steps", "0:5:2", "--layers", "fc.b.*")
    run("analyze", path, *FAST, *arguments)
    found = tracelab.open(path).results["noise_scale"]
    assert found["step"].values.tolist() == [0, 20, 40]
    assert [str(name) for name in found["layer"].values] == ["fc.bias"]


def test_mode_reaches_the_analyses_that_have_one(run, record):
    path = record(steps=1)
    result = run(
        "analyze",
        path,
        "-a",
        "gaussianity",
        *FAST,
        "--mode",
        "pooled",
        "--json",
        "--layers",
        "fc.bias",
    )
    by_name = {found["analysis"]: found for found in outcomes(result)[0]["results"]}
    assert by_name["gaussianity"]["parameters"]["mode"] == "pooled"
    assert "mode" not in by_name["noise_scale"]["parameters"]


def test_warnings_are_told_to_those_who_ask(run, record):
    path = record()
    quiet, verbose = run("analyze", path, *FAST), run("-v", "analyze", path, *FAST)
    assert "note: " not in quiet.stdout
    assert "note: Late in training" in verbose.stdout
    told = "cells: 9 reused, 0 computed, 0 failed, 0 unreadable"
    assert verbose.stderr.startswith(f"INFO: {path}: noise_scale stored ({told})\n")


@pytest.mark.slow
def test_workers_give_the_same_numbers(run, record):
    path = record()
    run("analyze", path, *FAST)
    before = tracelab.open(path).results["noise_scale"].load()
    arguments = ("--workers", "1", "--memory", "4GiB", "--force")
    assert run("analyze", path, *FAST, *arguments).exit_code == 0
    after = tracelab.open(path).results["noise_scale"].load()
    assert before.attrs["serial"] < after.attrs["serial"]
    assert before.equals(after)


# ------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-a", "noise_scal"], "did you mean 'noise_scale'?"),
        ([*FAST, "-p", "noise_scale.confidenc=1"], "has no parameter 'confidenc'"),
        ([*FAST, "-p", "confidenc=1"], "did you mean 'confidence'?"),
        ([*FAST, "-p", "confidence=2"], "'confidence' must be a number in [0.5, 0.9999]"),
        ([*FAST, "-p", "confidence"], "-p takes [NAME.]KEY=VALUE"),
        ([*FAST, "-p", ".confidence=0.9"], "-p takes [NAME.]KEY=VALUE"),
        ([*FAST, "-p", "=0.9"], "-p takes [NAME.]KEY=VALUE"),
        ([*FAST, "-p", "seed=3"], "an option: --seed"),
        ([*FAST, "-p", "confidence=0.9", "-p", "confidence=0.8"], "given twice"),
        ([*FAST, "-p", "tail_index.mode=pooled"], "not among those to run: noise_scale"),
        (["-a", "gaussianity", "--mode", "odd"], "one of batches, pooled, standardized, got 'odd'"),
        (["-a", "gaussianity", "--mode", "pooled", "-p", "mode=pooled"], "given twice"),
        (
            ["-a", "weight_diffusion"],
            "distance, which this trace does not hold; record it with Statistics() or Weights(); ",
        ),
        ([*FAST, "--layers", "conv.*"], "no layer matches 'conv.*'"),
        ([*FAST, "--layers", "("], "must be a regular expression"),
        ([*FAST, "--steps", "3"], "--steps must be a slice"),
        ([*FAST, "--steps", "1:2:3:4"], "--steps must be a slice"),
        ([*FAST, "--steps", "a:b"], "--steps must be a slice"),
        ([*FAST, "--steps", "::0"], "--steps must be a slice"),
        ([*FAST, "--steps", "7:"], "no recorded step to analyse"),
        ([*FAST, "--memory", "lots"], "memory must be a positive size"),
        ([*FAST, "--workers", "0"], "Invalid value for '--workers'"),
        ([*FAST, "--workers", "2", "--scheduler", "tcp://x:1"], "exclude each other"),
        ([*FAST, "--frce"], "No such option"),
    ],
)
def test_wrong_usage_is_one_sentence_and_code_2(run, record, arguments, words):
    result = run("analyze", record(), *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_scheduler_that_does_not_answer(run, record):
    result = run("analyze", record(), *FAST, "--scheduler", "nonsense://nowhere")
    assert result.exit_code == 2
    assert "no Dask scheduler answers at 'nonsense://nowhere'" in result.stderr


def test_a_path_that_does_not_exist(run, tmp_path):
    result = run("analyze", tmp_path / "no.zarr", *FAST)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert "no.zarr" in result.stderr


def test_a_path_that_is_no_trace(run, tmp_path):
    (tmp_path / "notes.txt").write_text("no trace")
    result = run("analyze", tmp_path, *FAST)
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: ")


def test_a_trace_with_no_rows(run, record):
    result = run("analyze", record(steps=0), *FAST)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_one_batch_a_probe_is_an_answer_not_an_error(run, record):
    result = run("analyze", record(batches=1), *FAST)
    assert result.exit_code == 0
    assert "No cell had enough finite, varying noise samples" in result.stdout


@pytest.mark.parametrize("filling", [0.0, np.nan, np.inf])
def test_constant_and_broken_gradients_are_answers_not_errors(run, record, filling):
    path = record(change=lambda gradients: np.full_like(gradients, filling))
    result = run("analyze", path, "-a", "gaussianity", "--json")
    assert result.exit_code == 0
    (found,) = outcomes(result)[0]["results"]
    assert found["failed_cells"] == 0
    assert "No cell had enough finite, varying noise samples" in found["finding"]


def test_failed_cells_are_told_and_give_code_1(run, record, monkeypatch):
    path = record()
    real = cells._kernel

    def fragile(plan, block, trace):
        if "network" in plan.labels_of(block):
            raise ZeroDivisionError("it broke")
        return real(plan, block, trace)

    monkeypatch.setattr(cells, "_kernel", fragile)
    result = run("analyze", path, *FAST)
    assert result.exit_code == 1
    assert "3 of 9 cells failed; the first: step 0, network: ZeroDivisionError: it broke" in (
        result.stdout
    )
    assert run("analyze", path, *FAST).exit_code == 1


def test_an_analysis_that_breaks_is_told_and_gives_code_1(run, record, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("it broke")

    path = record()
    monkeypatch.setattr(engine, "stream", broken)
    result = run("analyze", path, *FAST)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {path}: ZeroDivisionError: it broke\n"


def test_other_traces_go_on_and_the_worst_code_wins(run, record, tmp_path):
    good, empty = record("good"), record("empty", steps=0)
    result = run("analyze", empty, tmp_path, good, good, *FAST, "--json")
    assert result.exit_code == 3
    found = outcomes(result)
    assert [bool(outcome["error"]) for outcome in found] == [True, True, False]
    assert found[2]["results"][0]["state"] == "computed"
    assert len(result.stderr.splitlines()) == 2
    assert run("analyze", empty, good, *FAST).exit_code == 2


def test_slices():
    assert parse_slice("1:10:3") == slice(1, 10, 3)
    assert parse_slice("::-1") == slice(None, None, -1)
    assert parse_slice("-5:") == slice(-5, None)


def test_assignments_keep_what_follows_the_first_equals_sign():
    found = parse_assignments(["tail_index.mode=pooled", "sketch=a=b.c", "a.b.c=1"])
    assert found == ({"tail_index": {"mode": "pooled"}, "a.b": {"c": "1"}}, {"sketch": "a=b.c"})
    with pytest.raises(UsageError, match="twice"):
        parse_assignments(["a.b=1", "a.b=2"])


def test_a_trace_of_examples_alone_is_analysed_at_any_batch_size(run, tmp_path):
    path = tmp_path / "examples.zarr"
    rng = np.random.default_rng(0)
    with tracelab.create(path, {"w": (6,)}) as writer:
        writer.define("examples", attrs={"n_data": 1_000})
        for step in (0, 10):
            writer.append("examples", step=step, full=rng.standard_t(3, (80, 6)))
    for size in (4, 32):
        given = ("-a", "tail_index", "-p", f"batch_size={size}", "-p", "batches=100", "--json")
        (found,) = outcomes(run("analyze", path, *given))[0]["results"]
        assert (found["state"], found["failed_cells"]) == ("computed", 0)
    joined = tracelab.open(path).results.along("tail_index", "batch_size")
    assert joined["batch_size"].values.tolist() == [4, 32]
    assert (joined["n_batches"] == 100).all()
    refused = run(
        "analyze", path, "-a", "tail_index", "-p", "batch_size=90", "-p", "replacement=false"
    )
    assert refused.exit_code == 2
    assert "batch_size=90 without replacement exceeds the 80 recorded examples" in refused.stderr
