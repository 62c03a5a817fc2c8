"""Jobs whose workers part: one of them not honest, local SGD, gossip, and noise that is known."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import tracelab
from proofs.states import seed_all
from tracelab_collectors import MicroBatches, Workers
from tracelab_collectors.attach import attach

ATTACKS = ("honest", "sign flip", "large norm", "small drift")


def recorded(rank: int, world: int) -> dict[str, Any]:
    return {"rank": rank, "world_size": world, "run_id": "job"}


def attacked(rank: int, world: int, folder: Path, steps: int, attack: str) -> dict[str, Any]:
    """Train data-parallel; the last rank but one does to its loss what the attack says."""
    seed_all(3)
    teacher = nn.Linear(32, 8)
    net = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 8))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    drift = [torch.randn(p.shape) for p in net.parameters()]
    seed_all(100 + rank)
    byzantine = rank == world - 2
    collectors = [Workers(sketch=tracelab.Project(512))]
    with attach(
        model, optimizer, folder / "run.zarr", collectors=collectors, **recorded(rank, world)
    ):
        for _ in range(steps):
            optimizer.zero_grad()
            x = torch.randn(8, 32)
            target = teacher(x).detach() + torch.randn(8, 8)
            loss = (model(x) - target).square().mean()
            if byzantine and attack == "sign flip":
                loss = -loss
            if byzantine and attack == "large norm":
                loss = 20 * loss
            if byzantine and attack == "small drift":
                along = zip(net.parameters(), drift, strict=True)
                loss = loss + 0.012 * sum((p * way).sum() for p, way in along)
            loss.backward()
            optimizer.step()
    return {}


def centres(world: int, size: int = 40) -> Tensor:
    """Return where each worker's quadratic has its minimum."""
    return torch.randn(world, size, generator=torch.Generator().manual_seed(7)).double()


def quadratic(
    rank: int, world: int, folder: Path, steps: int, period: int, rate: float, gossip: float
) -> dict[str, Any]:
    """Descend ``|x - c_i|^2 / 2``, averaging weights every `period` steps, with neighbours between.

    Returns weights before each step.
    """
    centre = centres(world)[rank]
    net = nn.Module()
    net.x = nn.Parameter(torch.zeros_like(centre))
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    # As many directions as weights: each has one of its own.
    collectors = [Workers(sketch=tracelab.Project(64))]
    weights = []
    with attach(
        net, optimizer, folder / "run.zarr", collectors=collectors, **recorded(rank, world)
    ):
        for step in range(steps):
            weights.append(net.x.detach().numpy().copy())
            optimizer.zero_grad()
            ((net.x - centre).square().sum() / 2).backward()
            optimizer.step()
            with torch.no_grad():
                if gossip:
                    everyone = [torch.empty_like(net.x) for _ in range(world)]
                    distributed.all_gather(everyone, net.x.detach())
                    beside = everyone[rank - 1] + everyone[(rank + 1) % world]
                    net.x.mul_(1 - 2 * gossip).add_(beside, alpha=gossip)
                if (step + 1) % period == 0:
                    distributed.all_reduce(net.x.data)
                    net.x.div_(world)
    return {"weights": np.array(weights)}


def noisy_mean(
    rank: int, world: int, folder: Path, steps: int, passes: int, size: int
) -> dict[str, Any]:
    """Learn the mean of Gaussian examples at a rate of 0: the noise scale is known."""
    net = nn.Module()
    net.forward = lambda examples: (net.x - examples).square().sum(1).mean() / 2
    net.x = nn.Parameter(torch.zeros(40))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seed_all(100 + rank)
    collectors = [
        MicroBatches(batches=passes, sketch=tracelab.Full(), batch_size=size),
        Workers(batches=passes, sketch=tracelab.Project(64)),
    ]
    with attach(
        model, optimizer, folder / "run.zarr", collectors=collectors, **recorded(rank, world)
    ):
        for _ in range(steps):
            optimizer.zero_grad()
            for part in range(passes):
                loss = model(0.5 + torch.randn(size, 40)) / passes
                if part < passes - 1:
                    with model.no_sync():
                        loss.backward()
                else:
                    loss.backward()
            optimizer.step()
    return {}
