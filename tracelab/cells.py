"""Loads a block of cells, runs the kernel on it, and labels what comes out; knows no Dask.

A cell whose kernel raises gets the status FAILED and a message; the others go on.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from tracelab import noise
from tracelab.contracts import NETWORK, Input
from tracelab.planning import DERIVED, Block, Plan
from tracelab.trace import Trace
from tracelab.typing import Array, IntArray, Status

__all__ = ["labelled", "place", "run", "unfilled"]

logger = logging.getLogger(__name__)


def _load(plan: Plan, block: Block, trace: Trace) -> dict[str, Array]:
    wanted = np.asarray(plan.steps[block.first : block.last])
    arrays = {}
    for needed in plan.analysis.inputs:
        source = plan.sources[needed.variable.name]
        group = trace.groups[plan.groups[source]]
        if "@" in source:
            arrays[needed.variable.name] = np.asarray(group.attrs[source.split("@")[1]])
            continue
        rows = np.searchsorted(group["step"].values, wanted)
        contiguous = rows[-1] - rows[0] + 1 == rows.size
        selected = group.isel(step=slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows)
        if source == "noise":
            array = _noise_cells(plan, block, selected, trace)
        elif source in DERIVED:
            array = _by_label(
                DERIVED[source](selected, trace.layers), plan.labels_of(block), needed
            )
        else:
            array = selected[source.split("/")[1]]
            if "layer" in array.dims:
                array = _by_label(array, plan.labels_of(block), needed)
        ordered = array.transpose(*needed.variable.dims)
        arrays[needed.variable.name] = np.ascontiguousarray(
            ordered.values, dtype=np.dtype(needed.variable.dtype)
        )
    return arrays


def _noise_cells(plan: Plan, block: Block, group: xr.Dataset, trace: Trace) -> xr.DataArray:
    (label,) = plan.labels_of(block)
    cells = noise.layer_samples(
        group,
        trace.layers,
        label,
        sketch=plan.parameters.get("sketch"),
        batch_size=plan.parameters.get("batch_size"),
    ).compute(scheduler="synchronous")
    if plan.parameters.get("mode") == "standardized":
        cells = noise.standardize(cells)
    return cells.expand_dims(layer=[label])


def _by_label(array: xr.DataArray, labels: tuple[str, ...], needed: Input) -> xr.DataArray:
    own = [label for label in labels if label != NETWORK]
    if NETWORK not in labels:
        return array.sel(layer=own).compute(scheduler="synchronous")
    loaded: xr.DataArray = array.compute(scheduler="synchronous").astype(np.float64)
    if needed.network == "root_sum_square":
        combined: xr.DataArray = (loaded**2).sum("layer", skipna=False) ** 0.5
    else:
        combined = loaded.sum("layer", skipna=False)
    network: xr.DataArray = combined.expand_dims(layer=[NETWORK])
    if not own:
        return network
    parts = [loaded.sel(layer=own), network]
    joined: xr.DataArray = xr.concat(parts, "layer", coords="minimal", compat="override")
    return joined


def _seeds(plan: Plan, block: Block) -> IntArray:
    steps = plan.steps[block.first : block.last] if "step" in plan.analysis.cell else (None,)
    table = np.empty((len(steps), block.right - block.left), dtype=np.uint64)
    for row, step in enumerate(steps):
        for column, label in enumerate(plan.labels_of(block)):
            name = f"{plan.seed}\0{plan.run}\0{plan.analysis.name}\0{step}\0{label}"
            digest = hashlib.sha256(name.encode()).digest()
            table[row, column] = int.from_bytes(digest[:8], "little")
    seeds: IntArray = table if "step" in plan.analysis.cell else table[0]
    return seeds


def _shape(plan: Plan, block: Block, dims: tuple[str, ...]) -> tuple[int, ...]:
    sizes = {"step": block.last - block.first, "layer": block.right - block.left}
    return tuple(
        sizes[dim] if dim in plan.analysis.cell else len(plan.analysis.coords[dim]) for dim in dims
    )


def _kernel(plan: Plan, block: Block, trace: Trace) -> dict[str, Array]:
    arguments: dict[str, Any] = {**_load(plan, block, trace), **plan.parameters}
    if "seed" in inspect.signature(plan.analysis.kernel).parameters:
        arguments["seed"] = _seeds(plan, block)
    found = plan.analysis.kernel(**arguments)
    outputs = {}
    for variable in plan.analysis.outputs:
        array = np.asarray(found[variable.name])
        wanted = _shape(plan, block, variable.dims)
        if array.shape != wanted:
            raise ValueError(
                f"the kernel returned {variable.name!r} of shape {array.shape}, "
                f"declared {variable.dims} = {wanted}"
            )
        outputs[variable.name] = array.astype(variable.dtype)
    return outputs


def unfilled(plan: Plan, block: Block) -> dict[str, Array]:
    """Return the outputs of a block whose cells all have the status FAILED."""
    outputs: dict[str, Array] = {}
    for variable in plan.analysis.outputs:
        dtype = np.dtype(variable.dtype)
        fill = np.nan if dtype.kind == "f" else 0
        outputs[variable.name] = np.full(_shape(plan, block, variable.dims), fill, dtype=dtype)
    outputs["status"][...] = int(Status.FAILED)
    return outputs


def run(common: tuple[Trace, Plan], block: Block) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return the outputs of one block and what went wrong in it, cell by cell."""
    trace, plan = common
    try:
        return _kernel(plan, block, trace), ()
    except Exception as error:
        by_step = "step" in plan.analysis.cell
        cells = [
            Block(row, row + 1 if by_step else block.last, column, column + 1)
            for row in (range(block.first, block.last) if by_step else (block.first,))
            for column in range(block.left, block.right)
        ]
        if len(cells) == 1:
            where = f"step {plan.steps[block.first]}, " if by_step else ""
            message = f"{where}{plan.labels[block.left]}: {type(error).__name__}: {error}"
            logger.debug("cell failed: %s", message, exc_info=error)
            return unfilled(plan, block), (message,)
    outputs = unfilled(plan, block)
    messages: tuple[str, ...] = ()
    for cell in cells:
        part, failures = run(common, cell)
        place(outputs, part, plan, cell, block)
        messages += failures
    return outputs, messages


