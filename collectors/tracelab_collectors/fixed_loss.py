"""The loss of many replicas over the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracelab_collectors.generators import forked_generators
from tracelab_collectors.replicas import ReplicaLoss
from tracelab_collectors.stacking import Stacked

__all__ = ["EXAMPLES", "FixedLoss"]

EXAMPLES = 4096
"""Replicas that are computed at once have so many together at most."""


@dataclass(frozen=True)
class FixedLoss:
    """The loss over the fixed examples, of many replicas; random numbers are the same every time.

    Parameters
    ----------
    loss : ReplicaLoss
        The loss of a batch.
    batch : object
        The fixed examples.
    examples : int
        How many.
    seed : int
        Of whatever random numbers the model draws.
    """

    loss: ReplicaLoss
    batch: object
    examples: int
    seed: int

    @property
    def at_once(self) -> int:
        """Replicas side by side."""
        return max(1, EXAMPLES // self.examples) if self.loss.way.batched else 1

    def losses(self, weights: Sequence[Tensor], buffers: Sequence[Tensor]) -> Tensor:
        """Return the loss of each, float64, shape (replica,)."""
        batch, found = Stacked.shared(self.batch), []
        for rows in self._pieces(weights):
            with forked_generators(self.seed):
                found.append(
                    self.loss.losses([w[rows] for w in weights], [b[rows] for b in buffers], batch)
                )
        return torch.cat(found)

    def gradients(
        self, weights: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of each and its gradients, zero where a parameter is not used."""
        batch, losses, gradients = Stacked.shared(self.batch), [], []
        for rows in self._pieces(weights):
            some = [each[rows] for each in weights]
            with forked_generators(self.seed):
                found = self.loss.gradients(some, [b[rows] for b in buffers], batch)
            losses.append(found.losses)
            gradients.append([
                torch.zeros_like(each) if gradient is None else gradient
                for each, gradient in zip(some, found.gradients, strict=True)
            ])  # fmt: skip
        return torch.cat(losses), [torch.cat(each) for each in zip(*gradients, strict=True)]

    def _pieces(self, weights: Sequence[Tensor]) -> list[slice]:
        starts = range(0, len(weights[0]), self.at_once)
        return [slice(start, start + self.at_once) for start in starts]
