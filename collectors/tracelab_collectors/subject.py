"""What is recorded: the layers of a model that one optimizer trains, and what is said of them."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tracelab.errors import UsageError
from tracelab_collectors.collector import select_layers
from tracelab_collectors.layout import Layout

__all__ = ["Subject", "unwrap"]

_COMPILED = "_orig_mod."


@dataclass(frozen=True, slots=True)
class Subject:
    """The layers of a trace.

    Parameters
    ----------
    model : nn.Module
        The model without wrappers.
    parameters : mapping of str to Tensor
        Trainable parameters of the optimizer, by name, in the model's order; a parameter that
        several modules share stands once, under its first name.
    layout : Layout
        Their names, shapes and offsets.
    kinds : mapping of str to str
        Class of the module that owns each.
    attrs : mapping
        What the trace says of the model and the optimizer.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    layout: Layout
    kinds: Mapping[str, str]
    attrs: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        layers: str | None,
        exclude: str | None,
    ) -> Subject:
        """Return the layers of `model` that `optimizer` trains.

        Raises
        ------
        UsageError
            If there is nothing to record, or it cannot be recorded.
        """
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UsageError(
                "LBFGS evaluates the loss several times a step, so that its steps have no one "
                "gradient; record another optimizer"
            )
        bare = unwrap(model)
        named = {name.replace(_COMPILED, ""): p for name, p in bare.named_parameters()}
        trainable = {name: p for name, p in named.items() if p.requires_grad}
        if not trainable:
            raise UsageError(
                f"the model {type(bare).__name__} has no parameter with requires_grad=True; "
                "attach after unfreezing what is trained"
            )
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        ours = {name: p for name, p in trainable.items() if id(p) in trained}
        for name, parameter in ours.items():
            if is_lazy(parameter):
                raise UsageError(
                    f"layer {name!r} has no shape yet; run the model once before attaching"
                )
        ours = {name: p for name, p in ours.items() if p.numel()}
        if not ours:
            raise UsageError(
                f"the optimizer {type(optimizer).__name__} trains none of the parameters of the "
                f"model {type(bare).__name__}; give the optimizer that was made from "
                "model.parameters()"
            )
        chosen = select_layers(_layout(ours), layers, exclude, "attach")
        parameters = {name: ours[name] for name in chosen.names}
        for name, parameter in parameters.items():
            _check(name, parameter)
        owners = {id(p): type(m).__name__ for m in bare.modules() for p in m._parameters.values()}
        return cls(
            bare,
            parameters,
            _layout(parameters),
            {name: owners[id(parameter)] for name, parameter in parameters.items()},
            {
                "model": {
                    "name": type(bare).__name__,
                    "parameters": sum(p.numel() for p in named.values()),
                    "frozen": [name for name in named if name not in trainable],
                    "not_recorded": [name for name in trainable if name not in parameters],
                    "tied": _tied(bare),
                },
                "optimizer": {"name": type(optimizer).__name__} | _hyperparameters(optimizer),
            },
        )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile`` and data-parallel wrappers."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, parallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _check(name: str, parameter: Tensor) -> None:
    if not parameter.is_floating_point():
        raise UsageError(
            f"layer {name!r} has dtype {parameter.dtype}; only real floating-point parameters can "
            "be recorded, leave it out with exclude="
        )
    if parameter.device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"layer {name!r} is on {parameter.device}; recording works on cpu and cuda"
        )
    if hasattr(parameter, "to_local"):
        raise UsageError(
            f"layer {name!r} is sharded over processes ({type(parameter).__name__}), which cannot "
            "be recorded; train without sharding"
        )


def _layout(parameters: Mapping[str, Tensor]) -> Layout:
    offsets, total = [], 0
    for parameter in parameters.values():
        offsets.append(total)
        total += parameter.numel()
    shapes = tuple(tuple(parameter.shape) for parameter in parameters.values())
    return Layout(tuple(parameters), shapes, tuple(offsets))


def _tied(model: nn.Module) -> dict[str, str]:
    """Return the further names of shared parameters, each with the name it is recorded under."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            tied[name.replace(_COMPILED, "")] = known.replace(_COMPILED, "")
    return tied


def _hyperparameters(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {name: _plain(value) for name, value in optimizer.defaults.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else repr(value)
