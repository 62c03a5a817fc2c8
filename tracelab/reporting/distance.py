"""Distance from initialization against log t, with the fitted laws where they were fitted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.errors import DamagedError
from tracelab.reporting.numbers import row_label
from tracelab.reporting.style import Picture, picture, plain_text
from tracelab.trace import Trace
from tracelab.typing import FloatArray, Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["distance_picture"]

# Any analysis that says so fits D = a + c log t, D = k t^nu and D = D_inf - A exp(-t / tau).
_LAWS = (
    "log_intercept",
    "log_slope",
    "power_prefactor",
    "power_exponent",
    "saturation_level",
    "saturation_amplitude",
    "saturation_time",
    "start",
)
_POINTS = 300

logger = logging.getLogger(__name__)


def distance_picture(traces: Mapping[str, Trace]) -> Picture | None:
    """Return the distance of all weights from their initialization, one curve a trace.

    None if no trace recorded it. Whole trajectories are read: one number a step and layer.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    curves = {label: _distance(trace) for label, trace in traces.items()}
    shown = {label: curve for label, curve in curves.items() if curve is not None}
    if not shown:
        return None
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    fitted = False
    for index, label in enumerate(traces):
        if label not in shown:
            continue
        step, distance = shown[label]
        color = f"C{index % 10}"
        axes.plot(step, distance, color=color, lw=2.2, alpha=0.75, label=plain_text(label))
        fitted |= _laws(axes, traces[label], step, color)
    if fitted:
        axes.add_line(Line2D([], [], color="0.3", lw=1.2, ls="--", label="a + c log t"))
        axes.add_line(Line2D([], [], color="0.3", lw=1.2, ls=":", label="k t$^ν$"))
        saturation = "D$_∞$ - A exp(-t/τ)"
        axes.add_line(Line2D([], [], color="0.3", lw=1.2, ls="-.", label=saturation))
    axes.set_xscale("log")
    axes.set(xlabel="optimizer step t", ylabel="distance ‖w(t) − w(0)‖ (weight)")
    axes.set_ylim(bottom=0)
    axes.legend()
    caption = "Distance of all weights from their initialization; a straight line is log t."
    return picture(figure, "distance", caption)


def _distance(trace: Trace) -> tuple[FloatArray, FloatArray] | None:
    """Return steps t >= 1 and the network's distance, thinned evenly in log t."""
    for kind in ("weights", "statistics"):
        for name in [name for name, each in trace.kinds.items() if each == kind]:
            try:
                found = _thinned(trace.groups[name])
            except DamagedError as error:
                logger.warning("no distance is drawn: %s", error)
                continue
            if found is not None:
                return found
    return None


def _thinned(group: xr.Dataset) -> tuple[FloatArray, FloatArray] | None:
    if "distance" not in group:
        return None
    step = np.asarray(group["step"].values, dtype=np.float64)
    late = np.flatnonzero(step >= 1)
    if late.size < 2:
        return None
    targets = np.geomspace(step[late[0]], step[late[-1]], _POINTS)
    nearest = np.searchsorted(step[late], targets).clip(0, late.size - 1)
    late = late[np.unique(nearest)]
    by_layer = group["distance"].isel(step=late).transpose("step", "layer")
    squares = np.asarray(by_layer.values, dtype=np.float64) ** 2
    return step[late], np.sqrt(squares.sum(axis=1))


def _laws(axes: Axes, trace: Trace, step: FloatArray, color: str) -> bool:
    fit = _fit(trace)
    if fit is None:
        return False
    numbers = (float(fit[name]) for name in _LAWS)
    intercept, slope, prefactor, exponent, level, amplitude, time, start = numbers
    t = step[step >= start]
    axes.plot(t, intercept + slope * np.log(t), color=color, lw=1.2, ls="--")
    axes.plot(t, prefactor * t**exponent, color=color, lw=1.2, ls=":")
    if np.isfinite(time):
        axes.plot(t, level - amplitude * np.exp(-t / time), color=color, lw=1.2, ls="-.")
    return True


def _fit(trace: Trace) -> xr.Dataset | None:
    for result in trace.results.values():
        if all(name in result for name in _LAWS):
            row: xr.Dataset = result.sel(layer=row_label(result))
            if row_label(result) == "network" and int(row["status"]) == int(Status.OK):
                return row
    return None
