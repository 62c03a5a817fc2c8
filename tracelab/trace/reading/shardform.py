"""How the chunks of an array lie in its files, and which of them a selection touches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tracelab.typing import Array, IntArray

__all__ = ["Form", "Piece", "Selected", "form", "select"]

Indexer: TypeAlias = slice | IntArray

_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_BYTES = {"name": "bytes"}
_CRC32C = {"name": "crc32c"}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class Form:
    """What is needed to find a chunk and to make an array of it.

    Parameters
    ----------
    shape, shard, chunk : tuple of int
        Of the array, of what one file holds, and of what one checksum covers.
    dtype : numpy.dtype
        Of the array; ``StringDType`` for texts.
    fill : ndarray of shape ()
        The value of chunks that are not there.
    separator : str
        Between the numbers of a file's name.
    indexed : bool
        Whether a file holds many chunks, and their index at its end.
    compressed : bool
        Whether a chunk is a Blosc frame.
    """

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: Array
    separator: str
    indexed: bool
    compressed: bool

    @property
    def cells(self) -> tuple[int, ...]:
        """Number of chunks of a shard along each dimension."""
        return tuple(whole // part for whole, part in zip(self.shard, self.chunk, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk in memory."""
        return self.dtype.itemsize * math.prod(self.chunk)

    def key(self, shard: Sequence[int]) -> str:
        """Return the name of a shard's file below the array's folder."""
        return self.separator.join(("c", *map(str, shard)))

    def shards(self) -> Iterator[tuple[int, ...]]:
        """Yield the positions of all shards that hold a part of the array."""
        counts = (-(-size // part) for size, part in zip(self.shape, self.shard, strict=True))
        return itertools.product(*map(range, counts))


def form(document: Mapping[str, Any]) -> Form | None:
    """Return how an array is stored, or None if it is not stored as tracelab stores arrays.

    Parameters
    ----------
    document : Mapping
        Its ``zarr.json``, checked before by `tracelab.trace.reading.snapshot`.
    """
    encoding = document.get("chunk_key_encoding")
    if not isinstance(encoding, dict) or encoding.get("name") != "default":
        return None
    separator = encoding.get("configuration", {}).get("separator", "/")
    if separator not in (".", "/") or document.get("storage_transformers"):
        return None
    dtype = _dtype(document["data_type"])
    fill = _fill(dtype, document.get("fill_value"))
    shard = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    chunk, codecs = shard, list(document["codecs"])
    indexed = codecs[0]["name"] == "sharding_indexed" if codecs else False
    if indexed:
        sharding = codecs[0]["configuration"]
        if len(codecs) != 1 or sharding.get("index_location", "end") != "end":
            return None
        if list(sharding["index_codecs"]) != [_LITTLE, _CRC32C]:
            return None
        chunk, codecs = tuple(sharding["chunk_shape"]), list(sharding["codecs"])
    compressed = len(codecs) == 3 and codecs[1]["name"] == "blosc"
    if compressed:
        del codecs[1]
    if dtype.kind == "T":
        plain = [{"name": "vlen-utf8", "configuration": {}}, _CRC32C]
        known = not indexed and not compressed and len(shard) == 1 and codecs == plain
    else:
        known = codecs == [_LITTLE, _CRC32C] or (
            dtype.itemsize == 1 and codecs == [_BYTES, _CRC32C]
        )
    if not known or fill is None:
        return None
    shape = tuple(document["shape"])
    return Form(shape, shard, chunk, dtype, fill, separator, indexed, compressed)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "string":
        return np.dtypes.StringDType()
    return np.dtype(name).newbyteorder("<")


def _fill(dtype: np.dtype[Any], value: Any) -> Array | None:
    """Return the fill value, or None if it is none of its dtype or in a form we do not write."""
    if dtype.kind == "T":
        return np.asarray(value, dtype) if isinstance(value, str) else None
    if dtype.kind == "b":
        return np.asarray(value) if isinstance(value, bool) else None
    if dtype.kind == "f":
        number = _NOT_FINITE.get(value) if isinstance(value, str) else value
        if not isinstance(number, int | float) or isinstance(number, bool):
            return None
        if math.isfinite(number) and abs(number) > np.finfo(dtype).max:
            return None
        return np.asarray(number, dtype)
    limits = np.iinfo(dtype)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return np.asarray(value, dtype) if limits.min <= value <= limits.max else None


class Piece(NamedTuple):
    """What of a chunk goes where in the result, along one dimension."""

    cell: int
    inside: Indexer
    outside: Indexer


@dataclass(frozen=True, slots=True)
class Selected:
    """A selection, cut by shards and chunks.

    Parameters
    ----------
    shape : tuple of int
        Of the result, before `finish`.
    pieces : tuple of dict
        For each dimension, the pieces by position of the shard.
    dropped : tuple of int
        Dimensions that an integer selects.
    turned : tuple of slice
        Turns dimensions round that a slice selects backwards; for the dimensions that are left.
    """

    shape: tuple[int, ...]
    pieces: tuple[dict[int, list[Piece]], ...]
    dropped: tuple[int, ...]
    turned: tuple[slice, ...]

    def finish(self, values: Array) -> Array:
        """Return the result as numpy shapes it."""
        kept: Array = values.squeeze(axis=self.dropped)
        return kept[self.turned] if any(turn.step for turn in self.turned) else kept


def select(stored: Form, selection: Any) -> Selected:
    """Cut a selection of an array: integers, slices, ``...`` and at most one array of integers.

    Raises
    ------
    IndexError
        If it is something else, or reaches outside of the array.
    """
    given = list(selection) if isinstance(selection, tuple) else [selection]
    rest = len(stored.shape) - sum(item is not Ellipsis for item in given)
    dots = [position for position, item in enumerate(given) if item is Ellipsis]
    if rest < 0 or len(dots) > 1:
        raise IndexError(f"{selection!r} does not index an array of shape {stored.shape}")
    place = dots[0] if dots else len(given)
    given[place : place + 1] = [slice(None)] * rest
    shape, pieces, dropped, turned = [], [], [], []
    arrays = 0
    for axis, item in enumerate(given):
        size, extents = stored.shape[axis], (stored.shard[axis], stored.chunk[axis])
        if isinstance(item, slice):
            positions = range(size)[item]
            turned.append(slice(None, None, -1 if positions.step < 0 else None))
            pieces.append(_range(positions[::-1] if positions.step < 0 else positions, *extents))
            shape.append(len(positions))
        elif isinstance(item, int | np.integer):
            position = _inside(np.asarray([item]), size)[0]
            pieces.append(_range(range(position, position + 1), *extents))
            shape.append(1)
            dropped.append(axis)
        else:
            wanted = np.asarray(item)
            arrays += 1
            if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and wanted.size) or arrays > 1:
                raise IndexError(f"an array can be indexed by one list of integers, got {item!r}")
            pieces.append(_scattered(_inside(wanted.astype(np.int64), size), *extents))
            shape.append(wanted.size)
            turned.append(slice(None))
    return Selected(tuple(shape), tuple(pieces), tuple(dropped), tuple(turned))


def _inside(positions: IntArray, size: int) -> IntArray:
    if positions.size and not (-size <= positions.min() and positions.max() < size):
        raise IndexError(f"an index is outside of a dimension of {size}")
    return np.where(positions < 0, positions + size, positions)


def _range(positions: range, shard: int, chunk: int) -> dict[int, list[Piece]]:
    """Cut positions at equal, positive distances."""
    found: dict[int, list[Piece]] = {}
    done = 0
    while done < len(positions):
        number = positions[done] // chunk
        end = (number + 1) * chunk
        count = min(len(positions) - done, -(-(end - positions[done]) // positions.step))
        first = positions[done] - number * chunk
        last = first + (count - 1) * positions.step
        inside = slice(first, last + 1, positions.step)
        place, cell = divmod(number, shard // chunk)
        piece = Piece(cell, inside, slice(done, done + count))
        found.setdefault(place, []).append(piece)
        done += count
    return found


def _scattered(positions: IntArray, shard: int, chunk: int) -> dict[int, list[Piece]]:
    """Cut positions in any order."""
    found: dict[int, list[Piece]] = {}
    order = np.argsort(positions // chunk, kind="stable")
    numbers, starts = np.unique(positions[order] // chunk, return_index=True)
    for number, outside in zip(numbers.tolist(), np.split(order, starts[1:]), strict=False):
        place, cell = divmod(number, shard // chunk)
        piece = Piece(cell, positions[outside] - number * chunk, outside)
        found.setdefault(place, []).append(piece)
    return found
