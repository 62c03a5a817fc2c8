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
from tracelab_collectors.deviations import Deviations
from tracelab_collectors.frozen import FrozenLoss, forked_generators
from tracelab_collectors.full_data import full_gradient
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout, copy_into
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.sketching import Sketcher, sketcher

__all__ = ["NoiseProbe"]

MOMENTS = (None, "layers", "coordinates")


@dataclass(frozen=True)
class NoiseProbe(Scheduled):
    r"""Gradient noise :math:`\zeta_b = g_b(w) - g(w)` at frozen weights.

    At each step of its schedule `batches` independent minibatches are drawn and their gradients
    :math:`g_b` measured at the weights of that step, without a trace left in the training run:
    generators, buffers and gradients are as if nothing had happened. Recorded are their sketches
    (not centred), :math:`\|g_b\|^2`, the losses, and with `full_gradient` the exact full-data
    gradient :math:`g` in the same sketch, :math:`\|g\|^2` and :math:`\|g_b - g\|^2`, exact in all
    dimensions; with `moments` also the mean of the minibatch gradients and the variance of each
    coordinate, unbiased and in full dimension.

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
    moments : {"layers", "coordinates"}, optional
        Whether to measure mean and variance of every coordinate over the minibatches, which takes
        two vectors of memory during the probe: ``"coordinates"`` records both, 8 bytes a weight
        and probe, and with them what ``"layers"`` does, each layer's sums of the variance (the
        trace of the covariance) and of its square.
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
    moments: str | None = None
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
        if self.moments not in MOMENTS:
            raise UsageError(
                "NoiseProbe's moments must be 'layers', 'coordinates' or None, "
                f"got {self.moments!r}"
            )
        if self.moments and self.batches < 2:
            raise UsageError(
                "NoiseProbe's moments need at least 2 batches, of which there is a variance; "
                "raise batches or leave moments out"
            )

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
        centre = None
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
                rounded = full.to(self.row.dtype)
                for name, values in self.sketch(rounded).items():
                    arrays[f"mean_{name}"] = values[0]
                centre = rounded[0]
            deviations = Deviations(
                self.layout,
                centre,
                moments=self.probe.moments is not None,
                dtype=self.row.dtype,
                device=self.row.device,
            )
            generator = torch.Generator().manual_seed(seed)
            slots: dict[str, Sequence[Tensor]] = {}
            for index in range(self.probe.batches):
                for name, values in self._minibatch(generator, deviations).items():
                    if index == 0:
                        arrays[name] = values.new_empty((self.probe.batches, *values.shape))
                        slots[name] = arrays[name].unbind()
                    slots[name][index].copy_(values)
        if self.probe.moments is not None:
            arrays |= deviations.summaries()
        if self.probe.moments == "coordinates":
            arrays["batch_mean"] = self._weights(deviations.mean)
            arrays["variance"] = self._weights(deviations.variance())
        return {name: values.unsqueeze(0) for name, values in arrays.items()}

    def _minibatch(self, generator: torch.Generator, deviations: Deviations) -> dict[str, Tensor]:
        """Return what is recorded of one minibatch."""
        size, count = self.examples.size, self.probe.batch_size
        if self.probe.replacement:
            indices = torch.randint(size, (count,), generator=generator)
        else:
            indices = torch.randperm(size, generator=generator)[:count]
        loss, gradients = self.loss.gradient(self.examples.batch(indices))
        found = {name: each[0] for name, each in self.sketch(self._flat(gradients)).items()}
        found["squared_norm"], distance = deviations.take(self.row)
        if self.probe.full_gradient:
            found["squared_deviation"] = distance
        found["loss"] = loss.reshape(()).double()
        return found

    def _flat(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the gradient in the one buffer that every minibatch uses, shape (1, size)."""
        copy_into(self.views, gradients)
        return self.row.unsqueeze(0)

    def _weights(self, flat: Tensor) -> Tensor:
        """Return all weights of a flat buffer, layer by layer, without the padding."""
        return torch.cat([view.reshape(-1) for view in self.layout.views(flat)])
