"""Cuts an analysis of a trace into blocks of cells, from metadata and step labels alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from tracelab import noise
from tracelab.contracts import NETWORK, Analysis, Input
from tracelab.errors import NotRecordedError, UsageError
from tracelab.trace import Trace

__all__ = ["DERIVED", "Block", "Plan", "plan", "restrict"]

MAX_TASKS = 2_000
BLOCK_BYTES = 32 * 2**20

DERIVED = {
    "noise/squared_deviation": noise.squared_deviation,
    "noise/signal": noise.signal,
}


@dataclass(frozen=True, slots=True)
class Block:
    """Cells computed by one task: rows ``first:last`` of a plan's steps, ``left:right`` of its
    labels."""

    first: int
    last: int
    left: int
    right: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}, {self.left}:{self.right}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a task needs besides the trace: what to compute, with what, on which cells."""

    analysis: Analysis
    parameters: Mapping[str, Any]
    groups: Mapping[str, str]
    sources: Mapping[str, str]
    steps: tuple[int, ...]
    labels: tuple[str, ...]
    blocks: tuple[Block, ...]
    block_bytes: int
    cell_bytes: int
    seed: int
    run: str

    @property
    def whole(self) -> Block:
        """All cells of the plan, as one block."""
        return Block(0, len(self.steps), 0, len(self.labels))

    def labels_of(self, block: Block) -> tuple[str, ...]:
        """Return the layers of a block, ``"network"`` among them if it is."""
        return self.labels[block.left : block.right]


def plan(
    analysis: Analysis,
    trace: Trace,
    parameters: Mapping[str, Any],
    *,
    steps: slice | None = None,
    layers: Callable[[str], bool] | None = None,
    seed: int = 0,
) -> Plan:
    """Return how to compute an analysis on a trace; reads metadata and step labels only.

    Parameters
    ----------
    analysis : Analysis
        What to compute.
    trace : Trace
        On what.
    parameters : mapping
        Every parameter's value (`Analysis.resolve`).
    steps : slice, optional
        Positions along the recorded steps.
    layers : callable, optional
        Tells whether a layer (or ``"network"``) is wanted.
    seed : int
        Seed of the analysis; each cell's is derived from it.

    Raises
    ------
    NotRecordedError
        If an input was not recorded, with what would record it.
    UsageError
        If an input has another unit than the analysis needs, or no cell is selected.
    """
    groups: dict[str, str] = {}
    sources: dict[str, str] = {}
    for needed in analysis.inputs:
        source, group = _locate(needed, trace, analysis)
        sources[needed.variable.name] = source
        if group is not None:
            groups[source] = group
    datasets = [trace.groups[name] for name in dict.fromkeys(groups.values())]
    for needed in analysis.inputs:
        _check_units(needed, sources[needed.variable.name], groups, trace, analysis)
    if "noise" in sources.values():
        noise.sketch_of(trace.groups[groups["noise"]], parameters.get("sketch"))
    labels = [str(name) for name in datasets[0]["layer"].values] if datasets else []
    for dataset in datasets[1:]:
        shared = {str(name) for name in dataset["layer"].values}
        labels = [label for label in labels if label in shared]
    if len(labels) > 1:
        labels.append(NETWORK)
    if layers is not None:
        labels = [label for label in labels if layers(label)]
    if not labels:
        raise UsageError(f"analysis {analysis.name!r}: no recorded layer is selected")
    rows = datasets[0]["step"].values
    for dataset in datasets[1:]:
        rows = np.intersect1d(rows, dataset["step"].values)
    rows = rows[steps] if steps is not None else rows
    if rows.size == 0:
        raise NotRecordedError(
            f"analysis {analysis.name!r}: the trace has no recorded step to analyse in "
            f"{', '.join(dict.fromkeys(groups.values()))}; record more, or select other steps"
        )
    cell_bytes = sum(
        _cell_bytes(needed, sources[needed.variable.name], groups, trace)
        for needed in analysis.inputs
    )
    return _cut(
        Plan(
            analysis=analysis,
            parameters=dict(parameters),
            groups=groups,
            sources=sources,
            steps=tuple(int(row) for row in rows),
            labels=tuple(labels),
            blocks=(),
            block_bytes=0,
            cell_bytes=cell_bytes,
            seed=seed,
            run=trace.run,
        )
    )


