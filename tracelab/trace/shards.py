"""Assembles rows into shards in memory, in the byte layout of Zarr's ``sharding_indexed`` codec.

Chunks are stored uncompressed with a crc32c behind each, in the order in which rows arrive. So a
chunk has one place and one length for ever: a shard rewritten with more rows agrees with every
index a reader may have read before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc  # type: ignore[import-untyped]

from tracelab.trace.layout import Layout
from tracelab.typing import Array

__all__ = ["Part", "ShardBuilder", "checksummed", "encode_strings", "encode_table"]

Part: TypeAlias = bytes | memoryview
Shard: TypeAlias = tuple[str, list[Part]]

# The offset and length that the codec's index gives to a chunk that is not there.
_MISSING = np.iinfo(np.uint64).max


class ShardBuilder:
    """Collects the rows of one array and gives back shards, ready to be stored.

    Parameters
    ----------
    layout : Layout
        Chunks and shards, step first.
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
        self._dtype = np.dtype(
            [("values", np.dtype(dtype).newbyteorder("<"), layout.chunk), ("crc", "<u4")]
        )
        # A row crosses the shards side by side; each is a column of shards along step.
        grid = [
            range(-(-size // extent))
            for size, extent in zip(row_shape, layout.shard[1:], strict=True)
        ]
        self._columns = [
            _Column(position, layout, row_shape) for position in itertools.product(*grid)
        ]

    def extend(self, rows: Array | None, count: int) -> Iterator[Shard]:
        """Take `count` rows, None where they are missing; yield the shards they fill.

        A shard is a chunk key and its content. The caller stores it before it asks for the next:
        then no more than one row's shards are held.
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
                self._place(column, inside, part, taken)
                if self.rows % self._chunk_rows == 0:
                    column.seal()
                    if self.rows % self._shard_rows == 0:
                        yield column.encode(shard)
                        column.clear()

    def partial(self) -> Iterator[Shard]:
        """Yield (chunk key, content) of the shards that are begun and not full."""
        if self.rows % self._shard_rows:
            for column in self._columns:
                column.seal()
                yield column.encode(self.rows // self._shard_rows)

    def _place(self, column: _Column, first: int, rows: Array | None, count: int) -> None:
        if first == 0:
            column.blocks.append(None)
        block = column.blocks[-1]
        if block is None and rows is None:
            return
        if block is None:
            block = np.zeros(len(column.cells), self._dtype)
            column.blocks[-1] = block
            if first:
                block["values"][:, :first] = self._fill
        values = block["values"]
        if rows is None:
            values[:, first : first + count] = self._fill
            return
        for cell, (source, target) in enumerate(column.cells):
            place: Any = (cell, slice(first, first + count), *target)
            values[place] = rows[(slice(None), *source)]


class _Column:
    """The shards at one place of a row: their chunks, by rows of chunks, None where missing."""

    def __init__(
        self, position: tuple[int, ...], layout: Layout, row_shape: tuple[int, ...]
    ) -> None:
        self.blocks: list[Array | None] = []
        self._position = position
        self._sealed = 0
        per_shard = layout.chunks_per_shard
        self._index_shape = (per_shard[0], math.prod(per_shard[1:]))
        # For each chunk that touches the array: what of a row goes where in the chunk.
        self.cells: list[tuple[tuple[slice, ...], tuple[slice, ...]]] = []
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
                self.cells.append((source, tuple(slice(0, n) for n in lengths)))
                self._places.append(place)

    def seal(self) -> None:
        """Put checksums behind the chunks that changed."""
        for block in self.blocks[self._sealed :]:
            if block is not None:
                raw = block.view(np.uint8).reshape(len(block), -1)
                block["crc"] = [google_crc32c.value(chunk[:-4]) for chunk in raw]
        # The last row of chunks may get more rows.
        self._sealed = max(0, len(self.blocks) - 1)

    def encode(self, shard: int) -> Shard:
        """Return the chunk key and the content: chunks, then their index with its checksum."""
        index = np.full((*self._index_shape, 2), _MISSING, dtype="<u8")
        parts: list[Part] = []
        offset = 0
        for row, block in enumerate(self.blocks):
            if block is not None:
                slot = block.itemsize
                index[row, self._places, 0] = offset + slot * np.arange(len(block), dtype="<u8")
                index[row, self._places, 1] = slot
                parts.append(block.view(np.uint8).data)
                offset += block.nbytes
        parts.append(checksummed(index.tobytes()))
        return ".".join(map(str, ("c", shard, *self._position))), parts

    def clear(self) -> None:
        """Forget a shard that was stored."""
        self.blocks = []
        self._sealed = 0


def checksummed(content: bytes) -> bytes:
    """Return bytes with their crc32c behind them, as Zarr's codec stores it."""
    return content + int(google_crc32c.value(content)).to_bytes(4, "little")


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
