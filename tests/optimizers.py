"""Optimizers with a momentum of which the formula is known, and what they do."""

import math

import numpy as np
import torch


class PNM(torch.optim.Optimizer):
    """Positive-negative momentum as Xie et al. (2021) write it, equations 7 and 8."""

    def __init__(self, params, lr, betas=(0.9, 1.0)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta0 = group["betas"]
            for p in group["params"]:
                state = self.state.setdefault(p, {})
                old, before = state.get("m", (torch.zeros_like(p), torch.zeros_like(p)))
                m = beta1**2 * before + (1 - beta1**2) * p.grad
                root = math.sqrt((1 + beta0) ** 2 + beta0**2)
                p -= group["lr"] * ((1 + beta0) * m - beta0 * old) / root
                state["m"] = (m, old)


OPTIMIZERS = {
    "plain": (torch.optim.SGD, {}),
    "heavy ball": (torch.optim.SGD, {"momentum": 0.9}),
    "dampened": (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.7, "nesterov": True}),
    "pnm": (PNM, {"betas": (0.9, 1.0)}),
    "pnm 2": (PNM, {"betas": (0.8, 2.0)}),
    "pnm 0": (PNM, {"betas": (0.9, 0.0)}),
}


def made(name, parameter, lr=1.0):
    """Return an optimizer of one parameter."""
    kind, options = OPTIMIZERS[name]
    return kind([parameter], lr=lr, **options)


def said(optimizer):
    """Return what a trace says of an optimizer."""
    return {"name": type(optimizer).__name__} | optimizer.defaults


def response(name, steps=400, curvature=0.0):
    """Return gradients and minus moves after a noise of 1, long after the first step.

    The moves are h_k where the loss is not curved.
    """
    parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = made(name, parameter)
    gradients, moves = [], []
    for step in range(-5, steps):
        before = parameter.item()
        gradients.append(float(step == 0) + curvature * before)
        parameter.grad = torch.tensor(gradients[-1], dtype=torch.float64)
        optimizer.step()
        moves.append(before - parameter.item())
    return np.array(gradients[5:]), np.array(moves[5:])
