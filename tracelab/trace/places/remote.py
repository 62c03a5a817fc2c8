"""Traces behind a URL: objects of a file system that fsspec knows, ``s3://`` first of all.

Credentials come from where the client library looks for them and are never seen here. One request
an operation: no listing is kept (a trace grows), and no object is asked about before it is read.
"""

# ruff: noqa: D102 - zarr's Store documents its methods
from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
)
from zarr.storage import FsspecStore

from tracelab.errors import UsageError
from tracelab.trace.places.remoteclients import (
    CONNECTIONS,
    READ_ONLY,
    S3,
    check_url,
    file_system,
    remember,
)
from tracelab.trace.places.remotefaults import (
    DeniedError,
    RemoteError,
    explained,
    redacted,
    transient,
)

if TYPE_CHECKING:
    from fsspec.asyn import AsyncFileSystem
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["RemoteStore"]

T = TypeVar("T")

# The client library repeats a request a few times by itself (for S3: AWS_MAX_ATTEMPTS). After
# that a reader gives up soon, a recorder waits for a network to come back.
READ_PATIENCE = 5.0
WRITE_PATIENCE = 60.0
LONGEST_PAUSE = 5.0


class RemoteStore(FsspecStore):
    """A Zarr store at a URL.

    Unlike its base it asks once per read, keeps no listings, removes whole prefixes in a few
    requests, repeats what failed in passing, says what is wrong in a sentence (`RemoteError`), and
    works in a forked process.

    Parameters
    ----------
    url : str
        Of the folder, checked by `check_url`.
    read_only : bool, optional
        Default: only where the protocol cannot write.

    Raises
    ------
    UsageError
        If the URL cannot be used.
    MissingExtraError
        If the client library is not installed.
    """

    def __init__(self, url: str, read_only: bool | None = None) -> None:
        check_url(url)
        self.url = url
        self.scheme = urlsplit(url).scheme
        fs, path = file_system(url, self.scheme)
        self._connected = (os.getpid(), fs)
        self._given_up = False
        self._knows_suffixes = True
        only = self.scheme in READ_ONLY
        super().__init__(fs, read_only=only if read_only is None else read_only, path=path)

    @property
    def fs(self) -> AsyncFileSystem:
        """The file system; another one after a fork, because connections cannot be shared."""
        pid, fs = self._connected
        if pid != os.getpid():
            fs, _ = file_system(self.url, self.scheme)
            self._connected = (os.getpid(), fs)
        return fs

    @fs.setter
    def fs(self, fs: AsyncFileSystem) -> None:
        self._connected = (os.getpid(), fs)

    @property
    def shared(self) -> bool:
        """Whether other processes see the same objects."""
        return self.scheme != "memory"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStore, (self.url, self.read_only)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RemoteStore)
            and self.url == other.url
            and self.read_only == other.read_only
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"RemoteStore({self.url!r})"

    def with_read_only(self, read_only: bool = False) -> RemoteStore:
        return RemoteStore(self.url, read_only)

    def _path(self, key: str) -> str:
        return f"{self.path.rstrip('/')}/{key}".rstrip("/")

    async def _try(self, call: Callable[[], Awaitable[T]], patience: float = READ_PATIENCE) -> T:
        remember(asyncio.get_running_loop())
        deadline = time.monotonic() + patience
        for attempt in itertools.count():
            try:
                return await call()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError, RemoteError):
                raise
            except Exception as error:
                pause = min(0.1 * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1)
                if not transient(error) or time.monotonic() + pause > deadline:
                    # Not `from error`: texts of client libraries may hold what must not be shown.
                    raise explained(self.url, error) from None
                await asyncio.sleep(pause)
        raise AssertionError

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        start, end = _limits(byte_range)
        path = self._path(key)
        try:
            if start < 0:
                content = await self._last(path, -start)
            else:
                content = await self._try(lambda: self._cat(path, start, end))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        return prototype.buffer.from_bytes(content)

    async def _last(self, path: str, count: int) -> bytes:
        """Return the last bytes of an object, also from a server that cannot be asked for them."""
        if self._knows_suffixes:
            content = await self._try(lambda: self._cat(path, -count, None))
            if len(content) <= count:
                return content
            self._knows_suffixes = False
        size = int((await self._try(lambda: self.fs._info(path)))["size"])
        return await self._try(lambda: self._cat(path, max(0, size - count), size))

    async def _cat(self, path: str, start: int, end: int | None) -> bytes:
        if self.scheme in READ_ONLY:
            from tracelab.trace.places.webreads import fetch

            return await fetch(self.fs, path, start, end)
        try:
            # Without a range, s3fs asks for the size first.
            content: bytes = await self.fs._cat_file(path, start=start, end=end)
        except OSError as error:
            # What S3 says of a range that begins behind the end, as in any empty object.
            if "not satisfiable" in str(error):
                return b""
            raise
        return content

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        return list(
            await asyncio.gather(*(self.get(key, prototype, limits) for key, limits in key_ranges))
        )

    async def exists(self, key: str) -> bool:
        path = self._path(key)
        try:
            # A HEAD that finds nothing is followed by a listing in s3fs.
            await self._try(lambda: self._cat(path, 0, 1))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False
        return True

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        self._check_writable()
        content = value.to_bytes()
        path = self._path(key)
        patience = 0.0 if self._given_up else WRITE_PATIENCE
        try:
            await self._try(lambda: self.fs._pipe_file(path, content), patience)
        except (FileNotFoundError, RemoteError) as error:
            # Whoever waited in vain once, a writer that ends for instance, does not wait again.
            self._given_up = True
            if isinstance(error, RemoteError):
                raise
            raise RemoteError(f"{self.url}: {redacted(str(error))}") from None
        self._given_up = False

    async def delete(self, key: str) -> None:
        self._check_writable()
        await self._remove([self._path(key)])

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        await self._remove(list(await self._sizes(prefix)))

    async def clear(self) -> None:
        await self.delete_dir("")

    async def _remove(self, paths: list[str]) -> None:
        if self.scheme in S3:
            for start in range(0, len(paths), 1000):
                await self._remove_from_s3(paths[start : start + 1000])
            return
        limit = asyncio.Semaphore(CONNECTIONS)

        async def remove(path: str) -> None:
            async with limit:
                with contextlib.suppress(FileNotFoundError):
                    await self._try(lambda: self.fs._rm_file(path))

        await asyncio.gather(*map(remove, paths))

    async def _remove_from_s3(self, paths: list[str]) -> None:
        """Remove up to a thousand objects; s3fs does not tell which ones the server refused."""
        fs: Any = self.fs
        bucket = fs.split_path(paths[0])[0]
        objects = [{"Key": fs.split_path(path)[1]} for path in paths]
        asked = {"Bucket": bucket, "Delete": {"Objects": objects, "Quiet": True}}
        answer = await self._try(lambda: fs._call_s3("delete_objects", **asked))
        for refused in answer.get("Errors", ()):
            raise DeniedError(
                f"{self.url}: {refused.get('Key')!r} could not be removed "
                f"({refused.get('Code')}: {refused.get('Message')}); check the permission to delete"
            )

    async def is_empty(self, prefix: str) -> bool:
        path = self._path(prefix)
        if await self.exists(f"{prefix.rstrip('/')}/zarr.json".lstrip("/")):
            return False
        try:
            if self.scheme in S3:
                found = await self._try(lambda: self.fs._lsdir(path, max_items=1, delimiter=""))
            else:
                found = await self._try(lambda: self.fs._ls(path, detail=False))
        except FileNotFoundError:
            if self.scheme in S3:
                bucket = self.path.partition("/")[0]
                raise UsageError(
                    f"there is no bucket {bucket!r} for {self.url}; create it, or check the URL "
                    "and the endpoint"
                ) from None
            return True
        except NotADirectoryError:
            return False
        return not found

    async def _sizes(self, prefix: str) -> dict[str, int]:
        """Return the objects below a folder and their sizes; listed in pages of a thousand."""
        path = self._path(prefix)
        fs: Any = self.fs
        try:
            if self.scheme in S3:
                # What finds nothing here is not looked for in two more ways.
                found = await self._try(lambda: fs._lsdir(path, delimiter=""))
            else:
                by_name = await self._try(lambda: fs._find(path, detail=True, withdirs=False))
                found = list(by_name.values())
        except FileNotFoundError:
            return {}
        return {
            str(info["name"]): int(info.get("size") or 0)
            for info in found
            if str(info["name"]).startswith(f"{path}/")
        }

    async def getsize_prefix(self, prefix: str) -> int:
        return sum((await self._sizes(prefix)).values())

    async def getsize(self, key: str) -> int:
        path = self._path(key)
        info = await self._try(lambda: self.fs._info(path))
        return int(info["size"])

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in await self._sizes(prefix):
            yield name.removeprefix(f"{self.path.rstrip('/')}/")

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        path = self._path(prefix)
        fs: Any = self.fs
        try:
            if self.scheme in S3:
                entries = await self._try(lambda: fs._lsdir(path))
                found = [entry["name"] for entry in entries]
            else:
                found = await self._try(lambda: fs._ls(path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in found:
            inside = str(name).rstrip("/").removeprefix(f"{path}/")
            # A folder's own marker object is listed in it.
            if inside and inside != path:
                yield inside


def _limits(byte_range: ByteRequest | None) -> tuple[int, int | None]:
    if byte_range is None:
        return 0, None
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, None
    if isinstance(byte_range, SuffixByteRequest):
        return -byte_range.suffix, None
    raise TypeError(f"unknown byte range {byte_range!r}")
