"""The state of a training run as bytes: equal bytes are equal bits."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def bits(value: object) -> list[bytes]:
    """Return every tensor and number of a nested value, as bytes."""
    if isinstance(value, Tensor):
        local: Any = value.detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        dense = local.coalesce().to_dense() if local.is_sparse else local
        # NumPy has no bfloat16; its bytes are those of any type of two bytes.
        dense = dense.contiguous().reshape(-1).view(torch.uint8) if dense.numel() else dense
        return [str((local.dtype, tuple(local.shape))).encode(), dense.cpu().numpy().tobytes()]
    if isinstance(value, dict):
        return [found for key in value for found in [repr(key).encode(), *bits(value[key])]]
    if isinstance(value, (list, tuple)):
        return [found for each in value for found in bits(each)]
    return [repr(value).encode()]


def generators() -> list[bytes]:
    """Return the states of torch's, NumPy's and Python's global generators."""
    numpy = np.random.get_state()  # noqa: NPY002
    return bits([torch.get_rng_state(), numpy[1].tolist(), numpy[2:], random.getstate()])


def state_of(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[bytes]:
    """Return weights, buffers, gradients, optimizer state, learning rates and generators."""
    return [
        *bits(model.state_dict()),
        *bits([parameter.grad for parameter in model.parameters()]),
        *bits([optimizer.state_dict() for optimizer in optimizers]),
        *generators(),
    ]
