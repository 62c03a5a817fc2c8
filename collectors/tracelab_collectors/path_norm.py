"""The path norm of chains of linear layers and ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracelab_collectors.frozen import Frozen

__all__ = ["chain_of", "path_norm"]

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Those that pass on what they get, in evaluation mode.
_SHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_PASSING = (nn.ReLU, *_SHAPES, *_DROPOUT)


def chain_of(model: nn.Module) -> str:
    """Return why a model is no chain of linear layers and ReLU, in words; "" if it is one."""
    if type(model) is nn.Sequential:
        return next((why for each in model if (why := chain_of(each))), "")
    if type(model) in _PASSING:
        return ""
    if type(model) in _LINEAR:
        if "weight" not in model._parameters:
            return f"the weight of {type(model).__name__} is computed from other parameters"
        if getattr(model, "padding_mode", "zeros") != "zeros":
            return f"padding_mode={model.padding_mode!r} of {type(model).__name__}"
        return ""
    return f"{type(model).__name__} is neither Sequential, linear, convolution nor ReLU"


def path_norm(model: nn.Module, frozen: Frozen, inputs: Tensor) -> float:
    r"""Return the sum over all paths of the product of squared weights.

    .. math:: \sum_c f_c(1; w^2),

    the outputs at an input of ones, all weights and biases squared; a bias begins paths of its own.
    In float64: products of squares over layers soon exceed float32.

    Parameters
    ----------
    model : nn.Module
        A chain (`chain_of`), in evaluation mode.
    frozen : Frozen
        The same, frozen.
    inputs : Tensor, shape (example, ...)
        Of the shape that the model takes.

    References
    ----------
    Neyshabur, Tomioka, Srebro, "Norm-Based Capacity Control in Neural Networks", COLT 2015; as a
    forward pass in Jiang, Neyshabur, Mobahi, Krishnan, Bengio, "Fantastic Generalization Measures
    and Where to Find Them", ICLR 2020.
    """
    squares = {id(each): each.detach().double().square() for each in model.parameters()}
    ones = torch.ones_like(inputs[:1], dtype=torch.float64)
    with torch.no_grad():
        return float(frozen(lambda model, batch: model(batch), ones, squares).sum())
