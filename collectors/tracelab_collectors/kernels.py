"""Reductions of flat buffers on the CPU: one pass each, outside the interpreter lock.

They run in the background thread. Operations of torch there would hold the interpreter lock
between each other and start OpenMP threads of their own, and so slow down the thread that trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from tracelab.typing import Array, FloatArray, IntArray

__all__ = [
    "INFINITE",
    "MANTISSA",
    "SUMS",
    "accumulate",
    "deviations",
    "fold",
    "histogram",
    "squares",
    "sums",
]

MANTISSA = 23
"""Bits of a float32's mantissa."""

INFINITE = 0x7F800000
"""The bits of infinity, as a float32."""

SUMS = ("power1", "power2", "power3", "power4", "present", "log1", "log2", "nonfinite", "peak")
"""What `sums` returns of each layer, in order."""

_Function = TypeVar("_Function", bound=Callable[..., None])


def _compiled(function: _Function) -> _Function:
    # Sums may be reordered, so that they vectorize; NaN and infinity keep their meaning.
    fast = {"reassoc", "contract", "nsz"}
    decorate: Any = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=fast)
    compiled: _Function = decorate(function)
    return compiled


_I = np.int32
_F = np.float32
_LN2 = math.log(2.0)
_SIGNLESS = _I(0x7FFFFFFF)
_MANTISSA = _I(0x007FFFFF)
_NORMAL = _I(0x00800000)
_INFINITE = _I(INFINITE)
_SIGN = _I(-(2**31))
_MINUS_INFINITE = _I(INFINITE - 2**31)
_SQRT2 = _F(math.sqrt(2.0) - 1)
_CHUNK = 256
# Values of a strip stay in the first-level cache between two loops over it.
_STRIP = 2048


@_compiled
def squares(rows: FloatArray, starts: IntArray, numels: IntArray, out: FloatArray) -> None:
    """Write each layer's sum of squares, in float64, to `out` (row, layer)."""
    for row in range(rows.shape[0]):
        for layer in range(numels.size):
            values = rows[row, starts[layer] : starts[layer] + numels[layer]]
            total = 0.0
            for i in range(values.size):
                value = np.float64(values[i])
                total += value * value
            out[row, layer] = total


@_compiled
def accumulate(values: FloatArray, weight: float, total: FloatArray) -> None:
    """Add weighted values to a total of float64."""
    for i in range(values.size):
        total[i] += weight * np.float64(values[i])


@_compiled
def _welford(values: FloatArray, mean: FloatArray, squares: FloatArray, share: float) -> None:
    for i in range(values.size):
        delta = values[i] - mean[i]
        moved = mean[i] + delta * share
        squares[i] += delta * (values[i] - moved)
        mean[i] = moved


@_compiled
def deviations(
    rows: FloatArray,
    centre: FloatArray,
    mean: FloatArray,
    squares: FloatArray,
    shares: FloatArray,
    starts: IntArray,
    numels: IntArray,
    out: FloatArray,
) -> None:
    """Write each layer's sum of squares, and that of its difference from `centre`, to `out`.

    `out` has the shape (2, row, layer). An empty `centre` stands for 0. Unless they are empty,
    `mean` and `squares` take the rows as Welford (1962) has it: ``mean += share * (row - mean)``,
    with one share for each row, one over the number of rows so far.
    """
    for row in range(rows.shape[0]):
        for layer in range(numels.size):
            norm = distance = 0.0
            end = starts[layer] + numels[layer]
            for begin in range(starts[layer], end, _STRIP):
                stop = min(begin + _STRIP, end)
                mine = rows[row, begin:stop]
                if centre.size:
                    other = centre[begin:stop]
                    for i in range(mine.size):
                        value = np.float64(mine[i])
                        difference = value - np.float64(other[i])
                        norm += value * value
                        distance += difference * difference
                else:
                    for i in range(mine.size):
                        value = np.float64(mine[i])
                        norm += value * value
                if mean.size:
                    _welford(mine, mean[begin:stop], squares[begin:stop], shares[row])
            out[0, row, layer], out[1, row, layer] = norm, distance if centre.size else norm


