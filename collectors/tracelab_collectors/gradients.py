"""Gradients: a sketch of the gradient that the optimizer uses, of what it was, or of the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field

from torch import Tensor

from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sketch, validate
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.scheduled import Scheduled
from tracelab_collectors.sketching import lack, sketcher

__all__ = ["Gradients"]

DEFAULT = Project(256)


# Of each stage: what the session copies, the group's kind, and its name unless another is given.
STAGES: Mapping[str, tuple[str, str, str]] = {
    "pre_clip": ("pre_clip", "gradients", "pre_clip"),
    "post_clip": ("gradient", "gradients", "gradients"),
    "update": ("update", "updates", "updates"),
}


@dataclass(frozen=True)
class Gradients(Scheduled):
    """The gradient as the optimizer sees it: accumulated, averaged, unscaled, clipped.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    sketch : Sketch or sequence of Sketch
        How the gradient is kept; at most one of each kind.
    stage : {"post_clip", "pre_clip", "update"}
        ``post_clip`` is what the optimizer uses. ``pre_clip`` is what the backward passes left,
        averaged over processes and unscaled, before anything changed it: it is copied behind every
        backward pass of a step at which it is due. ``update`` is the move of the weights,
        ``w_{t+1} - w_t``. They are recorded into groups called ``gradients``, ``pre_clip`` and
        ``updates``.

    Raises
    ------
    UsageError
        If the sketches, the stage or the schedule are invalid.

    Notes
    -----
    A layer without a gradient at a step has NaN in its row, and no counts in its histogram. NaN and
    infinite gradients are recorded as they are. An optimizer that evaluates a closure several times
    a step, such as LBFGS, has the gradient of the first evaluation recorded: the one at the weights
    of the step.
    """

    every: InitVar[int | Schedule] = 1
    sketch: Sketch | Sequence[Sketch] = DEFAULT
    stage: str = "post_clip"
    kind: str = field(default="gradients", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        if self.stage not in STAGES:
            raise UsageError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        _, kind, name = STAGES[self.stage]
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "name", self.name or name)
        object.__setattr__(self, "sketch", validate(self.sketch, histogram=True))

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run."""
        layout = self.layout(run)
        sketches = validate(self.sketch, histogram=True)
        apply = sketcher(sketches, layout, dtype=run.dtype, device=run.device)
        source = STAGES[self.stage][0]

        def reduce(block: Block) -> dict[str, Tensor]:
            arrays = apply(block.sources[source])
            lack(arrays, block.missing.get(source, ()))
            return arrays

        return Recording(
            layout,
            reduce,
            reads=frozenset({source}),
            sketches=sketches,
            attrs={"stage": self.stage},
        )
