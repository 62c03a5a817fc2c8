"""Results of a trace: those beside it, and those that are kept elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xarray as xr

from tracelab.errors import DamagedError, NotRecordedError
from tracelab.trace.resultstore import resultform, shelves, unfinished
from tracelab.trace.resultstore.parts import Cells
from tracelab.trace.resultstore.resultform import Entry
from tracelab.trace.resultstore.shelves import RESULTS, Shelf

__all__ = ["RESULTS", "Results"]

_ATTEMPTS = 3


class Results(Mapping[str, xr.Dataset]):
    """Results of a trace by analysis: the most recent of each; `all` gives every one.

    Parameters
    ----------
    places : sequence of Shelf
        Where they are kept.
    """

    def __init__(self, places: Sequence[Shelf]) -> None:
        self.places = tuple(places)

    def __getitem__(self, name: str) -> xr.Dataset:
        found = self.newest(name)
        if found is None:
            have = ", ".join(self) or "none yet"
            raise NotRecordedError(
                f"this trace has no result of {name!r}; results: {have}; "
                f"compute it with tracelab.analyze(trace, [{name!r}])"
            )
        return found

    def newest(self, name: str, **parameters: Any) -> xr.Dataset | None:
        """Return the most recent result of an analysis with these parameters, if there is one.

        Raises
        ------
        DamagedError
            If it cannot be read.
        """
        for attempt in range(_ATTEMPTS):
            found = self._matching(name, parameters)
            if not found:
                return None
            try:
                return resultform.load(found[-1])
            except DamagedError:
                # A job that computed more may just have replaced it.
                if attempt == _ATTEMPTS - 1 or self._matching(name, parameters)[-1:] == found[-1:]:
                    raise
        raise AssertionError("unreachable")

    def _matching(self, name: str, parameters: Mapping[str, Any]) -> list[Entry]:
        return [
            entry
            for entry in self.entries(name)
            if all(
                key in entry.attrs["parameters"] and entry.attrs["parameters"][key] == value
                for key, value in parameters.items()
            )
        ]

    def __iter__(self) -> Iterator[str]:
        names = {name for place in self.places for name in shelves.analyses(place)}
        return (name for name in sorted(names) if self.entries(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.entries(name))

    def keys_of(self, name: str) -> list[str]:
        """Return the names of the stored results of an analysis, oldest first."""
        return [entry.path.rpartition("/")[2] for entry in self.entries(name)]

    def listing(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the attributes of every stored result, oldest first; no array is opened.

        ``analysis``, ``analysis_version``, ``parameters``, ``finding``, ``warnings``, ``created``,
        ``serial``, ``seconds`` and the rest of its provenance.

        Parameters
        ----------
        name : str, optional
            Of this analysis only.
        """
        names = sorted({n for place in self.places for n in shelves.analyses(place)})
        return [
            dict(entry.attrs)
            for each in names
            if name in (None, each)
            for entry in self.entries(each)
        ]

    def all(self, name: str) -> dict[str, xr.Dataset]:
        """Return every result of an analysis by its parameters (``"mode=batches, ..."``).

        Of results that differ in their input only, the most recent; in the order of their age.
        """
        newest: dict[str, Entry] = {}
        for entry in self.entries(name):
            described = _describe(entry.attrs)
            newest.pop(described, None)
            newest[described] = entry
        return {described: resultform.load(entry) for described, entry in newest.items()}

    def along(self, name: str, parameter: str, **parameters: Any) -> xr.Dataset:
        """Return results of an analysis that differ in one parameter, along a dimension.

        Of the results that are alike in all others the most recent are taken. Results whose value
        of it is None are left out.

        Parameters
        ----------
        name : str
            An analysis.
        parameter : str
            What differs: ``"batch_size"``, ``"mode"``.
        **parameters
            Only results that were computed with these.

        Raises
        ------
        NotRecordedError
            If there is no result with a value of it.

        Examples
        --------
        >>> trace.results.along("tail_index", "batch_size")["alpha"]  # doctest: +SKIP
        """
        alike: dict[str, dict[Any, Entry]] = {}
        for entry in self._matching(name, parameters):
            others = dict(entry.attrs["parameters"])
            value = others.pop(parameter, None)
            if value is not None:
                key = repr(sorted(others.items()))
                # The most recent last.
                alike[key] = alike.pop(key, {}) | {value: entry}
        if not alike:
            raise NotRecordedError(
                f"this trace has no result of {name!r} with a value of {parameter!r}; compute some "
                f"with tracelab.analyze(trace, [{name!r}], {parameter}=...)"
            )
        found = dict(sorted(list(alike.values())[-1].items()))
        return xr.concat(
            [resultform.load(entry) for entry in found.values()],
            xr.DataArray(list(found), dims=parameter, name=parameter),
            data_vars="all",
            coords="minimal",
            compat="override",
            join="outer",
            combine_attrs="drop_conflicts",
        )

    def entries(self, name: str) -> list[Entry]:
        """Return where the results of an analysis are, oldest first; no array is opened."""
        found = [entry for place in self.places for entry in shelves.entries(place, name)]
        return sorted(found, key=lambda entry: entry.age)

    def unfinished(
        self, kind: unfinished.Kind, wanted: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> Iterator[Cells]:
        """Yield cells that jobs finished whose result is not stored; see `unfinished.parts`."""
        for place in self.places:
            yield from unfinished.parts(place, kind, wanted)

    def __repr__(self) -> str:
        found = {name: [_describe(entry.attrs) for entry in self.entries(name)] for name in self}
        lines = [f"<tracelab.Results: {len(found)} analyses>"]
        for name, described in found.items():
            lines += [f"  {name}: {each}" for each in dict.fromkeys(described)]
        return "\n".join(lines)


def _describe(attrs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(attrs["parameters"].items()))
