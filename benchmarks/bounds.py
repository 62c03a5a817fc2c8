"""What a network's trace says about generalization: every bound, beside the gap itself.

``python -m benchmarks bounds``: a network is trained on handwritten digits by plain SGD, recorded,
and every bound is computed from its trace: the value, its terms, the gap between held-out and
training error, what makes a bound vacuous, which assumptions hold. ``--figure FILE`` also draws
what the analyses draw.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tracelab
from tracelab import registry
from tracelab.contracts import NETWORK
from tracelab.typing import Assumption, FloatArray
from tracelab_collectors import PerturbedLoss, PriorKernel, Statistics, Weights, misclassified

STEPS, BATCH, RATE, SEED = 2000, 32, 0.1, 0
ROWS = (0, 10, 30, 100, 300, 1000)
SIGMAS, DRAWS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.6), 100
CODES = (Assumption.HOLDS, Assumption.FAILS, Assumption.UNCHECKED)


@dataclass(frozen=True)
class Said:
    """What the bounds of an analysis are on, where that was measured, and which terms they have."""

    of: str
    truth: str
    terms: tuple[str, ...]


SAID = {
    "information_bound": Said("gap", "gap", ("trajectory_term", "flatness_term", "sigma")),
    "pac_bayes": Said(
        "risk", "held_out", ("empirical", "empirical_high", "penalty", "kl", "sigma")
    ),
    "marginal_likelihood": Said("risk of two classes", "", ("log_evidence", "price_term")),
    "dimension_bound": Said("gap", "no array", ("bound_term",)),
}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def digits() -> tuple[torch.utils.data.TensorDataset, torch.utils.data.TensorDataset]:
    """Return two thirds of the images to train on, and the rest."""
    images, labels = load_digits(return_X_y=True)
    data = torch.utils.data.TensorDataset(
        torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(SEED))
    inputs, classes = (each[order] for each in data.tensors)
    return (
        torch.utils.data.TensorDataset(inputs[:1200], classes[:1200]),
        torch.utils.data.TensorDataset(inputs[1200:], classes[1200:]),
    )


def record(path: Path) -> None:
    """Train a network and record what bounds need."""
    train, test = digits()
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    draw = torch.Generator().manual_seed(SEED)
    collectors = [
        PerturbedLoss(
            held_out=test, steps=ROWS, batch_size=BATCH, replacement=True, error=misclassified,
            draws=DRAWS, sigmas=SIGMAS, curvature=8,
        ),
        PriorKernel(examples=200),
        Weights(sketch=tracelab.Project(256), every=1),
        Statistics(),
    ]  # fmt: skip
    with tracelab.attach(
        net, optimizer, path, collectors=collectors, loss=loss, data=train, seed=SEED
    ):
        for _ in range(STEPS):
            chosen = torch.randint(len(train), (BATCH,), generator=draw)
            optimizer.zero_grad()
            loss(net, train[chosen]).backward()
            optimizer.step()


def told(name: str, result: xr.Dataset, errors: FloatArray) -> Iterator[str]:
    """Yield a line of the table for each bound, at the end of the run."""
    last = result.sel(layer=NETWORK)
    last = last.isel(step=-1) if "step" in last.dims else last
    dims = [str(dim) for dim in last["bound"].dims]
    for labels in itertools.product(*(last[dim].values for dim in dims)):
        row = last.sel(dict(zip(dims, labels, strict=True)))
        said, value = SAID[name], float(row["bound"])
        truth = float(row[said.truth]) if said.truth in row else errors[1] - errors[0]
        cells = [
            ", ".join([name.replace("_", " "), *map(str, labels)]),
            f"{value:.3g}" if np.isfinite(value) else "none: what it needs is not there",
            "vacuous" if row["vacuous"] else "",
            ", ".join(_terms(row, said.terms)) if np.isfinite(value) else "",
            f"{said.of} {truth:.4f}" if said.truth else said.of,
            *("; ".join(_among(row, code)) for code in CODES),
        ]
        yield f"| {' | '.join(cells)} |"


def _terms(row: xr.Dataset, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        values = np.atleast_1d(row[name].values)
        labels = row[name].coords[row[name].dims[0]].values if row[name].ndim else [name]
        yield from (
            f"{str(label).replace('_', ' ')} {value:.3g}"
            for label, value in zip(labels, values, strict=True)
        )


def _among(row: xr.Dataset, code: Assumption) -> list[str]:
    held = row["assumption_holds"]
    return [str(name).replace("_", " ") for name in held["assumption"].values[held.values == code]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, default=None, help="folder in which to draw them")
    options, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        record(folder / "digits.zarr")
        trace = tracelab.open(folder / "digits.zarr")
        at_end = trace.groups["perturbed_loss"]["error"].isel(step=-1).values
        print(
            f"Training error {at_end[0]:.4f}, held-out error {at_end[1]:.4f}, gap "
            f"{at_end[1] - at_end[0]:.4f}.\n"
        )
        print("| bound | value | | terms | measured | assumptions met | not met | unchecked |")
        print("|---|---|---|---|---|---|---|---|")
        for name in SAID:
            result = tracelab.analyze(trace, name)[name].load()
            for line in told(name, result, at_end):
                print(line)
            if options.figure is not None:
                figure = registry.analysis(name).plot({"digits": result})
                figure.savefig(options.figure / f"{name}.png", dpi=120)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
