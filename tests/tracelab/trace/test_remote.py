"""Stores behind URLs other than S3's: a web server, and a file system in memory."""

import functools
import http.server
import threading

import fsspec
import numpy as np
import pytest
import xarray as xr
from traces import write_trace
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import tracelab
from tracelab.errors import TraceError, UsageError
from tracelab.trace.places import remote
from tracelab.trace.places.locations import resolve
from tracelab.trace.places.remote import RemoteStore


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; as Python's own server it knows no byte ranges."""

    def log_message(self, *_):
        pass


class Ranges(Quiet):
    """Serves a folder, also in parts."""

    def do_GET(self):
        asked = self.headers.get("Range")
        path = self.translate_path(self.path)
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            self.send_error(404)
            return
        if asked is None:
            first, last, status = 0, len(content) - 1, 200
        else:
            left, right = asked.removeprefix("bytes=").split("-")
            first = int(left) if left else max(0, len(content) - int(right))
            last = int(right) if left and right else len(content) - 1
            status = 206
        part = content[first : last + 1]
        self.send_response(416 if first >= len(content) else status)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture(params=[Quiet, Ranges])
def web(request, tmp_path):
    """Give the URL of a server, with byte ranges or without, and its folder."""
    handler = functools.partial(request.param, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_trace_on_a_web_server_is_read(web):
    url, folder = web
    local = tracelab.open(write_trace(folder / "run.zarr"))
    trace = tracelab.open(f"{url}/run.zarr")
    for name, group in local.groups.items():
        xr.testing.assert_equal(trace.groups[name].compute(), group.compute())
    part = (slice(3, 5), 1)
    np.testing.assert_array_equal(trace.weights["norm"][part], local.weights["norm"][part])
    with pytest.raises(UsageError, match="there is no trace at http"):
        tracelab.open(f"{url}/none.zarr")
    with pytest.raises(UsageError, match="is read-only, so no trace can be recorded there"):
        tracelab.create(f"{url}/new.zarr", {"w": (1,)})


def test_no_more_of_a_file_on_a_web_server_is_read_than_wanted(web):
    url, folder = web
    (folder / "a").mkdir()
    content = np.random.default_rng(0).bytes(3_000_000)
    (folder / "a" / "b").write_bytes(content)
    (folder / "a" / "empty").write_bytes(b"")
    store = RemoteStore(f"{url}/a")

    def get(part, key="b"):
        return sync(store.get(key, default_buffer_prototype(), part)).to_bytes()

    assert get(None) == content
    assert get(RangeByteRequest(10, 20)) == content[10:20]
    assert get(RangeByteRequest(2_999_990, 4_000_000)) == content[-10:]
    assert get(OffsetByteRequest(2_999_000)) == content[2_999_000:]
    assert get(SuffixByteRequest(7)) == content[-7:]
    assert get(RangeByteRequest(0, 10), "empty") == b""
    assert get(SuffixByteRequest(10), "empty") == b""
    assert resolve(f"{url}/a").read("b", 5) == content[:5]
    assert sync(store.get("c", default_buffer_prototype())) is None
    assert not sync(store.exists("c"))


def test_nobody_serves(monkeypatch):
    monkeypatch.setattr(remote, "READ_PATIENCE", 0.1)
    with pytest.raises(TraceError, match="the server cannot be reached"):
        tracelab.open("http://127.0.0.1:9/run.zarr")


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield RemoteStore("memory://test_remote/run.zarr")
    fs.rm("/test_remote", recursive=True)


def test_what_a_store_can_do(memory):
    def put(key, content):
        sync(memory.set(key, default_buffer_prototype().buffer.from_bytes(content)))

    async def listed(names):
        return sorted([name async for name in names])

    for key, content in {"a/b": b"12", "a/c/d": b"345", "ab": b"6", "zarr.json": b"7"}.items():
        put(key, content)
    fsspec.filesystem("memory").pipe("/test_remote/run.zarr2", b"8")
    assert sync(listed(memory.list())) == ["a/b", "a/c/d", "ab", "zarr.json"]
    assert sync(listed(memory.list_dir(""))) == ["a", "ab", "zarr.json"]
    assert sync(listed(memory.list_dir("a"))) == ["b", "c"]
    assert sync(listed(memory.list_prefix("a/c"))) == ["a/c/d"]
    assert sync(memory.getsize("a/c/d")) == 3
    assert sync(memory.getsize_prefix("a")) == 5
    assert [sync(memory.is_empty(prefix)) for prefix in ("", "a", "x")] == [False, False, True]
    sync(memory.delete("a/b"))
    sync(memory.delete("not/there"))
    assert not sync(memory.exists("a/b"))
    sync(memory.delete_dir("a"))
    assert sync(listed(memory.list())) == ["ab", "zarr.json"]
    sync(memory.clear())
    assert sync(memory.is_empty(""))
    assert fsspec.filesystem("memory").cat("/test_remote/run.zarr2") == b"8"
    with pytest.raises(ValueError, match="read-only"):
        sync(memory.with_read_only(True).delete("ab"))


def test_a_store_in_this_process_is_not_for_others():
    assert not resolve("memory://x/run.zarr").shareable
    assert resolve("http://127.0.0.1:9/run.zarr").shareable
