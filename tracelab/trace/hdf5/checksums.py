"""crc32c of an array's values, in whatever order its parts are read or written.

The sum is that of the values' little-endian bytes in C order, so it does not depend on chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tracelab.typing import Array

__all__ = ["Checksum", "of_text"]

_ONES = 0xFFFFFFFF
_OF_TEXT = np.dtype("<u4")


class Checksum:
    """The crc32c of an array that is taken part by part; of texts, of each one's crc32c.

    Parameters
    ----------
    shape : sequence of int
        Of the whole array.
    dtype : dtype
        Of its values; object stands for texts.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        itemsize = _OF_TEXT.itemsize if dtype.kind == "O" else dtype.itemsize
        self._shape = tuple(shape)
        # Bytes from one place along an axis to the next.
        self._strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
        self._nbytes = math.prod(shape) * itemsize
        self._state = 0

    def add(self, starts: Sequence[int], values: Array) -> None:
        """Take a part, each value of the array once.

        Parameters
        ----------
        starts : sequence of int
            Where it begins along each axis.
        values : ndarray
            As many dimensions as the array.
        """
        if not values.size:
            return
        if values.dtype.kind == "O":
            each = np.array([of_text(text) for text in values.flat], _OF_TEXT)
            values = each.reshape(values.shape)
        runs = values.ndim
        while runs and values.shape[runs - 1] == self._shape[runs - 1]:
            runs -= 1
        # Values lie together along the last axis that the part cuts, and within the next ones.
        split = max(0, runs - 1)
        places = np.full((), sum(map(math.prod, zip(starts, self._strides, strict=True))), np.int64)
        for size, stride in zip(values.shape[:split], self._strides, strict=False):
            places = places[..., None] + stride * np.arange(size)
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        rows = little.reshape(places.size, -1).view(np.uint8)
        sums = np.array([google_crc32c.extend(_ONES, row) ^ _ONES for row in rows], dtype=np.uint32)
        behind = self._nbytes - places.ravel() - rows.shape[1]
        self._state ^= int(np.bitwise_xor.reduce(_followed(sums, behind)))

    @property
    def value(self) -> int:
        """The crc32c, once every part was taken."""
        begun = _followed(np.array([_ONES], np.uint32), np.array([self._nbytes]))
        return int(begun[0]) ^ self._state ^ _ONES


def of_text(text: str) -> int:
    """Return the crc32c of a text in UTF-8."""
    return int(google_crc32c.value(text.encode()))


def _followed(sums: NDArray[np.uint32], zeros: NDArray[Any]) -> NDArray[np.uint32]:
    """Return each sum as it is after a number of bytes 0."""
    left = zeros.copy()
    power = 0
    while left.any():
        odd = (left & 1).astype(bool)
        if odd.any():
            sums = np.where(odd, _looked_up(_zeros(power), sums), sums)
        left >>= 1
        power += 1
    return sums


@cache
def _zeros(power: int) -> NDArray[np.uint32]:
    """Return what 2**power bytes 0 make of each byte of a sum, of which they are the xor."""
    if power:
        return _looked_up(_zeros(power - 1), _zeros(power - 1))
    alone = [
        [google_crc32c.extend(byte << shift ^ _ONES, b"\0") ^ _ONES for byte in range(256)]
        for shift in range(0, 32, 8)
    ]
    return np.array(alone, dtype=np.uint32)


def _looked_up(table: NDArray[np.uint32], sums: NDArray[np.uint32]) -> NDArray[np.uint32]:
    found: NDArray[np.uint32] = table[0][sums & 255]
    for place in range(1, 4):
        found = found ^ table[place][(sums >> np.uint32(8 * place)) & 255]
    return found
