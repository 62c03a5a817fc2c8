"""export_hdf5() and import_hdf5(): a trace as one HDF5 file, and back, without loss.

Both stream: memory does not grow with the trace. What is where in the file is written in
``docs/hdf5.md``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tracelab.errors import (
    DamagedError,
    MissingExtraError,
    StorageError,
    TraceError,
    UsageError,
)
from tracelab.trace.hdf5.input import Input
from tracelab.trace.hdf5.output import Output
from tracelab.trace.places.locations import Location, PathLike, resolve
from tracelab.trace.reading.reader import Trace
from tracelab.trace.reading.reader import open as open_trace
from tracelab.trace.reading.snapshot import is_trace, take
from tracelab.trace.writing.lock import acquire
from tracelab.trace.writing.room import idle_ranks

__all__ = ["export_hdf5", "import_hdf5"]

Progress = Callable[[str, int, int], None]

MIB = 2**20


def export_hdf5(
    trace: PathLike | Trace,
    file: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    groups: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a trace into one HDF5 file; of a live trace, what one commit holds.

    Every value is kept bit for bit, and every attribute. The file appears when it is complete.

    Parameters
    ----------
    trace : str, path, zarr Store or Trace
        What to export. An open trace is exported as it shows itself; `Trace.refresh` moves on.
    file : str or path
        The file to write, on a local file system.
    overwrite : bool
        Replace the HDF5 file that is there. Anything else there is left alone.
    groups : sequence of str, optional
        Only these groups, with the layer table. Default: all, with results and workers.
    progress : callable, optional
        Called with (array, MiB done, MiB in all).

    Raises
    ------
    UsageError
        If nothing can be written there, or the trace has no such group.
    StorageError
        If the file cannot be written; nothing is left of it.
    TraceError
        If the trace is unreadable or damaged, or holds a text that HDF5 cannot.
    MissingExtraError
        If h5py is not installed.

    Examples
    --------
    >>> import tracelab
    >>> tracelab.export_hdf5("runs/sgd.zarr", "sgd.h5")  # doctest: +SKIP
    """
    _check_h5py("exporting to HDF5")
    import h5py

    from tracelab.trace.hdf5.parts import parts
    from tracelab.trace.hdf5.writing import write_group, write_version

    target = _target(file, overwrite)
    opened = trace if isinstance(trace, Trace) else open_trace(trace)
    chosen = list(parts(opened, groups))
    advance = _counter(sum(part.nbytes for part in chosen), progress)
    with _output(target) as output:
        # Version 1.8, of 2008, is the first whose objects can have any number of attributes.
        with h5py.File(output, "w", libver=("v108", "v108")) as out:
            write_version(out)
            for part in chosen:
                place = out.require_group(part.path) if part.path else out
                for array, nbytes in write_group(place, part.path, part.attributes, part.arrays):
                    output.raise_error()
                    advance(array, nbytes)
        _check_unchanged(opened)


