"""Statistics of batch normalisation, computed anew at other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["recompute"]


def recompute(model: nn.Module, forward: Callable[[Any], Any], batches: Iterable[Any]) -> None:
    r"""Set running statistics to those of one pass over the data, in place.

    They are means over batches of what the batches have, weighted by their sizes: batch by batch
    with a momentum of :math:`b / (n + b)`, as Izmailov et al. (2018) do. Batch normalisation alone
    is in training mode meanwhile; everything else, dropout too, is as it was.

    Parameters
    ----------
    model : nn.Module
        The model; untouched where no module keeps running statistics.
    forward : callable
        Passes a batch through the model.
    batches : iterable of (object, int)
        Batches and numbers of their examples.
    """
    modules = [
        each
        for each in model.modules()
        if isinstance(each, _BatchNorm) and each.running_mean is not None
    ]
    if not modules:
        return
    kept = [(each.momentum, each.training) for each in modules]
    seen = 0
    try:
        for each in modules:
            each.reset_running_stats()
            each.training = True
        with torch.no_grad():
            for batch, size in batches:
                for each in modules:
                    each.momentum = size / (seen + size)
                forward(batch)
                seen += size
    finally:
        for each, (momentum, training) in zip(modules, kept, strict=True):
            each.momentum, each.training = momentum, training
