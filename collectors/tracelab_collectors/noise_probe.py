"""NoiseProbe: many minibatch gradients and the full-data gradient, at the same frozen weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial

import torch
from torch import Tensor

from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sample, Sketch, splitmix64, validate
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.deviations import Deviations
from tracelab_collectors.frozen import FrozenLoss
from tracelab_collectors.full_data import full_gradient
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.several import Method, Trial, as_many, fill, is_small
from tracelab_collectors.sketching import Sketcher, sketcher

__all__ = ["NoiseProbe"]

TRIED = 4
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
    parallelism are probed without the wrapper. Gradients of less than 1e8 operations are computed
    up to 64 at once by `torch.func.vmap`, where that gives what single backward passes give, tried
    on four minibatches before training starts. The group's attribute ``method`` says which.
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

        def frozen() -> FrozenLoss:
            return FrozenLoss.of_run(run, loss, layout)

        with forked_generators(run.seed):
            method = _method(frozen(), examples, self.batch_size)
        at_once = 1 if method == "loop" else min(self.batches, as_many(layout, run.dtype))

        def measure(block: Block) -> dict[str, Tensor]:
            rows = torch.zeros(at_once, layout.size, dtype=run.dtype, device=run.device)
            measurement = _Measurement(self, frozen(), examples, layout, sketch, method, rows)
            # Consecutive steps and seeds must not share draws: both go through a hash.
            run_seed = int(splitmix64(run.seed, 0, 1)[0])
            return measurement.row(int(splitmix64(run_seed, block.steps[0], 1)[0]) >> 1)

        return Recording(
            layout,
            measure,
            sketches=sketches,
            attrs={
                "batch_size": self.batch_size,
                "replacement": self.replacement,
                "n_data": examples.size,
                "method": method,
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
    method: Method
    rows: Tensor

    def row(self, seed: int) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        arrays: dict[str, Tensor] = {}
        centre, dtype = None, self.rows.dtype
        with forked_generators(seed):
            if self.probe.full_gradient:
                full, arrays["mean_loss"] = full_gradient(
                    self.loss,
                    self.examples,
                    self.layout,
                    self.rows[0],
                    piece=self.probe.data_batch_size or 1,
                )
                arrays["mean_squared_norm"] = squared_norms(full, self.layout)[0]
                rounded = full.to(dtype)
                for name, values in self.sketch(rounded).items():
                    arrays[f"mean_{name}"] = values[0]
                centre = rounded[0]
            deviations = Deviations(
                self.layout,
                centre,
                moments=self.probe.moments is not None,
                dtype=dtype,
                device=self.rows.device,
            )
            generator = torch.Generator().manual_seed(seed)
            begin, batches = 0, self.probe.batches
            while begin < batches:
                end = min(begin + len(self.rows), batches)
                for name, values in self._minibatches(end - begin, generator, deviations).items():
                    if begin == 0:
                        arrays[name] = values.new_empty((batches, *values.shape[1:]))
                    arrays[name][begin:end] = values
                begin = end
        if self.probe.moments is not None:
            arrays |= deviations.summaries()
        if self.probe.moments == "coordinates":
            arrays["batch_mean"] = self._weights(deviations.mean)
            arrays["variance"] = self._weights(deviations.variance())
        return {name: values.unsqueeze(0) for name, values in arrays.items()}

    def _minibatches(
        self, count: int, generator: torch.Generator, deviations: Deviations
    ) -> dict[str, Tensor]:
        """Return what is recorded of so many minibatches."""
        rows = self.rows[:count]
        batches = [self.examples.batch(self._indices(generator)) for _ in range(count)]
        losses = fill(rows, self.layout, self.loss, batches, self.method)
        found = self.sketch(rows)
        found["squared_norm"], distance = deviations.take(rows)
        if self.probe.full_gradient:
            found["squared_deviation"] = distance
        return found | {"loss": losses.double()}

    def _indices(self, generator: torch.Generator) -> Tensor:
        size, count = self.examples.size, self.probe.batch_size
        if self.probe.replacement:
            return torch.randint(size, (count,), generator=generator)
        return torch.randperm(size, generator=generator)[:count]

    def _weights(self, flat: Tensor) -> Tensor:
        """Return all weights of a flat buffer, layer by layer, without the padding."""
        return torch.cat([view.reshape(-1) for view in self.layout.views(flat)])


def _method(loss: FrozenLoss, examples: Indexed, batch_size: int) -> Method:
    """Return how the gradients of minibatches are computed, after trying it on a few."""
    indices = torch.arange(TRIED * batch_size).remainder(examples.size).split(batch_size)
    batches = (examples.batch(each) for each in indices)
    try:
        # Several gradients of a large network would be more than there is memory for.
        if not is_small(partial(loss.gradient, next(batches))):
            return "loop"
        trial = Trial.of(loss.roots, list(batches), loss.gradient)
    except Exception:
        # What is wrong is said when the loss is rehearsed, for all probes.
        return "loop"
    return trial.method(loss)
