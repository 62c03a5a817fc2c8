"""Objects of a location as things that can be read piece by piece, wherever they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from tracelab.trace.places.locations import Location
from tracelab.trace.places.plainfiles import SUPPORTED, File, Folder, UnusableError
from tracelab.trace.places.remotefaults import DeniedError, RemoteError

__all__ = ["Bytes", "ForbiddenError", "Source", "UnreadableError", "names", "opened"]

Bytes = npt.NDArray[np.uint8]

# An object up to this size comes in one request, and so in one version.
_WHOLE = 128 * 2**20


class UnreadableError(Exception):
    """An object is there and cannot be read: a sentence about "it"."""


class ForbiddenError(UnreadableError):
    """An object may be all right, but this user may not read it."""


class Source(Protocol):
    """An object, of one version, as far as its location can promise that."""

    size: int

    def read(self, offset: int, into: Bytes) -> None:
        """Fill an array with the bytes from `offset` on.

        Raises
        ------
        UnreadableError
            If they cannot be read.
        """


class _File:
    def __init__(self, file: File) -> None:
        self.size = file.size
        self._file = file

    def read(self, offset: int, into: Bytes) -> None:
        try:
            self._file.read_into([into], offset)
        except UnusableError as error:
            raise UnreadableError(f"it {error}") from None


class _Memory:
    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = np.frombuffer(content, np.uint8)

    def read(self, offset: int, into: Bytes) -> None:
        into[:] = self._content[offset : offset + into.size]


class _Ranges:
    def __init__(self, store: Store, key: str, size: int) -> None:
        self.size = size
        self._store = store
        self._key = key

    def read(self, offset: int, into: Bytes) -> None:
        content = _get(self._store, self._key, RangeByteRequest(offset, offset + into.size))
        if content is None or len(content) != into.size:
            raise UnreadableError("it is cut off")
        into[:] = np.frombuffer(content, np.uint8)


def _get(store: Store, key: str, part: RangeByteRequest | None) -> bytes | None:
    try:
        found = sync(store.get(key, default_buffer_prototype(), part))
    except RemoteError as error:
        raise _remote(error) from error
    except Exception as error:
        # Every store has errors of its own.
        raise UnreadableError(f"it cannot be read: {type(error).__name__}: {error}") from error
    return None if found is None else found.to_bytes()


def _remote(error: RemoteError) -> Exception:
    """Return the error of an object; that of a network says nothing about the object."""
    return (
        ForbiddenError(f"it cannot be read: {error}") if isinstance(error, DeniedError) else error
    )


@contextmanager
def opened(location: Location, key: str, *, follow: bool = False) -> Iterator[Source | None]:
    """Open an object for reading; None if it is not there.

    Parameters
    ----------
    location : Location
        A trace's location.
    key : str
        Path of the object inside.
    follow : bool
        Whether to read what a symbolic link in its place names.

    Raises
    ------
    UnreadableError
        If it is there and cannot be read: no permission, a directory, a link, a failing disk.
    """
    if location.folder is None:
        yield _object(location.store, key)
        return
    file = _file(location.folder, key, follow=follow)
    if file is None:
        yield None
        return
    with file:
        yield _File(file)


def _file(folder: Path, key: str, *, follow: bool) -> File | None:
    try:
        if follow:
            # Not Path.resolve, which knows no answer to a cycle.
            return File.at(os.path.realpath(folder / key))
        if not SUPPORTED:
            return File.at(folder / key)
        parent, _, name = key.rpartition("/")
        with Folder(str(folder), parent or ".") as above:
            return above.open(name)
    except UnusableError as error:
        if isinstance(error.__context__, FileNotFoundError):
            return None
        if isinstance(error.__context__, PermissionError):
            raise ForbiddenError(f"it {error}") from None
        raise UnreadableError(f"it {error}") from None


def _object(store: Store, key: str) -> Source | None:
    # Seldom more than this one request.
    content = _get(store, key, RangeByteRequest(0, _WHOLE + 1))
    if content is None or len(content) <= _WHOLE:
        return None if content is None else _Memory(content)
    del content
    try:
        size = sync(store.getsize(key))
    except (FileNotFoundError, KeyError):
        return None
    except RemoteError as error:
        raise _remote(error) from error
    except Exception as error:
        raise UnreadableError(f"it cannot be read: {type(error).__name__}: {error}") from error
    return _Ranges(store, key, size)


def names(location: Location, prefix: str) -> list[str]:
    """Return the keys of all objects below a group or an array, relative to it, sorted."""
    if location.folder is None:
        return sorted(sync(_listed(location.store, prefix)))
    top = location.folder / prefix
    if top.is_symlink():
        return []
    found: list[str] = []
    for parent, folders, files in os.walk(top):
        inside = os.path.relpath(parent, top).replace(os.sep, "/")
        start = "" if inside == "." else f"{inside}/"
        # A link to a folder is listed as what it is, not entered.
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [f"{start}{name}" for name in (*files, *links)]
    return sorted(found)


async def _listed(store: Store, prefix: str) -> list[str]:
    start = f"{prefix}/" if prefix else ""
    return [key.removeprefix(start) async for key in store.list_prefix(start)]
