"""How often bounds are crossed: 200 training sets, each with a network of its own.

``python -m benchmarks bound_coverage``: logistic regression and a small network are trained on 100
examples of a known law, by plain SGD and with noise added to the weights, and recorded; what bounds
say of the risk, or of the gap, is put beside what 2,000 fresh examples say. The bound by the
evidence is of networks at random that fit all labels: of 20,000 drawn, those that fit 8 are put
beside it. A bound of probability 1 - delta may be crossed by a share delta of sets (the binomial
law says how many of 200 that can be), a bound on an expectation not by the mean.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

import tracelab
from tracelab.contracts import NETWORK
from tracelab.typing import FloatArray
from tracelab_collectors import PerturbedLoss, PriorKernel, Statistics, Weights, misclassified

SETS, EXAMPLES, FRESH, INPUTS = 200, 100, 2000, 5
STEPS, BATCH, RATE, ROWS = 120, 10, 0.2, (0, 5, 20, 60)
# Chosen before any data are seen.
SIGMAS, TOTAL, DRAWS = (0.2, 0.4, 0.8, 1.6), 0.8, 16
ADDED = 0.05
HIDDEN, RANDOM, FITTED, CHUNK = 64, 20_000, 8, 500
Make: TypeAlias = Callable[[], nn.Module]
MODELS: dict[str, Make] = {
    "logistic regression": lambda: nn.Linear(INPUTS, 2),
    "network": lambda: nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 2)),
}
CONFIDENCE = 0.95
Pairs: TypeAlias = dict[str, FloatArray]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def drawn(count: int, generator: torch.Generator) -> torch.utils.data.TensorDataset:
    """Return examples of two classes, of which noise hides the border."""
    inputs = torch.randn(count, INPUTS, generator=generator)
    score = inputs[:, 0] + inputs[:, 1] * inputs[:, 2] + torch.randn(count, generator=generator)
    return torch.utils.data.TensorDataset(inputs, (score > 0).long())


def record(make: Make, added: float, number: int, path: Path) -> None:
    """Train on a set of its own, adding noise to the weights, and record the run."""
    generator = torch.Generator().manual_seed(number)
    train, fresh = drawn(EXAMPLES, generator), drawn(FRESH, generator)
    torch.manual_seed(number)
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    probe = PerturbedLoss(
        held_out=fresh, steps=ROWS, sigmas=SIGMAS, draws=DRAWS, error=misclassified, batches=16,
        batch_size=BATCH, replacement=True,
    )  # fmt: skip
    path_of_weights = Weights(every=1, sketch=tracelab.Project(64))
    collectors = [probe, path_of_weights, Statistics()]
    with tracelab.attach(
        net, optimizer, path, collectors=collectors, loss=loss, data=train, seed=number
    ) as session:
        for _ in range(STEPS):
            chosen = torch.randint(EXAMPLES, (BATCH,), generator=generator)
            optimizer.zero_grad()
            loss(net, train[chosen]).backward()
            optimizer.step()
            if added:
                session.log(injected_noise=added)
                with torch.no_grad():
                    for weight in net.parameters():
                        weight += added * torch.randn(weight.shape, generator=generator)


def crossings(make: Make, added: float, sets: int) -> Pairs:
    """Return bound and truth of every set by theory, shape (set, 2)."""
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(sets):
            path, gap = Path(folder) / f"{number}.zarr", np.nan
            record(make, added, number, path)
            for name, truth, given in (
                ("information_bound", "gap", {"sigma_total": TOTAL}),
                ("pac_bayes", "held_out", {"confidence": CONFIDENCE}),
                ("dimension_bound", "", {"iterates": 100}),
            ):
                result = tracelab.analyze(path, name, layers=NETWORK, **given)[name].load()
                last = result.sel(layer=NETWORK)
                last = last.isel(step=-1) if "step" in last.dims else last
                gap = float(last["gap"]) if name == "information_bound" else gap
                for theory in last["theory"].values:
                    pair = last.sel(theory=theory)
                    if np.isfinite(pair["bound"]):
                        measured = float(pair[truth]) if truth else gap
                        label = f"{name.replace('_', ' ')}, {theory}"
                        found[label].append([float(pair["bound"]), measured])
    return {theory: np.array(pairs) for theory, pairs in found.items()}


def random_signs(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return what networks at random say of inputs, initialized as PyTorch does."""

    def uniform(*shape: int, fan_in: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / fan_in**0.5

    found = []
    for _ in range(RANDOM // CHUNK):
        first = uniform(CHUNK, INPUTS + 1, HIDDEN, fan_in=INPUTS)
        last = uniform(CHUNK, HIDDEN + 1, 1, fan_in=HIDDEN)
        hidden = torch.relu(inputs @ first[:, :-1] + first[:, -1:])
        found.append((hidden @ last[:, :-1] + last[:, -1:])[..., 0] > 0)
    return torch.cat(found)


def evidence(sets: int) -> Pairs:
    """Return the same of the bound by the evidence; the law is that of a pool of examples."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(FRESH, INPUTS, generator=generator)
    signs = random_signs(pool, generator)
    target = pool[:, 0] + pool[:, 1] * pool[:, 2] > 0
    risks = (signs != target).double().mean(dim=1)
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(sets):
            chosen = torch.randint(FRESH, (FITTED,), generator=generator)
            fits = (signs[:, chosen] == target[chosen]).all(dim=1)
            if not fits.any():
                continue
            path = Path(folder) / f"{number}.zarr"
            _record_prior(pool[chosen], target[chosen].long(), number, path)
            result = tracelab.analyze(
                path, "marginal_likelihood", positive="1", confidence=CONFIDENCE
            )["marginal_likelihood"].load()
            bound = result["bound"].sel(approximation="expectation propagation").isel(step=0)
            for theory in bound["theory"].values:
                pair = [float(bound.sel(theory=theory).squeeze()), float(risks[fits].mean())]
                found[f"marginal likelihood, {theory}"].append(pair)
    return {theory: np.array(pairs) for theory, pairs in found.items()}


def _record_prior(inputs: Tensor, labels: Tensor, number: int, path: Path) -> None:
    torch.manual_seed(number)
    net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    data = torch.utils.data.TensorDataset(inputs, labels)
    collectors = [PriorKernel(networks=1000, examples=FITTED)]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.soft_margin_loss(model(batch[0])[:, 0], 2.0 * batch[1] - 1)

    with tracelab.attach(
        net, optimizer, path, collectors=collectors, loss=loss, data=data, seed=number
    ):
        optimizer.zero_grad()
        loss(net, (inputs, labels)).backward()
        optimizer.step()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=SETS)
    options, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    allowed = int(stats.binom.ppf(0.999, options.sets, 1 - CONFIDENCE))
    print(
        f"Of {options.sets} sets up to {allowed} may cross a bound of confidence {CONFIDENCE}; of "
        "a bound on an expectation (information bound) the mean difference must not be negative.\n"
    )
    print("| model | bound | mean bound | mean truth | mean difference | crossed | verdict |")
    print("|---|---|---|---|---|---|---|")
    runs = {
        f"{label}{', noise added' if added else ''}": partial(crossings, make, added)
        for label, make in MODELS.items()
        for added in (0.0, ADDED)
    }
    for label, measured in (*runs.items(), ("network at random", evidence)):
        for theory, pairs in measured(options.sets).items():
            difference = pairs[:, 0] - pairs[:, 1]
            error = difference.std(ddof=1) / np.sqrt(len(pairs))
            crossed = int((difference < 0).sum())
            held = difference.mean() > -3 * error if "information" in theory else crossed <= allowed
            print(
                f"| {label} | {theory} | {pairs[:, 0].mean():.3f} | {pairs[:, 1].mean():.4f} | "
                f"{difference.mean():.3f} +- {error:.3f} | {crossed} of {len(pairs)} | "
                f"{'holds' if held else 'CROSSED'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
