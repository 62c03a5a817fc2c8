"""Where results of a run are kept: beside its trace, or in a store of results of several runs.

``results/<analysis>/<result>`` in a trace, ``<run>/<analysis>/<result>`` in a results store. A
result has a name of its own, so that no job ever writes where another one does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr
from zarr.errors import BaseZarrError

from tracelab.errors import StorageError, TraceError, UsageError
from tracelab.trace.places import objects
from tracelab.trace.places.files import Part
from tracelab.trace.places.locations import Location, PathLike, resolve
from tracelab.trace.places.remotefaults import DeniedError
from tracelab.trace.resultstore import resultform
from tracelab.trace.resultstore.resultform import Entry
from tracelab.trace.schema import FORMAT, NAME
from tracelab.trace.writing import documents
from tracelab.typing import JSONValue

__all__ = [
    "JOBS",
    "RESULTS",
    "RESULTS_FORMAT",
    "Shelf",
    "analyses",
    "beside",
    "elsewhere",
    "entries",
    "prepare",
    "store",
    "storing",
]

logger = logging.getLogger(__name__)

RESULTS = "results"
RESULTS_FORMAT = "tracelab-results"
RESULTS_VERSION = 1
JOBS = ".jobs"
"""Folder of a shelf in which running jobs keep what is not finished; no result is called so."""

_ROOT_BYTES = 2**20
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Shelf:
    """The results of one run at one place.

    Parameters
    ----------
    location : Location
        The store.
    prefix : str
        Path inside it below which results are.
    run : str
        Identifier of the run.
    """

    location: Location
    prefix: str
    run: str

    @property
    def name(self) -> str:
        """What users call it."""
        return self.location.name


def beside(location: Location, run: str) -> Shelf:
    """Return the shelf inside a trace."""
    return Shelf(location, RESULTS, run)


def elsewhere(path: PathLike, run: str, *, create: bool = False) -> Shelf:
    """Return a run's shelf in a results store.

    Parameters
    ----------
    path : str, path or zarr Store
        Where the store is.
    run : str
        Identifier of the run.
    create : bool
        Make the store if there is nothing yet.

    Raises
    ------
    UsageError
        If there is none and none is to be made, if something else is there, or if it cannot be
        made.
    TraceError
        If it cannot be read, or has another format version.
    """
    if not NAME.fullmatch(run) or run.startswith("."):
        raise UsageError(
            f"results of the run {run!r} cannot be kept outside its trace: its identifier is no "
            "plain name"
        )
    location = resolve(path)
    try:
        content = objects.read(location, "zarr.json", _ROOT_BYTES)
        empty = content is None and not location.exists()
    except (OSError, BaseZarrError) as error:
        raise TraceError(f"{location.name} cannot be read: {error}") from None
    if empty and not create:
        raise UsageError(
            f"there are no results at {location.name}; store some there with "
            "tracelab analyze TRACE --out"
        )
    if empty:
        shelf = Shelf(location, run, run)
        attributes: dict[str, JSONValue] = {
            "format": RESULTS_FORMAT,
            "format_version": RESULTS_VERSION,
        }
        with storing(shelf):
            objects.put(location, "zarr.json", [documents.dump(documents.group(attributes))])
        return shelf
    _check_root(location, content)
    return Shelf(location, run, run)


def _check_root(location: Location, content: bytes | None) -> None:
    try:
        attributes = json.loads(content or b"")["attributes"]
        form, version = attributes.get("format"), attributes.get("format_version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        form = version = None
    if form == FORMAT:
        raise UsageError(
            f"{location.name} is a trace; results that are not kept beside their own trace need a "
            "store for results alone: choose another path"
        )
    if form != RESULTS_FORMAT:
        raise UsageError(
            f"{location.name} exists and is no store of results, so it is left alone; choose "
            "another path"
        )
    if version != RESULTS_VERSION:
        raise TraceError(
            f"the results at {location.name} have format version {version!r}, this tracelab reads "
            f"{RESULTS_VERSION}; install the version that wrote them, or a newer one"
        )


# ----------------------------------------------------------------------------------------- reading


def analyses(shelf: Shelf) -> list[str]:
    """Return the names of analyses that may have results here."""
    return _members(shelf.location, shelf.prefix)


def _members(location: Location, prefix: str) -> list[str]:
    found = objects.names(location, prefix)
    return [name for name in found if NAME.fullmatch(name) and not name.startswith(".")]


def entries(shelf: Shelf, analysis: str) -> list[Entry]:
    """Return the finished results of an analysis, oldest first; no array is opened.

    What is not exactly a result of this run is left out.
    """
    if not NAME.fullmatch(analysis) or analysis.startswith("."):
        return []
    folder = f"{shelf.prefix}/{analysis}"
    paths = [f"{folder}/{name}" for name in _members(shelf.location, folder) if name != "zarr.json"]
    contents = objects.read_all(
        shelf.location, [f"{path}/zarr.json" for path in paths], resultform.MAX_DOCUMENT_BYTES
    )
    found = []
    for path, content in zip(paths, contents, strict=True):
        if content is None:
            continue
        try:
            found.append(resultform.parse(content, shelf.location, path, shelf.run))
        except ValueError as error:
            logger.warning("%s/%s is left out: %s", shelf.name, path, error)
    return sorted(found, key=lambda entry: entry.age)


# ----------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def storing(shelf: Shelf) -> Iterator[None]:
    """Say what it means for a user that something cannot be written on a shelf.

    Raises
    ------
    UsageError
        If nothing can be written there.
    StorageError
        If it could not be written this time: the disk is full, or failed.
    """
    try:
        yield
    except DeniedError as error:
        raise _read_only(shelf, str(error)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        denied = isinstance(error, PermissionError) or "access is denied" in reason
        if denied or error.errno in _REFUSED:
            raise _read_only(shelf, reason) from None
        raise StorageError(
            f"results cannot be written to {shelf.name}: {reason}; what was stored before is "
            "kept, and the same command goes on once it can be written"
        ) from error


def _read_only(shelf: Shelf, reason: str) -> UsageError:
    return UsageError(
        f"results cannot be stored in {shelf.name} ({reason}); give another place for them: "
        "--out RESULTS, or analyze(trace, out=...)"
    )


def prepare(shelf: Shelf, analysis: str) -> None:
    """Make the groups that a result goes into; says at once if that cannot be.

    Raises
    ------
    UsageError
        If nothing can be written there.
    StorageError
        If the disk is full, or failed.
    """
    location = shelf.location
    if location.store.read_only:
        raise _read_only(shelf, "it is read-only")
    groups = (shelf.prefix, f"{shelf.prefix}/{analysis}")
    if location.folder is not None:
        root = location.folder.resolve()
        for path in (*groups, f"{shelf.prefix}/{JOBS}"):
            if (root / path).resolve() != root / path:
                raise _read_only(shelf, f"{path} is a link to somewhere else")
    with storing(shelf):
        for path in groups:
            key = f"{path}/zarr.json"
            if objects.read(location, key, _ROOT_BYTES) is None:
                objects.put(location, key, [documents.dump(documents.group({}))])


def store(
    shelf: Shelf,
    job: str,
    name: str,
    dataset: xr.Dataset,
    serial: Callable[[], int],
) -> Entry:
    """Store a result; a reader sees all of it or nothing.

    Parameters
    ----------
    shelf : Shelf
        Where; `prepare` was called for the analysis.
    job : str
        Path of the job's own folder on the shelf.
    name : str
        What the result is called; nothing has this name yet.
    dataset : xarray.Dataset
        In memory; attributes JSON-serialisable, ``serial`` is set here.
    serial : callable
        Gives the result's serial number; called when all else is written.

    Raises
    ------
    StorageError
        If it cannot be written; nothing of it is left.
    """
    final = f"{shelf.prefix}/{dataset.attrs['analysis']}/{name}"
    # On a file system a result appears by one rename; elsewhere with its group's document.
    path = final if shelf.location.folder is None else f"{job}/result"
    arrays: dict[str, Any] = {}
    checksums: dict[str, list[int]] = {}
    with storing(shelf):
        try:
            objects.put_all(shelf.location, _noted(dataset, path, arrays, checksums))
            dataset.attrs["serial"] = serial()
            commit = resultform.document(dataset.attrs, arrays, checksums)
            objects.put(shelf.location, f"{path}/zarr.json", [commit])
            if shelf.location.folder is not None:
                os.rename(shelf.location.folder / path, shelf.location.folder / final)
        except BaseException:
            objects.remove(shelf.location, path)
            raise
    return resultform.parse(commit, shelf.location, final, shelf.run)


def _noted(
    dataset: xr.Dataset, path: str, arrays: dict[str, Any], checksums: dict[str, list[int]]
) -> Iterator[tuple[str, Sequence[Part]]]:
    """Yield the objects of a result's arrays, and note what its document says about them."""
    for key, content, described, crc in resultform.encode(dataset):
        array = key.split("/")[0]
        arrays[array] = described
        checksums.setdefault(array, [])
        if crc is not None:
            checksums[array].append(crc)
        yield f"{path}/{key}", content
