"""Noise scale of training itself: from the micro-batches and ranks that a step's gradient is of.

McCandlish, Kaplan, Amodei et al. (2018), appendix A.1: squared norms of gradients of two sizes, of
single micro-batches and of their mean, give the squared norm of the expected gradient and the trace
of the covariance without bias. No probe is needed: the weights stand still within a step. Each
alone is noisy, and their ratio is biased; so both are averaged over a window of steps first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import stats

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.outcomes import blank, shown
from tracelab.series import SKETCH
from tracelab.typing import Array, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLLECTOR = "MicroBatches(batches=2, batch_size=...)"
WINDOWS = 10
MIN_STEPS = 8
_CELL = ("layer",)
_BY_WINDOW = ("layer", "window")
_SQUARED = "(loss/weight)^2"


def training_noise(
    norm: FloatArray,
    deviation: FloatArray,
    step: IntArray,
    batch_size: Array,
    *,
    confidence: float = 0.95,
    sketch: str = "auto",
    group: str = "auto",
) -> dict[str, Array]:
    r"""Return the noise scale by layer and window of steps.

    Of the :math:`K` micro-batch gradients :math:`a_b` of a step, with mean :math:`\bar a`,

    .. math::

        S = \frac{1}{K-1} \sum_b \|a_b - \bar a\|^2, \qquad
        |G|^2 = \frac1K \sum_b \|a_b\|^2 - S
              = \frac{K \|\bar a\|^2 - \frac1K \sum_b \|a_b\|^2}{K - 1},

    are unbiased for the trace of a micro-batch's covariance and the squared expected gradient. The
    noise scale is the micro-batch's size times the ratio of their means over the window's steps. A
    factor that all losses of a step are multiplied by cancels. The interval is Fieller's: the
    ratios :math:`R` at which the mean of :math:`S - R |G|^2` is less than a quantile of Student's t
    of its standard errors from 0. Its upper end is infinite where the window cannot tell the
    gradient from 0.

    Parameters
    ----------
    norm, deviation : ndarray, shape (layer, step, batch)
        Squared norm of each micro-batch's gradient, and of its deviation from their mean times
        ``K / (K - 1)``, of one sketch, ``(loss/weight)^2``.
    step : ndarray of int, shape (step,)
        Optimizer steps.
    batch_size : scalar array of int
        Examples a micro-batch.
    confidence : float
        Level of the intervals.
    sketch, group
        Applied already.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``. Steps with fewer micro-batches than were listened to, or any that
        is not finite, are left out, and counted.
    """
    layers, steps, count = norm.shape
    out = blank(ANALYSIS.outputs, dict(zip(_BY_WINDOW, (layers, WINDOWS), strict=True)))
    parts = np.array_split(np.arange(steps), WINDOWS if steps >= WINDOWS * MIN_STEPS else 1)
    size = float(batch_size)
    for layer in range(layers):
        noise, whole = deviation[layer].mean(axis=1), norm[layer].mean(axis=1)
        used = np.isfinite(noise) & np.isfinite(whole)
        out["n_batches"][layer] = count
        out["n_missing"][layer] = (~used).sum()
        for window, rows in enumerate(parts):
            kept = rows[used[rows]]
            out["n_steps"][layer, window] = kept.size
            if rows.size:
                out["first"][layer, window], out["last"][layer, window] = step[rows[[0, -1]]]
            if kept.size >= MIN_STEPS and count > 1:
                found = _ratio(noise[kept], whole[kept] - noise[kept], confidence)
                for name, value in found.items():
                    out[name][layer, window] = value * (size if "scale" in name else 1.0)
        out["status"][layer] = int(_status(used, noise, count, out["noise_scale"][layer]))
    return out


def _status(used: Array, noise: FloatArray, count: int, scale: FloatArray) -> Status:
    if used.size and count > 1 and not used.any():
        return Status.NON_FINITE_INPUT
    if used.sum() < MIN_STEPS or count < 2:
        return Status.TOO_FEW_SAMPLES
    if not noise[used].any():
        return Status.CONSTANT_INPUT
    return Status.OK if np.isfinite(scale).any() else Status.TOO_FEW_SAMPLES


def _ratio(noise: FloatArray, signal: FloatArray, confidence: float) -> dict[str, float]:
    """Return what one window says of the ratio of the means of two paired samples."""
    n = noise.size
    trace, square = float(noise.mean()), float(signal.mean())
    (var_noise, both), (_, var_signal) = np.cov(noise, signal) / n
    found = {
        "trace_cov": trace,
        "trace_cov_se": float(np.sqrt(var_noise)),
        "signal": square,
        "signal_se": float(np.sqrt(var_signal)),
    }
    if square <= 0:
        return found
    ratio = trace / square
    variance = var_noise - 2 * ratio * both + ratio**2 * var_signal
    found["noise_scale"] = ratio
    found["noise_scale_se"] = float(np.sqrt(max(variance, 0.0))) / square
    t = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) ** 2
    # (trace - R square)^2 = t (var_noise - 2 R both + R^2 var_signal), for R.
    a = square**2 - t * var_signal
    half = trace * square - t * both
    c = trace**2 - t * var_noise
    root = np.sqrt(max(half**2 - a * c, 0.0))
    if a > 0:
        found["noise_scale_low"] = max(float(half - root) / a, 0.0)
        found["noise_scale_high"] = float(half + root) / a
    else:
        # The signal may be 0: from c / (half + root) on every ratio is possible.
        found["noise_scale_low"] = max(float(c / (half + root)), 0.0) if half + root > 0 else 0.0
        found["noise_scale_high"] = np.inf
    return found


def _told(result: xr.Dataset) -> xr.Dataset:
    row = shown(result)
    return row.isel(window=np.flatnonzero(np.isfinite(row["noise_scale"].values)))


def finding(result: xr.Dataset) -> Finding:
    """Return the noise scale of the first and the last window that tells it."""
    row = _told(result)
    if not row.sizes["window"]:
        return Finding(
            "No window of steps tells the noise scale: too few steps of two or more finite "
            "micro-batches, or a gradient that their noise hides."
        )
    parts = []
    for place in dict.fromkeys((0, row.sizes["window"] - 1)):
        at = row.isel(window=place)
        value, low, high = (float(at[f"noise_scale{end}"]) for end in ("", "_low", "_high"))
        parts.append(
            f"{value:.3g} examples ({low:.3g} to {high:.3g}) from step {float(at['first']):.0f} "
            f"to {float(at['last']):.0f}"
        )
    warnings = [
        "Micro-batches are taken as independent draws at the same weights: not those of ranks "
        "whose weights part, as in local SGD, nor those of data split by rank or sorted.",
    ]
    if str(dict(result.attrs.get("parameters", {})).get("sketch")) != "full":
        warnings.append(
            "Of projections the signs are the same at every step: their error, up to the root of "
            "2 over the number of directions, is in no interval."
        )
    missing = int(row["n_missing"])
    if missing:
        warnings.append(f"{missing} steps lack micro-batches and were left out.")
    return Finding(
        f"The noise scale of training is {', and '.join(parts)}, from {int(row['n_batches'])} "
        "micro-batches a step.",
        tuple(warnings),
    )


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return the noise scale with its interval, by window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    figure.set_label("Noise scale from micro-batches, by window of steps, with its interval.")
    axis = figure.subplots()
    axis.set_yscale("log")
    for index, (label, result) in enumerate(results.items()):
        row = _told(result)
        middle = (row["first"] + row["last"]) / 2
        scale = row["noise_scale"].values
        high = np.where(np.isfinite(row["noise_scale_high"]), row["noise_scale_high"], scale)
        error = [scale - row["noise_scale_low"].values, high - scale]
        axis.errorbar(middle, scale, yerr=error, fmt="o", ms=4, color=f"C{index}", label=label)
    axis.set(xlabel="step", ylabel="noise scale (examples)")
    axis.legend(fontsize=8, frameon=False)
    return figure


def _estimate(name: str, units: str, text: str, *, interval: bool) -> tuple[Variable, ...]:
    ends = ["low", "high"] if interval else []
    return (
        Variable(name, _BY_WINDOW, units, description=text),
        Variable(f"{name}_se", _BY_WINDOW, units, description="standard error over steps"),
        *(
            Variable(f"{name}_{end}", _BY_WINDOW, units, description=f"interval, {end}er end")
            for end in ends
        ),
    )


_BATCHES = ("layer", "step", "batch")
ANALYSIS = Analysis(
    name="training_noise",
    summary="How noisy is training itself? Noise scale from micro-batches and ranks",
    version=1,
    inputs=(
        Input(
            Variable("norm", _BATCHES, _SQUARED),
            sources=("micro_batches/sketch_norm", "noise/sketch_norm"),
            collector=COLLECTOR,
        ),
        Input(
            Variable("deviation", _BATCHES, _SQUARED),
            sources=("micro_batches/sketch_deviation", "noise/sketch_deviation"),
            collector=COLLECTOR,
        ),
        Input(
            Variable("step", ("step",), "step", "int64"),
            sources=("micro_batches/step", "noise/step"),
            collector=COLLECTOR,
        ),
        Input(
            Variable("batch_size", (), dtype="int64"),
            sources=("micro_batches@batch_size", "noise@batch_size"),
            collector=COLLECTOR,
        ),
    ),
    outputs=(
        *_estimate("noise_scale", "1", "tr(Sigma) / |G|^2, in examples", interval=True),
        *_estimate("trace_cov", _SQUARED, "trace of a micro-batch's covariance", interval=False),
        *_estimate("signal", _SQUARED, "|G|^2, unbiased", interval=False),
        Variable("first", _BY_WINDOW, "step", description="first step of the window"),
        Variable("last", _BY_WINDOW, "step", description="last step of the window"),
        Variable("n_steps", _BY_WINDOW, dtype="int64", description="steps: the sample size"),
        Variable("n_batches", _CELL, dtype="int64", description="micro-batches a step"),
        Variable("n_missing", _CELL, dtype="int64", description="steps left out"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=training_noise,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),
        SKETCH,
        Parameter("group", "auto", "which group of minibatches, as workers/micro_batches"),
    ),
    coords={"window": range(WINDOWS)},
    references=(
        Reference(
            "McCandlish, Kaplan, Amodei, OpenAI Dota Team, An Empirical Model of Large-Batch "
            "Training, 2018, appendix A.1",
            "https://arxiv.org/abs/1812.06162",
        ),
        Reference("Fieller, Some Problems in Interval Estimation, JRSS B 16 (1954)"),
    ),
)
