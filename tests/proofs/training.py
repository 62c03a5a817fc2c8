"""What every loop is made of, and the gradient that autograd computes beside it."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proofs.networks import batch, loss_of

LossOf = Callable[[nn.Module], Tensor]
Row = dict[str, Tensor | None]
Counts = tuple[int, int, bool]


@dataclass
class Training:
    """A run in progress."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    losses: list[float] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers[0]

    def lost(self, loss: Tensor) -> Tensor:
        """Remember a loss, and return it."""
        self.losses.append(float(loss.detach()))
        return loss


@dataclass(frozen=True)
class Loop:
    """A kind of training loop.

    Parameters
    ----------
    build : callable
        Returns a training that has not begun; generators are seeded before.
    step : callable
        Trains on, once: what stands inside ``for t in range(steps)``.
    expected : callable
        The gradients with which optimizers are about to step, computed by ``torch.autograd.grad``
        on a copy of the model with copies of the generators: of each row of the trace the gradient
        by layer, None where there is none, or None in place of a row whose gradient is undefined.
    exact : bool
        Whether both are the same operations in the same order, and must be the same bits. If not,
        the difference must be below 1e-6 of a layer's largest gradient.
    counts : callable
        What the rows of a round say: micro-batches, gradients thrown away before, and whether the
        step was applied.
    warned : str
        What the one warning that the loop gives rise to must say.
    slow : bool
        Whether it takes more than a few seconds.
    """

    build: Callable[[], Training]
    step: Callable[[Training, int], None]
    expected: Callable[[Training, int], Sequence[Row | None]]
    exact: bool = True
    counts: Callable[[int], Sequence[Counts]] = lambda t: [(1, 0, True)]
    warned: str = ""
    slow: bool = False


@contextmanager
def same_generators() -> Iterator[None]:
    """Put every generator back behind the block."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def twin_of(model: nn.Module) -> nn.Module:
    """Return a copy of the model inside ``torch.compile``."""
    return copy.deepcopy(getattr(model, "_orig_mod", model))


def autograd(model: nn.Module, *losses: LossOf) -> Row:
    """Return the sum of the gradients of losses, one after the other, at the present weights."""
    twin = twin_of(model)
    names, parameters = zip(*twin.named_parameters(), strict=True)
    wanted = [p for p in parameters if p.requires_grad]
    total: Row = dict.fromkeys(names)
    with same_generators():
        for loss in losses:
            found = iter(torch.autograd.grad(loss(twin), wanted, allow_unused=True))
            for name, parameter in zip(names, parameters, strict=True):
                gradient = next(found) if parameter.requires_grad else None
                if gradient is not None:
                    before = total[name]
                    total[name] = gradient if before is None else before + gradient
    return total


def on(index: int, size: int = 8, share: float = 1.0) -> LossOf:
    """Return the loss of one batch, times `share`."""
    of = batch(index, size)
    return lambda model: loss_of(model, of) * share


def scaled(row: Row, factor: float | Tensor) -> Row:
    return {name: None if each is None else each * factor for name, each in row.items()}


def norm_of(row: Row) -> Tensor:
    squares = [each.double().square().sum() for each in row.values() if each is not None]
    return torch.stack(squares).sum().sqrt()


def plain_step(training: Training, loss: LossOf) -> None:
    training.optimizer.zero_grad()
    training.lost(loss(training.model)).backward()
    training.optimizer.step()
