import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace
from tracelab.trace.writing import compression

NUMEL = 40_000
WIDE = 2_048
DTYPES = ("bool", "int8", "int64", "uint16", "float32", "float64", "bfloat16")


def codecs(path, array):
    """The names of the codecs inside an array's shards."""
    document = json.loads((path / array / "zarr.json").read_text())
    return [codec["name"] for codec in document["codecs"][0]["configuration"]["codecs"]]


# ----------------------------------------------------------------------------------- choosing


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(compression, "_known", {})


def timed(monkeypatch, compressing, storing):
    times = iter([compressing, storing])
    monkeypatch.setattr(compression, "_seconds", lambda task: (task(), next(times))[1])


@pytest.mark.parametrize(
    ("compressing", "storing", "wanted"),
    [
        (0.001, 0.010, "lz4"),  # The disk is slow.
        (0.009, 0.010, "lz4"),  # As fast as the disk: side by side, the fewer bytes count.
        (0.020, 0.010, "none"),  # The codec is slow.
    ],
)
def test_the_faster_of_the_two(tmp_path, monkeypatch, unmeasured, compressing, storing, wanted):
    timed(monkeypatch, compressing, storing)
    with create(tmp_path / "a", {"w": (NUMEL,)}) as writer:
        writer.append("weights", step=0, full=np.zeros(NUMEL))
    assert open_trace(tmp_path / "a").attrs["compression"] == wanted
    with create(tmp_path / "b", {"w": (NUMEL,)}):
        # The same file system: not measured again, there are no more times.
        pass
    assert open_trace(tmp_path / "b").attrs["compression"] == wanted
    assert ("blosc" in codecs(tmp_path / "a", "weights/full")) == (wanted == "lz4")


def test_measuring_leaves_nothing_behind(tmp_path, unmeasured):
    assert compression.choose("auto", tmp_path / "x" / "y") in ("none", "lz4")
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "y"]


def test_where_there_is_no_room_to_measure_bytes_matter(tmp_path, monkeypatch, unmeasured):
    def full(task):
        task()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compression, "_seconds", full)
    assert compression.choose("auto", tmp_path) == "lz4"


def test_what_is_asked_for_is_not_measured(tmp_path, monkeypatch, unmeasured):
    monkeypatch.setattr(compression, "_measure", None)
    for name in ("none", "lz4"):
        with create(tmp_path / name, {"w": (NUMEL,)}, compression=name) as writer:
            writer.append("weights", step=0, full=np.zeros(NUMEL))
        assert open_trace(tmp_path / name).attrs["compression"] == name
        assert ("blosc" in codecs(tmp_path / name, "weights/full")) == (name == "lz4")
        # Small chunks are not worth it.
        assert "blosc" not in codecs(tmp_path / name, "weights/step")
    with create(store := MemoryStore(), {"w": (NUMEL,)}):
        pass
    assert open_trace(store).attrs["compression"] == "lz4"


def test_another_compression(tmp_path):
    with pytest.raises(UsageError, match="must be one of auto, none, lz4, got 'zstd'"):
        create(tmp_path / "a", {"w": (NUMEL,)}, compression="zstd")
    assert not (tmp_path / "a" / "zarr.json").exists()


# ------------------------------------------------------------------- what others find in it


