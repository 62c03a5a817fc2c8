"""The mean loss over examples, as a function of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tracelab_collectors.collector import Loss
from tracelab_collectors.evaluation import Measure
from tracelab_collectors.frozen import FrozenLoss
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout

__all__ = ["LossSurface", "mean_of"]


def mean_of(measure: Measure) -> Loss:
    """Return a measure that may give one value an example, such as an error, as its mean."""

    def mean(model: nn.Module, batch: Any) -> Tensor:
        return measure(model, batch).double().mean()

    return mean


class LossSurface:
    """The mean loss over the same examples, anywhere: flat weights to a number.

    Parameters
    ----------
    loss : FrozenLoss
        The mean over a batch's examples.
    examples : Indexed
        The data.
    indices : Tensor of int64
        Which examples.
    layout : Layout
        Layers of the weights; what a model has besides stays where it is.
    piece : int
        Examples per piece; one piece is fetched once.
    seed : int
        Of whatever random numbers the model draws: every pass over a piece draws the same.
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
        self._size = len(indices)
        self._layout = layout
        self._seed = seed
        self._kept = examples.batch(indices) if len(self._pieces) == 1 else None

    def value(self, weights: Tensor) -> float:
        """Return the loss at flat weights, shape (layout.size,), summed in float64."""
        views = self._layout.views(weights)
        return sum(share * float(self._loss.value(batch, views)) for share, batch in self._each())

    def gradient(self, weights: Tensor, out: Tensor) -> float:
        """Return the loss at flat weights and write its gradient to `out`."""
        views, parts = self._layout.views(weights), self._layout.views(out)
        total = 0.0
        out.zero_()
        for share, batch in self._each():
            value, found = self._loss.gradient(batch, views)
            dense = [each if each.layout == torch.strided else each.to_dense() for each in found]
            torch._foreach_add_(parts, [each.to(out.dtype) for each in dense], alpha=share)
            total += share * float(value)
        return total

    def _each(self) -> Iterator[tuple[float, Any]]:
        for number, indices in enumerate(self._pieces):
            batch = self._examples.batch(indices) if self._kept is None else self._kept
            with forked_generators(self._seed + number):
                yield len(indices) / self._size, batch
