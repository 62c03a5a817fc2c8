"""Results beside a trace in an object store, and of somebody else's trace in a store of one's own.

There are no folders, links, renames and locks: a result is there once its document is.
"""

import pytest
import toys
import xarray as xr
from objectstores import Reply

import tracelab
from tracelab import registry
from tracelab.errors import UsageError
from tracelab.trace.places import remote
from tracelab.trace.resultstore import shelves

pytestmark = pytest.mark.slow
CELLS = 6 * len(toys.LABELS)


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_entries", toys.entries)
    monkeypatch.setattr(remote, "WRITE_PATIENCE", 1.0)
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))


def test_results_are_stored_reused_and_grow(bucket, tmp_path):
    toys.write(bucket.url(), range(6))
    some = tracelab.analyze(bucket.url(), "toy", steps=slice(0, 3))["toy"]
    found = tracelab.analyze(bucket.url(), ["toy", "path"])["toy"]
    assert found.attrs["reused_cells"] == some["status"].size
    assert len(toys.noted(tmp_path / "log")) == CELLS + len(toys.LABELS)
    trace = tracelab.open(bucket.url())
    assert list(trace.results) == ["path", "toy"]
    assert len(trace.results.keys_of("toy")) == 1
    xr.testing.assert_identical(trace.results["toy"].load(), found)
    assert not [key for key in bucket.keys("run.zarr") if ".jobs" in key]


def test_an_interrupted_job_goes_on(bucket, tmp_path, monkeypatch):
    toys.write(bucket.url(), range(6))
    with monkeypatch.context() as patch:
        patch.setattr(shelves, "store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt, match="24 of 24 cells of toy are kept"):
            tracelab.analyze(bucket.url(), "toy")
    assert [key for key in bucket.keys("run.zarr") if ".jobs" in key]
    assert tracelab.analyze(bucket.url(), "toy")["toy"].attrs["computed_cells"] == 0
    assert not [key for key in bucket.keys("run.zarr") if ".jobs" in key]


def test_a_trace_that_may_only_be_read(bucket, proxy, tmp_path, monkeypatch):
    toys.write(bucket.url(), range(6))
    denied = Reply(403, "AccessDenied", "Access Denied")
    proxy.fault = lambda request: denied if request.method in ("PUT", "POST", "DELETE") else None
    with pytest.raises(UsageError, match=r"cannot be stored in s3.*access is denied.*--out"):
        tracelab.analyze(bucket.url(), "toy")
    assert toys.noted(tmp_path / "log") == []
    found = tracelab.analyze(bucket.url(), "toy", out=tmp_path / "mine")["toy"]
    trace = tracelab.open(bucket.url(), results=tmp_path / "mine")
    xr.testing.assert_identical(trace.results["toy"].load(), found)
    proxy.fault = None
    tracelab.analyze(bucket.url(), "toy", out=bucket.url("kept"))
    assert tracelab.open(bucket.url(), results=bucket.url("kept")).results["toy"].sizes["step"] == 6


def test_few_round_trips(bucket, proxy):
    """A result of eight objects: what follows each other waits, what does not is asked at once."""
    toys.write(bucket.url(), range(6))
    tracelab.analyze(bucket.url(), "toy")
    trace = tracelab.open(bucket.url())
    proxy.clear()
    trace.results.listing("toy")
    # Names of analyses, names of results, their documents.
    assert len(proxy.requests) <= 3
    proxy.clear()
    proxy.delay = 0.1
    trace.results["toy"]
    assert proxy.peak >= 6
