"""Samples along an axis as rows of a matrix."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tracelab.errors import UsageError
from tracelab.typing import Array

__all__ = ["as_rows"]


def as_rows(x: npt.ArrayLike, axis: int) -> tuple[Array, tuple[int, ...]]:
    """Return the samples as an array of shape (row, n), and the shape of the rows.

    Raises
    ------
    UsageError
        If they are no real numbers, or there is no such axis.
    """
    values = np.asarray(x)
    if values.dtype.kind not in "fiu":
        raise UsageError(
            f"samples must be real numbers, got dtype {values.dtype}; convert them to float64"
        )
    if not -values.ndim <= axis < values.ndim:
        raise UsageError(
            f"axis {axis} is not an axis of samples with shape {values.shape}; "
            f"choose one of its {values.ndim} axes"
        )
    moved = np.moveaxis(values, axis, -1)
    lead = moved.shape[:-1]
    return moved.reshape(math.prod(lead), moved.shape[-1]), lead
