"""Stores made to harm whoever opens them, and processes that try."""

import json
import os
import subprocess
import sys

from traces import write_trace

MAX_SECONDS = 1.0
MAX_BYTES = 200e6

OPEN = """
import sys, time
from pathlib import Path
import tracelab
from tracelab.trace.reading import reader
from tracelab.errors import TraceError

def peak():
    # Not ru_maxrss: that begins with what the process that started this one had taken.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

before = peak()
started = time.perf_counter()
try:
    trace = tracelab.open(sys.argv[1])
    for group in trace.groups.values():
        for array in group.variables.values():
            array[(slice(0, 1),) * array.ndim].values
    trace.layers
except TraceError as error:
    print(f"refused: {str(error)[:400]}")
else:
    print("opened and read")
grown = peak() - before
print(time.perf_counter() - started, 1024 * grown)
"""


def attempt(path):
    """Return what another process said of a store, and the seconds and bytes it took."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OPEN, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *said, figures = done.stdout.strip().splitlines()
    seconds, grown = figures.split()
    return "\n".join(said), float(seconds), float(grown)


def _changed(change):
    def make(path):
        write_trace(path, steps=(0, 10), distances=20)
        document = json.loads((path / "zarr.json").read_text())
        change(document, document["consolidated_metadata"]["metadata"])
        (path / "zarr.json").write_text(json.dumps(document))

    return make


def _shape(array, shape):
    return _changed(lambda document, members: members[array].update(shape=shape))


def _billion_layers(document, members):
    for path, member in members.items():
        if path.startswith("layers/"):
            member["shape"] = [10**9]


def _renamed(name):
    def change(document, members):
        members[name] = members.pop("weights")

    return _changed(change)


def _huge_chunks(document, members):
    members["weights/norm"]["chunk_grid"]["configuration"]["chunk_shape"] = [2**40, 2]


def _large_attributes(path):
    write_trace(path, steps=(0,), distances=20)
    start, end = (path / "zarr.json").read_text().split('"attributes":{', 1)
    with (path / "zarr.json").open("w") as file:
        file.write(f'{start}"attributes":{{"x":"')
        for _ in range(1024):
            file.write("x" * 2**20)
        file.write(f'",{end}')


def _nested(path):
    write_trace(path, steps=(0,), distances=20)
    (path / "zarr.json").write_text('{"a":' * 10**6 + "1" + "}" * 10**6)


def _cyclic_link(path):
    write_trace(path, steps=(0, 10), distances=20)
    norm = path / "weights" / "norm"
    for file in norm.glob("c.*"):
        file.unlink()
        os.symlink(file.name, file)


def _link_outside(path):
    write_trace(path, steps=(0, 10), distances=20)
    for file in (path / "weights" / "norm").glob("c.*"):
        file.rename(path.parent / "outside")
        file.symlink_to(path.parent / "outside")


STORES = {
    "1e18 rows": _shape("weights/step", [10**18]),
    "a shape of 1e18": _shape("weights/norm", [20, 10**18]),
    "a billion layers": _changed(_billion_layers),
    "chunks of 1e12": _changed(_huge_chunks),
    "../ in a name": _renamed("../weights"),
    "an absolute name": _renamed("/tmp/weights"),
    "attributes of 1 GB": _large_attributes,
    "a million levels of JSON": _nested,
    "a link to itself": _cyclic_link,
    "a link out of the store": _link_outside,
}
