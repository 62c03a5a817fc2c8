"""Weights: a sketch of the weights, their norm and their distance from the start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field

from torch import Tensor

from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sketch, validate
from tracelab_collectors.collector import Block, Recording, Run, select_layers
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.sketching import sketcher

__all__ = ["Weights"]

DEFAULT = Project(1024)


@dataclass(frozen=True)
class Weights:
    """The weights at the start of a step, and once more at the end of the run.

    Parameters
    ----------
    every, start, stop, steps
        Schedule; see `tracelab.schedule.Schedule`. The final weights, after the last step, are
        recorded whatever it says.
    sketch : Sketch or sequence of Sketch
        How the weights are kept; at most one of each kind. Norm and distance from the weights at
        the start are exact in any case.
    layers, exclude : str, optional
        Regular expressions that whole layer names must, or must not, match.
    name : str
        Name of the group.

    Raises
    ------
    UsageError
        If the sketches or the schedule are invalid.
    """

    every: InitVar[int | Schedule] = 10
    sketch: Sketch | Sequence[Sketch] = DEFAULT
    start: InitVar[int] = 0
    stop: InitVar[int | None] = None
    steps: InitVar[Iterable[int] | None] = None
    layers: str | None = None
    exclude: str | None = None
    name: str = "weights"
    kind: str = field(default="weights", init=False)
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
        """Return the recording of one run; the distance is from the weights at its start."""
        layout = select_layers(run.layout, self.layers, self.exclude, f"collector {self.name!r}")
        sketches = validate(self.sketch)
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
