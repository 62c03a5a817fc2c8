"""open(): a trace, lazily, as xarray datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import xarray as xr
from zarr.storage import LocalStore

from tracelab import noise, steps
from tracelab.errors import NotRecordedError, TraceError, UsageError
from tracelab.trace import inside
from tracelab.trace.gathered import PREFIX, Gathered
from tracelab.trace.places.locations import Location, PathLike, resolve
from tracelab.trace.places.remotefaults import RemoteError
from tracelab.trace.ranks import Ranks, describe_ranks
from tracelab.trace.reading import render, selection
from tracelab.trace.reading.datasets import dataset
from tracelab.trace.reading.snapshot import Snapshot, take
from tracelab.trace.reading.stored import Stored, stored
from tracelab.trace.resultstore import shelves
from tracelab.trace.resultstore.results import Results

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["Groups", "Trace", "open"]


class Groups(Mapping[str, xr.Dataset]):
    """Groups of a trace by name; a dataset is made when first asked for.

    Those that its ranks recorded are there as ``workers/NAME``, side by side, and are not listed.

    Parameters
    ----------
    names : tuple of str
        The groups there are.
    load : callable
        Makes the dataset of one.
    recording : bool
        Whether there may be more later.
    """

    def __init__(
        self, names: tuple[str, ...], load: Callable[[str], xr.Dataset], recording: bool
    ) -> None:
        self._names = names
        self._load = load
        self._recording = recording
        self._loaded: dict[str, xr.Dataset] = {}

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in self._names and not name.startswith(PREFIX):
            yet = " yet, and the run is still recording" if self._recording else ""
            raise _NoGroupError(
                f"this trace has no group {name!r}{yet}; {selection.close(name, self._names)}"
            )
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<tracelab.Groups: {', '.join(self._names) or 'none yet'}>"


class _NoGroupError(NotRecordedError, AttributeError):
    """A group that is not there, also where it is asked for as an attribute."""


class Trace:
    """Everything recorded from one run; made by `open`.

    Groups are attributes (``trace.gradients``) and items of `groups`: datasets whose arrays are
    read when computed. What is shown is one commit; `refresh` moves on to the last one of a trace
    that is still being recorded. A trace pickles by its location.

    Parameters
    ----------
    location : Location
        Where it is.
    results : str, path or zarr Store, optional
        Where results are kept that are not beside it.

    Attributes
    ----------
    location : str
        Where it is, as given to `open`.
    store : zarr.abc.store.Store
        What reads it.
    shareable : bool
        Whether another process can open it.
    groups : Mapping of str to xarray.Dataset
        What was recorded.
    """

    def __init__(self, location: Location, results: PathLike | None = None) -> None:
        self._location = location
        self.location = location.name
        self.store: Store = location.store
        self.shareable = location.shareable
        self.refresh()
        self._elsewhere = None if results is None else shelves.elsewhere(results, self.identity)

    def refresh(self) -> Self:
        """Look at the last commit from now on.

        Raises
        ------
        TraceError
            If the trace has become unreadable.
        """
        self._snapshot: Snapshot = take(self._location)
        names = tuple(name for name in self._snapshot.groups if name != "layers")
        self.groups = Groups(names, self._dataset, self.state == "recording")
        self._layers: xr.Dataset | None = None
        self._gathered: Gathered | None = None
        return self

    def _dataset(self, name: str) -> xr.Dataset:
        if name.startswith(PREFIX):
            return self.gathered.dataset(name)
        version = f"{self.run}.{self._snapshot.attrs.get('generation', 0)}"
        return dataset(self._location, version, self._snapshot.groups[name])

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the trace: format, run, state, metadata, model, optimizer, software."""
        return dict(self._snapshot.attrs)

    @property
    def kinds(self) -> dict[str, str]:
        """What each group records, by its name; no label is read for it."""
        return {name: str(self._snapshot.groups[name].attrs["kind"]) for name in self.groups}

    @property
    def run(self) -> str:
        """Identifier of the run."""
        run: str = self._snapshot.attrs["run"]
        return run

    @property
    def identity(self) -> str:
        """Identifier of what was recorded: of the run, and of the rank if it is one's trace."""
        rank = self._snapshot.attrs.get("rank")
        return f"{self.run}.rank-{rank:03d}" if isinstance(rank, int) else self.run

    @property
    def state(self) -> str:
        """``"recording"``, ``"complete"`` or ``"incomplete"``: of what this trace itself holds.

        The traces of ranks inside have states of their own, `rank_states`.
        """
        state: str = self._snapshot.attrs["state"]
        return state

    @property
    def rows(self) -> dict[str, int]:
        """Number of committed rows by group; nothing is read."""
        return {name: self._snapshot.groups[name].rows for name in self.groups}

    def stored(self, group: str) -> dict[str, Stored]:
        """Return a group's arrays as they are stored, for reading parts of them at once."""
        if group.startswith(PREFIX):
            return self.gathered.stored(group)
        found = self._snapshot.groups[group]
        return {
            name: stored(self._location, group, name, document)
            for name, document in found.arrays.items()
        }

    @property
    def layers(self) -> xr.Dataset:
        """The layer table: kind, shape, numel, offset by layer."""
        if self._layers is None:
            self._layers = self._dataset("layers").load()
        return self._layers

    @property
    def steps(self) -> xr.Dataset:
        """The group ``steps``: scalars by step."""
        return self.groups["steps"]

    @property
    def results(self) -> Results:
        """What analyses computed, by analysis."""
        beside = shelves.beside(self._location, self.identity)
        return Results((beside, self._elsewhere) if self._elsewhere else (beside,))

    def noise(
        self,
        step: Any = None,
        layer: str | None = None,
        mode: str = "batches",
        batch_size: int | None = None,
        sketch: str | None = None,
        group: str = "noise",
        batches: int | None = None,
        replacement: bool | None = None,
        seed: int | None = None,
    ) -> xr.DataArray:
        """Return gradient noise, arranged as the mode treats it; see `tracelab.noise.samples`.

        Parameters
        ----------
        step : int, list or slice, optional
            Steps, by label; a slice includes both ends.
        layer : str, optional
            A layer, or ``"network"``. Default: the series of all layers side by side.
        mode : {"batches", "pooled", "standardized"}
            What is one sample.
        batch_size : int, optional
            Synthetic batch size: a multiple of the recorded one, or any where `group` holds the
            gradients of single examples.
        sketch : {"sampled", "projected", "full"}, optional
            Default: what shows most.
        group : str
            The group to read, of kind ``noise`` or ``examples``.
        batches, replacement, seed : int, bool, int, optional
            How many batches are drawn from single examples (default: as many as examples), whether
            with replacement (default: yes), by which seed (default: 0); see
            `tracelab.drawing.drawn`.

        Returns
        -------
        xarray.DataArray
            Lazy; unit ``loss/weight`` (``1`` if standardized).

        Raises
        ------
        NotRecordedError
            A group, step, layer or sketch that the trace does not hold.
        UsageError
            Unknown mode or sketch, or a batch size that cannot be synthesised.
        """
        return noise.samples(
            self._at(group, step),
            self.layers,
            layer=layer,
            mode=mode,
            batch_size=batch_size,
            sketch=sketch,
            batches=batches,
            replacement=replacement,
            seed=seed,
        )

    def select(self, group: str, *, step: Any = None, layer: Any = None) -> xr.Dataset:
        """Return some steps and layers of a group.

        Parameters
        ----------
        group : str
            Name of the group.
        step : int, sequence of int or slice, optional
            Steps, by label; a slice includes both ends. An integer drops the dimension.
        layer : str or sequence of str, optional
            A name, a regular expression that whole names match, or a list of names. A single name
            drops the dimension ``layer``. Coordinates are those of the chosen layers.

        Returns
        -------
        xarray.Dataset
            Lazy.

        Raises
        ------
        NotRecordedError
            If the group, a step or a layer is not there: the message says whether it was not
            recorded, not at this step, or not yet.
        """
        chosen = self._at(group, step)
        return selection.layers(chosen, self.layers, group, layer)

    @property
    def ranks(self) -> Ranks:
        """Traces of the ranks of a job by rank, opened when asked for."""
        paths = inside.ranks(self._location)
        return Ranks(tuple(paths), lambda rank: Trace(self._location.at(paths[rank])))

    @property
    def rank_states(self) -> dict[int, str]:
        """State of each rank of a job: its trace's, ``"damaged"``, or ``"missing"`` without one."""
        told = describe_ranks(self.ranks, self._snapshot.attrs)
        return {int(rank): str(each["state"]) for rank, each in told.items()}

    @property
    def gathered(self) -> Gathered:
        """What the ranks recorded, side by side."""
        if self._gathered is None:
            self._gathered = Gathered(self.ranks, self.location)
        return self._gathered

    def _at(self, group: str, step: Any) -> xr.Dataset:
        recording = self.state == "recording"
        return steps.select(self.groups[group], step, name=group, recording=recording)

    def summary(self) -> dict[str, Any]:
        """Return what is in the trace, as JSON can hold it."""
        found = render.summary(self._location, self._snapshot, self.groups, lambda: self.layers)
        return {**found, "ranks": describe_ranks(self.ranks, self._snapshot.attrs)}

    def close(self) -> None:
        """Release what the store holds open; lazy datasets cannot be read any more."""
        if not isinstance(self.store, LocalStore):
            self.store.close()

    def __getattr__(self, name: str) -> xr.Dataset:
        # Called for what is not an attribute; unpickling asks before there is anything.
        if name.startswith("_") or "groups" not in self.__dict__:
            raise AttributeError(name)
        return self.groups[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.groups]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        elsewhere = self._elsewhere.location.reopen if self._elsewhere else None
        return open, (self._location.reopen, elsewhere)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return render.text(self._location.name, self._snapshot)

    def _repr_html_(self) -> str:
        return render.html(self._location.name, self._snapshot)


