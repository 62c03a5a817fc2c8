"""MicroBatches: the gradients that a step's backward passes add up, as free samples of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

from torch import Tensor

from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sample, Sketch, validate
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.sketching import lack, sketcher

__all__ = ["MicroBatches"]


@dataclass(frozen=True)
class MicroBatches(Scheduled):
    r"""What each backward pass of a step adds to the gradient, in this process.

    The weights stand still between the backward passes of a step, so that micro-batch gradients
    are samples of gradient noise that cost no further pass. In data parallelism a process sees its
    own gradient here, before it is averaged: recorded with ``attach(..., rank=...)`` on every
    rank, they are as many samples as there are ranks times passes.

    Recorded is :math:`a_b = \nabla(c_b L_b)` with the factor :math:`c_b` that the loop multiplies
    a micro-batch's loss by (often one over their number), unscaled, as the group ``micro_batches``
    of kind ``noise``: sketches (step, batch, layer, ...) and :math:`\|a_b\|^2`.

    Parameters
    ----------
    batches : int
        Backward passes of a step that are recorded. A step with fewer has NaN in the rest; of one
        with more the first are kept, and the group ``steps`` says how many there were.
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    sketch : Sketch or sequence of Sketch
        How gradients are kept; at most one of each kind.
    batch_size : int, optional
        Examples per micro-batch, which analyses then know.

    Raises
    ------
    UsageError
        If a number is out of range, or the sketches or the schedule are invalid.

    References
    ----------
    McCandlish, Kaplan, Amodei et al. (2018), "An empirical model of large-batch training",
    arXiv:1812.06162, Appendix A.1: noise scale from gradients of two batch sizes.
    """

    every: InitVar[int | Schedule] = 1
    batches: int = 2
    sketch: Sketch | Sequence[Sketch] = (Project(256), Sample(64))
    batch_size: int | None = None
    name: str = "micro_batches"
    kind: str = field(default="noise", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        at_least(1, **{"MicroBatches' batches": self.batches})
        if self.batch_size is not None:
            at_least(1, **{"MicroBatches' batch_size": self.batch_size})
        object.__setattr__(self, "sketch", validate(self.sketch))

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run."""
        layout = self.layout(run)
        sketches = validate(self.sketch)
        sketch = sketcher(sketches, layout, dtype=run.dtype, device=run.device)

        def reduce(block: Block) -> dict[str, Tensor]:
            passes = block.sources["passes"]
            rows = passes.reshape(-1, layout.size)
            arrays = {**sketch(rows), "squared_norm": squared_norms(rows, layout)}
            lack(arrays, block.missing.get("passes", ()))
            return {name: each.unflatten(0, passes.shape[:2]) for name, each in arrays.items()}

        attrs = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return Recording(layout, reduce, sketches=sketches, attrs=attrs, passes=self.batches)
