"""Workers: gradient and weights of each process of a job, before they are averaged."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Project
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.layout import Layout
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.sketching import lack, sketcher

__all__ = ["Workers", "variables"]

DEFAULT = Project(256)


@dataclass(frozen=True)
class Workers(Scheduled):
    r"""What this process has by itself: its own gradient and its weights.

    For data-parallel training, local SGD and gossip, recorded with ``attach(..., rank=...)`` on
    every rank, which analyses of the whole job then read side by side. Nothing is sent between
    processes: every rank projects by the same signs, so that distances and inner products between
    ranks are those of their sketches.

    The gradient is the sum of what the step's backward passes add in this process,
    :math:`g = \sum_b a_b` with :math:`a_b = \nabla(c_b L_b)`: before data parallelism averages it
    over processes, and before clipping. Weights are those before the step. Both have a leading
    dimension ``worker`` of one.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    batches : int
        Backward passes of a step. With two or more their scatter tells how noisy the worker's
        gradient is. A layer's row is NaN where a step has more, or none.
    sketch : Project
        How gradient and weights are kept; the same on every rank. Norms are exact.

    Raises
    ------
    UsageError
        If a number is out of range, the sketch is no projection, or weights are sharded: then a
        rank has no weights of its own.
    """

    every: InitVar[int | Schedule] = 1
    batches: int = 1
    sketch: Project = DEFAULT
    name: str = "worker"
    kind: str = field(default="workers", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        at_least(1, **{"Workers' batches": self.batches})
        if not isinstance(self.sketch, Project):
            raise UsageError(
                f"Workers' sketch must be a Project(k), got {self.sketch!r}; "
                "distances between ranks follow from projections alone"
            )

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run."""
        layout = self.layout(run)
        if layout.shards is not None:
            raise UsageError(
                f"{self.whose}: weights are sharded over ranks, and none has weights of its own; "
                "record Gradients, Statistics or Weights"
            )
        sketch = sketcher((self.sketch,), layout, dtype=run.dtype, device=run.device)
        batches = self.batches

        def reduce(block: Block) -> dict[str, Tensor]:
            heard = _heard(block, batches + 1, layout)
            passes, weights = block.sources["passes"], block.sources["weight"]
            total = _sum(passes, heard, layout)
            squares = squared_norms(passes.reshape(-1, layout.size), layout)
            added = torch.where(heard, squares.unflatten(0, passes.shape[:2]), 0.0).sum(1)
            count = heard.sum(1)
            # The last pass that is listened to must not be there.
            lost = heard[:, -1] | (count == 0)
            norm = squared_norms(total, layout)
            # Of a sum of independent passes: P times the variance of one, divisor P - 1.
            variance = (count * added - norm) / (count - 1)
            gradient = sketch(total)
            lack(gradient, lost.nonzero().tolist())
            arrays = {
                "gradient_projected": gradient["projected"],
                "gradient_squared_norm": norm.masked_fill(lost, torch.nan),
                "gradient_variance": variance.masked_fill(lost | (count < 2), torch.nan),
                "weight_projected": sketch(weights)["projected"],
                "weight_squared_norm": squared_norms(weights, layout),
            }
            return {name: array.unsqueeze(1) for name, array in arrays.items()}

        return Recording(
            layout,
            reduce,
            reads=frozenset({"weight"}),
            attrs={"project": {"k": self.sketch.k, "seed": self.sketch.seed}},
            variables=variables("float64" if run.dtype == torch.float64 else "float32"),
            # One more, which tells that the gradient is not all of what was recorded.
            passes=batches + 1,
        )


def variables(dtype: str = "float32") -> tuple[Variable, ...]:
    """Return what a group of workers holds, its projections in `dtype`."""
    layer = ("step", "worker", "layer")
    direction = (*layer, "direction")
    gradient, square = "loss/weight", "(loss/weight)^2"
    return (
        Variable("gradient_projected", direction, gradient, dtype, "of a worker's own gradient"),
        Variable("gradient_squared_norm", layer, square, description="its squared norm, exact"),
        Variable(
            "gradient_variance",
            layer,
            square,
            description="trace of the covariance of its noise, from the step's backward passes",
        ),
        Variable("weight_projected", direction, "weight", dtype, "of a worker's weights"),
        Variable("weight_squared_norm", layer, "weight^2", description="their squared norm, exact"),
    )


def _heard(block: Block, count: int, layout: Layout) -> Tensor:
    """Return which passes reached which layers, as booleans (row, pass, layer)."""
    passes = block.sources["passes"]
    heard = torch.ones(len(passes) * count, len(layout.names), dtype=torch.bool)
    for place, layer in block.missing.get("passes", ()):
        heard[place, layer] = False
    return heard.view(len(passes), count, -1).to(passes.device)


def _sum(passes: Tensor, heard: Tensor, layout: Layout) -> Tensor:
    """Return the sum (row, layout.size) of those passes that reached each layer."""
    total = passes.clone()
    for row, which, layer in (~heard).nonzero().tolist():
        start = layout.starts[layer]
        total[row, which, start : start + layout.numel[layer]] = 0.0
    return total.sum(1)
