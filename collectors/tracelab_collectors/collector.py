"""What a collector is: a frozen value that says, of a run, what it reads and how to reduce it.

A collector never touches the model, the optimizer or the store. The session copies what it asks
for, at the steps of its schedule, into blocks of several steps, and hands these to its function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Sketch
from tracelab_collectors.layout import Layout

__all__ = ["Block", "Collector", "Recording", "Run", "Source", "select_layers"]

Source: TypeAlias = Literal["gradient", "weight", "update"]
Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, slots=True)
class Block:
    """Copies of what a collector reads, at several steps.

    Parameters
    ----------
    steps : tuple of int
        The steps, one per row.
    sources : mapping of Source to Tensor, shape (row, layout.size)
        Flat copies: ``gradient`` and ``weight`` at the step, ``update`` of the step.
    missing : tuple of (row, layer)
        Layers that had no gradient at a step; their copies are NaN.
    """

    steps: tuple[int, ...]
    sources: Mapping[Source, Tensor]
    missing: tuple[tuple[int, int], ...] = ()


Reduce: TypeAlias = Callable[[Block], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Recording:
    """A collector during one run.

    Parameters
    ----------
    layout : Layout
        The layers it records.
    reduce : callable
        Block to arrays whose first dimension is the block's rows: new tensors, not views of the
        block, whose memory is used again. Pure, and called away from the training thread, unless
        `probe`.
    reads : frozenset of Source
        What the session copies for it.
    sketches : tuple of Sketch
        The sketches in its arrays.
    attrs : mapping
        What its group says beside the kind's own attributes.
    probe : bool
        Whether `reduce` measures by itself: it is called in the training thread, at one step.
    final : bool
        Whether a last row is recorded at the end of the run, after the last step.
    from_start : bool
        Whether it measures from `Run.start_weights`, which the trace then keeps.
    """

    layout: Layout
    reduce: Reduce
    reads: frozenset[Source] = frozenset()
    sketches: tuple[Sketch, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    probe: bool = False
    final: bool = False
    from_start: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """What collectors may know of a run before it starts.

    Parameters
    ----------
    layout : Layout
        All layers of the trace.
    parameters : mapping of str to Tensor
        The layers themselves, by name.
    model : nn.Module
        The model, without the wrappers of ``torch.compile`` and data parallelism.
    dtype, device : torch.dtype, torch.device
        Of copies: float32, or float64 where a layer has it; the first layer's device.
    seed : int
        The session's seed.
    loss, data : callable or dataset, optional
        As given to ``attach``.
    data_size : int, optional
        Number of examples in `data`.
    start : Tensor of shape (weight,), optional
        All weights at the start of the run, in order, where the run goes on.
    """

    layout: Layout
    parameters: Mapping[str, Tensor]
    model: nn.Module
    dtype: torch.dtype
    device: torch.device
    seed: int = 0
    loss: Loss | None = None
    data: Any = None
    data_size: int | None = None
    start: Tensor | None = None

    def weights(self, layout: Layout) -> Tensor:
        """Return a flat copy of the present weights of a layout's layers."""
        tensors = [self.parameters[name].detach() for name in layout.names]
        return layout.flat(tensors, dtype=self.dtype, device=self.device)

    def start_weights(self, layout: Layout) -> Tensor:
        """Return a flat copy of the weights at the start: present ones unless the run goes on."""
        if self.start is None:
            return self.weights(layout)
        tensors = [
            self.start[offset : offset + numel].view(shape)
            for offset, numel, shape in zip(
                layout.offsets, layout.numel, layout.shapes, strict=True
            )
        ]
        return layout.flat(tensors, dtype=self.dtype, device=self.device)


@runtime_checkable
class Collector(Protocol):
    """What ``attach(collectors=[...])`` takes: any value with these attributes."""

    @property
    def name(self) -> str:
        """Name of the group it records into."""

    @property
    def kind(self) -> str:
        """Kind of that group, one of the schema's."""

    @property
    def schedule(self) -> Schedule:
        """When it records."""

    def bind(self, run: Run) -> Recording:
        """Return its recording of one run; a UsageError here stops before training starts."""


def select_layers(layout: Layout, layers: str | None, exclude: str | None, whose: str) -> Layout:
    """Return the layers whose whole name matches `layers` and does not match `exclude`.

    Parameters
    ----------
    layout : Layout
        Layers to choose from.
    layers, exclude : str, optional
        Regular expressions.
    whose : str
        Who asks, for the error.

    Raises
    ------
    UsageError
        If an expression is invalid or no layer is left.
    """
    try:
        kept = [
            name
            for name in layout.names
            if (layers is None or re.fullmatch(layers, name))
            and (exclude is None or not re.fullmatch(exclude, name))
        ]
    except re.error as error:
        raise UsageError(
            f"{whose}: layers={layers!r}, exclude={exclude!r} is no regular expression: {error}"
        ) from error
    if not kept:
        raise UsageError(
            f"{whose}: layers={layers!r}, exclude={exclude!r} leaves no layer; "
            f"there are: {', '.join(layout.names)}"
        )
    return layout.select(kept)
