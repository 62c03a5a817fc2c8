"""One writer a trace: a lock on a folder that the kernel holds while its process lives.

A POSIX record lock (``lockf``) and no ``flock``: whatever ends the process releases it, and a
forked child, such as a worker of a ``DataLoader``, does not keep it. Such a lock belongs to the
process and goes with the first descriptor of the file that it closes; so a process opens the file
of a lock that it holds no second time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracelab.errors import UsageError

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK_FILE", "Lock", "acquire"]

logger = logging.getLogger(__name__)

LOCK_FILE = "layers/layer/lock"
"""Inside an array's folder, which no Zarr reader lists: none meets a file that it does not know."""

_TAKEN = frozenset({errno.EACCES, errno.EAGAIN})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL})


@dataclass(eq=False, slots=True)
class Lock:
    """The right of this process to write a trace; made by `acquire`.

    Parameters
    ----------
    name : str
        What the user calls the trace.
    path : Path
        The lock's file.
    descriptor : int
        That file, open.
    clearing : bool
        Whether the one who held it before died while it removed an old trace.
    """

    name: str
    path: Path
    descriptor: int
    clearing: bool

    def describe(self, *, clearing: bool = False) -> None:
        """Say in the lock's file who holds it, and whether an old trace is being removed."""
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "clearing": clearing}
        os.pwrite(self.descriptor, json.dumps(holder).encode().ljust(_CONTENT), 0)

    def release(self) -> None:
        """Let others write; doing so again does nothing."""
        if _held.pop(id(self), None) is not None:
            # Removed while it is held: who opened it before sees that it is no longer in place.
            with contextlib.suppress(OSError):
                if _same(self.path, self.descriptor):
                    self.path.unlink()
            os.close(self.descriptor)


_CONTENT = 512
_held: dict[int, Lock] = {}


def acquire(name: str, folder: Path) -> Lock | None:
    """Return the lock of a folder, or None where the file system has none.

    Parameters
    ----------
    name : str
        What the user calls the trace.
    folder : Path
        Its folder; made if it is not there.

    Raises
    ------
    UsageError
        If another writer holds it.
    OSError
        If the folder cannot be written.
    """
    if fcntl is None:
        return None
    path = folder / LOCK_FILE
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_own(name, path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            in_place = _same(path, descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _TAKEN:
                raise UsageError(_refusal(name, path)) from None
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning(
                "%s is on a file system without locks: that no other process writes it is only "
                "noticed at its next commit",
                name,
            )
            return None
        if in_place:
            lock = Lock(name, path, descriptor, bool(_holder(descriptor).get("clearing")))
            _held[id(lock)] = lock
            lock.describe()
            return lock
        # Its holder released, and removed, it between the two calls.
        os.close(descriptor)


def _refuse_own(name: str, path: Path) -> None:
    try:
        there = path.stat()
    except FileNotFoundError:
        return
    for lock in _held.values():
        own = os.fstat(lock.descriptor)
        if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino):
            raise UsageError(
                f"{name} is being recorded by another writer of this process; close that one "
                "first, or choose another path"
            )


def _same(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def _refusal(name: str, path: Path) -> str:
    holder = {}
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        holder = _holder(descriptor)
        os.close(descriptor)
    who = "another process"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')}"
    return (
        f"{name} is being recorded by {who}; wait until it has finished or end it, "
        "or choose another path"
    )


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(descriptor, _CONTENT, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _forget() -> None:
    """Forget, in a forked child, what is locked by its parent."""
    for lock in _held.values():
        os.close(lock.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
