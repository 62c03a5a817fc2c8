"""The gradient over all of the data, in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from tracelab_collectors import kernels
from tracelab_collectors.frozen import FrozenLoss
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout, copy_into

__all__ = ["full_gradient"]


def full_gradient(
    loss: FrozenLoss, examples: Indexed, layout: Layout, row: Tensor, *, piece: int
) -> tuple[Tensor, Tensor]:
    """Return the gradient over all examples and the loss, pieces weighted by their sizes.

    Parameters
    ----------
    loss : FrozenLoss
        The mean over a batch's examples.
    examples : Indexed
        The data.
    layout : Layout
        Layers of the gradient.
    row : Tensor, shape (layout.size,)
        Memory of a piece's gradient; padding zero.
    piece : int
        Examples per piece.

    Returns
    -------
    gradient : Tensor of float64, shape (1, layout.size)
    mean_loss : Tensor of float64, shape ()
    """
    views = layout.views(row)
    total = torch.zeros(1, layout.size, dtype=torch.float64, device=row.device)
    mean_loss = torch.zeros((), dtype=torch.float64, device=row.device)
    for indices in torch.arange(examples.size).split(piece):
        value, gradients = loss.gradient(examples.batch(indices))
        copy_into(views, gradients)
        weight = len(indices) / examples.size
        if row.device.type == "cpu":
            kernels.accumulate(row.numpy(), weight, total[0].numpy())
        else:
            total.add_(row.unsqueeze(0), alpha=weight)
        mean_loss.add_(value.reshape(()), alpha=weight)
    return total, mean_loss
