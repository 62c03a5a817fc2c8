"""Figure of dimensions and of the bounds they give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.outcomes import at_layers, layer_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot"]


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return both dimensions with their intervals and both bounds, by layer and trace."""
    from matplotlib.figure import Figure

    layers = layer_names(results)
    figure = Figure(figsize=(9, 1.8 + 0.4 * len(layers)), layout="constrained")
    figure.set_label(
        "Dimension of the last weights by tail index (circles; bars: the Gaussian control) and by "
        "persistent homology (squares), and the bounds they give, up to a constant, by layer."
    )
    left, right = figure.subplots(1, 2, sharey=True)
    for label, good, place, color in at_layers(results):
        for shift, name, mark in ((-0.08, "alpha", "o"), (0.08, "ph_dimension", "s")):
            value = good[name].values
            error = [value - good[f"{name}_low"].values, good[f"{name}_high"].values - value]
            # An interval without an upper end has no bar on that side.
            error[1] = np.where(np.isfinite(error[1]), error[1], 0.0)
            left.errorbar(
                value, place + shift, xerr=error, fmt=mark, ms=4, color=color,
                label=label if mark == "o" else None,
            )  # fmt: skip
        left.plot(good["alpha_control"].values, place - 0.08, "|", ms=9, color=color)
        for theory, (shift, mark) in enumerate(((-0.08, "o"), (0.08, "s"))):
            bound = good["bound"].values[:, theory]
            right.plot(bound, place + shift, mark, ms=4, color=color)
    left.set_yticks(range(len(layers)), layers, fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="dimension", title="Dimension of the last weights")
    right.axvline(1, color="0.4", linestyle=":")
    right.set(xlabel="bound (loss)", title="Bound; 1: vacuous for a loss in [0, 1]")
    figure.legend(
        *left.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper"
    )
    return figure
