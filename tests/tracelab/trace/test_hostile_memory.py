"""What made traces cost: each is refused before memory is taken for what it claims."""

import json
import os
import re
import subprocess
import sys
import zipfile

import google_crc32c
import numpy as np
import pytest
from numcodecs import blosc

from tracelab.trace import create

LAYERS = {"a": (4,), "b": (2,)}
# Above what importing takes: some 150 MB, which depend on the libraries and on how much of their
# files the system maps at once. The promise is 200 MB; what is taken is below 30.
MEGABYTES = 100

# Imports once and forks for each trace, so that each peak is one trace's own.
LOOK = """
import gc, json, os, sys, time
from pathlib import Path
from tracelab.errors import NotRecordedError, TraceError
import tracelab.trace.reading.reader
from tracelab.trace import open as open_trace

def look_at(path):
    trace = open_trace(path)
    repr(trace)
    for group in trace.groups.values():
        repr(group)
    trace.layers
    trace.summary()
    trace.gradients["full"][0, 0].values

def peak():
    # Not ru_maxrss: that begins with what the process that started this one had taken.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

gc.freeze()
for path in sys.argv[1:]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        started = time.perf_counter()
        before = peak()
        try:
            look_at(path)
            words = "opened"
        except TraceError as error:
            words = str(error)
        except BaseException as error:
            words = f"not refused but {type(error).__name__}: {error}"
        taken = peak() - before
        os.write(writing, json.dumps([words[:4000], taken, time.perf_counter() - started]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        words, taken, seconds = json.load(file)
    os.waitpid(child, 0)
    print(json.dumps([words, taken / 1024, seconds]), flush=True)
"""


def root(path):
    return json.loads((path / "zarr.json").read_bytes())


def store(path, document):
    (path / "zarr.json").write_text(json.dumps(document))


def members(document):
    return document["consolidated_metadata"]["metadata"]


def with_root(change):
    def make(path):
        document = root(path)
        change(document)
        store(path, document)

    return make


def with_content(content):
    return lambda path: (path / "zarr.json").write_bytes(content)


def all_layers(document, count):
    for member in members(document).values():
        if member["node_type"] == "array":
            for axis, name in enumerate(member["dimension_names"]):
                if name == "layer":
                    member["shape"][axis] = count


def rows(document, count):
    for member in members(document).values():
        if member["node_type"] == "array" and member["dimension_names"][0] == "step":
            member["shape"][0] = count


def sparse_gigabyte(path):
    with (path / "zarr.json").open("r+b") as file:
        file.truncate(2**30)


def one_shard_of_missing_steps(path):
    """20 bytes that say: a hundred million steps, none of which is stored."""
    document = root(path)
    rows(document, 10**8)
    member = members(document)["gradients/step"]
    member["chunk_grid"]["configuration"]["chunk_shape"] = [2**27]
    member["codecs"][0]["configuration"]["chunk_shape"] = [2**20]
    for other in members(document).values():
        if other["node_type"] == "array" and other["dimension_names"][0] == "step":
            other["chunk_grid"]["configuration"]["chunk_shape"][0] = 2**27
            other["codecs"][0]["configuration"]["chunk_shape"][0] = 2**20
    store(path, document)
    index = np.full(2 * 2**7, 2**64 - 1, "<u8").tobytes()
    checksum = google_crc32c.value(index).to_bytes(4, "little")
    (path / "gradients/step/c.0").write_bytes(index + checksum)


def huge_index(path):
    """An index of 256 MB, in a file without any blocks on the disk."""
    document = root(path)
    member = members(document)["gradients/full"]
    member["chunk_grid"]["configuration"]["chunk_shape"] = [2**24, 6]
    member["codecs"][0]["configuration"]["chunk_shape"] = [1, 6]
    store(path, document)
    with (path / "gradients/full/c.0.0").open("wb") as file:
        file.truncate(2**28 + 4)


def bomb(path):
    """A frame that says it becomes two gigabytes."""
    document = root(path)
    member = members(document)["gradients/full"]
    inner = member["codecs"][0]["configuration"]
    inner["codecs"].insert(1, {"name": "blosc", "configuration": {}})
    store(path, document)
    frame = bytearray(blosc.compress(np.zeros(2**20, np.float32), b"zstd", 1, 0))
    frame[4:8] = (2**31 - 1).to_bytes(4, "little")
    count = np.prod(member["chunk_grid"]["configuration"]["chunk_shape"]) // np.prod(
        inner["chunk_shape"]
    )
    index = np.full(2 * count, 2**64 - 1, "<u8")
    index[:2] = 0, len(frame) + 4
    parts = [
        part + google_crc32c.value(part).to_bytes(4, "little")
        for part in (bytes(frame), index.tobytes())
    ]
    (path / "gradients/full/c.0.0").write_bytes(b"".join(parts))


