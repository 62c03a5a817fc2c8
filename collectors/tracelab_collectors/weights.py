"""Weights: a sketch of the weights, their norm and their distance from the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

from torch import Tensor

from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sketch, validate
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.scheduled import Scheduled
from tracelab_collectors.sketching import sketcher

__all__ = ["Weights"]

DEFAULT = Project(1024)


@dataclass(frozen=True)
class Weights(Scheduled):
    """The weights at the start of a step, and once more at the end of the run.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`. The
        final weights, after the last step, are recorded whatever the schedule says.
    sketch : Sketch or sequence of Sketch
        How the weights are kept; at most one of each kind. Norm and distance from the weights at
        the start are exact in any case.

    Raises
    ------
    UsageError
        If the sketches or the schedule are invalid.
    """

    every: InitVar[int | Schedule] = 10
    sketch: Sketch | Sequence[Sketch] = DEFAULT
    name: str = "weights"
    kind: str = field(default="weights", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "sketch", validate(self.sketch, histogram=True))

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run; the distance is from the weights at its start."""
        layout = self.layout(run)
        sketches = validate(self.sketch, histogram=True)
        apply = sketcher(sketches, layout, dtype=run.dtype, device=run.device)
        start = run.start_weights(layout)

        def reduce(block: Block) -> dict[str, Tensor]:
            weights = block.sources["weight"]
            return {
                **apply(weights),
                "norm": squared_norms(weights, layout).sqrt(),
                "distance": squared_norms(weights - start, layout).sqrt(),
            }

        return Recording(
            layout,
            reduce,
            reads=frozenset({"weight"}),
            sketches=sketches,
            final=True,
            from_start=True,
        )
