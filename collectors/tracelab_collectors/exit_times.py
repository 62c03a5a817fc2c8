"""ExitTimes: how long replicas of the run take to leave a ball, a loss level or a basin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass, field
from enum import IntEnum
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.optim import Optimizer

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import splitmix64
from tracelab_collectors.basins import descend, rise
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.fixed_loss import EXAMPLES, FixedLoss
from tracelab_collectors.frozen import in_mode
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.replicas import ReplicaLoss, Replicas, tried
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.stacking import Listed, Stacked
from tracelab_collectors.twins import trained

__all__ = ["Criterion", "ExitTimes"]

# Replicas that are computed at once have so many bytes together at most.
MEMORY = 1 << 30
# Of weights: themselves, their gradients and squares in float64, and what passes make of them.
COPIES = 6


class Criterion(IntEnum):
    """By what a replica left."""

    NONE = 0
    BALL = 1
    LOSS = 2
    BASIN = 3
    DIVERGED = 4


@dataclass(frozen=True)
class ExitTimes(Scheduled):
    r"""Times at which independent replicas of the run leave where it is.

    At each step of its schedule, `replicas` copies of weights, buffers and optimizers train on by
    themselves, each on random minibatches of its own, until one of these criteria is met, and no
    trace of it is left in the training run:

    - ``radius``: the distance of the chosen layers' weights from those of the start is larger;
      looked at behind every step, in float64;
    - ``barrier``: the loss over fixed examples of the data exceeds that at the start by more;
    - ``basin``: from the replica's weights and from those of the start gradient descent on the same
      loss leads to places between which, on the straight line, that loss rises by more than
      `tolerance` above the higher of the two ends;
    - always: the loss or a weight is not finite any more (``diverged``).

    The first that is met is the exit, in this order where several are met at the same step, after
    ``diverged``. Replicas that meet none within `max_steps` are censored. Loss and basin are looked
    at every `check_every` steps and at the last: what leaves by them has left at some step after
    the check before, so that these times are known to so many steps, and an excursion that is over
    at the next check is not seen. ``tracelab.stats.survival`` takes the times.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`. Replicas train all
        that the optimizers do; the distance is that of the chosen layers alone.
    replicas : int
        How many.
    batch_size : int
        Examples of each minibatch, drawn with replacement.
    max_steps : int
        Optimizer steps after which a replica is censored.
    radius : float, optional
        Of the ball, in the weights' unit.
    barrier : float, optional
        Of the loss, in its unit.
    basin : bool
        Whether to look for another basin.
    tolerance : float
        Rise of the loss, in its unit, that makes two basins of two ends.
    check_every : int
        Steps between two looks at loss and basin.
    examples : int, optional
        Examples over which that loss is averaged, drawn once, and passed as one batch. None: all of
        the data.
    descent_steps : int
        How often a step of a descent is tried; see `tracelab_collectors.basins.descend`.
    clip_norm : float, optional
        Largest norm of a replica's gradient, over all that is trained, as
        ``torch.nn.utils.clip_grad_norm_`` has it. Give what the training loop does.
    mode : {"eval"}, optional
        Put the model into evaluation mode for all passes, or, with None (the default), leave it in
        its mode, as training does: then dropout draws new masks for every step, and for the loss
        over fixed examples the same ones every time; batch normalisation uses each batch's
        statistics, and the buffers of each replica run along with it.

    Raises
    ------
    UsageError
        If there is no criterion, a number is out of range, or the mode or the schedule is invalid.

    Notes
    -----
    Replicas step as the optimizers' class does, at the learning rates and from the states of the
    start; schedulers, gradient scalers, accumulation and hooks are not part of them. With several
    optimizers every one steps, on the gradient of the one loss. A seed of its own, from the
    session's seed, the step and its number, makes a replica what it is, however many there are.

    Where the optimizers step weights one by one (SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop,
    Adagrad), a gradient takes less than 1e8 operations, no random numbers are drawn but for the
    minibatches and a trial of two replicas gives the same both ways, replicas are computed at once
    by `torch.func.vmap`, as many as have 4,096 examples and take 1 GiB; otherwise one after the
    other. The group's attribute ``method`` says which.

    The basin is that of the loss over `examples` at the buffers of the start. What decides is
    the loss on one straight line: of a quadratic or any convex basin it never rises above both
    ends. In networks two ends of one connected valley can have a ridge between them when the valley
    bends, and a ridge narrower than a sixteenth of the way is missed. A descent that is cut
    short, by too few `descent_steps`, leaves the higher end higher, and the rise smaller.

    Forward hooks and Python state of the user's modules do see the replicas' passes.
    """

    every: InitVar[int | Schedule] = 10_000
    replicas: int = 32
    batch_size: int = 64
    max_steps: int = 1000
    radius: float | None = None
    barrier: float | None = None
    basin: bool = False
    tolerance: float = 0.01
    check_every: int = 10
    examples: int | None = 512
    descent_steps: int = 100
    clip_norm: float | None = None
    mode: str | None = None
    name: str = "exits"
    kind: str = field(default="exits", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        whose = "ExitTimes'"
        for name in ("replicas", "batch_size", "max_steps", "check_every", "descent_steps"):
            at_least(1, **{f"{whose} {name}": getattr(self, name)})
        if self.examples is not None:
            at_least(1, **{f"{whose} examples": self.examples})
        for name in ("radius", "barrier", "tolerance", "clip_norm"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if (value is not None or name == "tolerance") and not (number and 0 < value < math.inf):
                raise UsageError(f"{whose} {name} must be a positive number, got {value!r}")
        if not isinstance(self.basin, bool):
            raise UsageError(f"{whose} basin must be True or False, got {self.basin!r}")
        if self.mode not in ("eval", None):
            raise UsageError(f"{whose} mode must be 'eval' or None, got {self.mode!r}")
        if self.radius is None and self.barrier is None and not self.basin:
            raise UsageError(
                "ExitTimes has nothing that replicas could leave; give radius=, barrier= or "
                "basin=True"
            )

    @property
    def looks(self) -> bool:
        """Whether the loss over fixed examples decides."""
        return self.barrier is not None or self.basin

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run, after a step of two replicas.

        Raises
        ------
        UsageError
            If the run has no loss or no data, weights are sharded, or replicas cannot be trained.
        """
        data, loss = Indexed.of_run(run, self.whose)
        layout = self.layout(run)
        seed = int(splitmix64(run.seed, 0, 1)[0]) >> 2
        chosen = data.drawn(self.examples, seed)

        def measure(block: Block) -> dict[str, Tensor]:
            parameters = trained(run.optimizers)
            recorded = {id(run.parameters[name]) for name in layout.names}
            return _Measurement(
                self,
                ReplicaLoss(loss, run.model, parameters, way),
                run.optimizers,
                data,
                chosen,
                [place for place, each in enumerate(parameters) if id(each) in recorded],
                int(splitmix64(seed, block.steps[0], 1)[0]) >> 2,
            ).row()

        remedy = "leave the collector out if model, loss or optimizer cannot be copied"
        with (
            refusing(self.whose, "at the first step of a replica", remedy),
            in_mode(self.mode, run.model, loss),
        ):
            way = tried(
                loss, run.model, run.optimizers, data, self.batch_size, seed, self.clip_norm
            )
        return Recording(
            layout,
            measure,
            attrs={
                "replicas": self.replicas,
                "max_steps": self.max_steps,
                "check_every": self.check_every,
                "batch_size": self.batch_size,
                "replacement": True,
                "n_examples": len(chosen),
                "n_data": data.size,
                "n_weights": sum(layout.numel),
                "basin": self.basin,
                "tolerance": self.tolerance if self.basin else None,
                "descent_steps": self.descent_steps if self.basin else None,
                "clip_norm": self.clip_norm,
                "mode": self.mode or "as trained",
                "method": way.method,
                "optimizer": ", ".join(type(each).__name__ for each in run.optimizers),
                "criteria": {str(each.value): each.name.lower() for each in Criterion},
            },
            variables=self.variables(),
            probe=True,
        )

    def variables(self) -> tuple[Variable, ...]:
        """Return what its group holds."""
        row, each = ("step",), ("step", "replica")
        checked = f", where loss and basin are looked at every {self.check_every}"
        codes = ", ".join(f"{code.value} {code.name.lower()}" for code in Criterion)
        fixed = "over the fixed examples"
        return (
            Variable(
                "time", each, "step", "float64",
                f"optimizer steps until the exit, or until it was censored{checked}",
            ),
            Variable("censored", each, "1", "uint8", "1 where no criterion was met"),
            Variable("criterion", each, "1", "uint8", f"what was met: {codes}"),
            Variable("distance", each, "weight", "float64", "of the weights from the start, then"),
            Variable("loss", each, "loss", "float64", f"mean loss {fixed}, then"),
            Variable("start_loss", row, "loss", "float64", f"mean loss {fixed} at the start"),
            Variable("barrier", row, "loss", "float64", "rise of that loss that is an exit"),
            Variable("radius", row, "weight", "float64", "distance that is an exit"),
            Variable(
                "learning_rate", row, "weight^2/loss", "float64", "of the first parameter group"
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class _Measurement:
    """What one row needs."""

    collector: ExitTimes
    loss: ReplicaLoss
    optimizers: Sequence[Optimizer]
    data: Indexed
    chosen: Tensor
    recorded: Sequence[int]
    seed: int

    def row(self) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        collector, count = self.collector, self.collector.replicas
        found = {
            "time": torch.full((count,), float(collector.max_steps), dtype=torch.float64),
            "censored": torch.ones(count, dtype=torch.uint8),
            "criterion": torch.zeros(count, dtype=torch.uint8),
            "distance": torch.full((count,), torch.nan, dtype=torch.float64),
            "loss": torch.full((count,), torch.nan, dtype=torch.float64),
        }
        seeds = [int(each) >> 2 for each in splitmix64(self.seed, 1, count)]
        with in_mode(collector.mode, *self.loss.roots), forked_generators(self.seed):
            fixed = FixedLoss(self.loss, self.data.batch(self.chosen), len(self.chosen), self.seed)
            start = [each.detach().unsqueeze(0) for each in self.loss.parameters]
            landscape = _Landscape.of(collector, fixed, start, self.rate)
            for replicas in torch.arange(count).split(self.at_once):
                with forked_generators(seeds[int(replicas[0])]):
                    self._train(replicas, seeds, landscape, found)
        numbers = {
            "start_loss": landscape.start_loss,
            "barrier": math.nan if collector.barrier is None else collector.barrier,
            "radius": math.nan if collector.radius is None else collector.radius,
            "learning_rate": self.rate,
        }
        found |= {name: torch.tensor(each, dtype=torch.float64) for name, each in numbers.items()}
        return {name: values.unsqueeze(0) for name, values in found.items()}

    @cached_property
    def start(self) -> list[Tensor]:
        """The weights of the start in float64."""
        return [each.detach().double() for each in self.loss.parameters]

    @property
    def rate(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    @property
    def at_once(self) -> int:
        """Replicas that train side by side."""
        if not self.loss.way.batched:
            return 1
        held = [*self.loss.parameters] * COPIES + self.loss.buffers
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                held += [each for each in state.values() if isinstance(each, Tensor)]
        size = sum(each.numel() * each.element_size() for each in held)
        return max(1, min(MEMORY // size, EXAMPLES // self.collector.batch_size))

    def _train(
        self,
        present: Tensor,
        seeds: Sequence[int],
        landscape: _Landscape,
        found: dict[str, Tensor],
    ) -> None:
        """Train some replicas until all have left or are censored; write what is found of them."""
        collector = self.collector
        crew = Replicas(self.loss, self.optimizers, len(present), collector.clip_norm)
        generators = {i: torch.Generator().manual_seed(seeds[i]) for i in present.tolist()}
        for step in range(1, collector.max_steps + 1):
            last = step == collector.max_steps
            losses = crew.step(self._minibatches([generators[i] for i in present.tolist()]))
            distances, finite = self._distances(crew.weights)
            finite &= losses.isfinite()
            met = torch.zeros(len(present), dtype=torch.uint8, device=distances.device)
            if collector.radius is not None:
                met[distances > collector.radius] = Criterion.BALL
            if collector.looks and (last or step % collector.check_every == 0):
                landscape.look(crew, met, finite)
            met[~finite] = Criterion.DIVERGED
            gone = (met > 0) | last
            if not gone.any():
                continue
            leaving = present[gone.cpu()]
            found["time"][leaving] = float(step)
            found["censored"][leaving] = (met[gone] == Criterion.NONE).to(torch.uint8).cpu()
            found["criterion"][leaving] = met[gone].cpu()
            found["distance"][leaving] = distances[gone].cpu()
            weights, buffers = [each[gone] for each in crew.weights], crew.buffers
            found["loss"][leaving] = landscape.fixed.losses(
                weights, [each[gone] for each in buffers]
            ).cpu()
            if gone.all():
                return
            crew.keep(~gone)
            present = present[~gone.cpu()]

    def _minibatches(self, generators: Sequence[torch.Generator]) -> Stacked | Listed:
        """Return a minibatch drawn by each generator."""
        size, count = self.data.size, self.collector.batch_size
        drawn = [torch.randint(size, (count,), generator=each) for each in generators]
        if self.loss.way.batched and self.data.by_item:
            with suppress(ValueError, RuntimeError):
                return Stacked.cut(self.data.batch(torch.cat(drawn)), len(drawn))
        batches = [self.data.batch(each) for each in drawn]
        if self.loss.way.batched:
            with suppress(ValueError):
                return Stacked.of(batches)
        return Listed(batches)

    def _distances(self, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the distances of the recorded layers, and whether all weights are finite."""
        squares = torch.stack([
            (now.double() - start).square().flatten(1).sum(1)
            for now, start in zip(weights, self.start, strict=True)
        ])  # fmt: skip
        return squares[list(self.recorded)].sum(0).sqrt(), squares.sum(0).isfinite()


@dataclass(frozen=True)
class _Landscape:
    """The loss over the fixed examples around the start, and what it decides.

    Parameters
    ----------
    collector : ExitTimes
        The criteria.
    fixed : FixedLoss
        The loss.
    start : sequence of Tensor, shape (1, *shape)
        Weights of the start, by parameter.
    rate : float
        First step of descents.
    start_loss : float
        The loss there.
    bottom, bottom_loss : Tensor of shape (1, weight), (1,), optional
        Where descent from the start ends, if basins are told apart.
    """

    collector: ExitTimes
    fixed: FixedLoss
    start: Sequence[Tensor]
    rate: float
    start_loss: float
    bottom: Tensor | None = None
    bottom_loss: Tensor | None = None

    @classmethod
    def of(
        cls, collector: ExitTimes, fixed: FixedLoss, start: Sequence[Tensor], rate: float
    ) -> _Landscape:
        """Return the landscape around some weights."""
        buffers = [each.unsqueeze(0) for each in fixed.loss.buffers]
        loss = float(fixed.losses(start, buffers))
        plain = cls(collector, fixed, start, rate, loss)
        if not collector.basin:
            return plain
        return cls(collector, fixed, start, rate, loss, *plain.descent(start))

    def look(self, crew: Replicas, met: Tensor, finite: Tensor) -> None:
        """Note in `met` which replicas have left by loss or basin, and in `finite` lost ones."""
        losses = self.fixed.losses(crew.weights, crew.buffers)
        finite &= losses.isfinite()
        if self.collector.barrier is not None:
            met[(met == 0) & (losses - self.start_loss > self.collector.barrier)] = Criterion.LOSS
        undecided = (met == 0) & finite
        if self.bottom is not None and self.bottom_loss is not None and undecided.any():
            ends, lows = self.descent([each[undecided] for each in crew.weights])
            higher = torch.maximum(lows, self.bottom_loss)
            rises = rise(self._losses, self.bottom, ends, higher)
            # What has no loss on the way has a rise that is no number.
            far = ~(rises <= self.collector.tolerance)
            met[undecided] = far.to(met.dtype) * int(Criterion.BASIN)

    def descent(self, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return where descents from some weights end, and the losses there."""
        steps = self.collector.descent_steps
        return descend(self._gradients, self._flat(weights), self.rate, steps)

    def _flat(self, weights: Sequence[Tensor]) -> Tensor:
        return torch.cat([each.flatten(1) for each in weights], 1)

    def _parts(self, rows: Tensor) -> list[Tensor]:
        ends = [0, *accumulate(each.numel() for each in self.start)]
        return [
            rows[:, a:b].reshape(-1, *each.shape[1:]).to(each.dtype)
            for (a, b), each in zip(pairwise(ends), self.start, strict=True)
        ]

    def _buffers(self, rows: Tensor) -> list[Tensor]:
        return [each.expand(len(rows), *each.shape) for each in self.fixed.loss.buffers]

    def _losses(self, rows: Tensor) -> Tensor:
        return self.fixed.losses(self._parts(rows), self._buffers(rows))

    def _gradients(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = self.fixed.gradients(self._parts(rows), self._buffers(rows))
        return losses, self._flat(gradients)
