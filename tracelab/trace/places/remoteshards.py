"""Reads arrays behind a URL in few requests: a shard's index, then its wanted chunks at once.

zarr-python asks for each chunk by itself, and for the index each time.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from tracelab.errors import DamagedError
from tracelab.trace.places.plainfiles import UnusableError
from tracelab.trace.reading.shardfile import chunk_name, encoded_bytes, entries, index_bytes, place
from tracelab.trace.reading.shardform import Form, Piece, select
from tracelab.typing import Array

__all__ = ["RemoteShards"]

# A smaller object is fetched whole: one round trip, where index and chunks are two.
WHOLE_BYTES = 2**18
# Chunks are fetched together if no more than that lies between them, up to so many bytes.
GAP_BYTES = 2**16
REQUEST_BYTES = 2**23
# What is fetched before it is put into place, and from how many shards.
BATCH_BYTES = 2**26
BATCH_SHARDS = 32
# Indexes that are kept for the next read.
KEPT_BYTES = 2**24
# A recorder that replaces a shard between its index and its chunks is not damage.
ATTEMPTS = 3

# An index is at the end; where that is matters only to what is compared with it.
_SOMEWHERE = 2**62

Pieces = Sequence[Sequence[Piece]]


class RemoteShards:
    """An array of a trace in an object store, read when indexed; it pickles.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The trace: any store that is no folder.
    where : str
        What users call the trace.
    path : str
        Group and name of the array.
    stored : Form
        How it is stored.
    """

    def __init__(self, store: Store, where: str, path: str, stored: Form) -> None:
        self._store = store
        self._where = where
        self._path = path
        self._stored = stored
        # Chunks of committed rows are in every later version of an index.
        self._indexes: dict[str, bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteShards, (self._store, self._where, self._path, self._stored)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._stored.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""
        return self._stored.dtype

    @property
    def ndim(self) -> int:
        """Number of its dimensions."""
        return len(self._stored.shape)

    def __getitem__(self, selection: Any) -> Array:
        """Read a part.

        Raises
        ------
        DamagedError
            If an object is missing, cut off, or a checksum differs.
        RemoteError
            If the object store cannot be read.
        IndexError
            If the selection reaches outside of the array.
        """
        wanted = select(self._stored, selection)
        values = np.empty(wanted.shape, self.dtype)
        if values.size:
            for batch in self._batches(wanted.pieces):
                self._read(batch, values)
        return wanted.finish(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[...], dtype)

    def _batches(
        self, pieces: Sequence[Mapping[int, Sequence[Piece]]]
    ) -> Iterator[dict[tuple[int, ...], Pieces]]:
        batch: dict[tuple[int, ...], Pieces] = {}
        nbytes = 0
        for shard in itertools.product(*pieces):
            inside = [of[number] for of, number in zip(pieces, shard, strict=True)]
            size = self._stored.chunk_bytes * math.prod(map(len, inside))
            if batch and (nbytes + size > BATCH_BYTES or len(batch) == BATCH_SHARDS):
                yield batch
                batch, nbytes = {}, 0
            batch[shard] = inside
            nbytes += size
        if batch:
            yield batch

    def _read(self, wanted: dict[tuple[int, ...], Pieces], values: Array) -> None:
        for attempt in range(ATTEMPTS):
            fetched = sync(self._fetch_all(wanted))
            flaws = {}
            for shard, content in fetched.items():
                flaw = self._place(shard, content, wanted[shard], values)
                if flaw is not None:
                    flaws[shard] = flaw
                    self._indexes.pop(self._stored.key(shard), None)
            if not flaws:
                return
            wanted = {shard: wanted[shard] for shard in flaws}
            if attempt == ATTEMPTS - 1 or all(fetched[shard] is None for shard in flaws):
                break
        shard, flaw = next(iter(flaws.items()))
        raise DamagedError(
            f"{self._path} of {self._where} is damaged: shard {self._stored.key(shard)}{flaw}; "
            f"all damage is listed by: tracelab verify {self._where}"
        )

    def _place(
        self, shard: tuple[int, ...], content: _Fetched | None, pieces: Pieces, values: Array
    ) -> str | None:
        if content is None:
            return " is missing"
        try:
            for cells, reason in place(content, self._stored, pieces, values):
                return f", chunk {chunk_name(self._stored, shard, cells)} {reason}"
        except UnusableError as flaw:
            return f" {flaw}"
        return None

    async def _fetch_all(
        self, wanted: Mapping[tuple[int, ...], Pieces]
    ) -> dict[tuple[int, ...], _Fetched | None]:
        found = await asyncio.gather(
            *(self._fetch(shard, pieces) for shard, pieces in wanted.items())
        )
        return dict(zip(wanted, found, strict=True))

    async def _fetch(self, shard: tuple[int, ...], pieces: Pieces) -> _Fetched | None:
        stored, key = self._stored, self._stored.key(shard)
        tail = index_bytes(stored) if stored.indexed else 0
        size = self._committed_chunks(shard) * encoded_bytes(stored)[1] + tail
        index = self._indexes.get(key)
        if not stored.indexed or (index is None and size <= WHOLE_BYTES):
            # A byte more tells that there is more: too much of a chunk, or rows of later commits.
            content = await self._get(key, RangeByteRequest(0, size + 1))
            if content is None or len(content) <= size or not stored.indexed:
                return _whole(content)
        if index is None:
            index = await self._get(key, SuffixByteRequest(tail))
            if index is None:
                return None
            if len(index) < tail:
                return _whole(index)
            self._keep(key, index)
        here = _Fetched(_SOMEWHERE, [(_SOMEWHERE - tail, index)])
        try:
            places = list(entries(here, stored, pieces))
        except UnusableError:
            # Whoever puts chunks into place meets it again and tells.
            return here
        # What cannot be the place of a chunk is not asked for.
        most, last = stored.chunk_bytes + 64, _SOMEWHERE - tail
        runs = _runs(span for span in places if span[1] <= most and sum(span) <= last)
        parts = await asyncio.gather(
            *(self._get(key, RangeByteRequest(start, end)) for start, end in runs)
        )
        found = [(start, part) for (start, _), part in zip(runs, parts, strict=True) if part]
        return _Fetched(_SOMEWHERE, [*found, (_SOMEWHERE - tail, index)])

    def _committed_chunks(self, shard: tuple[int, ...]) -> int:
        """Return how many chunks of a shard hold a part of the array."""
        stored = self._stored
        return math.prod(
            min(count, -(-(size - number * whole) // part))
            for number, count, size, whole, part in zip(
                shard, stored.cells, stored.shape, stored.shard, stored.chunk, strict=True
            )
        )

    async def _get(self, key: str, part: ByteRequest | None) -> bytes | None:
        name = f"{self._path}/{key}"
        found = await self._store.get(name, default_buffer_prototype(), part)
        return None if found is None else found.to_bytes()

    def _keep(self, key: str, index: bytes) -> None:
        if len(index) * (len(self._indexes) + 1) > KEPT_BYTES:
            self._indexes.clear()
        if len(index) <= KEPT_BYTES:
            self._indexes[key] = index


def _runs(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return first and last byte of the requests that fetch chunks, given where they are."""
    runs: list[tuple[int, int]] = []
    for start, size in sorted(places):
        if runs:
            first, end = runs[-1]
            if start - end <= GAP_BYTES and start + size - first <= REQUEST_BYTES:
                runs[-1] = (first, max(end, start + size))
                continue
        runs.append((start, start + size))
    return runs


