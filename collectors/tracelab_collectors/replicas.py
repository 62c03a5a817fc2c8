"""Replicas of a training run: copies of weights, buffers and optimizers that train on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tracelab.errors import UsageError
from tracelab_collectors.collector import Loss
from tracelab_collectors.frozen import Frozen, checked_mean
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.several import Trial
from tracelab_collectors.stacking import Listed, Stacked
from tracelab_collectors.twins import elementwise, keep, needs_closure, take_step, trained, twin

__all__ = ["Pass", "ReplicaLoss", "Replicas", "Way", "tried"]


@dataclass(frozen=True, slots=True)
class Way:
    """How replicas are computed.

    Parameters
    ----------
    batched : bool
        Several at once, by `torch.func.vmap`, or one after the other.
    unused : frozenset of int
        Positions of parameters that the loss does not use: they have no gradient and do not move.
    """

    batched: bool = False
    unused: frozenset[int] = frozenset()

    @property
    def method(self) -> str:
        """Its name in a trace."""
        return "vmap" if self.batched else "loop"


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass over a batch gives each replica.

    Parameters
    ----------
    losses : Tensor of float64, shape (replica,)
    gradients : list of Tensor, shape (replica, *parameter.shape)
        By parameter; None where the loss does not use it.
    buffers : list of Tensor, shape (replica, *buffer.shape)
        What the pass left in the buffers.
    """

    losses: Tensor
    gradients: list[Tensor | None]
    buffers: list[Tensor]


