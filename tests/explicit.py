"""The Hessian of a small network, entry by entry."""

import copy

import numpy as np
import torch


def explicit(net, loss, batch, names=None) -> np.ndarray:
    """The Hessian in float64, one row of the gradient's Jacobian after the other."""
    exact = copy.deepcopy(net).double()
    chosen = [p for name, p in exact.named_parameters() if names is None or name in names]
    inputs = batch[0].double() if batch[0].is_floating_point() else batch[0]
    value = loss(exact, (inputs, batch[1]))
    gradient = torch.autograd.grad(value, chosen, create_graph=True)
    flat = torch.cat([each.flatten() for each in gradient])
    rows = [
        torch.cat([
            each.flatten()
            for each in torch.autograd.grad(
                entry, chosen, retain_graph=True, materialize_grads=True
            )
        ])
        for entry in flat
    ]  # fmt: skip
    return torch.stack(rows).numpy()
