"""Loops of several processes: data-parallel and sharded, with gloo on this machine."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tracelab
from proofs.collectors import every_collector
from proofs.networks import batch, conv_net, loss_of
from proofs.running import probed
from proofs.states import bits, seed_all, state_of
from proofs.training import autograd, on
from tracelab_collectors import Gradients, MicroBatches, Statistics
from tracelab_collectors.attach import attach

# Forked from a process that has imported everything and started no thread.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["proofs.processes"])


def launch(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call ``function(rank, world, folder, *arguments)`` in processes; return what each returns."""
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob("rendezvous*"):
        leftover.unlink()
    started = [
        CONTEXT.Process(target=_process, args=(function, rank, world, folder, *arguments))
        for rank in range(world)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
    for process in started:
        process.kill()
    found = []
    for rank in range(world):
        result = torch.load(folder / f"result-{rank}", weights_only=False)
        (folder / f"result-{rank}").unlink()
        if isinstance(result, str):
            raise RuntimeError(f"rank {rank}: {result}")
        found.append(result)
    return found


def _process(
    function: Callable[..., Any], rank: int, world: int, folder: Path, *given: Any
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        result = function(rank, world, folder, *given)
    except Exception:
        result = traceback.format_exc()
    torch.save(result, folder / f"result-{rank}")
    distributed.destroy_process_group()


def data_parallel(
    rank: int, world: int, folder: Path, steps: int, recorded: str | None
) -> dict[str, Any]:
    """Train with two micro-batches a step, of which the first is not synchronized.

    Returns the state at the end, and at each step what autograd says in this process: of the first
    micro-batch, and of both.
    """
    seed_all(5)
    model = DistributedDataParallel(conv_net(), broadcast_buffers=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # Masks of dropout differ from rank to rank.
    seed_all(100 + rank)
    path = folder / "run.zarr"
    full = Gradients(sketch=tracelab.Full())
    session: Any = None
    if recorded == "by rank 0":
        session = attach(model, optimizer, path, collectors=[full])
    if recorded == "by every rank":
        session = attach(
            model,
            optimizer,
            path,
            collectors=[full, MicroBatches(batches=2, sketch=tracelab.Full())],
            rank=rank,
            world_size=world,
            run_id="job",
        )
    if recorded == "everything":
        session = attach(model, optimizer, path, collectors=every_collector(), **probed())
    alone: dict[str, list[np.ndarray]] = {"first": [], "both": []}
    losses = []
    for t in range(steps):
        first, second = (on(2 * (world * t + rank) + part, share=0.5) for part in range(2))
        if recorded in ("by rank 0", "by every rank"):
            alone["first"].append(flat(autograd(model.module, first).values()))
            alone["both"].append(flat(autograd(model.module, first, second).values()))
        optimizer.zero_grad()
        with model.no_sync():
            losses.append(first(model))
            losses[-1].backward()
        losses.append(second(model))
        losses[-1].backward()
        optimizer.step()
        if session:
            session.log(loss=losses[-1])
    if session:
        session.detach()
    state = [*state_of(model.module, [optimizer]), *bits(losses)]
    return {"state": state} | {name: np.array(each) for name, each in alone.items()}


class Uneven(nn.Module):
    """Layers whose rows two processes cannot share evenly, and some with fewer rows than those."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 7)
        self.single = nn.Linear(7, 1)
        self.second = nn.Linear(7, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).tanh()
        return self.head((self.second(x) * self.single(x)).tanh())


def sharded_model() -> nn.Module:
    model = Uneven()
    for layer in (model.first, model.second, model.single):
        fully_shard(layer)
    return fully_shard(model)


def sketches() -> list[Any]:
    return [
        Gradients(sketch=(tracelab.Project(16, seed=4), tracelab.Sample(6, seed=2))),
        Gradients(sketch=tracelab.Full(), name="full"),
        Statistics(quantities=("gradient", "weight", "update")),
    ]


def sharded(
    rank: int,
    world: int,
    folder: Path,
    first: int,
    steps: int,
    collectors: str | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Train sharded weights; return the state, and of each step the gathered gradient and weights.

    With `first` above 0 the run goes on from the checkpoint that the one before left.
    """
    seed_all(5)
    model = sharded_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    checkpoint = folder / f"checkpoint-{rank}"
    if first:
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    session = None
    if collectors:
        # Of sharded weights no process has its own.
        every = [each for each in every_collector(probes=False) if each.kind != "workers"]
        chosen = sketches() if collectors == "sketches" else every
        session = attach(model, optimizer, folder / "run.zarr", collectors=chosen, **options)
    whole: dict[str, list[np.ndarray]] = {"gradient": [], "weight": [], "local": []}
    losses = []
    for t in range(first, first + steps):
        optimizer.zero_grad()
        losses.append(loss_of(model, batch(world * t + rank)))
        losses[-1].backward()
        if collectors == "sketches":
            parameters = list(model.parameters())
            whole["gradient"].append(flat(p.grad.full_tensor() for p in parameters))
            whole["weight"].append(flat(p.full_tensor() for p in parameters))
            whole["local"].append(flat(p.grad.to_local() for p in parameters))
        optimizer.step()
        if session:
            session.log(loss=losses[-1].detach())
    if session:
        session.detach()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
    state = [*state_of(model, [optimizer]), *bits(losses)]
    return {"state": state} | {name: np.array(each) for name, each in whole.items()}


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([each.detach().reshape(-1) for each in tensors]).numpy()
