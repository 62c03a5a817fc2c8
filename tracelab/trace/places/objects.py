"""Small objects of a location that several processes write and remove at the same time.

On a folder an object appears by a rename, and names of temporary files are never shared. Reading
follows no link inside the store, opens nothing but regular files, and is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import BaseZarrError

from tracelab.errors import TraceError
from tracelab.trace.places import files
from tracelab.trace.places.files import Part
from tracelab.trace.places.locations import Location

__all__ = ["drop", "names", "put", "put_all", "read", "read_all", "remove"]

MAX_NAMES = 100_000
_PUTS = 16
# What a store raises at an object that is there and is not what it should be; what it raises when
# it cannot be reached is no such thing.
_GARBLED = (ValueError, EOFError, BaseZarrError, zipfile.BadZipFile, zlib.error)


def names(location: Location, prefix: str) -> list[str]:
    """Return the names of what lies directly below a prefix, sorted; links are left out.

    Raises
    ------
    TraceError
        If there are more than any store of ours has.
    OSError
        If it cannot be listed.
    """
    if location.folder is not None:
        try:
            with os.scandir(location.folder / prefix) as entries:
                found = [
                    entry.name for entry in islice(entries, MAX_NAMES + 1) if not entry.is_symlink()
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
    else:
        _forget_listings(location.store)
        found = sync(_collect(location.store.list_dir(prefix)))
    if len(found) > MAX_NAMES:
        raise TraceError(f"{location.name} has over {MAX_NAMES:,} entries below {prefix!r}")
    return sorted(found)


def read(location: Location, key: str, limit: int) -> bytes | None:
    """Return an object's bytes, or None if there is none of at most `limit` bytes."""
    return read_all(location, [key], limit)[0]


def read_all(location: Location, keys: Sequence[str], limit: int) -> list[bytes | None]:
    """Return the bytes of several objects, read at the same time where that is faster.

    What is not there, is larger than `limit`, or cannot be read is None.

    Raises
    ------
    OSError
        If the store cannot be reached.
    """
    if location.folder is not None:
        return [_read_file(location.folder / key, limit) for key in keys]
    return sync(_get_all(location.store, keys, limit))


def put(location: Location, key: str, parts: Sequence[Part]) -> None:
    """Store an object; whoever reads at the same time sees all of it or what was before.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    if location.folder is None:
        content = default_buffer_prototype().buffer.from_bytes(b"".join(parts))
        sync(location.store.set(key, content))
        return
    files.put(location.folder / key, parts)


def put_all(location: Location, objects: Iterable[tuple[str, Sequence[Part]]]) -> None:
    """Store several objects, at the same time where most of a put is a round trip.

    Raises
    ------
    OSError
        If one cannot be written.
    """
    if location.folder is not None:
        for key, parts in objects:
            put(location, key, parts)
        return
    waiting = iter(objects)
    while batch := list(islice(waiting, _PUTS)):
        sync(_set_all(location.store, batch))


def drop(location: Location, key: str) -> None:
    """Remove an object, if it is there and can be."""
    with contextlib.suppress(OSError, BaseZarrError):
        if location.folder is not None:
            (location.folder / key).unlink(missing_ok=True)
        else:
            sync(location.store.delete(key))


def remove(location: Location, prefix: str) -> None:
    """Remove all objects below a prefix that can be, its ``zarr.json`` first."""
    drop(location, f"{prefix}/zarr.json")
    if location.folder is not None:
        shutil.rmtree(location.folder / prefix, ignore_errors=True)
        return
    _forget_listings(location.store)
    with contextlib.suppress(OSError, BaseZarrError):
        sync(location.store.delete_dir(prefix))


def _read_file(path: Path, limit: int) -> bytes | None:
    # Without O_NONBLOCK a named pipe would wait for a writer.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    except OSError:
        return None
    finally:
        os.close(descriptor)


async def _get_all(store: Store, keys: Sequence[str], limit: int) -> list[bytes | None]:
    async def get(key: str) -> bytes | None:
        wanted = RangeByteRequest(0, limit + 1)
        try:
            found = await store.get(key, default_buffer_prototype(), wanted)
        except _GARBLED:
            return None
        content = None if found is None else found.to_bytes()
        return None if content is None or len(content) > limit else content

    return list(await asyncio.gather(*map(get, keys)))


async def _set_all(store: Store, batch: Sequence[tuple[str, Sequence[Part]]]) -> None:
    buffer = default_buffer_prototype().buffer
    puts = (store.set(key, buffer.from_bytes(b"".join(parts))) for key, parts in batch)
    await asyncio.gather(*puts)


async def _collect(entries: AsyncIterator[str]) -> list[str]:
    found = []
    async for name in entries:
        found.append(name.rstrip("/").rpartition("/")[2])
        if len(found) > MAX_NAMES:
            break
    return found


def _forget_listings(store: Any) -> None:
    # fsspec remembers listings of a process, and another process may have written since.
    store = getattr(store, "inner", store)
    forget = getattr(getattr(store, "fs", None), "invalidate_cache", None)
    if forget is not None:
        forget()
