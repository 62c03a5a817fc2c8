"""Reads what the cells of a plan need from a trace, as the arrays that a kernel takes.

Only the chunks of a piece are read, and each of them once. Network rows are summed layer by layer
in the order of layers, in float64: the same bits however layers are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from tracelab import drawing, noise
from tracelab.addressing import Address, Spans
from tracelab.contracts import Input
from tracelab.cutting import Block
from tracelab.planning import SQUARES, Plan, Read
from tracelab.sketch import Project
from tracelab.trace import Trace
from tracelab.trace.reading.stored import Stored
from tracelab.typing import Array, FloatArray, IntArray

__all__ = ["cells", "load"]

# What is read at once of a sum over layers or coordinates.
TRANSIENT_BYTES = 2**22
# Of what batches drawn from examples hold, for later cells of the same steps.
HELD_BYTES = 2**23


def load(plan: Plan, piece: Block, trace: Trace) -> Iterator[tuple[Block, dict[str, Array]]]:
    """Yield parts of a piece with the kernel's inputs for each.

    An analysis of noise samples gets one cell at a time, because layers have different numbers of
    series; any other all cells at once.

    Parameters
    ----------
    plan : Plan
        A plan.
    piece : Block
        Some of its cells, as many as may be in memory.
    trace : Trace
        Its trace.

    Raises
    ------
    DamagedError
        If what is recorded cannot be read.
    """
    samples: dict[str, _Samples] = {}
    arrays: dict[str, Array] = {}
    squares: dict[str, dict[str, Array]] = {}
    inputs = [needed for needed in plan.analysis.inputs if needed.variable.name in plan.reads]
    for needed in inputs:
        name = needed.variable.name
        if plan.reads[name].kind == "noise":
            samples[name] = _Samples(plan, plan.reads[name], piece, trace)
        else:
            arrays[name] = _array(plan, needed, piece, trace, squares)
    if not samples:
        yield piece, arrays
        return
    for cell in cells(plan, piece):
        taken = {}
        for needed in inputs:
            name = needed.variable.name
            if name in samples:
                taken[name] = _ordered(needed, samples[name].cell(cell))
            else:
                taken[name] = _part(plan, needed, arrays[name], cell, piece)
        yield cell, taken


def cells(plan: Plan, block: Block) -> Iterator[Block]:
    """Yield the cells of a block, one by one."""
    for column in range(block.left, block.right):
        if not plan.by_step:
            yield Block(block.first, block.last, column, column + 1)
            continue
        for row in range(block.first, block.last):
            yield Block(row, row + 1, column, column + 1)


def _part(plan: Plan, needed: Input, array: Array, cell: Block, piece: Block) -> Array:
    """Return what belongs to a cell of an input that was read for a piece."""
    index: list[slice] = [slice(None)] * array.ndim
    for axis, dim in enumerate(needed.variable.dims):
        if dim == "step" and plan.reads[needed.variable.name].kind != "constant":
            index[axis] = slice(cell.first - piece.first, cell.last - piece.first)
        elif dim == "layer":
            index[axis] = slice(cell.left - piece.left, cell.right - piece.left)
    return np.ascontiguousarray(array[tuple(index)])


def _ordered(needed: Input, array: Array) -> Array:
    """Return noise samples (step, layer, batch, series) with the dims that the input declares."""
    dims = ("step", "layer", "batch", "series")
    order = [dims.index(dim) for dim in needed.variable.dims]
    return np.ascontiguousarray(array.transpose(order), dtype=np.dtype(needed.variable.dtype))


def _array(
    plan: Plan, needed: Input, piece: Block, trace: Trace, squares: dict[str, dict[str, Array]]
) -> Array:
    """Return one input for all cells of a piece.

    Squared norms of all kinds that are made of the same gradients are kept in `squares`.
    """
    read = plan.reads[needed.variable.name]
    dtype = np.dtype(needed.variable.dtype)
    if read.kind == "constant":
        return np.asarray(read.value).astype(dtype)
    there = plan.addresses[read.place]
    rows = there.rows if read.whole else there.rows[piece.first : piece.last]
    layers = there.layers[piece.left : piece.right]
    stored = trace.stored(read.group)
    if read.kind == "field":
        array, dims = _with_gaps(stored[read.array], rows, layers, there, needed)
    elif read.kind == "sharing":
        array, dims = _sharing(trace, read, layers), ("layer", "direction")
    else:
        key = f"{read.place}/{read.array}"
        if key not in squares:
            kinds = [
                each.kind
                for each in plan.reads.values()
                if each.kind in SQUARES and (each.place, each.array) == (read.place, read.array)
            ]
            squares[key] = _squared(stored, read, kinds, rows, layers, there, trace)
        array, dims = squares[key][read.kind], ("step", "layer", "batch")
        if read.kind == "signal":
            array, dims = array[..., 0], dims[:2]
    if read.whole:
        (axis,) = set(needed.variable.dims) - set(dims)
        dims = tuple(axis if dim == "step" else dim for dim in dims)
    order = [dims.index(dim) for dim in needed.variable.dims]
    return np.ascontiguousarray(array.transpose(order), dtype=dtype)


def _sharing(trace: Trace, read: Read, layers: IntArray) -> IntArray:
    """Return how many weights each direction adds up, by layer; the network's are those of all."""
    group = trace.groups[read.group]
    sketch = Project(group.sizes["direction"])
    numel = trace.layers["numel"].sel(layer=group["layer"].values).values
    by_layer = np.stack([sketch.sharing(int(each)) for each in numel])
    return np.where(layers[:, None] < 0, by_layer.sum(axis=0), by_layer[layers])


