"""A file that the HDF5 library reads, without what makes it loop for ever.

Texts are in heaps, which HDF5 gives no checksum. A heap whose damaged list of texts has an entry of
no length keeps the library (2.0) in a loop that nothing interrupts, so it gets no such heap to see.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from tracelab.errors import UsageError

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

__all__ = ["Input"]

_MAGIC = b"GCOL"


class Input(io.RawIOBase):
    """An HDF5 file for ``h5py.File``.

    Parameters
    ----------
    path : Path
        Its name.

    Attributes
    ----------
    size : int
        Its bytes.
    length_bytes : int
        Bytes of a length in this file: 8, unless it says otherwise.

    Raises
    ------
    UsageError
        If somebody is writing it.
    OSError
        If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.length_bytes = 8
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        try:
            _share(self._file.fileno(), path)
        except BaseException:
            self._file.close()
            raise

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, and return where to."""
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, with zeros in place of a damaged heap."""
        view = memoryview(buffer).cast("B")
        found = 0
        while found < len(view) and (taken := self._file.readinto(view[found:])):
            found += taken
        if view[:4] == _MAGIC and not self._ends(view[:found]):
            view[:found] = bytes(found)
        return found

    def content(self, start: int, size: int) -> bytes:
        """Return bytes from a place on, fewer where the file ends."""
        self.seek(start)
        buffer = bytearray(max(0, min(size, self.size - start)))
        return bytes(buffer[: self.readinto(buffer)])

    def _ends(self, heap: memoryview) -> bool:
        """Return whether going from object to object through a heap leads to its end."""
        length = self.length_bytes
        header = 8 * -(-(8 + length) // 8)
        size = int.from_bytes(heap[8 : 8 + length], "little")
        if size > len(heap):
            # This is its beginning; the library reads it again, whole.
            return True
        place = header
        while size - place >= header:
            number = int.from_bytes(heap[place : place + 2], "little")
            taken = int.from_bytes(heap[place + 8 : place + 8 + length], "little")
            if number:
                taken = header + 8 * -(-taken // 8)
            elif taken < header:
                # Free space, the object 0, includes this header.
                return False
            place += taken
        return place <= size

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            super().close()
            self._file.close()


def _share(descriptor: int, path: Path) -> None:
    """Refuse a file that the HDF5 library of another process is writing."""
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path} is being written; import it when it is closed") from None
    except OSError:
        # Some file systems have no locks.
        return
