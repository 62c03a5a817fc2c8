"""Finds the model whose parameters an optimizer trains, among all modules that exist."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from tracelab.errors import UsageError

__all__ = ["owner"]


def owner(optimizer: torch.optim.Optimizer) -> nn.Module:
    """Return the smallest module that holds what an optimizer trains.

    The garbage collector knows every module. No hook on modules is needed, which
    ``torch.compile`` would guard on.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        The optimizer.

    Returns
    -------
    nn.Module
        Of several that hold the same parameters the outermost: with tied weights the body of a
        language model holds all of them, but only the model around it has the head. Where no module
        holds them all, a list of the modules, and of the parameters in none, that together do.

    Raises
    ------
    UsageError
        If the optimizer trains tensors that are in no module.
    """
    wanted: dict[int, Tensor] = {
        id(p): p for group in optimizer.param_groups for p in group["params"]
    }
    parts: list[nn.Module] = []
    while wanted and (best := _best(wanted)) is not None:
        parts.append(best)
        for parameter in best.parameters():
            wanted.pop(id(parameter), None)
    if wanted:
        # A list would make parameters of tensors, which are others then.
        if not all(isinstance(each, nn.Parameter) for each in wanted.values()):
            raise UsageError(
                f"the optimizer {type(optimizer).__name__} trains {len(wanted)} tensors that no "
                "module holds; call tracelab.attach in the script"
            )
        parts.append(nn.ParameterList(wanted.values()))
    return parts[0] if len(parts) == 1 else nn.ModuleList(parts)


def _best(wanted: dict[int, Tensor]) -> nn.Module | None:
    """Return the module that holds most of some parameters, with the fewest others."""
    best: tuple[tuple[int, int, bool, int], nn.Module] | None = None
    for found in gc.get_objects():
        # `isinstance` would ask proxies for their class, which can run their code.
        if not issubclass(type(found), nn.Module) or "_parameters" not in vars(found):
            continue
        held = {id(parameter) for parameter in found.parameters()}
        common = len(held & wanted.keys())
        if not common:
            continue
        # What torch.compile makes of a module comes after the module.
        traced = isinstance(found, torch.fx.GraphModule)
        rank = (-common, len(held), traced, -sum(1 for _ in found.modules()))
        if best is None or rank < best[0]:
            best = (rank, found)
    return None if best is None else best[1]
