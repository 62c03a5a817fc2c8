"""How an array is cut into chunks and shards, from its dimensions and the size of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["COMPRESSIONS", "GROUP_BYTES", "Layout", "cut"]

MIB = 2**20

GROUP_BYTES = 256 * MIB
"""What one group may keep in memory between commits."""

COMPRESSIONS = ("none", "lz4")

SHARD_BYTES = 64 * MIB
# Fewer files than this makes are not worth its memory, nor what a commit of a shard that is not
# full writes again.
SERIES_SHARD_BYTES = 32 * MIB
VECTOR_SHARD_ROWS = 64
MAX_SHARD_ROWS = 65_536
COORDINATES = 16_384
CELL_BYTES = 4 * MIB
SERIES_ELEMENTS = 65_536
LONGEST_AXIS = 2**20
# The files of smaller chunks are small in any case, and codecs have a cost per call.
COMPRESSED_BYTES = 64 * 2**10
# Blosc takes less than 2 GiB at a time.
CODEC_BYTES = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Layout:
    """Chunk and shard of an array, step first; a shard is a whole number of chunks.

    Parameters
    ----------
    chunk, shard : tuple of int
        Shapes. A shard may reach beyond the array.
    compression : {"none", "lz4"}
        How a chunk's bytes are stored.
    """

    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    compression: str = "none"

    @property
    def chunks_per_shard(self) -> tuple[int, ...]:
        """Number of chunks of a shard along each dimension."""
        return tuple(whole // part for whole, part in zip(self.shard, self.chunk, strict=True))


def cut(
    dims: Sequence[str],
    row_shape: Sequence[int],
    dtype: str,
    *,
    share: int,
    largest: int = SHARD_BYTES,
    compression: str = "none",
) -> Layout:
    """Return the layout of an array whose rows have a given shape.

    A cell, one step of one layer, of an array with a sample dimension (``batch``) is one chunk:
    analyses read cells. Vectors of coordinates are cut 16 steps by 16,384 coordinates. Histograms,
    integers by layer and bin, are mostly zeros: they are compressed in any case, and a chunk is one
    step of several layers, since a chunk of several steps is stored as it is where a commit finds
    it begun. Everything else is cut into many steps of few layers: analyses read these along steps,
    also what workers did, of which the trace of a rank has one sample a step.

    Parameters
    ----------
    dims : sequence of str
        Dimensions, ``step`` first.
    row_shape : sequence of int
        Shape of one row, without ``step``.
    dtype : str
        As stored.
    share : int
        Bytes of rows that may be held in memory until a shard is full.
    largest : int
        Bytes of the largest shard.
    compression : {"none", "lz4"}
        How chunks that are not tiny are stored.

    Returns
    -------
    Layout
        Its shards hold a power of two of rows: at least one, at most 65,536, as many as `share`
        allows, and no more than 32 MiB of them or, of vectors, 64 steps.
    """
    sizes = dict(zip(dims[1:], row_shape, strict=True))
    itemsize = np.dtype(dtype).itemsize
    counts_of_bins = list(sizes) == ["layer", "bin"] and np.dtype(dtype).kind in "iu"
    rows, inner = _histograms(sizes) if counts_of_bins else _chunk(sizes, itemsize)
    row_bytes = itemsize * math.prod(row_shape)
    wanted = SERIES_SHARD_BYTES // row_bytes
    if list(sizes) == ["coordinate"]:
        wanted = max(wanted, VECTOR_SHARD_ROWS)
    shard_rows = _power_of_two(max(1, min(share // row_bytes, wanted, MAX_SHARD_ROWS)))
    chunk = (min(rows, shard_rows), *inner)
    counts = [-(-size // part) for size, part in zip(row_shape, inner, strict=True)]
    chunk_bytes = itemsize * math.prod(chunk)
    while (
        counts
        and max(counts) > 1
        and shard_rows // chunk[0] * math.prod(counts) * chunk_bytes > min(largest, SHARD_BYTES)
    ):
        widest = counts.index(max(counts))
        counts[widest] = -(-counts[widest] // 2)
    shard = (
        shard_rows,
        *(count * part for count, part in zip(counts, inner, strict=True)),
    )
    if counts_of_bins and chunk_bytes <= CODEC_BYTES:
        return Layout(chunk, shard, "lz4")
    compressible = COMPRESSED_BYTES <= chunk_bytes <= CODEC_BYTES
    return Layout(chunk, shard, compression if compressible else "none")


def _histograms(sizes: dict[str, int]) -> tuple[int, tuple[int, int]]:
    """Return what `_chunk` does, of histograms by layer."""
    bins = min(sizes["bin"], LONGEST_AXIS)
    return 1, (min(sizes["layer"], max(1, SERIES_ELEMENTS // bins)), bins)


def _chunk(sizes: dict[str, int], itemsize: int) -> tuple[int, tuple[int, ...]]:
    """Return the rows of a chunk and its shape within a row."""
    extents = {dim: min(size, LONGEST_AXIS) for dim, size in sizes.items()}
    samples = math.prod(
        size for dim, size in extents.items() if dim not in ("layer", "direction", "coordinate")
    )
    if "coordinate" in sizes:
        fitting = _power_of_two(max(1, CELL_BYTES // (itemsize * samples)))
        extents["coordinate"] = min(sizes["coordinate"], COORDINATES, fitting)
        return (16 if len(sizes) == 1 else 1), tuple(extents.values())
    if "direction" in sizes and set(sizes) - {"layer", "direction", "worker"}:
        cell = extents | {"layer": 1} if "layer" in sizes else extents
        return 1, tuple(cell.values())
    each = math.prod(size for dim, size in extents.items() if dim != "layer")
    if "layer" in sizes:
        extents["layer"] = min(sizes["layer"], max(1, 1024 // each))
    elements = math.prod(extents.values())
    rows = _power_of_two(max(1, SERIES_ELEMENTS // elements))
    return min(rows, 1024 if sizes else 4096), tuple(extents.values())


def _power_of_two(number: int) -> int:
    """Return the largest power of two that is not larger."""
    return 1 << (number.bit_length() - 1)
