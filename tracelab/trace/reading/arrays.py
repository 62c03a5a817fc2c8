"""What reads an array of a trace: our own reader, or zarr-python what we do not write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tracelab.errors import DamagedError, TracelabError
from tracelab.trace.bfloat16 import decode
from tracelab.trace.places.locations import Location
from tracelab.trace.places.plainfiles import SUPPORTED
from tracelab.trace.places.remoteshards import RemoteShards
from tracelab.trace.reading.shardfile import Shards
from tracelab.trace.reading.shardform import form
from tracelab.trace.schema import BFLOAT16
from tracelab.typing import Array

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["Readable", "open_array"]


class Readable(Protocol):
    """An array that is read when it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""

    @property
    def ndim(self) -> int:
        """Number of its dimensions."""

    def __getitem__(self, selection: Any) -> Array:
        """Read a part.

        Raises
        ------
        DamagedError
            If it cannot be read.
        """


def open_array(location: Location, path: str, document: Mapping[str, Any]) -> Readable:
    """Return an array of a trace; nothing is read.

    Parameters
    ----------
    location : Location
        The trace.
    path : str
        Group and name of the array, ``gradients/full``.
    document : Mapping
        The array's document in the root document, checked.

    Returns
    -------
    Readable
        It pickles where the location's store does. bfloat16 is read as float32, exactly.
    """
    found: Readable
    known = form(document)
    if known is not None and location.folder is not None and SUPPORTED:
        found = Shards(str(location.folder), path, known)
    elif known is not None:
        found = RemoteShards(location.store, location.name, path, known)
    else:
        found = _ByZarr(location.store, location.name, path, document)
    if document["attributes"].get("stored_dtype") == BFLOAT16 and found.dtype == np.uint16:
        return _Bfloat16(found)
    return found


@dataclass(frozen=True, slots=True)
class _Bfloat16:
    bits: Readable

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        return self.bits.ndim

    def __getitem__(self, selection: Any) -> Array:
        return decode(self.bits[selection])


@dataclass(frozen=True, slots=True)
class _ByZarr:
    """An array stored in another way than ours: with other codecs, say.

    zarr-python's array is made when it is read: making all of a trace's takes longer than opening.
    """

    store: Store
    where: str
    path: str
    document: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.document["shape"])

    @property
    def dtype(self) -> np.dtype[Any]:
        name: str = self.document["data_type"]
        return np.dtypes.StringDType() if name == "string" else np.dtype(name)

    @property
    def ndim(self) -> int:
        return len(self.document["shape"])

    def __getitem__(self, selection: Any) -> Array:
        from zarr import Array as ZarrArray
        from zarr import AsyncArray
        from zarr.storage import StorePath

        from tracelab.trace.reading.strict import Strict

        metadata: Any = dict(self.document)
        try:
            strict = StorePath(Strict(self.store), self.path)
            return np.asarray(ZarrArray(AsyncArray(metadata, strict))[selection])
        except (TracelabError, IndexError, OSError, MemoryError):
            raise
        except Exception as error:
            # Whatever zarr-python and its codecs raise at garbage.
            raise DamagedError(
                f"{self.path} of {self.where} is damaged: {type(error).__name__}: {error}; "
                f"all damage is listed by: tracelab verify {self.where}"
            ) from error
