"""Byzantine workers: whom a filter of concentration would have thrown out, and when.

SafeguardSGD (Allen-Zhu, Ebrahimian, Li, Alistarh 2020) adds up the gradients of every worker over a
short and a long window. Sums of honest workers differ by noise, which grows like the root of the
number of steps; a worker that pushes into a direction of its own, however little, parts from them
linearly. Here the filter runs offline over recorded gradients: the weights are those of the run
as it was, in which nobody was thrown out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.outcomes import blank, shown
from tracelab.typing import Array, BoolArray, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLLECTOR = "Workers() on every rank: attach(..., rank=rank, world_size=world_size)"
# Fewer have no majority to speak of.
MIN_WORKERS = 3
# Of 200 jobs of 4 to 16 honest workers that differ in as many directions, over 500 steps, none
# loses one at a factor of 2; in half as many 1 to 7 % do, in 4 nearly all.
FEW_DIRECTIONS = 32
# Bound what is held of a window: its steps, and the distances of all pairs of workers.
SEGMENT = 128
BLOCK_BYTES = 2**24
# For the directions in which workers differ, as many are enough: samples of it are steps x workers.
MOST_STEPS = 1_000
_CELL = ("layer",)
_PATH = ("layer", "step", "worker")


@dataclass(frozen=True, slots=True)
class Windows:
    """How the filter looks: windows in recorded steps, thresholds in ``loss/weight``.

    Parameters
    ----------
    length : tuple of int
        Of the short and of the long window.
    threshold : tuple of float or None
        Of each; None: `factor` times the distance within which the median worker has a majority.
    factor : float
        Of thresholds that are not given.
    warm_up : int
        Steps of a window before it is looked at.
    reset : bool
        Whether all workers are good again when a long window begins, and a short one with it.
    """

    length: tuple[int, int]
    threshold: tuple[float | None, float | None]
    factor: float
    warm_up: int
    reset: bool

    def inside(self, row: IntArray | int, which: int) -> IntArray:
        """Return how many rows of its window are before a row."""
        # Who is taken back has no sums of a short window that began before.
        begun = np.asarray(row) % self.length[1] if self.reset else np.asarray(row)
        return begun % self.length[which]


def byzantine(
    gradient: FloatArray,
    step: IntArray,
    *,
    short: int = 20,
    long: int = 100,
    threshold_short: float | None = None,
    threshold_long: float | None = None,
    factor: float = 2.0,
    warm_up: int = 10,
    reset: bool = False,
) -> dict[str, Array]:
    r"""Return who is thrown out, when, and how far each worker was, by layer.

    With the good workers :math:`G_t` the sums of a window that began at :math:`t_0` are
    :math:`A_i = \sum_{s=t_0}^{t} g_{i,s} / |G_s|`. The median worker is one that has at least half
    of the good within :math:`\mathfrak T`, and who is farther than :math:`2 \mathfrak T` from it in
    either window is thrown out. Without a given :math:`\mathfrak T` the median worker is the one
    that has more than half of the good, itself among them, within the smallest distance, and the
    limit is `factor` times that distance.

    Parameters
    ----------
    gradient : ndarray, shape (layer, step, worker, direction)
        Projected gradients of the workers themselves, unit ``loss/weight``.
    step : ndarray of int, shape (step,)
        Optimizer steps.
    short, long, threshold_short, threshold_long, factor, warm_up, reset
        See ``ANALYSIS.parameters``.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``. A step at which no worker has a finite gradient, as where a scaled
        loss overflows, is left out. A worker without one at a step where others have theirs takes
        no part from there on. Where fewer than two good workers are left nobody is looked at, until
        the next long window if `reset` takes them back, and else to the end.
    """
    layers, steps, workers, directions = gradient.shape
    sizes = dict(zip(_PATH, (layers, steps, workers), strict=True))
    out = blank(ANALYSIS.outputs, sizes)
    windows = Windows(
        (short, max(long, short)), (threshold_short, threshold_long), factor, warm_up, reset
    )
    for layer in range(layers):
        lost = ~np.isfinite(gradient[layer]).all(axis=-1)
        rows = np.flatnonzero(~lost.all(axis=1))
        g, lost = gradient[layer], lost[rows]
        if rows.size < steps:
            g = g[rows]
        until = np.logical_and.accumulate(~lost, axis=0).sum(axis=0)
        out["n_workers"][layer] = (until > 0).sum()
        out["n_missing"][layer] = ((until < rows.size) | (until == 0)).sum()
        status = _status(g, until, warm_up)
        out["status"][layer] = int(status)
        if status is not Status.OK:
            continue
        distance, thrown_out, alone = _filtered(g, until, windows)
        out["n_steps"][layer] = (~alone).sum()
        if alone.any():
            out["stopped_at"][layer] = step[rows[alone.argmax()]]
        out["distance_short"][layer, rows], out["distance_long"][layer, rows] = distance
        found = thrown_out >= 0
        out["thrown_out_at"][layer, found] = step[rows[thrown_out[found]]]
        out["n_thrown_out"][layer] = found.sum()
        honest = ~found & (until == rows.size)
        kept = distance[:, :, honest]
        if honest.sum() > 1:
            out["dimension"][layer] = effective_dimension(g[:, honest])
        if np.isfinite(kept).any():
            nearest = float(np.nanmax(kept))
            out["closest_call"][layer] = nearest
            # A squared distance errs by 2 / k of its square, the distance by half of that root.
            out["closest_call_se"][layer] = nearest / np.sqrt(2 * directions)
    return out


def _status(g: FloatArray, until: IntArray, warm_up: int) -> Status:
    if until.size >= MIN_WORKERS and not len(g):
        return Status.NON_FINITE_INPUT
    if (until > 0).sum() < MIN_WORKERS or len(g) < warm_up:
        return Status.TOO_FEW_SAMPLES
    return Status.OK if np.nan_to_num(g).any() else Status.CONSTANT_INPUT


def _filtered(
    g: FloatArray, until: IntArray, windows: Windows
) -> tuple[FloatArray, IntArray, BoolArray]:
    """Return distances (window, step, worker) in units of the limit, and who is out by which row.

    And at which rows fewer than two good workers were left to look at.

    Parameters
    ----------
    g : ndarray, shape (step, worker, direction)
        Gradients.
    until : ndarray of int, shape (worker,)
        The first row at which each has none.
    windows : Windows
        How to look.
    """
    steps, workers, directions = g.shape
    distance = np.full((2, steps, workers), np.nan)
    thrown_out, alone = np.full(workers, -1), np.zeros(steps, dtype=bool)
    good = until > 0
    sums = np.zeros((2, workers, directions))
    row = 0
    while row < steps:
        begun = [int(windows.inside(row, which)) for which in (0, 1)]
        for which in (0, 1):
            if not begun[which]:
                sums[which] = 0.0
        if windows.reset and not begun[1]:
            good = np.ones(workers, dtype=bool)
        good = good & (until > row)
        members = np.flatnonzero(good)
        if members.size < 2:
            end = row + windows.length[1] - begun[1] if windows.reset else steps
            alone[row:end] = True
            row = end
            continue
        ends = [row + length - inside for length, inside in zip(windows.length, begun, strict=True)]
        segment = max(1, min(SEGMENT, BLOCK_BYTES // (8 * members.size**2)))
        end = min(*ends, row + segment, steps, int(until[good].min()))
        grown = np.cumsum(g[row:end, members].astype(np.float64), axis=0) / members.size
        limits = [_relative(sums[w, members] + grown, w, windows) for w in (0, 1)]
        looked = np.arange(row, end)
        bad = np.zeros((end - row, members.size), dtype=bool)
        for which, relative in enumerate(limits):
            warm = windows.inside(looked, which) + 1 >= min(windows.warm_up, windows.length[which])
            relative[~warm] = np.nan
            bad |= relative > 1.0
        parted = np.flatnonzero(bad.any(axis=1))
        taken = int(parted[0]) + 1 if parted.size else end - row
        for which, relative in enumerate(limits):
            distance[which, row : row + taken, members] = relative[:taken].T
        sums[:, members] += grown[taken - 1]
        if parted.size:
            leaving = members[bad[taken - 1]]
            good[leaving] = False
            first = leaving[thrown_out[leaving] < 0]
            thrown_out[first] = row + taken - 1
        row += taken
    return distance, thrown_out, alone


def _relative(position: FloatArray, which: int, windows: Windows) -> FloatArray:
    """Return each worker's distance from the median worker in units of the limit, by row.

    Parameters
    ----------
    position : ndarray, shape (row, worker, direction)
        Sums of the good workers.
    which : int
        The window.
    windows : Windows
        Its threshold.
    """
    # About one in the midst: neither what all share nor one far away rounds differences away.
    last = position[-1]
    beside = np.square(last[:, None] - last).sum(axis=2)
    middle = np.partition(beside, len(last) // 2, axis=1)[:, len(last) // 2].argmin()
    centred = position - position[:, middle, None]
    products = centred @ centred.transpose(0, 2, 1)
    squares = np.einsum("tii->ti", products)
    apart = np.sqrt(np.maximum(squares[:, :, None] + squares[:, None, :] - 2 * products, 0.0))
    workers = position.shape[1]
    apart[:, range(workers), range(workers)] = 0.0
    # Of two workers the same, however it rounds: two often have the smallest reach together.
    apart = np.maximum(apart, apart.transpose(0, 2, 1))
    threshold = windows.threshold[which]
    if threshold is None:
        # Itself is among them: half of the workers and one.
        reach = np.partition(apart, workers // 2, axis=2)[:, :, workers // 2]
        median = reach.argmin(axis=1)
        limit = windows.factor * reach.min(axis=1)
    else:
        support = (apart <= threshold).sum(axis=2)
        enough = 2 * support >= workers
        median = np.where(enough.any(axis=1), enough.argmax(axis=1), support.argmax(axis=1))
        limit = np.full(len(apart), 2 * threshold)
    own = np.take_along_axis(apart, median[:, None, None], axis=1)[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative: FloatArray = np.where(own == 0, 0.0, own / limit[:, None])
    return relative


def effective_dimension(g: FloatArray) -> float:
    r"""Return in how many directions workers differ: :math:`(tr C)^2 / tr(C^2)`.

    Parameters
    ----------
    g : ndarray, shape (step, worker, direction)
        Gradients of workers, with whose covariance :math:`C` about their mean of each step, of up
        to `MOST_STEPS` steps.
    """
    directions = g.shape[-1]
    g = g[:: 1 + (len(g) - 1) // MOST_STEPS]
    covariance = np.zeros((directions, directions))
    for first in range(0, len(g), SEGMENT):
        part = g[first : first + SEGMENT].astype(np.float64)
        part = (part - part.mean(axis=1, keepdims=True)).reshape(-1, directions)
        covariance += part.T @ part
    total = np.square(covariance).sum()
    return float(np.trace(covariance) ** 2 / total) if total > 0 else np.nan


def _thrown_out(row: xr.Dataset) -> dict[int, int]:
    at: BoolArray = row["thrown_out_at"].values
    return {int(w): int(at[w]) for w in np.argsort(at) if np.isfinite(at[w])}


def _closest(row: xr.Dataset) -> str:
    """Return how near to the limit those came who stayed to the end."""
    nearest, error = float(row["closest_call"]), float(row["closest_call_se"])
    if not np.isfinite(nearest):
        return "nobody else has finite gradients to the end, to say how close to the limit"
    return (
        f"of those who stayed to the end the closest came to {nearest:.2f} ± {error:.2f} of the "
        "limit"
    )


def finding(result: xr.Dataset) -> Finding:
    """Return who would have been thrown out of the network's job, and when."""
    row = shown(result)
    if int(row["status"]) != int(Status.OK):
        return Finding(
            f"The filter had too little to look at: it needs finite gradients of {MIN_WORKERS} "
            "workers over some steps."
        )
    out, workers = _thrown_out(row), int(row["n_workers"])
    warnings = [
        "Nobody was thrown out in the run itself: what follows a first exclusion is of weights "
        "that its gradients have moved. Workers with data of their own part like adversaries.",
    ]
    dimension = float(row["dimension"])
    if dimension < FEW_DIRECTIONS:
        warnings.append(
            f"Workers differ in {dimension:.0f} directions: with fewer than {FEW_DIRECTIONS} the "
            "distances of honest ones scatter so much that some are thrown out; raise factor=."
        )
    missing = int(row["n_missing"])
    if missing:
        warnings.append(f"{missing} workers have no finite gradient from some step on.")
    stopped = float(row["stopped_at"])
    if np.isfinite(stopped):
        warnings.append(
            f"At step {stopped:.0f} fewer than two workers were left that had not been thrown out "
            f"or ended; the filter looked at {int(row['n_steps'])} steps in all. Larger thresholds "
            "throw out fewer."
        )
    closest = _closest(row)
    if not out:
        return Finding(
            f"No one of {workers} workers would have been thrown out; {closest}.",
            tuple(warnings),
        )
    who = ", ".join(f"{worker} (step {step})" for worker, step in out.items())
    return Finding(
        f"Of {workers} workers {len(out)} would have been thrown out: {who}; {closest}.",
        tuple(warnings),
    )


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return the distance of every worker from the median worker, by window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8 * len(results)), layout="constrained")
    figure.set_label("Distance of workers from the median worker, in units of the limit.")
    axes = figure.subplots(len(results), 2, squeeze=False, sharey=True)
    for (label, result), pair in zip(results.items(), axes, strict=True):
        row = shown(result)
        out = _thrown_out(row)
        for axis, window in zip(pair, ("short", "long"), strict=True):
            for worker in row["worker"].values.tolist():
                path = row[f"distance_{window}"].isel(worker=worker)
                color = "C3" if worker in out else "0.6"
                axis.plot(row["step"], path, color=color, lw=1)
            axis.axhline(1, color="0.2", linestyle=":")
            axis.set(xlabel="step", title=f"{label}: {window} window")
        pair[0].set_ylabel("distance / limit")
    return figure


