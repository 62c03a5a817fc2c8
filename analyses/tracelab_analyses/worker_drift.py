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
    consensus distance and scatter also the jackknife's over workers, as if they were drawn.

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
        left out, and counted in ``n_missing``.
    """
    shape = weight.shape[:2]
    out = blank(ANALYSIS.outputs, dict(zip(_CELL, shape, strict=True)))
    for cell in np.ndindex(*shape):
        both = np.isfinite(weight[cell]) & np.isfinite(gradient[cell])
        known: BoolArray = np.asarray(both.all(axis=-1))
        out["n_workers"][cell] = known.sum()
        out["n_missing"][cell] = (~known).sum()
        x = weight[cell][known].astype(np.float64)
        g = gradient[cell][known].astype(np.float64)
        status = _status(x, g, known)
        out["status"][cell] = int(status)
        if status is not Status.OK:
            continue
        variance = None if gradient_variance is None else gradient_variance[cell][known]
        for name, value in _cell(x, g, variance, tolerance).items():
            out[name][cell] = value
    return out


def _status(x: FloatArray, g: FloatArray, known: BoolArray) -> Status:
    if known.size > 1 and not known.any():
        return Status.NON_FINITE_INPUT
    if len(x) < 2:
        return Status.TOO_FEW_SAMPLES
    return Status.OK if g.any(axis=-1).all() else Status.CONSTANT_INPUT


def _cell(
    x: FloatArray, g: FloatArray, variance: FloatArray | None, tolerance: float
) -> dict[str, float]:
    n = len(x)
    found: dict[str, float] = {}
    for name, vectors in (("consensus", x), ("scatter", g)):
        found[name], found[f"{name}_se"], found[f"{name}_worker_se"] = _spread(vectors)
    found["synchronized"] = found["consensus"] <= tolerance**2 * np.square(x).sum() / n
    if variance is not None and np.isfinite(variance).all():
        noise = (n - 1) / n * variance.mean()
        found["dissimilarity"] = found["scatter"] - noise
        # The jackknife sees the noise in the scatter, and takes workers as drawn: rather too much.
        error = (n - 1) / n * variance.std(ddof=1) / math.sqrt(n)
        found["dissimilarity_se"] = math.hypot(
            found["scatter_se"], found["scatter_worker_se"], error
        )
        found["noise"] = noise
    squares, total = np.square(g).sum(axis=0), np.square(g.sum(axis=0))
    if total.sum() > 0:
        found["diversity"] = squares.sum() / total.sum()
        influence = (squares - found["diversity"] * total) / total.sum()
        found["diversity_se"] = _error(influence)
    found |= _cosines(g)
    return found


def _spread(vectors: FloatArray) -> tuple[float, float, float]:
    """Return mean squared distance from the mean, its error over directions and over workers."""
    n = len(vectors)
    # About the first: workers that are the same are at a distance of 0, not of rounding.
    offsets = vectors - vectors[0]
    squares = np.square(offsets - offsets.mean(axis=0))
    by_worker = squares.sum(axis=1)
    spread = float(by_worker.sum() / n)
    jackknife = math.nan
    if n > 2:
        # Without worker i the sum of squares is that of all less n / (n - 1) of its own.
        without = (by_worker.sum() - n / (n - 1) * by_worker) / (n - 1)
        jackknife = math.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    return spread, _error(squares.sum(axis=0) / n), jackknife


def _error(terms: FloatArray) -> float:
    """Return the standard error of a sum over exchangeable directions."""
    return float(np.sqrt(terms.size) * terms.std(ddof=1)) if terms.size > 1 else math.nan


def _cosines(g: FloatArray) -> dict[str, float]:
    """Return mean and smallest cosine of pairs, with errors over directions to first order."""
    n = len(g)
    unit = g / np.sqrt(np.square(g).sum(axis=1, keepdims=True))
    cosine = unit @ unit.T
    off = ~np.eye(n, dtype=bool)
    squares = np.square(unit)
    pairs = n * (n - 1)
    products = np.square(unit.sum(axis=0)) - squares.sum(axis=0)
    weights = np.where(off, cosine, 0.0).sum(axis=1)
    i, j = np.unravel_index(np.argmin(np.where(off, cosine, np.inf)), cosine.shape)
    least = unit[i] * unit[j] - cosine[i, j] / 2 * (squares[i] + squares[j])
    return {
        "cosine": float(cosine[off].mean()),
        "cosine_se": _error((products - weights @ squares) / pairs),
        "cosine_min": float(cosine[i, j]),
        "cosine_min_se": _error(least),
    }


def synchronization_period(step: IntArray, synchronized: Array) -> int | None:
    """Return after how many steps workers have the same weights again, or None.

    The greatest common divisor of the distances between steps at which they have: recorded steps
    between two of them, of which there must be one, show that weights part meanwhile.

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
    return math.gcd(*(int(after - before) for before, after in pairwise(together.tolist())))


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
        meet = "and never meet" if period is None else f"and meet every {period} steps"
        weights = (
            f"The workers' weights of {where} are up to {distance.max():.3g} from their mean "
            f"(root mean square over workers) {meet}"
        )
    last = good.isel(step=-1)
    warnings = []
    missing = int(good["n_missing"].max())
    if missing:
        warnings.append(f"Of up to {missing} workers there is no finite row at some step.")
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
    return Finding(
        f"{weights}; at step {int(last['step'])} the cosine of two workers' gradients is "
        f"{float(last['cosine']):.2f} on average and {float(last['cosine_min']):.2f} at least, of "
        f"{int(last['n_workers'])} workers.",
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
    version=1,
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
        Variable("consensus_worker_se", _CELL, "weight^2", description="jackknife over workers"),
        Variable("synchronized", _CELL, dtype="bool", description="whether weights are the same"),
        Variable("scatter", _CELL, _SQUARED, description="mean ||g_i - mean g||^2"),
        Variable("scatter_se", _CELL, _SQUARED, description="standard error of projecting"),
        Variable("scatter_worker_se", _CELL, _SQUARED, description="jackknife over workers"),
        Variable("noise", _CELL, _SQUARED, description="part of the scatter that is noise"),
        Variable("dissimilarity", _CELL, _SQUARED, description="scatter without noise, unbiased"),
        Variable(
            "dissimilarity_se", _CELL, _SQUARED, description="of projecting, workers and noise"
        ),
        Variable("diversity", _CELL, description="sum ||g_i||^2 / ||sum g_i||^2"),
        Variable("diversity_se", _CELL, description="standard error of projecting"),
        Variable("cosine", _CELL, description="mean cosine of the gradients of two workers"),
        Variable("cosine_se", _CELL, description="standard error of projecting"),
        Variable("cosine_min", _CELL, description="smallest cosine of two workers"),
        Variable("cosine_min_se", _CELL, description="standard error of projecting"),
        Variable("n_workers", _CELL, dtype="int64", description="workers: the sample size"),
        Variable("n_missing", _CELL, dtype="int64", description="workers without a finite row"),
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
