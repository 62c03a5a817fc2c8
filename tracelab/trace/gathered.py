"""What the ranks of a job recorded, side by side: groups ``workers/NAME`` of the whole, lazily.

A group is gathered if its rows are samples: if all of its arrays have a dimension ``worker``, or
all have a dimension ``batch`` of minibatches that training itself took. Those of a probe are not:
ranks with the same seed draw the same. Along it the ranks follow each other by number: every one
along ``worker``, so that a position is a rank, and along ``batch`` those that have a row. Steps
are those of any rank. Where a rank has no row there is NaN, so that numbers of any type are
read as floating numbers. Nothing is copied: each part is read from the trace that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from dask.base import tokenize

from tracelab.errors import NotRecordedError, TraceError
from tracelab.trace.inside import WORKERS
from tracelab.trace.reading.lazy import TASK_BYTES, tasks
from tracelab.trace.reading.stored import Stored
from tracelab.typing import Array, IntArray

if TYPE_CHECKING:
    from tracelab.trace.reading.reader import Trace

__all__ = ["PREFIX", "Gathered"]

PREFIX = f"{WORKERS}/"
"""Names of gathered groups begin with it."""

SAMPLES = ("worker", "batch")
MAX_WORKERS = 4096
# What ranks must agree on, or their numbers are not of one kind.
_SHARED = ("kind", "batch_size", "sketches", "project")
# Of tables, which say what coordinates and layers are: the same of every rank, and not by rows.
_LABELS = ("step", "layer")


class Gathered:
    """Groups that the ranks of a job recorded.

    Parameters
    ----------
    ranks : mapping of int to Trace
        Traces of ranks, by rank.
    where : str
        The trace of the whole, for errors.

    Notes
    -----
    Of a group the labels of steps and layers are in memory once it is asked for.
    """

    def __init__(self, ranks: Mapping[int, Trace], where: str) -> None:
        self._ranks = ranks
        self._where = where
        self._groups: dict[str, _Group] = {}
        self._kinds: dict[str, str] | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each group, by its name: opens the ranks' traces, and reads no row.

        Raises
        ------
        TraceError
            If the trace of a rank is damaged, or there are too many ranks.
        """
        if self._kinds is None:
            self._bounded(len(self._ranks))
            found: dict[str, str] = {}
            for trace in self._ranks.values():
                for name, kind in trace.kinds.items():
                    if _dimension(trace, name) is not None:
                        found.setdefault(f"{PREFIX}{name}", kind)
            self._kinds = found
        return self._kinds

    def _bounded(self, ranks: int) -> None:
        if ranks > MAX_WORKERS:
            raise TraceError(
                f"{self._where} says that its job has {ranks} ranks, and at most {MAX_WORKERS} can "
                "be read side by side; open the traces of some by trace.ranks"
            )

    def dataset(self, name: str) -> xr.Dataset:
        """Return a group as `tracelab.trace.reading.datasets.dataset` does; ``worker`` is labelled.

        Its attributes are the ranks', ``ranks``: by rank the run, its generation, the rows, and
        when the trace was made; and ``ranks_missing``: those of the job that have no row.

        Raises
        ------
        NotRecordedError
            If no rank recorded it.
        TraceError
            If the trace of a rank is damaged, or ranks recorded different things.
        """
        group = self._group(name)
        token = tokenize(name, self._where, group.attrs)
        variables: dict[str, xr.Variable] = {}
        for key, stored in self.stored(name).items():
            attributes = group.described[key]
            if key == "step":
                variables[key] = xr.Variable("step", group.steps, attributes)
            elif stored.dims[:1] != ("step",):
                size = tuple(slice(0, size) for size in stored.shape)
                variables[key] = xr.Variable(stored.dims, stored[size], attributes)
            else:
                read = tasks(stored.source, _chunks(stored), f"{key}-{token}", fancy=False)
                variables[key] = xr.Variable(stored.dims, read, attributes)
        labels = {key: variables.pop(key) for key in _LABELS if key in variables}
        if group.dimension == "worker":
            labels["worker"] = xr.Variable("worker", np.arange(group.count))
        tables = [key for key, each in variables.items() if each.dims[:1] != ("step",)]
        labels |= {key: variables.pop(key) for key in tables}
        return xr.Dataset(variables, labels, group.attrs)

    def stored(self, name: str) -> dict[str, Stored]:
        """Return a group's arrays for reading parts of them; errors as of `dataset`."""
        group = self._group(name)
        return {key: group.array(key) for key in group.described}

    def _group(self, name: str) -> _Group:
        if name not in self._groups:
            if name not in self.kinds:
                raise NotRecordedError(
                    f"the ranks of {self._where} recorded no group {name.removeprefix(PREFIX)!r} "
                    f"that can be read side by side; there are: {', '.join(self.kinds) or 'none'}"
                )
            self._groups[name] = self._gather(name.removeprefix(PREFIX))
        return self._groups[name]

    def _gather(self, name: str) -> _Group:
        traces = dict(self._ranks.items())
        sizes = [trace.attrs.get("world_size", 0) for trace in traces.values()]
        world = max([max(traces) + 1, *(size for size in sizes if type(size) is int)])
        self._bounded(world)
        # A rank that was ended before its first row has no arrays, and no say in what they are.
        having = {
            rank: trace
            for rank, trace in traces.items()
            if name in trace.kinds and (trace.rows[name] or _dimension(trace, name))
        }
        first, *_ = having.values()
        stored = {rank: trace.stored(name) for rank, trace in having.items()}
        datasets = {rank: trace.groups[name] for rank, trace in having.items()}
        dimensions = {rank: _dimension(trace, name) for rank, trace in having.items()}
        self._check(name, traces, stored, datasets, dimensions)
        dimension = next(each for each in dimensions.values() if each is not None)
        labels = {rank: dataset["step"].values for rank, dataset in datasets.items()}
        steps = np.unique(np.concatenate(list(labels.values())))
        rows = {rank: np.searchsorted(steps, own) for rank, own in labels.items()}
        described = {
            str(key): dict(variable.attrs)
            for dataset in reversed(datasets.values())
            for key, variable in dataset.variables.items()
        }
        attrs = dict(first.groups[name].attrs)
        attrs["ranks"] = {
            str(rank): [
                trace.identity,
                trace.attrs.get("generation", 0),
                labels[rank].size if rank in labels else 0,
                # A rank that was recorded anew under the same name has other rows.
                str(trace.attrs.get("created")),
            ]
            for rank, trace in traces.items()
        }
        there = [rank for rank, own in labels.items() if own.size]
        attrs["ranks_missing"] = sorted(set(range(world)) - set(there))
        # A batch that no rank has is none; a worker's number is its rank.
        members = range(world) if dimension == "worker" else there or list(having)
        return _Group(dimension, tuple(members), steps, rows, stored, described, attrs)

    def _check(
        self,
        name: str,
        traces: Mapping[int, Trace],
        stored: Mapping[int, Mapping[str, Stored]],
        datasets: Mapping[int, xr.Dataset],
        dimensions: Mapping[int, str | None],
    ) -> None:
        """Raise a TraceError if what ranks recorded does not fit together."""
        self._check_runs(traces)
        (first, known), *others = datasets.items()
        like, dimension = next((rank, each) for rank, each in dimensions.items() if each)
        for rank, each in dimensions.items():
            if each != dimension:
                self._differ(name, like, rank, "the dimension of samples")
        shapes: dict[str, tuple[int, Any]] = {}
        extents: dict[str, tuple[int, int]] = {}
        dtypes: dict[str, tuple[int, str]] = {}
        for rank, arrays in stored.items():
            for key, array in arrays.items():
                inner = [*zip(array.dims, array.shape, strict=True)]
                form = ([each for each in inner if each[0] != "step"], array.units)
                told = shapes.setdefault(key, (rank, form))
                if told[1] != form:
                    self._differ(name, told[0], rank, f"shape or unit of {key!r}")
                known_as = dtypes.setdefault(key, (rank, str(array.dtype)))
                if known_as[1] != str(array.dtype):
                    both_of = f"{known_as[1]} and {array.dtype}"
                    self._differ(name, known_as[0], rank, f"the dtype of {key!r}, {both_of}")
                for dim, size in form[0]:
                    there = extents.setdefault(dim, (rank, size))
                    if there[1] != size:
                        self._differ(name, there[0], rank, f"how many there are along {dim!r}")
        rows = {rank: _rows(arrays) for rank, arrays in stored.items()}
        tables = {rank: _tables(dataset) for rank, dataset in datasets.items()}
        for rank, dataset in others:
            for key in _SHARED:
                if dataset.attrs.get(key) != known.attrs.get(key):
                    self._differ(name, first, rank, f"the attribute {key!r}")
            alone = sorted(rows[first] ^ rows[rank])
            if alone:
                self._differ(name, first, rank, f"the array {alone[0]!r}, which only one has")
            for key in sorted(tables[first].keys() | tables[rank].keys()):
                both = key in tables[first] and key in tables[rank]
                if not (both and np.array_equal(tables[first][key], tables[rank][key])):
                    self._differ(name, first, rank, f"{key!r}, as where weights are sharded")
        if dimension == "worker" and any(
            dataset.sizes.get("worker", 1) != 1 for dataset in datasets.values()
        ):
            raise TraceError(
                f"group {name!r} of a rank of {self._where} holds several workers, and a rank is "
                "one; write all into the trace of the whole, without rank="
            )

    def _check_runs(self, traces: Mapping[int, Trace]) -> None:
        """Raise a TraceError if some ranks say that they are one run, and others are none of it."""
        of: dict[str, int] = {}
        for rank, trace in traces.items():
            of.setdefault(trace.run, rank)
        # Each has an identifier of its own where none was given.
        if 1 < len(of) < len(traces):
            (run, rank), (other, second), *_ = of.items()
            raise TraceError(
                f"{self._where}: rank {rank} is of run {run!r} and rank {second} of {other!r}, as "
                "where a smaller job was recorded over a larger one; remove the traces of ranks "
                "that are not of this job"
            )

    def _differ(self, name: str, first: int, second: int, what: str) -> None:
        raise TraceError(
            f"group {name!r} of {self._where}: the ranks {first} and {second} differ in {what}, "
            "so that they cannot be read side by side; open each by trace.ranks"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """One group of all ranks.

    Parameters
    ----------
    dimension : str
        Along which ranks follow each other.
    members : tuple of int
        The ranks along it.
    steps : ndarray of int64
        Steps of any rank.
    rows : mapping of int to ndarray of int64
        Of each rank's rows the positions among `steps`.
    stored : mapping of int to mapping of str to Stored
        Arrays by rank.
    described : mapping of str to mapping
        Attributes of each array.
    attrs : mapping
        Attributes of the group.
    """

    dimension: str
    members: tuple[int, ...]
    steps: IntArray
    rows: Mapping[int, IntArray]
    stored: Mapping[int, Mapping[str, Stored]]
    described: Mapping[str, Mapping[str, Any]]
    attrs: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Samples of all ranks."""
        arrays = next(iter(self.stored.values())).values()
        (each,) = {
            array.shape[array.dims.index(self.dimension)]
            for array in arrays
            if self.dimension in array.dims
        }
        return len(self.members) * each

    def array(self, key: str) -> Stored:
        """Return one array of all ranks."""
        places = {rank: place for place, rank in enumerate(self.members)}
        having = {
            places[rank]: arrays[key]
            for rank, arrays in self.stored.items()
            if key in arrays and rank in places
        }
        one = next(iter(having.values()))
        if key != "step" and one.dims[:1] != ("step",):
            return one
        shape = (self.steps.size, *one.shape[1:])
        if key == "step":
            return Stored(one.dims, shape, one.chunk, self.steps.dtype, one.units, self.steps)
        axis = one.dims.index(self.dimension)
        each = one.shape[axis]
        shape = (*shape[:axis], len(self.members) * each, *shape[axis + 1 :])
        dtype = one.dtype if one.dtype.kind == "f" else np.dtype(np.float64)
        rows = {places[rank]: own for rank, own in self.rows.items() if rank in places}
        source = _Together(shape, dtype, axis, each, having, rows)
        return Stored(one.dims, shape, one.chunk, dtype, one.units, source)


@dataclass(frozen=True, slots=True, eq=False)
class _Together:
    """An array of all ranks, read from those that have the wanted part, by their places."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int
    each: int
    stored: Mapping[int, Stored]
    rows: Mapping[int, IntArray]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, selection: Any) -> Array:
        given = selection if isinstance(selection, tuple) else (selection,)
        index = [*given, *[slice(None)] * (self.ndim - len(given))]
        spans = [
            range(size)[item] if isinstance(item, slice) else range(item, item + 1)
            for item, size in zip(index, self.shape, strict=True)
        ]
        out = np.full([len(span) for span in spans], np.nan, self.dtype)
        for place, stored in self.stored.items():
            self._fill(out, spans, place, stored)
        kept = tuple(slice(None) if isinstance(item, slice) else 0 for item in index)
        return out[kept]

    def _fill(self, out: Array, spans: list[range], place: int, stored: Stored) -> None:
        wanted = np.asarray(spans[0])
        places = np.searchsorted(self.rows[place], wanted)
        here = np.append(self.rows[place], -1)[places] == wanted
        samples = np.asarray(spans[self.axis]) - place * self.each
        own = (samples >= 0) & (samples < self.each)
        if not (here.any() and own.any()):
            return
        found = places[here]
        parts = [slice(span.start, span.stop, span.step) for span in spans]
        parts[0] = slice(int(found.min()), int(found.max()) + 1)
        parts[self.axis] = slice(0, self.each)
        read = stored[tuple(parts)].take(found - found.min(), 0).take(samples[own], self.axis)
        target: list[Any] = [slice(None)] * self.ndim
        target[0], target[self.axis] = np.flatnonzero(here), slice(*_bounds(own))
        out[tuple(target)] = read