def _whole(content: bytes | None) -> _Fetched | None:
    return None if content is None else _Fetched(len(content), [(0, content)])


class _Fetched:
    """Parts of an object, at their places; reads like a file.

    Parameters
    ----------
    size : int
        Of the object.
    parts : list of tuple of int and bytes
        In the order of their places.
    """

    def __init__(self, size: int, parts: list[tuple[int, bytes]]) -> None:
        self.size = size
        self._parts = parts
        self._starts = [start for start, _ in parts]

    def read_into(self, buffers: Sequence[Any], offset: int) -> None:
        """Fill contiguous buffers from an offset on, also of parts that lie side by side."""
        number = bisect.bisect_right(self._starts, offset) - 1
        for buffer in buffers:
            into = memoryview(buffer).cast("B")
            while into:
                content = self._from(number, offset)[: len(into)]
                if not content:
                    number += 1
                    content = self._from(number, offset)[: len(into)]
                if not content:
                    raise UnusableError("is cut off")
                into[: len(content)] = content
                into = into[len(content) :]
                offset += len(content)

    def _from(self, number: int, offset: int) -> memoryview:
        """Return what of a part lies at an offset and behind it."""
        if not 0 <= number < len(self._parts) or self._starts[number] > offset:
            return memoryview(b"")
        return memoryview(self._parts[number][1])[offset - self._starts[number] :]
