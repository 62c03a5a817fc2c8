"""Gradients: a sketch of the gradient that the optimizer uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sketch, validate
from tracelab_collectors.collector import Block, Recording, Run, select_layers
from tracelab_collectors.sketching import sketcher

__all__ = ["Gradients"]

DEFAULT = Project(256)


@dataclass(frozen=True)
class Gradients:
    """The gradient as the optimizer sees it: accumulated, unscaled, clipped.

    Parameters
    ----------
    every, start, stop, steps
        Schedule; see `tracelab.schedule.Schedule`.
    sketch : Sketch or sequence of Sketch
        How the gradient is kept; at most one of each kind.
    layers, exclude : str, optional
        Regular expressions that whole layer names must, or must not, match.
    name : str
        Name of the group.

    Raises
    ------
    UsageError
        If the sketches or the schedule are invalid.

    Notes
    -----
    A layer without a gradient at a step has NaN in its row. NaN and infinite gradients are
    recorded as they are.
    """

    every: InitVar[int | Schedule] = 1
    sketch: Sketch | Sequence[Sketch] = DEFAULT
    start: InitVar[int] = 0
    stop: InitVar[int | None] = None
    steps: InitVar[Iterable[int] | None] = None
    layers: str | None = None
    exclude: str | None = None
    name: str = "gradients"
    kind: str = field(default="gradients", init=False)
    schedule: Schedule = field(init=False)

    def __post_init__(
        self,
        every: int | Schedule,
        start: int,
        stop: int | None,
        steps: Iterable[int] | None,
    ) -> None:
        object.__setattr__(self, "schedule", Schedule.of(every, start, stop, steps))
        object.__setattr__(self, "sketch", validate(self.sketch))

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run."""
        layout = select_layers(run.layout, self.layers, self.exclude, f"collector {self.name!r}")
        sketches = validate(self.sketch)
        apply = sketcher(sketches, layout, dtype=run.dtype, device=run.device)

        def reduce(block: Block) -> dict[str, Tensor]:
            arrays = apply(block.sources["gradient"])
            for row, layer in block.missing:
                # Directions that no weight of a small layer falls into would be zero.
                if "projected" in arrays:
                    arrays["projected"][row, layer] = torch.nan
            return arrays

        return Recording(
            layout,
            reduce,
            reads=frozenset({"gradient"}),
            sketches=sketches,
        )