@_compiled
def fold(
    rows: FloatArray,
    signs: IntArray,
    starts: IntArray,
    numels: IntArray,
    phases: IntArray,
    period: int,
    out: FloatArray,
) -> None:
    """Write each layer's projection to `out` (row, layer, k): `tracelab.Project`, by stretches.

    The first coordinate of a layer has the residue that `phases` says: not 0 in a shard.
    """
    k = out.shape[2]
    buckets = np.empty(period, dtype=np.float64)
    residues = np.empty(period, dtype=np.float64)
    for row in range(rows.shape[0]):
        for layer in range(numels.size):
            residues[:] = 0.0
            base, end = starts[layer], starts[layer] + numels[layer]
            while base < end:
                stop = min(base + period, end)
                values, flips = rows[row, base:stop], signs[base:stop]
                for j in range(values.size):
                    residues[j] += np.float64(_F(flips[j]) * values[j])
                base += period
            phase = phases[layer]
            for j in range(period):
                buckets[j] = residues[j - phase]
            for j in range(period - k):
                buckets[j] += buckets[k + j]
            for j in range(k):
                out[row, layer, j] = buckets[j]


@_compiled
def _move(words: IntArray, bits: np.int32, counts: IntArray, source: int, target: int) -> None:
    """Move the counts of words that have exactly some bits from one bin to another."""
    total = np.int64(0)
    for begin in range(0, words.size, _CHUNK):
        part = words[begin : min(begin + _CHUNK, words.size)]
        same = _I(0)
        for i in range(part.size):
            same += _I(part[i] == bits)
        total += np.int64(same)
    counts[source] -= total
    counts[target] += total


@_compiled
def histogram(
    words: IntArray,
    starts: IntArray,
    numels: IntArray,
    table: IntArray,
    shift: int,
    zero: int,
    out: IntArray,
) -> None:
    """Add each layer's counts to `out` (row, layer, bin): `tracelab.Histogram`, of float32 bits.

    `table` is the histogram's own, of the bits that a shift by `shift` leaves; `zero` its bin of
    zeros.
    """
    leading, nan = table.size - 1, out.shape[2] - 1
    for row in range(words.shape[0]):
        for layer in range(numels.size):
            mine = words[row, starts[layer] : starts[layer] + numels[layer]]
            found = out[row, layer]
            for i in range(mine.size):
                found[table[(mine[i] >> shift) & leading]] += 1
            # The leading bits do not tell zeros from subnormal numbers, nor infinities from NaN.
            if found[zero + 1]:
                _move(mine, _I(0), found, zero + 1, zero)
            if found[zero - 1]:
                _move(mine, _SIGN, found, zero - 1, zero)
            if found[nan]:
                _move(mine, _INFINITE, found, nan, nan - 1)
                _move(mine, _MINUS_INFINITE, found, nan, 0)


