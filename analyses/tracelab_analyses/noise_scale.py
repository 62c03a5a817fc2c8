"""Gradient noise scale: trace of the noise covariance over the squared gradient.

McCandlish, Kaplan, Amodei et al. (2018), equation 2.9: ``B_simple = tr(Sigma) / |G|^2``, with
``Sigma`` the covariance of a single example's gradient and ``G`` the full-data gradient. Batches
much smaller than ``B_simple`` are dominated by noise, much larger ones waste examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import stats

from tracelab.contracts import (
    Analysis,
    Finding,
    Input,
    Parameter,
    Reference,
    Variable,
)
from tracelab.outcomes import at_ends, shown, subject
from tracelab.series import PROBE
from tracelab.typing import Array, FloatArray, Status
from tracelab_analyses.momentum import momentum_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_BATCHES = 8
_CELL = ("step", "layer")
_SQUARED = "(loss/weight)^2"


def noise_scale(
    squared_deviation: FloatArray,
    signal: FloatArray,
    batch_size: Array,
    replacement: Array,
    n_data: Array,
    optimizer: Array | None = None,
    *,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return the noise scale, the trace of the covariance and the signal, by cell.

    With replacement a batch of ``b`` has noise covariance ``Sigma / b``, without
    ``Sigma / b (n - b) / (n - 1)``; so

    .. math:: \mathrm{tr}\,\Sigma = b \frac{n-1}{n-b} \overline{\|g_B - \bar g\|^2}.

    Its standard error is that of the mean over batches; the signal is the full-data gradient's
    squared norm, exact for the given data.

    Parameters
    ----------
    squared_deviation : ndarray, shape (step, layer, batch)
        Squared norm of each batch's noise, ``(loss/weight)^2``.
    signal : ndarray, shape (step, layer)
        Squared norm of the full-data gradient, ``(loss/weight)^2``.
    batch_size, n_data : scalar arrays of int
        Examples a batch and in all.
    replacement : scalar array of bool
        Whether batches were drawn with replacement.
    optimizer : array of object, optional
        Name and hyper-parameters of the optimizer, or of several.
    confidence : float
        Level of the intervals.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    count = squared_deviation.shape[-1]
    size, total = float(batch_size), float(n_data)
    factor = size
    if not bool(replacement):
        factor = size * (total - 1) / (total - size) if total > size else np.nan
    trace = factor * squared_deviation.mean(axis=-1)
    error = np.full_like(trace, np.nan)
    quantile = np.nan
    if count > 1:
        with np.errstate(invalid="ignore"):
            error = factor * squared_deviation.std(axis=-1, ddof=1) / np.sqrt(count)
        quantile = stats.t.ppf(0.5 + confidence / 2, count - 1)
    low, high = np.maximum(trace - quantile * error, 0.0), trace + quantile * error
    status = np.full(trace.shape, int(Status.OK), dtype=np.uint8)
    status[~(trace > 0) | (signal <= 0)] = int(Status.CONSTANT_INPUT)
    if count < MIN_BATCHES:
        status[...] = int(Status.TOO_FEW_SAMPLES)
    finite = np.isfinite(squared_deviation).all(axis=-1) & np.isfinite(signal)
    status[~finite] = int(Status.NON_FINITE_INPUT)
    usable = (signal > 0) & finite
    scale = 1.0 / np.where(usable, signal, np.nan)
    momentum = momentum_of(None if optimizer is None else optimizer.tolist())
    filtered = (momentum.gain, momentum.update_noise) if momentum else (np.nan, np.nan)
    magnified = momentum.magnification if momentum else np.nan
    return {
        "noise_scale": trace * scale,
        "noise_scale_se": error * scale,
        "noise_scale_low": low * scale,
        "noise_scale_high": high * scale,
        "trace_cov": trace,
        "trace_cov_se": error,
        "trace_cov_low": low,
        "trace_cov_high": high,
        "signal": signal,
        "momentum_gain": np.full(trace.shape, filtered[0]),
        "update_noise": np.full(trace.shape, filtered[1]),
        "magnification": np.full(trace.shape, magnified),
        "n_batches": np.full(trace.shape, count),
        "status": status,
    }


def finding(result: xr.Dataset) -> Finding:
    """Return the network's noise scale at the first and the last probe."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No cell had enough finite, varying noise samples for a noise scale.")

    def describe(row: xr.Dataset) -> str:
        value, low, high = (
            f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
            for number in (float(row[f"noise_scale{end}"]) for end in ("", "_low", "_high"))
        )
        return f"{value} examples ({low} to {high}) at step {int(row['step'])}"

    parts = at_ends(good, describe)
    where = subject(good)
    return Finding(
        f"The gradient noise scale of {where} is {', and '.join(parts)}.{_momentum(good)}",
        (
            "Late in training the full-data gradient is tiny and the noise scale large and "
            "volatile; it is not comparable between optimizers that precondition the gradient.",
        ),
    )


