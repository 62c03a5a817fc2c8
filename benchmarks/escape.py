"""SGD and Adam leave the same minimum: what theories predict, and what replicas do.

``python -m benchmarks escape``: a network is trained on handwritten digits; from its weights SGD
and Adam are recorded, Adam after its moments have settled there, and ``escape_times`` is asked
about both. ``--figure FILE`` also draws them.
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
from tracelab_analyses.escape_assumptions import FAILS
from tracelab_collectors import Basin, ExitTimes

BATCH, BARRIER, REPLICAS, MAX_STEPS, EXAMPLES = 4, 0.015, 48, 6000, None
TRAINED, SETTLED, PENALTY = 3000, 2000, 1e-3
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD, rate .1": lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
    "Adam, rate .001": lambda net: torch.optim.Adam(net.parameters(), lr=1e-3),
    "Adam, rate .003": lambda net: torch.optim.Adam(net.parameters(), lr=3e-3),
}
THEORIES = (
    "observed", "simulated_recorded", "simulated_gaussian", "simulated_stable", "diffusion",
    "kramers", "levy", "jump_measure",
)  # fmt: skip


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy with a penalty, without which it has no minimum."""
    penalty = sum((each**2).sum() for each in model.parameters())
    return nn.functional.cross_entropy(model(batch[0]), batch[1]) + 0.5 * PENALTY * penalty


def digits() -> torch.utils.data.TensorDataset:
    """Return the images without pixels that hardly vary: Adam's steps there have no bound."""
    images, labels = load_digits(return_X_y=True)
    images = images[:, images.std(axis=0) > 1.6] / 16
    return torch.utils.data.TensorDataset(
        torch.tensor(images, dtype=torch.float32), torch.tensor(labels)
    )


def minimum(data: torch.utils.data.TensorDataset) -> nn.Module:
    """Return a network at a minimum of the loss over all data."""
    torch.manual_seed(0)
    pixels = data.tensors[0].shape[1]
    net = nn.Sequential(nn.Linear(pixels, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=TRAINED, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(net, data.tensors)
        value.backward()
        return value

    optimizer.step(closure)
    return net


def steps(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: torch.utils.data.TensorDataset,
    count: int,
) -> None:
    """Train for so many steps on minibatches drawn with replacement."""
    generator = torch.Generator().manual_seed(1)
    x, y = data.tensors
    for _ in range(count):
        drawn = torch.randint(len(y), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(net, (x[drawn], y[drawn])).backward()
        optimizer.step()


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
        Basin(steps=[0], top=30, lanczos_steps=120, examples=EXAMPLES, noise_batches=1000,
              noise_forms=300,
              batch_size=BATCH),
        ExitTimes(steps=[0], replicas=REPLICAS, batch_size=BATCH, barrier=BARRIER,
                  max_steps=MAX_STEPS, check_every=5, examples=EXAMPLES),
    ]  # fmt: skip
    with tracelab.attach(net, optimizer, path, collectors=collectors, loss=loss, data=data, seed=0):
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
    data = digits()
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


def _print(found: dict[str, xr.Dataset], times: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    def row(name: str, cells: list[str]) -> None:
        print(f"| {name} | {' | '.join(cells)} |")

    row(f"steps until the loss has risen by {BARRIER}", list(found))
    print("|---" * (1 + len(found)) + "|")
    first = next(iter(found.values()))
    for theory in THEORIES:
        cells = []
        for each in found.values():
            a, b = (float(one["escape_time"].sel(theory=theory)) for one in (first, each))
            ratio = f"; {b / a:.3g} x" if each is not first and np.isfinite([a, b]).all() else ""
            bad = each["assumption_holds"].sel(theory=theory) == FAILS
            fails = ", ".join(each["assumption"].values[bad.values])
            cells.append(f"{_span(each, theory)}{ratio}{f' [{fails}]' if fails else ''}")
        row(theory.replace("_", " "), cells)
    for name in ("alpha_common", "curvature_share", "kept_share", "memory"):
        row(name.replace("_", " "), [f"{float(each[name]):.3g}" for each in found.values()])
    top = [f"{float(each['curvature'].max()):.3g}" for each in found.values()]
    row("largest eigenvalue in the optimizer's metric", top)
    row("replicas that left", [f"{int((~c).sum())} of {c.size}" for _, c in times.values()])
    (t, c), *others = times.values()
    tests = [survival.log_rank([t, u], [c, d]).pvalue for u, d in others]
    row("log-rank test against the first", ["", *(f"p = {float(each):.2g}" for each in tests)])


if __name__ == "__main__":
    main()
