"""What only a real process shows: signals and pipes."""

import os
import resource
import signal
import subprocess
import sys

import pytest

import tracelab

COMMAND = [sys.executable, "-c", "from tracelab.cli import main; main()"]

# `gaussianity` is slowed down and says so; `noise_scale` before it is not.
SLOW = """
import sys, time
from dataclasses import replace
from tracelab import registry
from tracelab.cli import main
import tracelab_analyses.gaussianity as module

def slow(noise, seed, **parameters):
    print("busy", file=sys.stderr, flush=True)
    time.sleep(60)

module.ANALYSIS = replace(module.ANALYSIS, kernel=slow)
main()
"""


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_resumes(record, run):
    path = record(steps=1)
    arguments = ["analyze", str(path), "-a", "noise_scale", "-a", "gaussianity"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments, "--layers", "network"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "busy\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == (
        "Interrupted: the analyses that finished are stored; 0 of 1 cells of gaussianity are kept. "
        "The same command goes on from here.\n"
    )
    assert list(tracelab.open(path).results) == ["noise_scale"]
    again = run(*arguments, "--layers", "network").stdout
    assert "noise_scale  stored" in again
    assert "gaussianity  computed" in again


def test_a_closed_pipe_is_quiet(record, run):
    # More than a pipe holds (64 KiB), so that the writer meets the closed end.
    path = record(steps=400, batches=8)
    run("analyze", path, "-a", "noise_scale")
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*COMMAND, "results", str(path), "noise_scale"], stdout=writer, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        assert os.read(reader, 10)
        os.close(reader)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.slow
def test_a_pipe_closed_before_anything_is_written_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "analyses"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_answers_at_once():
    def seconds():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    # Time on the processor: what else the machine does is not ours.
    before = seconds()
    subprocess.run([*COMMAND, "--help"], capture_output=True, check=True)
    assert seconds() - before < 0.5
