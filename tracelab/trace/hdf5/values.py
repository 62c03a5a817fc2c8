"""Values of an HDF5 file, and whether they are what was written.

The HDF5 library takes a chunk that a damaged index does not list for one that was never written,
and gives the fill value; one that it lists elsewhere can have the right checksum. So the values of
a whole dataset have a checksum of ours, where the file was exported by tracelab.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelab.errors import DamagedError
from tracelab.trace.hdf5 import attributes as hdf5_attributes
from tracelab.trace.hdf5.checksums import Checksum
from tracelab.typing import Array

__all__ = ["Stored", "checked", "whole"]


@dataclass(frozen=True, slots=True)
class Stored:
    """Values of a dataset, read when indexed, in the dtype of the trace.

    Parameters
    ----------
    dataset : h5py.Dataset
        A checked dataset.
    dtype : str
        ``"string"`` or a NumPy name.
    name : str
        What to call it in messages.
    crc32c : int or None
        Of all its values, if the file says it.
    """

    dataset: Any
    dtype: str
    name: str
    crc32c: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dataset."""
        shape: tuple[int, ...] = self.dataset.shape
        return shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, selection: Any) -> Array:
        return self.converted(self.read(selection))

    def read(self, selection: Any) -> Array:
        """Return values as they are in the file."""
        try:
            if self.dtype == "string":
                return np.asarray(self.dataset.asstr()[selection], dtype=object)
            return np.asarray(self.dataset[selection])
        except (OSError, RuntimeError, ValueError) as error:
            raise DamagedError(f"{self.name} cannot be read: {error}") from error

    def converted(self, found: Array) -> Array:
        """Return values that were read in the dtype of the trace."""
        if self.dtype == "bool":
            return np.asarray(found != 0)
        return found if self.dtype == "string" else found.astype(self.dtype, copy=False)


class _Checked:
    """Values of a dataset, each of which is read once."""

    def __init__(self, stored: Stored, crc32c: int) -> None:
        self.shape = stored.shape
        self._stored = stored
        self._wanted = crc32c
        dtype = np.dtype(object) if stored.dtype == "string" else stored.dataset.dtype
        self._checksum = Checksum(stored.shape, dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, selection: Any) -> Array:
        parts: Any = selection if isinstance(selection, tuple) else (selection,)
        starts = [part.indices(size)[0] for part, size in zip(parts, self.shape, strict=False)]
        starts += [0] * (len(self.shape) - len(starts))
        found = self._stored.read(selection)
        self._checksum.add(starts, found)
        return self._stored.converted(found)

    def finish(self) -> None:
        if self._checksum.value != self._wanted:
            raise hdf5_attributes.changed(self._stored.name, hdf5_attributes.CRC32C)


@contextmanager
def checked(values: Any) -> Iterator[Any]:
    """Give what gives values, each of which is to be read once; then refuse them if they differ.

    Parameters
    ----------
    values : Stored or ndarray
        A `Stored` whose file says their crc32c is checked.

    Raises
    ------
    DamagedError
        If what was read is not what was written.
    """
    if not isinstance(values, Stored) or values.crc32c is None:
        yield values
        return
    reading = _Checked(values, values.crc32c)
    yield reading
    reading.finish()


def whole(values: Any) -> Array:
    """Return all values of an array, checked."""
    with checked(values) as reading:
        found: Array = reading[(slice(None),) * len(values.shape)]
    return found
