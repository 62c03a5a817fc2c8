"""Sketches of flat buffers in torch, with the signs and coordinates of `tracelab.sketch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from tracelab.sketch import Full, Project, Sample, Sketch
from tracelab_collectors.layout import Layout

__all__ = ["ARRAYS", "sketcher", "stretches"]

Sketcher: TypeAlias = Callable[[Tensor], dict[str, Tensor]]

ARRAYS: Mapping[type, str] = {Project: "projected", Sample: "sampled", Full: "full"}

# torch runs an operation on up to 32,768 elements in the calling thread. Longer ones would start
# OpenMP threads of the background thread's own, which compete with those that train.
SERIAL = 32_768


def stretches(size: int, multiple: int, device: torch.device) -> list[tuple[int, int]]:
    """Return ranges that cover ``0 .. size``, cut at multiples of `multiple`.

    On a CPU each is small enough to stay in cache and in the calling thread; elsewhere there is
    one.
    """
    length = size if device.type != "cpu" else max(SERIAL // multiple, 1) * multiple
    return [(start, min(start + length, size)) for start in range(0, size, max(length, 1))]


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
        ``full`` (row, coordinate), whichever were asked for.
    """
    bound = {
        ARRAYS[type(sketch)]: _bind(sketch, layout, dtype=dtype, device=device)
        for sketch in sketches
    }
    return lambda rows: {name: apply(rows) for name, apply in bound.items()}


def _bind(
    sketch: Sketch, layout: Layout, *, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Tensor]:
    if isinstance(sketch, Project):
        return _projection(sketch, layout, dtype=dtype, device=device)
    spans = list(zip(layout.names, layout.numel, layout.starts, strict=False))
    if isinstance(sketch, Sample):
        kept = [torch.from_numpy(sketch.indices(name, n)) + start for name, n, start in spans]
    else:
        kept = [torch.arange(start, start + n) for _, n, start in spans]
    index = torch.cat(kept).to(device)
    return lambda rows: rows.index_select(-1, index)


def _projection(
    sketch: Project, layout: Layout, *, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Tensor]:
    period = sketch.period
    signs = layout.flat(
        [
            torch.from_numpy(sketch.signs(offset, numel)).view(shape)
            for offset, numel, shape in zip(
                layout.offsets, layout.numel, layout.shapes, strict=True
            )
        ],
        dtype=dtype,
        device=device,
    )
    spans = list(zip(layout.starts, layout.numel, strict=False))

    def project(rows: Tensor) -> Tensor:
        residues = rows.new_zeros(len(rows), len(spans), period)
        # One step at a time on a CPU, to stay within a stretch; all at once elsewhere.
        for block, into in zip(*map(_per_step, (rows, residues)), strict=True):
            for layer, (start, numel) in enumerate(spans):
                for begin, end in stretches(numel, period, device):
                    signed = (
                        block[:, start + begin : start + end] * signs[start + begin : start + end]
                    )
                    whole = (end - begin) // period * period
                    if whole:
                        into[:, layer] += signed[:, :whole].unflatten(1, (-1, period)).sum(1)
                    into[:, layer, : end - begin - whole] += signed[:, whole:]
        projected = residues[..., : sketch.k].clone()
        projected[..., : period - sketch.k] += residues[..., sketch.k :]
        return projected

    return project


def _per_step(rows: Tensor) -> Sequence[Tensor]:
    return rows.split(1) if rows.device.type == "cpu" else (rows,)
