"""crc32c of an array's values, in whatever order its parts are read or written.

The sum is that of the values' little-endian bytes in C order, so it does not depend on chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, TypeAlias

import google_crc32c
import numpy as np

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
        state, last = 0, int(places.flat[0])
        for place, row in zip(places.ravel().tolist(), rows, strict=True):
            alone = google_crc32c.extend(_ONES, row) ^ _ONES
            state = _looked_up(_steps(place - last), state) ^ alone
            last = place
        self._state ^= _followed(state, self._nbytes - last - rows.shape[1])

    @property
    def value(self) -> int:
        """The crc32c, once every part was taken."""
        return _followed(_ONES, self._nbytes) ^ self._state ^ _ONES


def of_text(text: str) -> int:
    """Return the crc32c of a text in UTF-8."""
    return int(google_crc32c.value(text.encode()))


# A sum's bits are added up (xor) by what they become: a table has that of each byte of a sum.
_Table: TypeAlias = tuple[list[int], list[int], list[int], list[int]]


def _followed(state: int, zeros: int) -> int:
    """Return a sum as it is after a number of bytes 0."""
    for power in range(zeros.bit_length()):
        if zeros >> power & 1:
            state = _looked_up(_doublings(power), state)
    return state


@lru_cache(64)
def _steps(zeros: int) -> _Table:
    """Return the table of a number of bytes 0 that comes again and again."""
    return _table([_followed(1 << bit, zeros) for bit in range(32)])


@cache
def _doublings(power: int) -> _Table:
    """Return the table of 2**power bytes 0."""
    if not power:
        return _table([google_crc32c.extend(1 << bit ^ _ONES, b"\0") ^ _ONES for bit in range(32)])
    half = _doublings(power - 1)
    return _table([_looked_up(half, _looked_up(half, 1 << bit)) for bit in range(32)])


def _table(bits: Sequence[int]) -> _Table:
    def of_byte(first: int) -> list[int]:
        found = [0]
        for bit in bits[first : first + 8]:
            found += [bit ^ each for each in found]
        return found

    return of_byte(0), of_byte(8), of_byte(16), of_byte(24)


def _looked_up(table: _Table, state: int) -> int:
    one, two, three, four = table
    return one[state & 255] ^ two[state >> 8 & 255] ^ three[state >> 16 & 255] ^ four[state >> 24]
