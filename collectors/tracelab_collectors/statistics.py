"""Statistics: norms, moments and log moments of every layer, exact over all coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.moments import moments, squared_norms
from tracelab_collectors.scheduled import Scheduled

__all__ = ["Statistics"]

QUANTITIES = ("gradient", "weight", "update", "displacement")


@dataclass(frozen=True)
class Statistics(Scheduled):
    """Per-layer statistics of gradients, weights, updates or displacements, and the distance.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    quantities : sequence of {"gradient", "weight", "update", "displacement"}
        What statistics are of. The update of step t is ``w_{t+1} - w_t``, its displacement
        ``w_t - w_0`` from the weights at the start, of which ``distance`` is the norm: recorded
        in any case.

    Raises
    ------
    UsageError
        If a quantity is unknown or the schedule is invalid.

    Notes
    -----
    A layer without a gradient (or an update) at a step has NaN in all statistics of it. Of a layer
    that is sharded over processes each records its part; a part without coordinates has the norm 0
    and no mean.
    """

    every: InitVar[int | Schedule] = 1
    quantities: Sequence[str] = ("gradient", "weight")
    name: str = "statistics"
    kind: str = field(default="statistics", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        for quantity in self.quantities:
            if quantity not in QUANTITIES or isinstance(self.quantities, str):
                raise UsageError(
                    f"Statistics(quantities={self.quantities!r}) must be a sequence of "
                    f"{', '.join(QUANTITIES)}"
                )

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run; the distance is from the weights at its start."""
        layout = self.layout(run)
        start = run.start_weights(layout)
        quantities = [quantity for quantity in QUANTITIES if quantity in self.quantities]

        def reduce(block: Block) -> dict[str, Tensor]:
            displacement = block.sources["weight"] - start
            arrays = {"distance": squared_norms(displacement, layout).sqrt()}
            for quantity in quantities:
                moved = quantity == "displacement"
                found = moments(displacement if moved else block.sources[quantity], layout)
                for row, layer in block.missing.get(quantity, ()):
                    for values in found.values():
                        values[row, layer] = torch.nan
                arrays |= {f"{quantity}_{name}": values for name, values in found.items()}
            return arrays

        reads = frozenset({*quantities, "weight"} - {"displacement"})
        return Recording(layout, reduce, reads=reads, from_start=True)
