"""Examples: the gradients of single examples at frozen weights, of which every batch is a mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sample, Sketch, splitmix64, validate
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.deviations import Deviations
from tracelab_collectors.frozen import FrozenLoss, evaluating
from tracelab_collectors.full_data import full_gradient
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.several import Method, Trial, as_many, fill
from tracelab_collectors.sketching import Sketcher, sketcher

__all__ = ["Examples"]

REHEARSED = 4


@dataclass(frozen=True)
class Examples(Scheduled):
    r"""Per-example gradients :math:`g_i(w) = \nabla \ell_i(w)` at frozen weights.

    At each step of its schedule `examples` of the data are drawn without replacement, and the
    gradient of each one's loss is measured at the weights of that step, without a trace left in
    the training run. Recorded are their sketches (not centred), :math:`\|g_i\|^2`, the losses,
    which examples they are, and with `full_gradient` the exact full-data gradient :math:`g` in the
    same sketch, :math:`\|g\|^2` and :math:`\|g_i - g\|^2`, exact in all dimensions. The mean of
    sketches is the sketch of the mean, so gradients of batches of any size follow without another
    backward pass: ``trace.noise(group="examples", batch_size=...)``.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    examples : int, optional
        Examples per row, drawn anew for each. None: all of the data, in order.
    sketch : Sketch or sequence of Sketch
        How gradients are kept; at most one of each kind.
    full_gradient : bool
        Whether to measure the full-data gradient: one pass over the data per row.
    data_batch_size : int
        Examples per piece of that pass.
    mode : {"eval"}, optional
        Put the model into evaluation mode for the measurement. Default: leave it in its mode.
    chunk : int, optional
        Examples whose gradients are in memory at a time. Default: as many as 256 MiB hold, at most
        64; activations come on top.
    mean_over_examples : bool
        Whether the loss of a batch is the mean of its examples' losses, which is looked at before
        training starts. Otherwise no batches are made of the examples later.

    Raises
    ------
    UsageError
        If a number is out of range, or the mode, the sketches or the schedule are invalid.

    Notes
    -----
    The loss of an example is that of a batch of one, ``loss(model, batch)`` with one index drawn
    from the data. Gradients of a chunk are computed at once by `torch.func.vmap` where that gives
    what single backward passes give, tried on four examples before training starts; else one
    after the other, as where most of more than 1e8 operations are in convolutions, of which that
    is faster. The group's attribute ``method`` says which. In training mode dropout's masks
    are part of the gradients, drawn for each example by itself as in a batch. Batch normalisation
    in training mode has no per-example gradients, since each example's loss depends on the whole
    batch; ``mode="eval"`` uses its running statistics. Seeds derive from the session's seed and
    the step. Forward hooks and Python state of the user's modules do see the forward passes.
    """

    every: InitVar[int | Schedule] = 200
    examples: int | None = 512
    sketch: Sketch | Sequence[Sketch] = (Project(256), Sample(64))
    full_gradient: bool = True
    data_batch_size: int = 128
    mode: str | None = None
    chunk: int | None = None
    mean_over_examples: bool = True
    name: str = "examples"
    kind: str = field(default="examples", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "sketch", validate(self.sketch))
        for name in ("examples", "data_batch_size", "chunk"):
            if getattr(self, name) is not None:
                at_least(1, **{f"Examples' {name}": getattr(self, name)})
        if self.mode not in (None, "eval"):
            raise UsageError(f"Examples' mode must be None or 'eval', got {self.mode!r}")

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run.

        Raises
        ------
        UsageError
            If the run has no loss or no data or fewer examples than wanted, if the model has no
            per-example gradients, or if the loss fails on one example or is no mean over examples.
        """
        data, loss = Indexed.of_run(run, self.whose)
        if self.examples is not None and self.examples > data.size:
            raise UsageError(
                f"{self.whose}: examples={self.examples} exceeds the {data.size} examples of data; "
                "lower it, or give examples=None for all of them"
            )
        layout = self.layout(run)
        sketches = validate(self.sketch)
        sketch = sketcher(sketches, layout, dtype=run.dtype, device=run.device)
        chunk = self.chunk or as_many(layout, run.dtype)

        def frozen() -> FrozenLoss:
            return FrozenLoss.of_run(run, loss, layout)

        with self._mode(run.model), forked_generators(run.seed):
            method = _rehearse(self, frozen(), data)

        def measure(block: Block) -> dict[str, Tensor]:
            # Consecutive steps and seeds must not share draws: both go through a hash.
            run_seed = int(splitmix64(run.seed, 0, 1)[0])
            seed = int(splitmix64(run_seed, block.steps[0], 1)[0]) >> 1
            count = min(chunk, self.examples or data.size)
            rows = torch.zeros(count, layout.size, dtype=run.dtype, device=run.device)
            measurement = _Measurement(self, frozen(), data, layout, sketch, method, rows)
            with self._mode(run.model), forked_generators(seed):
                return measurement.row(torch.Generator().manual_seed(seed))

        return Recording(
            layout,
            measure,
            sketches=sketches,
            attrs={
                "n_data": data.size,
                "mode": self.mode or "unchanged",
                "method": method,
                "mean_over_examples": self.mean_over_examples,
            },
            probe=True,
        )

    @contextmanager
    def _mode(self, model: nn.Module) -> Iterator[None]:
        """Put the model into the mode for the block, in which it must have such gradients."""
        with evaluating(model) if self.mode == "eval" else nullcontext():
            _check_statistics(model, self.whose)
            yield


