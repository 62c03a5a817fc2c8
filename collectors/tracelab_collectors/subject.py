"""What is recorded: the layers of a model that optimizers train, and what is said of them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tracelab.errors import UsageError
from tracelab_collectors.collector import select_layers
from tracelab_collectors.layout import Layout, Shape

__all__ = ["Subject", "unwrap"]

_COMPILED = "_orig_mod."


@dataclass(slots=True)
class Subject:
    """The layers of a trace.

    Parameters
    ----------
    model : nn.Module
        The model without wrappers.
    optimizers : tuple of Optimizer
        What trains it.
    parameters : dict of str to Tensor
        Trainable parameters of the optimizers, by name, in the model's order; a parameter that
        several modules share stands once, under its first name. Changed by `follow`.
    shapes : mapping of str to tuple of int
        Their shapes.
    layout : Layout
        Their names and offsets, and the shapes of what this process has of them.
    owners : tuple of int
        The optimizer that trains each.
    kinds : mapping of str to str
        Class of the module that owns each.
    attrs : mapping
        What the trace says of the model and the optimizers.
    """

    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    parameters: dict[str, Tensor]
    shapes: Mapping[str, Shape]
    layout: Layout
    owners: tuple[int, ...]
    kinds: Mapping[str, str]
    attrs: Mapping[str, Any]
    tensors: list[Tensor] = field(init=False)
    _held: list[Tensor] = field(init=False)
    _names: set[str] = field(init=False)
    _gone: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = list(self.parameters.values())
        self._held = _held(self.optimizers)
        held = {id(parameter) for parameter in self._held}
        self._names = {name for name, p in _named(self.model).items() if id(p) in held}
        self._gone = set()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        layers: str | None,
        exclude: str | None,
    ) -> Subject:
        """Return the layers of `model` that optimizers train.

        Raises
        ------
        UsageError
            If there is nothing to record, or it cannot be recorded.
        """
        optimizers = _optimizers(optimizer)
        if not isinstance(model, nn.Module):
            raise UsageError(f"model must be a torch.nn.Module, got {model!r}")
        bare = unwrap(model)
        named = _named(bare)
        trainable = {name: p for name, p in named.items() if p.requires_grad}
        if not trainable:
            raise UsageError(
                f"the model {type(bare).__name__} has no parameter with requires_grad=True; "
                "attach after unfreezing what is trained"
            )
        owner = _owners(optimizers)
        ours = {name: p for name, p in trainable.items() if id(p) in owner}
        for name, parameter in ours.items():
            if is_lazy(parameter):
                raise UsageError(
                    f"layer {name!r} has no shape yet; run the model once before attaching"
                )
        ours = {name: p for name, p in ours.items() if p.numel()}
        if not ours:
            raise UsageError(
                f"the optimizer {type(optimizers[0]).__name__} trains none of the parameters of "
                f"the model {type(bare).__name__}; give the optimizer that was made from "
                "model.parameters()"
            )
        known = {id(p) for p in named.values()}
        foreign = [p for p in _held(optimizers) if id(p) not in known]
        if foreign:
            shapes = ", ".join(str(tuple(p.shape)) for p in foreign[:5])
            raise UsageError(
                f"the optimizers train {len(foreign)} parameters that the model "
                f"{type(bare).__name__} does not have (shapes {shapes}); give a module that holds "
                "them all, such as nn.ModuleList([model, criterion])"
            )
        chosen = select_layers(_layout(ours), layers, exclude, "attach")
        parameters = {name: ours[name] for name in chosen.names}
        for name, parameter in parameters.items():
            _check(name, parameter)
        modules = {id(p): type(m).__name__ for m in bare.modules() for p in m._parameters.values()}
        owners = tuple(owner[id(parameter)] for parameter in parameters.values())
        described: list[dict[str, Any]] = [
            {"name": type(each).__name__} | _hyperparameters(each) for each in optimizers
        ]
        attrs: dict[str, Any] = {
            "model": {
                "name": type(bare).__name__,
                "parameters": sum(p.numel() for p in named.values()),
                "frozen": [name for name in named if name not in trainable],
                "not_recorded": [name for name in trainable if name not in parameters],
                "tied": _tied(bare),
            },
            "optimizer": described[0],
        }
        if len(optimizers) > 1:
            attrs["optimizers"] = [
                {
                    **each,
                    "layers": [n for n, o in zip(parameters, owners, strict=True) if o == which],
                }
                for which, each in enumerate(described)
            ]
        layout = _layout(parameters)
        if layout.shards is not None:
            attrs["shards"] = {
                name: [start, start + numel]
                for name, start, numel in zip(
                    layout.names, layout.within, layout.numel, strict=True
                )
            }
        return cls(
            bare,
            optimizers,
            parameters,
            {name: tuple(parameter.shape) for name, parameter in parameters.items()},
            layout,
            owners,
            {name: modules[id(parameter)] for name, parameter in parameters.items()},
            attrs,
        )

    def changed(self) -> bool:
        """Return whether optimizers hold other parameters than before."""
        held = _held(self.optimizers)
        return len(held) != len(self._held) or not all(map(is_, held, self._held))

    def follow(self) -> list[str]:
        """Take the parameters that replaced others under the same names.

        Returns
        -------
        list of str
            What cannot be recorded from now on, in sentences.
        """
        owner, named, told = _owners(self.optimizers), _named(self.model), []
        owners = list(self.owners)
        for position, name in enumerate(self.layout.names):
            found = named.get(name)
            if found is not None and id(found) in owner and found.shape == self.shapes[name]:
                self.parameters[name] = found
                owners[position] = owner[id(found)]
                self._gone.discard(name)
            elif name not in self._gone and id(self.parameters[name]) not in owner:
                self._gone.add(name)
                told.append(f"layer {name!r} is no longer trained under this name and shape")
        added = [name for name, p in named.items() if id(p) in owner and name not in self._names]
        if added:
            told.append(
                f"parameters were added that the trace has no layer for: {', '.join(added)}"
            )
        self._names |= set(added)
        self.owners = tuple(owners)
        self.tensors = list(self.parameters.values())
        self._held = _held(self.optimizers)
        return told


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


def _optimizers(given: Any) -> tuple[torch.optim.Optimizer, ...]:
    optimizers = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for each in optimizers:
        if not isinstance(each, torch.optim.Optimizer):
            raise UsageError(
                f"optimizer must be a torch.optim.Optimizer or a list of them, got {each!r}"
            )
    if not optimizers or len({id(each) for each in optimizers}) < len(optimizers):
        raise UsageError(
            f"optimizer must name different optimizers, got {len(optimizers)} of which some are "
            "the same; give each once"
            if optimizers
            else "optimizer is empty; give at least one"
        )
    return optimizers


def _held(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    return [p for each in optimizers for group in each.param_groups for p in group["params"]]


def _owners(optimizers: Sequence[torch.optim.Optimizer]) -> dict[int, int]:
    owner: dict[int, int] = {}
    for which, optimizer in enumerate(optimizers):
        for parameter in _held([optimizer]):
            if owner.setdefault(id(parameter), which) != which:
                raise UsageError(
                    f"a parameter of shape {tuple(parameter.shape)} is trained by two of the "
                    "optimizers; record each optimizer into a trace of its own"
                )
    return owner


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {name.replace(_COMPILED, ""): p for name, p in model.named_parameters()}


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


def _layout(parameters: Mapping[str, Tensor]) -> Layout:
    offsets, total = [], 0
    shapes: list[Shape] = []
    shards: list[tuple[int, int]] = []
    for name, parameter in parameters.items():
        start, shape = _shard(name, parameter)
        offsets.append(total + start)
        shapes.append(shape)
        shards.append((start, parameter.numel()))
        total += parameter.numel()
    sharded = any(hasattr(parameter, "to_local") for parameter in parameters.values())
    return Layout(
        tuple(parameters), tuple(shapes), tuple(offsets), tuple(shards) if sharded else None
    )


def _shard(name: str, parameter: Any) -> tuple[int, Shape]:
    """Return the first coordinate of a parameter that this process has, and the shape it has."""
    shape = tuple(parameter.shape)
    if not hasattr(parameter, "to_local"):
        return 0, shape
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    if tuple(local[1:]) != shape[1:]:
        raise UsageError(
            f"layer {name!r} is sharded as {parameter.placements}; only shards along the first "
            "dimension can be recorded, leave it out with exclude="
        )
    # A process without any part has the offset of the end.
    return min(int(offset[0]) * math.prod(shape[1:]), parameter.numel()), tuple(local)


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
