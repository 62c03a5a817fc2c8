"""SGD and Adam leave the same minimum: what theories predict, and what replicas do.

``python -m benchmarks escape``: a network is trained on handwritten digits; from its weights SGD and
Adam are recorded, Adam after its moments have settled there, and ``tracelab analyze`` is asked for
the escape times of both. ``--figure FILE`` also draws them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tracelab
from tracelab.stats import survival
from tracelab_collectors import Basin, ExitTimes

BATCH, BARRIER, REPLICAS, MAX_STEPS = 32, 0.1, 64, 4000
TRAINED, SETTLED = 4000, 500
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD, rate .1": lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
    "Adam, rate .001": lambda net: torch.optim.Adam(net.parameters(), lr=1e-3),
}
THEORIES = (
    "observed", "simulated_recorded", "simulated_gaussian", "simulated_stable", "diffusion",
    "kramers", "levy", "jump_measure",
)  # fmt: skip


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def minimum(data: torch.utils.data.TensorDataset) -> nn.Module:
    """Return a network trained by SGD with a falling rate."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, TRAINED)
    steps(net, optimizer, data, TRAINED, schedule.step)
    return net


def steps(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: torch.utils.data.TensorDataset,
    count: int,
    behind: Callable[[], None] | None = None,
) -> None:
    """Train for so many steps on minibatches drawn with replacement."""
    generator = torch.Generator().manual_seed(1)
    x, y = data.tensors
    for _ in range(count):
        drawn = torch.randint(len(y), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(net, (x[drawn], y[drawn])).backward()
        optimizer.step()
        if behind is not None:
            behind()


def record(
    net: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer],
    data: torch.utils.data.TensorDataset, path: Path,
) -> None:  # fmt: skip
    """Record the basin and the exits from it, and the step that follows."""
    optimizer = make(net)
    start = [parameter.detach().clone() for parameter in net.parameters()]
    rates = [group["lr"] for group in optimizer.param_groups]
    # Moments settle at the weights as they are.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    steps(net, optimizer, data, SETTLED)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    collectors = [
        Basin(steps=[0], top=10, lanczos_steps=60, examples=None, noise_batches=1000,
              batch_size=BATCH),
        ExitTimes(steps=[0], replicas=REPLICAS, batch_size=BATCH, barrier=BARRIER,
                  max_steps=MAX_STEPS, check_every=1, examples=None),
    ]  # fmt: skip
    with tracelab.attach(
        net, optimizer, path, collectors=collectors, loss=loss, data=data, seed=0
    ):
        steps(net, optimizer, data, 1)
    with torch.no_grad():
        for parameter, old in zip(net.parameters(), start, strict=True):
            parameter.copy_(old)


def _span(row: xr.Dataset, theory: str) -> str:
    row = row.sel(theory=theory)
    time, low, high = (float(row[f"escape_time{end}"]) for end in ("", "_low", "_high"))
    if np.isfinite(time):
        return f"{time:.3g} ({low:.3g} to {high:.3g})"
    return f"> {low:.3g}" if np.isfinite(low) else "no answer"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, default=None, help="where to draw it")
    options, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    data = torch.utils.data.TensorDataset(
        torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    )
    net = minimum(data)
    folder = Path(tempfile.mkdtemp())
    found, times = {}, {}
    try:
        for number, (label, make) in enumerate(OPTIMIZERS.items()):
            path = folder / f"{number}.zarr"
            record(net, make, data, path)
            with tracelab.open(path) as trace:
                result = tracelab.analyze(trace, ["escape_times"], max_steps=MAX_STEPS)
                found[label] = result["escape_times"].load().isel(step=0, layer=0)
                exits = trace.groups["exits"].isel(step=0).load()
                times[label] = exits["time"].values, exits["censored"].values > 0
        _print(found, times)
        if options.figure is not None:
            from tracelab import registry

            analysis = registry.analysis("escape_times")
            figure = analysis.plot(
                {label: row.expand_dims(("step", "layer")) for label, row in found.items()}
            )
            figure.savefig(options.figure, dpi=120)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _print(
    found: dict[str, xr.Dataset], times: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    one, other = found
    print(f"| steps until the loss has risen by {BARRIER} | {one} | {other} | ratio |")
    print("|---|---|---|---|")
    for theory in THEORIES:
        a, b = (float(found[label]["escape_time"].sel(theory=theory)) for label in found)
        ratio = f"{b / a:.3g}" if np.isfinite([a, b]).all() else ""
        cells = " | ".join(_span(found[label], theory) for label in found)
        print(f"| {theory.replace('_', ' ')} | {cells} | {ratio} |")
    for name in ("alpha_common", "curvature_share", "memory"):
        values = " | ".join(f"{float(row[name]):.3g}" for row in found.values())
        print(f"| {name.replace('_', ' ')} | {values} | |")
    top = " | ".join(f"{float(row['curvature'].max()):.3g}" for row in found.values())
    print(f"| largest eigenvalue in the optimizer's metric | {top} | |")
    fails = []
    for row in found.values():
        bad = (row["assumption_holds"] == 2).any("theory")
        fails.append(", ".join(row["assumption"].values[bad.values]) or "none")
    print(f"| assumptions that fail | {' | '.join(fails)} | |")
    (t1, c1), (t2, c2) = times.values()
    n = t1.size
    test = survival.log_rank(
        np.concatenate([t1, t2]), np.repeat([0, 1], [n, t2.size]), np.concatenate([c1, c2])
    )
    print(f"| left, of {n} | {int((~c1).sum())} | {int((~c2).sum())} | |")
    print(f"| log-rank test of the observed | p = {float(test.pvalue):.2g} | | |")


if __name__ == "__main__":
    main()
