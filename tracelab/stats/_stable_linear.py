"""Small positive matrices inside compiled fits, where LAPACK would cost seconds to compile."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["invert_free"]

Float64 = NDArray[np.float64]


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
