"""Where a trace lives: a folder, a ``.zip``, an open Zarr store, or a URL."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, ZipStore

from tracelab.errors import TraceError, UsageError
from tracelab.trace.places import files
from tracelab.trace.places.files import Part
from tracelab.trace.places.plainfiles import File, UnusableError
from tracelab.trace.places.prefixed import Prefixed
from tracelab.trace.places.remote import RemoteStore
from tracelab.trace.schema import NAME

__all__ = ["Location", "PathLike", "Sink", "resolve"]

PathLike: TypeAlias = str | os.PathLike[str] | Store

# A member of a .zip is not read if it unpacks to more than that and more than so many times.
BOMB_BYTES = 2**26
BOMB_RATIO = 200


class Sink(Protocol):
    """Where the writer puts objects, each atomically; from several threads, if it likes."""

    @property
    def width(self) -> int:
        """How many objects to put at a time."""

    def put(self, key: str, parts: Sequence[Part]) -> None:
        """Store an object, replacing what was there in one instant."""


@dataclass(frozen=True, slots=True)
class Location:
    """A place for a trace.

    Parameters
    ----------
    name : str
        What users call it, in messages and when it is opened again elsewhere.
    store : zarr.abc.store.Store
        What reads it.
    folder : Path or None
        Its folder, if it is one on a file system.
    reopen : str or Store
        What `resolve` takes to arrive here again, also in another process.
    """

    name: str
    store: Store
    folder: Path | None
    reopen: str | Store

    @property
    def shareable(self) -> bool:
        """Whether another process can open it."""
        store = self.store.inner if isinstance(self.store, Prefixed) else self.store
        return (
            store.shared if isinstance(store, RemoteStore) else not isinstance(store, MemoryStore)
        )

    def at(self, prefix: str) -> Location:
        """Return the location of a sub-folder, such as ``workers/rank-003``.

        Raises
        ------
        UsageError
            If it is no plain relative path.
        """
        if not all(NAME.fullmatch(segment) for segment in prefix.split("/")):
            raise UsageError(f"{prefix!r} is no sub-folder of a trace: give names with '/' between")
        name = f"{self.name.rstrip('/')}/{prefix}"
        if isinstance(self.reopen, str):
            return replace(resolve(f"{self.reopen.rstrip('/')}/{prefix}"), name=name)
        if self.folder is not None:
            inside = LocalStore(self.folder / prefix, read_only=self.store.read_only)
            return Location(name, inside, inside.root, inside)
        store = self.store
        part = store.at(prefix) if isinstance(store, Prefixed) else Prefixed(store, prefix)
        return Location(name, part, None, part)

    def exists(self) -> bool:
        """Return whether anything is there."""
        if self.folder is not None:
            return self.folder.is_file() or (self.folder.is_dir() and any(self.folder.iterdir()))
        return not sync(self.store.is_empty(""))

    def read(self, key: str, limit: int) -> bytes | None:
        """Return an object's bytes, `limit` of them at most, or None if it is not there.

        Raises
        ------
        TraceError
            If it is no plain file, or cannot be read.
        """
        if self.folder is not None:
            # A zarr store would create the folder it looks into.
            path = self.folder / key
            if not os.path.lexists(path):
                return None
            try:
                with File.at(path) as file:
                    content = bytearray(min(limit, file.size))
                    file.read_into([content], 0)
                    return bytes(content)
            except UnusableError as flaw:
                raise TraceError(f"{self.name} cannot be read: {key} {flaw}") from None
        part = RangeByteRequest(0, limit)
        found = sync(self.store.get(key, default_buffer_prototype(), part))
        return None if found is None else found.to_bytes()

    def has(self, key: str) -> bool:
        """Return whether an object is there."""
        if self.folder is not None:
            return (self.folder / key).is_file()
        return bool(sync(self.store.exists(key)))

    def stored_bytes(self, prefix: str) -> int:
        """Return the bytes of all objects below a group."""
        if self.folder is None:
            return int(sync(self.store.getsize_prefix(prefix)))
        return sum(
            _size(os.path.join(parent, name))
            for parent, _, names in os.walk(self.folder / prefix)
            for name in names
        )

    def clear(self, keep: Path | None = None) -> None:
        """Remove everything, the root document first: a half-removed trace is no trace.

        Parameters
        ----------
        keep : Path, optional
            A file that stays, with the folders it is in.
        """
        if self.folder is None:
            sync(self.store.delete("zarr.json"))
            sync(self.store.clear())
            return
        (self.folder / "zarr.json").unlink(missing_ok=True)
        kept = {keep, *(() if keep is None else keep.parents)}
        for parent, folders, names in os.walk(self.folder, topdown=False):
            for path in (Path(parent, name) for name in names + folders):
                if path in kept:
                    continue
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink()

    def sink(self) -> Sink:
        """Return what the writer stores through.

        Raises
        ------
        UsageError
            If the location is read-only.
        """
        if self.store.read_only:
            raise UsageError(
                f"{self.name} is read-only, so no trace can be recorded there; give a folder"
            )
        return _Folder(self.folder) if self.folder is not None else _Objects(self.store)


class _Folder:
    """Objects as files; several threads flush faster than one."""

    width = 4

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, parts: Sequence[Part]) -> None:
        files.put(self._root / key, parts)


class _Objects:
    """Objects of a Zarr store; most of the time of a put is a round trip."""

    width = 16

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, key: str, parts: Sequence[Part]) -> None:
        content = default_buffer_prototype().buffer.from_bytes(b"".join(parts))
        sync(self._store.set(key, content))


def resolve(path: PathLike) -> Location:
    """Return the location a path, URL or Zarr store names; a folder need not be there yet.

    Raises
    ------
    UsageError
        If it is none of these, or a ``.zip`` that is not there.
    TraceError
        If a ``.zip`` cannot be read as one.
    MissingExtraError
        If reading the URL needs a package that is not installed.
    """
    if isinstance(path, LocalStore):
        return Location(str(path.root), path, path.root, path)
    if isinstance(path, Store):
        # As zarr-python does with a store it is handed: a ZipStore starts closed.
        sync(path._ensure_open())
        return Location(str(path), path, None, path)
    if not isinstance(path, str | os.PathLike):
        raise UsageError(
            f"a trace is named by a path, a URL or a Zarr store, got {type(path).__name__}"
        )
    text = os.fspath(path)
    if not isinstance(text, str) or not text:
        raise UsageError(f"a trace is named by a path, a URL or a Zarr store, got {text!r}")
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme != "file":
            store = RemoteStore(text)
            return Location(text, store, None, text)
        text = unquote(parts.path)
    folder = Path(text).expanduser().resolve()
    if folder.suffix == ".zip" and not folder.is_dir():
        return Location(text, _archive(folder), None, str(folder))
    for parent in folder.parents:
        if parent.suffix == ".zip" and parent.is_file():
            prefix = folder.relative_to(parent).as_posix()
            part = Prefixed(_archive(parent), prefix, owner=True)
            return Location(text, part, None, str(folder))
    return Location(text, LocalStore(folder), folder, str(folder))


def _archive(path: Path) -> Store:
    if not path.exists():
        raise UsageError(
            f"there is no file {path}; a .zip can be read only, record to a folder and zip it"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
        return sync(ZipStore.open(path, mode="r"))
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise TraceError(f"{path} cannot be read as a zip file: {error}") from None


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    for member in members:
        if member.file_size > max(BOMB_BYTES, BOMB_RATIO * member.compress_size):
            raise TraceError(
                f"{path} is refused: {member.filename[:200]!r} would unpack {member.compress_size} "
                f"bytes to {member.file_size}; zip the trace without compression (zip -0)"
            )


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        # Renamed meanwhile: the trace is being recorded.
        return 0
