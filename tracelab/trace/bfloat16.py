"""bfloat16, the upper half of a float32, as its bits: NumPy has no such dtype."""

from __future__ import annotations

import numpy as np

from tracelab.trace.schema import BFLOAT16_NAN
from tracelab.typing import Array, FloatArray, IntArray

__all__ = ["decode", "encode"]


def encode(values: Array) -> IntArray:
    """Return the nearest bfloat16 of each value, ties to even, as uint16.

    Parameters
    ----------
    values : ndarray of float32, shape (...)
        Other numbers are rounded to float32 first. Infinities stay infinite, and what is nearer to
        the next power of two than to the largest number becomes infinite, as IEEE 754 rounds;
        nothing is clamped. NaN stays NaN.

    Returns
    -------
    ndarray of uint16, shape (...)
    """
    floats = np.ascontiguousarray(values, dtype=np.float32)
    bits = floats.view(np.uint32)
    upper = bits >> np.uint32(16)
    # Half of the last place, less one if the last place is even: a tie then goes to the even side.
    # Only NaN could overflow.
    rounded = (bits + (np.uint32(0x7FFF) + (upper & np.uint32(1)))) >> np.uint32(16)
    found = rounded.astype(np.uint16)
    found[np.isnan(floats)] = BFLOAT16_NAN
    return found.reshape(values.shape)


def decode(bits: IntArray) -> FloatArray:
    """Return the float32 that bfloat16 bits stand for; exact.

    Parameters
    ----------
    bits : ndarray of uint16, shape (...)

    Returns
    -------
    ndarray of float32, shape (...)
    """
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
