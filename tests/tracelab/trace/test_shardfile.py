"""Our reader of shards: what zarr-python and TensorStore read, and never a wrong value."""

import errno
import json
import math
import os
import pickle
import re
import struct
import tempfile
import threading
import warnings
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numcodecs import blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from tracelab.errors import DamagedError
from tracelab.trace.places import plainfiles
from tracelab.trace.reading.shardfile import Shards, read, readable

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float32", "float64"]
PATH = "g/a"


def document(folder):
    return json.loads((folder / PATH / "zarr.json").read_bytes())


def shards(folder):
    return Shards.of(folder, PATH, document(folder))


def bits(values):
    """Values as bytes: NaN of all kinds count."""
    return values.dtype, values.shape, values.tobytes()


def by_zarr(folder, values, *, chunk, shard, compressors=(), fill=0, separator="."):
    """Have zarr-python write an array; chunks of nothing but fill values are left out."""
    array = zarr.create_array(
        folder / PATH,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunk,
        shards=shard,
        serializer=BytesCodec() if values.itemsize > 1 else BytesCodec(endian=None),
        compressors=[*compressors, Crc32cCodec()],
        fill_value=fill,
        chunk_key_encoding={"name": "default", "separator": separator},
        overwrite=True,
    )
    array[...] = values
    return array


@pytest.fixture
def folder(tmp_path):
    """A small array: 2 shards of 2 x 2 chunks, of which the last ones reach beyond the array."""
    values = np.arange(5 * 7, dtype=np.float32).reshape(5, 7) + 1
    by_zarr(tmp_path, values, chunk=(2, 4), shard=(4, 8))
    return tmp_path


VALUES = np.arange(5 * 7, dtype=np.float32).reshape(5, 7) + 1


# ------------------------------------------------------------------- equal to others, bit for bit


@st.composite
def arrays(draw):
    ndim = draw(st.integers(1, 3))
    chunk = tuple(draw(st.integers(1, 5)) for _ in range(ndim))
    shard = tuple(part * draw(st.integers(1, 3)) for part in chunk)
    shape = tuple(draw(st.integers(1, 2 * size + 1)) for size in shard)
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype.kind == "f":
        # Any bits: infinities, subnormal numbers, NaN with a payload.
        raw = rng.integers(0, 256, math.prod(shape) * dtype.itemsize, dtype=np.uint8)
        values = raw.view(dtype).reshape(shape)
    else:
        values = rng.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)
    fill = draw(st.sampled_from([0, 1, math.nan, -math.inf]))
    fill = bool(fill) if dtype.kind == "b" else fill
    assume(dtype.kind == "f" or not isinstance(fill, float))
    # Some chunks become missing; no shard does, which would be damage.
    missing = rng.random(shape) < draw(st.sampled_from([0, 1]))
    missing[tuple(slice(None, None, size) for size in shard)] = False
    values[missing] = fill
    values[tuple(slice(None, None, size) for size in shard)] = 1 if fill == 0 else 0
    name = draw(st.sampled_from([None, "lz4", "zstd", "zlib", "blosclz"]))
    shuffle = draw(st.sampled_from(["noshuffle", "shuffle", "bitshuffle"]))
    compressors = [] if name is None else [BloscCodec(cname=name, shuffle=shuffle)]
    separator = draw(st.sampled_from([".", "/"]))
    return values, {
        "chunk": chunk,
        "shard": shard,
        "compressors": compressors,
        "fill": fill,
        "separator": separator,
    }


@st.composite
def selections(draw, shape):
    parts, lists = [], 0
    for size in shape:
        kind = draw(st.sampled_from(["integer", "slice", "list"]))
        if kind == "integer":
            parts.append(draw(st.integers(-size, size - 1)))
        elif kind == "slice" or lists:
            ends = st.integers(-size - 2, size + 2) | st.none()
            step = draw(st.integers(-4, 4).filter(bool) | st.none())
            parts.append(slice(draw(ends), draw(ends), step))
        else:
            lists += 1
            parts.append(draw(st.lists(st.integers(-size, size - 1), max_size=6)))
    return tuple(parts[: draw(st.integers(0, len(parts)))])


