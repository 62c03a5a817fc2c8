"""Gradients of a loss at frozen weights that leave no mark on the model or on any generator."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from tracelab.errors import UsageError
from tracelab_collectors.collector import Loss

__all__ = ["FrozenLoss", "forked_generators"]


@contextmanager
def forked_generators(seed: int) -> Iterator[None]:
    """Seed every global generator in use for the block, and put all back behind it.

    These are torch's on the CPU and on every CUDA device, Python's and NumPy's.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count() if cuda else 0)):
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class FrozenLoss:
    """A loss as a function of a batch alone.

    The model keeps its mode: in training mode dropout draws masks and batch normalisation uses
    the batch's statistics, as in training. Parameters are aliases outside the model's graph, and
    every evaluation has its own copy of the buffers, so that running statistics do not move.

    Parameters
    ----------
    loss : callable
        ``loss(model, batch)``, the mean over the batch's examples.
    model : nn.Module
        The model.
    parameters : mapping of str to Tensor
        Those that the gradient is with respect to, by the name a trace gives them.
    """

    def __init__(self, loss: Loss, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self._function = _Function(loss, model)
        self._buffers = dict(self._function.named_buffers(remove_duplicate=False))
        named = dict(self._function.named_parameters(remove_duplicate=False))
        # Shared parameters are one alias under all their names, so that nothing has to be tied.
        aliases = {id(parameter): parameter.detach() for parameter in named.values()}
        self._arguments = {path: aliases[id(parameter)] for path, parameter in named.items()}
        replaced = [name for name, parameter in parameters.items() if id(parameter) not in aliases]
        if replaced:
            raise UsageError(
                f"{', '.join(replaced)}: the model's parameters were replaced after attach; "
                "attach again behind what replaced them"
            )
        self._wanted = [aliases[id(p)].requires_grad_() for p in parameters.values()]

    def gradient(self, batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the loss of a batch and its gradient by parameter (zero where unused)."""
        with torch.enable_grad():
            loss = self._evaluate({**self._arguments, **self._cloned_buffers()}, batch)
            gradients = torch.autograd.grad(
                loss, self._wanted, allow_unused=True, materialize_grads=True
            )
        return loss.detach(), gradients

    def gradients(
        self, batches: Sequence[Any], *, randomness: str = "error"
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what `gradient` does for each of several batches, by one vectorised pass.

        Parameters
        ----------
        batches : sequence
            Of one structure and of tensors of the same shapes; what is no tensor must be equal.
        randomness : {"error", "different"}
            What random numbers do that the model draws: raise, or differ from batch to batch.

        Returns
        -------
        losses : Tensor, shape (batch,)
        gradients : tuple of Tensor, shape (batch, *parameter.shape)

        Raises
        ------
        ValueError
            If the batches differ in structure, in shapes or in what is no tensor.
        Exception
            Whatever `torch.func.vmap` raises where it cannot take the model.
        """
        flat = [trees.tree_flatten(batch) for batch in batches]
        leaves, structure = flat[0]
        stacked: dict[int, Tensor] = {}
        for place, column in enumerate(zip(*(found for found, _ in flat), strict=True)):
            if all(isinstance(leaf, Tensor) for leaf in column):
                if len({(leaf.shape, leaf.dtype) for leaf in column}) > 1:
                    raise ValueError("batches differ in shape")
                stacked[place] = torch.stack(column)
            elif any(isinstance(leaf, Tensor) or leaf != column[0] for leaf in column):
                raise ValueError("batches differ in what is no tensor")
        if any(other != structure for _, other in flat):
            raise ValueError("batches differ in structure")
        position = {id(alias): index for index, alias in enumerate(self._wanted)}
        buffers = self._cloned_buffers()

        def loss_of(wanted: Sequence[Tensor], varying: Mapping[int, Tensor]) -> Tensor:
            arguments = {
                path: wanted[position[id(alias)]] if id(alias) in position else alias
                for path, alias in self._arguments.items()
            }
            own = [varying.get(place, leaf) for place, leaf in enumerate(leaves)]
            batch = trees.tree_unflatten(own, structure)
            return self._evaluate({**arguments, **buffers}, batch).reshape(())

        wanted = [alias.detach() for alias in self._wanted]
        gradient_and_loss = torch.func.grad_and_value(loss_of)
        with torch.enable_grad(), warnings.catch_warnings():
            # Operations without a rule for batches are looped over: slower, and as right.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            found, losses = torch.func.vmap(
                gradient_and_loss, in_dims=(None, 0), randomness=randomness
            )(wanted, stacked)
        return losses.detach(), tuple(each.detach() for each in found)

    def _cloned_buffers(self) -> dict[str, Tensor]:
        clones = {id(buffer): buffer.clone() for buffer in self._buffers.values()}
        return {path: clones[id(buffer)] for path, buffer in self._buffers.items()}

    def _evaluate(self, arguments: Mapping[str, Tensor], batch: Any) -> Tensor:
        loss: Tensor = torch.func.functional_call(
            self._function, dict(arguments), (batch,), tie_weights=False
        )
        if loss.numel() != 1:
            raise UsageError(
                "loss(model, batch) must return the scalar mean loss, got a tensor of shape "
                f"{tuple(loss.shape)}; take its mean"
            )
        return loss


class _Function(nn.Module):
    """The loss as a module, so that `functional_call` reaches the model inside."""

    def __init__(self, loss: Loss, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)
