import subprocess
import sys
from importlib.metadata import version

import pytest

from tracelab.cli import exits, main
from tracelab.errors import MissingExtraError, TraceError, UsageError

HEAVY = {"numpy", "pandas", "xarray", "zarr", "dask", "torch", "numba", "scipy", "matplotlib"}


def test_version(run):
    assert run("--version").stdout == f"tracelab {version('tracelab')}\n"


@pytest.mark.parametrize("command", [None, *main.commands])
def test_every_command_explains_itself(run, command):
    arguments = ["--help"] if command is None else [command, "--help"]
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert run(*arguments[:-1], "-h").stdout == result.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from tracelab.cli import main; "
        "main(['--help'], standalone_mode=False); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())


def test_no_command_is_wrong_usage(run):
    assert run().exit_code == 2
    assert "Usage: " in run().stderr


def test_an_unknown_command(run):
    result = run("analyse")
    assert result.exit_code == 2
    assert "No such command 'analyse'" in result.stderr


def test_quiet_and_verbose_contradict_each_other(run):
    result = run("-q", "-v", "analyses")
    assert result.exit_code == 2
    assert "contradict each other" in result.stderr


def test_quiet_says_nothing_but_the_data(run, record):
    path = record()
    run("analyze", path, "-a", "noise_scale")
    result = run("-q", "analyze", path, "-a", "noise_scale")
    assert "stored" in result.stdout
    assert result.stderr == ""
    assert run("-q", "analyze", path, "-a", "nothing").stderr.startswith("Error: ")


def test_very_verbose_tells_where_an_error_was_raised(run, record):
    path = record()
    assert "Traceback" not in run("-v", "results", path, "noise_scale").stderr
    assert "Traceback" in run("-vv", "results", path, "noise_scale").stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (MissingExtraError("pyarrow", "all", "x"), 2),
        (TraceError("x"), 3),
        (OSError(28, "No space left on device", "run.zarr"), 1),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_codes_of_errors(error, code):
    assert exits.code_of(error) == code


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UsageError("give one"), "give one"),
        (OSError(28, "No space left on device", "run.zarr"), "No space left on device: run.zarr"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("odd"), "OSError: odd"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_errors_as_sentences(error, text):
    assert exits.sentence(error) == text


def test_an_interrupted_command_says_so(run, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("tracelab.registry.analyses", interrupt)
    result = run("analyses")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_a_bug_is_not_hidden(run, monkeypatch):
    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr("tracelab.registry.analyses", broken)
    with pytest.raises(ZeroDivisionError):
        run("analyses")
