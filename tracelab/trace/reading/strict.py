"""A store in which what a committed array must have cannot be missing unnoticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.abc.store import ByteRequest, Store
from zarr.storage import WrapperStore

from tracelab.errors import DamagedError

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["Strict"]


class Strict(WrapperStore[Store]):
    """A store whose missing objects are an error.

    zarr-python reads a missing chunk as fill values. Every shard that holds a committed row was
    stored, even if all it holds are fill values: one that is missing was lost.
    """

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object, or a part of it.

        Raises
        ------
        DamagedError
            If it is not there.
        """
        found = await super().get(key, prototype, byte_range)
        if found is None:
            raise DamagedError(
                f"{key} of {self._store} is missing; all damage is listed by: tracelab verify"
            )
        return found
