"""Per-layer statistics of flat buffers, by sums that neither overflow nor underflow."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from tracelab_collectors import kernels
from tracelab_collectors.layout import CHUNK, Layout

__all__ = ["MOMENTS", "device_squares", "device_sums", "moments", "squared_norms"]

MOMENTS = (
    "norm",
    "mean",
    "moment2",
    "moment3",
    "moment4",
    "abs_max",
    "log_abs_mean",
    "log_abs_var",
    "zeros",
    "nonfinite",
)
"""Names of the statistics, as the schema has them behind the name of a quantity."""


def moments(rows: Tensor, layout: Layout) -> dict[str, Tensor]:
    r"""Return the statistics of each layer.

    Norm, raw moments :math:`\frac1n \sum_i x_i^k` and largest absolute value are over all
    coordinates, so that one NaN shows in them; mean and variance of :math:`\ln|x_i|` are over the
    finite coordinates that are not zero (NaN where there is none).

    Parameters
    ----------
    rows : Tensor, shape (row, layout.size)
        Flat buffers, padding zero.
    layout : Layout
        What they hold.

    Returns
    -------
    dict of str to Tensor of float64, shape (row, layer)
        By the names in `MOMENTS`; ``zeros`` and ``nonfinite`` are counts.
    """
    if rows.device.type == "cpu":
        sums = torch.from_numpy(kernels.sums(rows.numpy(), *layout.spans))
    else:
        sums = device_sums(rows, layout)
    power1, power2, power3, power4, present, log1, log2, nonfinite, peak = sums.unbind(-1)
    count = torch.tensor(layout.numel, dtype=torch.float64, device=rows.device)
    log_mean = log1 / present
    return {
        "norm": power2.sqrt(),
        "mean": power1 / count,
        "moment2": power2 / count,
        "moment3": power3 / count,
        "moment4": power4 / count,
        "abs_max": peak,
        "log_abs_mean": log_mean,
        "log_abs_var": (log2 / present - log_mean**2).clamp_min(0.0),
        "zeros": count - present - nonfinite,
        "nonfinite": nonfinite,
    }


def squared_norms(rows: Tensor, layout: Layout) -> Tensor:
    """Return the squared Euclidean norm of each layer, squared and summed in float64.

    Parameters
    ----------
    rows : Tensor, shape (row, layout.size)
        Flat buffers, padding zero.
    layout : Layout
        What they hold.

    Returns
    -------
    Tensor of float64, shape (row, layer)
    """
    if rows.device.type != "cpu":
        return device_squares(rows, layout)
    out = np.empty((len(rows), len(layout.names)))
    kernels.squares(rows.numpy(), *layout.spans, out)
    return torch.from_numpy(out)


def device_squares(rows: Tensor, layout: Layout) -> Tensor:
    """Return what `squared_norms` does, by torch operations, on any device."""
    return _by_layer(rows.unflatten(1, (-1, CHUNK)).double().square().sum(-1), layout)


def device_sums(rows: Tensor, layout: Layout) -> Tensor:
    """Return what `kernels.sums` does, by torch operations, on any device.

    Values are divided by the largest of their chunk before they are raised to a power: fourth
    powers of float32 gradients would underflow below 1e-10.
    """
    values = rows.unflatten(1, (-1, CHUNK))
    absolute = values.abs()
    peak = absolute.amax(-1)
    finite = absolute.isfinite()
    largest = torch.where(finite, absolute, 0.0).amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    scaled = values / scale
    squared = scaled * scaled
    exact = scale.squeeze(-1).double()
    powers = (scaled, squared, scaled * squared, squared * squared)
    present = finite & (absolute > 0)
    logs = torch.where(present, absolute, 1.0).log().double()
    sums = [
        *(power.sum(-1).double() * exact**k for k, power in enumerate(powers, start=1)),
        present.sum(-1).double(),
        logs.sum(-1),
        logs.square().sum(-1),
        (~finite).sum(-1).double(),
    ]
    by_layer = _by_layer(torch.stack(sums), layout)
    peaks = _by_layer(peak.double(), layout, largest=True)
    return torch.cat([by_layer, peaks.unsqueeze(0)]).movedim(0, -1)


def _by_layer(chunks: Tensor, layout: Layout, *, largest: bool = False) -> Tensor:
    """Return sums (or maxima) over each layer's chunks, the last dimension."""
    bounds = [start // CHUNK for start in layout.starts]
    parts = [chunks[..., start:end] for start, end in itertools.pairwise(bounds)]
    return torch.stack(
        # A shard may have no coordinate of a layer; nothing has no largest value.
        [part.amax(-1) if largest and part.shape[-1] else part.sum(-1) for part in parts],
        -1,
    )
