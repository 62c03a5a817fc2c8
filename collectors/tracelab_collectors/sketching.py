"""Sketches of flat buffers in torch, with the signs and coordinates of `tracelab.sketch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracelab.sketch import Full, Project, Sample, Sketch
from tracelab_collectors import kernels
from tracelab_collectors.layout import Layout

__all__ = ["ARRAYS", "Sketcher", "device_fold", "sketcher"]

Sketcher: TypeAlias = Callable[[Tensor], dict[str, Tensor]]

ARRAYS: Mapping[type, str] = {Project: "projected", Sample: "sampled", Full: "full"}
"""Name of the array that each kind of sketch fills."""


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
        ``full`` (row, coordinate), whichever were asked for. Where layers are sharded, all the
        coordinates that are here are ``sampled`` ones: ``full`` are those of whole layers.
    """
    bound = {
        _array(sketch, layout): _bind(sketch, layout, dtype=dtype, device=device)
        for sketch in sketches
    }
    return lambda rows: {name: apply(rows) for name, apply in bound.items()}


def _array(sketch: Sketch, layout: Layout) -> str:
    name = ARRAYS[type(sketch)]
    return "sampled" if name == "full" and layout.shards is not None else name


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
        flat = layout.flat(signs, dtype=dtype, device=device)
        apply = _host_fold if device.type == "cpu" else device_fold
        return partial(apply, sketch, layout, flat)
    kept = [
        torch.from_numpy(indices + (start - within))
        for indices, start, within in zip(
            layout.kept(sketch), layout.starts, layout.within, strict=False
        )
    ]
    index = torch.cat(kept).to(device)
    return lambda rows: rows.index_select(-1, index)


def _host_fold(sketch: Project, layout: Layout, signs: Tensor, rows: Tensor) -> Tensor:
    projected = rows.new_empty(len(rows), len(layout.names), sketch.k)
    phases = np.array(layout.within) % sketch.period
    kernels.fold(
        rows.numpy(), signs.numpy(), *layout.spans, phases, sketch.period, projected.numpy()
    )
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
