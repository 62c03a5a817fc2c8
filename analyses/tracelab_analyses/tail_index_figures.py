"""Figures of tail indices: by layer over training, by mode beside controls, against covariates."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from tracelab.contracts import NETWORK
from tracelab.outcomes import shown
from tracelab.typing import Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["against", "by_mode", "plot"]

MODES = ("pooled", "standardized", "batches")
AGAINST = {
    "depth": ("linear", "layer, by depth"),
    "step": ("symlog", "step"),
    "learning_rate": ("log", "learning rate"),
    "noise_batch_size": ("log", "batch size of the noise"),
}
# What tells the noise of one result from that of another, not how it is looked at.
NOISE_PARAMETERS = ("group", "batch_size", "batches", "replacement")
MAX_COLORED = 10
MAX_COLUMNS = 3


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return alpha by layer over training with intervals, one panel a trace.

    Of more than `MAX_COLORED` layers only the network's interval and the range of the layers are
    told apart.
    """
    from matplotlib.figure import Figure

    columns = min(len(results), MAX_COLUMNS)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.2 * columns + 2.2, 0.4 + 3.4 * rows), layout="constrained")
    figure.set_label("Tail index of gradient noise by layer over training, with intervals.")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = grid.ravel()[: len(results)]
    for unused in grid.ravel()[len(results) :]:
        unused.set_visible(False)
    layers = list(dict.fromkeys(str(x) for r in results.values() for x in r["layer"].values))
    handles: dict[str, Any] = {}
    for axis, (label, result) in zip(axes, results.items(), strict=True):
        # Before anything is drawn: limits are found on the scale that is then in force.
        axis.set_xscale("symlog", linthresh=10)
        for name in (str(x) for x in result["layer"].values):
            row = result.sel(layer=name)
            row = row.isel(step=np.flatnonzero(row["status"].values == int(Status.OK)))
            step, value, low, high = (
                row[key].values for key in ("step", "alpha", "alpha_low", "alpha_high")
            )
            whole = name == NETWORK
            if not whole and len(layers) > MAX_COLORED:
                (handles["single layers"],) = axis.plot(step, value, color="0.75", lw=0.8, zorder=1)
                continue
            handles[name] = axis.errorbar(
                step, value, yerr=np.abs([value - low, high - value]),
                fmt="o-", color="black" if whole else f"C{layers.index(name) % 10}",
                ms=4 if whole else 3, lw=1.8 if whole else 1, elinewidth=1.2 if whole else 0.8,
                capsize=2, zorder=3 if whole else 2,
            )  # fmt: skip
            if whole or result.sizes["layer"] == 1:
                (handles["Gaussian control"],) = axis.plot(
                    step, row["alpha_control"], "x--", color="0.5", ms=5
                )
        axis.axhline(2, color="0.4", linestyle=":")
        axis.set(xlabel="step", title=label)
        axis.tick_params(labelbottom=True)
    for axis in grid[:, 0]:
        axis.set_ylabel("tail index α (2: Gaussian)")
    figure.legend(
        handles.values(), handles.keys(), fontsize=8, frameon=False, loc="outside right upper"
    )
    return figure


