"""Assembles rows into shards in memory, in the byte layout of Zarr's ``sharding_indexed`` codec.

A chunk that was committed has one place and one length for ever: a shard rewritten with more rows
agrees with every index a reader may have read before. So chunks follow each other as their rows
arrive, and what a chunk's bytes are is settled when it is first stored:

- as they are, with their crc32c behind them;
- or, with LZ4, compressed once the chunk is full. A chunk that a commit finds before it is full is
  in Blosc's container but not compressed, whose length does not depend on the values, and stays so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc  # type: ignore[import-untyped]

from tracelab.trace.places.files import Part
from tracelab.trace.writing.layout import Layout
from tracelab.typing import Array, IntArray

__all__ = [
    "ShardBuilder",
    "checksummed",
    "compressed",
    "encode_strings",
    "encode_table",
]

Shard: TypeAlias = tuple[str, list[Part]]

# The offset and length that the codec's index gives to a chunk that is not there.
_MISSING = np.iinfo(np.uint64).max

_LZ4: Any = Blosc(cname="lz4", clevel=1, shuffle=BITSHUFFLE)
_STORED: Any = Blosc(cname="lz4", clevel=0, shuffle=BITSHUFFLE)
_BLOSC_HEADER = 16
_CRC_BYTES = 4


class ShardBuilder:
    """Collects the rows of one array and gives back shards, ready to be stored.

    Parameters
    ----------
    layout : Layout
        Chunks and shards, step first, and how chunks are compressed.
    row_shape : tuple of int
        Shape of one row.
    dtype : str
        As stored, little-endian.
    fill : ndarray or None
        Stands for a missing row; None if there can be none.
    """

    def __init__(
        self, layout: Layout, row_shape: tuple[int, ...], dtype: str, fill: Array | None
    ) -> None:
        self.rows = 0
        self._fill = fill
        self._chunk_rows, self._shard_rows = layout.chunk[0], layout.shard[0]
        # A row crosses the shards side by side; each is a column of shards along step.
        grid = [
            range(-(-size // extent))
            for size, extent in zip(row_shape, layout.shard[1:], strict=True)
        ]
        self._columns = [
            _Column(position, layout, row_shape, np.dtype(dtype).newbyteorder("<"))
            for position in itertools.product(*grid)
        ]

    def extend(self, rows: Array | None, count: int) -> Iterator[Shard]:
        """Take `count` rows, None where they are missing; yield the shards they fill.

        A shard is a chunk key and its content, which the builder lets go: it does not change when
        more rows come. The caller takes care of it before it asks for the next.
        """
        done = 0
        while done < count:
            inside = self.rows % self._chunk_rows
            taken = min(self._chunk_rows - inside, count - done)
            part = None if rows is None else rows[done : done + taken]
            shard = self.rows // self._shard_rows
            self.rows += taken
            done += taken
            for column in self._columns:
                column.place(inside, part, taken, self._fill)
                if self.rows % self._chunk_rows == 0:
                    column.complete()
                    if self.rows % self._shard_rows == 0:
                        yield column.encode(shard)
                        column.clear()

    def restore(self, rows: Array | None, count: int, *, plain: bool) -> None:
        """Take again a row of chunks, or its beginning, of a stored shard that is not full.

        Parameters
        ----------
        rows : ndarray or None
            Its rows; None if its chunks are not there.
        count : int
            How many.
        plain : bool
            Whether its chunks were not compressed; they will not be.
        """
        for column in self._columns:
            column.place(0, rows, count, self._fill)
            if plain:
                column.pin()
            if count == self._chunk_rows:
                column.complete()
        self.rows += count

    def partial(self) -> Iterator[Shard]:
        """Yield (chunk key, content) of the shards that are begun and not full.

        The content is the builder's own memory: it has to be stored before more rows come.
        """
        if self.rows % self._shard_rows:
            for column in self._columns:
                if self.rows % self._chunk_rows:
                    column.pin()
                yield column.encode(self.rows // self._shard_rows)


@dataclass(slots=True)
class _Block:
    """Chunks side by side: in slots of one length until they are compressed, then one by one.

    Parameters
    ----------
    slots : structured ndarray, shape (chunk,)
        The memory: for each chunk its values, with what is stored before and behind them.
    lengths : ndarray of int, shape (chunk,)
        Bytes of each chunk as stored, from the first on.
    """

    slots: Array
    lengths: IntArray

    def checksum(self) -> None:
        raw = self.slots.view(np.uint8).reshape(len(self.slots), -1)
        self.slots["crc"] = [google_crc32c.value(chunk[:-4]) for chunk in raw]

    def compress(self) -> None:
        # In place: a chunk never takes more than its slot, so the next is still whole.
        memory, start = self.slots.view(np.uint8), 0
        for number, values in enumerate(self.slots["values"]):
            chunk = compressed(values)
            crc = start + len(chunk)
            memory[start:crc] = np.frombuffer(chunk, np.uint8)
            start = crc + _CRC_BYTES
            memory[crc:start] = np.frombuffer(_crc(chunk), np.uint8)
            self.lengths[number] = len(chunk) + _CRC_BYTES


class _Column:
    """The shards at one place of a row, by rows of chunks.

    A row of chunks is a block, None where all rows were missing.
    """

    def __init__(
        self,
        position: tuple[int, ...],
        layout: Layout,
        row_shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self._blocks: list[_Block | None] = []
        self._position = position
        per_shard = layout.chunks_per_shard
        self._index_shape = (per_shard[0], math.prod(per_shard[1:]))
        # For each chunk that touches the array: what of a row goes where in the chunk.
        self._cells: list[tuple[tuple[slice, ...], tuple[slice, ...]]] = []
        self._places: list[int] = []
        for place, inside in enumerate(itertools.product(*map(range, per_shard[1:]))):
            starts = [
                column * shard + cell * chunk
                for column, shard, cell, chunk in zip(
                    position, layout.shard[1:], inside, layout.chunk[1:], strict=True
                )
            ]
            lengths = [
                min(chunk, size - start)
                for start, chunk, size in zip(starts, layout.chunk[1:], row_shape, strict=True)
            ]
            if all(length > 0 for length in lengths):
                source = tuple(slice(s, s + n) for s, n in zip(starts, lengths, strict=True))
                self._cells.append((source, tuple(slice(0, n) for n in lengths)))
                self._places.append(place)
        self._compresses = layout.compression != "none"
        self._pinned = False
        slot: list[Any] = [("values", dtype, layout.chunk), ("crc", "<u4")]
        if self._compresses:
            slot.insert(0, ("header", "u1", _BLOSC_HEADER))
            empty = _STORED.encode(np.zeros(layout.chunk, dtype))
            self._header = np.frombuffer(empty[:_BLOSC_HEADER], dtype="u1")
        self._slot = np.dtype(slot)

    def place(self, first: int, rows: Array | None, count: int, fill: Array | None) -> None:
        """Put rows into the present row of chunks, from its row `first` on."""
        if first == 0:
            self._blocks.append(None)
        block = self._blocks[-1]
        if block is None and rows is None:
            return
        if block is None:
            block = self._blocks[-1] = self._empty()
            if first:
                block.slots["values"][:, :first] = fill
        values = block.slots["values"]
        if rows is None:
            values[:, first : first + count] = fill
            return
        for cell, (source, target) in enumerate(self._cells):
            place: Any = (cell, slice(first, first + count), *target)
            values[place] = rows[(slice(None), *source)]

    def _empty(self) -> _Block:
        # Zeros beyond the last row and the array's edge: equal rows make equal files.
        slots = np.zeros(len(self._cells), self._slot)
        if self._compresses:
            slots["header"] = self._header
        return _Block(slots, np.full(len(slots), slots.itemsize))

    def complete(self) -> None:
        """Settle the bytes of a row of chunks that is full."""
        block = self._blocks[-1]
        pinned, self._pinned = self._pinned, False
        if block is None:
            return
        if self._compresses and not pinned:
            block.compress()
        else:
            block.checksum()

    def pin(self) -> None:
        """Make the row of chunks that is not full ready to be stored, at its place for ever."""
        block = self._blocks[-1]
        if block is not None:
            block.checksum()
            self._pinned = True

    def encode(self, shard: int) -> Shard:
        """Return the chunk key and the content: chunks, then their index with its checksum."""
        index = np.full((*self._index_shape, 2), _MISSING, dtype="<u8")
        parts: list[Part] = []
        offset = 0
        for row, block in enumerate(self._blocks):
            if block is None:
                continue
            ends = offset + np.cumsum(block.lengths)
            index[row, self._places, 0] = ends - block.lengths
            index[row, self._places, 1] = block.lengths
            parts.append(block.slots.view(np.uint8)[: ends[-1] - offset].data)
            offset = int(ends[-1])
        parts.append(checksummed(index.tobytes()))
        return ".".join(map(str, ("c", shard, *self._position))), parts

    def clear(self) -> None:
        """Forget a shard that was given back."""
        self._blocks = []


def compressed(values: Array) -> bytes:
    """Return an array's bytes bit-shuffled and with LZ4, as Zarr's ``blosc`` codec stores them."""
    encoded: bytes = _LZ4.encode(values)
    return encoded


def _crc(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(4, "little")


def checksummed(content: bytes) -> bytes:
    """Return bytes with their crc32c behind them, as Zarr's codec stores it."""
    return content + _crc(content)


def encode_strings(texts: Sequence[str]) -> bytes:
    """Return strings in the ``vlen-utf8`` codec's bytes: a count, then length and text of each."""
    encoded = [text.encode() for text in texts]
    parts = [len(encoded).to_bytes(4, "little")]
    for text in encoded:
        parts += [len(text).to_bytes(4, "little"), text]
    return checksummed(b"".join(parts))


def encode_table(chunk: Array) -> bytes:
    """Return the bytes of one chunk of a table: bit-shuffled, Zstandard through Blosc, crc32c.

    Tables are written once and are sorted integers: they shrink tenfold, gradients by a tenth.
    """
    codec: Any = Blosc(cname="zstd", clevel=5, shuffle=BITSHUFFLE)
    little = np.ascontiguousarray(chunk, dtype=chunk.dtype.newbyteorder("<"))
    return checksummed(codec.encode(little))