def _with_gaps(
    stored: Stored, rows: IntArray, layers: IntArray, there: Address, needed: Input
) -> tuple[Array, tuple[str, ...]]:
    """Return what `_field` does, with NaN at steps that are not recorded."""
    present = rows >= 0
    if present.all():
        return _field(stored, rows, layers, there, needed)
    wanted = {"step": rows.size, "layer": layers.size}
    sizes = zip(stored.dims, stored.shape, strict=True)
    out = np.full([wanted.get(dim, size) for dim, size in sizes], np.nan)
    if present.any():
        found, _ = _field(stored, rows[present], layers, there, needed)
        np.moveaxis(out, stored.dims.index("step"), 0)[present] = np.moveaxis(
            found, stored.dims.index("step"), 0
        )
    return out, stored.dims


def _field(
    stored: Stored, rows: IntArray, layers: IntArray, there: Address, needed: Input
) -> tuple[Array, tuple[str, ...]]:
    """Return rows and layers of a recorded array, the network's row summed up."""
    if "layer" not in stored.dims:
        wanted = {"step": rows} if "step" in stored.dims else {}
        return _taken(stored, wanted), stored.dims
    axis = stored.dims.index("layer")
    selection = {"step": rows} if "step" in stored.dims else {}
    own = layers[layers >= 0]
    parts = [_taken(stored, {**selection, "layer": own})] if own.size else []
    if (layers < 0).any():
        squares = needed.network == "root_sum_square"
        total: FloatArray | None = None
        # What was read for the layers themselves is not read again.
        every = parts if np.array_equal(own, np.arange(there.count)) else None
        for part in every or _layer_by_layer(stored, selection, there.count):
            for layer in np.moveaxis(part, axis, 0):
                value = layer.astype(np.float64)
                # What is not finite stays so, and is a status of the cell.
                with np.errstate(invalid="ignore"):
                    value = np.square(value, out=value) if squares else value
                    total = value if total is None else np.add(total, value, out=total)
        assert total is not None
        network = np.expand_dims(np.sqrt(total) if squares else total, axis)
        parts.append(network)
    joined = np.concatenate(parts, axis) if len(parts) > 1 else parts[0]
    return joined, stored.dims


