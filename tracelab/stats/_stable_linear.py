"""Small vectors and matrices inside compiled fits, where BLAS would cost seconds to compile."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["bfgs", "dot", "invert_free"]

Float64 = NDArray[np.float64]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def dot(a: Float64, b: Float64) -> float:
    """Return the inner product."""
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def bfgs(inverse: Float64, step: Float64, change: Float64) -> bool:
    """Update the inverse curvature for a step and the fall of the gradient along it.

    Return False, having done nothing, where the gradient did not fall.
    """
    product = dot(step, change)
    if product <= 1e-12 * math.sqrt(dot(step, step) * dot(change, change)):
        return False
    moved = np.empty(step.size)
    for i in range(step.size):
        moved[i] = dot(inverse[i], change)
    factor = (1.0 + dot(change, moved) / product) / product
    for i in range(step.size):
        for j in range(step.size):
            mixed = moved[i] * step[j] + step[i] * moved[j]
            inverse[i, j] += factor * step[i] * step[j] - mixed / product
    return True


@numba.njit(nogil=True, cache=True, error_model="numpy")
def invert_free(matrix: Float64, free: NDArray[np.bool_], out: Float64) -> None:
    """Write the inverse of a positive matrix over the free parameters, 0 elsewhere."""
    size = matrix.shape[0]
    work = np.zeros((size, 2 * size))
    for i in range(size):
        for j in range(size):
            work[i, j] = matrix[i, j] if free[i] and free[j] else 0.0
        work[i, size + i] = 1.0
        if not free[i]:
            work[i, i] = 1.0
    for i in range(size):
        work[i] /= work[i, i]
        for k in range(size):
            if k != i:
                factor = work[k, i]
                for j in range(2 * size):
                    work[k, j] -= factor * work[i, j]
    for i in range(size):
        for j in range(size):
            out[i, j] = work[i, size + j] if free[i] and free[j] else 0.0
