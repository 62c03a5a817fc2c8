"""How far vectors lie from a given one and from each other, in one pass over each of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tracelab_collectors import kernels
from tracelab_collectors.layout import Layout
from tracelab_collectors.moments import device_squares, moments

__all__ = ["Deviations"]


@dataclass(slots=True)
class Deviations:
    r"""Squared norms of flat vectors as they come, and their coordinates' mean and variance.

    Mean and sum of squared deviations are updated by Welford's recursion, in the vectors' own
    floating type:

    .. math:: m_k = m_{k-1} + (x_k - m_{k-1}) / k, \quad
              s_k = s_{k-1} + (x_k - m_{k-1})(x_k - m_k),

    so that the variance :math:`s_K / (K - 1)` is unbiased and suffers little from a mean that is
    large beside it: rounding by :math:`\epsilon |m|` changes it by about
    :math:`\epsilon |m| \sqrt{s_K} / K` a vector.

    Parameters
    ----------
    layout : Layout
        What the vectors hold.
    centre : Tensor of shape (layout.size,), optional
        From what distances are measured.
    moments : bool
        Whether mean and variance are kept: two vectors of memory.
    dtype, device : torch.dtype, torch.device
        Of the vectors.

    References
    ----------
    Welford (1962), "Note on a method for calculating corrected sums of squares and products",
    Technometrics 4(3); Knuth, The Art of Computer Programming 2, section 4.2.2, eqs. (15), (16).
    """

    layout: Layout
    centre: Tensor | None
    moments: bool
    dtype: torch.dtype
    device: torch.device
    count: int = field(default=0, init=False)
    mean: Tensor = field(init=False)
    _squares: Tensor = field(init=False)

    def __post_init__(self) -> None:
        size = self.layout.size if self.moments else 0
        self.mean = torch.zeros(size, dtype=self.dtype, device=self.device)
        self._squares = torch.zeros_like(self.mean)

    def take(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Take some more vectors.

        Parameters
        ----------
        vectors : Tensor, shape (vector, layout.size)
            Flat buffers, padding zero.

        Returns
        -------
        squared_norm, squared_distance : Tensor of float64, shape (vector, layer)
            Of each layer, squared and summed in float64; the distance is from `centre`, or from 0
            where there is none.
        """
        if vectors.device.type == "cpu":
            found = self._take_on_host(vectors)
        else:
            found = self._take_on_device(vectors)
        self.count += len(vectors)
        return found

    def variance(self) -> Tensor:
        """Return the variance of each coordinate, divisor ``count - 1``, shape (layout.size,)."""
        return self._squares / (self.count - 1)

    def summaries(self) -> dict[str, Tensor]:
        """Return the sums over each layer of the variance and of its square, shape (layer,).

        The first is the trace of the covariance matrix, without bias.
        """
        found = moments(self.variance().unsqueeze(0), self.layout)
        numel = torch.tensor(self.layout.numel, dtype=torch.float64, device=self.device)
        return {
            "variance_sum": found["mean"][0] * numel,
            "variance_square_sum": found["moment2"][0] * numel,
        }

    def _take_on_host(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        rows = vectors.numpy()
        out = np.empty((2, len(rows), len(self.layout.names)))
        kernels.deviations(
            rows,
            self.mean[:0].numpy() if self.centre is None else self.centre.numpy(),
            self.mean.numpy(),
            self._squares.numpy(),
            (1 / np.arange(self.count + 1, self.count + 1 + len(rows))).astype(rows.dtype),
            *self.layout.spans,
            out,
        )
        norm, distance = torch.from_numpy(out)
        return norm, distance

    def _take_on_device(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        if self.moments:
            for count, vector in enumerate(vectors, start=self.count + 1):
                delta = vector - self.mean
                self.mean.add_(delta, alpha=1 / count)
                self._squares.addcmul_(delta, vector - self.mean)
        norm = device_squares(vectors, self.layout)
        if self.centre is None:
            return norm, norm
        return norm, device_squares(vectors - self.centre, self.layout)
