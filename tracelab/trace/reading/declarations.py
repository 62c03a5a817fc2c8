"""What a trace's documents may declare: names, dtypes, codecs that only unpack, sizes that can be.

Where a check fails it raises ValueError; a value of a type that is not looked at here ends in the
KeyError, TypeError or AttributeError of its use. Whoever calls takes them all for damage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracelab.trace.reading.shardform import form
from tracelab.trace.reading.strictjson import check_free
from tracelab.trace.schema import DTYPES, NAME

__all__ = ["check_array", "check_group", "check_root", "extents"]

LABELS = ("step", "layer")

MAX_CHUNK_BYTES = 2**31
MAX_CHUNKS_PER_SHARD = 2**24
MAX_CHUNKS_ALONG_A_DIMENSION = 2**20
MAX_TEXTS = 2**20
MAX_DIMENSIONS = 8
MAX_TABLE_CHUNK = 2**20
MAX_TABLE_CHUNKS = 2**16

_CODECS = frozenset(
    {"blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "vlen-utf8", "zstd"}
)


def check_root(attributes: Mapping[str, Any]) -> None:
    """Check the attributes of a trace.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        If a trace cannot have them.
    """
    if not isinstance(attributes["run"], str) or not isinstance(attributes["state"], str):
        raise ValueError("run and state must be texts")
    reasons = attributes.get("incomplete_reasons", [])
    if not (isinstance(reasons, list) and all(isinstance(reason, str) for reason in reasons)):
        raise ValueError("incomplete_reasons must be a list of texts")
    for name in ("metadata", "software"):
        if not isinstance(attributes.get(name, {}), dict):
            raise ValueError(f"{name} must be an object")
    if not _whole([attributes.get("generation", 0)], 0):
        raise ValueError("generation must be an integer of at least 0")
    check_free(attributes)


def check_group(path: str, attributes: Any) -> None:
    """Check the attributes of a group.

    Raises
    ------
    ValueError
        If a group cannot have them.
    """
    if not isinstance(attributes, dict) or not isinstance(attributes.get("kind"), str):
        raise ValueError(f"{path!r} has no kind")
    if not isinstance(attributes.get("coordinates", ""), str):
        raise ValueError(f"{path!r} has no list of coordinates")
    size = attributes.get("batch_size")
    if size is not None and not _whole([size], 1):
        raise ValueError(f"{path!r} has the batch size {size!r}")
    check_free(attributes)


def check_array(path: str, document: Mapping[str, Any]) -> None:
    """Check an array's document.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        If it cannot be what a trace holds.
    """
    dtype = document["data_type"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{path} has the data type {dtype!r}")
    shape, dims = document["shape"], document["dimension_names"]
    if not (
        _whole(shape, 0)
        and len(shape) <= MAX_DIMENSIONS
        and isinstance(dims, list)
        and len(dims) == len(shape)
        and math.prod(shape) < 2**62
        # Of an empty array too: what is counted along a dimension fits into an integer.
        and max(shape, default=0) < 2**62
    ):
        raise ValueError(f"{path} has the shape {shape!r} and the dimensions {dims!r}")
    if not all(isinstance(dim, str) and NAME.fullmatch(dim) for dim in dims) or (
        len(set(dims)) < len(dims)
    ):
        raise ValueError(f"{path} has the dimensions {dims!r}")
    name = path.split("/")[-1]
    if name in LABELS:
        if dims != [name] or dtype != ("int64" if name == "step" else "string"):
            raise ValueError(f"{path} is not what labels the dimension {name!r}")
    elif name in dims:
        raise ValueError(f"{path} has the name of its dimension, which only labels have")
    if not isinstance(document["attributes"], dict):
        raise ValueError(f"{path} has the attributes {document['attributes']!r}")
    check_free(document["attributes"])
    _check_chunks(path, document, dtype, shape)
    if name in LABELS or dims[:1] != ["step"]:
        _check_table(path, document)


def _check_table(path: str, document: Mapping[str, Any]) -> None:
    """Check what is read as soon as a group is touched: only by what bounds its memory."""
    stored = form(document)
    if stored is None:
        raise ValueError(f"{path} is not stored as tables are")
    count = sum(-(-size // part) for size, part in zip(stored.shape, stored.chunk, strict=True))
    if math.prod(stored.chunk) > MAX_TABLE_CHUNK or count > MAX_TABLE_CHUNKS:
        raise ValueError(f"{path} has {count} chunks of shape {stored.chunk}, which no table has")


def _check_chunks(path: str, document: Mapping[str, Any], dtype: str, shape: Sequence[int]) -> None:
    grid = document["chunk_grid"]
    shard = grid["configuration"]["chunk_shape"]
    if grid["name"] != "regular" or not _whole(shard, 1) or len(shard) != len(shape):
        raise ValueError(f"{path} has the chunk grid {grid!r}")
    encoding = document["chunk_key_encoding"]
    if not isinstance(encoding["name"], str) or not isinstance(encoding["configuration"], dict):
        raise ValueError(f"{path} has the chunk keys {encoding!r}")
    codecs = document["codecs"]
    if not isinstance(codecs, list) or not codecs:
        raise ValueError(f"{path} has the codecs {codecs!r}")
    for codec in codecs:
        if _check_codec(path, codec, _CODECS) == "sharding_indexed":
            _check_sharding(path, codec["configuration"], shard)
    chunk = extents(document)
    if any(
        size // part > MAX_CHUNKS_ALONG_A_DIMENSION for size, part in zip(shape, chunk, strict=True)
    ):
        raise ValueError(f"{path} has the shape {shape}, too large for chunks of {chunk}")
    if dtype == "string" and math.prod(chunk) > MAX_TEXTS:
        raise ValueError(f"{path} has chunks of shape {chunk}, too many texts to read")
    if dtype != "string" and np.dtype(dtype).itemsize * math.prod(chunk) > MAX_CHUNK_BYTES:
        raise ValueError(f"{path} has chunks of shape {chunk}, too large to read")


def _check_codec(path: str, codec: Mapping[str, Any], known: frozenset[str]) -> str:
    name = codec["name"]
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{path} needs the codec {name!r}")
    if not isinstance(codec.get("configuration", {}), dict):
        raise ValueError(f"{path} has the codec {codec!r}")
    return name


def _check_sharding(path: str, sharding: Mapping[str, Any], shard: list[int]) -> None:
    chunk = sharding["chunk_shape"]
    fits = _whole(chunk, 1) and len(chunk) == len(shard)
    if not fits or any(whole % part for whole, part in zip(shard, chunk, strict=True)):
        raise ValueError(f"{path} has shards {shard!r} of chunks {chunk!r}")
    if math.prod(shard) // math.prod(chunk) > MAX_CHUNKS_PER_SHARD:
        raise ValueError(f"{path} has shards {shard!r} of too many chunks {chunk!r}")
    for codec in [*sharding["codecs"], *sharding["index_codecs"]]:
        _check_codec(path, codec, _CODECS - {"sharding_indexed"})


def extents(document: Mapping[str, Any]) -> list[int]:
    """Return the shape of what is read at once: a chunk of a shard, or all of a file."""
    for codec in document["codecs"]:
        if codec["name"] == "sharding_indexed":
            chunk: list[int] = codec["configuration"]["chunk_shape"]
            return chunk
    whole: list[int] = document["chunk_grid"]["configuration"]["chunk_shape"]
    return whole


def _whole(numbers: Any, least: int) -> bool:
    return isinstance(numbers, list) and all(
        isinstance(number, int) and not isinstance(number, bool) and number >= least
        for number in numbers
    )
