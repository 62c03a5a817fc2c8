"""What one-point convexity says in words and in a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.contracts import Finding
from tracelab.outcomes import shown, subject
from tracelab.typing import Assumption, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ASSUMPTIONS", "finding", "plot"]

ASSUMPTIONS = ("one_point_convex", "rate_smooth", "rate_convex", "rate_contracting", "bounded")
"""c > 0 all along the path; eta < 1/(2L), c/L^2, 1/(2c); norms of the noise bounded."""


def finding(result: xr.Dataset) -> Finding:
    """Return at how many steps the gradients point to the end of the run, and the smallest c."""
    row = shown(result)
    if int(row["status"]) != Status.OK:
        reason = Status(int(row["status"])).name.lower().replace("_", " ")
        return Finding(f"Whether gradients point to the end of the run is not known: {reason}.")
    plain, smooth = row["inner"].values, row["smoothed_inner"].values
    known = np.isfinite(plain)
    text = (
        f"The gradient of {subject(row)} points to the weights of step "
        f"{int(row['target_step'])} at {int((plain[known] > 0).sum())} of {int(known.sum())} "
        f"recorded steps before, and that of the loss smoothed by one step's noise at "
        f"{int((smooth[known] > 0).sum())}; the smallest c of the latter is "
        f"{float(row['convexity_min']):.3g} (at least {float(row['convexity_min_low']):.3g})."
    )
    if np.isfinite(row["bound"]):
        text += (
            f" If its curvature is nowhere larger, the theorem keeps the run within "
            f"{float(row['bound']):.3g} of that point."
        )
    return Finding(text, tuple(_warnings(row)))


def _warnings(row: xr.Dataset) -> list[str]:
    found = [
        "The target is where the same run ended: that a path leads to its own end is hindsight. "
        "Under cross-entropy, while norms grow, positive products are nearly trivial. Compare with "
        "the end of another run, or with an earlier target (target=).",
    ]
    checks = row["assumption_holds"].values
    failed = [
        name for name, check in zip(ASSUMPTIONS, checks, strict=True) if check == Assumption.FAILS
    ]
    if failed:
        found.append(f"Conditions of the theorem that do not hold: {', '.join(failed)}.")
    if not np.isfinite(row["smoothness"]):
        found.append(
            "The smoothness L is not known, and with it there is no bound: record HessianVectors()."
        )
    found.append(
        "That noise is bounded cannot be seen from draws of it; the largest of them stands for r, "
        "and the largest recorded curvature for L: both from below."
    )
    known = np.isfinite(row["smoothed_inner"].values)
    wide = np.abs(row["smoothed_inner"].values) < 2 * row["smoothed_inner_se"].values
    if wide[known].any():
        found.append(
            f"At {int(wide[known].sum())} of {int(known.sum())} steps the smoothed product is less "
            "than two standard errors from 0: record more draws=, or a larger sketch=."
        )
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return the cosine and c over training, plain and smoothed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.set_label(
        "Cosine between the negative gradient and the way to the last weights, and c, the inner "
        "product over the squared distance: plain (dashed) and smoothed by one step's noise "
        "(solid, two standard errors); distance to the last weights."
    )
    left, middle, right = figure.subplots(1, 3)
    for index, (label, result) in enumerate(results.items()):
        row, color = shown(result), f"C{index}"
        for axis, name in ((left, "cosine"), (middle, "convexity")):
            axis.plot(row["step"], row[name], "--", color=color, lw=1)
            axis.errorbar(
                row["step"], row[f"smoothed_{name}"], 2 * row[f"smoothed_{name}_se"],
                fmt="o-", color=color, ms=4, label=label,
            )  # fmt: skip
        right.plot(row["step"], row["distance"], "o-", color=color, ms=4)
    for axis, name in ((left, "cosine"), (middle, "c"), (right, "distance to the end")):
        axis.set_xscale("symlog", linthresh=10)
        axis.set(xlabel="step", ylabel=name)
        if axis is not right:
            axis.axhline(0, color="0.4", linestyle=":")
    left.legend(fontsize=8, frameon=False)
    return figure
