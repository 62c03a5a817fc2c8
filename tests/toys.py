"""Analyses that take no time and note each cell they compute, for tests of everything around."""

import os
import time
from importlib.metadata import EntryPoint

import numpy as np

import tracelab
from tracelab import cutting, registry
from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.typing import Status

LAYERS = {"a": (3,), "b": (2, 2), "c": (5,)}
LABELS = (*LAYERS, "network")
PARTS = ("low", "high")


def note(seeds):
    """Append the seeds of cells that were computed to the file that TOY_LOG names."""
    if "TOY_LOG" in os.environ:
        with open(os.environ["TOY_LOG"], "a") as file:
            file.write("".join(f"{seed}\n" for seed in np.ravel(seeds)))


def noted(path):
    """Return the seeds that were noted, and forget them."""
    seeds = path.read_text().split() if path.exists() else []
    path.write_text("")
    return seeds


def toy_kernel(x, seed, offset, pause):
    if (x < 0).any():
        raise ValueError("negative")
    time.sleep(pause * x.size)
    rng = [np.random.default_rng(int(each)).random() for each in seed.ravel()]
    value = x + np.reshape(rng, x.shape) + offset
    note(seed)
    status = np.where(np.isfinite(x), Status.OK, Status.NON_FINITE_INPUT).astype(np.uint8)
    return {"value": value, "part": np.stack([value, value + 1], -1), "status": status}


def path_kernel(x, seed, offset):
    note(seed)
    value = x.sum(axis=-1) + offset
    return {"value": value, "status": np.zeros(len(value), np.uint8)}


def finding(result):
    return Finding(f"{result['status'].size} cells", ("a toy",))


def plot(results):
    raise NotImplementedError


STATUS = Variable("status", ("step", "layer"), dtype="uint8")
TOY = Analysis(
    name="toy",
    summary="a number a cell",
    version=1,
    inputs=(
        Input(
            Variable("x", ("step", "layer"), "loss/weight"),
            ("statistics/gradient_norm",),
            network="root_sum_square",
        ),
    ),
    outputs=(
        Variable("value", ("step", "layer")),
        Variable("part", ("step", "layer", "half"), dtype="float32"),
        STATUS,
    ),
    cell=("step", "layer"),
    kernel=toy_kernel,
    finding=finding,
    plot=plot,
    references=(Reference("nobody"),),
    parameters=(
        Parameter("offset", 0.0, "added"),
        Parameter("pause", 0.0, "seconds a cell", low=0),
    ),
    coords={"half": PARTS},
)
PATH = Analysis(
    name="path",
    summary="a number a layer",
    version=1,
    inputs=(
        Input(
            Variable("x", ("layer", "step"), "loss/weight"),
            ("statistics/gradient_norm",),
            network="root_sum_square",
        ),
    ),
    outputs=(Variable("value", ("layer",)), Variable("status", ("layer",), dtype="uint8")),
    cell=("layer",),
    kernel=path_kernel,
    finding=finding,
    plot=plot,
    references=(Reference("nobody"),),
    parameters=(Parameter("offset", 0.0, "added"),),
)


def entries(group):
    """Stand in for the installed plugins."""
    names = ("toy", "path") if group == registry.ANALYSES else ()
    return {name: EntryPoint(name, f"toys:{name.upper()}", group) for name in names}


def install(fine=True):
    """Replace the installed analyses of this process; one cell a task if `fine`."""
    registry._entries = entries
    if fine:
        cutting.BLOCK_BYTES = cutting.SHARED_BYTES = 1


def append(writer, steps, scale=1.0):
    """Append rows of known numbers."""
    for step in steps:
        norm = scale * np.random.default_rng(step).random(len(LAYERS)).astype(np.float32)
        writer.append("statistics", step=step, gradient_norm=norm)


def write(path, steps, **options):
    """Write a trace that the toys can read."""
    with tracelab.create(path, LAYERS) as writer:
        append(writer, steps, **options)
    return path