def by_mode(results: Mapping[str, Sequence[xr.Dataset]]) -> Figure | None:
    """Return alpha of the network by mode over training, each with its control; a panel a trace.

    None where no trace has results of two modes with the same other parameters.
    """
    from matplotlib.figure import Figure

    found = {label: modes for label, each in results.items() if (modes := _modes(each))}
    if not found:
        return None
    columns = min(len(found), MAX_COLUMNS)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.2 * columns + 2.6, 0.4 + 3.4 * rows), layout="constrained")
    sketches = sorted({_parameters(r)["sketch"] for each in found.values() for r in each.values()})
    figure.set_label(
        "Tail index by mode over training, with intervals, each beside the same estimate of "
        f"exactly Gaussian noise of the same covariance (dashed); series: {', '.join(sketches)}."
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for unused in grid.ravel()[len(found) :]:
        unused.set_visible(False)
    handles: dict[str, Any] = {}
    for axis, (label, modes) in zip(grid.ravel(), found.items(), strict=False):
        # Before anything is drawn: limits are found on the scale that is then in force.
        axis.set_xscale("symlog", linthresh=10)
        for mode, result in modes.items():
            row, color = shown(result), f"C{MODES.index(mode)}"
            step, value = row["step"].values, row["alpha"].values
            reach = np.abs([value - row["alpha_low"].values, row["alpha_high"].values - value])
            handles[mode] = axis.errorbar(
                step, value, yerr=reach, fmt="o-", color=color, ms=4, capsize=2, elinewidth=1
            )
            (control,) = axis.plot(step, row["alpha_control"], "x--", color=color, ms=5, lw=1)
            handles.setdefault("its Gaussian control", control)
        axis.axhline(2, color="0.4", linestyle=":")
        axis.set(xlabel="step", title=label)
        axis.tick_params(labelbottom=True)
    for axis in grid[:, 0]:
        axis.set_ylabel("tail index α (2: Gaussian)")
    figure.legend(
        handles.values(), handles.keys(), fontsize=8, frameon=False, loc="outside right upper"
    )
    return figure


def against(results: Mapping[str, Sequence[xr.Dataset]]) -> Figure | None:
    """Return alpha against depth, step, learning rate and batch size, in one color a trace.

    Depth and batch size at the last probe; the others of the network at every probe. A quantity
    that takes one value has no panel; None if that is so of all but the step.
    """
    from matplotlib.figure import Figure

    points = [
        (color, label, table)
        for color, (label, each) in enumerate(results.items())
        if not (table := _points(each)).empty
    ]
    panels = [
        name
        for name in AGAINST
        if pd.concat([table[name] for _, _, table in points] or [pd.Series()]).dropna().nunique()
        > 1
    ]
    if not set(panels) - {"step"}:
        return None
    figure = Figure(figsize=(2.9 * len(panels) + 2.2, 3.5), layout="constrained")
    figure.set_label(
        "Tail index against what may explain it: layers and batch sizes at the last probe, steps "
        "and learning rates of the network, with intervals; crosses are Gaussian controls."
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, panels, strict=True):
        scale, title = AGAINST[name]
        # Before anything is drawn: limits are found on the scale that is then in force.
        axis.set_xscale(scale, **({"linthresh": 10} if scale == "symlog" else {}))
        for color, label, table in points:
            rows = _panel(table, name)
            x, value = rows[name], rows["alpha"]
            reach = [
                (value - rows["alpha_low"]).abs(), (rows["alpha_high"] - value).abs()
            ]  # fmt: skip
            line = "o" if name == "learning_rate" else "o-"
            axis.errorbar(
                x, value, reach, fmt=line, color=f"C{color}", ms=4, lw=1, capsize=2, label=label
            )
            axis.plot(x, rows["alpha_control"], "x", color=f"C{color}", ms=4, alpha=0.6)
        axis.axhline(2, color="0.4", linestyle=":")
        axis.set(xlabel=title)
        if name == "depth":
            axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("tail index α (2: Gaussian)")
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper"
    )
    return figure


def _points(results: Sequence[xr.Dataset]) -> pd.DataFrame:
    """Return alpha by cell, with covariates, of the results that differ in their noise alone."""
    alike: dict[Hashable, list[xr.Dataset]] = {}
    for result in results:
        parameters = _parameters(result)
        key = repr(sorted((k, v) for k, v in parameters.items() if k not in NOISE_PARAMETERS))
        alike.setdefault(key, []).append(result)
    # Of coordinates first, by series; of equal ones those with most batch sizes.
    best = max(
        alike.values(),
        key=lambda each: (
            MODES.index(_parameters(each[0])["mode"]),
            _parameters(each[0])["sketch"] != "projected",
            len(each),
        ),
        default=[],
    )
    names = ["alpha", "alpha_low", "alpha_high", "alpha_control", "status"]
    tables = [result[names].to_dataframe().reset_index() for result in best]
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    good: pd.DataFrame = table[table["status"] == int(Status.OK)]
    return good


def _panel(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of a panel: of layers, or of the network (else the last layer)."""
    layers = list(table["layer"])
    whole = NETWORK if NETWORK in layers else layers[-1]
    if name == "depth":
        # Of one batch size: the smallest, whose noise is furthest from Gaussian.
        size = table["noise_batch_size"].min()
        found = table[table["depth"].notna()]
        found = found if np.isnan(size) else found[found["noise_batch_size"] == size]
        found = found[found["step"] == found["step"].max()]
    elif name == "noise_batch_size":
        found = table[table["layer"] == whole]
        found = found[found["step"] == found["step"].max()]
    else:
        size = table["noise_batch_size"].min()
        found = table[table["layer"] == whole]
        found = found if np.isnan(size) else found[found["noise_batch_size"] == size]
    ordered: pd.DataFrame = found.dropna(subset=[name]).sort_values(name, kind="stable")
    return ordered


def _parameters(result: xr.Dataset) -> dict[str, Any]:
    return dict(result.attrs["parameters"])


def _modes(results: Sequence[xr.Dataset]) -> dict[str, xr.Dataset]:
    """Return the results that differ in mode alone, most modes first; nothing if no two do."""
    alike: dict[Hashable, dict[str, xr.Dataset]] = {}
    for result in results:
        parameters = _parameters(result)
        mode = parameters.pop("mode")
        if mode in MODES and shown(result).sizes["step"]:
            alike.setdefault(repr(sorted(parameters.items())), {})[mode] = result
    most = max(alike.values(), key=len, default={})
    return {mode: most[mode] for mode in MODES if mode in most} if len(most) > 1 else {}
