"""A small network trained on real images, recorded as a user would record it.

scikit-learn's copy of the UCI handwritten digits (1,797 images of 8 x 8 pixels) is on the machine
with the package, so the demonstration needs no network. Three runs differ in what is claimed to
matter for gradient noise: the batch size and the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tracelab
from tracelab_collectors import Gradients, NoiseProbe, Statistics, Weights

__all__ = ["FULL", "QUICK", "Length", "train"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Length:
    """How long to train and how much to record.

    Parameters
    ----------
    steps : int
        Optimizer steps of each run.
    batches : int
        Minibatch gradients of each noise probe.
    probes : int
        Noise probes, evenly spaced in the logarithm of the step, at the first and the last step
        among others.
    coordinates, directions : int
        Sampled coordinates and random directions kept of each layer's gradient.
    """

    steps: int
    batches: int
    probes: int
    coordinates: int
    directions: int


FULL = Length(steps=3000, batches=500, probes=6, coordinates=64, directions=64)
QUICK = Length(steps=300, batches=300, probes=2, coordinates=24, directions=24)


@dataclass(frozen=True, slots=True)
class Run:
    """One training run: its name, batch size and how to make its optimizer."""

    name: str
    batch_size: int
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]


RUNS = (
    Run("sgd-batch-32", 32, lambda model: torch.optim.SGD(model.parameters(), lr=0.1)),
    Run("sgd-batch-512", 512, lambda model: torch.optim.SGD(model.parameters(), lr=0.1)),
    Run("adam-batch-32", 32, lambda model: torch.optim.Adam(model.parameters(), lr=1e-3)),
)


def train(
    out: Path,
    quick: bool = False,
    *,
    seed: int = 0,
    overwrite: bool = False,
    length: Length | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Train a small network on handwritten digits three times and return the traces.

    SGD at two batch sizes and Adam, from the same initial weights.

    Parameters
    ----------
    out : Path
        Folder of the traces.
    quick : bool
        Train and record less.
    seed : int
        Seed of the initial weights, the minibatches and what is recorded.
    overwrite : bool
        Replace traces that exist.
    length : Length, optional
        How long to train, instead of `quick`.
    progress : callable, optional
        Called with (run, steps done, steps in all).

    Returns
    -------
    list of Path
        One trace a run.
    """
    chosen = length or (QUICK if quick else FULL)
    images, labels = _digits()
    threads = torch.get_num_threads()
    # So small a network only loses by sharing its work among threads.
    torch.set_num_threads(1)
    try:
        return [
            _record(
                run, out / f"{run.name}.zarr", images, labels, chosen, seed, overwrite, progress
            )
            for run in RUNS
        ]
    finally:
        torch.set_num_threads(threads)


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.as_tensor(digits.images / 16, dtype=torch.float32)
    return images, torch.as_tensor(digits.target, dtype=torch.int64)


def _record(
    run: Run,
    path: Path,
    images: Tensor,
    labels: Tensor,
    length: Length,
    seed: int,
    overwrite: bool,
    progress: Progress | None,
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = run.optimizer(model)
    batches = torch.Generator().manual_seed(seed)

    def batch_of(chosen: Tensor) -> tuple[Tensor, Tensor]:
        return images[chosen], labels[chosen]

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    sketches = (tracelab.Sample(length.coordinates), tracelab.Project(length.directions))
    last = length.steps - 1
    probes = np.geomspace(1, last + 1, length.probes).astype(int) - 1
    with tracelab.attach(
        model,
        optimizer,
        path,
        loss=loss_of,
        data=batch_of,
        data_size=len(labels),
        seed=seed,
        overwrite=overwrite,
        collectors=[
            Statistics(),
            Gradients(every=10, sketch=sketches),
            NoiseProbe(
                steps=sorted(set(probes.tolist())),
                batches=length.batches,
                batch_size=run.batch_size,
                sketch=sketches,
            ),
            Weights(sketch=tracelab.Project(length.directions)),
        ],
        metadata={"dataset": "UCI handwritten digits", "batch_size": run.batch_size},
    ) as session:
        for step in range(length.steps):
            chosen = torch.randint(len(labels), (run.batch_size,), generator=batches)
            loss = loss_of(model, batch_of(chosen))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            session.log(loss=loss)
            if progress is not None:
                progress(run.name, step + 1, length.steps)
    return path
