"""Sketches of flat buffers in torch, with the signs, coordinates and bins of `tracelab.sketch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracelab.errors import UsageError
from tracelab.sketch import Full, Histogram, Project, Sample, Sketch
from tracelab.typing import IntArray
from tracelab_collectors import kernels
from tracelab_collectors.collector import Places
from tracelab_collectors.layout import CHUNK, Layout

__all__ = ["ARRAYS", "Sketcher", "device_counter", "device_fold", "lack", "sketcher"]

Sketcher: TypeAlias = Callable[[Tensor], dict[str, Tensor]]

ARRAYS: Mapping[type, str] = {
    Project: "projected",
    Sample: "sampled",
    Full: "full",
    Histogram: "histogram",
}
"""Name of the array that each kind of sketch fills."""

# Bounds what is held of a buffer beside it, on a device: the bins of so many values, in int64.
PIECE = 1 << 22
MOST_COUNTED = (1 << 32) - 1


def sketcher(
    sketches: Sequence[Sketch], layout: Layout, *, dtype: torch.dtype, device: torch.device
) -> Sketcher:
    """Return a function from flat buffers to their sketches.

    Parameters
    ----------
    sketches : sequence of Sketch
        At most one of each kind.
    layout : Layout
        What the buffers hold.
    dtype, device : torch.dtype, torch.device
        Of the buffers.

    Returns
    -------
    callable
        Tensor of shape (row, layout.size) to ``projected`` (row, layer, k), ``sampled`` and
        ``full`` (row, coordinate), ``histogram`` (row, layer, bin), whichever were asked for. Where
        layers are sharded, all the coordinates that are here are ``sampled`` ones: ``full`` are
        those of whole layers.

    Raises
    ------
    UsageError
        If a layer has more weights than a histogram counts.
    """
    bound = {
        _array(sketch, layout): _bind(sketch, layout, dtype=dtype, device=device)
        for sketch in sketches
    }
    return lambda rows: {name: apply(rows) for name, apply in bound.items()}


def _array(sketch: Sketch, layout: Layout) -> str:
    name = ARRAYS[type(sketch)]
    return "sampled" if name == "full" and layout.shards is not None else name


def lack(arrays: Mapping[str, Tensor], places: Places) -> None:
    """Mark the sketches of what was missing, whose copies are NaN.

    Parameters
    ----------
    arrays : mapping of str to Tensor
        What `sketcher` made of the copies; changed in place.
    places : sequence of (row, layer)
        Layers that had nothing at a step.
    """
    for row, layer in places:
        # Directions that no weight of a small layer falls into would be zero.
        if "projected" in arrays:
            arrays["projected"][row, layer] = torch.nan
        if "histogram" in arrays:
            arrays["histogram"][row, layer] = 0


def _bind(
    sketch: Sketch, layout: Layout, *, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Tensor]:
    if isinstance(sketch, Project):
        signs = [
            torch.from_numpy(sketch.signs(offset, numel)).view(shape)
            for offset, numel, shape in zip(
                layout.offsets, layout.numel, layout.shapes, strict=True
            )
        ]
        # A byte each: folding is bound by what is read from memory.
        flat = layout.flat(signs, dtype=torch.int8, device=device)
        if device.type != "cpu":
            return partial(device_fold, sketch, layout, flat)
        phases, period = np.array(layout.within) % sketch.period, sketch.period
        return partial(_host_fold, sketch.k, period, phases, layout, flat.numpy())
    if isinstance(sketch, Histogram):
        _check_countable(layout)
        if device.type != "cpu":
            return device_counter(sketch, layout, device)
        return partial(_host_counts, sketch, layout, sketch.table())
    kept = [
        torch.from_numpy(indices + (start - within))
        for indices, start, within in zip(
            layout.kept(sketch), layout.starts, layout.within, strict=False
        )
    ]
    index = torch.cat(kept).to(device)
    return lambda rows: rows.index_select(-1, index)


def _host_fold(
    k: int, period: int, phases: IntArray, layout: Layout, signs: IntArray, rows: Tensor
) -> Tensor:
    projected = rows.new_empty(len(rows), len(layout.names), k)
    kernels.fold(rows.numpy(), signs, *layout.spans, phases, period, projected.numpy())
    return projected


def device_fold(sketch: Project, layout: Layout, signs: Tensor, rows: Tensor) -> Tensor:
    """Return the projections of flat buffers, by torch operations, on any device."""
    period = sketch.period
    residues = rows.new_zeros(len(rows), len(layout.names), period)
    signed = rows * signs
    for layer, (start, numel) in enumerate(zip(layout.starts, layout.numel, strict=False)):
        whole = start + numel // period * period
        if whole > start:
            residues[:, layer] = signed[:, start:whole].unflatten(1, (-1, period)).sum(1)
        residues[:, layer, : start + numel - whole] += signed[:, whole : start + numel]
        if layout.within[layer]:
            residues[:, layer] = residues[:, layer].roll(layout.within[layer] % period, -1)
    projected = residues[..., : sketch.k].clone()
    projected[..., : period - sketch.k] += residues[..., sketch.k :]
    return projected


def _check_countable(layout: Layout) -> None:
    for name, numel in zip(layout.names, layout.whole, strict=True):
        if numel > MOST_COUNTED:
            raise UsageError(
                f"layer {name!r} has {numel} weights, and a histogram counts up to {MOST_COUNTED}; "
                "leave it out with exclude=, or the histogram"
            )


def _host_counts(sketch: Histogram, layout: Layout, table: IntArray, rows: Tensor) -> Tensor:
    # Like torch, numpy rounds what float32 cannot hold to infinity, and warns of it.
    with np.errstate(over="ignore"):
        values = rows.numpy().astype(np.float32, copy=False)
    counts = np.zeros((len(rows), len(layout.names), sketch.bins), dtype=np.uint32)
    words, shift = values.view(np.int32), kernels.MANTISSA - sketch.mantissa_bits
    kernels.histogram(words, *layout.spans, table, shift, sketch.zero, counts)
    return torch.from_numpy(counts)


def device_counter(
    sketch: Histogram, layout: Layout, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return a function from flat buffers to their histograms, by torch operations, on any device.

    Sums of integers do not depend on their order: the counts are those of `Histogram.count`.
    Nothing in it waits for the device.
    """
    layers, bins = len(layout.names), sketch.bins
    sizes = torch.tensor(layout.starts).diff()
    padding = (sizes - torch.tensor(layout.numel)).to(device, torch.int32)
    # Of each chunk, the first bin of the layer it belongs to.
    first = torch.repeat_interleave(torch.arange(layers) * bins, sizes // CHUNK).to(device)
    table = torch.from_numpy(sketch.table()).to(device)
    one = torch.ones((), dtype=torch.int32, device=device)
    shift, leading = kernels.MANTISSA - sketch.mantissa_bits, len(table) - 1
    minus, plus = sketch.infinite

    def count(rows: Tensor) -> Tensor:
        counts = torch.zeros(len(rows), layers * bins, dtype=torch.int32, device=device)
        for row, counted in zip(rows, counts, strict=True):
            for start in range(0, layout.size, PIECE):
                word = row[start : start + PIECE].to(torch.float32).view(torch.int32)
                magnitude = word & 0x7FFFFFFF
                place = table[(word >> shift) & leading].long()
                place.masked_fill_(magnitude == 0, sketch.zero)
                infinite = magnitude == kernels.INFINITE
                place.masked_fill_(infinite & (word < 0), minus)
                place.masked_fill_(infinite & (word > 0), plus)
                by_chunk = place.view(-1, CHUNK)
                by_chunk += first[start // CHUNK :][: len(by_chunk), None]
                counted.scatter_add_(0, place, one.expand(len(place)))
        by_layer = counts.view(len(rows), layers, bins)
        by_layer[..., sketch.zero] -= padding
        # A count of 2^31 or more has wrapped around in int32, and does so back.
        return by_layer.view(torch.uint32)

    return count
