"""``make gate``: the hooks' processor time beside that of a step without them; fails above bounds.

The least of many short stretches is taken, of the hooks and of the step, of the processor time of
this thread alone: another process, or a slow machine, moves both or none. The bounds are some three
times what there is, so that what fails is a step that does something else than before, as reducing
in the hook what belongs to the background thread.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import tracelab
from benchmarks.collectors import watch
from tracelab.cli.console import table
from tracelab_collectors import Gradients, Statistics
from tracelab_collectors.attach import attach
from tracelab_collectors.collector import Collector

STRETCHES, STEPS = 40, 20

EVERYTHING = (
    Statistics(),
    Gradients(sketch=(tracelab.Project(4099), tracelab.Sample(1_667))),
)
# Widths of the network, examples a step, what is recorded, and the bound on hooks over step.
CASES: tuple[tuple[str, tuple[int, ...], int, Sequence[Collector], float], ...] = (
    ("nothing due", (200, 10), 4, [Gradients(steps=[10**9])], 0.25),
    ("nothing due, 40 layers", (16,) * 41, 4, [Gradients(steps=[10**9])], 0.06),
    ("statistics, 4,099, 1e4 coordinates", (200, 256, 172, 10), 64, EVERYTHING, 1.0),
)


def trainer(widths: Sequence[int], examples: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    pairs = itertools.pairwise(widths)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairs))
    return net, torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)


def stepping(net: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


def measure(
    widths: Sequence[int], examples: int, collectors: Sequence[Collector], folder: Path
) -> tuple[float, float]:
    """Return the seconds of a step without recording, and of the hooks in a step with it."""
    x = torch.randn(examples, widths[0])
    plain, recorded = trainer(widths, examples), trainer(widths, examples)
    bare, hooks = [], []
    with attach(*recorded, folder / "run.zarr", collectors=collectors) as session:
        spent = watch(session, time.thread_time)
        for _ in range(STRETCHES):
            started = time.thread_time()
            for _ in range(STEPS):
                stepping(*plain, x)
            bare.append(time.thread_time() - started)
            before = spent[0]
            for _ in range(STEPS):
                stepping(*recorded, x)
            hooks.append(spent[0] - before)
    return min(bare) / STEPS, min(hooks) / STEPS


def main() -> int:
    """Print the table; return the exit code."""
    torch.set_num_threads(1)
    rows: dict[str, list[object]] = {
        name: [] for name in ("recorded", "step", "hooks", "", "at most")
    }
    within = True
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, widths, examples, collectors, bound) in enumerate(CASES):
            step, hooks = measure(widths, examples, collectors, Path(folder) / str(number))
            within &= hooks <= bound * step
            found = (name, f"{step * 1e6:.0f} us", f"{hooks * 1e6:.1f} us", hooks / step, bound)
            for column, value in zip(rows.values(), found, strict=True):
                column.append(f"{value:.1%}" if isinstance(value, float) else value)
    print(table(rows))
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
