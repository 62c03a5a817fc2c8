"""Reads the files of an array in a folder, without zarr-python: every checksum, no more than asked.

Nothing is kept between calls, no thread or event loop outlives them, so they work after a fork and
in any thread. One file descriptor serves a shard's index and its chunks: a shard that the
recorder replaces meanwhile is seen as it was. Not memory maps: the process would be killed where a
file ends before its map does.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import google_crc32c
import numpy as np
from numcodecs import blosc  # type: ignore[import-untyped]

from tracelab.errors import DamagedError
from tracelab.trace.places.plainfiles import SUPPORTED, Folder, UnusableError
from tracelab.trace.reading.shardform import Form, Piece, form, select
from tracelab.typing import Array, IntArray

__all__ = [
    "Bytes",
    "Shards",
    "chunk_name",
    "encoded_bytes",
    "entries",
    "index_bytes",
    "place",
    "read",
    "readable",
]

# As zarr-python does: Blosc's own threads are shared by the process.
blosc.use_threads = False

# The offset and length that an index gives to a chunk that is not there.
_MISSING = 2**64 - 1
_ENTRY_BYTES = 16
_CRC_BYTES = 4
# Of Blosc 1: the header, which is also the most that a frame is longer than its content.
_HEADER_BYTES = 16

# Small chunks that lie side by side are read at once; so is an index.
RUN_BYTES = 2**20
# A chunk is read straight to its place if its rows there are that long, and few: see IOV_MAX.
ROW_BYTES = 2**12
MAX_ROWS = 2**9
# A chunk of texts has no length of its own.
TEXT_BYTES = 2**26

# Beyond that, compressed chunks are worth more than one thread.
THREADED_BYTES = 2**23
MAX_THREADS = 4

Cells: TypeAlias = tuple[Piece, ...]
Pieces: TypeAlias = Sequence[Mapping[int, Sequence[Piece]]]


class Bytes(Protocol):
    """The bytes of a shard: a file, or what was fetched of an object."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def read_into(self, buffers: Sequence[Any], offset: int) -> None:
        """Fill contiguous buffers from an offset on.

        Raises
        ------
        UnusableError
            If there are fewer bytes, or they cannot be read.
        """


def readable(document: Mapping[str, Any]) -> bool:
    """Return whether `read` can read an array; zarr-python may read the others."""
    return SUPPORTED and form(document) is not None


def read(
    folder: str | os.PathLike[str], path: str, document: Mapping[str, Any], selection: Any = ...
) -> Array:
    """Return a part of an array of a trace in a folder.

    Parameters
    ----------
    folder : path
        The trace.
    path : str
        Group and name of the array, ``gradients/full``.
    document : Mapping
        The array's document in the root document.
    selection : int, slice, list of int, or a tuple of them
        What to read; at most one list.

    Returns
    -------
    ndarray

    Raises
    ------
    DamagedError
        If a file is missing, cut off, no plain file, or a checksum differs.
    IndexError
        If the selection reaches outside of the array.
    ValueError
        If the array is not `readable`.
    """
    return Shards.of(folder, path, document)[selection]


