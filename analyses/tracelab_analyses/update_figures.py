"""What is said and drawn of the noise of updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.contracts import Finding
from tracelab.outcomes import at_layers, layer_names, shown, subject
from tracelab.typing import Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Why nothing is told.
_REASONS = {
    Status.NOT_CONVERGED: "gradients of successive steps are not told apart all along the run (no "
    "noise, or a layer that learns for a short time), or the memory is longer than memory= steps",
    Status.TOO_FEW_SAMPLES: "too few consecutive steps",
    Status.NON_FINITE_INPUT: "weights or gradients are not finite, or too large to be squared",
    Status.CONSTANT_INPUT: "weights or gradients do not vary",
}
# Standard errors from which on two numbers are told apart.
APART = 3.0


def finding(result: xr.Dataset) -> Finding:
    """Return what the network's updates make of gradients, and whether the formula says so."""
    row = shown(result)
    if int(row["status"]) != Status.OK:
        reason = _REASONS.get(Status(int(row["status"])), "it could not be computed")
        return Finding(f"Updates do not tell what they make of gradients: {reason}.")
    gain, noise = (float(row[f"{name}_formula"]) for name in ("gain", "noise"))
    known = np.isfinite(gain)
    sentence = (
        f"A gradient is worth {_told(row, 'gain')} plain steps of {subject(row)} in the long run, "
        f"and the noise variance of an update is {_told(row, 'noise')} times that of a gradient"
    )
    if np.isfinite(float(row["observed"])):
        sentence += f" ({_told(row, 'observed')} in this run)"
    if not known:
        return Finding(
            f"{sentence}; this optimizer has no formula to compare with.", tuple(_warnings(row))
        )
    apart = {name: float(row[f"{name}_apart"]) for name in ("gain", "noise")}
    agrees = max(apart.values()) <= APART
    return Finding(
        f"{sentence}, which {'agrees' if agrees else 'disagrees'} with the formula for the "
        f"recorded optimizer: {gain:.4g} and {noise:.4g}, {apart['gain']:.1f} and "
        f"{apart['noise']:.1f} standard errors away.",
        tuple(_warnings(row)),
    )


def _told(row: xr.Dataset, name: str) -> str:
    return f"{float(row[name]):.4g} ± {float(row[f'{name}_se']):.2g}"


def _warnings(row: xr.Dataset) -> list[str]:
    found = []
    sums = float(row["gradient_sums"])
    if abs(sums - 1) > APART * float(row["gradient_sums_se"]):
        found.append(
            "Noises of successive gradients are not independent, by curvature that takes updates "
            "back, by epochs or by a mean that moves: the variance of long sums is "
            f"{_told(row, 'gradient_sums')} of what it would be, and updates in this run have not "
            "the noise that independent ones would give them."
        )
    drift = float(row["drift"])
    if not np.isfinite(float(row["observed"])):
        found.append(
            f"The means of updates and gradients move too much beside their noise ({drift:.2g} and "
            f"{float(row['gradient_drift']):.2g} of its variance within {int(row['memory']) // 2} "
            "steps) for the noise of this run to be told: gain and noise are what the optimizer "
            "makes of gradients."
        )
    elif not np.isfinite(float(row["sums"])):
        found.append(
            "Too little is left of the noise of gradients in long sums to compare that of updates "
            "with."
        )
    if np.isfinite(float(row["observed"])) and abs(drift) > max(
        0.1, APART * float(row["drift_se"])
    ):
        found.append(
            f"Within {int(row['memory']) // 2} steps updates drift by {_told(row, 'drift')} of the "
            "variance of their noise: what was observed takes this drift for a line in the lag."
        )
    explained = float(row["explained"])
    if explained < 0.99:
        found.append(
            f"{100 * (1 - explained):.0f} % of the variance of updates is no fixed sum of past "
            "gradients: coordinates have steps of their own, or steps that change. Projections "
            "mix coordinates by the same signs at every step; that error, up to the root of 2 over "
            "the number of directions, is in no standard error."
        )
    if not np.isfinite(float(row["weight_decay"])):
        found.append(
            "How weight decay acts is not known of this optimizer; what of it changes within a "
            "block of steps is left in the updates."
        )
    missing = int(row["n_missing"])
    if missing:
        found.append(
            f"{missing} steps are left out: not finite, of rate 0, without a next one, or such as "
            "kept the weights."
        )
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return gain and noise with their standard errors, by layer, and what formulas give."""
    from matplotlib.figure import Figure

    layers = layer_names(results)
    figure = Figure(figsize=(9, 1.6 + 0.34 * len(layers)), layout="constrained")
    figure.set_label(
        "What updates make of gradients and of their noise, by layer: measured, two standard "
        "errors, and by formula (lines); observed in the run (squares)."
    )
    axes = figure.subplots(1, 2, sharey=True)
    for label, good, place, color in at_layers(results):
        for axis, name in zip(axes, ("gain", "noise"), strict=True):
            value, error = good[name].values, 2 * good[f"{name}_se"].values
            axis.errorbar(value, place, xerr=error, fmt="o", ms=4, color=color, label=label)
            for formula in np.unique(good[f"{name}_formula"].values):
                if np.isfinite(formula):
                    axis.axvline(formula, color=color, linewidth=0.8)
        axes[1].plot(good["observed"].values, place, "s", ms=4, color=color, fillstyle="none")
    axes[0].set_yticks(range(len(layers)), layers, fontsize=8)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="gain", title="Plain steps a gradient is worth")
    axes[1].set(xlabel="variance, over a gradient's", title="Noise of one update")
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper"
    )
    return figure
