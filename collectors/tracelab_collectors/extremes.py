"""A measure as its mean, which remembers the smallest and the largest value of an example."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tracelab_collectors.evaluation import Measure

__all__ = ["Extremes"]


class Extremes:
    """The mean of a measure that may give one value an example, and the extremes of its values.

    Parameters
    ----------
    measure : callable
        ``measure(model, batch)`` returns the mean of the batch, or one value an example.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean of a batch."""
        values = self._measure(model, batch).double()
        if values.ndim and values.numel():
            # What is no number stays so in both.
            low, high = torch.aminmax(values.detach())
            self._low = low if self._low is None else torch.minimum(self._low, low)
            self._high = high if self._high is None else torch.maximum(self._high, high)
        return values.mean()

    def seen(self) -> tuple[float, float]:
        """Return the smallest and the largest value of an example so far; NaN of means alone."""
        if self._low is None or self._high is None:
            return math.nan, math.nan
        return float(self._low), float(self._high)
