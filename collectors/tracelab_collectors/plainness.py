"""Whether a step is the gradient times one rate, that of all weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["plain_sgd"]

_EXTRAS = ("momentum", "weight_decay", "nesterov", "maximize")


def plain_sgd(optimizers: Sequence[torch.optim.Optimizer]) -> bool | Tensor:
    """Return whether all optimizers are SGD without extras and with one learning rate, as they are.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        With the settings of now: parameter groups and their options can change from step to step.

    Returns
    -------
    bool or 0-d Tensor
        On a device where learning rates are there, so that it need not be waited for.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    if any(type(each) is not torch.optim.SGD for each in optimizers) or any(
        group[extra] for group in groups for extra in _EXTRAS
    ):
        return False
    rate = groups[0]["lr"]
    alike: bool | Tensor = True
    for group in groups[1:]:
        same = group["lr"] is rate or group["lr"] == rate
        alike = same if alike is True else alike & same
    return alike.detach().reshape(()) if isinstance(alike, Tensor) else alike
