"""Runs the kernel on a block of cells, and labels what comes out; knows no Dask.

A cell whose kernel raises gets the status FAILED and a message; the others go on.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from tracelab.cutting import Block, pieces
from tracelab.errors import DamagedError, TracelabError
from tracelab.loading import cells, load
from tracelab.planning import Plan
from tracelab.trace import Trace
from tracelab.typing import Array, IntArray, Status

__all__ = ["labelled", "lost", "place", "run", "unfilled"]

logger = logging.getLogger(__name__)


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


def _kernel(plan: Plan, block: Block, inputs: Mapping[str, Array]) -> dict[str, Array]:
    arguments: dict[str, Any] = {**inputs, **plan.parameters}
    if _takes_seed(plan.analysis.kernel):
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


@cache
def _takes_seed(kernel: Callable[..., Any]) -> bool:
    return "seed" in inspect.signature(kernel).parameters


def unfilled(plan: Plan, block: Block, status: Status = Status.FAILED) -> dict[str, Array]:
    """Return the outputs of a block whose cells all have one status and no numbers."""
    outputs: dict[str, Array] = {}
    for variable in plan.analysis.outputs:
        dtype = np.dtype(variable.dtype)
        fill = np.nan if dtype.kind == "f" else 0
        outputs[variable.name] = np.full(_shape(plan, block, variable.dims), fill, dtype=dtype)
    outputs["status"][...] = int(status)
    return outputs


def run(common: tuple[Trace, Plan], block: Block) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return the outputs of one block and what went wrong in it, cell by cell."""
    trace, plan = common
    outputs = unfilled(plan, block)
    messages: list[str] = []
    for piece in pieces(plan.grain, block, plan.piece_bytes):
        try:
            _compute(plan, piece, trace, outputs, block)
        except Exception as error:
            if piece == next(cells(plan, piece)):
                messages.append(_lose(plan, piece, error, outputs, block))
                continue
            # Each of its cells alone, so that only those that fail are lost.
            for cell in cells(plan, piece):
                try:
                    _compute(plan, cell, trace, outputs, block)
                except Exception as own:
                    messages.append(_lose(plan, cell, own, outputs, block))
    return outputs, tuple(messages)


def _compute(
    plan: Plan, piece: Block, trace: Trace, outputs: dict[str, Array], block: Block
) -> None:
    for part, inputs in load(plan, piece, trace):
        place(outputs, _kernel(plan, part, inputs), plan, part, block)


def _lose(
    plan: Plan, cell: Block, error: Exception, outputs: dict[str, Array], block: Block
) -> str:
    nothing, (message,) = lost(plan, cell, error)
    place(outputs, nothing, plan, cell, block)
    logger.debug("cell failed: %s", message, exc_info=error)
    return message


def lost(
    plan: Plan, block: Block, error: BaseException
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return what stands for a block that could not be computed at all, with its message."""
    status = Status.UNREADABLE if isinstance(error, DamagedError) else Status.FAILED
    return unfilled(plan, block, status), (_message(plan, block, error),)


def _message(plan: Plan, block: Block, error: BaseException) -> str:
    layers = plan.labels_of(block)
    where = layers[0] if len(layers) == 1 else f"{len(layers)} layers, {layers[0]} to {layers[-1]}"
    if plan.by_step:
        steps = plan.steps[block.first : block.last]
        span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        where = f"{span}, {where}"
    why = str(error) if isinstance(error, TracelabError) else f"{type(error).__name__}: {error}"
    return f"{where}: {why}"


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
        if dim == "step":
            coords[dim] = ("step", np.asarray(values, dtype=np.int64), {"units": "step"})
            continue
        texts = all(isinstance(value, str) for value in values)
        coords[dim] = np.asarray(values, dtype=np.dtypes.StringDType() if texts else None)
    return xr.Dataset(variables, coords=coords)