@dataclass(frozen=True, slots=True)
class Shards:
    """An array of a trace in a folder, read when indexed; it pickles.

    Parameters
    ----------
    folder : str
        The trace.
    path : str
        Group and name of the array.
    stored : Form
        How it is stored.
    """

    folder: str
    path: str
    stored: Form

    @classmethod
    def of(cls, folder: str | os.PathLike[str], path: str, document: Mapping[str, Any]) -> Shards:
        """Return the array that a document declares.

        Raises
        ------
        ValueError
            If it is not `readable`.
        """
        return cls(os.fspath(folder), path, _form(path, document))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.stored.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""
        return self.stored.dtype

    @property
    def ndim(self) -> int:
        """Number of its dimensions."""
        return len(self.stored.shape)

    def __getitem__(self, selection: Any) -> Array:
        wanted = select(self.stored, selection)
        values = np.empty(wanted.shape, self.dtype)
        if values.size:
            self._read_all(wanted.pieces, values)
        return wanted.finish(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[...], dtype)

    def _read_all(self, pieces: Pieces, values: Array) -> None:
        """Read, on several threads if there is much to decompress and no one else is at work.

        Whoever reads in another thread than the main one has tasks for all processors already.
        Only decompressing gains: copies and checksums are bound by memory.
        """
        counts = [sum(map(len, along.values())) for along in pieces]
        much = math.prod(counts) * self.stored.chunk_bytes >= THREADED_BYTES
        alone = threading.current_thread() is threading.main_thread()
        threads = min(_processors(), MAX_THREADS, max(counts, default=1))
        if not (self.stored.compressed and much and alone and threads > 1):
            self._read(pieces, values)
            return
        axis = counts.index(max(counts))
        flat = [(shard, piece) for shard, along in pieces[axis].items() for piece in along]
        with ThreadPoolExecutor(threads) as pool:
            jobs = []
            for number in range(threads):
                some: dict[int, list[Piece]] = {}
                for shard, piece in flat[
                    number * len(flat) // threads : (number + 1) * len(flat) // threads
                ]:
                    some.setdefault(shard, []).append(piece)
                part = (*pieces[:axis], some, *pieces[axis + 1 :])
                jobs.append(pool.submit(self._read, part, values))
            for job in jobs:
                job.result()

    def _read(self, pieces: Pieces, values: Array) -> None:
        where = " its folder"
        try:
            with Folder(self.folder, self.path) as folder:
                for shard in itertools.product(*pieces):
                    key = self.stored.key(shard)
                    where = f" shard {key}"
                    inside = [of[place] for of, place in zip(pieces, shard, strict=True)]
                    with folder.open(key) as file:
                        for cells, reason in place(file, self.stored, inside, values):
                            where += f", chunk {chunk_name(self.stored, shard, cells)}"
                            raise UnusableError(reason)
        except UnusableError as flaw:
            raise DamagedError(
                f"{self.path} of {self.folder} is damaged:{where} {flaw}; "
                f"all damage is listed by: tracelab verify {self.folder}"
            ) from None


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _form(path: str, document: Mapping[str, Any]) -> Form:
    stored = form(document) if SUPPORTED else None
    if stored is None:
        raise ValueError(f"{path} is not stored as tracelab stores arrays, use zarr-python")
    return stored


def _position(stored: Form, shard: Sequence[int], cells: Cells) -> tuple[int, ...]:
    return tuple(
        place * count + piece.cell
        for place, count, piece in zip(shard, stored.cells, cells, strict=True)
    )


def chunk_name(stored: Form, shard: Sequence[int], cells: Cells) -> str:
    """Return what messages call a chunk: its position among all chunks of the array."""
    return ".".join(map(str, _position(stored, shard, cells))) or "0"


def place(
    file: Bytes, stored: Form, pieces: Sequence[Sequence[Piece]], values: Array
) -> Iterator[tuple[Cells, str]]:
    """Put the chosen pieces of a shard where they belong; yield those that cannot be read.

    Raises
    ------
    UnusableError
        If the whole shard cannot be read.
    """
    run: list[tuple[Cells, int, int]] = []
    end = 0
    memory = _Memory()
    limit = file.size - (index_bytes(stored) if stored.indexed else 0)
    for cells, (offset, length) in zip(
        itertools.product(*pieces), entries(file, stored, pieces), strict=True
    ):
        if offset == length == _MISSING:
            values[tuple(piece.outside for piece in cells)] = stored.fill
            continue
        if reason := _misfit(stored, offset, length, limit):
            yield cells, reason
            continue
        if run and (offset != end or end + length - run[0][1] > RUN_BYTES):
            yield from _load(file, stored, run, values, memory)
            run = []
        run.append((cells, offset, length))
        end = offset + length
    if run:
        yield from _load(file, stored, run, values, memory)