@_compiled
def _sums32(
    rows: FloatArray, bits: IntArray, starts: IntArray, numels: IntArray, out: FloatArray
) -> None:
    for row in range(rows.shape[0]):
        for layer in range(numels.size):
            power1 = power2 = power3 = power4 = log1 = log2 = 0.0
            zeros = nonfinite = np.int64(0)
            peak = _I(0)
            end = starts[layer] + numels[layer]
            for begin in range(starts[layer], end, _CHUNK):
                stop = min(begin + _CHUNK, end)
                values, words = rows[row, begin:stop], bits[row, begin:stop]
                for i in range(values.size):
                    value = np.float64(values[i])
                    square = value * value
                    power1 += value
                    power2 += square
                    power3 += square * value
                    power4 += square * square
                zero = infinite = small = _I(0)
                for i in range(words.size):
                    word = _I(words[i] & _SIGNLESS)
                    peak = word if word > peak else peak
                    zero += _I(word == _I(0))
                    infinite += _I(word >= _INFINITE)
                    small += _I(word < _NORMAL)
                for i in range(words.size):
                    word = _I(words[i] & _SIGNLESS)
                    usual = (word >= _NORMAL) & (word < _INFINITE)
                    # x = 2^e (1 + f), with 1 + f between sqrt(1/2) and sqrt(2). Every value is
                    # cast at once: numba widens, and wide integers do not vectorize.
                    fraction = _F(_I(word & _MANTISSA)) * _F(2.0**-23)
                    upper = fraction > _SQRT2
                    fraction = _F(0.5) * fraction - _F(0.5) if upper else fraction
                    exponent = _F(_I(_I(word >> _I(23)) - _I(127))) + (_F(1) if upper else _F(0))
                    # ln(1 + f) by the polynomial of Cephes' logf (Moshier), error below 1e-7.
                    series = _F(7.0376836292e-2)
                    series = series * fraction - _F(1.1514610310e-1)
                    series = series * fraction + _F(1.1676998740e-1)
                    series = series * fraction - _F(1.2420140846e-1)
                    series = series * fraction + _F(1.4249322787e-1)
                    series = series * fraction - _F(1.6668057665e-1)
                    series = series * fraction + _F(2.0000714765e-1)
                    series = series * fraction - _F(2.4999993993e-1)
                    series = series * fraction + _F(3.3333331174e-1)
                    square32 = fraction * fraction
                    series = fraction - _F(0.5) * square32 + series * square32 * fraction
                    log = series + exponent * _F(_LN2) if usual else _F(0)
                    log1 += np.float64(log)
                    log2 += np.float64(log) * np.float64(log)
                if small > zero:
                    for i in range(words.size):
                        word = _I(words[i] & _SIGNLESS)
                        if _I(0) < word < _NORMAL:
                            subnormal = math.log(np.float64(word)) - 149 * _LN2
                            log1 += subnormal
                            log2 += subnormal * subnormal
                zeros += np.int64(zero)
                nonfinite += np.int64(infinite)
            found = out[row, layer]
            found[0], found[1], found[2], found[3] = power1, power2, power3, power4
            found[4] = numels[layer] - zeros - nonfinite
            found[5], found[6], found[7], found[8] = log1, log2, nonfinite, peak


@_compiled
def _sums64(rows: FloatArray, starts: IntArray, numels: IntArray, out: FloatArray) -> None:
    for row in range(rows.shape[0]):
        for layer in range(numels.size):
            found = out[row, layer]
            found[:] = 0.0
            for value in rows[row, starts[layer] : starts[layer] + numels[layer]]:
                magnitude = abs(value)
                found[0] += value
                found[1] += value**2
                found[2] += value**3
                found[3] += value**4
                if not magnitude < math.inf:
                    found[7] += 1
                elif magnitude > 0:
                    log = math.log(magnitude)
                    found[4] += 1
                    found[5] += log
                    found[6] += log * log
                if not magnitude <= found[8]:
                    found[8] = magnitude


def sums(rows: FloatArray, starts: IntArray, numels: IntArray) -> FloatArray:
    """Return sums of powers, of logs and of counts by layer.

    Parameters
    ----------
    rows : ndarray of float32 or float64, shape (row, size)
        Flat buffers.
    starts, numels : ndarray of int64, shape (layer,)
        Where the layers lie.

    Returns
    -------
    ndarray of float64, shape (row, layer, 9)
        As named in `SUMS`: sums of the first four powers; the number of nonzero finite
        coordinates, and over them the sums of ln|x| and of its square; the number of coordinates
        that are not finite; the largest absolute value.
    """
    out: Array = np.empty((len(rows), len(numels), len(SUMS)))
    if rows.dtype == np.float64:
        _sums64(rows, starts, numels, out)
        return out
    _sums32(rows, rows.view(np.int32), starts, numels, out)
    out[..., 8] = out[..., 8].astype(np.int32).view(np.float32)
    return out
