"""Rewrites a damaged shard with what of it can be read; the other chunks become missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tracelab.trace.health.checking import Task
from tracelab.trace.health.drafts import Draft
from tracelab.trace.health.integrity import (
    CRC_BYTES,
    ENTRY,
    MISSING,
    check,
    committed,
    fits,
    index_bytes,
    intact,
)
from tracelab.trace.health.recovery import recovered
from tracelab.trace.places.files import Part
from tracelab.trace.places.locations import Location
from tracelab.trace.places.sources import Source, UnreadableError, opened
from tracelab.trace.reading.shardform import Form
from tracelab.trace.schema import STEP
from tracelab.trace.writing.shards import checksummed
from tracelab.typing import Array, IntArray

__all__ = ["salvage"]

_PIECE = 4 * 2**20


def salvage(location: Location, draft: Draft, task: Task) -> IntArray:
    """Put a shard into a draft that holds the readable chunks of a damaged one, byte by byte.

    Chunks whose bytes can be found again (`tracelab.trace.health.recovery`) count as readable.
    Where the index is damaged, an entry of it is taken if the chunk it leads to has the right
    checksum and lies behind those of the entries before, as the writer lays chunks out.

    Parameters
    ----------
    location : Location
        The damaged trace.
    draft : Draft
        The repaired one.
    task : Task
        The shard.

    Returns
    -------
    ndarray of int64
        The chunks that are missing from now on, by their position in the index.
    """
    wanted = np.flatnonzero(committed(task.form, task.shard))
    try:
        # A shard behind a link counts if its checksums are right; what is stored is a file.
        with opened(location, task.path, follow=True) as source:
            if source is not None:
                kept, absent, again = _readable(source, task)
                draft.put(task.path, _content(source, task.form, kept, again))
                return np.setdiff1d(wanted, np.union1d(kept[:, 0], absent))
    except UnreadableError:
        pass
    draft.put(task.path, [_index(task.form, _nothing())])
    return wanted


def _nothing() -> IntArray:
    return np.empty((0, 3), dtype=np.int64)


def _readable(source: Source, task: Task) -> tuple[IntArray, IntArray, dict[int, bytes]]:
    """Return number, offset and length of good chunks, the numbers never written, new bytes."""
    form, shard = task.form, task.shard
    checked = check(source, form, shard)
    if checked.whole is None and checked.index is not None:
        entries = checked.index
        again = {}
        for number, flaw in (checked.chunks or {}).items():
            if flaw.kind == "checksum":
                content = np.empty(int(entries[number, 1]), dtype=np.uint8)
                source.read(int(entries[number, 0]), content)
                found = recovered(form, shard, number, content, labels=task.array == STEP.name)
                if found is not None:
                    again[number] = found
        absent = np.flatnonzero((entries == np.uint64(MISSING)).all(axis=1))
        numbers = np.setdiff1d(np.flatnonzero(committed(form, shard)), absent)
        numbers = np.setdiff1d(
            numbers, [each for each in checked.chunks or () if each not in again]
        )
        return np.column_stack([numbers, entries[numbers].astype(np.int64)]), absent, again
    best = _nothing()
    for start in _index_starts(source, form):
        found_there = _tried(source, form, shard, start)
        if len(found_there) > len(best):
            best = found_there
    return best, np.empty(0, dtype=np.int64), {}


def _index_starts(source: Source, form: Form) -> Iterator[int]:
    """Yield where a damaged index may begin: before its end, or behind the last good chunk."""
    end = source.size - index_bytes(form)
    if end >= 0:
        yield end
    if not form.compressed:
        slot, place = form.chunk_bytes + CRC_BYTES, 0
        while place + slot <= source.size and _is_intact(source, place, slot):
            place += slot
        if place != end:
            yield place


def _tried(source: Source, form: Form, shard: Sequence[int], start: int) -> IntArray:
    """Return the chunks that an index at `start` leads to, as far as they prove right."""
    count = min((index_bytes(form) - CRC_BYTES) // ENTRY, (source.size - start) // ENTRY)
    content = np.empty(count * ENTRY, dtype=np.uint8)
    source.read(start, content)
    entries = content.view("<u8").reshape(-1, 2)
    offset, length = entries[:, 0], entries[:, 1]
    limit = np.uint64(start)
    likely = (offset <= limit) & (length <= limit - np.minimum(offset, limit)) & fits(form, length)
    likely &= committed(form, shard)[:count]
    found, end = [], 0
    for number in np.flatnonzero(likely).tolist():
        first, extent = int(offset[number]), int(length[number])
        if first >= end and _is_intact(source, first, extent):
            found.append((number, first, extent))
            end = first + extent
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _is_intact(source: Source, offset: int, length: int) -> bool:
    try:
        return intact(source, offset, length)
    except UnreadableError:
        return False


def _content(
    source: Source, form: Form, kept: IntArray, again: Mapping[int, bytes]
) -> Iterator[Part]:
    order = np.argsort(kept[:, 1], kind="stable")
    moved = kept[order].copy()
    moved[:, 1] = np.cumsum(moved[:, 2]) - moved[:, 2]
    buffer = np.empty(_PIECE, dtype=np.uint8)
    for number, offset, length in kept[order].tolist():
        if number in again:
            yield again[number]
            continue
        for first in range(offset, offset + length, _PIECE):
            piece = buffer[: min(_PIECE, offset + length - first)]
            source.read(first, piece)
            yield piece.data
    yield _index(form, moved)


def _index(form: Form, kept: IntArray) -> bytes:
    count = (index_bytes(form) - CRC_BYTES) // ENTRY
    entries: Array = np.full((count, 2), MISSING, dtype="<u8")
    entries[kept[:, 0]] = kept[:, 1:]
    return checksummed(entries.tobytes())
