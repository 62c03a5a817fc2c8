"""The Zarr v3 metadata documents of a trace, as the writer makes them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.trace.reading import strictjson
from tracelab.trace.schema import BFLOAT16, BFLOAT16_NAN, array_attributes, stored_dtype
from tracelab.trace.writing.layout import Layout
from tracelab.typing import JSONValue

__all__ = ["array", "dump", "group", "layout", "plain", "root", "table"]

Document = dict[str, Any]

# A part of what `strictjson` takes for a whole document.
GIVEN_BYTES = strictjson.MAX_BYTES // 4
GIVEN_VALUES = strictjson.MAX_VALUES // 4

_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C = {"name": "crc32c"}
_FILL: Mapping[str, Any] = {"bool": False, "string": "", "float32": "NaN", "float64": "NaN"}
# Its lowest level finds nearly all there is to find in noise; the rest is in the bit-shuffling.
_LZ4 = {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle", "blocksize": 0}
_ZSTD = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}


def array(variable: Variable, row_shape: Sequence[int], layout: Layout) -> Document:
    """Return the document of an array of rows, none of them committed yet."""
    dtype = stored_dtype(variable.dtype)
    compression = [_blosc(_LZ4, dtype)] if layout.compression == "lz4" else []
    sharding = {
        "chunk_shape": list(layout.chunk),
        "codecs": [_bytes(dtype), *compression, _CRC32C],
        "index_codecs": [_BYTES, _CRC32C],
        "index_location": "end",
    }
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return _array(variable, [0, *row_shape], layout.shard, codecs)


def layout(document: Document) -> Layout:
    """Return how an array of rows that `array` described is cut."""
    sharding = document["codecs"][0]["configuration"]
    shard = document["chunk_grid"]["configuration"]["chunk_shape"]
    compressed = any(codec["name"] == "blosc" for codec in sharding["codecs"])
    return Layout(tuple(sharding["chunk_shape"]), tuple(shard), "lz4" if compressed else "none")


def table(variable: Variable, length: int, chunk: int) -> Document:
    """Return the document of a table's array, which is written once."""
    if variable.dtype == "string":
        codecs: list[Document] = [{"name": "vlen-utf8", "configuration": {}}]
    else:
        codecs = [_bytes(variable.dtype), _blosc(_ZSTD, variable.dtype)]
    return _array(variable, [length], [chunk], [*codecs, _CRC32C])


def _bytes(dtype: str) -> Document:
    # A dtype of one byte has no byte order.
    return _BYTES if np.dtype(dtype).itemsize > 1 else {"name": "bytes"}


def _blosc(settings: Mapping[str, Any], dtype: str) -> Document:
    return {
        "name": "blosc",
        "configuration": {"typesize": np.dtype(dtype).itemsize, **settings},
    }


def _array(
    variable: Variable, shape: Sequence[int], chunks: Sequence[int], codecs: Sequence[Document]
) -> Document:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": stored_dtype(variable.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": _fill(variable.dtype),
        "codecs": list(codecs),
        "attributes": array_attributes(variable),
        "dimension_names": list(variable.dims),
        "storage_transformers": [],
    }


def _fill(dtype: str) -> Any:
    if dtype == BFLOAT16:
        return BFLOAT16_NAN
    return _FILL.get(dtype, 0)


def group(attributes: Mapping[str, JSONValue]) -> Document:
    """Return the document of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def root(attributes: Mapping[str, JSONValue], members: Mapping[str, Document]) -> Document:
    """Return the root document: with the documents of all members in it, it is the commit."""
    # Groups inside say that they are consolidated too: or readers would list the store for them.
    # What is in a group stands together: zarr-python loses what comes apart from the rest.
    inside = {
        path: document | _consolidated({}) if document["node_type"] == "group" else document
        for path, document in sorted(members.items(), key=lambda member: member[0].split("/"))
    }
    return group(attributes) | _consolidated(inside)


def _consolidated(members: Mapping[str, Document]) -> Document:
    inline = {"kind": "inline", "must_understand": False, "metadata": members}
    return {"consolidated_metadata": inline}


def dump(document: Document) -> bytes:
    """Return a document as the bytes of its ``zarr.json``."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def plain(value: Any, name: str) -> Any:
    """Return a user's value as JSON can say it; NaN and infinities become strings.

    Raises
    ------
    UsageError
        If it holds something else than texts, numbers, lists and mappings, or more than the root
        document of a trace has room for: every reader reads that before anything else.
    """
    try:
        found = _plain(value, name)
        strictjson.check_free(found)
        content = json.dumps(found)
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply, or holds itself") from None
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{name} cannot be stored: {error}") from None
    values = sum(map(content.count, ",{["))
    if len(content) > GIVEN_BYTES or values > GIVEN_VALUES:
        raise UsageError(
            f"{name} takes {len(content):,} bytes and {values:,} values as JSON, at most "
            f"{GIVEN_BYTES:,} and {GIVEN_VALUES:,} can be given; store it beside the trace and "
            "give its name"
        )
    return found


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), name)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, name) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise UsageError(
        f"{name} holds a {type(value).__name__}, which JSON cannot store; "
        "give texts, numbers, lists and mappings"
    )
