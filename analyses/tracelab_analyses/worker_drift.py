"""Worker drift: how far the workers of a job are from each other, in weights and in gradients.

Weights of workers part between synchronizations of local SGD and by gossip; gradients differ
because workers have other data, other examples, or other weights. Both are measured from
projections that all ranks make with the same signs: sums over directions, whose scatter is the
error of projecting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.outcomes import blank, shown, subject
from tracelab.typing import Array, BoolArray, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLLECTOR = "Workers() on every rank: attach(..., rank=rank, world_size=world_size)"
_CELL = ("step", "layer")
_SQUARED = "(loss/weight)^2"
BLOCK_BYTES = 2**20
# Weights that are as near as rounding to float32 has it are the same: relative to their norm.
ROUNDING = 4 * float(np.finfo(np.float32).eps)


def worker_drift(
    weight: FloatArray,
    gradient: FloatArray,
    gradient_variance: FloatArray | None = None,
    *,
    tolerance: float = ROUNDING,
) -> dict[str, Array]:
    r"""Return consensus distance, gradient dissimilarity, diversity and cosines, by cell.

    With weights :math:`x_i` and gradients :math:`g_i` of :math:`n` workers,

    .. math::

        \Xi^2 = \frac1n \sum_i \|x_i - \bar x\|^2, \qquad
        \zeta^2 = \frac1n \sum_i \|g_i - \bar g\|^2 - \frac{n-1}{n} \overline{s^2}, \qquad
        \Delta = \frac{\sum_i \|g_i\|^2}{\|\sum_i g_i\|^2},

    where :math:`s_i^2` is the trace of the covariance of the noise of :math:`g_i`: without it what
    is left of the scatter is minibatch noise as well as dissimilarity, and only the scatter is
    given. A standard error is that of a sum over directions, which are exchangeable, and for
    consensus distance and scatter also the jackknife's over workers, as if they were drawn. Of two
    workers it has none, since either of them alone is at no distance, and dissimilarity no error. A
    worker whose gradient is zero has no direction: cosines are those of the others.

    Parameters
    ----------
    weight : ndarray, shape (step, layer, worker, direction)
        Projected weights before the step, unit ``weight``.
    gradient : ndarray, shape (step, layer, worker, direction)
        Projected gradients of the workers themselves, unit ``loss/weight``.
    gradient_variance : ndarray, shape (step, layer, worker), optional
        Trace of the covariance of each gradient's noise, unit ``(loss/weight)^2``; NaN: unknown.
    tolerance : float
        Consensus distance, relative to the weights' norm, up to which weights count as the same.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``. Workers whose gradient or weights are missing or not finite are
        left out, and counted in ``n_missing``. ``CONSTANT_INPUT`` where no worker has a gradient
        other than zero.
    """
    steps, layers, workers, directions = weight.shape
    out = blank(ANALYSIS.outputs, {"step": steps, "layer": layers})
    cells = {name: array.reshape(-1, *array.shape[2:]) for name, array in out.items()}
    x, g = (each.reshape(-1, workers, directions) for each in (weight, gradient))
    variance = None if gradient_variance is None else gradient_variance.reshape(-1, workers)
    known: BoolArray = np.asarray(np.isfinite(x).all(axis=-1))
    known &= np.isfinite(g).all(axis=-1)
    cells["n_workers"][:] = known.sum(axis=1)
    cells["n_missing"][:] = (~known).sum(axis=1)
    moving = known & g.any(axis=-1)
    cells["n_still"][:] = (known & ~moving).sum(axis=1)
    cells["status"][:] = _status(known, moving)
    # Cells with the same workers are computed side by side, some at a time.
    good = np.flatnonzero(cells["status"] == int(Status.OK))
    patterns, of = np.unique(known[good], axis=0, return_inverse=True)
    width = max(1, BLOCK_BYTES // (8 * workers * max(workers, directions)))
    for number, present in enumerate(patterns):
        same = good[of.ravel() == number]
        for some in np.split(same, range(width, same.size, width)):
            own = np.ix_(some, np.flatnonzero(present))
            found = _cells(
                x[own].astype(np.float64),
                g[own].astype(np.float64),
                None if variance is None else variance[own],
                tolerance,
            )
            for name, values in found.items():
                cells[name][some] = values
    # Cosines are of workers that have a gradient, which others of the same cell may not.
    pairs = np.flatnonzero((cells["status"] == int(Status.OK)) & (moving.sum(axis=1) > 1))
    patterns, of = np.unique(moving[pairs], axis=0, return_inverse=True)
    for number, present in enumerate(patterns):
        same = pairs[of.ravel() == number]
        for some in np.split(same, range(width, same.size, width)):
            own = np.ix_(some, np.flatnonzero(present))
            for name, values in _cosines(g[own].astype(np.float64)).items():
                cells[name][some] = values
    return out


def _status(known: BoolArray, moving: BoolArray) -> Array:
    """Return the status of each cell from who is there and who has a gradient, (cell, worker)."""
    count = known.sum(axis=1)
    found = np.where(moving.any(axis=1), int(Status.OK), int(Status.CONSTANT_INPUT))
    found[count < 2] = int(Status.TOO_FEW_SAMPLES)
    if known.shape[1] > 1:
        found[count == 0] = int(Status.NON_FINITE_INPUT)
    return found


def _cells(
    x: FloatArray, g: FloatArray, variance: FloatArray | None, tolerance: float
) -> dict[str, Array]:
    """Return the numbers of cells, (cell, worker, direction), with the same workers."""
    n = x.shape[1]
    found: dict[str, Array] = {}
    for name, vectors in (("consensus", x), ("scatter", g)):
        found[name], found[f"{name}_se"], found[f"{name}_worker_se"] = _spread(vectors)
    norms = np.square(x).sum(axis=2).sum(axis=1)
    found["synchronized"] = found["consensus"] <= tolerance**2 * norms / n
    if variance is not None:
        # NaN where the noise of a gradient is not known.
        clean = np.where(np.isfinite(variance).all(axis=1, keepdims=True), variance, np.nan)
        noise = (n - 1) / n * clean.mean(axis=1)
        found["dissimilarity"] = found["scatter"] - noise
        # The jackknife sees the noise in the scatter, and takes workers as drawn: rather too much.
        error = (n - 1) / n * clean.std(axis=1, ddof=1) / math.sqrt(n)
        found["dissimilarity_se"] = np.hypot(
            np.hypot(found["scatter_se"], found["scatter_worker_se"]), error
        )
        found["noise"] = noise
    squares, total = np.square(g).sum(axis=1), np.square(g.sum(axis=1))
    sums = total.sum(axis=1)
    sums = np.where(sums > 0, sums, np.nan)
    found["diversity"] = squares.sum(axis=1) / sums
    influence = squares - found["diversity"][:, None] * total
    found["diversity_se"] = _error(influence / sums[:, None])
    return found


def _spread(vectors: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return mean squared distance from the mean, its error over directions and over workers."""
    n = vectors.shape[1]
    # About the first: workers that are the same are at a distance of 0, not of rounding.
    offsets = vectors - vectors[:, :1]
    squares = np.square(offsets - offsets.mean(axis=1, keepdims=True))
    by_worker = squares.sum(axis=2)
    sums = by_worker.sum(axis=1, keepdims=True)
    jackknife = np.full(len(vectors), np.nan)
    if n > 2:
        # Without worker i the sum of squares is that of all less n / (n - 1) of its own.
        without = (sums - n / (n - 1) * by_worker) / (n - 1)
        scatter = np.square(without - without.mean(axis=1, keepdims=True)).sum(axis=1)
        jackknife = np.sqrt((n - 1) / n * scatter)
    return sums[:, 0] / n, _error(squares.sum(axis=1) / n), jackknife


