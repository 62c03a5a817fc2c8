"""A trace as groups and datasets of an HDF5 file, a block of values at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from tracelab.errors import DamagedError, TraceError
from tracelab.trace.hdf5 import attributes as hdf5_attributes
from tracelab.trace.hdf5.checksums import Checksum
from tracelab.typing import Array

__all__ = ["BLOCK_BYTES", "Arrays", "blocks", "write_group", "write_version"]

BLOCK_BYTES = 16 * 2**20
"""Values that are held in memory at once."""

LARGEST_CHUNK = 4 * 2**20
SMALLEST_CHUNK = 2**16

Arrays = Mapping[str, tuple[Mapping[str, Any], Any]]
"""Arrays of a group: its Zarr document, and what gives its values when indexed."""

_SCALES = ("step", "layer", "coordinate_layer", "coordinate_index")


CONVENTIONS = 1


def write_version(root: Any) -> None:
    """Say on the root of a file which version of the conventions it follows."""
    root.attrs[hdf5_attributes.VERSION] = np.int64(CONVENTIONS)


def write_group(
    target: Any,
    name: str,
    attributes: Mapping[str, Any],
    arrays: Arrays,
) -> Iterator[tuple[str, int]]:
    """Write a group: attributes, datasets, dimension labels and scales.

    Yields the path of an array and a number of bytes of it that were written.

    Parameters
    ----------
    target : h5py.Group
        An empty group.
    name : str
        What to call it in messages.
    attributes : mapping
        Its attributes.
    arrays : mapping
        Its arrays.

    Raises
    ------
    DamagedError
        If values cannot be read.
    TraceError
        If HDF5 cannot hold something.
    """
    hdf5_attributes.write(target, attributes)
    for array, (document, values) in arrays.items():
        described = f"{name}/{array}"
        dataset = _dataset(target, array, document, described)
        for nbytes in _copy(values, dataset, described):
            yield described, nbytes
    _attach_scales(target, arrays)


def _dataset(target: Any, name: str, document: Mapping[str, Any], described: str) -> Any:
    dtype, marker = _types(document["data_type"], described)
    shape = tuple(document["shape"])
    dims = document.get("dimension_names") or [None] * len(shape)
    options: dict[str, Any] = {}
    if shape:
        # A table that may grow, and a size of 0, take a dimension without an end.
        options["maxshape"] = [
            None if size == 0 or dim == "step" else size
            for size, dim in zip(shape, dims, strict=True)
        ]
        options["chunks"] = _chunk(shape, _inner_chunk(document), dtype.itemsize)
        # Every chunk of a trace has a checksum; so it has here. Texts are not in the chunks.
        options["fletcher32"] = dtype.kind != "O"
    if dtype.kind == "f":
        options["fillvalue"] = np.asarray(np.nan, dtype)
    dataset = target.create_dataset(name, shape=shape, dtype=dtype, **options)
    labels = [dim or "" for dim in dims]
    hdf5_attributes.write(
        dataset, document["attributes"], dtype=marker, labels=labels if any(labels) else None
    )
    for axis, label in enumerate(labels):
        if label:
            dataset.dims[axis].label = label
    return dataset


def _types(data_type: Any, described: str) -> tuple[np.dtype[Any], str | None]:
    """Return the dtype in the file, and the marker of one that the file cannot say."""
    text: np.dtype[Any] = h5py.string_dtype("utf-8")
    if data_type == "string":
        return text, None
    if data_type == "bool":
        # h5py would make an enumeration of its own, which few other readers show as numbers.
        return np.dtype(np.uint8), "bool"
    try:
        dtype = np.dtype(data_type)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "iuf":
        raise TraceError(f"{described} has the data type {data_type!r}, which is not exported")
    return dtype, None


def _inner_chunk(document: Mapping[str, Any]) -> list[int]:
    chunk: list[int] = document["chunk_grid"]["configuration"]["chunk_shape"]
    codec = document["codecs"][0]
    if codec["name"] == "sharding_indexed":
        chunk = codec["configuration"]["chunk_shape"]
    return chunk


def _chunk(shape: Sequence[int], wanted: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the trace's chunk, cut where the array or HDF5 ends it, enlarged where it is tiny."""
    chunk = [max(1, min(part, size)) for part, size in zip(wanted, shape, strict=True)]
    while math.prod(chunk) * itemsize > LARGEST_CHUNK:
        widest = chunk.index(max(chunk))
        chunk[widest] = -(-chunk[widest] // 2)
    for axis in reversed(range(len(chunk))):
        # A chunk has an entry in an index and a cost of its own.
        room = SMALLEST_CHUNK // (math.prod(chunk) * itemsize)
        if room > 1:
            chunk[axis] = max(1, min(chunk[axis] * room, shape[axis]))
    return tuple(chunk)


def blocks(
    shape: Sequence[int], chunk: Sequence[int], itemsize: int
) -> Iterator[tuple[slice, ...]]:
    """Yield selections that cover an array, each of whole chunks and of at most 16 MiB.

    Parameters
    ----------
    shape, chunk : sequence of int
        Of the array.
    itemsize : int
        Bytes of an element.
    """
    block = list(chunk)
    for axis in reversed(range(len(block))):
        room = max(1, BLOCK_BYTES // (math.prod(block) * itemsize))
        block[axis] = min(block[axis] * room, -(-shape[axis] // chunk[axis]) * chunk[axis])
        block[axis] = max(block[axis], chunk[axis])
    for starts in itertools.product(
        *(range(0, size, part) for size, part in zip(shape, block, strict=True))
    ):
        yield tuple(
            slice(start, min(start + part, size))
            for start, part, size in zip(starts, block, shape, strict=True)
        )


def _copy(values: Any, dataset: Any, described: str) -> Iterator[int]:
    texts = dataset.dtype.kind == "O"
    checksum = Checksum(dataset.shape, dataset.dtype)
    for selection in blocks(dataset.shape, dataset.chunks or (), dataset.dtype.itemsize):
        found = _read(values, selection, described)
        if texts:
            found = _texts(found, described)
        elif found.dtype.kind == "b":
            found = found.view(np.uint8)
        dataset[selection] = found
        checksum.add([part.start for part in selection], found)
        yield found.size * dataset.dtype.itemsize
    # Every checksum of HDF5's own may be right and the values are those of another chunk, or none.
    dataset.attrs[hdf5_attributes.CRC32C] = np.uint32(checksum.value)


def _read(values: Any, selection: tuple[slice, ...], described: str) -> Array:
    try:
        return np.asarray(values[selection])
    except DamagedError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise DamagedError(
            f"{described} cannot be read ({type(error).__name__}: {error}); "
            "`tracelab verify` says what else is damaged"
        ) from error


def _texts(found: Array, described: str) -> Array:
    texts = found.astype(object)
    for text in texts.flat:
        if "\0" in text:
            raise TraceError(f"{described} holds the text {text!r}, and HDF5 ends texts at NUL")
    return texts


def _attach_scales(target: Any, arrays: Arrays) -> None:
    dims = {array: document.get("dimension_names") or [] for array, (document, _) in arrays.items()}
    for scale in _SCALES:
        if scale not in dims or len(dims[scale]) != 1:
            continue
        target[scale].make_scale(scale)
        for array, names in dims.items():
            if array in _SCALES:
                continue
            for axis, dim in enumerate(names):
                if dim == dims[scale][0]:
                    target[array].dims[axis].attach_scale(target[scale])