def stored(dtype, values):
    """What plain readers find for values of a variable's dtype."""
    if dtype != "bfloat16":
        return values
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def by_tensorstore(folder, names, out):
    """Read arrays with TensorStore, in a process that does nothing else."""
    pytest.importorskip("tensorstore")
    code = f"""
    import numpy as np, tensorstore as ts
    found = {{}}
    for name in {names!r}:
        kvstore = {{"driver": "file", "path": f"{folder}/{{name}}"}}
        found[name] = ts.open({{"driver": "zarr3", "kvstore": kvstore}}).result().read().result()
    np.savez({str(out)!r}, **found)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    return np.load(out)


@pytest.mark.parametrize("name", ["none", "lz4"])
def test_zarr_python_and_tensorstore_find_every_bit(tmp_path, name):
    """Chunks that were committed before they were full, after, and never; missing rows; NaN."""
    rng = np.random.default_rng(0)
    variables = [Variable(f"x_{dtype}", ("step", "wide"), dtype=dtype) for dtype in DTYPES]
    # Of 65,536 numbers a chunk: 32 steps of 2,000.
    rows, late = 150, 70
    values = {}
    for variable in variables:
        dtype = "float32" if variable.dtype == "bfloat16" else variable.dtype
        bits = rng.integers(0, 2 if dtype == "bool" else 100, (rows, WIDE))
        values[variable.name] = bits.astype(dtype)
        if dtype.startswith("float"):
            values[variable.name][3, :4] = [np.nan, np.inf, -np.inf, -0.0]
    with create(tmp_path / "a", {"w": (3,)}, compression=name, flush_seconds=3600) as writer:
        writer.define("other", kind="mine", variables=[*variables, Variable("l", ("step", "wide"))])
        for step in range(rows):
            row = {key: value[step] for key, value in values.items()}
            if step >= late and step % 3:
                row["l"] = np.full(WIDE, step)
            writer.append("other", step=step, **row)
            if step in (5, 31, 33, 75, 140):
                writer.flush()
    folder = tmp_path / "a/other"
    wanted = {
        variable.name: stored(variable.dtype, values[variable.name]) for variable in variables
    }
    wanted["l"] = np.full((rows, WIDE), np.nan)
    present = [step for step in range(late, rows) if step % 3]
    wanted["l"][present] = np.array(present)[:, None]
    others = by_tensorstore(folder, [*wanted], tmp_path / "found.npz")
    for array, expected in wanted.items():
        assert ("blosc" in codecs(tmp_path / "a", f"other/{array}")) == (name == "lz4")
        for found in (zarr.open_array(folder / array, mode="r")[...], others[array]):
            assert found.dtype == expected.dtype
            assert found.tobytes() == expected.tobytes()


READER = """
import asyncio, os, sys, time
import numpy as np, zarr
from zarr.abc.store import SuffixByteRequest
from zarr.storage import LocalStore

class Hesitant(LocalStore):
    # Between the index of a shard and its chunks, the shard is replaced.
    async def get(self, key, prototype, byte_range=None):
        found = await super().get(key, prototype, byte_range)
        if found is not None and isinstance(byte_range, SuffixByteRequest):
            file, deadline = self.root / key, time.monotonic() + 0.05
            before = os.stat(file).st_ino
            while os.stat(file).st_ino == before and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
            replaced.append(os.stat(file).st_ino != before)
        return found

store, replaced, sizes = Hesitant(sys.argv[1], read_only=True), [], set()
print("ready", flush=True)
while 90 not in sizes:
    root = zarr.open_group(store, mode="r")
    if "weights" not in root or "full" not in root["weights"]:
        continue
    full = root["weights/full"]
    # Again and again with the shape of one moment.
    for _ in range(3):
        found = full[:, 16_380:16_390]
        assert (found == np.arange(len(found))[:, None]).all(), found
    sizes.add(full.shape[0])
print(len(sizes), sum(replaced), flush=True)
"""


def test_no_chunk_moves_under_a_reader_that_is_not_ours(tmp_path):
    with create(tmp_path / "a", {"w": (NUMEL,)}, compression="lz4", flush_seconds=0) as writer:
        reader = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", READER, str(tmp_path / "a")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert reader.stdout.readline() == "ready\n"
        for step in range(90):
            writer.append("weights", step=step, full=np.full(NUMEL, step, np.float32))
            writer.flush()
    out, err = reader.communicate(timeout=60)
    assert (reader.returncode, err) == (0, "")
    # It did see the trace grow, and shards replaced under its hands.
    assert min(map(int, out.split())) > 3


def test_no_chunk_moves_when_recording_goes_on(tmp_path):
    rows = np.random.default_rng(0).standard_normal((90, NUMEL)).astype("f4").round(2)

    def record(path, first, last, commits, **options):
        with create(
            path, {"w": (NUMEL,)}, compression="lz4", flush_seconds=3600, **options
        ) as writer:
            for step in range(first, last):
                writer.append("weights", step=step, full=rows[step])
                if step in commits:
                    writer.flush()

    record(tmp_path / "whole", 0, 90, (5, 39, 70, 76))
    record(tmp_path / "broken", 0, 40, (5,))
    record(tmp_path / "broken", 40, 77, (70,), resume=True)
    record(tmp_path / "broken", 77, 90, (), resume=True)
    whole, broken = (
        (tmp_path / run / "weights/full/c.0.0").read_bytes() for run in ("whole", "broken")
    )
    assert whole == broken