def _bounds(mask: Array) -> tuple[int, int]:
    found = np.flatnonzero(mask)
    return int(found[0]), int(found[-1]) + 1


def _dimension(trace: Trace, name: str) -> str | None:
    """Return the dimension of samples that all arrays with rows have, if there is one."""
    if name not in trace.kinds:
        return None
    rows = [
        array.dims
        for key, array in trace.stored(name).items()
        if array.dims[:1] == ("step",) and key != "step"
    ]
    found = next((dim for dim in SAMPLES if rows and all(dim in dims for dims in rows)), None)
    drawn = found == "batch" and "replacement" in trace.groups[name].attrs
    return None if drawn else found


def _rows(arrays: Mapping[str, Stored]) -> set[str]:
    """Return the names of arrays that have a row a step."""
    return {key for key, array in arrays.items() if array.dims[:1] == ("step",)}


def _tables(dataset: xr.Dataset) -> dict[str, Array]:
    """Return the arrays without steps: labels of layers, and what coordinates are."""
    return {
        str(key): variable.values
        for key, variable in dataset.variables.items()
        if variable.dims[:1] != ("step",)
    }


def _chunks(stored: Stored) -> tuple[int, ...]:
    """Return what a task reads: whole chunks along steps, up to 16 MiB, with all samples."""
    row = stored.dtype.itemsize * int(np.prod(stored.shape[1:], dtype=np.int64))
    chunk = stored.chunk[0]
    rows = max(1, TASK_BYTES // max(row, 1) // chunk) * chunk
    return (min(rows, max(stored.shape[0], 1)), *(max(size, 1) for size in stored.shape[1:]))
