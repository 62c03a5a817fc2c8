"""Results of an analysis: arrays to fill, and the rows that are spoken of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import xarray as xr

from tracelab.contracts import NETWORK, Variable
from tracelab.typing import Array, Status

__all__ = ["at_ends", "blank", "shown", "subject"]


def blank(outputs: Iterable[Variable], sizes: Mapping[str, int]) -> dict[str, Array]:
    """Return an array for each output, of NaN where it holds floating numbers and of 0 elsewhere.

    Parameters
    ----------
    outputs : iterable of Variable
        What an analysis gives.
    sizes : mapping of str to int
        Of their dimensions.
    """
    return {
        variable.name: np.full(
            [sizes[dim] for dim in variable.dims],
            np.nan if np.dtype(variable.dtype).kind == "f" else 0,
            dtype=variable.dtype,
        )
        for variable in outputs
    }


def shown(result: xr.Dataset) -> xr.Dataset:
    """Return the steps whose status is OK, of the network or, where there is none, the last layer.

    All steps where a cell has all of them.

    Its scalar coordinate ``layer`` says which.
    """
    layers = result["layer"].values
    rows = result.sel(layer=NETWORK if NETWORK in layers else layers[-1])
    if "step" not in rows["status"].dims:
        return rows
    return rows.isel(step=np.flatnonzero(rows["status"].values == int(Status.OK)))


def subject(rows: xr.Dataset) -> str:
    """Return what rows that are `shown` are of, as a sentence names it."""
    label = str(rows["layer"].values)
    return "the network" if label == NETWORK else label


def at_ends(rows: xr.Dataset, describe: Callable[[xr.Dataset], str]) -> list[str]:
    """Return what is said of the first row, and of the last if that is another one."""
    return [describe(rows.isel(step=place)) for place in dict.fromkeys((0, rows.sizes["step"] - 1))]
