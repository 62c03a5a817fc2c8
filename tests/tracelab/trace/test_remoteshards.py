"""Arrays behind a URL, read like the same arrays in a folder; a file system in memory is enough."""

import shutil

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

import tracelab
from tracelab.errors import DamagedError
from tracelab.trace.places import remoteshards
from tracelab.trace.places.plainfiles import UnusableError
from tracelab.trace.places.remoteshards import RemoteShards, _Fetched, _runs

LAYERS = {"w": (70, 1_000)}
STEPS = 100


@pytest.fixture(scope="module", params=["none", "lz4"])
def twins(request, tmp_path_factory):
    """Give the same trace in a folder and behind a URL."""
    folder = tmp_path_factory.mktemp("twins") / "run.zarr"
    rng = np.random.default_rng(0)
    with tracelab.create(folder, LAYERS, compression=request.param) as writer:
        for step in range(STEPS):
            full = rng.standard_normal(70_000).astype(np.float32)
            writer.append("gradients", step=step, full=full, projected=full[:9].reshape(1, 9))
    url = f"memory://remoteshards/{request.param}.zarr"
    fsspec.filesystem("memory").put(f"{folder}/", url, recursive=True)
    yield tracelab.open(folder), tracelab.open(url)
    shutil.rmtree(folder)


def source(trace):
    return trace.stored("gradients")["full"].source


def slices(size):
    ends = st.integers(-size - 2, size + 2) | st.none()
    return st.builds(slice, ends, ends, st.integers(1, size) | st.integers(-size, -1) | st.none())


@given(steps=slices(STEPS), coordinates=slices(70_000), limit=st.sampled_from([1, 2**18, 2**23]))
@how(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_is_the_same_from_both(twins, monkeypatch, steps, coordinates, limit):
    # However small requests are, and whether objects come whole.
    monkeypatch.setattr(remoteshards, "REQUEST_BYTES", limit)
    monkeypatch.setattr(remoteshards, "WHOLE_BYTES", limit)
    local, remote = map(source, twins)
    assert isinstance(remote, RemoteShards)
    found, expected = remote[steps, coordinates], local[steps, coordinates]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_an_array_of_more_than_a_request_and_more_than_a_batch(twins, monkeypatch):
    local, remote = map(source, twins)
    monkeypatch.setattr(remoteshards, "BATCH_BYTES", 2**20)
    np.testing.assert_array_equal(remote[...], local[...])


def test_chunks_side_by_side_are_one_request():
    most = remoteshards.REQUEST_BYTES
    gap = remoteshards.GAP_BYTES
    assert _runs([]) == []
    assert _runs([(30, 10), (10, 20), (10, 20)]) == [(10, 40)]
    assert _runs([(0, 10), (10 + gap, 5), (16 + 2 * gap, 5)]) == [
        (0, 15 + gap),
        (16 + 2 * gap, 21 + 2 * gap),
    ]
    assert _runs([(0, most), (most, 1)]) == [(0, most), (most, most + 1)]


def test_parts_side_by_side_read_like_one():
    parts = _Fetched(100, [(10, b"abc"), (13, b"defg"), (20, b"xy")])
    first, second = bytearray(2), bytearray(3)
    parts.read_into([first, second], 11)
    assert (first, second) == (b"bc", b"def")
    for offset, size in ((9, 2), (16, 2), (20, 3), (30, 1)):
        with pytest.raises(UnusableError, match="is cut off"):
            parts.read_into([bytearray(size)], offset)


@pytest.mark.parametrize("damage", ["flip", "cut", "index", "gone"])
def test_damage_is_found(twins, damage):
    _, remote = twins
    fs = fsspec.filesystem("memory")
    path = f"{remote.location}/gradients/full/c.0.0"
    content = fs.cat_file(path)
    changed = bytearray(content)
    if damage == "flip":
        changed[1_000] ^= 8
    elif damage == "index":
        changed[-30] ^= 8
    elif damage == "cut":
        del changed[len(changed) // 2 :]
    try:
        fs.pipe_file(path, bytes(changed))
        if damage == "gone":
            fs.rm_file(path)
        reason = {"gone": "is missing"}.get(damage, "checksum|cut off|bytes")
        with pytest.raises(DamagedError, match=rf"full of memory://.*shard c\.0\.0.*({reason})"):
            source(tracelab.open(remote.location))[:, :3]
    finally:
        fs.pipe_file(path, content)
