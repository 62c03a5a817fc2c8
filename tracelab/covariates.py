"""What estimates are drawn against: depth, learning rate and batch size of a result's cells."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tracelab.trace import Trace
from tracelab.typing import FloatArray

__all__ = ["COVARIATES", "with_covariates"]

COVARIATES = ("depth", "learning_rate", "noise_batch_size")
"""Coordinates that `with_covariates` gives."""


def with_covariates(result: xr.Dataset, trace: Trace) -> xr.Dataset:
    """Return a result with depth, learning rate and batch size of its cells as coordinates.

    Parameters
    ----------
    result : xarray.Dataset
        A result of an analysis of the trace.
    trace : Trace
        The trace.

    Returns
    -------
    xarray.Dataset
        With coordinates ``depth`` (layer): the place of the layer among those of the trace, 0 for
        the first, NaN for the network; ``learning_rate`` (step), unit ``weight^2/loss``: that of
        the optimizer's step, or of the last one recorded before it; ``noise_batch_size`` ():
        examples of a minibatch whose noise it is, recorded or synthetic. NaN where the trace does
        not say.
    """
    order = {str(name): place for place, name in enumerate(trace.layers["layer"].values)}
    depth = [float(order.get(str(name), np.nan)) for name in result["layer"].values]
    coords = {
        "depth": xr.Variable("layer", depth, {"long_name": "place among the trace's layers"}),
        "noise_batch_size": xr.Variable(
            (), _batch_size(result, trace), {"long_name": "batch size of the noise"}
        ),
    }
    if "step" in result.dims:
        attributes = {"units": "weight^2/loss", "long_name": "learning rate"}
        rates = _learning_rates(result["step"].values, trace)
        coords["learning_rate"] = xr.Variable("step", rates, attributes)
    return result.assign_coords(coords)


def _learning_rates(steps: FloatArray, trace: Trace) -> FloatArray:
    rates: FloatArray = np.full(steps.size, np.nan)
    group = trace.groups.get("steps")
    if group is None or "learning_rate" not in group or not group.sizes["step"]:
        return rates
    recorded = group["step"].values
    order = np.argsort(recorded, kind="stable")
    place = np.searchsorted(recorded[order], steps, side="right") - 1
    known = place >= 0
    rates[known] = group["learning_rate"].values[order[place[known]]]
    return rates


def _batch_size(result: xr.Dataset, trace: Trace) -> float:
    """Return the examples of a minibatch of the noise that a result is of."""
    parameters = dict(result.attrs.get("parameters", {}))
    if parameters.get("batch_size") is not None:
        return float(parameters["batch_size"])
    sources = dict(result.attrs.get("sources", {})).values()
    if "examples" in sources:
        return 1.0
    name = parameters.get("group", "auto")
    kinds = trace.kinds
    named = [name] if name in kinds else [key for key, kind in kinds.items() if kind == "noise"]
    if not named or not any(str(source).startswith("noise") for source in sources):
        return np.nan
    # What a plan reads: the group of that name where there are several.
    group = trace.groups["noise" if "noise" in named else named[0]]
    return float(group.attrs.get("batch_size") or np.nan)
