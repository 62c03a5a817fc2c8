"""Whether a step is the gradient times one rate, that of all weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["plain_sgd"]

_EXTRAS = ("momentum", "weight_decay", "nesterov", "maximize")


def plain_sgd(optimizers: Sequence[torch.optim.Optimizer]) -> float | Tensor:
    """Return 1 if all optimizers are SGD without extras and with one learning rate, as they are.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        With the settings of now: parameter groups and their options can change from step to step.

    Returns
    -------
    float or 0-d Tensor
        0 if they are not; on a device where learning rates are there, so that it need not be waited
        for.
    """
    rate: float | Tensor | None = None
    alike: float | Tensor = 1.0
    for optimizer in optimizers:
        if type(optimizer) is not torch.optim.SGD:
            return 0.0
        for group in optimizer.param_groups:
            for extra in _EXTRAS:
                if group[extra]:
                    return 0.0
            if rate is None:
                rate = group["lr"]
                continue
            same = _same(group["lr"], rate)
            if same is False:
                return 0.0
            if isinstance(same, Tensor):
                alike = same & alike.to(same.device) if isinstance(alike, Tensor) else same
    return alike


def _same(one: float | Tensor, other: float | Tensor) -> bool | Tensor:
    """Return whether rates are the same; on a device if one is there, whatever the other is on."""
    if one is other:
        return True
    one, other = (
        each.detach().reshape(()) if isinstance(each, Tensor) else float(each)
        for each in (one, other)
    )
    tensors = [each for each in (one, other) if isinstance(each, Tensor)]
    away = [each.device for each in tensors if each.device.type != "cpu"]
    if away and isinstance(one, Tensor) and isinstance(other, Tensor):
        # Neither is waited for: what is on the host goes to the device, and not the reverse.
        one, other = (each.to(away[-1], non_blocking=True) for each in (one, other))
    same = one == other
    return same if away and isinstance(same, Tensor) else bool(same)
