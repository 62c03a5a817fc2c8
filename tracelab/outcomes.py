"""Results of an analysis: arrays to fill, and the rows that are spoken of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import xarray as xr

from tracelab.contracts import NETWORK, Variable
from tracelab.typing import Array, FloatArray, Status

__all__ = ["at_ends", "at_layers", "blank", "layer_names", "shown", "subject"]


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


def layer_names(results: Mapping[str, xr.Dataset]) -> list[str]:
    """Return the layers of all results, in their order."""
    return list(dict.fromkeys(str(x) for r in results.values() for x in r["layer"].values))


def at_layers(
    results: Mapping[str, xr.Dataset],
) -> Iterator[tuple[str, xr.Dataset, FloatArray, str]]:
    """Yield, of each result by layer, its label, the rows whose status is OK, where and in what.

    Places are those of the layers among `layer_names`, results a little beside each other; colors
    are Matplotlib's.
    """
    names = layer_names(results)
    for index, (label, result) in enumerate(results.items()):
        good = result.isel(layer=np.flatnonzero(result["status"].values == int(Status.OK)))
        offset = (index - (len(results) - 1) / 2) * 0.8 / max(len(results), 4)
        place = np.array([names.index(str(x)) for x in good["layer"].values]) + offset
        yield label, good, place, f"C{index}"
