"""The gradient scaler that calls an optimizer's step."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

__all__ = ["calling_scale"]

# From the hook up to GradScaler.step there are the optimizer's wrappers and the scaler's own.
FRAMES = 24


def calling_scale(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return what the scaler that called ``optimizer.step()`` multiplies losses by.

    A scaler tells an optimizer only if it is fused, and any optimizer once gradients are unscaled;
    what backward passes left is still scaled then. None where no scaler called.
    """
    frame = sys._getframe(1)
    for _ in range(FRAMES):
        scaler = frame.f_locals.get("self")
        if isinstance(scaler, torch.amp.GradScaler) and scaler.is_enabled():
            return scaler._scale
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None
