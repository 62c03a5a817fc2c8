"""Checks the checksums of one object: of a shard, chunk by chunk, or of a table's chunk.

Works on any location, holds a few MiB whatever the size, and decodes nothing: a chunk whose
crc32c is right is what was written.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np

from tracelab.trace.places.sources import Bytes, Source, UnreadableError
from tracelab.trace.reading.shardform import Form
from tracelab.typing import Array, BoolArray

__all__ = [
    "CRC_BYTES",
    "ENTRY",
    "MISSING",
    "Checked",
    "Flaw",
    "check",
    "committed",
    "fits",
    "index_bytes",
    "intact",
]

MISSING = 2**64 - 1
"""The offset and the length of a chunk that a shard's index says is not there."""

ENTRY = 16
CRC_BYTES = 4
_WINDOW = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a chunk or a whole object.

    Parameters
    ----------
    kind : str
        ``"missing"``, ``"truncated"``, ``"checksum"``, ``"index"`` or ``"unreadable"``.
    reason : str
        In words, as in "its checksum differs".
    """

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found.

    Parameters
    ----------
    nbytes : int
        Bytes that were read.
    whole : Flaw or None
        What makes the whole object unreadable.
    chunks : dict of int to Flaw
        Damaged chunks of a shard, by their position in its index.
    index : ndarray of uint64, shape (chunks, 2), or None
        Offset and length of each chunk, as far as the shard has a readable index.
    """

    nbytes: int
    whole: Flaw | None = None
    chunks: dict[int, Flaw] | None = None
    index: Array | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return self.whole is None and not self.chunks


def index_bytes(form: Form) -> int:
    """Return the bytes of a shard's index with its checksum."""
    return ENTRY * math.prod(form.cells) + CRC_BYTES