def plain_index(values, selection):
    """Index dimension by dimension: numpy moves dimensions where integers meet lists."""
    for axis in reversed(range(len(selection))):
        part = selection[axis]
        part = np.asarray(part, np.int64) if isinstance(part, list) else part
        values = values[(slice(None),) * axis + (part,)]
    return values


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_equal_to_numpy_zarr_and_tensorstore(data):
    values, how = data.draw(arrays())
    selection = data.draw(selections(values.shape))
    with tempfile.TemporaryDirectory() as name:
        array = by_zarr(Path(name), values, **how)
        stored = shards(Path(name))
        assert bits(stored[...]) == bits(values)
        assert bits(array[...]) == bits(values)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{name}/{PATH}"}}
        other = tensorstore.open(spec, open=True, read=True).result()
        assert bits(np.asarray(other.read().result())) == bits(values)
        assert bits(stored[selection]) == bits(plain_index(values, selection))
        assert (stored.shape, stored.dtype, stored.ndim) == (array.shape, array.dtype, array.ndim)


@pytest.mark.parametrize("compressors", [[], [BloscCodec(cname="lz4", shuffle="bitshuffle")]])
@pytest.mark.parametrize("rows", [1, 16, 40])
def test_large_chunks_are_read_straight_to_their_place(tmp_path, rows, compressors):
    """Rows of a chunk that are long enough skip the buffer that all others take."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(rows, 5000)).astype(np.float32)
    by_zarr(tmp_path, values, chunk=(16, 2048), shard=(32, 4096), compressors=compressors)
    stored = shards(tmp_path)
    assert bits(stored[...]) == bits(values)
    assert bits(stored[:, 2048:4096]) == bits(values[:, 2048:4096])
    assert bits(stored[::-1, 100:]) == bits(values[::-1, 100:])
    assert bits(stored[rows - 1]) == bits(values[rows - 1])


@pytest.mark.parametrize("axis", [0, 1])
def test_several_threads_decompress(tmp_path, monkeypatch, axis):
    monkeypatch.setattr("tracelab.trace.reading.shardfile.THREADED_BYTES", 1)
    monkeypatch.setattr("tracelab.trace.reading.shardfile._processors", lambda: 3)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 40) if axis else (40, 7))
    by_zarr(tmp_path, values, chunk=(2, 3), shard=(6, 6), compressors=[BloscCodec(cname="lz4")])
    stored = shards(tmp_path)
    reads = []
    reading = Shards._read
    monkeypatch.setattr(
        Shards, "_read", lambda self, *given: reads.append(1) or reading(self, *given)
    )
    assert bits(stored[...]) == bits(values)
    assert bits(stored[1:, ::-2]) == bits(values[1:, ::-2])
    assert len(reads) == 6
    last = sorted(path for path in (tmp_path / PATH).iterdir() if path.name != "zarr.json")[-1]
    last.unlink()
    damaged(tmp_path, rf"shard {re.escape(last.name)} is missing")


def test_a_scalar_array(tmp_path):
    by_zarr(tmp_path, np.asarray(3.5), chunk=(), shard=None)
    assert shards(tmp_path)[...] == 3.5
    assert shards(tmp_path)[()].shape == ()


def test_nothing_of_an_array(folder):
    assert shards(folder)[5:].shape == (0, 7)
    assert shards(folder)[:, []].shape == (5, 0)
    assert np.asarray(shards(folder)).tolist() == VALUES.tolist()


@pytest.mark.parametrize(
    "selection",
    [5, -6, (0, 7), (0, 0, 0), [5], ([0], [0]), [[0]], [0.5], None, "a", (..., ...), [True] * 5],
)
def test_what_does_not_index(folder, selection):
    with pytest.raises(IndexError):
        shards(folder)[selection]


def test_an_index_larger_than_the_buffer_it_is_read_into(tmp_path):
    """4 bytes a chunk: the index of 16 * 70,000 bytes is read in two parts."""
    count = 70_000
    by_zarr(tmp_path, np.ones(1, np.float32), chunk=(1,), shard=(1,))
    large = document(tmp_path) | {"shape": [count]}
    large["chunk_grid"]["configuration"]["chunk_shape"] = [count]
    slots = np.zeros(count, [("value", "<f4"), ("crc", "<u4")])
    slots["value"] = values = np.arange(count, dtype=np.float32)
    slots["crc"] = [google_crc32c.value(value.tobytes()) for value in slots["value"]]
    index = np.stack([8 * np.arange(count), np.full(count, 8)], -1).astype("<u8").tobytes()
    checksum = struct.pack("<I", google_crc32c.value(index))
    (tmp_path / PATH / "c.0").write_bytes(slots.tobytes() + index + checksum)
    stored = Shards.of(tmp_path, PATH, large)
    assert bits(stored[65_530:65_550]) == bits(values[65_530:65_550])
    assert bits(stored[[69_999, 0, 65_536]]) == bits(values[[69_999, 0, 65_536]])


@pytest.mark.parametrize(
    "change",
    [
        {"compressors": [zarr.codecs.ZstdCodec(), Crc32cCodec()]},
        {"compressors": [zarr.codecs.GzipCodec(), Crc32cCodec()]},
        {"compressors": None},
        {"filters": [zarr.codecs.TransposeCodec(order=(1, 0))]},
        {"serializer": BytesCodec(endian="big")},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    ],
)
def test_what_others_write_is_left_to_zarr(tmp_path, change):
    how = {"shape": (5, 7), "dtype": "f4", "chunks": (2, 4), "shards": (4, 8)}
    zarr.create_array(tmp_path / PATH, **(how | {"compressors": Crc32cCodec()} | change))
    assert not readable(document(tmp_path))
    with pytest.raises(ValueError, match="g/a is not stored as tracelab stores arrays"):
        shards(tmp_path)


# --------------------------------------------------------------------------- damage is an error


def damaged(folder, words, selection=...):
    with pytest.raises(DamagedError, match=words) as raised:
        read(folder, PATH, document(folder), selection)
    assert str(raised.value).startswith(f"g/a of {folder} is damaged: ")
    assert str(raised.value).endswith(f"tracelab verify {folder}")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    found = {}
    for name, compressors in (("plain", []), ("lz4", [BloscCodec(cname="lz4")])):
        path = tmp_path_factory.mktemp(name)
        by_zarr(path, VALUES, chunk=(2, 4), shard=(4, 8), compressors=compressors)
        found[name] = (path, (path / PATH / "c.0.0").read_bytes())
    return found


@pytest.mark.parametrize("kind", ["plain", "lz4"])
@settings(max_examples=200)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(pristine, kind, data):
    path, content = pristine[kind]
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    (path / PATH / "c.0.0").write_bytes(changed)
    try:
        with pytest.raises(DamagedError, match=r"shard c\.0\.0"):
            shards(path)[...]
        # The other shard is as good as ever.
        assert bits(shards(path)[4:]) == bits(VALUES[4:])
    finally:
        (path / PATH / "c.0.0").write_bytes(content)


@pytest.mark.parametrize("kind", ["plain", "lz4"])
def test_no_truncation_goes_unnoticed(pristine, kind):
    path, content = pristine[kind]
    try:
        for length in range(len(content)):
            (path / PATH / "c.0.0").write_bytes(content[:length])
            with pytest.raises(DamagedError, match=r"shard c\.0\.0"):
                shards(path)[...]
    finally:
        (path / PATH / "c.0.0").write_bytes(content)


def test_a_missing_shard_is_damage_and_no_fill_values(folder):
    os.remove(folder / PATH / "c.1.0")
    damaged(folder, r"shard c\.1\.0 is missing")
    assert bits(shards(folder)[:4]) == bits(VALUES[:4])
    # What others make of it.
    assert (zarr.open_array(folder / PATH, mode="r")[4:] == 0).all()


def test_a_missing_array_is_damage(folder):
    found = document(folder)
    os.rename(folder / PATH, folder / "elsewhere")
    with pytest.raises(DamagedError, match=r"is damaged: its folder is missing; "):
        read(folder, PATH, found)


def rewritten(path, entries):
    """Give a shard an index that its checksum agrees with."""
    index = struct.pack(f"<{len(entries)}Q", *entries)
    content = path.read_bytes()[: -len(index) - 4]
    path.write_bytes(content + index + struct.pack("<I", google_crc32c.value(index)))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ((2**63, 36), "chunk 0.0 ends at byte 9223372036854775844, behind the end of all chunks"),
        ((0, 2**63), "chunk 0.0 has 9223372036854775808 bytes, where 36 to 36 can be"),
        ((2**64 - 1, 36), "chunk 0.0 ends at byte"),
        ((0, 2**64 - 1), "chunk 0.0 has .* bytes, where 36 to 36 can be"),
        ((0, 35), "chunk 0.0 has 35 bytes"),
        ((140, 36), "chunk 0.0 ends at byte 176, behind the end of all chunks at 144"),
        (None, None),
        ((1, 36), "chunk 0.0 has another checksum"),
    ],
)
def test_an_index_that_lies(folder, entry, words):
    path = folder / PATH / "c.0.0"
    rest = struct.unpack("<6Q", path.read_bytes()[-4 - 48 : -4])
    rewritten(path, (*(entry or rest[:2]), *rest))
    if words is None:
        # Another chunk is a chunk: nothing says which one it is.
        assert shards(folder)[0, 0] == VALUES[0, 4]
    else:
        damaged(folder, words)


def frame(values, **header):
    """A Blosc frame with its checksum, and a header that may lie."""
    content = bytearray(blosc.compress(values.tobytes(), b"lz4", 5, 2))
    for place, number in header.items():
        struct.pack_into("<I", content, {"becomes": 4, "block": 8, "has": 12}[place], number)
    return bytes(content) + struct.pack("<I", google_crc32c.value(bytes(content)))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"becomes": 2**31 - 1}, "bytes are .* and become 2147483647, not 40000"),
        ({"becomes": 0}, "become 0, not 40000"),
        ({"becomes": 39_999}, "become 39999, not 40000"),
        ({"has": 2**31 - 1}, "says that its .* bytes are 2147483647"),
        ({"has": 16}, "says that its .* bytes are 16 and become 40000"),
        ({"block": 2**31 - 1}, "cannot be decompressed"),
        ({"block": 0}, "cannot be decompressed"),
    ],
)
def test_a_frame_that_lies(tmp_path, header, words):
    values = np.arange(10_000, dtype=np.float32)
    by_zarr(tmp_path, values, chunk=values.shape, shard=None, compressors=[BloscCodec()])
    (tmp_path / PATH / "c.0").write_bytes(frame(values))
    assert bits(shards(tmp_path)[...]) == bits(values)
    (tmp_path / PATH / "c.0").write_bytes(frame(values, **header))
    damaged(tmp_path, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\3\0\0\0" + b"\1\0\0\0a" * 2, "says that it holds 3 texts, not 2"),
        (b"\xff\xff\xff\xff" + b"\1\0\0\0a" * 2, "says that it holds 4294967295 texts, not 2"),
        (b"", "says that it holds 0 texts"),
        (b"\2\0\0\0\1\0\0\0a", "says that it holds 2 texts|longer than the chunk"),
        (b"\2\0\0\0\1\0\0\0a\xff\xff\xff\x7fa", "holds a text that is longer than the chunk"),
        (b"\2\0\0\0\1\0\0\0a\1\0\0\0\xff", "holds a text that is not UTF-8"),
        (b"\2\0\0\0\1\0\0\0a\1\0\0", "holds a text that is longer than the chunk"),
    ],
)
def test_texts_whose_lengths_lie(tmp_path, content, words):
    array = zarr.create_array(
        tmp_path / PATH,
        data=np.array(["one", "zwei"], dtype=np.dtypes.StringDType()),
        compressors=Crc32cCodec(),
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    assert shards(tmp_path)[...].tolist() == array[...].tolist() == ["one", "zwei"]
    checksum = struct.pack("<I", google_crc32c.value(content))
    (tmp_path / PATH / "c.0").write_bytes(content + checksum)
    damaged(tmp_path, words)


# --------------------------------------------------------------------- no way out of the folder


def moved(path, to):
    os.rename(path, to)
    os.symlink(to, path)


@pytest.mark.parametrize("part", ["g/a/c.0.0", "g/a", "g"])
def test_no_link_is_followed(folder, tmp_path_factory, part):
    found = document(folder)
    moved(folder / part, tmp_path_factory.mktemp("outside") / "there")
    with pytest.raises(DamagedError, match=" is a symbolic link, which a trace does not hold"):
        read(folder, PATH, found)


def test_a_cyclic_link(folder):
    os.remove(folder / PATH / "c.0.0")
    os.symlink("c.0.0", folder / PATH / "c.0.0")
    damaged(folder, r"shard c\.0\.0 is a symbolic link")


def test_the_folder_itself_may_be_reached_by_a_link(folder, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "a"
    os.symlink(folder, link)
    assert bits(shards(link)[...]) == bits(VALUES)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file(folder, make):
    """A pipe that nobody writes to would be waited for."""
    os.remove(folder / PATH / "c.0.0")
    make(folder / PATH / "c.0.0")
    damaged(folder, r"shard c\.0\.0 (is no plain file|cannot be read \(Is a directory\))")


def test_a_shortage_is_no_damage(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="Too many open files"):
        shards(folder)[...]


def test_a_disk_that_fails(folder, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    damaged(folder, r"c\.0\.0 cannot be read \(Input/output error\)")


def test_no_descriptor_is_left_open(folder):
    before = len(os.listdir("/proc/self/fd"))
    shards(folder)[...]
    os.remove(folder / PATH / "c.1.0")
    damaged(folder, "is missing")
    assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------ while others write, or fork


def test_a_shard_replaced_between_its_index_and_its_chunks(tmp_path, monkeypatch):
    """Compressed chunks move when a shard is written again with more rows."""
    compressors = [BloscCodec(cname="lz4")]
    rng = np.random.default_rng(0)
    later = rng.normal(size=(64, 64)).astype(np.float32)
    now = later.copy()
    now[32:] = 0
    by_zarr(
        tmp_path / "later", later[::-1], chunk=(32, 64), shard=(64, 64), compressors=compressors
    )
    by_zarr(tmp_path, now, chunk=(32, 64), shard=(64, 64), compressors=compressors)
    reading = plainfiles.File.read_into
    replaced = []

    def read_into(self, buffers, offset):
        reading(self, buffers, offset)
        if not replaced:
            replaced.append(
                os.replace(tmp_path / "later" / PATH / "c.0.0", tmp_path / PATH / "c.0.0")
            )

    monkeypatch.setattr(plainfiles.File, "read_into", read_into)
    assert bits(shards(tmp_path)[:32]) == bits(now[:32])
    assert bits(shards(tmp_path)[:32]) == bits(later[::-1][:32])


def test_it_reads_after_a_fork_in_any_thread(folder):
    stored = pickle.loads(pickle.dumps(shards(folder)))
    assert bits(stored[...]) == bits(VALUES)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(bits(stored[...]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [bits(VALUES)] * 4
    with warnings.catch_warnings():
        # zarr-python's threads are there, and not used by the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os._exit(0 if bits(stored[...]) == bits(VALUES) else 1)
    assert os.waitpid(child, 0)[1] == 0