def place(
    outputs: dict[str, Array], part: Mapping[str, Array], plan: Plan, cell: Block, whole: Block
) -> None:
    """Put the outputs of a block into those of a larger one that holds it."""
    column = slice(cell.left - whole.left, cell.right - whole.left)
    rows = slice(cell.first - whole.first, cell.last - whole.first)
    for name, values in part.items():
        outputs[name][(rows, column) if "step" in plan.analysis.cell else (column,)] = values


def labelled(plan: Plan, outputs: Mapping[str, Array]) -> xr.Dataset:
    """Return the outputs of all cells as a dataset with coordinates, units and status flags."""
    analysis = plan.analysis
    variables = {}
    for variable in analysis.outputs:
        attributes = {"units": variable.units, "long_name": variable.description}
        if variable.name == "status":
            attributes = Status.attributes()
        variables[variable.name] = (variable.dims, outputs[variable.name], attributes)
    coords: dict[str, Any] = {"layer": np.asarray(plan.labels, dtype=np.dtypes.StringDType())}
    if "step" in analysis.cell:
        coords["step"] = ("step", np.asarray(plan.steps, dtype=np.int64), {"units": "step"})
    for dim, labels in analysis.coords.items():
        values = list(labels)
        texts = all(isinstance(value, str) for value in values)
        coords[dim] = np.asarray(values, dtype=np.dtypes.StringDType() if texts else None)
    return xr.Dataset(variables, coords=coords)
