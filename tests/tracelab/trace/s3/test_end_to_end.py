"""Traces on object stores: recorded, read, analysed."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import xarray as xr
from traces import write_trace

import tracelab
from tracelab.errors import UsageError


def test_record_open_and_analyse_on_s3(bucket, tmp_path):
    write_trace(bucket.url())
    local = tracelab.open(write_trace(tmp_path / "run.zarr"))
    trace = tracelab.open(bucket.url())
    assert trace.state == "complete"
    for name, group in local.groups.items():
        xr.testing.assert_equal(trace.groups[name].compute(), group.compute())
    found = tracelab.analyze(trace, ["noise_scale"])["noise_scale"]
    expected = tracelab.analyze(local, ["noise_scale"])["noise_scale"]
    xr.testing.assert_equal(found, expected)
    xr.testing.assert_equal(tracelab.open(bucket.url()).results["noise_scale"].load(), expected)
    assert json.loads(bucket.get("run.zarr/zarr.json"))["attributes"]["state"] == "complete"


def test_rows_show_when_they_are_committed(bucket):
    with tracelab.create(bucket.url(), {"w": (2, 3)}) as writer:
        trace = tracelab.open(bucket.url())
        assert (trace.state, list(trace.groups)) == ("recording", [])
        for last in (3, 10, 11):
            for step in range(trace.rows.get("gradients", 0), last):
                writer.append("gradients", step=step, full=np.full(6, step, np.float32))
            writer.flush()
            values = trace.refresh().gradients["full"].values
            np.testing.assert_array_equal(values, np.repeat(np.arange(last)[:, None], 6, 1))
        other = tracelab.open(bucket.url())
    assert other.state == "recording"
    assert other.refresh().state == "complete"


@pytest.mark.slow
def test_replacing_a_trace_leaves_what_lies_beside_it(bucket):
    layers = {"w": (2,)}
    for path in ("run.zarr", "run.zarr2", "run", "a/run.zarr", "a/b"):
        tracelab.create(bucket.url(path), layers).close()
    bucket.client.put_object(Bucket=bucket.name, Key="run.zarr.txt", Body=b"kept")
    before = set(bucket.keys())
    for number in range(1_100):
        bucket.client.put_object(Bucket=bucket.name, Key=f"run.zarr/old/{number}", Body=b"")
    with pytest.raises(UsageError, match=r"there is a trace at s3://.*/run\.zarr; choose another"):
        tracelab.create(bucket.url(), layers)
    tracelab.create(bucket.url(), layers, overwrite=True).close()
    assert set(bucket.keys()) == before
    with pytest.raises(UsageError, match="exists and is not a trace, so it is left alone"):
        tracelab.create(bucket.url("a"), layers, overwrite=True)


@pytest.mark.slow
def test_workers_read_the_bucket_themselves(bucket, proxy):
    write_trace(bucket.url())
    expected = tracelab.analyze(bucket.url(), ["noise_scale"])["noise_scale"]
    proxy.clear()
    found = tracelab.analyze(bucket.url(), ["noise_scale"], workers=2, force=True)["noise_scale"]
    xr.testing.assert_equal(found, expected)
    roots = [request for request in proxy.requests if request.key.endswith("/run.zarr/zarr.json")]
    # This process, and each of the workers.
    assert len([request for request in roots if request.method == "GET"]) >= 3
    assert not any(request.method == "PUT" for request in roots)


ANALYSE = """
import sys, tracelab
tracelab.analyze(sys.argv[1], ["noise_scale"], force=True)
"""


@pytest.mark.slow
def test_two_analyses_at_once_store_one_result(bucket):
    write_trace(bucket.url())
    command = [sys.executable, "-W", "error", "-c", ANALYSE, bucket.url()]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for job in jobs:
        _, err = job.communicate(timeout=120)
        assert (job.returncode, err) == (0, "")
    expected = tracelab.analyze(bucket.url(), ["noise_scale"])["noise_scale"]
    trace = tracelab.open(bucket.url())
    assert len(trace.results.keys_of("noise_scale")) == 1
    xr.testing.assert_equal(trace.results["noise_scale"].load(), expected.load())


@pytest.mark.slow
def test_another_server_that_checks_signatures(strict_bucket):
    bucket = strict_bucket
    write_trace(bucket.url())
    trace = tracelab.open(bucket.url())
    found = tracelab.analyze(trace, ["noise_scale"], workers=1)["noise_scale"]
    xr.testing.assert_equal(trace.results["noise_scale"].load(), found.load())
    assert tracelab.verify(bucket.url()).sound
    tracelab.create(bucket.url(), {"w": (2,)}, overwrite=True).close()
    assert list(tracelab.open(bucket.url()).groups) == []


@pytest.mark.slow
def test_a_reader_beside_a_writer_sees_whole_commits(bucket):
    done = threading.Event()
    problems = []

    def read():
        trace = tracelab.open(bucket.url())
        seen = 0
        while not done.is_set():
            rows = trace.refresh().rows.get("gradients", 0)
            if rows:
                group = trace.gradients.compute()
                expected = np.arange(rows, dtype=np.float32)
                if not np.array_equal(group["full"].values[:, 5], expected):
                    problems.append(group["full"].values)
                if not np.array_equal(group["projected"].values[:, 0, 2], expected):
                    problems.append(group["projected"].values)
            if rows < seen:
                problems.append((seen, rows))
            seen = rows

    with tracelab.create(bucket.url(), {"w": (2, 3)}, flush_seconds=0.05) as writer:
        thread = threading.Thread(target=read)
        thread.start()
        for step in range(1_500):
            row = {"full": np.full(6, step), "projected": np.full((1, 3), step)}
            writer.append("gradients", step=step, **row)
            if step % 100 == 0:
                writer.flush()
        done.set()
        thread.join()
    assert problems == []
    assert tracelab.open(bucket.url()).rows == {"gradients": 1_500}
