"""Mean over examples, with its standard error, of values that come by batches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tracelab.errors import UsageError

__all__ = ["BatchMeans"]


class BatchMeans:
    """Mean and variance of batches as they come, in float64, where the values are.

    References
    ----------
    Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance", eq. (2.1).
    """

    def __init__(self, what: str, examples: int) -> None:
        self._what = what
        self._examples = examples
        self._weight = 0
        self._units = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def take(self, values: Any, count: int) -> None:
        """Take the mean of a batch of `count` examples, or one value of each.

        Raises
        ------
        UsageError
            If it is neither.
        """
        if not isinstance(values, Tensor) or (values.numel() != 1 and values.shape != (count,)):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UsageError(
                f"{self._what}(model, batch) must return the mean of the batch or one "
                f"value for each of its {count} examples, got {shape}"
            )
        each = values.detach().double().reshape(-1)
        mean = each.mean()
        within = (each - mean).square().sum()
        weight = self._weight + count
        moved = mean - self._mean
        self._squares = self._squares + within + moved**2 * (self._weight * count / weight)
        self._mean = self._mean + moved * (count / weight)
        self._weight = weight
        self._units += each.numel()

    @property
    def units(self) -> int:
        """How many values the standard error is from: its degrees of freedom and one."""
        return self._units

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the mean over examples and its standard error."""
        variance = torch.as_tensor(self._squares) / (self._units - 1 or math.nan)
        return torch.as_tensor(self._mean), (variance / self._examples).sqrt()
