"""Finished cells as one file: what jobs keep of what they have computed so far."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np

from tracelab.trace.places.files import Part
from tracelab.trace.resultstore.resultform import DTYPES_OF_RESULTS
from tracelab.typing import Array, IntArray

__all__ = ["Cells", "decode", "encode"]

_MAGIC = b"tracelab part 1\n"


@dataclass(frozen=True, slots=True)
class Cells:
    """Finished cells, side by side.

    Parameters
    ----------
    steps : ndarray of int64 or None, shape (cell,)
        Step of each; None if cells have none.
    layers : tuple of str
        The layers there are.
    columns : ndarray of int64, shape (cell,)
        Index of each cell's layer among them.
    outputs : mapping of str to ndarray, shape (cell, ...)
        The numbers.
    """

    steps: IntArray | None
    layers: tuple[str, ...]
    columns: IntArray
    outputs: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        """Size in memory, about that of a part."""
        return sum(values.nbytes for values in self.outputs.values()) + 16 * len(self.columns)


def encode(cells: Cells) -> Iterator[Part]:
    """Yield the bytes of a part: a header in JSON, the arrays one after the other, a checksum."""
    arrays: dict[str, Array] = {".layer": cells.columns.astype(np.int64)}
    if cells.steps is not None:
        arrays[".step"] = cells.steps.astype(np.int64)
    arrays |= cells.outputs
    header = json.dumps(
        {
            "layers": cells.layers,
            "arrays": [[name, each.dtype.name, each.shape] for name, each in arrays.items()],
        }
    ).encode()
    pieces: list[Part] = [_MAGIC, len(header).to_bytes(8, "little"), header]
    pieces += [
        np.ascontiguousarray(each, each.dtype.newbyteorder("<")).tobytes()
        for each in arrays.values()
    ]
    crc = 0
    for piece in pieces:
        crc = google_crc32c.extend(crc, bytes(piece))
        yield piece
    yield crc.to_bytes(4, "little")


def decode(content: bytes, wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> Cells:
    """Return the cells of a part.

    Parameters
    ----------
    content : bytes
        The part.
    wanted : mapping of str to (dtype, shape)
        Outputs it must hold: dtype, and shape of one cell.

    Raises
    ------
    ValueError, KeyError, TypeError, OverflowError, RecursionError
        If it is no part, or not one with these outputs.
    """
    start = len(_MAGIC) + 8
    crc = int.from_bytes(content[-4:], "little")
    if content[: len(_MAGIC)] != _MAGIC or google_crc32c.value(content[:-4]) != crc:
        raise ValueError("it is no part, or its checksum differs")
    place = start + int.from_bytes(content[len(_MAGIC) : start], "little")
    header = json.loads(content[start:place])
    arrays: dict[str, Array] = {}
    for name, dtype, shape in header["arrays"]:
        if dtype not in DTYPES_OF_RESULTS:
            raise ValueError(f"{name!r} has the type {dtype!r}")
        count = int(np.prod([int(size) for size in shape], dtype=object))
        end = place + count * np.dtype(dtype).itemsize
        if not place <= end <= len(content) - 4:
            raise ValueError(f"{name!r} ends too early")
        stored = np.frombuffer(content[place:end], np.dtype(dtype).newbyteorder("<"))
        arrays[name] = stored.reshape(shape).astype(dtype)
        place = end
    columns, steps = arrays.pop(".layer"), arrays.pop(".step", None)
    layers = tuple(map(str, header["layers"]))
    _check_cells(columns, steps, layers, arrays, wanted)
    return Cells(steps, layers, columns, arrays)


def _check_cells(
    columns: Array,
    steps: Array | None,
    layers: Sequence[str],
    arrays: Mapping[str, Array],
    wanted: Mapping[str, tuple[str, tuple[int, ...]]],
) -> None:
    count = len(columns)
    for each in (columns, *([] if steps is None else [steps])):
        if each.dtype != np.int64 or each.shape != (count,):
            raise ValueError("its cells have no steps or layers")
    if count and not (columns.min() >= 0 and columns.max() < len(layers)):
        raise ValueError("a cell has a layer that is not there")
    found = {name: (each.dtype.name, each.shape[1:]) for name, each in arrays.items()}
    if found != dict(wanted) or any(len(each) != count for each in arrays.values()):
        raise ValueError("it holds other outputs")
