"""Norms of weights as matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["matrix_of", "spectral_norm"]

DENSE = 256
"""Matrices with a side of no more than this are decomposed; of others the norm is iterated."""
TOLERANCE = 1e-6
ITERATIONS = 2000


def matrix_of(weight: Tensor) -> Tensor | None:
    """Return a weight as a float64 matrix (output, rest); None of what has fewer than two dims.

    The matrix of a convolution is that of its filters: its norm is not that of the convolution as a
    linear map of images, which depends on their size, and can be larger.
    """
    if weight.dim() < 2:
        return None
    return weight.detach().reshape(len(weight), -1).double()


def spectral_norm(matrix: Tensor, seed: int) -> tuple[float, float]:
    r"""Return the largest singular value and how well it is known.

    Parameters
    ----------
    matrix : Tensor of float64, shape (row, column)
        The matrix.
    seed : int
        Of the vector that the iteration begins with, where a side exceeds `DENSE`.

    Returns
    -------
    norm : float
        By a decomposition, or by power iteration :math:`v \leftarrow A^T A v / \|\cdot\|` until
        the residual is below `TOLERANCE`, for `ITERATIONS` at most: then from below. NaN if the
        matrix is not finite.
    residual : float
        :math:`\|A^T A v - \sigma^2 v\| / \sigma^2`, which bounds the relative distance of
        :math:`\sigma^2` from the square of *some* singular value; 0 of a decomposition.
    """
    if not bool(matrix.isfinite().all()):
        return math.nan, math.nan
    if min(matrix.shape) <= DENSE:
        return float(torch.linalg.svdvals(matrix)[0]), 0.0
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(matrix.shape[1], generator=generator, dtype=matrix.dtype).to(matrix.device)
    vector /= vector.norm()
    square, residual = 0.0, math.nan
    for _ in range(ITERATIONS):
        image = matrix.T @ (matrix @ vector)
        square = float(vector @ image)
        if square <= 0:
            return 0.0, 0.0
        residual = float((image - square * vector).norm()) / square
        if residual <= TOLERANCE:
            break
        vector = image / image.norm()
    return math.sqrt(square), residual
