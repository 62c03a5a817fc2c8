"""What a result on the information of a trajectory says, in words and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.contracts import Finding
from tracelab.outcomes import subject
from tracelab.stats.trajectory_information import THEORIES as VIRTUAL
from tracelab.typing import Assumption, Status
from tracelab_analyses.information_assumptions import ASSUMPTIONS, PROVED, THEORIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["finding", "plot"]

TERMS = ("", "the trajectory term alone", "the flatness term alone", "each term", "only their sum")
_STYLES = ("-", "--", ":", "-.", (0, (1, 3)))


def finding(result: xr.Dataset) -> Finding:
    """Return the least bound that is proved, at the last row, beside the gap that was measured."""
    row = result.isel(layer=-1)
    of = "error" if int(row["measure"]) else "loss"
    if int(row["status"]) != int(Status.OK):
        return Finding(_refusal(row))
    last = row.isel(step=-1)
    bounds = last["bound"].sel(theory=_holding(row) or list(PROVED))
    if not np.isfinite(bounds).any():
        return Finding("No bound is finite: the noise on record leaves the information unbounded.")
    theory = str(bounds["theory"].values[int(np.nanargmin(bounds))])
    said = last.sel(theory=theory)
    value, gap = float(said["bound"]), float(last["gap"])
    verb = "is" if theory in _holding(row) else "would be"
    text = f"After {int(last['step'])} steps the gap of the {of} of {subject(row)} {verb} at most "
    text += f"{value:.3g}"
    if np.isfinite(said["bound_se"]):
        text += f" +- {float(said['bound_se']):.2g}"
    text += f" ({theory}), "
    if said["vacuous"]:
        text += f"which says nothing: {TERMS[int(said['vacuous_term'])]} exceeds its range of "
        text += f"{float(row['range']):g}"
    else:
        text += f"within its range of {float(row['range']):g}"
    text += f"; measured were {gap:.3g} ({float(last['gap_low']):.3g} to "
    text += f"{float(last['gap_high']):.3g}, {int(row['n_held_out'])} held-out examples)"
    if 0 < gap <= value:
        text += f", {value / gap:.3g} times less"
    return Finding(f"{text}.", tuple(_warnings(row, theory)))


def _holding(row: xr.Dataset) -> list[str]:
    """Return the theories that are proved and hold but for the choice of the noise.

    The scale of the noise is chosen by the data unless it is given, which all others are free of.
    """
    fails = row["assumption_holds"] == int(Assumption.FAILS)
    wrong = fails.drop_sel(assumption="scale_fixed").any("assumption")
    return [theory for theory in PROVED if not wrong.sel(theory=theory)]


def _refusal(row: xr.Dataset) -> str:
    if not np.isfinite(row["range"]):
        return (
            "No bound is claimed: the loss has no range; record PerturbedLoss(error=...), or give "
            "loss_bound= if the loss of an example cannot exceed it."
        )
    if not int(row["n_held_out"]):
        return (
            "No bound is claimed: there are no held-out data; record PerturbedLoss(held_out=...)."
        )
    if int(row["n_steps"]) != int(row["step"][-1]):
        return (
            f"No bound is claimed: of {int(row['step'][-1])} steps {int(row['n_steps'])} are on "
            "record, and the sum is over all."
        )
    return "No bound is claimed: what was measured is not finite, does not vary, or is too little."


def _warnings(row: xr.Dataset, theory: str) -> list[str]:
    assumed = row["assumption_holds"].sel(theory=theory)
    failing = [
        ASSUMPTIONS[str(name)]
        for name in assumed["assumption"].values
        if int(assumed.sel(assumption=name)) == int(Assumption.FAILS)
    ]
    found = []
    if failing:
        found.append(f"Taken for granted and not so: {'; '.join(failing)}.")
    unknown = [
        ASSUMPTIONS[str(name)]
        for name in assumed["assumption"].values
        if int(assumed.sel(assumption=name)) == int(Assumption.UNCHECKED)
    ]
    if unknown:
        found.append(f"Taken for granted and not to be seen in a trace: {'; '.join(unknown)}.")
    found.append(
        "Such bounds are ordered by the variance of gradients, and so by the batch size, and do "
        "not follow generalization where batch size or learning rate change how flat the minimum "
        "is: compare them with the gap, not with each other."
    )
    last = row.isel(step=-1)
    if float(last["gap_low"]) > float(last["bound"].sel(theory=theory)):
        found.append(
            "The gap that was measured is above the bound: this run is not like the mean over "
            "training sets, or something taken for granted is not so."
        )
    said = last.sel(theory=theory)
    if theory in VIRTUAL and float(said["trajectory_term"]) == 0 and np.isnan(said["bound_se"]):
        found.append(
            "The variance of gradients was estimated below nothing and taken for 0: what the "
            "trajectory tells is less than its error, which is not known, and not nothing; record "
            "more minibatches and held-out examples."
        )
    if float(last["flatness_term"].sel(theory=theory)) > 0.5 * float(last["gap"]) > 0:
        found.append(
            "The flatness term is of the size of the gap: under noise that leaves nothing of what "
            "was learned it is the gap itself, measured, and no bound on it."
        )
    found.append(
        "wang_mao leaves out the sensitivity of the gradient, by a step that is false in general: "
        "it is shown for comparison."
    )
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return bounds and the gap over training, and the terms at the last row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.set_label(
        "Bounds by theory and the measured gap, over training; their two terms behind the last "
        "step. Above the dotted line, the range of what is bounded, a bound says nothing."
    )
    left, right = figure.subplots(1, 2)
    left.set_yscale("log")
    left.set_xscale("symlog", linthresh=10)
    right.set_yscale("log")
    for index, (label, result) in enumerate(results.items()):
        row = result.isel(layer=-1)
        if int(row["status"]) != int(Status.OK):
            continue
        color = f"C{index}"
        for theory, style in zip(THEORIES, _STYLES, strict=True):
            bound = row["bound"].sel(theory=theory).values
            if np.isfinite(bound).any():
                shown = np.where(bound > 0, bound, np.nan)
                left.plot(row["step"], shown, linestyle=style, color=color)
        gap = row["gap"].values
        left.plot(row["step"], np.where(gap > 0, gap, np.nan), "o", color=color, ms=3, label=label)
        last = row.isel(step=-1)
        places = np.arange(len(THEORIES)) + 0.15 * index
        for name, marker in (("trajectory_term", "s"), ("flatness_term", "v")):
            values = last[name].values
            right.plot(places, np.where(values > 0, values, np.nan), marker, color=color, ms=5)
        for axis in (left, right):
            axis.axhline(float(row["range"]), color="0.4", ls=":", lw=1)
    for theory, style in zip(THEORIES, _STYLES, strict=True):
        left.plot([], [], linestyle=style, color="0.4", label=theory)
    right.plot([], [], "s", color="0.4", label="trajectory")
    right.plot([], [], "v", color="0.4", label="flatness")
    right.set_xticks(range(len(THEORIES)), THEORIES, fontsize=7)
    left.set(xlabel="step", ylabel="gap", title="Bounds and measured gap (dots)")
    right.set(ylabel="gap", title="Terms, last row")
    for axis in (left, right):
        axis.legend(fontsize=7, frameon=False)
    return figure
