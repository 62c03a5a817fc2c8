"""Products of a mean loss's Hessian with flat vectors, and Lanczos' recurrence on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from tracelab_collectors.frozen import FrozenLoss
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout, copy_into

__all__ = ["HessianProducts", "Krylov", "inner", "lanczos", "ritz"]

# Copies in float64 of so many numbers stay in the cache: whole ones cost seven times the reading.
_BLOCK = 1 << 15
# Relative to the largest coefficient so far: less than this is rounding.
_NOTHING = {torch.float32: 1e-5, torch.float64: 1e-12}


class HessianProducts:
    """The Hessian of the mean loss over examples, as a function of flat vectors.

    Parameters
    ----------
    loss : FrozenLoss
        The mean over a batch's examples.
    examples : Indexed
        The data.
    indices : Tensor of int64
        Which examples.
    layout : Layout
        Layers of the vectors.
    piece : int
        Examples per piece.
    seed : int
        Of whatever random numbers the model draws: every pass over a piece draws the same.

    Notes
    -----
    With one piece the graph of its gradient is kept, and a product takes one backward pass through
    it. With several, each product computes the gradient of each piece anew.
    """

    def __init__(
        self,
        loss: FrozenLoss,
        examples: Indexed,
        indices: Tensor,
        layout: Layout,
        *,
        piece: int,
        seed: int,
    ) -> None:
        self._loss = loss
        self._examples = examples
        self._pieces = indices.split(piece)
        self._share = [len(each) / len(indices) for each in self._pieces]
        self._layout = layout
        self._seed = seed
        self._kept = self._graph(0) if len(self._pieces) == 1 else None

    def _graph(self, piece: int) -> tuple[Tensor, ...]:
        batch = self._examples.batch(self._pieces[piece])
        with forked_generators(self._seed + piece):
            return self._loss.graph(batch)

    def gradient(self, row: Tensor) -> Tensor:
        """Return the flat gradient of the same loss, in memory like that of `row`."""
        total = torch.zeros_like(row)
        for piece, share in enumerate(self._share):
            found = self._kept or self._graph(piece)
            self._add(total, tuple(each.detach() for each in found), share)
        return total

    def __call__(self, row: Tensor) -> Tensor:
        """Return the product with a vector, shape (layout.size,), padding zero."""
        return self.several(row.unsqueeze(0))[0]

    def several(self, rows: Tensor) -> Tensor:
        """Return the products with vectors, shape (vector, layout.size): one graph a piece."""
        total = torch.zeros_like(rows)
        for piece, share in enumerate(self._share):
            gradient = self._kept or self._graph(piece)
            for row, out in zip(rows, total, strict=True):
                self._add(out, self._loss.product(gradient, self._layout.views(row)), share)
        return total

    def _add(self, total: Tensor, parts: tuple[Tensor, ...], share: float) -> None:
        views = self._layout.views(total)
        if len(self._share) == 1:
            copy_into(views, parts)
        else:
            torch._foreach_add_(views, list(parts), alpha=share)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return inner products over the last dimension, summed in float64."""
    if a.shape[-1] <= _BLOCK:
        return (a.double() * b.double()).sum(-1)
    blocks = zip(a.split(_BLOCK, -1), b.split(_BLOCK, -1), strict=True)
    total: Tensor = reduce(torch.add, ((x.double() * y.double()).sum(-1) for x, y in blocks))
    return total


@dataclass(frozen=True)
class Krylov:
    """What Lanczos' recurrence found.

    Parameters
    ----------
    diagonal, beside : Tensor of float64, shape (steps,)
        Its coefficients; NaN behind the step at which it ended, where `beside` is 0.
    basis : Tensor, shape (taken, size)
        Its orthonormal vectors, as many as steps were taken.
    """

    diagonal: Tensor
    beside: Tensor
    basis: Tensor


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Krylov:
    """Return Lanczos' recurrence, every vector orthogonalized against all before it.

    What the recurrence itself takes off is taken off first, in full; then all vectors before it
    once, and once more where that took away more than it left.

    Parameters
    ----------
    product : callable
        Of the matrix with a vector.
    start : Tensor, shape (size,)
        Where it begins; any length.
    steps : int
        How many at most.

    References
    ----------
    Lanczos, "An iteration method for the solution of the eigenvalue problem", 1950; Parlett, The
    Symmetric Eigenvalue Problem, 1998, section 13.8 (re-orthogonalization); Daniel, Gragg, Kaufman,
    Stewart, "Reorthogonalization and stable algorithms for updating the Gram-Schmidt QR
    factorization", 1976 (when once is enough).
    """
    diagonal, beside = torch.full((2, steps), math.nan, dtype=torch.float64)
    basis = start.new_empty(steps, start.numel())
    length = inner(start, start).sqrt()
    torch.div(start, length.to(start.dtype), out=basis[0])
    largest = beta = 0.0
    for step in range(steps):
        image = product(basis[step])
        alpha = float(inner(image, basis[step]))
        image = image.sub(basis[step], alpha=alpha)
        if step:
            image.sub_(basis[step - 1], alpha=beta)
        known = basis[: step + 1]
        for _ in range(2):
            along = known @ image
            image.addmv_(known.t(), along, alpha=-1)
            beta = float(inner(image, image).sqrt())
            if float(along.norm()) <= beta:
                break
        if not (math.isfinite(alpha) and math.isfinite(beta)):
            return Krylov(diagonal, beside, basis[: step + 1])
        diagonal[step] = alpha
        largest = max(largest, abs(alpha), beta)
        # Nothing but rounding is left: the vectors span all that the start can reach.
        ended = beta <= _NOTHING[start.dtype] * largest
        beside[step] = 0.0 if ended else beta
        if ended or step + 1 == steps:
            return Krylov(diagonal, beside, basis[: step + 1])
        torch.div(image, beta, out=basis[step + 1])
    raise AssertionError("steps is at least 1")


def ritz(found: Krylov, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest Ritz values, their vectors and residuals; NaN where there are fewer.

    Parameters
    ----------
    found : Krylov
        A recurrence.
    top : int
        How many.

    Returns
    -------
    values : Tensor of float64, shape (top,)
        Falling.
    vectors : Tensor, shape (top, size)
        Orthonormal.
    residuals : Tensor of float64, shape (top,)
        Norms of the product less the value times the vector.
    """
    taken = len(found.basis)
    values = torch.full((top,), torch.nan, dtype=torch.float64)
    residuals = values.clone()
    vectors = found.basis.new_full((top, found.basis.shape[1]), torch.nan)
    if not found.diagonal[:taken].isfinite().all():
        return values, vectors, residuals
    beside = found.beside[: taken - 1]
    matrix = found.diagonal[:taken].diag() + beside.diag(1) + beside.diag(-1)
    eigenvalues, directions = torch.linalg.eigh(matrix)
    kept = min(top, taken)
    chosen = directions.flip(1)[:, :kept]
    values[:kept] = eigenvalues.flip(0)[:kept]
    residuals[:kept] = (found.beside[taken - 1] * chosen[-1]).abs()
    vectors[:kept] = chosen.T.to(found.basis) @ found.basis
    return values, vectors, residuals