def _layer_by_layer(stored: Stored, selection: dict[str, IntArray], count: int) -> Iterator[Array]:
    """Yield all layers of an array, some at a time: whole chunks, about `TRANSIENT_BYTES`."""
    axis = stored.dims.index("layer")
    rows = selection["step"].size if "step" in selection else 1
    rest = [
        size
        for dim, size in zip(stored.dims, stored.shape, strict=True)
        if dim not in ("step", "layer")
    ]
    each = stored.dtype.itemsize * rows * int(np.prod(rest, dtype=np.int64))
    chunk = stored.chunk[axis]
    width = max(1, TRANSIENT_BYTES // max(each, 1))
    width = max(chunk * (width // chunk), 1) if width >= chunk else width
    for begin in range(0, count, width):
        layers = np.arange(begin, min(begin + width, count))
        yield _taken(stored, {**selection, "layer": layers})


def _runs(positions: IntArray, chunk: int) -> list[tuple[int, int]]:
    """Return ranges of a sorted list of positions that lie in neighbouring or the same chunks."""
    apart = np.flatnonzero(np.diff(positions // chunk) > 1) + 1
    edges = [0, *apart.tolist(), positions.size]
    return list(pairwise(edges))


def _taken(stored: Stored, selection: dict[str, IntArray]) -> Array:
    """Return an array at sorted positions along some dimensions, everything along the others.

    Chunks between positions are not read.
    """
    axes = [(stored.dims.index(dim), positions) for dim, positions in selection.items()]
    return _read_axes(stored, axes, [slice(0, size) for size in stored.shape])


def _read_axes(stored: Stored, axes: Sequence[tuple[int, IntArray]], index: list[slice]) -> Array:
    if not axes:
        return stored[tuple(index)]
    (axis, positions), *others = axes
    parts = []
    for begin, end in _runs(positions, stored.chunk[axis]):
        run = positions[begin:end]
        index[axis] = slice(int(run[0]), int(run[-1]) + 1)
        found = _read_axes(stored, others, index)
        if run[-1] - run[0] + 1 != run.size:
            found = found.take(run - run[0], axis)
        parts.append(found)
    return np.concatenate(parts, axis) if len(parts) > 1 else parts[0]


def _squared(
    stored: dict[str, Stored],
    read: Read,
    kinds: Sequence[str],
    rows: IntArray,
    layers: IntArray,
    there: Address,
    trace: Trace,
) -> dict[str, Array]:
    """Return squared norms of each kind from gradients, with dims (step, layer, batch)."""
    values = stored[read.array]
    mean = stored.get(f"mean_{read.array}") if "deviation" in kinds else None
    batches = values.shape[values.dims.index("batch")] if "batch" in values.dims else 1
    out = {kind: np.zeros((rows.size, layers.size, batches)) for kind in kinds}
    numel = None
    if there.spans is not None:
        names = trace.groups[read.group]["layer"].values
        numel = trace.layers["numel"].sel(layer=names).values
    wanted = range(there.count) if (layers < 0).any() else layers.tolist()
    known = {layer: j for j, layer in enumerate(layers.tolist())}
    height = 1
    if "layer" in values.dims:
        height = max(1, TRANSIENT_BYTES // (8 * batches * values.shape[-1]))
    for begin in range(0, rows.size, height):
        some = slice(begin, begin + height)
        network = {kind: np.zeros((rows[some].size, batches)) for kind in kinds}
        for layer in wanted:
            squared = {kind: np.zeros_like(each) for kind, each in network.items()}
            for part, centre in _elements(values, mean, rows[some], layer, there):
                for kind, total in squared.items():
                    centred = kind == "deviation"
                    total += noise.squared_norm(part, centre if centred else None, centred=centred)
            for kind, total in squared.items():
                if numel is not None and there.spans is not None:
                    total *= numel[layer] / max(int(there.spans.count[layer]), 1)
                network[kind] += total
                if layer in known:
                    out[kind][some, known[layer]] = total
        if -1 in known:
            for kind, total in network.items():
                out[kind][some, known[-1]] = total
    return out


def _elements(
    values: Stored, mean: Stored | None, rows: IntArray, layer: int, there: Address
) -> Iterator[tuple[Array, Array | None]]:
    """Yield a layer's gradients (row, batch, element) with their means, piece by piece.

    Of coordinates there is one row.
    """
    if "layer" in values.dims:
        part = _at_layer(values, rows, layer)
        yield part, None if mean is None else _at_layer(mean, rows, layer)[:, 0]
        return
    assert there.spans is not None
    (row,) = rows.tolist()
    count = values.shape[1] if "batch" in values.dims else 1
    width = max(1, TRANSIENT_BYTES // (8 * count * noise.RUN)) * noise.RUN
    total = int(there.spans.count[layer])
    for begin in range(0, total, width):
        end = min(begin + width, total)
        part = _coordinates(values, row, layer, there.spans, begin, end)[None]
        centre = None if mean is None else _coordinates(mean, row, layer, there.spans, begin, end)
        yield part, centre


def _at_layer(stored: Stored, rows: IntArray, layer: int) -> Array:
    """Return (row, batch, direction) of one layer; one batch if there are none."""
    found = _taken(stored, {"step": rows, "layer": np.array([layer])})
    return found.reshape(rows.size, -1, stored.shape[-1])


def _coordinates(stored: Stored, row: int, layer: int, spans: Spans, begin: int, end: int) -> Array:
    """Return (batch, coordinate) of some of a layer's coordinates at one row."""
    leading = [slice(row, row + 1), *(slice(0, size) for size in stored.shape[1:-1])]
    if spans.owners is None:
        start = int(spans.start[layer])
        found = stored[(*leading, slice(start + begin, start + end))]
    else:
        where = np.flatnonzero(spans.owners == layer)[begin:end]
        axes = [(len(stored.shape) - 1, where)]
        found = _read_axes(stored, axes, [*leading, slice(None)])
    return found.reshape(-1, end - begin)


class _Samples:
    """Gradients of a noise group that were read for a piece, from which its cells are taken.

    Parameters
    ----------
    plan : Plan
        The plan.
    read : Read
        The input.
    piece : Block
        The cells.
    trace : Trace
        The trace.
    """

    def __init__(self, plan: Plan, read: Read, piece: Block, trace: Trace) -> None:
        stored = trace.stored(read.group)
        there = plan.addresses[read.place]
        rows = there.rows[piece.first : piece.last]
        layers = there.layers[piece.left : piece.right]
        self._first, self._layers = piece.first, there.layers
        self._values = _by_layer(stored[read.array], rows, layers, there)
        mean = stored.get(f"mean_{read.array}")
        self._mean = None if mean is None else _by_layer(mean, rows, layers, there)
        self._standardized = plan.parameters.get("mode") == "standardized"
        self._examples = "example" in stored[read.array].dims
        self._draws = read.value if isinstance(read.value, drawing.Draws) else None
        self._steps = plan.steps[piece.first : piece.last]
        self._held: dict[int, drawing.Held] = {}
        self._times = 1
        if not self._examples:
            recorded = trace.groups[read.group].attrs.get("batch_size")
            self._times = noise.synthetic(recorded, plan.parameters.get("batch_size"))

    def cell(self, cell: Block) -> FloatArray:
        """Return noise samples (step, layer, batch, series) of one cell."""
        layer = int(self._layers[cell.left])
        rows = [
            self._row(layer, row)
            for row in range(cell.first - self._first, cell.last - self._first)
        ]
        return (rows[0][None] if len(rows) == 1 else np.stack(rows))[:, None]

    def _row(self, layer: int, row: int) -> FloatArray:
        values = self._values[layer][row]
        mean = None if self._mean is None else self._mean[layer][row]
        if self._examples:
            held = None if self._draws is None else self._batches(self._draws, row)
            return noise.example_cell(values, mean, held, standardized=self._standardized)
        return noise.cell(values, mean, times=self._times, standardized=self._standardized)

    def _batches(self, draws: drawing.Draws, row: int) -> drawing.Held:
        """Return what the batches of a row hold: drawn once for all layers, if there is room."""
        if row not in self._held:
            held = draws.at(self._steps[row])
            if sum(each.nbytes for each in self._held.values()) + held.nbytes > HELD_BYTES:
                self._held.clear()
            self._held[row] = held
        return self._held[row]


def _by_layer(stored: Stored, rows: IntArray, layers: IntArray, there: Address) -> dict[int, Array]:
    """Return a sketch of each layer as (step, ..., series); -1 is the network."""
    own = layers[layers >= 0]
    found: dict[int, Array] = {}
    if "layer" in stored.dims:
        if own.size:
            taken = _taken(stored, {"step": rows, "layer": own})
            found = {layer: taken[..., i, :] for i, layer in enumerate(own.tolist())}
        if own.size < layers.size:
            # The projection of the network is the sum of those of its layers.
            for part in _layer_by_layer(stored, {"step": rows}, there.count):
                for value in np.moveaxis(part, -2, 0):
                    found[-1] = found[-1] + value if -1 in found else value.astype(np.float64)
        return found
    spans, size = there.spans, stored.shape[-1]
    assert spans is not None
    if spans.owners is not None:
        for layer in own.tolist():
            where = np.flatnonzero(spans.owners == layer)
            found[layer] = _taken(stored, {"step": rows, "coordinate": where})
        if own.size < layers.size:
            found[-1] = _taken(stored, {"step": rows})
        return found
    ranges = {layer: (int(spans.start[layer]), int(spans.stop[layer])) for layer in own.tolist()}
    if own.size < layers.size:
        ranges[-1] = (0, size)
    for begin, end, inside in _merged(ranges, stored.chunk[-1]):
        taken = _taken(stored, {"step": rows, "coordinate": np.arange(begin, end)})
        for layer in inside:
            start, stop = ranges[layer]
            found[layer] = taken[..., start - begin : stop - begin]
    return found


def _merged(ranges: dict[int, tuple[int, int]], chunk: int) -> Iterator[tuple[int, int, list[int]]]:
    """Yield ranges that cover the given ones, with which they cover; no chunk in vain."""
    begin = end = -1
    inside: list[int] = []
    for layer, (start, stop) in sorted(ranges.items(), key=lambda item: item[1]):
        if inside and start // chunk > max(end - 1, begin) // chunk:
            yield begin, end, inside
            inside = []
        if not inside:
            begin = end = start
        end = max(end, stop)
        inside.append(layer)
    if inside:
        yield begin, end, inside
