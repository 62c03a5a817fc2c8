"""Where each layer lies in one flat buffer that holds a copy of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracelab.sketch import Full, Sample, Sketch
from tracelab.typing import IntArray

__all__ = ["CHUNK", "Layout", "copy_into"]

Shape: TypeAlias = tuple[int, ...]

CHUNK = 256
"""Layers start at multiples of this many elements, so that sums over chunks never mix layers."""


@dataclass(frozen=True)
class Layout:
    """The layers of one buffer, in order; padding between them is zero and stays zero.

    Parameters
    ----------
    names : tuple of str
        Layer names.
    shapes : tuple of tuple of int
        Their shapes; of a sharded layer, the shape of the part that this process has.
    offsets : tuple of int
        Index of each layer's first coordinate in the whole network: what signs depend on.
    shards : tuple of (start, numel), optional
        Where layers are sharded: index in the layer of the first coordinate that is here, and the
        number of coordinates of the whole layer.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    offsets: tuple[int, ...]
    shards: tuple[tuple[int, int], ...] | None = None

    @cached_property
    def numel(self) -> tuple[int, ...]:
        """Number of weights of each layer that are here."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def whole(self) -> tuple[int, ...]:
        """Number of weights of each layer, wherever they are."""
        return self.numel if self.shards is None else tuple(numel for _, numel in self.shards)

    @cached_property
    def within(self) -> tuple[int, ...]:
        """Index in each layer of its first coordinate that is here."""
        if self.shards is None:
            return (0,) * len(self.names)
        return tuple(start for start, _ in self.shards)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First element of each layer in the buffer, and after them the buffer's size."""
        starts = [0]
        for numel in self.numel:
            starts.append(starts[-1] + -(-numel // CHUNK) * CHUNK)
        return tuple(starts)

    @cached_property
    def spans(self) -> tuple[IntArray, IntArray]:
        """First element and number of weights of each layer."""
        return np.array(self.starts[:-1]), np.array(self.numel)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of each layer, by name."""
        return {name: position for position, name in enumerate(self.names)}

    @property
    def size(self) -> int:
        """Elements of the buffer, padding included."""
        return self.starts[-1]

    def select(self, names: Iterable[str]) -> Layout:
        """Return the layout of some of the layers, in this layout's order."""
        wanted = set(names)
        kept = [index for index, name in enumerate(self.names) if name in wanted]
        return Layout(
            tuple(self.names[index] for index in kept),
            tuple(self.shapes[index] for index in kept),
            tuple(self.offsets[index] for index in kept),
            None if self.shards is None else tuple(self.shards[index] for index in kept),
        )

    def views(self, row: Tensor) -> list[Tensor]:
        """Return one view per layer, in the layer's own shape, into a buffer of shape (size,)."""
        return [
            row[start : start + numel].view(shape)
            for start, numel, shape in zip(self.starts, self.numel, self.shapes, strict=False)
        ]

    def flat(
        self, tensors: Sequence[Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return a buffer of shape (size,) that holds a copy of one tensor per layer."""
        row = torch.zeros(self.size, dtype=dtype, device=device)
        copy_into(self.views(row), tensors)
        return row

    def kept(self, sketch: Full | Sample) -> list[IntArray]:
        """Return, of each layer, the indices in the layer of the coordinates kept here, sorted."""
        kept: list[IntArray] = []
        for name, start, numel, whole in zip(
            self.names, self.within, self.numel, self.whole, strict=True
        ):
            if isinstance(sketch, Full):
                kept.append(np.arange(start, start + numel))
            else:
                indices = sketch.indices(name, whole)
                kept.append(indices[(indices >= start) & (indices < start + numel)])
        return kept

    def coordinates(self, sketches: Sequence[Sketch]) -> tuple[IntArray, IntArray] | None:
        """Return the layer and the index of each coordinate kept; None where all are, in order."""
        for sketch in sketches:
            if isinstance(sketch, Sample) or (isinstance(sketch, Full) and self.shards):
                kept = self.kept(sketch)
                sizes = [each.size for each in kept]
                return (
                    np.repeat(np.arange(len(kept), dtype=np.int32), sizes),
                    np.concatenate([np.empty(0, dtype=np.int64), *kept]),
                )
        return None


def copy_into(views: list[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy one tensor per view; densifying sums the repeated indices of a sparse one."""
    dense = [each if each.layout == torch.strided else each.to_dense() for each in tensors]
    torch._foreach_copy_(views, dense)
