"""A copy of an optimizer that steps other parameters, alone or stacked, and shares nothing."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["elementwise", "keep", "needs_closure", "take_step", "trained", "twin"]

# A class that is derived from one of these may step in another way.
_ELEMENTWISE = {
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
}
# What these hold of every weight; all else in their states is of the parameter as a whole.
_PER_WEIGHT = (
    "momentum_buffer",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_inf",
    "square_avg",
    "grad_avg",
    "sum",
)
# Schedulers put a step in its place that is bound to the optimizer they have; a gradient scaler
# leaves there what the gradients of the training's own step are multiplied by.
_OF_THE_ORIGINAL = {"step", "zero_grad", "profile_hook_step", "grad_scale", "found_inf"}


def elementwise(optimizer: Optimizer) -> bool:
    """Return whether each weight is stepped by its own gradient and state alone."""
    return type(optimizer) in _ELEMENTWISE


def trained(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """Return the parameters that optimizers train, each once, in order."""
    held = (p for each in optimizers for group in each.param_groups for p in group["params"])
    return list({id(p): p for p in held if p.requires_grad}.values())


def twin(
    optimizer: Optimizer, stand_ins: Mapping[int, Tensor], count: int | None = None
) -> Optimizer:
    """Return a copy of an optimizer, in the state of now, that has other parameters.

    It is made without its class's constructor, and has none of the original's hooks.

    Parameters
    ----------
    optimizer : Optimizer
        The original, which is only read.
    stand_ins : mapping of int to Tensor
        What takes the place of a parameter, by its identity.
    count : int, optional
        How many replicas the stand-ins have along a leading dimension; the state of every weight
        then has as many. Only for what is `elementwise`.

    Returns
    -------
    Optimizer
        Of the same class.
    """
    memo: dict[int, Any] = dict(stand_ins)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # What is not trained has no gradient, and must not be the original all the same.
            memo.setdefault(id(parameter), parameter.detach().clone())
    if count is not None:
        for state, name in _per_weight(optimizer):
            values = state[name]
            memo[id(values)] = values.expand(count, *values.shape).clone()
    made: Optimizer = object.__new__(type(optimizer))
    memo[id(optimizer)] = made
    own = vars(optimizer)
    hooks = {name for name in own if name.startswith("_optimizer_") and name.endswith("_hooks")}
    kept = {name: own[name] for name in own if name not in _OF_THE_ORIGINAL | hooks}
    vars(made).update(copy.deepcopy(kept, memo))
    vars(made).update({name: OrderedDict() for name in hooks})
    return made


def keep(optimizer: Optimizer, kept: Tensor) -> None:
    """Drop the state of stacked replicas that are not kept; `kept` is boolean, (replica,)."""
    for state, name in _per_weight(optimizer):
        state[name] = state[name][kept]


def needs_closure(optimizer: Optimizer) -> bool:
    """Return whether a step computes the gradients by itself, as LBFGS does."""
    closure = inspect.signature(_step(optimizer)).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def take_step(optimizer: Optimizer, *closure: Callable[[], Tensor]) -> None:
    """Let a twin step, by its class's own step and without any hook."""
    _step(optimizer)(optimizer, *closure)


def _step(optimizer: Optimizer) -> Callable[..., Any]:
    step: Any = type(optimizer).step
    plain: Callable[..., Any] = step.__wrapped__ if getattr(step, "hooked", False) else step
    return plain


def _per_weight(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the states of parameters that hold something of every weight, and its name."""
    for state in optimizer.state.values():
        for name in _PER_WEIGHT:
            if isinstance(state.get(name), Tensor):
                yield state, name
