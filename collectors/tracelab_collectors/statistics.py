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

QUANTITIES = ("gradient", "weight", "update")


@dataclass(frozen=True)
class Statistics(Scheduled):
    """Per-layer statistics of gradients, weights or updates, and the distance from the start.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    quantities : sequence of {"gradient", "weight", "update"}
        What statistics are of. The update of step t is ``w_{t+1} - w_t``.

    Raises
    ------
    UsageError
        If a quantity is unknown or the schedule is invalid.

    Notes
    -----
    A layer without a gradient at a step has NaN in all its gradient's statistics.
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
            arrays: dict[str, Tensor] = {}
            for quantity in quantities:
                found = moments(block.sources[quantity], layout)
                if quantity == "gradient":
                    for row, layer in block.missing.get("gradient", ()):
                        for values in found.values():
                            values[row, layer] = torch.nan
                arrays |= {f"{quantity}_{name}": values for name, values in found.items()}
            moved = block.sources["weight"] - start
            return arrays | {"distance": squared_norms(moved, layout).sqrt()}

        reads = frozenset({*quantities, "weight"})
        return Recording(layout, reduce, reads=reads, from_start=True)
