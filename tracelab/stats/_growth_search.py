"""The shape of a law of growth and the memory of its deviations, by likelihood on closing grids."""

from __future__ import annotations

import numba
import numpy as np

from tracelab.typing import FloatArray

__all__ = ["coarse", "refined"]

# Of the shape and of the correlation time: halves of the first grid's spacing.
_ZOOMS = 34
# In units of the largest value: what rounding leaves of an exact law.
_ROUNDING = 64 * np.finfo(np.float64).eps


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fill(t: FloatArray, kind: int, shape: float, column: FloatArray) -> None:
    for i in range(t.size):
        if kind == 0:
            column[i] = np.log(t[i])
        elif kind == 1:
            column[i] = (t[i] / t[-1]) ** shape
        else:
            column[i] = np.exp(-(t[i] - t[0]) / np.exp(shape))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _remember(gaps: FloatArray, correlation: float, phi: FloatArray, scale: FloatArray) -> float:
    """Write memory and scale of each point but the first; return the log-determinant."""
    log_det = 0.0
    for i in range(gaps.size):
        phi[i] = np.exp(-gaps[i] / correlation) if correlation > 0.0 else 0.0
        rest = 1.0 - phi[i] * phi[i]
        scale[i] = 1.0 / np.sqrt(rest)
        log_det += np.log(rest)
    return log_det


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _whiten(values: FloatArray, phi: FloatArray, scale: FloatArray, out: FloatArray) -> None:
    out[0] = values[0]
    for i in range(1, values.size):
        out[i] = (values[i] - phi[i - 1] * values[i - 1]) * scale[i - 1]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _without(y: FloatArray, x: FloatArray) -> None:
    """Take off `y` its projection on `x`, in place."""
    square, along = 0.0, 0.0
    for i in range(x.size):
        square += x[i] * x[i]
        along += x[i] * y[i]
    if square > 0.0:
        for i in range(x.size):
            y[i] -= x[i] * (along / square)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scores(
    d: FloatArray,
    columns: FloatArray,
    gaps: FloatArray,
    correlation: float,
    intercept: bool,
    out: FloatArray,
) -> None:
    """Write -2 log-likelihood, but for constants, with linear parameters profiled out, by shape."""
    n = d.size
    phi, scale = np.empty(n - 1), np.empty(n - 1)
    log_det = _remember(gaps, correlation, phi, scale)
    # Rounding is white: it must not look the smaller the longer the memory.
    floor = n * _ROUNDING**2 * np.exp(-log_det / n)
    one, whole, x, y = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    _whiten(np.ones(n), phi, scale, one)
    _whiten(d, phi, scale, whole)
    if intercept:
        _without(whole, one)
    for k in range(columns.shape[0]):
        _whiten(columns[k], phi, scale, x)
        if intercept:
            # Gram and Schmidt: columns that are nearly constant keep their digits.
            _without(x, one)
        y[:] = whole
        _without(y, x)
        rest = 0.0
        for i in range(n):
            rest += y[i] * y[i]
        out[k] = n * np.log(max(rest, floor) / n) + log_det


@numba.njit(nogil=True, cache=True, error_model="numpy")
def coarse(
    t: FloatArray, d: FloatArray, kind: int, shapes: FloatArray, gaps: FloatArray, times: FloatArray
) -> tuple[float, float, float]:
    """Return the least score on the grid, with its shape and correlation time."""
    columns, scores = np.empty((shapes.size, t.size)), np.empty(shapes.size)
    for i in range(shapes.size):
        _fill(t, kind, shapes[i], columns[i])
    best, shape, correlation = np.inf, shapes[0], 0.0
    for time in times:
        _scores(d, columns, gaps, time, kind != 1, scores)
        k = int(np.argmin(scores))
        if scores[k] < best:
            best, shape, correlation = scores[k], shapes[k], time
    return best, shape, correlation


@numba.njit(nogil=True, cache=True, error_model="numpy")
def refined(
    t: FloatArray,
    d: FloatArray,
    kind: int,
    shapes: FloatArray,
    gaps: FloatArray,
    times: FloatArray,
    found: tuple[float, float, float],
) -> tuple[float, float, float]:
    """Return the least score around that of the grid, on grids of halved spacing."""
    best, shape, correlation = found
    step = shapes[1] - shapes[0] if shapes.size > 1 else 0.0
    factor = np.log(times[2] / times[1]) if times.size > 1 else 0.0
    sides = np.arange(-2, 3) if shapes.size > 1 else np.zeros(1, np.int64)
    # Where deviations look independent there is no time to refine.
    turns = np.arange(-2, 3) if correlation > 0.0 else np.zeros(1, np.int64)
    columns, scores = np.empty((sides.size, t.size)), np.empty(sides.size)
    trials = np.empty(sides.size)
    for _ in range(_ZOOMS):
        step, factor = 0.5 * step, 0.5 * factor
        for k in range(sides.size):
            trials[k] = min(max(shape + sides[k] * step, shapes[0]), shapes[-1])
            _fill(t, kind, trials[k], columns[k])
        centre = correlation
        for turn in turns:
            time = min(centre * np.exp(turn * factor), times[-1])
            _scores(d, columns, gaps, time, kind != 1, scores)
            k = int(np.argmin(scores))
            if scores[k] < best:
                best, shape, correlation = scores[k], trials[k], time
    return best, shape, correlation