def _distance(window: str) -> Variable:
    return Variable(
        f"distance_{window}",
        _PATH,
        description=f"from the median worker, {window} window, in units of the limit; NaN: not "
        "looked at",
    )


ANALYSIS = Analysis(
    name="byzantine",
    summary="Which workers would a filter have thrown out? Sums of gradients over windows",
    version=3,
    inputs=(
        Input(
            Variable("gradient", (*_PATH, "direction"), "loss/weight", "float32"),
            sources=("workers/gradient_projected",),
            network="sum",
            collector=COLLECTOR,
        ),
        Input(
            Variable("step", ("step",), "step", "int64"),
            sources=("workers/step",),
            collector=COLLECTOR,
        ),
    ),
    outputs=(
        Variable("thrown_out_at", ("layer", "worker"), "step", description="step; NaN: never"),
        _distance("short"),
        _distance("long"),
        Variable("closest_call", _CELL, description="largest distance of a worker that was kept"),
        Variable("closest_call_se", _CELL, description="standard error of projecting"),
        Variable("dimension", _CELL, description="directions in which the kept workers differ"),
        Variable("n_thrown_out", _CELL, dtype="int64", description="workers thrown out"),
        Variable("n_workers", _CELL, dtype="int64", description="workers: the sample size"),
        Variable("n_missing", _CELL, dtype="int64", description="workers that ended early"),
        Variable("n_steps", _CELL, dtype="int64", description="steps looked at"),
        Variable(
            "stopped_at",
            _CELL,
            "step",
            description="first step at which fewer than two good workers were left; NaN: never",
        ),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=byzantine,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("short", 20, "recorded steps of the short window", low=1),
        Parameter("long", 100, "recorded steps of the long window", low=1),
        Parameter("threshold_short", None, "in loss/weight; none: from the workers", low=0.0),
        Parameter("threshold_long", None, "in loss/weight; none: from the workers", low=0.0),
        Parameter("factor", 2.0, "limit, in distances that hold a majority", low=1.0),
        Parameter("warm_up", 10, "steps of a window before it is looked at", low=1),
        Parameter("reset", False, "whether all are good again in a new long window"),
    ),
    references=(
        Reference(
            "Allen-Zhu, Ebrahimian, Li, Alistarh, Byzantine-Resilient Non-Convex Stochastic "
            "Gradient Descent, ICLR 2021, algorithm 1",
            "https://arxiv.org/abs/2012.14368",
        ),
    ),
)
