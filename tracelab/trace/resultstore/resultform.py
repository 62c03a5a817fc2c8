"""What a stored result is: one Zarr group, its arrays beside it, a checksum behind every chunk.

The group's document is written last and holds the documents of its arrays and the checksums of
their chunks: it is the result's commit. Reading believes nothing: a document that is not exactly of
this form is no result, and a chunk that is not exactly the one committed is damaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import xarray as xr
from xarray.backends.common import BackendArray
from xarray.core import indexing

from tracelab.trace.places import objects
from tracelab.trace.places.files import Part
from tracelab.trace.resultstore.resultcheck import (
    CHECKSUMS,
    MAX_LABEL_BYTES,
    Document,
    Entry,
    codecs,
    parse,
    stored_bytes,
)
from tracelab.trace.schema import DTYPES
from tracelab.trace.writing import documents
from tracelab.trace.writing.shards import checksummed, encode_strings
from tracelab.typing import Array

__all__ = ["DTYPES_OF_RESULTS", "Entry", "document", "encode", "load", "parse"]

DTYPES_OF_RESULTS = DTYPES - {"string"}
MAX_DOCUMENT_BYTES = 2**20
CHUNK_BYTES = 2**26
EAGER_BYTES = 2**26
_CRC = 4

# ----------------------------------------------------------------------------------------- writing


def encode(dataset: xr.Dataset) -> Iterator[tuple[str, Sequence[Part], Document, int | None]]:
    """Yield the objects of a result's arrays: key, content, array's document, crc32c of a chunk.

    The document of an array comes before its chunks, with None for the checksum.

    Parameters
    ----------
    dataset : xarray.Dataset
        In memory; numbers of `DTYPES_OF_RESULTS`, and texts as labels.
    """
    for name, variable in dataset.variables.items():
        values = np.asarray(variable.values)
        texts = values.dtype.kind in "OTU"
        rows = max(1, values.shape[0])
        if not texts:
            rows = max(1, min(rows, CHUNK_BYTES // max(1, values[:1].nbytes)))
        described = _described(variable, "string" if texts else values.dtype.name, rows)
        yield f"{name}/zarr.json", [documents.dump(dict(described))], described, None
        for number, start in enumerate(range(0, values.shape[0], rows)):
            if 0 in values.shape:
                break
            part = values[start : start + rows]
            content = encode_strings([str(text) for text in part]) if texts else _whole(part, rows)
            key = ".".join(map(str, ("c", number, *[0] * (values.ndim - 1))))
            yield f"{name}/{key}", [content], described, int.from_bytes(content[-_CRC:], "little")


def _whole(part: Array, rows: int) -> bytes:
    """Return a chunk's bytes; one that the array ends in is filled with zeros."""
    little = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<"))
    return checksummed(little.tobytes() + bytes(little[:1].nbytes * (rows - len(part))))


def _described(variable: xr.Variable, dtype: str, rows: int) -> Document:
    shape = [int(size) for size in variable.shape]
    chunk = [rows, *(max(1, size) for size in shape[1:])]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": _fill(dtype),
        "codecs": codecs(dtype),
        "attributes": documents.plain(dict(variable.attrs), "attributes"),
        "dimension_names": [str(dim) for dim in variable.dims],
        "storage_transformers": [],
    }


def _fill(dtype: str) -> Any:
    if dtype == "string":
        return ""
    return {"f": "NaN", "b": False}.get(np.dtype(dtype).kind, 0)


def document(
    attrs: Mapping[str, Any],
    arrays: Mapping[str, Document],
    checksums: Mapping[str, Sequence[int]],
) -> bytes:
    """Return the bytes of a result's group document, its commit."""
    attributes = {**attrs, CHECKSUMS: {name: list(each) for name, each in checksums.items()}}
    group = documents.group(documents.plain(attributes, "attributes"))
    inline = {"kind": "inline", "must_understand": False, "metadata": dict(arrays)}
    return documents.dump(group | {"consolidated_metadata": inline})


# ----------------------------------------------------------------------------------------- reading


