"""A file that the HDF5 library writes to and that never fails.

After a write that failed, on a full disk above all, the library crashes the process when it closes
the file. So it is told that all is well, nothing more is written, and who asks for the error gets
it.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

__all__ = ["Output"]


class Output(io.RawIOBase):
    """A new file for ``h5py.File``.

    Parameters
    ----------
    path : Path
        Its name; nothing is there yet.

    Attributes
    ----------
    error : OSError or None
        The first that occurred; from then on nothing was written.

    Raises
    ------
    OSError
        If it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._file = path.open("xb+", buffering=0)
        self._place = 0
        self._size = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, and return where to."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, with zeros where there is nothing."""
        view = memoryview(buffer).cast("B")
        found = 0
        if self.error is None:
            try:
                self._file.seek(self._place)
                found = self._file.readinto(view)
            except OSError as error:
                self.error = error
        view[found:] = bytes(len(view) - found)
        self._place += len(view)
        return len(view)

    def write(self, content: Any) -> int:
        """Write bytes, or keep the error; return how many there are."""
        view = memoryview(content).cast("B")
        end = self._place + len(view)
        if self.error is None:
            try:
                self._file.seek(self._place)
                while view:
                    view = view[self._file.write(view) :]
            except OSError as error:
                self.error = error
        written = end - self._place
        self._place = end
        self._size = max(self._size, end)
        return written

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, or keep the error."""
        self._size = self._place if size is None else size
        if self.error is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self.error = error
        return self._size

    def raise_error(self) -> None:
        """Raise the error that occurred, if one did."""
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        """Bring everything to the disk.

        Raises
        ------
        OSError
            If that fails, or something before did.
        """
        self.raise_error()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            super().close()
            self._file.close()