def _momentum(rows: xr.Dataset) -> str:
    """Return what is said of the optimizer's momentum, if it has one that is known."""
    gain, noise, magnified = (
        float(rows[name].isel(step=0))
        for name in ("momentum_gain", "update_noise", "magnification")
    )
    if not np.isfinite([gain, noise]).all() or gain == noise == 1.0:
        return ""
    said = (
        f" Momentum makes a step {gain:.3g} times as long in the long run, and an update's noise "
        f"variance {noise:.3g} times that of plain SGD at the same long-run step"
    )
    if magnified != 1.0:
        said += f", {magnified:.3g} times that of one moving average"
    return f"{said} (measured: analysis update_noise)."


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return noise scale, and trace of covariance beside signal, over training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.set_label("Noise scale with its interval, and what it is the ratio of, over training.")
    left, right = figure.subplots(1, 2)
    for axis in (left, right):
        # Before anything is drawn: limits are found on the scale that is then in force.
        axis.set_xscale("symlog", linthresh=10)
        axis.set_yscale("log")
    for index, (label, result) in enumerate(results.items()):
        row = shown(result)
        color = f"C{index}"
        left.fill_between(
            row["step"], row["noise_scale_low"], row["noise_scale_high"],
            color=color, alpha=0.2, linewidth=0,
        )  # fmt: skip
        left.plot(row["step"], row["noise_scale"], "o-", color=color, label=label, ms=4)
        right.plot(row["step"], row["trace_cov"], "o-", color=color, ms=4)
        right.plot(row["step"], row["signal"], "s--", color=color, ms=3)
    right.plot([], [], "o-", color="0.4", ms=4, label="noise: tr Σ")
    right.plot([], [], "s--", color="0.4", ms=3, label="signal: |G|²")
    left.set(xlabel="step", ylabel="noise scale (examples)", title="Gradient noise scale")
    right.set(xlabel="step", ylabel="(loss/weight)²", title="Noise and signal")
    for axis in (left, right):
        axis.legend(fontsize=8, frameon=False)
    return figure


ANALYSIS = Analysis(
    name="noise_scale",
    summary="How noisy is the gradient? Noise scale, trace of the covariance, signal",
    version=2,
    inputs=(
        Input(
            Variable("squared_deviation", ("step", "layer", "batch"), _SQUARED),
            sources=("noise/squared_deviation",),
            network="sum",
            collector=PROBE,
        ),
        Input(
            Variable("signal", _CELL, _SQUARED),
            sources=("noise/signal",),
            network="sum",
            collector=PROBE,
        ),
        Input(Variable("batch_size", (), dtype="int64"), ("noise@batch_size",), collector=PROBE),
        Input(Variable("replacement", (), dtype="bool"), ("noise@replacement",), collector=PROBE),
        Input(Variable("n_data", (), dtype="int64"), ("noise@n_data",), collector=PROBE),
        Input(
            Variable("optimizer", (), dtype="object"),
            ("@optimizers", "@optimizer"),
            optional=True,
            collector="tracelab.attach",
        ),
    ),
    outputs=(
        Variable("noise_scale", _CELL, "1", description="tr(Sigma) / |G|^2, in examples"),
        Variable("noise_scale_se", _CELL, "1", description="standard error"),
        Variable("noise_scale_low", _CELL, "1", description="interval, lower end"),
        Variable("noise_scale_high", _CELL, "1", description="interval, upper end"),
        Variable("trace_cov", _CELL, _SQUARED, description="tr(Sigma) of one example's gradient"),
        Variable("trace_cov_se", _CELL, _SQUARED, description="standard error"),
        Variable("trace_cov_low", _CELL, _SQUARED, description="interval, lower end"),
        Variable("trace_cov_high", _CELL, _SQUARED, description="interval, upper end"),
        Variable("signal", _CELL, _SQUARED, description="|G|^2 of the full-data gradient"),
        Variable("momentum_gain", _CELL, description="long-run step, over that of plain SGD"),
        Variable(
            "update_noise", _CELL, description="noise over squared signal of an update, over SGD's"
        ),
        Variable(
            "magnification", _CELL, description="of it by positive-negative momentum, by formula"
        ),
        Variable("n_batches", _CELL, dtype="int64", description="minibatches: the sample size"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=noise_scale,
    finding=finding,
    plot=plot,
    parameters=(Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),),
    references=(
        Reference(
            "McCandlish, Kaplan, Amodei, OpenAI Dota Team, An Empirical Model of Large-Batch "
            "Training, 2018, equation 2.9",
            "https://arxiv.org/abs/1812.06162",
        ),
    ),
)