def _error(terms: FloatArray) -> FloatArray:
    """Return the standard error of sums over exchangeable directions, the last axis."""
    size = terms.shape[-1]
    if size < 2:
        return np.full(terms.shape[:-1], np.nan)
    error: FloatArray = np.sqrt(size) * terms.std(axis=-1, ddof=1)
    return error


def _cosines(g: FloatArray) -> dict[str, Array]:
    """Return mean and smallest cosine of pairs, with errors over directions to first order."""
    n = g.shape[1]
    unit = g / np.sqrt(np.square(g).sum(axis=2, keepdims=True))
    # Products of matrices have other bits in other batches.
    cosine = np.stack([(unit[:, [i]] * unit).sum(axis=2) for i in range(n)], axis=1)
    off = ~np.eye(n, dtype=bool)
    squares = np.square(unit)
    pairs = n * (n - 1)
    products = np.square(unit.sum(axis=1)) - squares.sum(axis=1)
    weights = np.where(off, cosine, 0.0).sum(axis=2)
    at = np.where(off, cosine, np.inf).reshape(-1, n * n).argmin(axis=1)
    row, (i, j) = np.arange(len(g)), np.unravel_index(at, (n, n))
    smallest = cosine[row, i, j]
    least = unit[row, i] * unit[row, j]
    least -= smallest[:, None] / 2 * (squares[row, i] + squares[row, j])
    return {
        "cosine": weights.sum(axis=1) / pairs,
        "cosine_se": _error((products - (weights[:, :, None] * squares).sum(axis=1)) / pairs),
        "cosine_min": smallest,
        "cosine_min_se": _error(least),
    }


