"""Which cells of a plan have been computed before, and are taken over bit for bit.

Cells are independent, and each has a seed of its own, so a cell computed for another selection of
steps and layers, or by a job that was interrupted, is the cell that would be computed now.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tracelab.celltable import Table, by_step, good
from tracelab.errors import DamagedError, TraceError
from tracelab.planning import Plan, restrict
from tracelab.trace import Trace
from tracelab.trace.resultstore import resultform
from tracelab.trace.resultstore.parts import Cells
from tracelab.trace.resultstore.results import Results
from tracelab.trace.resultstore.unfinished import Kind
from tracelab.typing import BoolArray

if TYPE_CHECKING:
    from tracelab.planning import Block

__all__ = ["Identity", "adopt", "cells_of", "exact", "identify", "input_digest", "missing"]

logger = logging.getLogger(__name__)

# Attributes of a group that say how far it is, not what is in it.
_VOLATILE = ("complete",)
_ATTEMPTS = 3
MAX_BLOCKS = 4_000


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a plan's result the same as a stored one.

    Parameters
    ----------
    kind : Kind
        What its cells have in common with others that can be reused.
    key : str
        Digest of that and of the selected steps and layers.
    """

    kind: Kind
    key: str


# ------------------------------------------------------------------------------------------- names


def identify(plan: Plan, trace: Trace) -> Identity:
    """Return what tells a plan's result from others.

    Raises
    ------
    TraceError
        If the trace's generation is no number.
    """
    analysis = plan.analysis
    generation = trace.attrs.get("generation", 0)
    if type(generation) is not int or not 0 <= generation < 10**9:
        raise TraceError(
            f"{trace.location} is damaged: its attribute 'generation' is {generation!r}"
        )
    shared = {
        "analysis": analysis.name,
        "version": analysis.version,
        "parameters": plan.parameters,
        "seed": plan.seed,
        "input": _input(plan, trace),
        # A cell without a step is computed from all of them.
        "steps": None if by_step(analysis) else plan.steps,
    }
    kind = Kind(analysis.name, analysis.version, generation, _digest(shared))
    return Identity(kind, _digest([kind.basis, plan.steps, plan.labels]))


def input_digest(plan: Plan, trace: Trace) -> str:
    """Return the digest of what a plan reads: the input and the steps."""
    return _digest([_input(plan, trace), plan.steps])


def _input(plan: Plan, trace: Trace) -> dict[str, Any]:
    # Not the bytes: reading them all to learn that nothing has changed is most of an analysis.
    # Committed rows never change within a generation of a run, so names and layout identify them.
    groups = {}
    for name in sorted(set(plan.groups.values()) - {""}):
        group = trace.groups[name]
        groups[name] = {
            "attributes": {
                str(key): value for key, value in group.attrs.items() if key not in _VOLATILE
            },
            "layers": [str(label) for label in group["layer"].values] if "layer" in group else [],
            "arrays": {
                str(key): [
                    str(array.dtype),
                    array.attrs.get("units"),
                    [[dim, size] for dim, size in array.sizes.items() if dim != "step"],
                ]
                for key, array in sorted(group.variables.items())
            },
        }
    return {
        # A row that is there by now makes another cell of the same step.
        "rows": {name: trace.groups[name]["step"].values.tolist() for name in _by_rows(plan)},
        "run": trace.identity,
        "generation": trace.attrs.get("generation", 0),
        "groups": groups,
        "sources": plan.sources,
        # What is said of the whole trace.
        "said": {
            name: read.value
            for name, read in sorted(plan.reads.items())
            if read.kind == "constant" and not read.group
        },
    }


def _by_rows(plan: Plan) -> list[str]:
    """Return the groups whose other rows count: those of optional inputs, and those read whole."""
    whole = {read.group for read in plan.reads.values() if read.whole}
    groups = {
        optional: {
            plan.reads[each.variable.name].group
            for each in plan.analysis.inputs
            if each.variable.name in plan.reads
            and each.optional is optional
            and plan.reads[each.variable.name].group
        }
        for optional in (False, True)
    }
    return sorted(groups[True] - groups[False] | whole)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


# ----------------------------------------------------------------------------------------- finding