def bomb_in_the_table(path):
    document = root(path)
    member = members(document)["layers/numel"]
    member["chunk_grid"]["configuration"]["chunk_shape"] = [2**24]
    store(path, document)
    frame = blosc.compress(np.zeros(2**24, np.int64), b"zstd", 1, 0)
    (path / "layers/numel/c.0").write_bytes(
        frame + google_crc32c.value(frame).to_bytes(4, "little")
    )


def many_numel(path):
    """A table that says its layers have a trillion weights."""
    frame = blosc.compress(np.full(2, 10**12), b"zstd", 1, 0)
    checksum = google_crc32c.value(frame).to_bytes(4, "little")
    (path / "layers/numel/c.0").write_bytes(frame + checksum)


def linked_shard(path):
    shard = path / "gradients/full/c.0.0"
    os.rename(shard, path.parent / "outside")
    os.symlink(path.parent / "outside", shard)


def cyclic_root(path):
    os.remove(path / "zarr.json")
    os.symlink("zarr.json", path / "zarr.json")


def cyclic_group(path):
    """Listing a trace goes round for ever where links are followed."""
    os.symlink(path, path / "gradients/again")


def zipped(name, size):
    def make(path):
        with zipfile.ZipFile(path.parent / "packed", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(path.rglob("*")):
                if file.is_file() and file != path / name:
                    archive.write(file, file.relative_to(path))
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(size // 2**24):
                    file.write(bytes(2**24))
        os.rename(path.parent / "packed", path.with_suffix(".zip"))

    return make


MANY = b'{"attributes":{},"a":[' + b",".join([b"{}"] * 2**20) + b"]}"
DEEP = b'{"a":' * 10**5 + b"1" + b"}" * 10**5
CASES = {
    "shape of 1e18": (
        with_root(lambda d: members(d)["gradients/full"].update(shape=[3, 10**18])),
        "has the shape",
    ),
    "a billion layers": (
        with_root(lambda d: all_layers(d, 10**9)),
        r"0+\], too large for chunks",
    ),
    "a billion rows": (with_root(lambda d: rows(d, 10**9)), r"0+, 6\], too large for chunks"),
    "ten million rows": (with_root(lambda d: rows(d, 10**7)), r"step of .* c\.1 is missing"),
    "steps that are fill values": (one_shard_of_missing_steps, "its steps do not increase"),
    "a root of a gigabyte": (sparse_gigabyte, "is larger than any trace's"),
    "attributes of a gigabyte": (
        with_content(b'{"attributes":{"a":"' + b"a" * 2**23 + b'"}}'),
        "is larger than any trace's",
    ),
    "a million objects": (with_content(MANY), "it has more than 131072 values"),
    "deep nesting": (with_content(DEEP), "nested too deeply|more than"),
    "half of it deep": (with_content(b"[" * 60_000 + b"]" * 60_000), "nested too deeply"),
    "an index of 256 MB": (huge_index, "has an index with another checksum"),
    "a bomb": (bomb, "chunk 0.0 has .* bytes, where|become 2147483647"),
    "a bomb in the table": (bomb_in_the_table, "which no table has"),
    "a table of a trillion weights": (many_numel, "^opened$"),
    "a shard outside": (linked_shard, "is a symbolic link"),
    "a cyclic root": (cyclic_root, "cannot be read: zarr.json is a symbolic link"),
    "a cyclic group": (cyclic_group, "^opened$"),
    "a zip bomb for a root": (zipped("zarr.json", 2**27), "is refused: 'zarr.json' would unpack"),
    "a zip bomb for a shard": (zipped("gradients/full/c.0.0", 2**27), "would unpack"),
    "a trace": (lambda path: None, "^opened$"),
}


@pytest.mark.slow
def test_each_is_refused_within_bounds(tmp_path):
    paths = []
    for number, (make, _) in enumerate(CASES.values()):
        path = tmp_path / str(number) / "a"
        with create(path, LAYERS) as writer:
            for step in range(3):
                writer.append("gradients", step=step, full=np.arange(6))
        make(path)
        archive = path.with_suffix(".zip")
        paths.append(archive if archive.exists() else path)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES), done.stderr
    for name, (said, megabytes, seconds) in zip(CASES, found, strict=True):
        print(f"{name}: {seconds:.2f} s, {megabytes:.0f} MB: {said[:200]}")
    wrong = {
        name: (said, megabytes)
        for (name, (_, words)), (said, megabytes, _) in zip(CASES.items(), found, strict=True)
        if not re.search(words, said) or len(said) > 1000 or megabytes > MEGABYTES
    }
    assert not wrong
