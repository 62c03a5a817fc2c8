"""An analysis whose kernel can be held, killed or made to take all memory, at one cell."""

import time
from pathlib import Path

import numpy as np

import tracelab
from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable

LAYERS = {"fc.weight": (4, 6), "fc.bias": (4,)}
MARK = 1e6
MARKED_STEP = 3


def write_marked_trace(path, steps=40, batches=20):
    """Write noise of which one cell, a layer at `MARKED_STEP`, tells the kernel that it is it."""
    rng = np.random.default_rng(0)
    with tracelab.create(path, layers=LAYERS) as writer:
        for step in range(steps):
            projected = rng.standard_normal((batches, 2, 5))
            if step == MARKED_STEP:
                projected[0, 1, 0] = MARK
            mean = np.zeros((2, 5))
            writer.append("noise", step=step, projected=projected, mean_projected=mean)
    return path


def kernel(noise, seed, *, folder="", fault="nothing", sketch="auto"):
    """Return the mean of each cell; at the marked cell, have an accident first."""
    marked = noise.shape[:2] == (1, 1) and noise[0, 0, 0, 0] == np.float32(MARK)
    if marked and fault != "nothing":
        _accident(Path(folder), fault)
    draws = [np.random.default_rng(int(number)).standard_normal() for number in seed.flat]
    return {
        "mean": noise.mean(axis=(-2, -1)) + np.reshape(draws, seed.shape),
        "status": np.zeros(seed.shape, np.uint8),
    }


def _accident(folder, fault):
    import os

    attempts = len(list(folder.glob("attempt-*")))
    (folder / f"attempt-{attempts}").write_text(str(os.getpid()))
    if fault == "hold":
        while not (folder / "go").exists():
            time.sleep(0.02)
    elif fault == "memory" or (fault == "memory once" and attempts == 0):
        held = []
        while True:
            held.append(np.ones(2**20))
            time.sleep(0.002)


def no_plot(results):
    """Return nothing: it is never called."""


def finding(result):
    """Return that there is none."""
    return Finding("Nothing was looked for.")


ANALYSIS = Analysis(
    name="faulty",
    summary="What happens when a cell goes wrong?",
    version=1,
    inputs=(
        Input(
            Variable("noise", ("step", "layer", "batch", "series"), "loss/weight"),
            sources=("noise",),
        ),
    ),
    outputs=(
        Variable("mean", ("step", "layer"), "loss/weight"),
        Variable("status", ("step", "layer"), dtype="uint8"),
    ),
    cell=("step", "layer"),
    kernel=kernel,
    finding=finding,
    plot=no_plot,
    parameters=(
        Parameter("folder", "", "where accidents are noted"),
        Parameter("fault", "nothing", "which accident"),
        Parameter("sketch", "auto", "which recorded series"),
    ),
    references=(Reference("None."),),
)
