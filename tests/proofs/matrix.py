"""Every network with every optimizer in every way: loops that must not change by one bit."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from proofs.loops import FUSED, SGD, accumulation, compiled_model, plain
from proofs.networks import NETWORKS
from proofs.training import Loop, autograd, on, plain_step

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD, momentum": SGD,
    "Adam": partial(torch.optim.Adam, lr=1e-2),
    "AdamW, fused": FUSED,
}


def compiled(network: Callable[[], nn.Module], optimizer: Callable[..., Any]) -> Loop:
    return Loop(
        lambda: compiled_model(network, optimizer),
        lambda training, t: plain_step(training, on(t)),
        lambda training, t: [autograd(training.model, on(t))],
        exact=False,
        slow=True,
    )


WAYS = {"plain": plain, "accumulation": accumulation, "torch.compile": compiled}

MATRIX: dict[str, Loop] = {
    f"{network}, {optimizer}, {way}": make(NETWORKS[network], OPTIMIZERS[optimizer])
    for way, make in WAYS.items()
    for network in NETWORKS
    for optimizer in OPTIMIZERS
}
