"""Whether two weights lie in one basin: the descent from each, and the loss between the ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["POINTS", "descend", "rise"]

# Points of a segment between its ends at which the loss is measured.
POINTS = 15

Losses: TypeAlias = Callable[[Tensor], Tensor]
Gradients: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


def descend(gradients: Gradients, start: Tensor, rate: float, steps: int) -> tuple[Tensor, Tensor]:
    r"""Return where gradient descent ends, and the loss there.

    A step :math:`-\eta g` is taken if the loss falls and the gradient changes by at most half of
    its norm, :math:`\|g' - g\| \le \|g\| / 2`, so that the path keeps to that of the gradient's
    flow: on a line a step that crosses a minimum or a saddle changes the gradient by more. Then
    :math:`\eta` grows by half; otherwise it is halved, and nothing moves.

    Parameters
    ----------
    gradients : callable
        Weights, shape (point, weight), to losses (point,) and gradients (point, weight).
    start : Tensor, shape (point, weight)
        Where each begins.
    rate : float
        The first :math:`\eta`, in weight^2/loss.
    steps : int
        How often a step is tried: so many gradients, and one more.

    Returns
    -------
    ends : Tensor, shape (point, weight)
    losses : Tensor of float64, shape (point,)
    """
    at = start
    losses, slopes = gradients(at)
    rates = torch.full((len(at), 1), rate, dtype=at.dtype, device=at.device)
    for _ in range(steps):
        tried = at - rates * slopes
        lower, turned = gradients(tried)
        bent = _norm(turned - slopes) <= _norm(slopes) / 2
        taken = ((lower < losses) & bent).unsqueeze(1)
        at = torch.where(taken, tried, at)
        slopes = torch.where(taken, turned, slopes)
        losses = torch.where(taken.squeeze(1), lower, losses)
        rates = torch.where(taken, rates * 1.5, rates / 2)
    return at, losses


def rise(losses: Losses, start: Tensor, end: Tensor, higher: Tensor) -> Tensor:
    """Return by how much the loss on a segment rises above its higher end.

    Parameters
    ----------
    losses : callable
        Weights, shape (point, weight), to losses (point,).
    start, end : Tensor, shape (1 or segment, weight), (segment, weight)
        Ends of the segments.
    higher : Tensor of float64, shape (segment,)
        The higher of the losses at both ends.

    Returns
    -------
    Tensor of float64, shape (segment,)
        At the highest of `POINTS` points between; NaN where one has no loss, below 0 where all
        are lower than the higher end.
    """
    shares = torch.arange(1, POINTS + 1, dtype=end.dtype, device=end.device) / (POINTS + 1)
    highest = torch.full_like(higher, -torch.inf)
    for share in shares:
        highest = torch.maximum(highest, losses(start + share * (end - start)))
    return highest - higher


def _norm(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms
