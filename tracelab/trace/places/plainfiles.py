"""Opens files below a folder, plain ones only: no link is followed, no pipe waited for."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

__all__ = ["SUPPORTED", "File", "Folder", "UnusableError"]

SUPPORTED = hasattr(os, "preadv") and os.open in os.supports_dir_fd
"""Whether the operating system has the calls."""

# The machine's shortage, not the trace's damage.
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_LINK = "is a symbolic link, which a trace does not hold; put a copy of the file in its place"
_FLAGS = os.O_RDONLY
for _name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
    _FLAGS |= getattr(os, _name, 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0)


class UnusableError(Exception):
    """A file that cannot be read, and why: the words follow its name."""


class Folder:
    """A folder below another, open: what is replaced on the way to it does not matter any more.

    Parameters
    ----------
    root : str
        A folder; it may be a link.
    path : str
        Names of folders below it, joined by ``/``.

    Raises
    ------
    UnusableError
        If it cannot be opened.
    """

    def __init__(self, root: str, path: str) -> None:
        self._descriptor = -1
        try:
            self._descriptor = os.open(root, os.O_RDONLY | _FOLDER | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise _unusable(error) from None
        try:
            for name in path.split("/"):
                below = _open(name, _FLAGS | _FOLDER, self._descriptor)
                os.close(self._descriptor)
                self._descriptor = below
        except BaseException:
            self.close()
            raise

    def open(self, key: str) -> File:
        """Return an open file of this folder, or of one below it.

        Raises
        ------
        UnusableError
            If it is not there, or cannot be opened, or is no plain file.
        """
        *parents, name = key.split("/")
        opened: list[int] = []
        try:
            for parent in parents:
                above = opened[-1] if opened else self._descriptor
                opened.append(_open(parent, _FLAGS | _FOLDER, above))
            return File(_open(name, _FLAGS, opened[-1] if opened else self._descriptor))
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def close(self) -> None:
        """Close it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class File:
    """An open plain file.

    Parameters
    ----------
    descriptor : int
        It is closed with this.

    Attributes
    ----------
    size : int
        Bytes of the file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        found = os.fstat(descriptor)
        self.size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise UnusableError("is no plain file")

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> File:
        """Open a file; links on the way to it are followed, it may be none itself."""
        return cls(_open(os.fspath(path), _FLAGS, None))

    def read_into(self, buffers: Sequence[Any], offset: int) -> None:
        """Fill contiguous buffers from an offset on; fewer than ``IOV_MAX``.

        Raises
        ------
        UnusableError
            If the file ends before, or the disk cannot read it.
        """
        try:
            got = _read_at(self._descriptor, buffers, offset)
            position = 0
            # Seldom more than the one call: a signal, or more than 2 GiB.
            for buffer in buffers:
                size = memoryview(buffer).nbytes
                if got < position + size:
                    flat = memoryview(buffer).cast("B")
                    done = max(0, got - position)
                    while done < size:
                        more = os.preadv(self._descriptor, [flat[done:]], offset + position + done)
                        if not more:
                            raise UnusableError("is cut off")
                        done += more
                position += size
        except OSError as error:
            raise _unusable(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)


def _read_at(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
    """Fill buffers as far as one call does it; return the number of bytes."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, buffers, offset)
    # Windows: nobody else has this descriptor.
    os.lseek(descriptor, offset, os.SEEK_SET)
    first = memoryview(buffers[0]).cast("B")
    content = os.read(descriptor, len(first))
    first[: len(content)] = content
    return len(content)


def _open(name: str, flags: int, above: int | None) -> int:
    try:
        return os.open(name, flags) if above is None else os.open(name, flags, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) or _is_link(name, above):
            raise UnusableError(_LINK) from None
        raise _unusable(error) from None


def _is_link(name: str, above: int | None) -> bool:
    try:
        found = os.lstat(name) if above is None else os.lstat(name, dir_fd=above)
        return stat.S_ISLNK(found.st_mode)
    except OSError:
        return False


def _unusable(error: OSError) -> Exception:
    if error.errno in _SHORTAGE:
        return error
    if error.errno == errno.ENOENT:
        return UnusableError("is missing")
    return UnusableError(f"cannot be read ({error.strerror})")