@dataclass(frozen=True)
class _Measurement:
    """What one row needs."""

    collector: Examples
    loss: FrozenLoss
    data: Indexed
    layout: Layout
    sketch: Sketcher
    method: Method
    rows: Tensor

    def row(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        arrays: dict[str, Tensor] = {}
        full = None
        if self.collector.full_gradient:
            full, arrays["mean_loss"] = full_gradient(
                self.loss,
                self.data,
                self.layout,
                self.rows[0],
                piece=self.collector.data_batch_size,
            )
            arrays["mean_squared_norm"] = squared_norms(full, self.layout)[0]
            for name, values in self.sketch(full.to(self.rows.dtype)).items():
                arrays[f"mean_{name}"] = values[0]
            full = full[0].to(self.rows.dtype)
        deviations = Deviations(
            self.layout, full, moments=False, dtype=self.rows.dtype, device=self.rows.device
        )
        indices = torch.arange(self.data.size)
        if self.collector.examples is not None:
            indices = torch.randperm(self.data.size, generator=generator)
            indices = indices[: self.collector.examples]
        arrays["index"] = indices
        begin = 0
        for chunk in indices.split(len(self.rows)):
            for name, values in self._chunk(chunk, deviations).items():
                if begin == 0:
                    shape = (len(indices), *values.shape[1:])
                    arrays[name] = torch.empty(shape, dtype=values.dtype)
                arrays[name][begin : begin + len(chunk)] = values
            begin += len(chunk)
        return {name: values.unsqueeze(0) for name, values in arrays.items()}

    def _chunk(self, indices: Tensor, deviations: Deviations) -> dict[str, Tensor]:
        """Return what is recorded of some examples."""
        rows = self.rows[: len(indices)]
        batches = [self.data.batch(index) for index in indices.split(1)]
        losses = fill(rows, self.layout, self.loss, batches, self.method)
        found = self.sketch(rows)
        found["squared_norm"], distance = deviations.take(rows)
        if self.collector.full_gradient:
            found["squared_deviation"] = distance
        return found | {"loss": losses.double()}


def _rehearse(collector: Examples, loss: FrozenLoss, data: Indexed) -> Method:
    """Return how per-example gradients are computed, after trying it on a few examples.

    Raises
    ------
    UsageError
        If the loss fails on a batch of one, is not finite, or is no mean over examples.
    """
    indices = torch.linspace(0, data.size - 1, REHEARSED).long()
    batches = [data.batch(index) for index in indices.split(1)]
    attempt = partial(_attempt, collector, loss)
    trial = Trial.of(loss.roots, batches, partial(attempt, "one example"))
    for index, value in zip(indices.tolist(), trial.losses.tolist(), strict=True):
        if not math.isfinite(value):
            raise UsageError(
                f"{collector.whose}: loss(model, batch) is {value} on example {index} of data, at "
                "the weights of now; no gradient can be measured, look at the loss and at the data"
            )
    if collector.mean_over_examples or collector.full_gradient:
        many = f"{len(batches)} examples"
        whole, _ = attempt(many, data.batch(indices))
        if collector.mean_over_examples and not (trial.drew or trial.drew_elsewhere):
            _check_mean(whole.double().item(), trial.losses, many, collector.whose)
    if trial.convolutional and not trial.small:
        return "loop"
    return trial.method(loss)


def _attempt(
    collector: Examples, loss: FrozenLoss, what: str, batch: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    try:
        return loss.gradient(batch)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{collector.whose}: loss(model, batch) fails on a batch of {what}, "
            f"{type(error).__name__}: {error}; make it take one, or leave the collector out"
        ) from error


def _check_mean(whole: float, losses: Tensor, many: str, whose: str) -> None:
    mean, size = losses.mean().item(), losses.abs().mean().item()
    if abs(whole - mean) > 0.01 * size:
        raise UsageError(
            f"{whose}: the loss of a batch of {many} is {whole:.6g} and the mean of their losses "
            f"{mean:.6g}; return the mean over examples, or give mean_over_examples=False, and "
            "batches will not be made of the examples"
        )


def _check_statistics(model: nn.Module, whose: str) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            what = f"{whose}: batch normalisation {name!r}"
            if module.running_mean is None:
                raise UsageError(
                    f"{what} keeps no running statistics, so that an example's loss depends on its "
                    "batch and has no gradient of its own; set track_running_stats=True"
                )
            raise UsageError(
                f"{what} is in training mode, in which an example's loss depends on its batch and "
                "has no gradient of its own; put the model into eval mode for the probe with "
                "Examples(mode='eval')"
            )
