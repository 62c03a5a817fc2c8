"""Traces of several shards and kinds of arrays, and ways to damage their files."""

import json
import os
from pathlib import Path

import numpy as np

import tracelab
from tracelab.contracts import Variable

LAYERS = {"a": (40, 50), "b": (30,)}
ROWS = 40
# Arrays whose rows have no missing value, and arrays that are read cell by cell.
COUNTS = (
    Variable("bins", ("step", "layer", "event"), "1", "int32", "counts"),
    Variable("mass", ("step", "layer"), "1", "float32", "their sum"),
)


def row(step):
    """Return the row of every group at a step; always the same."""
    rng = np.random.default_rng(step)
    return {
        "gradients": {
            "full": rng.standard_normal(2030).astype(np.float32),
            "projected": rng.standard_normal((2, 64)).astype(np.float32),
        },
        "counts": {
            "bins": rng.integers(0, 1000, (2, 300), dtype=np.int32),
            "mass": rng.standard_normal(2).astype(np.float32),
        },
        "noise": {
            "sampled": rng.standard_normal((16, 24)).astype(np.float32),
            "mean_sampled": rng.standard_normal(24).astype(np.float32),
        },
        "steps": {"loss": float(rng.standard_normal()), "applied": bool(rng.integers(2))},
    }


def write(path, *, rows=ROWS, compression="none", **options):
    """Write a trace of small shards, several of each large array; step is ten times the row."""
    with tracelab.create(
        path, LAYERS, queue_bytes=2**18, compression=compression, attrs={"seed": 7}, **options
    ) as writer:
        writer.define("counts", kind="histogram", variables=COUNTS)
        writer.define(
            "noise",
            sketches=[tracelab.Sample(12)],
            coordinates=tracelab.Sample(12).tables({"a": 2000, "b": 30}),
        )
        for number in range(rows):
            for group, arrays in row(10 * number).items():
                writer.append(group, step=10 * number, **arrays)
    return Path(path)


def files(path):
    """Return the files of a trace that hold data, not documents."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(path)
        for name in names
        if name != "zarr.json"
    )


def flip(file, place, mask=0x10):
    """Flip bits of one byte; a place below 0 counts from the end."""
    with Path(file).open("r+b") as opened:
        opened.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ mask]))


def overwrite(file, place, content):
    """Write bytes over those of a file."""
    with Path(file).open("r+b") as opened:
        opened.seek(place)
        opened.write(content)


def contents(path):
    """Return every file of a trace, by its path inside."""
    return {
        os.path.relpath(os.path.join(parent, name), path): Path(parent, name).read_bytes()
        for parent, _, names in os.walk(path)
        for name in names
    }


def rewrite(path, change):
    """Change a document on disk."""
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def replace_by_folder(file):
    file.unlink()
    file.mkdir()


def replace_by_link(file):
    target = file.with_name("elsewhere")
    file.rename(target)
    file.symlink_to(target)


def replace_by_cycle(file):
    file.unlink()
    file.symlink_to(file)


def replace_by_pipe(file):
    file.unlink()
    os.mkfifo(file)


WAYS = {
    "deleted": lambda file: file.unlink(),
    "emptied": lambda file: os.truncate(file, 0),
    "one byte": lambda file: os.truncate(file, 1),
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "without its last byte": lambda file: os.truncate(file, file.stat().st_size - 1),
    "without its last four": lambda file: os.truncate(file, file.stat().st_size - 4),
    "with zeros behind": lambda file: os.truncate(file, file.stat().st_size + 1),
    "first byte": lambda file: flip(file, 0),
    "last byte": lambda file: flip(file, -1),
    "index or checksum": lambda file: flip(file, -6),
    "all zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "folder": replace_by_folder,
    "link": replace_by_link,
    "cycle": replace_by_cycle,
    "pipe": replace_by_pipe,
}
