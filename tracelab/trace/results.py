"""Results beside a trace: ``results/<analysis>/<key>``, each one dataset, written once.

The recorder owns the root of the store and its commit record; analysis jobs own ``results``. So a
live trace can be analysed while it is being written. A result counts once its group carries
consolidated metadata, which are written last: a killed job leaves nothing that reads as a result.
"""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr
import zarr
from zarr.errors import GroupNotFoundError

from tracelab.errors import NotRecordedError, UsageError

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["RESULTS", "Results", "write_result"]

RESULTS = "results"


class Results(Mapping[str, xr.Dataset]):
    """Results of a trace by analysis: the most recent of each; `all` gives every one.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The trace's store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, name: str) -> xr.Dataset:
        found = self._datasets(name)
        if not found:
            have = ", ".join(self) or "none yet"
            raise NotRecordedError(
                f"this trace has no result of {name!r}; results: {have}; "
                f"compute it with tracelab.analyze(trace, [{name!r}])"
            )
        return max(found.values(), key=lambda dataset: str(dataset.attrs.get("created", "")))

    def __iter__(self) -> Iterator[str]:
        root = _group(self._store, RESULTS)
        if root is None:
            return
        for name in sorted(root.group_keys()):
            if self.keys_of(name):
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.keys_of(name))

    def keys_of(self, name: str) -> list[str]:
        """Return the keys of the finished results of an analysis."""
        group = _group(self._store, f"{RESULTS}/{name}")
        if group is None:
            return []
        return [key for key, member in sorted(group.groups()) if _finished(member)]

    def all(self, name: str) -> dict[str, xr.Dataset]:
        """Return every result of an analysis by its parameters (``"mode=batches, ..."``).

        Of results that differ in their input only, the most recent.
        """
        found = sorted(
            self._datasets(name).values(), key=lambda dataset: str(dataset.attrs.get("created", ""))
        )
        return {_describe(dataset): dataset for dataset in found}

    def get_key(self, name: str, key: str) -> xr.Dataset | None:
        """Return the finished result with this key, or None."""
        group = _group(self._store, f"{RESULTS}/{name}/{key}")
        if group is None or not _finished(group):
            return None
        return self._open(name, key)

    def _datasets(self, name: str) -> dict[str, xr.Dataset]:
        return {key: self._open(name, key) for key in self.keys_of(name)}

    def _open(self, name: str, key: str) -> xr.Dataset:
        path = f"{RESULTS}/{name}/{key}"
        found: xr.Dataset = xr.open_zarr(self._store, group=path, consolidated=False, chunks=None)
        return found

    def __repr__(self) -> str:
        lines = [f"<tracelab.Results: {len(self)} analyses>"]
        for name in self:
            lines += [f"  {name}: {described}" for described in self.all(name)]
        return "\n".join(lines)


def _describe(dataset: xr.Dataset) -> str:
    parameters = dict(dataset.attrs.get("parameters", {}))
    return ", ".join(f"{name}={value}" for name, value in sorted(parameters.items()))


def _group(store: Store, path: str) -> zarr.Group | None:
    try:
        return zarr.open_group(store, path=path, mode="r", use_consolidated=None)
    except (GroupNotFoundError, FileNotFoundError, KeyError):
        return None


def _finished(group: zarr.Group) -> bool:
    return group.metadata.consolidated_metadata is not None


def write_result(store: Store, name: str, key: str, dataset: xr.Dataset) -> None:
    """Store a result; a reader sees all of it or nothing.

    Parameters
    ----------
    store : zarr.abc.store.Store
        A writable store.
    name, key : str
        Analysis and cache key.
    dataset : xarray.Dataset
        In memory; attributes JSON-serialisable.

    Raises
    ------
    UsageError
        If the store cannot be written.
    """
    if store.read_only:
        raise UsageError(
            f"results cannot be stored beside a read-only trace ({store}); "
            "unpack or copy the trace to a folder first"
        )
    for path in (RESULTS, f"{RESULTS}/{name}"):
        if _group(store, path) is None:
            zarr.open_group(store, path=path, mode="a")
    root = getattr(store, "root", None)
    if not isinstance(root, Path):
        _write(store, f"{RESULTS}/{name}/{key}", dataset)
        return
    # On a file system a result appears by one rename, also over an older one.
    folder = root / RESULTS / name
    unique = f".{key}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    _write(store, f"{RESULTS}/{name}/{unique}", dataset)
    aside = folder / f"{unique}-old"
    try:
        if (folder / key).exists():
            os.replace(folder / key, aside)
        os.replace(folder / unique, folder / key)
    except OSError:
        # Another job stored the same result between the two renames; one is as good as the other.
        if not (folder / key).exists():
            raise
    finally:
        shutil.rmtree(folder / unique, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def _write(store: Store, path: str, dataset: xr.Dataset) -> None:
    with warnings.catch_warnings():
        # Our commit record, read by zarr-python and xarray; other readers do without it.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        # xarray itself consolidates the root of the store, which is the recorder's commit record.
        dataset.to_zarr(store, group=path, mode="w", consolidated=False, zarr_format=3)
        zarr.consolidate_metadata(store, path=path, zarr_format=3)