def load(entry: Entry) -> xr.Dataset:
    """Return a result: in memory, or, where it is large, with arrays that are read when asked for.

    Raises
    ------
    DamagedError
        If a label or, in memory, anything cannot be read.
    """
    eager = sum(map(stored_bytes, entry.arrays.values())) <= EAGER_BYTES
    labels = [name for name, array in entry.arrays.items() if name in array["dimension_names"]]
    values = _read(entry, list(entry.arrays) if eager else labels)
    variables = {}
    for name, described in entry.arrays.items():
        data: Any = values[name] if name in values else _lazy(entry, name)
        attributes = dict(described["attributes"])
        variables[name] = xr.Variable(described["dimension_names"], data, attributes)
    coords = {name: variables.pop(name) for name in labels}
    return xr.Dataset(variables, coords, dict(entry.attrs))


class _Stored(BackendArray):
    """An array that is read, and checked, when something of it is wanted."""

    def __init__(self, entry: Entry, name: str) -> None:
        self.entry, self.name = entry, name
        self.shape = tuple(entry.arrays[name]["shape"])
        self.dtype = np.dtype(entry.arrays[name]["data_type"])

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._take
        )

    def _take(self, key: Any) -> Array:
        taken: Array = _read(self.entry, [self.name])[self.name][key]
        return taken


def _lazy(entry: Entry, name: str) -> Any:
    stored: Any = indexing.LazilyIndexedArray(_Stored(entry, name))
    return indexing.MemoryCachedArray(indexing.CopyOnWriteArray(stored))  # type: ignore[no-untyped-call]


def _read(entry: Entry, names: Sequence[str]) -> dict[str, Array]:
    keys = []
    for name in names:
        inner = [0] * (len(entry.arrays[name]["shape"]) - 1)
        keys += [
            (name, number, ".".join(map(str, ("c", number, *inner))))
            for number in range(len(entry.checksums[name]))
        ]
    limit = max((_chunk_bytes(entry.arrays[name]) for name in names), default=0) + _CRC
    contents = objects.read_all(
        entry.location, [f"{entry.path}/{name}/{key}" for name, _, key in keys], limit
    )
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for (name, number, key), content in zip(keys, contents, strict=True):
        described = entry.arrays[name]
        if content is None:
            raise entry.damaged(f"{name}/{key} cannot be read")
        crc = int.from_bytes(content[-_CRC:], "little")
        if google_crc32c.value(content[:-_CRC]) != crc or crc != entry.checksums[name][number]:
            raise entry.damaged(f"the checksum of {name}/{key} differs")
        try:
            parts[name].append(_decoded(content[:-_CRC], described, number))
        except ValueError as error:
            raise entry.damaged(f"{name}/{key}: {error}") from None
    return {name: _joined(entry, name, found) for name, found in parts.items()}


def _chunk_bytes(described: Document) -> int:
    if described["data_type"] == "string":
        return MAX_LABEL_BYTES
    chunk = described["chunk_grid"]["configuration"]["chunk_shape"]
    return int(math.prod(chunk) * np.dtype(described["data_type"]).itemsize)


def _decoded(content: bytes, described: Document, number: int) -> Array:
    rows = described["chunk_grid"]["configuration"]["chunk_shape"][0]
    wanted = min(rows, described["shape"][0] - number * rows)
    if described["data_type"] == "string":
        return np.asarray(_texts(content, rows)[:wanted], dtype=np.dtypes.StringDType())
    dtype = np.dtype(described["data_type"]).newbyteorder("<")
    if len(content) != _chunk_bytes(described):
        raise ValueError(f"{len(content)} bytes instead of {_chunk_bytes(described)}")
    values: Array = np.frombuffer(content, dtype).reshape(rows, *described["shape"][1:])[:wanted]
    return values.astype(dtype.newbyteorder("="))


def _texts(content: bytes, count: int) -> list[str]:
    found, place = [], 4
    if int.from_bytes(content[:4], "little") != count or len(content) < 4 * (count + 1):
        raise ValueError(f"not {count} texts")
    for _ in range(count):
        length = int.from_bytes(content[place : place + 4], "little")
        place += 4 + length
        if place > len(content):
            raise ValueError("a text ends too early")
        found.append(content[place - length : place].decode())
    return found


def _joined(entry: Entry, name: str, parts: Sequence[Array]) -> Array:
    described = entry.arrays[name]
    if not parts:
        texts = described["data_type"] == "string"
        dtype = np.dtypes.StringDType() if texts else np.dtype(described["data_type"])
        return np.empty(described["shape"], dtype)
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if name == "step" and not (np.diff(joined) > 0).all():
        raise entry.damaged("its steps do not increase")
    return joined