def synchronization_period(step: IntArray, synchronized: Array) -> int | None:
    """Return after how many steps workers have the same weights again, or None.

    The greatest common divisor of the distances between steps at which they have, if at each
    recorded step that is so many from one of them they have too.

    Parameters
    ----------
    step : ndarray of int, shape (step,)
        Recorded steps, increasing.
    synchronized : ndarray of bool, shape (step,)
        Whether weights are the same before that step.
    """
    together = step[np.asarray(synchronized, dtype=bool)]
    if together.size < 2:
        return None
    period = math.gcd(*(int(after - before) for before, after in pairwise(together.tolist())))
    return period if np.isin(step[(step - together[0]) % period == 0], together).all() else None


def _with_error(row: xr.Dataset, name: str) -> str:
    error = float(row[f"{name}_se"])
    return f"{float(row[name]):.2f}" + (f" ± {error:.2f}" if math.isfinite(error) else "")


def finding(result: xr.Dataset) -> Finding:
    """Return how far workers part, how often they meet, and whether gradients agree."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No step has finite gradients and weights of two workers.")
    distance = np.sqrt(good["consensus"].values)
    together = good["synchronized"].values.astype(bool)
    period = synchronization_period(good["step"].values, together)
    where = subject(good)
    if together.all():
        weights = f"The workers' weights of {where} are the same at every recorded step"
    else:
        if period is not None:
            # Steps that were not recorded may be between.
            meet = f"and meet every {period} steps"
        elif together[1:].any():
            meet = f"and are the same at {together.sum()} of {together.size} recorded steps"
        else:
            meet = "and never meet" + (" again" if together[0] else "")
        weights = (
            f"The workers' weights of {where} are up to {distance.max():.3g} from their mean "
            f"(root mean square over workers) {meet}"
        )
    last = good.isel(step=-1)
    warnings = []
    missing = int(good["n_missing"].max())
    if missing:
        warnings.append(f"Of up to {missing} workers there is no finite row at some step.")
    still = int(good["n_still"].max())
    if still:
        warnings.append(
            f"Of up to {still} workers the gradient is zero at some step: cosines are those of the "
            "others."
        )
    if int(good["n_workers"].max()) == 2:
        warnings.append(
            "Of two workers there is one difference: its error over workers takes three or more."
        )
    if np.isnan(good["dissimilarity"].values).all():
        warnings.append(
            "How noisy a worker's gradient is was not recorded, so that its scatter over workers "
            "is minibatch noise as well as dissimilarity: give Workers(batches=2) or more."
        )
    elif not together.all():
        warnings.append(
            "Gradients are at each worker's own weights: dissimilarity at the mean weights, which "
            "theory speaks of, differs by up to the smoothness times the consensus distance."
        )
    if math.isfinite(float(last["cosine"])):
        cosines = (
            f"the cosine of two workers' gradients is {_with_error(last, 'cosine')} on average and "
            f"{_with_error(last, 'cosine_min')} at least"
        )
    else:
        cosines = "no two workers have gradients other than zero"
    return Finding(
        f"{weights}; at step {int(last['step'])} {cosines}, of {int(last['n_workers'])} workers.",
        tuple(warnings),
    )


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return consensus distance, and cosines of gradients, over training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.set_label("Distance of workers from their mean, and cosines of their gradients.")
    left, right = figure.subplots(1, 2)
    for index, (label, result) in enumerate(results.items()):
        row = shown(result)
        color = f"C{index}"
        left.plot(row["step"], np.sqrt(row["consensus"]), ".-", color=color, label=label, ms=4)
        right.plot(row["step"], row["cosine"], ".-", color=color, ms=4)
        right.plot(row["step"], row["cosine_min"], ":", color=color)
    right.plot([], [], ".-", color="0.4", ms=4, label="mean of pairs")
    right.plot([], [], ":", color="0.4", label="least")
    left.set(xlabel="step", ylabel="weight", title="Consensus distance Ξ")
    right.set(xlabel="step", ylabel="cosine", title="Gradients of two workers")
    for axis in (left, right):
        axis.legend(fontsize=8, frameon=False)
    return figure


_BY_WORKER = (*_CELL, "worker")
ANALYSIS = Analysis(
    name="worker_drift",
    summary="How far are workers from each other? Consensus, dissimilarity, cosines",
    version=2,
    inputs=(
        Input(
            Variable("weight", (*_BY_WORKER, "direction"), "weight"),
            sources=("workers/weight_projected",),
            network="sum",
            collector=COLLECTOR,
        ),
        Input(
            Variable("gradient", (*_BY_WORKER, "direction"), "loss/weight"),
            sources=("workers/gradient_projected",),
            network="sum",
            collector=COLLECTOR,
        ),
        Input(
            Variable("gradient_variance", _BY_WORKER, _SQUARED),
            sources=("workers/gradient_variance",),
            network="sum",
            optional=True,
            collector="Workers(batches=2)",
        ),
    ),
    outputs=(
        Variable("consensus", _CELL, "weight^2", description="mean ||x_i - mean x||^2"),
        Variable("consensus_se", _CELL, "weight^2", description="standard error of projecting"),
        Variable(
            "consensus_worker_se",
            _CELL,
            "weight^2",
            description="jackknife over three workers or more",
        ),
        Variable("synchronized", _CELL, dtype="bool", description="whether weights are the same"),
        Variable("scatter", _CELL, _SQUARED, description="mean ||g_i - mean g||^2"),
        Variable("scatter_se", _CELL, _SQUARED, description="standard error of projecting"),
        Variable(
            "scatter_worker_se", _CELL, _SQUARED, description="jackknife over three workers or more"
        ),
        Variable("noise", _CELL, _SQUARED, description="part of the scatter that is noise"),
        Variable("dissimilarity", _CELL, _SQUARED, description="scatter without noise, unbiased"),
        Variable(
            "dissimilarity_se",
            _CELL,
            _SQUARED,
            description="of projecting, three workers or more, and noise",
        ),
        Variable("diversity", _CELL, description="sum ||g_i||^2 / ||sum g_i||^2"),
        Variable("diversity_se", _CELL, description="standard error of projecting"),
        Variable("cosine", _CELL, description="mean cosine of two workers' gradients"),
        Variable("cosine_se", _CELL, description="standard error of projecting"),
        Variable("cosine_min", _CELL, description="smallest cosine of two workers"),
        Variable("cosine_min_se", _CELL, description="standard error of projecting"),
        Variable("n_workers", _CELL, dtype="int64", description="workers: the sample size"),
        Variable("n_missing", _CELL, dtype="int64", description="workers without a finite row"),
        Variable("n_still", _CELL, dtype="int64", description="workers whose gradient is zero"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=worker_drift,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter(
            "tolerance", ROUNDING, "distance relative to the norm that is none", low=0.0, high=1.0
        ),
    ),
    references=(
        Reference(
            "Kong, Lin, Koloskova, Jaggi, Stich, Consensus Control for Decentralized Deep "
            "Learning, ICML 2021, definition 1",
            "https://arxiv.org/abs/2102.04828",
        ),
        Reference(
            "Yin, Pananjady, Lam, Papailiopoulos, Ramchandran, Bartlett, Gradient Diversity: a Key "
            "Ingredient for Scalable Distributed Learning, AISTATS 2018, definition 1",
            "https://arxiv.org/abs/1706.05699",
        ),
    ),
)
