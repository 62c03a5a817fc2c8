"""Whether the minibatches of a probe are independent: what analyses of noise report of it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tracelab.contracts import Variable
from tracelab.stats.panel_dependence import panel_dependence
from tracelab.typing import FloatArray

__all__ = ["INDEPENDENCE", "independence", "independence_warnings"]

_CELL = ("step", "layer")

INDEPENDENCE = (
    Variable(
        "n_effective",
        _CELL,
        description="independent minibatches whose means are known as well as those of these",
    ),
    Variable(
        "autocorrelation",
        _CELL,
        description="correlation of successive minibatches, mean over series",
    ),
    Variable(
        "autocorrelation_se", _CELL, description="standard error where minibatches are independent"
    ),
    Variable("independence_pvalue", _CELL, description="of independent successive minibatches"),
)
"""Outputs of an analysis that takes minibatches as independent."""

# Of the correlation of successive minibatches, over all cells that a finding speaks of.
LEVEL = 0.01
# Fewer effective than this share of the minibatches are worth a warning.
MATERIAL = 0.9


def independence(series: FloatArray) -> dict[str, float]:
    """Return `INDEPENDENCE` of one cell, series that vary (batch, series) in the order drawn."""
    found = panel_dependence(series)
    return {
        "n_effective": float(found.effective),
        "autocorrelation": float(found.rho),
        "autocorrelation_se": float(found.rho_se),
        "independence_pvalue": float(found.pvalue),
    }


def independence_warnings(rows: xr.Dataset) -> list[str]:
    """Return warnings where the minibatches of a probe are not independent draws.

    Parameters
    ----------
    rows : xarray.Dataset
        Steps of a result, one layer (`tracelab.outcomes.shown`), with the result's attributes.
    """
    return [*_of_examples(rows), *_of_neighbours(rows)]


def _of_examples(rows: xr.Dataset) -> list[str]:
    drawn = {"batches": None, "replacement": True}
    parameters = dict(rows.attrs["parameters"])
    made = parameters.get("batch_size") not in (None, 1) or any(
        parameters.get(name, usual) != usual for name, usual in drawn.items()
    )
    if rows.attrs.get("sources", {}).get("noise") != "examples" or not made:
        return []
    return [
        "Minibatches were drawn from the recorded gradients of single examples: intervals and "
        "p-values are about batches of these examples, and more batches tell no more of others."
    ]


def _of_neighbours(rows: xr.Dataset) -> list[str]:
    pvalue, effective, batches = (
        rows[name].values for name in ("independence_pvalue", "n_effective", "n_batches")
    )
    # By Bonferroni: one of many probes is dependent by chance.
    found = (pvalue * pvalue.size < LEVEL) & (effective < MATERIAL * batches)
    if not found.any():
        return []
    worst = rows.isel(step=int(np.argmin(np.where(found, effective / batches, np.inf))))
    return [
        f"Successive minibatches depend on each other: at step {int(worst['step'])} their "
        f"correlation is {float(worst['autocorrelation']):.2f}, and {int(worst['n_batches'])} are "
        f"worth {float(worst['n_effective']):.0f} independent ones. Intervals and p-values take "
        "them as independent."
    ]