class ReplicaLoss:
    """A loss as a function of weights, buffers and batches of several replicas.

    Parameters
    ----------
    loss : callable
        ``loss(model, batch)``, the mean over the batch's examples.
    model : nn.Module
        The model; its own weights and buffers are only read.
    parameters : sequence of Tensor
        Those that replicas have of their own.
    way : Way
        How they are computed.

    Raises
    ------
    UsageError
        If the model does not have these parameters any more.

    Attributes
    ----------
    roots : tuple
        Whose code is run: the model and the loss.
    buffers : list of Tensor
        The model's own.
    """

    def __init__(
        self, loss: Loss, model: nn.Module, parameters: Sequence[Tensor], way: Way
    ) -> None:
        self.roots = (model, loss)
        self.parameters = list(parameters)
        self.way = way
        self._loss = loss
        self._frozen = Frozen(model, loss)
        self._ids = [id(parameter) for parameter in parameters]
        if not self._frozen.aliases.keys() >= set(self._ids):
            raise UsageError(
                "the optimizers train parameters that the model does not have any more; attach "
                "again behind what replaced them"
            )
        self.buffers = list(self._frozen.buffers.values())

    def gradients(
        self, weights: Sequence[Tensor], buffers: Sequence[Tensor], batches: Stacked | Listed
    ) -> Pass:
        """Return losses, gradients and buffers of replicas, each at its own weights.

        Parameters
        ----------
        weights, buffers : sequence of Tensor, shape (replica, *shape)
            Not changed.
        batches : Stacked or Listed
            One for each replica, or one for all. Those that are listed are taken one by one.

        Raises
        ------
        Exception
            Whatever the model raises, or `torch.func.vmap` where it cannot take it.
        """
        if not self.way.batched or isinstance(batches, Listed):
            return self._one_by_one(weights, buffers, batches)

        def loss_of(
            wanted: Sequence[Tensor], held: Sequence[Tensor], tensors: Mapping[int, Tensor]
        ) -> tuple[Tensor, list[Tensor]]:
            return self._evaluate(wanted, held, batches.batch(tensors))

        differentiated = torch.func.grad_and_value(loss_of, has_aux=True)
        with torch.enable_grad():
            found, (losses, left) = self._mapped(differentiated, weights, buffers, batches)
        gradients = [
            None if place in self.way.unused else each.detach() for place, each in enumerate(found)
        ]
        return Pass(losses.detach().double(), gradients, [each.detach() for each in left])

    def losses(
        self, weights: Sequence[Tensor], buffers: Sequence[Tensor], batches: Stacked
    ) -> Tensor:
        """Return the losses of replicas alone, float64, shape (replica,)."""
        with torch.no_grad():
            if self.way.batched:

                def loss_of(
                    wanted: Sequence[Tensor], held: Sequence[Tensor], tensors: Mapping[int, Tensor]
                ) -> Tensor:
                    return self._evaluate(wanted, held, batches.batch(tensors))[0]

                losses: Tensor = self._mapped(loss_of, weights, buffers, batches)
                return losses.double()
            found = [
                self._evaluate(
                    [each[index] for each in weights],
                    [each[index] for each in buffers],
                    batches.one(index),
                )[0]
                for index in range(len(weights[0]))
            ]
        return torch.stack(found).double()

    def _mapped(
        self,
        function: Any,
        weights: Sequence[Tensor],
        buffers: Sequence[Tensor],
        batches: Stacked,
    ) -> Any:
        with warnings.catch_warnings():
            # Operations without a rule for batches are looped over: slower, and as right.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return torch.func.vmap(function)(list(weights), list(buffers), dict(batches.tensors))

    def _one_by_one(
        self, weights: Sequence[Tensor], buffers: Sequence[Tensor], batches: Stacked | Listed
    ) -> Pass:
        passes = []
        for index in range(len(weights[0])):
            wanted = [each[index].detach().requires_grad_() for each in weights]
            with torch.enable_grad():
                loss, left = self._evaluate(
                    wanted, [each[index] for each in buffers], batches.one(index)
                )
                found = torch.autograd.grad(loss, wanted, allow_unused=True)
            passes.append((loss.detach().double(), found, [each.detach() for each in left]))
        losses, gradients, buffers_left = zip(*passes, strict=True)
        return Pass(
            torch.stack(losses),
            [
                None if any(each is None for each in column) else torch.stack(column)
                for column in zip(*gradients, strict=True)
            ],
            [torch.stack(column) for column in zip(*buffers_left, strict=True)],
        )

    def _evaluate(
        self, wanted: Sequence[Tensor], held: Sequence[Tensor], batch: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of one replica, and its buffers as the pass left them."""
        own = dict(zip(self._ids, wanted, strict=True))
        left = {key: each.clone() for key, each in zip(self._frozen.buffers, held, strict=True)}
        loss = checked_mean(self._frozen(self._loss, batch, own, left))
        return loss.reshape(()), list(left.values())


class Replicas:
    """Replicas of the run at its present weights, buffers and optimizer states.

    Parameters
    ----------
    loss : ReplicaLoss
        What they are trained on.
    optimizers : sequence of Optimizer
        Those of the run; every one steps at every step.
    count : int
        How many; 1 where they are not computed at once.
    clip_norm : float, optional
        Largest norm of a replica's gradient.

    Attributes
    ----------
    buffers : list of Tensor, shape (replica, *shape)
    """

    def __init__(
        self,
        loss: ReplicaLoss,
        optimizers: Sequence[Optimizer],
        count: int,
        clip_norm: float | None = None,
    ) -> None:
        self._loss = loss
        self._clip_norm = clip_norm
        self._stacked = loss.way.batched
        lead = (count,) if self._stacked else ()
        self._parameters = [
            each.detach().expand(*lead, *each.shape).clone().requires_grad_()
            for each in loss.parameters
        ]
        stand_ins = {
            id(each): own for each, own in zip(loss.parameters, self._parameters, strict=True)
        }
        self._optimizers = [
            twin(each, stand_ins, count if self._stacked else None) for each in optimizers
        ]
        self._closures = [needs_closure(each) for each in self._optimizers]
        self.buffers = [each.expand(count, *each.shape).clone() for each in loss.buffers]

    @property
    def weights(self) -> list[Tensor]:
        """The present weights by parameter, shape (replica, *shape); not copies."""
        held = [each.detach() for each in self._parameters]
        return held if self._stacked else [each.unsqueeze(0) for each in held]

    def step(self, batches: Stacked | Listed) -> Tensor:
        """Take a step on a batch for each, and return the losses before it, shape (replica,)."""
        losses: list[Tensor] = []

        def evaluate() -> Tensor:
            found = self._loss.gradients(self.weights, self.buffers, batches)
            losses.append(found.losses)
            self.buffers = found.buffers
            self.set_gradients(found.gradients)
            return found.losses.sum()

        if not all(self._closures):
            evaluate()
        for optimizer, closure in zip(self._optimizers, self._closures, strict=True):
            take_step(optimizer, *([evaluate] if closure else []))
        return losses[0]

    def set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Set the gradients, clipped, of shape (replica, *shape) each."""
        if not self._stacked:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient[0]
            if self._clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
            return
        present = [each for each in gradients if each is not None]
        scale = None
        if self._clip_norm is not None and present:
            squares = [each.flatten(1).square().sum(1) for each in present]
            norms = torch.stack(squares).sum(0).sqrt()
            # As torch.nn.utils.clip_grad_norm_ has it.
            scale = (self._clip_norm / (norms + 1e-6)).clamp(max=1)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None and scale is not None:
                gradient = gradient * scale.view(-1, *[1] * (gradient.ndim - 1))
            parameter.grad = gradient

    def take_steps(self) -> None:
        """Step once with the gradients that are set."""
        for optimizer in self._optimizers:
            take_step(optimizer)

    def keep(self, kept: Tensor) -> None:
        """Drop those that are not kept; `kept` is boolean, of shape (replica,)."""
        self.buffers = [each[kept] for each in self.buffers]
        for parameter in self._parameters:
            parameter.grad = None
            parameter.data = parameter.data[kept]
        for optimizer in self._optimizers:
            keep(optimizer, kept)


def tried(
    loss: Loss,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    data: Indexed,
    batch_size: int,
    seed: int,
    clip_norm: float | None = None,
) -> Way:
    """Return how replicas are computed, after a step of two of them in both ways.

    At once where the optimizers step weights one by one, the network is small, no random numbers
    are drawn, nothing is kept between passes, and gradients, buffers and steps are the same.

    Raises
    ------
    Exception
        Whatever model, data or optimizers raise one by one.
    """
    parameters = trained(optimizers)
    single = ReplicaLoss(loss, model, parameters, Way())
    indices = torch.arange(2 * batch_size).remainder(data.size).split(batch_size)
    # Each has weights of its own, or nothing would tell whether it uses them.
    weights = [torch.stack([each.detach(), each.detach() * 1.01]) for each in parameters]
    buffers = [torch.stack([each, each]) for each in single.buffers]
    passes: list[Pass] = []

    def gradient(index: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = slice(index, index + 1)
        batch = Stacked.shared(data.batch(indices[index]))
        found = single.gradients([w[rows] for w in weights], [b[rows] for b in buffers], batch)
        passes.append(found)
        zeros = [torch.zeros_like(each) for each in parameters]
        pairs = zip(found.gradients, zeros, strict=True)
        return found.losses, tuple(zero if g is None else g[0] for g, zero in pairs)

    with forked_generators(seed):
        trial = Trial.of(single.roots, (0, 1), gradient)
        crew = [Replicas(single, optimizers, 1, clip_norm) for _ in passes]
        for each, found in zip(crew, passes, strict=True):
            each.set_gradients(found.gradients)
            if not any(map(needs_closure, optimizers)):
                each.take_steps()
        unused = [
            place
            for place, column in enumerate(zip(*(each.gradients for each in passes), strict=True))
            if all(each is None for each in column)
        ]
        loop = Way(unused=frozenset(unused))
        drew = trial.drew or trial.drew_elsewhere
        if not all(map(elementwise, optimizers)) or not trial.small or drew or trial.marked:
            return loop
        way = Way(batched=True, unused=loop.unused)
        try:
            batched = ReplicaLoss(loss, model, parameters, way)
            batches = Stacked.of([data.batch(each) for each in indices])
            found = batched.gradients(weights, buffers, batches)
            together = Replicas(batched, optimizers, 2, clip_norm)
            together.set_gradients([
                None if place in unused else each for place, each in enumerate(trial.gradients)
            ])  # fmt: skip
            together.take_steps()
        except Exception:
            return loop
    steps = zip(together.weights, *(each.weights for each in crew), strict=True)
    before = [torch.stack([each.detach(), each.detach()]) for each in parameters]
    same = _same_gradients(found, trial) and all(
        _same_steps(start, one, torch.cat(others))
        for start, (one, *others) in zip(before, steps, strict=True)
    )
    left = zip(found.buffers, *(each.buffers for each in passes), strict=True)
    for one, *others in left:
        tolerance = torch.finfo(one.dtype).eps ** 0.5 if one.is_floating_point() else 0.0
        same &= torch.allclose(one, torch.cat(others), rtol=tolerance, equal_nan=True)
    return way if same else loop


def _same_gradients(found: Pass, trial: Trial) -> bool:
    """Return whether gradients differ by their rounding alone."""
    pairs = [
        (g.double(), e.double())
        for g, e in zip(found.gradients, trial.gradients, strict=True)
        if g is not None
    ]
    if not pairs:
        return True
    error = torch.stack([(g - e).square().sum() for g, e in pairs]).sum()
    scale = torch.stack([e.square().sum() for _, e in pairs]).sum()
    tolerance = max(torch.finfo(each.dtype).eps for each in trial.gradients)
    losses = torch.allclose(found.losses, trial.losses, rtol=tolerance**0.5, equal_nan=True)
    # Gradients that are not finite cannot be compared.
    return losses and not bool(error > tolerance * scale)


def _same_steps(start: Tensor, one: Tensor, other: Tensor) -> bool:
    """Return whether two steps from the same weights differ by rounding alone, a few of each."""
    scale = start.abs() + (other - start).abs()
    return bool(((one - other).abs() <= 32 * torch.finfo(one.dtype).eps * scale).all())
