"""What a collector is: a frozen value that says, of a run, what it reads and how to reduce it.

A collector never touches the model, the optimizer or the store. The session copies what it asks
for, at the steps of its schedule, into blocks of several steps, and hands these to its function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Sketch
from tracelab_collectors.layout import Layout

__all__ = [
    "Block",
    "Collector",
    "Loss",
    "Places",
    "Recording",
    "Run",
    "Source",
    "local_part",
    "select_layers",
]

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
Places: TypeAlias = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Source:
    """Something that is copied of every layer, before the optimizer's step.

    Parameters
    ----------
    name : str
        Its key in `Block.sources`. The names ``gradient``, ``pre_clip``, ``weight`` and ``update``
        are the session's own: a recording reads these by name alone.
    read : callable
        A parameter, the optimizer's state of it and the parameter group it is in, to a tensor of
        the parameter's shape; None where there is none. It runs in the training thread, without
        a graph.
    """

    name: str
    read: Callable[[Tensor, Mapping[str, Any], Mapping[str, Any]], Tensor | None]


@dataclass(frozen=True, slots=True)
class Block:
    """Copies of what a collector reads, at several steps.

    Parameters
    ----------
    steps : tuple of int
        The steps, one per row.
    sources : mapping of str to Tensor, shape (row, layout.size)
        Flat copies: ``gradient`` and ``weight`` at the step, ``pre_clip`` what the gradient was
        before it was clipped, ``update`` of the step, and a recording's own sources.
    missing : mapping of str to sequence of (row, layer)
        By source: layers that had none at a step; their copies are NaN. Of ``passes``, whose
        second dimension is taken together with the rows'.
    """

    steps: tuple[int, ...]
    sources: Mapping[str, Tensor]
    missing: Mapping[str, Places] = field(default_factory=dict)


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
    reads : frozenset of str or Source
        What the session copies for it: ``gradient``, ``pre_clip``, ``weight``, ``update``, or
        sources of its own.
    sketches : tuple of Sketch
        The sketches in its arrays.
    attrs : mapping
        What its group says beside the kind's own attributes.
    variables : tuple of Variable
        The group's arrays, if its kind is not one of the schema's.
    passes : int
        How many backward passes of a step it reads, as ``passes`` in `Block.sources`, of shape
        (row, passes, layout.size): what each added to the gradient in this process, NaN where a
        step had fewer.
    probe : bool
        Whether `reduce` measures by itself: it is called in the training thread, at one step.
    final : bool
        Whether a last row is recorded at the end of the run, after the last step.
    from_start : bool
        Whether it measures from `Run.start_weights`, which the trace then keeps.
    listen : callable, optional
        Called once everything is ready to record, to register hooks of its own, which must neither
        raise nor change training; returns what removes them, called once at the end.
    """

    layout: Layout
    reduce: Reduce
    reads: frozenset[str | Source] = frozenset()
    sketches: tuple[Sketch, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    variables: tuple[Variable, ...] = ()
    passes: int = 0
    probe: bool = False
    final: bool = False
    from_start: bool = False
    listen: Callable[[], Callable[[], None]] | None = None


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
    optimizers : tuple of Optimizer
        Those that train the layers.
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
    optimizers: tuple[torch.optim.Optimizer, ...] = ()

    def weights(self, layout: Layout) -> Tensor:
        """Return a flat copy of the present weights of a layout's layers."""
        tensors = [local_part(self.parameters[name].detach()) for name in layout.names]
        return layout.flat(tensors, dtype=self.dtype, device=self.device)

    def start_weights(self, layout: Layout) -> Tensor:
        """Return a flat copy of the weights at the start: present ones unless the run goes on."""
        if self.start is None:
            return self.weights(layout)
        own = self.layout
        ends = dict(zip(own.names, accumulate(own.numel), strict=True))
        tensors = [
            self.start[ends[name] - numel : ends[name]].view(shape)
            for name, numel, shape in zip(layout.names, layout.numel, layout.shapes, strict=True)
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
        """Kind of that group: one of the schema's, or one whose arrays its recording declares."""

    @property
    def schedule(self) -> Schedule:
        """When it records."""

    def bind(self, run: Run) -> Recording:
        """Return its recording of one run; a UsageError here stops before training starts."""


def local_part(tensor: Any) -> Tensor:
    """Return the part of a tensor that this process has: all of it, unless it is sharded."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


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