def exact(identity: Identity, results: Results) -> tuple[xr.Dataset, bool] | None:
    """Return the stored result of exactly this plan, if no cell is to be tried again.

    In memory, and with whether it is the most recent of its parameters, so that it is the one
    which `Results` shows.
    """
    recent: set[str] = set()
    for entry in reversed(results.entries(identity.kind.analysis)):
        parameters = _digest(entry.attrs["parameters"])
        shown = parameters not in recent
        recent.add(parameters)
        if entry.attrs["key"] != identity.key:
            continue
        try:
            found = resultform.load(entry).load()
        except DamagedError as error:
            logger.info("%s", error)
            continue
        if good(found["status"].values).all():
            return found, shown
    return None


def adopt(table: Table, identity: Identity, results: Results) -> int:
    """Fill a table with what stored results and interrupted jobs have; return how many cells."""
    count = 0
    for _ in range(_ATTEMPTS):
        gone = False
        for entry in reversed(results.entries(identity.kind.analysis)):
            if entry.attrs["basis"] != identity.kind.basis or table.have.all():
                continue
            try:
                cells = cells_of(resultform.load(entry), table)
            except DamagedError as error:
                # Perhaps another job replaced it by one that holds more, which is there by now.
                gone = True
                logger.info("%s", error)
                continue
            if cells is not None:
                count += table.adopt(cells)
        if not gone:
            break
    for cells in results.unfinished(identity.kind, table.cell_shapes):
        if table.have.all():
            break
        if (cells.steps is not None) == by_step(table.plan.analysis):
            count += table.adopt(cells)
    return count


def cells_of(result: xr.Dataset, table: Table) -> Cells | None:
    """Return the good cells of a stored result, or None if it is not of this analysis' form."""
    analysis = table.plan.analysis
    for variable in analysis.outputs:
        if (
            variable.name not in result
            or result[variable.name].dims != variable.dims
            or result[variable.name].dtype != np.dtype(variable.dtype)
        ):
            return None
    for dim, labels in analysis.coords.items():
        if dim not in result.coords or result[dim].values.tolist() != list(labels):
            return None
    layers = tuple(map(str, result["layer"].values))
    try:
        shape = tuple(result.sizes[dim] for dim in analysis.cell)
        steps = result["step"].values.astype(np.int64) if by_step(analysis) else None
    except KeyError:
        return None
    places = np.indices(shape).reshape(len(shape), -1)
    fine = good(result["status"].values).ravel()
    outputs = {}
    for variable in analysis.outputs:
        values = result[variable.name].values
        outputs[variable.name] = values.reshape(-1, *values.shape[len(shape) :])[fine]
    rows, columns = places[0][fine], places[-1][fine]
    return Cells(None if steps is None else steps[rows], layers, columns, outputs)


# ------------------------------------------------------------------------------------ what is left


def missing(table: Table) -> Plan | None:
    """Return the plan of the cells that are not there, or None if all are.

    Its steps are those at which any is missing, so that they are cut well; what is there inside a
    block is cut out of it, unless that made too many tasks.
    """
    plan, have = table.plan, table.have
    if have.all():
        return None
    if by_step(plan.analysis):
        rows = np.flatnonzero(~have.all(axis=1))
        if rows.size < len(plan.steps):
            plan = restrict(plan, [plan.steps[row] for row in rows])
            have = have[rows]
    blocks = [part for block in plan.blocks for part in _without(block, have, plan)]
    if len(blocks) > max(2 * len(plan.blocks), MAX_BLOCKS):
        blocks = [block for block in plan.blocks if any(True for _ in _without(block, have, plan))]
    return replace(plan, blocks=tuple(blocks))


def _without(block: Block, have: BoolArray, plan: Plan) -> Iterator[Block]:
    """Yield blocks that make up what is missing of a block."""
    stepped = by_step(plan.analysis)
    inside = have[block.first : block.last] if stepped else have
    inside = inside[:, block.left : block.right]
    if not inside.any():
        yield block
        return
    left = 0
    while left < inside.shape[1]:
        right = left + 1
        while right < inside.shape[1] and (inside[:, right] == inside[:, left]).all():
            right += 1
        for first, last in _runs(~inside[:, left]):
            part = replace(block, left=block.left + left, right=block.left + right)
            if stepped:
                part = replace(part, first=block.first + first, last=block.first + last)
            yield part
        left = right


def _runs(mask: BoolArray) -> list[tuple[int, int]]:
    """Return the ranges over which a mask is true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