def encoded_bytes(stored: Form) -> tuple[int, int]:
    """Return how many bytes a stored chunk has at least and at most."""
    if stored.dtype.kind == "T":
        return _CRC_BYTES, TEXT_BYTES
    plain = stored.chunk_bytes + _CRC_BYTES
    return (
        (_HEADER_BYTES + _CRC_BYTES, plain + _HEADER_BYTES) if stored.compressed else (plain,) * 2
    )


def _misfit(stored: Form, offset: int, length: int, limit: int) -> str | None:
    """Return what is wrong with a chunk's place, before memory is taken for it."""
    least, most = encoded_bytes(stored)
    if not least <= length <= most:
        return f"has {length} bytes, where {least} to {most} can be"
    if offset + length > limit:
        return f"ends at byte {offset + length}, behind the end of all chunks at {limit}"
    return None


def index_bytes(stored: Form) -> int:
    """Return how many bytes at the end of a shard are its index."""
    return _ENTRY_BYTES * math.prod(stored.cells) + _CRC_BYTES


def entries(
    file: Bytes, stored: Form, pieces: Sequence[Sequence[Piece]]
) -> Iterator[tuple[int, int]]:
    """Yield offset and length of the chosen chunks, once the whole index has proved right."""
    if not stored.indexed:
        yield 0, file.size
        return
    flat: IntArray = np.zeros((), np.int64)
    for count, along in zip(stored.cells, pieces, strict=True):
        flat = np.add.outer(flat * count, [piece.cell for piece in along])
    flat = flat.ravel()
    found = np.empty((flat.size, 2), np.uint64)
    nbytes = index_bytes(stored)
    start = file.size - nbytes
    if start < 0:
        raise UnusableError(f"has {file.size} bytes, its index alone has {nbytes}")
    checksum, done = 0, 0
    buffer = np.empty(min(RUN_BYTES, nbytes - _CRC_BYTES), np.uint8)
    while done < nbytes - _CRC_BYTES:
        part = buffer[: nbytes - _CRC_BYTES - done]
        file.read_into([part], start + done)
        checksum = google_crc32c.extend(checksum, part)
        table = part.view("<u8").reshape(-1, 2)
        first = done // _ENTRY_BYTES
        # Chunks are chosen in the order of the index.
        low, high = np.searchsorted(flat, [first, first + len(table)])
        found[low:high] = table[flat[low:high] - first]
        done += part.size
    last = bytearray(_CRC_BYTES)
    file.read_into([last], start + done)
    if int.from_bytes(last, "little") != checksum:
        raise UnusableError("has an index with another checksum than its bytes")
    for some in range(0, len(found), RUN_BYTES // _ENTRY_BYTES):
        yield from map(tuple, found[some : some + RUN_BYTES // _ENTRY_BYTES].tolist())


class _Memory:
    """Buffers that are used again for the next chunks."""

    def __init__(self) -> None:
        self._raw = np.empty(0, np.uint8)
        self._chunk: Array | None = None

    def raw(self, size: int) -> Array:
        """Return `size` bytes."""
        if self._raw.size < size:
            self._raw = np.empty(size, np.uint8)
        return self._raw[:size]

    def chunk(self, stored: Form) -> Array:
        """Return an array for one chunk."""
        if self._chunk is None:
            self._chunk = np.empty(stored.chunk, stored.dtype)
        return self._chunk


def _load(
    file: Bytes,
    stored: Form,
    run: Sequence[tuple[Cells, int, int]],
    values: Array,
    memory: _Memory,
) -> Iterator[tuple[Cells, str]]:
    """Read chunks that lie side by side and put them where they belong; yield the bad ones."""
    start, end = run[0][1], run[-1][1] + run[-1][2]
    try:
        if len(run) == 1 and (rows := _rows(stored, run[0][0], values)):
            _load_rows(file, rows, start)
            return
        raw = memory.raw(end - start)
        file.read_into([raw], start)
    except UnusableError as flaw:
        yield from ((cells, str(flaw)) for cells, _, _ in run)
        return
    for cells, offset, length in run:
        content = raw[offset - start : offset - start + length]
        try:
            chunk = _decode(stored, content, memory)
        except UnusableError as flaw:
            yield cells, str(flaw)
            continue
        inside = tuple(piece.inside for piece in cells)
        values[tuple(piece.outside for piece in cells)] = chunk[inside]


def _rows(stored: Form, cells: Cells, values: Array) -> list[Array] | None:
    """Return the memory of a whole chunk in the result, if it can be read straight into it."""
    if stored.compressed or stored.dtype.kind == "T":
        return None
    for piece, size in zip(cells, stored.chunk, strict=True):
        if not (isinstance(piece.inside, slice) and isinstance(piece.outside, slice)):
            return None
        if (piece.inside.start, piece.inside.stop, piece.inside.step) not in _whole(size):
            return None
    target = values[tuple(piece.outside for piece in cells)]
    leading = 0
    while leading < target.ndim and not target[(0,) * leading].flags.c_contiguous:
        leading += 1
    rows = math.prod(target.shape[:leading])
    if rows > MAX_ROWS or target.nbytes < rows * ROW_BYTES:
        return None
    return [target[place] for place in np.ndindex(target.shape[:leading])]


def _whole(size: int) -> tuple[tuple[int, int, int | None], ...]:
    return (0, size, None), (0, size, 1)


def _load_rows(file: Bytes, rows: list[Array], offset: int) -> None:
    last = bytearray(_CRC_BYTES)
    file.read_into([*rows, last], offset)
    checksum = 0
    for row in rows:
        checksum = google_crc32c.extend(checksum, row)
    _compare(checksum, last)


def _compare(checksum: int, stored: bytes | bytearray | Array) -> None:
    if int.from_bytes(bytes(stored), "little") != checksum:
        raise UnusableError("has another checksum than its bytes")


def _decode(stored: Form, content: Array, memory: _Memory) -> Array:
    """Return the chunk that is in a file's bytes."""
    body = content[:-_CRC_BYTES]
    _compare(google_crc32c.value(body), content[-_CRC_BYTES:])
    if stored.dtype.kind == "T":
        return _texts(body.tobytes(), stored)
    if not stored.compressed:
        return body.view(stored.dtype).reshape(stored.chunk)
    # The frame says what it becomes; nothing is decompressed before that fits.
    sizes = body[4:_HEADER_BYTES].view("<u4").tolist()
    if sizes[0] != stored.chunk_bytes or sizes[2] != body.size:
        raise UnusableError(
            f"says that its {body.size} bytes are {sizes[2]} and become {sizes[0]}, "
            f"not {stored.chunk_bytes}"
        )
    chunk = memory.chunk(stored)
    try:
        blosc.decompress(body, chunk)
    except (RuntimeError, ValueError) as error:
        raise UnusableError(f"cannot be decompressed ({error})") from None
    return chunk


def _texts(content: bytes, stored: Form) -> Array:
    """Return texts from their number, and the length and bytes of each."""
    count = int.from_bytes(content[:4], "little")
    if count != stored.chunk[0] or 4 * (count + 1) > len(content):
        raise UnusableError(f"says that it holds {count} texts, not {stored.chunk[0]}")
    texts = []
    place = 4
    for _ in range(count):
        begin = place + 4
        place = begin + int.from_bytes(content[place:begin], "little")
        if place > len(content):
            raise UnusableError("holds a text that is longer than the chunk")
        try:
            texts.append(content[begin:place].decode())
        except UnicodeDecodeError as error:
            raise UnusableError(f"holds a text that is not UTF-8 ({error})") from None
    return np.array(texts, stored.dtype)
