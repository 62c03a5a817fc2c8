"""open_runs(): many traces side by side, found by their hyper-parameters."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr

from tracelab import catalogue
from tracelab.covariates import COVARIATES, with_covariates
from tracelab.errors import NotRecordedError, TracelabError, UsageError
from tracelab.trace import Trace
from tracelab.trace import open as open_trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Runs", "open_runs"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Rows of a run that were recorded again, and what `repair` kept: no runs of their own.
_COPY = re.compile(r"\.(?:superseded|damaged)-\d+\.zarr/?$")

_THREADS = 16
_FACTS = ("location", "id", "state", "created", "rows")


class Runs(Mapping[str, Trace]):
    """Traces by name, with their hyper-parameters; made by `open_runs`.

    Parameters
    ----------
    traces : mapping of str to Trace
        The traces by name.
    unreadable : mapping of str to str, optional
        What could not be opened, and why.

    Attributes
    ----------
    unreadable : dict of str to str
        Locations left out, each with the sentence that says why.
    """

    def __init__(
        self, traces: Mapping[str, Trace], unreadable: Mapping[str, str] | None = None
    ) -> None:
        self._traces = dict(traces)
        self.unreadable = dict(unreadable or {})

    def __getitem__(self, name: str) -> Trace:
        if name not in self._traces:
            raise NotRecordedError(
                f"no run is called {name!r}; there are: {', '.join(list(self)[:20]) or 'none'}"
                f"{', ...' if len(self) > 20 else ''}"
            )
        return self._traces[name]

    def __contains__(self, name: object) -> bool:
        return name in self._traces

    def __iter__(self) -> Iterator[str]:
        return iter(self._traces)

    def __len__(self) -> int:
        return len(self._traces)

    @cached_property
    def hyperparameters(self) -> dict[str, dict[str, Any]]:
        """Return the hyper-parameters of each run: flat, see `tracelab.catalogue.flatten`."""
        return {name: catalogue.flatten(trace.attrs) for name, trace in self.items()}

    @property
    def columns(self) -> list[str]:
        """Return the names of all hyper-parameters that any run has."""
        return list(dict.fromkeys(key for found in self.hyperparameters.values() for key in found))

    @property
    def differing(self) -> list[str]:
        """Return the hyper-parameters in which the runs differ."""
        return [
            key
            for key in self.columns
            if len({repr(found.get(key)) for found in self.hyperparameters.values()}) > 1
        ]

    @property
    def frame(self) -> pd.DataFrame:
        """Return one row a run: location, id, state, created, rows, and its hyper-parameters.

        ``rows`` is the number of committed rows of the group that has most.
        """
        import pandas as pd

        facts = [
            {
                "location": trace.location,
                "id": trace.run,
                "state": trace.state,
                "created": trace.attrs.get("created"),
                "rows": max(trace.rows.values(), default=0),
                **self.hyperparameters[name],
            }
            for name, trace in self.items()
        ]
        index = pd.Index(list(self), name="run", dtype=object)
        return pd.DataFrame(facts, index=index, columns=[*_FACTS, *self.columns])

    def select(self, conditions: Mapping[str, Any] | None = None, **more: Any) -> Runs:
        """Return the runs whose hyper-parameters are as wanted.

        Parameters
        ----------
        conditions : mapping of str to value, optional
            By name: ``"optimizer.lr"``, or ``"lr"`` where only one ends so. A value, a list of
            values, a slice (both ends included) or a function that says yes.
        **more
            The same, for names that are Python names.

        Returns
        -------
        Runs

        Raises
        ------
        UsageError
            If no run has such a hyper-parameter, or several names can be meant.
        """
        wanted = [
            (catalogue.column(name, self.columns), value)
            for name, value in [*(conditions or {}).items(), *more.items()]
        ]
        chosen = {
            name: trace
            for name, trace in self.items()
            if all(
                catalogue.matches(self.hyperparameters[name].get(key), value)
                for key, value in wanted
            )
        }
        return Runs(chosen, self.unreadable)

    def result(self, name: str, **parameters: Any) -> xr.Dataset:
        """Return the results of an analysis side by side, along ``run``.

        Of each run its most recent result. Runs without one are left out. A cell that a run does
        not have is NaN there.

        Parameters
        ----------
        name : str
            An analysis.
        **parameters
            Only results that were computed with these.

        Returns
        -------
        xarray.Dataset
            As the analysis gives it, with ``run`` first; the hyper-parameters are coordinates of
            ``run``, and so are the analysis' parameters in which the results differ
            (``"parameters.mode"``). Attribute ``without``: the runs that have none.

        Raises
        ------
        NotRecordedError
            If no run has such a result.
        """
        found = dict(
            zip(
                self,
                _mapped(
                    lambda trace: trace.results.newest(name, **parameters), self._traces.values()
                ),
                strict=True,
            )
        )
        have = {run: result for run, result in found.items() if result is not None}
        if not have:
            asked = "".join(f", {key}={value}" for key, value in parameters.items())
            raise NotRecordedError(
                f"none of {len(self)} runs has a result of {name!r}{asked}; "
                f"compute it with tracelab.analyze(trace, [{name!r}])"
            )
        joined = self._beside(have)
        differing = _differing([result.attrs.get("parameters", {}) for result in have.values()])
        if differing:
            logger.warning(
                "the results of %s were computed with different %s; name one, such as %s=%r",
                name,
                " and ".join(differing),
                *next((key, values[0]) for key, values in differing.items()),
            )
        joined = joined.assign_coords(
            {f"parameters.{key}": ("run", _vector(values)) for key, values in differing.items()}
        )
        joined.attrs["without"] = [run for run in self if run not in have]
        return joined

    def cells(self, name: str, **parameters: Any) -> pd.DataFrame:
        """Return one row for every cell of every result of an analysis: what figures are drawn of.

        Parameters
        ----------
        name : str
            An analysis.
        **parameters
            Only results that were computed with these.

        Returns
        -------
        pandas.DataFrame
            Columns ``run``, ``layer``, ``step``, the covariates ``depth``, ``learning_rate`` and
            ``noise_batch_size`` (`tracelab.covariates`), every variable that has one number a
            cell, parameters (``"parameters.mode"``) and hyper-parameters in which results differ.

        Raises
        ------
        NotRecordedError
            If no run has such a result.

        Examples
        --------
        >>> cells = runs.cells("tail_index", mode="batches")  # doctest: +SKIP
        >>> cells.plot.scatter("noise_batch_size", "alpha")  # doctest: +SKIP
        """
        import pandas as pd

        found = [
            (run, with_covariates(result, trace))
            for run, trace in self.items()
            for result in (trace.results.all(name).values() if name in trace.results else ())
            if all(result.attrs["parameters"].get(key) == v for key, v in parameters.items())
        ]
        if not found:
            raise NotRecordedError(
                f"none of {len(self)} runs has such a result of {name!r}; "
                f"compute it with tracelab.analyze(trace, [{name!r}])"
            )
        differing = _differing([result.attrs["parameters"] for _, result in found])
        frames = []
        for run, result in found:
            cell = result["status"].dims
            flat = result[[key for key in result.data_vars if result[key].dims == cell]]
            frame = flat.to_dataframe().reset_index()
            frame.insert(0, "run", run)
            for key in differing:
                frame[f"parameters.{key}"] = result.attrs["parameters"].get(key)
            for key in self.differing:
                frame[key] = self.hyperparameters[run].get(key)
            frames.append(frame)
        joined: pd.DataFrame = pd.concat(frames, ignore_index=True)
        first = [key for key in ("run", "layer", "step", *COVARIATES) if key in joined]
        return joined[first + [key for key in joined if key not in first]]

    @property
    def results(self) -> Mapping[str, xr.Dataset]:
        """Return results side by side by analysis: ``runs.results["tail_index"]``; see `result`."""
        return _ByName(
            self.result, lambda: [name for trace in self.values() for name in trace.results]
        )

    @property
    def groups(self) -> Mapping[str, xr.Dataset]:
        """Return groups side by side by name, lazy: ``runs.groups["statistics"]``.

        Along ``run``, outer-joined along step and layer: what a run does not have is NaN.
        """
        return _ByName(
            self._group, lambda: [name for trace in self.values() for name in trace.rows]
        )

    def _group(self, name: str) -> xr.Dataset:
        have = {run: trace.groups[name] for run, trace in self.items() if name in trace.groups}
        if not have:
            raise NotRecordedError(f"none of {len(self)} runs has a group {name!r}")
        return self._beside(have)

    def _beside(self, datasets: Mapping[str, xr.Dataset]) -> xr.Dataset:
        joined: xr.Dataset = xr.concat(
            list(datasets.values()),
            "run",
            data_vars="all",
            coords="different",
            compat="equals",
            join="outer",
            combine_attrs="drop_conflicts",
        )
        coords: dict[str, Any] = {"run": _vector(list(datasets))}
        for key in self.columns:
            if key not in joined.variables:
                coords[key] = (
                    "run",
                    _vector([self.hyperparameters[run].get(key) for run in datasets]),
                )
        return joined.assign_coords(coords)

    def __repr__(self) -> str:
        lines = [f"<tracelab.Runs: {len(self)} runs>"]
        keys = self.differing[:6]
        for name, trace in list(self.items())[:20]:
            facts = [f"{key}={self.hyperparameters[name].get(key)}" for key in keys]
            lines.append(f"  {name}: {', '.join([trace.state, *facts])}")
        if len(self) > 20:
            lines.append(f"  ... and {len(self) - 20} more: see .frame")
        if self.unreadable:
            lines.append(f"  unreadable: {len(self.unreadable)}; see .unreadable")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        html: str = self.frame.to_html(max_rows=20, notebook=True, escape=True)
        return html


class _ByName(Mapping[str, xr.Dataset]):
    def __init__(
        self, load: Callable[[str], xr.Dataset], names: Callable[[], Iterable[str]]
    ) -> None:
        self._load = load
        self._names = names

    def __getitem__(self, name: str) -> xr.Dataset:
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self._names()))

    def __len__(self) -> int:
        return len(set(self._names()))

    def __repr__(self) -> str:
        return f"<{', '.join(self) or 'none'}>"


def _differing(parameters: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for each in parameters for key in each)
    values = {key: [each.get(key) for each in parameters] for key in keys}
    return {key: found for key, found in values.items() if len(set(map(repr, found))) > 1}


def _vector(values: Sequence[Any]) -> Any:
    """Return values as the narrowest array that keeps them apart; None among numbers is NaN."""
    numbers = [value for value in values if value is not None]
    if numbers and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in numbers
    ):
        if len(numbers) < len(values):
            return np.array([np.nan if value is None else float(value) for value in values])
        return np.array(values)
    if all(isinstance(value, bool) for value in values):
        return np.array(values, dtype=bool)
    vector = np.empty(len(values), dtype=object)
    vector[:] = [None if value is None else str(value) for value in values]
    return vector


def open_runs(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Trace],
    results: str | os.PathLike[str] | None = None,
) -> Runs:
    """Open many traces; only their metadata are read.

    Parameters
    ----------
    paths : str, path or iterable of them
        A pattern such as ``"runs/*.zarr"`` (``**`` for any depth; ``s3://bucket/runs/*.zarr``), a
        folder of traces, or the traces themselves or their locations.
    results : str or path, optional
        Where ``analyze(out=)`` stored more results of these traces.

    Returns
    -------
    Runs
        By name: the last part of the path without suffix, and as much before it as tells runs
        apart. What cannot be opened is warned of and named in ``unreadable``; what is no trace
        matches no pattern.

    Raises
    ------
    UsageError
        If there is no trace.

    Examples
    --------
    >>> runs = open_runs("runs/*.zarr")  # doctest: +SKIP
    >>> runs.select(optimizer="SGD", lr=slice(0.01, 0.1)).result("tail_index")  # doctest: +SKIP
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    places: list[str | Trace] = []
    for each in given:
        places += [each] if isinstance(each, Trace) else _expand(os.fspath(each))
    places = list(dict.fromkeys(places))
    if not places:
        asked = ", ".join(map(str, given)) or "an empty list"
        raise UsageError(
            f"there is no trace at {asked}; give traces, or a pattern such as runs/*.zarr"
        )
    opened = _mapped(lambda place: _open(place, results), places)
    unreadable = {
        str(place): found
        for place, found in zip(places, opened, strict=True)
        if isinstance(found, str)
    }
    traces = [found for found in opened if isinstance(found, Trace)]
    if not traces:
        first = next(iter(unreadable.values()))
        raise UsageError(first if len(places) == 1 else f"none of {len(places)} traces: {first}")
    for sentence in unreadable.values():
        logger.warning("left out: %s", sentence)
    names = _names([trace.location for trace in traces])
    return Runs(dict(zip(names, traces, strict=True)), unreadable)


def _mapped(function: Callable[[Any], T], places: Iterable[str | Trace]) -> list[T]:
    """Return what a function gives for every place."""
    given = list(places)
    names = [place.location if isinstance(place, Trace) else place for place in given]
    if not any("://" in name for name in names):
        # Files answer at once; threads would wait for each other's interpreter lock.
        return [function(place) for place in given]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, given))