def import_hdf5(
    file: str | os.PathLike[str],
    path: PathLike,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Make a trace of an HDF5 file that `export_hdf5`, or anybody's script, has written.

    An exported trace comes back as it was: the same run, state, attributes, groups, rows, results.
    What a script can leave out is said in ``docs/hdf5.md``. The trace appears when it is complete.

    Parameters
    ----------
    file : str or path
        The file. It may come from anywhere: all of it is checked before any of it is stored.
    path : str, path or zarr Store
        Where the trace goes: a folder, a URL such as ``s3://bucket/run.zarr``, an open Zarr store.
    overwrite : bool
        Replace the trace at `path`, if there is one. Anything else there is left alone.
    progress : callable, optional
        Called with (array, MiB done, MiB in all).

    Raises
    ------
    UsageError
        If there is no such file, or no trace can be stored at `path`.
    TraceError
        If the file is no HDF5 file, damaged, or holds what no trace does.
    StorageError
        If the trace cannot be written; nothing is left of it.
    MissingExtraError
        If h5py is not installed.

    Examples
    --------
    >>> import tracelab
    >>> tracelab.import_hdf5("sgd.h5", "runs/sgd.zarr")  # doctest: +SKIP
    """
    _check_h5py("importing from HDF5")
    from tracelab.trace.hdf5.completing import complete
    from tracelab.trace.hdf5.reading import inspect
    from tracelab.trace.hdf5.restoring import nbytes, plan, store

    source = _path(file)
    location = resolve(path)
    location.sink()
    _check_room(location, overwrite)
    with _readable(source) as (root, opened):
        planned = plan(complete(inspect(root, opened)))
        advance = _counter(nbytes(planned), progress)
        with _staged(location) as staging:
            store(planned, staging, advance)


def _check_h5py(purpose: str) -> None:
    if find_spec("h5py") is None:
        raise MissingExtraError("h5py", "hdf5", purpose)


def _path(file: str | os.PathLike[str]) -> Path:
    text = os.fspath(file) if isinstance(file, str | os.PathLike) else file
    if not isinstance(text, str) or not text or "://" in text:
        raise UsageError(f"an HDF5 file is named by a local path, got {text!r}")
    return Path(text).expanduser()


def _target(file: str | os.PathLike[str], overwrite: bool) -> Path:
    import h5py

    path = _path(file)
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.path.lexists(path):
        return path
    if not path.is_file() or (path.stat().st_size and not h5py.is_hdf5(path)):
        raise UsageError(
            f"{path} exists and is not an HDF5 file, so it is left alone; choose another path"
        )
    if not overwrite:
        raise UsageError(
            f"there is a file {path}; choose another path or replace it: overwrite=True, --force"
        )
    # What a link names is replaced, not the link.
    return path.resolve()


def _counter(total: int, progress: Progress | None) -> Callable[[str, int], None]:
    done = 0

    def advance(array: str, nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(array, done // MIB, total // MIB)

    return advance


@contextmanager
def _readable(source: Path) -> Iterator[tuple[Any, Input]]:
    """Open an HDF5 file; whatever is wrong with what it holds is an error of the file."""
    import h5py

    if not source.is_file():
        raise UsageError(f"there is no file {source}")
    if not h5py.is_hdf5(source):
        raise TraceError(f"{source} is not an HDF5 file")
    try:
        # Chunks that a band of rows cuts are read once all the same.
        with Input(source) as file, h5py.File(file, "r", rdcc_nbytes=32 * MIB) as root:
            file.length_bytes = root.id.get_create_plist().get_sizes()[1]
            yield root, file
    except (StorageError, UsageError):
        raise
    except TraceError as error:
        raise type(error)(f"{source} cannot be imported: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DamagedError(
            f"{source} cannot be imported, it is damaged: {type(error).__name__}: {error}"
        ) from error


def _check_room(location: Location, overwrite: bool) -> None:
    if not location.exists():
        return
    if not is_trace(location):
        raise UsageError(
            f"{location.name} exists and is not a trace, so it is left alone; choose another path"
        )
    if not overwrite:
        raise UsageError(
            f"there is a trace at {location.name}; choose another path or replace it: "
            "overwrite=True, --force"
        )


@contextmanager
def _staged(location: Location) -> Iterator[Location]:
    """Give a place to store a trace that is moved to its location when it is complete."""
    folder = location.folder
    try:
        if folder is None:
            # There is no moving; the root document, stored last, makes it a trace.
            if location.exists():
                location.clear()
            with _removed_on_failure(location.clear):
                yield location
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
        with _removed_on_failure(lambda: shutil.rmtree(staging, ignore_errors=True)):
            yield resolve(staging)
            _swap(staging, location, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{location.name} cannot be written: {reason}; nothing is left of it: make room or "
            "choose another place, and import again"
        ) from error


@contextmanager
def _removed_on_failure(remove: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove()
        raise


def _swap(staging: Path, location: Location, folder: Path) -> None:
    """Move a trace into place; neither the one it replaces nor its ranks may have a writer."""
    if not folder.exists() or not any(folder.iterdir()):
        staging.replace(folder)
        return
    lock = acquire(location.name, folder)
    aside = staging.with_suffix(".replaced")
    try:
        with idle_ranks(location):
            folder.replace(aside)
            staging.replace(folder)
    finally:
        if lock is not None:
            lock.release()
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _output(target: Path) -> Iterator[Output]:
    """Give a file beside the target that is flushed and renamed into its place in the end."""
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with contextlib.closing(Output(unfinished)) as output:
            try:
                yield output
            finally:
                # Whatever the HDF5 library makes of it, this is why.
                output.raise_error()
            output.finish()
        unfinished.replace(target)
    except OSError as error:
        # What cannot be read of the trace is a TraceError already.
        raise StorageError(
            f"{target} cannot be written: {error.strerror or error}; nothing is left of it: make "
            "room or choose another place, and export again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _check_unchanged(trace: Trace) -> None:
    """Refuse what was read while the trace became another, or its rows were replaced."""
    now = take(trace._location).attrs
    if any(now.get(key) != trace.attrs.get(key) for key in ("run", "generation")):
        raise TraceError(
            f"{trace.location} was replaced or repaired while it was exported; export it again"
        )
