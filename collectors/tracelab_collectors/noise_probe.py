"""NoiseProbe: many minibatch gradients and the full-data gradient, at the same frozen weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sample, Sketch, splitmix64, validate
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.frozen import FrozenLoss, forked_generators
from tracelab_collectors.full_data import full_gradient
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout, copy_into
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.sketching import Sketcher, sketcher

__all__ = ["NoiseProbe"]


@dataclass(frozen=True)
class NoiseProbe(Scheduled):
    r"""Gradient noise :math:`\zeta_b = g_b(w) - g(w)` at frozen weights.

    At each step of its schedule `batches` independent minibatches are drawn and their gradients
    :math:`g_b` measured at the weights of that step, without a trace left in the training run:
    generators, buffers and gradients are as if nothing had happened. Recorded are their sketches
    (not centred), :math:`\|g_b\|^2`, the losses, and with `full_gradient` the exact full-data
    gradient :math:`g` in the same sketch, :math:`\|g\|^2` and :math:`\|g_b - g\|^2`, exact in all
    dimensions.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    batches : int
        Minibatches per probe.
    batch_size : int
        Examples per minibatch.
    replacement : bool
        Whether a minibatch's examples are drawn with replacement. Minibatches are independent of
        each other in either case.
    sketch : Sketch or sequence of Sketch
        How gradients are kept; at most one of each kind.
    full_gradient : bool
        Whether to measure the full-data gradient: one pass over the data per probe.
    data_batch_size : int, optional
        Examples per piece of that pass. Default: `batch_size`, so that batch normalisation, whose
        loss is no mean over examples, sees batches of the same size.

    Raises
    ------
    UsageError
        If a number is out of range, or the sketches or the schedule are invalid.

    Notes
    -----
    ``loss(model, batch)`` must be the mean over the batch's examples: pieces of the full-data pass
    are weighted by their sizes. The model stays in its mode, so that in training mode dropout's
    masks and random augmentation are part of the noise, and of the full-data gradient (one draw
    per piece). Seeds derive from the session's seed and the step. Forward hooks and Python state
    of the user's modules do see the probe's forward passes. Models under ``torch.compile`` or data
    parallelism are probed without the wrapper.
    """

    every: InitVar[int | Schedule] = 200
    batches: int = 512
    batch_size: int = 128
    replacement: bool = True
    sketch: Sketch | Sequence[Sketch] = (Project(256), Sample(64))
    full_gradient: bool = True
    data_batch_size: int | None = None
    name: str = "noise"
    kind: str = field(default="noise", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "sketch", validate(self.sketch))
        if self.data_batch_size is None:
            object.__setattr__(self, "data_batch_size", self.batch_size)
        for name in ("batches", "batch_size", "data_batch_size"):
            at_least(1, **{f"NoiseProbe's {name}": getattr(self, name)})

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run.

        Raises
        ------
        UsageError
            If the run has no loss or no data, or fewer examples than a minibatch drawn without
            replacement.
        """
        examples, loss = Indexed.of_run(run, self.whose)
        if not self.replacement and self.batch_size > examples.size:
            raise UsageError(
                f"{self.whose}: batch_size={self.batch_size} without replacement exceeds the "
                f"{examples.size} examples of data; lower it or set replacement=True"
            )
        layout = self.layout(run)
        sketches = validate(self.sketch)
        sketch = sketcher(sketches, layout, dtype=run.dtype, device=run.device)

        def measure(block: Block) -> dict[str, Tensor]:
            # The loss is bound anew: a parameter's memory can have moved since the last probe.
            parameters = {name: run.parameters[name] for name in layout.names}
            frozen = FrozenLoss(loss, run.model, parameters)
            row = torch.zeros(layout.size, dtype=run.dtype, device=run.device)
            measurement = _Measurement(self, frozen, examples, layout, sketch, row)
            # Consecutive steps and seeds must not share draws: both go through a hash.
            run_seed = int(splitmix64(run.seed, 0, 1)[0])
            return measurement.rows(int(splitmix64(run_seed, block.steps[0], 1)[0]) >> 1)

        return Recording(
            layout,
            measure,
            sketches=sketches,
            attrs={
                "batch_size": self.batch_size,
                "replacement": self.replacement,
                "n_data": examples.size,
            },
            probe=True,
        )


@dataclass(frozen=True)
class _Measurement:
    """What one probe needs."""

    probe: NoiseProbe
    loss: FrozenLoss
    examples: Indexed
    layout: Layout
    sketch: Sketcher
    row: Tensor
    views: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", self.layout.views(self.row))

    def rows(self, seed: int) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        arrays: dict[str, Tensor] = {}
        full = None
        with forked_generators(seed):
            if self.probe.full_gradient:
                full, arrays["mean_loss"] = full_gradient(
                    self.loss,
                    self.examples,
                    self.layout,
                    self.row,
                    piece=self.probe.data_batch_size or 1,
                )
                arrays["mean_squared_norm"] = squared_norms(full, self.layout)[0]
                for name, values in self.sketch(full.to(self.row.dtype)).items():
                    arrays[f"mean_{name}"] = values[0]
            generator = torch.Generator().manual_seed(seed)
            for index in range(self.probe.batches):
                row = self._minibatch(generator, full)
                for name, values in row.items():
                    if index == 0:
                        shape = (self.probe.batches, *values.shape)
                        arrays[name] = torch.empty(shape, dtype=values.dtype)
                    arrays[name][index] = values
        return {name: values.unsqueeze(0) for name, values in arrays.items()}

    def _minibatch(self, generator: torch.Generator, full: Tensor | None) -> dict[str, Tensor]:
        """Return what is recorded of one minibatch."""
        size, count = self.examples.size, self.probe.batch_size
        if self.probe.replacement:
            indices = torch.randint(size, (count,), generator=generator)
        else:
            indices = torch.randperm(size, generator=generator)[:count]
        loss, gradients = self.loss.gradient(self.examples.batch(indices))
        row = self._flat(gradients)
        found = self.sketch(row)
        found["squared_norm"] = squared_norms(row, self.layout)
        if full is not None:
            found["squared_deviation"] = squared_norms(row - full, self.layout)
        return {"loss": loss.reshape(()).double()} | {n: each[0] for n, each in found.items()}

    def _flat(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the gradient in the one buffer that every minibatch uses, shape (1, size)."""
        copy_into(self.views, gradients)
        return self.row.unsqueeze(0)
