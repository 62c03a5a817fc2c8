"""Finds the model whose parameters an optimizer trains, among all that exist."""

from __future__ import annotations

import gc

import torch
from torch import nn

from tracelab.errors import UsageError

__all__ = ["owner"]


def owner(optimizer: torch.optim.Optimizer) -> tuple[nn.Module, int]:
    """Return the smallest module that holds what an optimizer trains.

    The garbage collector knows every module. No hook on modules is needed, which
    ``torch.compile`` would guard on.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        The optimizer.

    Returns
    -------
    module : nn.Module
        The one that holds most of the trained parameters; of several the one with the fewest
        others, and of several such the outermost: with tied weights the body of a language model
        holds all parameters, but only the model around it has the head.
    missing : int
        How many of the trained parameters it does not hold.

    Raises
    ------
    UsageError
        If no module holds any.
    """
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    best: tuple[tuple[int, int, bool, int], nn.Module] | None = None
    for found in gc.get_objects():
        # `isinstance` would ask proxies for their class, which can run their code.
        if not issubclass(type(found), nn.Module) or "_parameters" not in vars(found):
            continue
        held = {id(parameter) for parameter in found.parameters()}
        missing = len(wanted - held)
        if missing == len(wanted):
            continue
        # What torch.compile makes of a module comes after the module.
        traced = isinstance(found, torch.fx.GraphModule)
        rank = (missing, len(held), traced, -sum(1 for _ in found.modules()))
        if best is None or rank < best[0]:
            best = (rank, found)
    if best is None:
        raise UsageError(
            f"no module holds the parameters that the optimizer {type(optimizer).__name__} "
            "trains; call tracelab.attach in the script"
        )
    return best[1], best[0][0]
