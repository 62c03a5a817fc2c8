"""Cuts an analysis into blocks of cells and maps them with Dask.

The only module that knows Dask. A block is loaded, computed and forgotten by one task; what a
task returns depends on its cells alone, so the result has the same bits on one thread, on many
processes and on a cluster.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from dask.base import compute as compute_dask
from dask.callbacks import Callback
from dask.delayed import delayed
from dask.utils import parse_bytes

from tracelab import noise
from tracelab.contracts import NETWORK, Analysis, Input
from tracelab.errors import NotRecordedError, UsageError
from tracelab.trace import Trace
from tracelab.typing import Array, IntArray, Status

__all__ = ["Block", "Execution", "Plan", "compute", "plan"]

MAX_TASKS = 2_000
BLOCK_BYTES = 32 * 2**20
# Loading converts to float64 and a kernel works on copies: a task's peak over its input's size.
_PEAK = 8

Progress = Callable[[int, int], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Block:
    """Cells computed by one task: a range of the plan's steps (None: all) by some layers."""

    first: int
    last: int
    labels: tuple[str, ...]


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
    seed: int
    run: str


@dataclass(frozen=True, slots=True)
class Execution:
    """Where tasks run.

    Parameters
    ----------
    client : distributed.Client, optional
        An open client, left open.
    scheduler : str, optional
        Address of an existing ``dask.distributed`` scheduler, such as ``tcp://10.0.0.1:8786``.
    workers : int, optional
        Processes of an embedded cluster on this machine. Default: threads in this process.
    memory : str or int, optional
        Bound on memory, such as ``"4GiB"``.

    Raises
    ------
    UsageError
        If there are no workers, or the memory cannot be read as a size.
    """

    client: Any = None
    scheduler: str | None = None
    workers: int | None = None
    memory: str | int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers must be at least 1, got {self.workers!r}")
        if self.memory is not None and not _size(self.memory) > 0:
            raise UsageError(f"memory must be a positive size such as '4GiB', got {self.memory!r}")

    def bytes_allowed(self) -> int | None:
        """Return the memory bound in bytes."""
        return None if self.memory is None else _size(self.memory)


def _size(memory: str | int) -> int:
    try:
        return int(parse_bytes(memory))
    except ValueError:
        return 0


# ------------------------------------------------------------------------------------- planning


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
    per_label = "noise" in sources.values() or "step" not in analysis.cell
    cell_bytes = sum(
        _cell_bytes(needed, sources[needed.variable.name], groups, trace)
        for needed in analysis.inputs
    )
    blocks = _cut(analysis, rows.size, tuple(labels), per_label, cell_bytes)
    largest = max(
        ((block.last - block.first) * len(block.labels) * cell_bytes for block in blocks), default=0
    )
    return Plan(
        analysis=analysis,
        parameters=dict(parameters),
        groups=groups,
        sources=sources,
        steps=tuple(int(row) for row in rows),
        labels=tuple(labels),
        blocks=blocks,
        block_bytes=largest,
        seed=seed,
        run=trace.run,
    )


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
    if source == "noise" or source in _DERIVED:
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
    elif source in _DERIVED:
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
    names = noise.SKETCHED if source == "noise" or source in _DERIVED else (source.split("/")[1],)
    largest = 0
    for name in names:
        if name in group.variables:
            array = group[name]
            outside = ("step", "layer") if "step" in needed.variable.dims[:2] else ("layer",)
            sizes = [size for dim, size in array.sizes.items() if dim not in outside]
            largest = max(largest, 8 * int(np.prod(sizes, dtype=np.int64)))
    return largest


