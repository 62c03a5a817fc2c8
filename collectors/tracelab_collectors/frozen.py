"""Gradients of a loss at frozen weights that leave no mark on the model or on any generator."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
        clones = {id(buffer): buffer.clone() for buffer in self._buffers.values()}
        buffers = {path: clones[id(buffer)] for path, buffer in self._buffers.items()}
        with torch.enable_grad():
            loss = torch.func.functional_call(
                self._function, {**self._arguments, **buffers}, (batch,), tie_weights=False
            )
            if loss.numel() != 1:
                raise UsageError(
                    "loss(model, batch) must return the scalar mean loss, got a tensor of shape "
                    f"{tuple(loss.shape)}; take its mean"
                )
            gradients = torch.autograd.grad(
                loss, self._wanted, allow_unused=True, materialize_grads=True
            )
        return loss.detach(), gradients


class _Function(nn.Module):
    """The loss as a module, so that `functional_call` reaches the model inside."""

    def __init__(self, loss: Loss, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)
