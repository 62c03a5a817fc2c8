"""Starts every reader on traces whose values are known, and counts what differs."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import everykind

import tracelab
from readers.digests import digest

HERE = Path(__file__).parent
COMPRESSIONS = ("none", "lz4")
STATES = ("complete", "recording")


@dataclass(frozen=True)
class Reader:
    """A program that prints the digest of every array.

    Parameters
    ----------
    name : str
        What the table calls it.
    command : tuple of str
        What to run; the store or the file comes last.
    exported : bool
        Whether it reads the HDF5 export, not the store.
    texts : bool
        Whether it reads texts.
    """

    name: str
    command: tuple[str, ...]
    exported: bool = False
    texts: bool = True

    @property
    def needs_node(self) -> bool:
        """Whether it runs under Node, with packages of npm."""
        return self.command[0] == "node"


def _python(script: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / script))


READERS = (
    Reader("xarray", _python("with_xarray.py")),
    Reader("TensorStore", _python("with_tensorstore.py"), texts=False),
    Reader("zarrita", ("node", str(HERE / "with_zarrita.mjs"))),
    Reader("h5py", _python("with_h5py.py"), exported=True),
    Reader("h5dump", _python("with_h5dump.py"), exported=True),
    Reader("h5wasm", ("node", str(HERE / "with_h5wasm.mjs")), exported=True),
)


@dataclass(frozen=True)
class Outcome:
    """What a reader made of one trace."""

    version: str
    groups: int
    arrays: int
    values: int
    mismatches: tuple[str, ...]


def absent(reader: Reader) -> str | None:
    """Return why a reader cannot be run here, or None; packages of npm are installed."""
    if reader.name == "h5dump" and shutil.which("h5dump") is None:
        return "not on PATH (Debian: hdf5-tools)"
    if not reader.needs_node:
        return None
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node or npm not on PATH"
    stamp = HERE / "node_modules" / ".package-lock.json"
    if not stamp.exists() or stamp.stat().st_mtime < (HERE / "package-lock.json").stat().st_mtime:
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=HERE, capture_output=True, text=True
        )
        if done.returncode:
            return "npm ci failed"
    return None


@contextmanager
def trace(folder: Path, compression: str, state: str) -> Iterator[tuple[Path, Path]]:
    """Give a trace with every kind of group, and its export; perhaps still being recorded."""
    store = folder / f"{compression}-{state}.zarr"
    # With so little memory shards are small: many are full, and the last ones are not.
    writer = everykind.begin(store, compression, flush_seconds=3600, queue_bytes=2**16)
    try:
        if state == "complete":
            writer.close()
        else:
            writer.flush()
        tracelab.export_hdf5(store, store.with_suffix(".h5"))
        yield store, store.with_suffix(".h5")
    finally:
        writer.close()


def compare(reader: Reader, store: Path, file: Path) -> Outcome:
    """Run a reader and compare each array with what was written."""
    done = subprocess.run(
        [*reader.command, str(file if reader.exported else store)], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Outcome("-", 0, 0, 0, (f"it failed: {reason}",))
    printed = json.loads(done.stdout)
    wanted = {
        path: digest(values)
        for path, values in everykind.expected().items()
        if reader.texts or not isinstance(values, list)
    }
    found = printed["found"]
    wrong = [path for path in wanted if found.get(path) != wanted[path]]
    wrong += [path for path in found if path not in wanted]
    return Outcome(
        printed["version"],
        len({path.split("/")[0] for path in wanted}),
        len(wanted),
        sum(math.prod(each["shape"]) for each in wanted.values()),
        tuple(wrong),
    )