def _cut(
    analysis: Analysis, rows: int, labels: tuple[str, ...], per_label: bool, cell_bytes: int
) -> tuple[Block, ...]:
    if "step" not in analysis.cell:
        width = -(-len(labels) // MAX_TASKS)
        return tuple(
            Block(0, rows, labels[start : start + width]) for start in range(0, len(labels), width)
        )
    columns = [(label,) for label in labels] if per_label else [labels]
    by_count = -(-rows * len(columns) // MAX_TASKS)
    by_bytes = BLOCK_BYTES // max(1, cell_bytes * len(columns[0]))
    # One cell a task where cells are heavy; many rows a task where they are scalars.
    height = max(1, by_count, min(by_bytes, 4096) if not per_label else 1)
    return tuple(
        Block(start, min(start + height, rows), column)
        for column in columns
        for start in range(0, rows, height)
    )


# -------------------------------------------------------------------------------------- a block

_DERIVED = {
    "noise/squared_deviation": noise.squared_deviation,
    "noise/signal": noise.signal,
}


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
        elif source in _DERIVED:
            array = _by_label(_DERIVED[source](selected, trace.layers), block.labels, needed)
        else:
            array = selected[source.split("/")[1]]
            if "layer" in array.dims:
                array = _by_label(array, block.labels, needed)
        ordered = array.transpose(*needed.variable.dims)
        arrays[needed.variable.name] = np.ascontiguousarray(
            ordered.values, dtype=np.dtype(needed.variable.dtype)
        )
    return arrays


def _noise_cells(plan: Plan, block: Block, group: xr.Dataset, trace: Trace) -> xr.DataArray:
    (label,) = block.labels
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
    table = np.empty((len(steps), len(block.labels)), dtype=np.uint64)
    for row, step in enumerate(steps):
        for column, label in enumerate(block.labels):
            name = f"{plan.seed}\0{plan.run}\0{plan.analysis.name}\0{step}\0{label}"
            digest = hashlib.sha256(name.encode()).digest()
            table[row, column] = int.from_bytes(digest[:8], "little")
    seeds: IntArray = table if "step" in plan.analysis.cell else table[0]
    return seeds


def _shape(plan: Plan, block: Block, dims: tuple[str, ...]) -> tuple[int, ...]:
    sizes = {"step": block.last - block.first, "layer": len(block.labels)}
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


def _failed(plan: Plan, block: Block) -> dict[str, Array]:
    outputs: dict[str, Array] = {}
    for variable in plan.analysis.outputs:
        dtype = np.dtype(variable.dtype)
        fill = np.nan if dtype.kind == "f" else 0
        outputs[variable.name] = np.full(_shape(plan, block, variable.dims), fill, dtype=dtype)
    outputs["status"][...] = int(Status.FAILED)
    return outputs


def _run(common: tuple[Trace, Plan], block: Block) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return the outputs of one block and what went wrong in it, cell by cell."""
    trace, plan = common
    try:
        return _kernel(plan, block, trace), ()
    except Exception as error:
        by_step = "step" in plan.analysis.cell
        cells = [
            Block(row, row + 1 if by_step else block.last, (label,))
            for row in (range(block.first, block.last) if by_step else (block.first,))
            for label in block.labels
        ]
        if len(cells) == 1:
            where = f"step {plan.steps[block.first]}, " if by_step else ""
            message = f"{where}{block.labels[0]}: {type(error).__name__}: {error}"
            logger.debug("cell failed: %s", message, exc_info=error)
            return _failed(plan, block), (message,)
    outputs = _failed(plan, block)
    messages: tuple[str, ...] = ()
    for cell in cells:
        part, failures = _run(common, cell)
        _place(outputs, part, plan, cell, block)
        messages += failures
    return outputs, messages


def _place(
    outputs: dict[str, Array], part: Mapping[str, Array], plan: Plan, cell: Block, whole: Block
) -> None:
    columns = [whole.labels.index(label) for label in cell.labels]
    column = slice(columns[0], columns[-1] + 1)
    rows = slice(cell.first - whole.first, cell.last - whole.first)
    for name, values in part.items():
        outputs[name][(rows, column) if "step" in plan.analysis.cell else (column,)] = values


# ------------------------------------------------------------------------------------ executing


def compute(
    plan: Plan, trace: Trace, execution: Execution, progress: Progress | None = None
) -> tuple[xr.Dataset, tuple[str, ...]]:
    """Return the result of a plan and the messages of the cells that failed.

    Parameters
    ----------
    plan : Plan
        What to compute.
    trace : Trace
        The trace, or one equal to it that workers can open.
    execution : Execution
        Where.
    progress : callable, optional
        Called with (blocks done, blocks in all).
    """
    whole = Block(0, len(plan.steps), plan.labels)
    outputs = _failed(plan, whole)
    messages: tuple[str, ...] = ()
    for block, (part, failures) in _map(plan, trace, execution, progress):
        _place(outputs, part, plan, block, whole)
        messages += failures
    return _dataset(plan, outputs), messages


def _map(
    plan: Plan, trace: Trace, execution: Execution, progress: Progress | None
) -> Iterator[tuple[Block, tuple[dict[str, Array], tuple[str, ...]]]]:
    if execution.client is None and execution.scheduler is None and execution.workers is None:
        common = delayed((trace, plan), traverse=False, pure=False)
        tasks = [delayed(_run, pure=False)(common, block) for block in plan.blocks]
        with _Counter(len(tasks), progress):
            results = compute_dask(
                *tasks,
                scheduler="threads",
                num_workers=_threads(plan, execution),
                optimize_graph=False,
            )
        yield from zip(plan.blocks, results, strict=True)
        return
    from distributed import as_completed

    if not trace.shareable:
        raise UsageError(
            "a trace in memory cannot be read by worker processes; leave workers and scheduler "
            "out to use threads, or write the trace to a folder"
        )
    with _client(execution) as client:
        future = client.scatter((trace, plan), broadcast=True, hash=False)
        futures = {
            client.submit(_run, future, block, pure=False, retries=2): block
            for block in plan.blocks
        }
        try:
            for done, task in enumerate(as_completed(futures), start=1):
                yield futures[task], task.result()
                if progress is not None:
                    progress(done, len(futures))
        finally:
            client.cancel(list(futures))


def _threads(plan: Plan, execution: Execution) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    allowed = execution.bytes_allowed()
    if allowed is None:
        return cores or 1
    return max(1, min(cores or 1, allowed // max(1, _PEAK * plan.block_bytes)))


@contextmanager
def _client(execution: Execution) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    if execution.client is not None:
        yield execution.client
        return
    if execution.scheduler is not None:
        try:
            client = Client(execution.scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {execution.scheduler!r} ({error}); "
                "start one with `dask scheduler` or leave the address out"
            ) from None
        with client:
            yield client
        return
    workers = execution.workers or 1
    allowed = execution.bytes_allowed()
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit="auto" if allowed is None else allowed // workers,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


class _Counter(Callback):  # type: ignore[misc]
    """Counts finished blocks of a threaded run."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        super().__init__()
        self._total, self._progress, self._done = total, progress, 0

    def _posttask(self, key: Any, *_: Any) -> None:
        if self._progress is not None and str(key).startswith("_run"):
            self._done += 1
            self._progress(self._done, self._total)


def _dataset(plan: Plan, outputs: Mapping[str, Array]) -> xr.Dataset:
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
