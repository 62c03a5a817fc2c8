"""Plans an analysis of a trace: what is read from where, on which cells, cut into which blocks.

Reads metadata, labels and the table of coordinates; no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from tracelab import cutting, drawing, noise
from tracelab.addressing import Address, address, spans
from tracelab.contracts import NETWORK, Analysis, Input
from tracelab.cutting import MAX_TASKS, Block, Grain
from tracelab.errors import NotRecordedError, UsageError
from tracelab.sources import DERIVED, SHARING, SKETCHED, check_units, locate
from tracelab.trace import Trace
from tracelab.trace.reading.stored import Stored
from tracelab.typing import FloatArray, IntArray

__all__ = ["MAX_TASKS", "SQUARES", "Block", "Plan", "Read", "plan", "restrict"]

# Kinds of reading that make squared norms of gradients.
SQUARES = ("deviation", "norm", "signal")

PIECE_BYTES = 2**25


@dataclass(frozen=True, slots=True)
class Read:
    """How one input of an analysis is read.

    Parameters
    ----------
    kind : str
        ``constant``: an attribute, already read. ``field``: an array as it is recorded. ``noise``:
        noise samples. ``deviation``, ``norm`` and ``signal``: squared norms of noise, of minibatch
        gradients and of the full-data gradient, from gradients. ``sharing``: how many weights each
        direction of a projection adds up, from the table of layers.
    group, array : str
        Where; of the last three the sketch.
    whole : bool
        Whether each cell gets all steps of the group.
    value : object
        The constant; of ``noise`` how batches are drawn from single examples
        (`tracelab.drawing.Draws`), None for what was recorded.
    """

    kind: Literal["constant", "field", "noise", "deviation", "norm", "signal", "sharing"]
    group: str
    array: str
    value: Any = None
    whole: bool = False

    @property
    def place(self) -> str:
        """Key of the address at which it is read."""
        return f"{self.group}/every step" if self.whole else self.group


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything a task needs besides the trace: what to compute, with what, on which cells.

    Parameters
    ----------
    analysis : Analysis
        What.
    parameters : mapping
        Value of every parameter.
    groups, sources : mapping of str to str
        Group by source, source by input.
    reads : mapping of str to Read
        By input.
    addresses : mapping of str to Address
        By `Read.place`.
    steps : tuple of int
        Steps, by label.
    labels : tuple of str
        Layers, ``"network"`` the last if it is among them.
    grain : Grain
        What cells weigh.
    blocks : tuple of Block
        All cells, cut into tasks.
    piece_bytes : int
        How much input a task takes into memory at a time, as float64, or one cell.
    seed : int
        Seed of the analysis.
    run : str
        Identifier of the run.
    """

    analysis: Analysis
    parameters: Mapping[str, Any]
    groups: Mapping[str, str]
    sources: Mapping[str, str]
    reads: Mapping[str, Read]
    addresses: Mapping[str, Address]
    steps: tuple[int, ...]
    labels: tuple[str, ...]
    grain: Grain
    blocks: tuple[Block, ...]
    piece_bytes: int
    seed: int
    run: str

    @property
    def whole(self) -> Block:
        """All cells of the plan, as one block."""
        return Block(0, len(self.steps), 0, len(self.labels))

    @property
    def by_step(self) -> bool:
        """Whether a cell is one step; else it is all of them."""
        return "step" in self.analysis.cell

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
        If an input has another unit than the analysis needs, projections that it reads together
        are in other directions, or no cell is selected.
    """
    groups: dict[str, str] = {}
    sources: dict[str, str] = {}
    for needed in analysis.inputs:
        try:
            source, group = locate(needed, trace, analysis, parameters.get("group", "auto"))
        except NotRecordedError:
            if needed.optional:
                continue
            raise
        sources[needed.variable.name] = source
        groups[source] = group
    taken = [needed for needed in analysis.inputs if needed.variable.name in sources]
    for needed in taken:
        check_units(needed, sources[needed.variable.name], groups, trace, analysis)
    reads = {
        needed.variable.name: replace(
            _read(needed, sources, groups, trace, parameters, seed), whole=needed.whole
        )
        for needed in taken
    }
    _check_directions(analysis, taken, reads, trace)
    datasets = {name: trace.groups[name] for name in dict.fromkeys(groups.values()) if name}
    names = {name: _layers(name, datasets[name], reads, trace) for name in datasets}
    needing = {
        groups[sources[needed.variable.name]]: None
        for needed in taken
        if not (needed.optional or needed.whole) and groups[sources[needed.variable.name]]
    }
    first, *others = needing
    layered = [labels for labels in names.values() if labels]
    # Groups without layers hold what is the same for all.
    labels = [
        label
        for label in (layered[0] if layered else ())
        if all(label in other for other in layered)
    ]
    if len(labels) > 1 or not layered:
        labels.append(NETWORK)
    if layers is not None:
        labels = [label for label in labels if layers(label)]
    if not labels:
        raise UsageError(f"analysis {analysis.name!r}: no recorded layer is selected")
    recorded = {name: dataset["step"].values for name, dataset in datasets.items()}
    rows = recorded[first]
    for name in others:
        rows = np.intersect1d(rows, recorded[name])
    rows = rows[steps] if steps is not None else rows
    if rows.size == 0:
        raise NotRecordedError(
            f"analysis {analysis.name!r}: the trace has no recorded step to analyse in "
            f"{', '.join(datasets)}; record more, or select other steps"
        )
    # A slice may run backwards; results are in the order of steps.
    rows = np.sort(rows)
    addresses = {
        read.place: address(
            recorded[read.group],
            names[read.group],
            recorded[read.group] if read.whole else rows,
            labels,
        )
        for read in reads.values()
        if read.group
    }
    for read in reads.values():
        if read.kind in ("noise", *SQUARES) and not read.array.endswith("projected"):
            known = spans(trace, read.group, names[read.group])
            addresses[read.place] = replace(addresses[read.place], spans=known)
    grain = _grain(analysis, reads, addresses, trace, rows.size, len(labels))
    return Plan(
        analysis=replace(analysis, coords=_coords(analysis, reads, trace, rows)),
        parameters=dict(parameters),
        groups=groups,
        sources=sources,
        reads=reads,
        addresses=addresses,
        steps=tuple(rows.tolist()),
        labels=tuple(labels),
        grain=grain,
        blocks=cutting.blocks(grain),
        piece_bytes=PIECE_BYTES,
        seed=seed,
        run=trace.run,
    )


def _layers(name: str, group: xr.Dataset, reads: Mapping[str, Read], trace: Trace) -> list[str]:
    """Return the layers of a group, none if nothing that is read of it has any."""
    stored = trace.stored(name)
    arrays = [stored[read.array] for read in reads.values() if read.group == name and read.array]
    layered = any({"layer", "coordinate"} & set(array.dims) for array in arrays)
    return [str(label) for label in group["layer"].values] if layered else []


def restrict(plan: Plan, steps: Sequence[int]) -> Plan:
    """Return the same plan for some of its steps only, cut anew.

    Parameters
    ----------
    plan : Plan
        A plan.
    steps : sequence of int
        Some of its steps, by label.

    Raises
    ------
    UsageError
        If there are none, or one is not the plan's.
    """
    wanted = np.unique(np.asarray(steps, dtype=np.int64))
    if wanted.size == 0 or not np.isin(wanted, np.asarray(plan.steps)).all():
        raise UsageError(
            f"analysis {plan.analysis.name!r}: a plan can be restricted to some of its own "
            f"{len(plan.steps)} steps, got {len(wanted)} steps that are not all among them"
        )
    kept = np.searchsorted(np.asarray(plan.steps), wanted)
    whole = {read.place for read in plan.reads.values() if read.whole}
    addresses = {
        place: there if place in whole else replace(there, rows=there.rows[kept])
        for place, there in plan.addresses.items()
    }
    grain = replace(plan.grain, row_chunk=plan.grain.row_chunk[kept])
    return replace(
        plan,
        steps=tuple(wanted.tolist()),
        addresses=addresses,
        grain=grain,
        blocks=cutting.blocks(grain),
    )


def _coords(
    analysis: Analysis, reads: Mapping[str, Read], trace: Trace, steps: IntArray
) -> dict[str, Sequence[Any]]:
    """Return the labels of output dims that are not cell dims: the declared, else the recorded."""
    found = dict(analysis.coords)
    if "step" not in analysis.cell and any("step" in each.dims for each in analysis.outputs):
        found["step"] = steps.tolist()
    fields = [trace.stored(read.group)[read.array] for read in reads.values() if read.array]
    sizes = {
        dim: size for field in fields for dim, size in zip(field.dims, field.shape, strict=True)
    }
    for variable in analysis.outputs:
        for dim in variable.dims:
            if dim in found or dim in analysis.cell:
                continue
            if dim not in sizes:
                raise UsageError(
                    f"analysis {analysis.name!r}: output {variable.name!r} has the dimension "
                    f"{dim!r}, which neither its coords nor what it reads has"
                )
            found[dim] = range(sizes[dim])
    return found


def _read(
    needed: Input,
    sources: Mapping[str, str],
    groups: Mapping[str, str],
    trace: Trace,
    parameters: Mapping[str, Any],
    seed: int,
) -> Read:
    source = sources[needed.variable.name]
    group = groups[source]
    if not group:
        return Read("constant", group, "", trace.attrs[source[1:]])
    dataset = trace.groups[group]
    if "@" in source:
        return Read("constant", group, "", dataset.attrs[source.split("@")[1]])
    if source == "noise":
        _check_batches(dataset, parameters)
        return Read("noise", group, noise.sketch_of(dataset, parameters.get("sketch")))
    if source == "examples":
        draws = drawing.draws_of(
            dataset.sizes["example"],
            dataset.attrs,
            batch_size=parameters.get("batch_size"),
            batches=parameters.get("batches"),
            replacement=parameters.get("replacement", True),
            seed=seed,
        )
        return Read("noise", group, noise.sketch_of(dataset, parameters.get("sketch")), draws)
    if source in SKETCHED:
        kind: Any = SKETCHED[source]
        return Read(kind, group, noise.sketch_of(dataset, parameters.get("sketch")))
    if source == SHARING:
        return Read("sharing", group, "projected")
    if source not in DERIVED:
        return Read("field", group, source.split("/")[1])
    if DERIVED[source] in dataset:
        return Read("field", group, DERIVED[source])
    if source == "noise/signal":
        return Read("signal", group, noise.mean_of(dataset))
    wanted = "projected" if "projected" in dataset else None
    return Read("deviation", group, noise.sketch_of(dataset, wanted))


def _check_directions(
    analysis: Analysis, taken: Sequence[Input], reads: Mapping[str, Read], trace: Trace
) -> None:
    """Raise a UsageError where projections that are read together are in other directions."""
    known: dict[str, list[Any]] = {}
    for needed in taken:
        read = reads[needed.variable.name]
        if read.kind == "field" and "direction" in needed.variable.dims:
            told = trace.groups[read.group].attrs.get("sketches")
            said = [each for each in told or () if isinstance(each, Mapping)]
            known[read.group] = [each for each in said if each.get("kind") == "project"]
    (first, one), *others = known.items() or [("", [])]
    for name, other in others:
        if one and other and one != other:
            raise UsageError(
                f"analysis {analysis.name!r}: {first} were recorded with {one[0]} and {name} with "
                f"{other[0]}, which are other directions; record both with one sketch"
            )


def _check_batches(group: xr.Dataset, parameters: Mapping[str, Any]) -> None:
    """Raise a UsageError where recorded minibatches cannot be what is asked for."""
    noise.synthetic(group.attrs.get("batch_size"), parameters.get("batch_size"))
    asked = {"batches": parameters.get("batches")}
    if not parameters.get("replacement", True):
        asked["replacement"] = False
    given = [f"{name}={value}" for name, value in asked.items() if value is not None]
    if given:
        raise UsageError(
            f"{', '.join(given)}: batches are drawn from the gradients of single examples, and "
            "this group holds minibatches; record Examples and give group='examples'"
        )


def _grain(
    analysis: Analysis,
    reads: Mapping[str, Read],
    addresses: Mapping[str, Address],
    trace: Trace,
    steps: int,
    columns: int,
) -> Grain:
    """Return what cells weigh, from shapes; chunks are those of the heaviest input."""
    by_step = "step" in analysis.cell
    total, held = np.zeros(columns), np.zeros(columns)
    row_chunk: IntArray = np.arange(steps)
    column_chunk: IntArray = np.arange(columns)
    heaviest = 0.0
    for read in reads.values():
        if read.kind in ("constant", "sharing"):
            continue
        there = addresses[read.place]
        stored = trace.stored(read.group)[read.array]
        own, all_layers, begins = _column_bytes(stored, there)
        if read.whole:
            rows = there.rows.size / (1 if by_step else max(steps, 1))
            own, all_layers = own * rows, all_layers * rows
        read_here = np.where(there.layers < 0, all_layers, own)
        if read.kind == "noise" and "coordinate" in stored.dims:
            held += read_here * _made(read.value)
        elif read.kind in SQUARES:
            held += 8.0 * (
                stored.shape[stored.dims.index("batch")] if "batch" in stored.dims else 1
            )
        else:
            # The network's row is summed up layer by layer.
            held += np.where(there.layers < 0, own.max(initial=8.0), own) * _made(read.value)
        if isinstance(read.value, drawing.Draws):
            held += read.value.held_bytes
        total += read_here
        if read_here.sum() > heaviest and "step" in stored.dims and not read.whole:
            heaviest = read_here.sum()
            row_chunk = there.rows // stored.chunk[stored.dims.index("step")]
            # The network begins nowhere: it shares no chunk before the others are read.
            column_chunk = np.where(there.layers < 0, -1, begins)
    return Grain(total, held, row_chunk, column_chunk, by_step)


def _made(value: Any) -> float:
    """Return how many times its input a cell of noise is: more batches than examples are."""
    return max(1.0, value.batches / value.count) if isinstance(value, drawing.Draws) else 1.0


def _column_bytes(stored: Stored, there: Address) -> tuple[FloatArray, float, IntArray]:
    """Return, of one row as float64, each column's bytes and all layers', and where it begins."""
    sizes = dict(zip(stored.dims, stored.shape, strict=True))
    chunks = dict(zip(stored.dims, stored.chunk, strict=True))
    sizes.pop("step", None)
    layer = sizes.pop("layer", None)
    own = np.maximum(there.layers, 0)
    if "coordinate" in sizes and there.spans is not None:
        every = sizes.pop("coordinate")
        each = 8.0 * float(np.prod([float(size) for size in sizes.values()]))
        begins = there.spans.start[own] // chunks["coordinate"]
        return each * there.spans.count[own], each * every, begins
    each = 8.0 * float(np.prod([float(size) for size in sizes.values()]))
    if layer is None:
        # One row for all layers.
        return np.full(own.size, each), each, own
    return np.full(own.size, each), each * layer, own // chunks["layer"]