def open(path: PathLike | Trace, results: PathLike | None = None) -> Trace:
    """Open a trace; nothing but its metadata is read.

    Parameters
    ----------
    path : str, path, zarr Store or Trace
        A folder, a ``.zip`` of one, a URL such as ``s3://bucket/run.zarr``, an open Zarr store, or
        a trace, which is opened anew.
    results : str, path or zarr Store, optional
        Where results are that are not kept beside the trace: what ``analyze(..., out=)`` wrote.
        Of these and its own the most recent is shown.

    Returns
    -------
    Trace

    Raises
    ------
    UsageError
        If there is nothing at `path`, or no results at `results`.
    TraceError
        If what is there is no trace, is damaged, or has another format version.
    MissingExtraError
        If reading a URL needs a package that is not installed.
    """
    if isinstance(path, Trace):
        if results is None and path._elsewhere is not None:
            results = path._elsewhere.location.reopen
        return Trace(resolve(path._location.reopen), results)
    location = resolve(path)
    try:
        return Trace(location, results)
    except RemoteError:
        raise
    except TraceError:
        # Asked only now: a trace in an object store opens with one request.
        if not location.exists():
            raise UsageError(
                f"there is no trace at {location.name}; record one with tracelab.attach or "
                "tracelab.create"
            ) from None
        found = inside.ranks(location)
        if found and not location.has("zarr.json"):
            raise UsageError(
                f"there is no trace at {location.name} itself, only those of the ranks "
                f"{', '.join(map(str, found))}; open one, such as "
                f"{location.name.rstrip('/')}/{next(iter(found.values()))}"
            ) from None
        raise
