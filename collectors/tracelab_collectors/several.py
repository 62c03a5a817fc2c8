"""The gradients of several batches, computed at once where that is as right and faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tracelab_collectors.frozen import FrozenLoss
from tracelab_collectors.generators import generator_states
from tracelab_collectors.layout import Layout, copy_into
from tracelab_collectors.reached import reached, unchanged

__all__ = ["Method", "Trial", "as_many", "fill", "is_small"]

Gradient: TypeAlias = Callable[[Any], tuple[Tensor, tuple[Tensor, ...]]]

Method: TypeAlias = Literal["vmap", "vmap, randomness different", "loop"]
"""How gradients are computed: by `torch.func.vmap`, whose batches share random numbers or do not,
or one after the other."""

# What the gradients of a chunk may take, and how many batches gain nothing more.
CHUNK_BYTES = 256 << 20
CHUNK = 64

# With fewer, calling operations takes longer than computing them.
SMALL = 1e8


@dataclass(frozen=True, slots=True)
class Trial:
    """What gradients computed one by one gave, and what they took.

    Parameters
    ----------
    batches : sequence
        The batches.
    losses : Tensor of float64, shape (batch,)
    gradients : tuple of Tensor, shape (batch, *parameter.shape)
    operations : int
        Floating-point operations of one gradient.
    convolutions : int
        Those of them in convolutions.
    drew, drew_elsewhere : bool
        Whether random numbers of torch's were drawn, and any of Python's or NumPy's.
    marked : bool
        Whether attributes of modules, containers, closures or globals changed.
    """

    batches: Sequence[Any]
    losses: Tensor
    gradients: tuple[Tensor, ...]
    operations: int
    convolutions: int
    drew: bool
    drew_elsewhere: bool
    marked: bool

    @classmethod
    def of(cls, roots: Sequence[Any], batches: Sequence[Any], gradient: Gradient) -> Trial:
        """Return what `gradient`, which runs the code of `roots`, gives for two batches or more.

        It may raise. What the first evaluation leaves behind is no mark: caches are filled by it.
        """
        before, found = generator_states(), []
        held: list[Any] = []
        with FlopCounterMode(display=False) as counter:
            for batch in batches:
                found.append(gradient(batch))
                held = held or reached(*roots)
        after = generator_states()
        counts = counter.get_flop_counts().get("Global", {})
        convolutions = sum(count for name, count in counts.items() if "conv" in str(name))
        return cls(
            batches,
            torch.stack([loss.reshape(()).double() for loss, _ in found]),
            tuple(torch.stack(each) for each in zip(*(each for _, each in found), strict=True)),
            counter.get_total_flops() // len(batches),
            convolutions // len(batches),
            before[0] != after[0],
            before[1] != after[1],
            not unchanged(held, reached(*roots)),
        )

    @property
    def small(self) -> bool:
        """Whether calling operations takes longer than computing them does."""
        return self.operations <= SMALL

    @property
    def convolutional(self) -> bool:
        """Whether most operations are in convolutions, which `vmap` slows down on a CPU."""
        return 2 * self.convolutions > self.operations

    def method(self, loss: FrozenLoss) -> Method:
        """Return "vmap" if that gives the same, and "loop" otherwise."""
        if self.drew_elsewhere or self.marked:
            # Draws would be the same for all batches, and what is kept not the user's to use.
            return "loop"
        try:
            if self.drew:
                loss.gradients(self.batches, randomness="different")
                return "vmap, randomness different"
            losses, gradients = loss.gradients(self.batches)
        except Exception:
            return "loop"
        pairs = list(zip(gradients, self.gradients, strict=True))
        error = torch.stack([(g.double() - e.double()).square().sum() for g, e in pairs]).sum()
        scale = torch.stack([e.double().square().sum() for _, e in pairs]).sum()
        tolerance = max(torch.finfo(each.dtype).eps for each in gradients)
        same = torch.allclose(losses.double(), self.losses, rtol=tolerance**0.5, equal_nan=True)
        # Gradients that are not finite cannot be compared.
        return "vmap" if same and not error > tolerance * scale else "loop"


def is_small(gradient: Callable[[], object]) -> bool:
    """Return whether calling the operations of a gradient takes longer than computing them does."""
    with FlopCounterMode(display=False) as counter:
        gradient()
    return bool(counter.get_total_flops() <= SMALL)


def as_many(layout: Layout, dtype: torch.dtype) -> int:
    """Return of how many batches gradients are computed at once."""
    itemsize = torch.empty((), dtype=dtype).element_size()
    return max(1, min(CHUNK, CHUNK_BYTES // (layout.size * itemsize)))


def fill(
    rows: Tensor, layout: Layout, loss: FrozenLoss, batches: Sequence[Any], method: Method
) -> Tensor:
    """Write the gradient of each batch to a row, and return the losses.

    Parameters
    ----------
    rows : Tensor, shape (batch, layout.size)
        Changed in place; padding zero.
    layout : Layout
        Layers of the gradient.
    loss : FrozenLoss
        The loss.
    batches : sequence
        As many as rows. What `vmap` cannot take is computed one by one.
    method : Method
        How.

    Returns
    -------
    Tensor, shape (batch,)
    """
    if method != "loop":
        randomness = "error" if method == "vmap" else "different"
        try:
            losses, gradients = loss.gradients(batches, randomness=randomness)
        except Exception:
            # Batches of several shapes, or a branch that those of the trial did not take.
            pass
        else:
            starts, numel = layout.starts, layout.numel
            views = [
                rows[:, start : start + count].unflatten(1, shape or (1,))
                for start, count, shape in zip(starts, numel, layout.shapes, strict=False)
            ]
            copy_into(views, [each.view_as(v) for each, v in zip(gradients, views, strict=True)])
            return losses
    losses = rows.new_empty(len(rows), dtype=torch.float64)
    for index, batch in enumerate(batches):
        value, gradients = loss.gradient(batch)
        copy_into(layout.views(rows[index]), gradients)
        losses[index] = value.reshape(())
    return losses