def _open(place: str | Trace, results: Any) -> Trace | str:
    try:
        return open_trace(place, results=results)
    except (TracelabError, OSError) as error:
        return str(error)


def _expand(path: str) -> list[str]:
    if "://" in path and glob.has_magic(path):
        from fsspec.core import url_to_fs

        system, pattern = url_to_fs(path)
        return sorted(
            system.unstrip_protocol(found)
            for found in system.glob(pattern)
            if not _COPY.search(found)
        )
    if "://" in path:
        return [path]
    expanded = os.path.expanduser(path)
    if glob.has_magic(expanded) and not os.path.exists(expanded):
        found = sorted(glob.glob(expanded, recursive=True))
        return [each for each in found if _is_trace(each) and not _COPY.search(each)]
    if os.path.isdir(expanded) and not os.path.exists(os.path.join(expanded, "zarr.json")):
        return [
            each.path
            for each in sorted(os.scandir(expanded), key=lambda each: each.name)
            if _is_trace(each.path) and not _COPY.search(each.path)
        ]
    return [expanded]


def _is_trace(path: str) -> bool:
    return path.endswith(".zip") or os.path.exists(os.path.join(path, "zarr.json"))


def _names(locations: Sequence[str]) -> list[str]:
    parts = [PurePosixPath(location.replace("://", "/")).parts for location in locations]
    depth = [1] * len(parts)
    while True:
        names = [
            "/".join(own[-n:]).removesuffix(".zip").removesuffix(".zarr")
            for own, n in zip(parts, depth, strict=True)
        ]
        shared = {name for name, count in Counter(names).items() if count > 1}
        grown = [
            min(n + (name in shared), len(own))
            for n, name, own in zip(depth, names, parts, strict=True)
        ]
        if grown == depth:
            break
        depth = grown
    # The same place twice, or a trace in memory: numbers tell them apart.
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique
