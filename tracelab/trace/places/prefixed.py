"""A sub-folder of an open Zarr store, as a store of its own."""

# ruff: noqa: D102 - zarr's Store documents its methods
from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from zarr.abc.store import ByteRequest, Store
from zarr.storage import WrapperStore

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["Prefixed"]


class Prefixed(WrapperStore[Store]):
    """Keys of `store` below `prefix`; pickles where `store` does.

    Parameters
    ----------
    store : zarr.abc.store.Store
        An open store.
    prefix : str
        Path of the sub-folder, without slashes at its ends.
    owner : bool
        Whether closing this closes `store` too.
    """

    def __init__(self, store: Store, prefix: str, *, owner: bool = False) -> None:
        super().__init__(store)
        self.prefix = prefix
        self._owner = owner

    def _with_store(self, store: Store) -> Prefixed:
        return Prefixed(store, self.prefix, owner=self._owner)

    def at(self, prefix: str) -> Prefixed:
        """Return a sub-folder of this one."""
        return Prefixed(self._store, f"{self.prefix}/{prefix}")

    @property
    def inner(self) -> Store:
        """The store that this is a part of."""
        return self._store

    def _inside(self, key: str) -> str:
        return f"{self.prefix}/{key}"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Prefixed)
            and self.prefix == other.prefix
            and self._store == other._store
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{str(self._store).rstrip('/')}/{self.prefix}"

    def __repr__(self) -> str:
        return f"Prefixed({self._store!r}, {self.prefix!r})"

    def close(self) -> None:
        if self._owner:
            self._store.close()

    async def is_empty(self, prefix: str) -> bool:
        return await self._store.is_empty(self._inside(prefix).rstrip("/"))

    async def clear(self) -> None:
        await self._store.delete_dir(self.prefix)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await self._store.get(self._inside(key), prototype, byte_range)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        inside = [(self._inside(key), byte_range) for key, byte_range in key_ranges]
        return await self._store.get_partial_values(prototype, inside)

    async def exists(self, key: str) -> bool:
        return await self._store.exists(self._inside(key))

    async def set(self, key: str, value: Buffer) -> None:
        await self._store.set(self._inside(key), value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await self._store.set_if_not_exists(self._inside(key), value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await self._store._set_many((self._inside(key), value) for key, value in values)

    async def delete(self, key: str) -> None:
        await self._store.delete(self._inside(key))

    async def delete_dir(self, prefix: str) -> None:
        await self._store.delete_dir(self._inside(prefix).rstrip("/"))

    async def getsize(self, key: str) -> int:
        return await self._store.getsize(self._inside(key))

    async def getsize_prefix(self, prefix: str) -> int:
        return await self._store.getsize_prefix(self._inside(prefix).rstrip("/"))

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async for key in self._store.list_prefix(self._inside(prefix)):
            yield key.removeprefix(f"{self.prefix}/")

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        async for name in self._store.list_dir(self._inside(prefix).rstrip("/")):
            yield name
