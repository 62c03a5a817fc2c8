r"""The largest loss within a box around the weights, in all directions or in random ones.

Keskar et al. (2017), metric 2.1: for a matrix A of d rows and p columns the box is

.. math:: C_\epsilon = \{z \in R^p : |z_i| \le \epsilon\,(|(A^+ w)_i| + 1)\},

and the loss at :math:`w + A z` is maximized over it by a few iterations of L-BFGS-B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from tracelab.sketch import splitmix64
from tracelab.typing import FloatArray
from tracelab_collectors.layout import Layout
from tracelab_collectors.surface import LossSurface

__all__ = ["Climb", "GaussianSpace", "Space", "WholeSpace", "climb"]

BLOCK = 4096
"""Coordinates of a layer whose rows of the Gaussian matrix come from one seed."""

KEPT_BYTES = 2**24
"""A Gaussian matrix of at most so many bytes is drawn once, and not for every product."""


class Space(Protocol):
    """Coordinates z of moves A z of the weights."""

    def lift(self, z: FloatArray) -> FloatArray:
        """Return A z, shape (layout.size,), padding zero."""

    def pull(self, row: FloatArray) -> FloatArray:
        """Return A' times a flat vector."""

    def coordinates(self, weights: FloatArray) -> FloatArray:
        """Return A+ times flat weights, A+ the pseudo-inverse."""


class WholeSpace:
    """All directions: A is the identity."""

    def lift(self, z: FloatArray) -> FloatArray:
        """Return z."""
        return z

    def pull(self, row: FloatArray) -> FloatArray:
        """Return the vector."""
        return row

    def coordinates(self, weights: FloatArray) -> FloatArray:
        """Return the weights."""
        return weights


class GaussianSpace:
    """The span of random vectors: entries of A are independent standard normal numbers.

    Rows of A depend on the seed and on the coordinate of the network. They are drawn again for
    every product, in blocks of `BLOCK` rows; of A nothing is held but A'A, unless it is small.

    Parameters
    ----------
    layout : Layout
        Layers of the weights.
    dimension : int
        Number p of columns.
    seed : int
        Chooses A.
    """

    def __init__(self, layout: Layout, dimension: int, seed: int) -> None:
        self._layout = layout
        self._dimension = dimension
        self._seed = seed
        small = 4 * dimension * sum(layout.numel) <= KEPT_BYTES
        self._kept = list(self._draw()) if small else None
        self._gram = np.zeros((dimension, dimension))
        for _, block in self._blocks():
            self._gram += block.T @ block

    def lift(self, z: FloatArray) -> FloatArray:
        """Return A z."""
        row = np.zeros(self._layout.size)
        for rows, block in self._blocks():
            row[rows] = block @ z
        return row

    def pull(self, row: FloatArray) -> FloatArray:
        """Return A' times a flat vector."""
        total = np.zeros(self._dimension)
        for rows, block in self._blocks():
            total += block.T @ row[rows]
        return total

    def coordinates(self, weights: FloatArray) -> FloatArray:
        """Return A+ times flat weights: (A'A)^-1 A' w."""
        return np.linalg.solve(self._gram, self.pull(weights))

    def _blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        for rows, block in self._draw() if self._kept is None else self._kept:
            yield rows, block.astype(np.float64)

    def _draw(self) -> Iterator[tuple[slice, FloatArray]]:
        generator = torch.Generator()
        layout = self._layout
        for start, offset, numel in zip(layout.starts, layout.offsets, layout.numel, strict=False):
            for begin in range(0, numel, BLOCK):
                count = min(BLOCK, numel - begin)
                generator.manual_seed(int(splitmix64(self._seed, offset + begin, 1)[0]) >> 1)
                block = torch.randn(count, self._dimension, generator=generator)
                yield slice(start + begin, start + begin + count), block.numpy()


@dataclass(frozen=True, slots=True)
class Climb:
    """How far a maximization came.

    Parameters
    ----------
    loss : float
        The largest loss found; infinite or NaN if such a loss was met.
    iterations : int
        Iterations of L-BFGS-B.
    evaluations : int
        Evaluations of loss and gradient.
    converged : bool
        Whether it ended by itself and not because the iterations were used up.
    """

    loss: float
    iterations: int
    evaluations: int
    converged: bool


class _NotFiniteError(Exception):
    """Leaves the search at a loss that is not finite."""


def climb(
    surface: LossSurface,
    space: Space,
    weights: Tensor,
    half: FloatArray,
    begin: FloatArray,
    *,
    loss: float,
    slope: FloatArray,
    iterations: int,
    corrections: int,
) -> Climb:
    r"""Return the largest loss that L-BFGS-B finds at :math:`w + A z`, z within a box.

    Parameters
    ----------
    surface : LossSurface
        The loss.
    space : Space
        The matrix A.
    weights : Tensor, shape (layout.size,)
        Weights w.
    half : ndarray of float64, shape (p,)
        Half the widths of the box.
    begin : ndarray of float64, shape (p,)
        Where the search begins, in units of `half`.
    loss : float
        The loss at `weights`.
    slope : ndarray of float64, shape (p,)
        A' times its gradient there.
    iterations, corrections : int
        At most so many; and how many pairs of vectors L-BFGS-B keeps.

    Notes
    -----
    Variables are in units of the box, and the loss in units of the mean over them of what its
    gradient raises it by at the box's face: neither the units of the loss nor the size of the box
    decides how far the first step goes or when the search stops.

    References
    ----------
    Byrd, Lu, Nocedal, Zhu (1995), "A limited memory algorithm for bound constrained optimization".
    """
    # Its stubs know only objectives of float64 arrays of one fixed shape.
    minimize: Any = optimize.minimize
    row = torch.empty_like(weights)
    best, evaluations, steps = loss, 0, 0
    scale = float(np.sum(np.abs(half * slope))) / max(int(np.count_nonzero(slope)), 1) or 1.0

    def objective(u: FloatArray) -> tuple[float, FloatArray]:
        nonlocal best, evaluations
        if not u.any():
            return 0.0, -half * slope / scale
        moved = torch.from_numpy(space.lift(half * u)).to(weights)
        value = surface.gradient(weights + moved, row)
        evaluations += 1
        if not math.isfinite(value):
            best = value
            raise _NotFiniteError
        best = max(best, value)
        pulled = space.pull(row.cpu().numpy().astype(np.float64))
        return (loss - value) / scale, -half * pulled / scale

    def stepped(_: FloatArray) -> None:
        nonlocal steps
        steps += 1

    try:
        found = minimize(
            objective,
            begin,
            jac=True,
            method="L-BFGS-B",
            bounds=optimize.Bounds(-np.ones_like(half), np.ones_like(half)),
            callback=stepped,
            options={"maxiter": iterations, "maxcor": corrections},
        )
    except _NotFiniteError:
        return Climb(best, steps, evaluations, False)
    return Climb(best, steps, evaluations, found.status == 0)
