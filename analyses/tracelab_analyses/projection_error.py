"""How far distances by random projections are off, by which weights share one."""

from __future__ import annotations

import numpy as np

from tracelab.typing import FloatArray, IntArray

__all__ = ["projection_error"]


def projection_error(increments: FloatArray, sharing: IntArray) -> float:
    r"""Return the relative error of squared distances, no less than it is, over random signs.

    The square of a direction that adds up m weights with squares :math:`q_i`, whose sum is S, has a
    variance of :math:`2 (S^2 - \sum q_i^2) \le 2 S^2 (1 - 1/m)`: none where it holds one weight. S
    is taken from the mean square of its increments,

    .. math:: \sqrt{2 \sum_j S_j^2 (1 - 1/m_j)} \Big/ \sum_j S_j,

    :math:`\sqrt{2/k}` of k directions alike that each hold many weights.

    Parameters
    ----------
    increments : ndarray, shape (step, direction)
        Of projected weights; finite, not all 0.
    sharing : ndarray of int, shape (direction,)
        m.
    """
    squares = np.square(increments / np.abs(increments).max()).mean(axis=0)
    alone = 1 / np.maximum(sharing, 1)
    return float(np.sqrt(2 * np.sum(squares**2 * (1 - alone))) / squares.sum())