def committed(form: Form, shard: Sequence[int]) -> BoolArray:
    """Return which chunks of a shard hold a part of the array, by their position in the index."""
    wanted = np.ones(1, dtype=np.bool_)
    for place, whole, part, size in zip(shard, form.shard, form.chunk, form.shape, strict=True):
        starts = place * whole + part * np.arange(whole // part)
        wanted = np.logical_and.outer(wanted, starts < size)
    flat: BoolArray = wanted.reshape(-1)
    return flat


def check(source: Source | None, form: Form, shard: Sequence[int]) -> Checked:
    """Check an object that must hold a part of an array.

    Parameters
    ----------
    source : Source or None
        The object; None if there is none.
    form : Form
        How the array is stored.
    shard : sequence of int
        Which of its objects this is.
    """
    if source is None:
        return Checked(0, Flaw("missing", "it is missing"))
    try:
        return _shard(source, form, shard) if form.indexed else _plain(source)
    except UnreadableError as error:
        return Checked(0, Flaw("unreadable", str(error)))


def _plain(source: Source) -> Checked:
    if source.size < CRC_BYTES:
        return Checked(source.size, Flaw("truncated", f"it has {source.size} bytes"))
    if not intact(source, 0, source.size):
        return Checked(source.size, Flaw("checksum", "its checksum differs"))
    return Checked(source.size)


def _shard(source: Source, form: Form, shard: Sequence[int]) -> Checked:
    length = index_bytes(form)
    start = source.size - length
    if start < 0:
        short = f"it has {source.size} bytes, fewer than its index"
        return Checked(source.size, Flaw("truncated", short))
    content = np.empty(length, dtype=np.uint8)
    source.read(start, content)
    index = content[:-CRC_BYTES].view("<u8").reshape(-1, 2)
    if google_crc32c.value(content[:-CRC_BYTES]) != int(content[-CRC_BYTES:].view("<u4")[0]):
        return Checked(length, _index_flaw(form, start), index=None)
    wanted = committed(form, shard) & ~(index == np.uint64(MISSING)).all(axis=1)
    numbers = np.flatnonzero(wanted)
    flaws, good = _entries(form, index, numbers, start)
    numbers = good[np.argsort(index[good, 0], kind="stable")]
    flaws |= _chunks(source, index, numbers)
    nbytes = length + int(index[numbers, 1].sum())
    return Checked(nbytes, chunks=dict(sorted(flaws.items())), index=index)


def _index_flaw(form: Form, start: int) -> Flaw:
    if not form.compressed and start % (form.chunk_bytes + CRC_BYTES):
        return Flaw("truncated", "it is cut off: the index at its end is not there")
    return Flaw("index", "the checksum of its index differs")


def _entries(form: Form, index: Array, numbers: Array, end: int) -> tuple[dict[int, Flaw], Array]:
    """Return what is wrong with entries of the index, and the chunks whose entry is right."""
    offset, length = index[numbers, 0], index[numbers, 1]
    limit = np.uint64(end)
    inside = (offset <= limit) & (length <= limit - np.minimum(offset, limit))
    right = fits(form, length)
    flaw = Flaw("index", "the shard is shorter than its index says")
    odd = Flaw("index", "its index gives a length that no chunk has")
    flaws = {int(number): flaw for number in numbers[~inside]}
    flaws |= {int(number): odd for number in numbers[inside & ~right]}
    return flaws, numbers[inside & right]


def _chunks(source: Source, index: Array, numbers: Array) -> dict[int, Flaw]:
    """Check chunks in the order of their offsets, many at a time while they are small."""
    flaws: dict[int, Flaw] = {}
    offsets, lengths = index[numbers, 0].tolist(), index[numbers, 1].tolist()
    place = 0
    while place < len(offsets):
        first, stop = offsets[place], place + 1
        while stop < len(offsets) and offsets[stop] + lengths[stop] - first <= _WINDOW:
            stop += 1
        window = None
        span = max(offsets[each] + lengths[each] for each in range(place, stop)) - first
        if span <= _WINDOW:
            window = _buffer()[:span]
            try:
                source.read(first, window)
            except UnreadableError:
                # A bad block of the disk: its neighbours may be readable one by one.
                window = None
        for each in range(place, stop):
            flaw = _chunk(source, offsets[each], lengths[each], window, first)
            if flaw is not None:
                flaws[int(numbers[each])] = flaw
        place = stop
    return flaws


def _chunk(
    source: Source, offset: int, length: int, window: Bytes | None, first: int
) -> Flaw | None:
    if window is not None:
        content = window[offset - first : offset - first + length]
        right = google_crc32c.value(content[:-CRC_BYTES]) == int.from_bytes(
            content[-CRC_BYTES:].tobytes(), "little"
        )
    else:
        try:
            right = intact(source, offset, length)
        except UnreadableError as error:
            return Flaw("unreadable", str(error))
    return None if right else Flaw("checksum", "its checksum differs")


def fits(form: Form, length: Array) -> BoolArray:
    """Return whether chunks can be that long."""
    right: BoolArray = (
        length > CRC_BYTES if form.compressed else length == form.chunk_bytes + CRC_BYTES
    )
    return right


def intact(source: Source, offset: int, length: int) -> bool:
    """Return whether bytes end in the crc32c of those before.

    Raises
    ------
    UnreadableError
        If they cannot be read.
    """
    crc, end = 0, offset + length - CRC_BYTES
    while offset < end:
        piece = _buffer()[: min(_WINDOW, end - offset)]
        source.read(offset, piece)
        crc = google_crc32c.extend(crc, piece)
        offset += piece.size
    stored = np.empty(CRC_BYTES, dtype=np.uint8)
    source.read(end, stored)
    return crc == int.from_bytes(stored.tobytes(), "little")


_local = threading.local()


def _buffer() -> Bytes:
    # One for each thread: memory that is used again costs no page faults.
    found: Bytes | None = getattr(_local, "buffer", None)
    if found is None:
        found = _local.buffer = np.empty(_WINDOW, dtype=np.uint8)
    return found