def restrict(plan: Plan, steps: Sequence[int]) -> Plan:
    """Return the same plan for some of its steps only, cut anew.

    Parameters
    ----------
    plan : Plan
        A plan.
    steps : sequence of int
        Some of its steps, by label, in their order.

    Raises
    ------
    UsageError
        If there are none, or one is not the plan's.
    """
    wanted = np.asarray(steps, dtype=np.int64)
    if wanted.size == 0 or not np.isin(wanted, np.asarray(plan.steps)).all():
        raise UsageError(
            f"analysis {plan.analysis.name!r}: a plan can be restricted to some of its own "
            f"{len(plan.steps)} steps, got {len(wanted)} steps that are not all among them"
        )
    return _cut(replace(plan, steps=tuple(wanted.tolist())))


def _kind(source: str) -> str:
    return source.split("/")[0].split("@")[0]


def _locate(needed: Input, trace: Trace, analysis: Analysis) -> tuple[str, str | None]:
    for source in needed.sources:
        kind = _kind(source)
        named = [kind] if kind in trace.groups else []
        candidates = named or [
            name for name in trace.groups if trace.groups[name].attrs.get("kind") == kind
        ]
        if len(candidates) > 1:
            raise UsageError(
                f"analysis {analysis.name!r} reads a group of kind {kind!r}, and the trace has "
                f"several: {', '.join(candidates)}; name one of them {kind!r}"
            )
        if candidates and _holds(trace.groups[candidates[0]], source):
            return source, candidates[0]
    raise NotRecordedError(
        f"analysis {analysis.name!r} needs {' or '.join(needed.sources)}, which this trace does "
        f"not hold; it holds: {', '.join(trace.groups) or 'no group'}"
    )


def _holds(group: xr.Dataset, source: str) -> bool:
    if "@" in source:
        return source.split("@")[1] in group.attrs
    if source == "noise/signal":
        return any(str(name).startswith("mean_") and name != "mean_loss" for name in group)
    if source == "noise" or source in DERIVED:
        return "batch" in group.dims
    return source.split("/")[1] in group.variables


def _check_units(
    needed: Input, source: str, groups: Mapping[str, str], trace: Trace, analysis: Analysis
) -> None:
    if "@" in source:
        return
    group = trace.groups[groups[source]]
    wanted = needed.variable.units
    if source == "noise":
        names: tuple[str, ...] = noise.SKETCHED
    elif source in DERIVED:
        # Derived from the gradients themselves, unless recorded as such.
        names, wanted = noise.SKETCHED, "loss/weight"
    else:
        names = (source.split("/")[1],)
    wrong = sorted(
        str(group[name].attrs.get("units"))
        for name in names
        if name in group.variables and group[name].attrs.get("units") != wanted
    )
    if wrong:
        raise UsageError(
            f"analysis {analysis.name!r} needs {source} in {wanted!r}, "
            f"and the trace holds it in {wrong[0]!r}"
        )


def _cell_bytes(needed: Input, source: str, groups: Mapping[str, str], trace: Trace) -> int:
    if "@" in source:
        return 0
    group = trace.groups[groups[source]]
    names = noise.SKETCHED if source == "noise" or source in DERIVED else (source.split("/")[1],)
    largest = 0
    for name in names:
        if name in group.variables:
            array = group[name]
            outside = ("step", "layer") if "step" in needed.variable.dims[:2] else ("layer",)
            sizes = [size for dim, size in array.sizes.items() if dim not in outside]
            largest = max(largest, 8 * int(np.prod(sizes, dtype=np.int64)))
    return largest


def _cut(plan: Plan) -> Plan:
    rows, columns = len(plan.steps), len(plan.labels)
    width, height = 1, rows
    if "step" not in plan.analysis.cell:
        width = -(-columns // MAX_TASKS)
    else:
        per_label = "noise" in plan.sources.values()
        width = 1 if per_label else columns
        by_count = -(-rows * (columns // width) // MAX_TASKS)
        by_bytes = BLOCK_BYTES // max(1, plan.cell_bytes * width)
        # One cell a task where cells are heavy; many rows a task where they are scalars.
        height = max(1, by_count, min(by_bytes, 4096) if not per_label else 1)
    blocks = tuple(
        Block(first, min(first + height, rows), left, min(left + width, columns))
        for left in range(0, columns, width)
        for first in range(0, rows, height)
    )
    largest = max((b.last - b.first) * (b.right - b.left) for b in blocks) * plan.cell_bytes
    return replace(plan, blocks=blocks, block_bytes=largest)
