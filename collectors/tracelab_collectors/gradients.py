"""Gradients: a sketch of the gradient that the optimizer uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sketch, validate
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.scheduled import Scheduled
from tracelab_collectors.sketching import sketcher

__all__ = ["Gradients"]

DEFAULT = Project(256)


@dataclass(frozen=True)
class Gradients(Scheduled):
    """The gradient as the optimizer sees it: accumulated, unscaled, clipped.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    sketch : Sketch or sequence of Sketch
        How the gradient is kept; at most one of each kind.

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
    name: str = "gradients"
    kind: str = field(default="gradients", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "sketch", validate(self.sketch))

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run."""
        layout = self.layout(run)
        sketches = validate(self.sketch)
        apply = sketcher(sketches, layout, dtype=run.dtype, device=run.device)

        def reduce(block: Block) -> dict[str, Tensor]:
            arrays = apply(block.sources["gradient"])
            for row, layer in block.missing.get("gradient", ()):
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
