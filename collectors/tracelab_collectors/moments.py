"""Per-layer statistics of flat buffers, by sums over chunks that never overflow."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tracelab_collectors.layout import CHUNK, Layout
from tracelab_collectors.sketching import stretches

__all__ = ["MOMENTS", "moments", "squared_norms"]

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
    chunks = rows.unflatten(1, (-1, CHUNK))
    sums = torch.empty((_SUMS, *chunks.shape[:2]), dtype=torch.float64, device=rows.device)
    peaks = torch.empty(chunks.shape[:2], dtype=torch.float64, device=rows.device)
    cpu = rows.device.type == "cpu"
    for row in (slice(i, i + 1) for i in range(len(rows))) if cpu else (slice(None),):
        for start, end in stretches(layout.size, CHUNK, rows.device):
            part = slice(start // CHUNK, end // CHUNK)
            peaks[row, part], sums[:, row, part] = _chunk_sums(chunks[row, part])
    per_layer, abs_max = _by_layer(sums, layout), _by_layer(peaks, layout, largest=True)
    power1, power2, power3, power4, present, log1, log2, nonfinite = per_layer.unbind(0)
    count = torch.tensor(layout.numel, dtype=torch.float64, device=rows.device)
    log_mean = log1 / present
    return {
        "norm": power2.sqrt(),
        "mean": power1 / count,
        "moment2": power2 / count,
        "moment3": power3 / count,
        "moment4": power4 / count,
        "abs_max": abs_max,
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
    sums = torch.empty((len(rows), layout.size // CHUNK), dtype=torch.float64, device=rows.device)
    for index, row in enumerate(rows):
        for start, end in stretches(layout.size, CHUNK, rows.device):
            exact = row[start:end].double()
            squares = (exact * exact).unflatten(0, (-1, CHUNK))
            sums[index, start // CHUNK : end // CHUNK] = squares.sum(-1)
    return _by_layer(sums, layout)


_SUMS = 8


def _chunk_sums(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest absolute value of each chunk, and its sums.

    Values are divided by the chunk's largest before they are raised to a power: fourth powers of
    float32 gradients would underflow below 1e-10.
    """
    absolute = values.abs()
    peak = absolute.amax(-1)
    scale, nonfinite = peak, torch.zeros_like(peak)
    # On a CPU the usual case, all finite, is seen for free; elsewhere looking would wait.
    if values.device.type != "cpu" or not bool(peak.isfinite().all()):
        finite = absolute.isfinite()
        nonfinite = (~finite).sum(-1).to(peak.dtype)
        absolute = torch.where(finite, absolute, 0.0)
        scale = absolute.amax(-1)
    scale = torch.where(scale > 0, scale, 1.0)
    inverse = scale.unsqueeze(-1)
    scaled = values / inverse
    squared = scaled * scaled
    nonzero = absolute.sign()
    absolute.div_(inverse)
    logs = absolute.clamp_min_(torch.finfo(values.dtype).tiny).log_().mul_(nonzero)
    present, log1, log2 = nonzero.sum(-1), logs.sum(-1), (logs * logs).sum(-1)
    powers = [scaled.sum(-1), squared.sum(-1), scaled.mul_(squared).sum(-1)]
    powers.append(squared.mul_(squared).sum(-1))
    exact, ln = scale.double(), scale.double().log()
    count, first, second = present.double(), log1.double(), log2.double()
    return peak.double(), torch.stack(
        [
            *(power.double() * exact**k for k, power in enumerate(powers, start=1)),
            count,
            first + count * ln,
            second + 2 * ln * first + count * ln**2,
            nonfinite.double(),
        ]
    )


def _by_layer(chunks: Tensor, layout: Layout, *, largest: bool = False) -> Tensor:
    """Return sums (or maxima) over each layer's chunks, the last dimension."""
    bounds = [start // CHUNK for start in layout.starts]
    parts = [chunks[..., start:end] for start, end in itertools.pairwise(bounds)]
    return torch.stack([part.amax(-1) if largest else part.sum(-1) for part in parts], -1)
