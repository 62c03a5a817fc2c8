"""What may be believed of a stored result: its document is exactly of our form, or it is none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelab.errors import DamagedError
from tracelab.trace.places.locations import Location
from tracelab.trace.schema import DTYPES, NAME

__all__ = ["CHECKSUMS", "MAX_LABEL_BYTES", "Document", "Entry", "codecs", "parse", "stored_bytes"]

MAX_LABEL_BYTES = 2**26

CHECKSUMS = "checksums"
"""Attribute with the checksums of all chunks."""
_STRINGS: list[dict[str, Any]] = [
    {"name": "vlen-utf8", "configuration": {}},
    {"name": "crc32c"},
]
# What a label takes in memory.
_TEXT_BYTES = 64
_TEXT, _NUMBER = (str,), (int, float)
_ATTRIBUTES: Mapping[str, tuple[type, ...]] = {
    "analysis": _TEXT,
    "analysis_version": (int,),
    "basis": _TEXT,
    "created": _TEXT,
    "failures": (list,),
    "finding": _TEXT,
    "key": _TEXT,
    "parameters": (dict,),
    "references": (list,),
    "run": _TEXT,
    "seconds": _NUMBER,
    "serial": (int,),
    "warnings": (list,),
}

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished result: where it is, and what its document says.

    Parameters
    ----------
    location : Location
        The store.
    path : str
        Its group.
    attrs : mapping
        Attributes of the result, without the checksums.
    arrays : mapping of str to mapping
        Documents of its arrays.
    checksums : mapping of str to list of int
        crc32c of each chunk of each array.
    """

    location: Location
    path: str
    attrs: Mapping[str, Any]
    arrays: Mapping[str, Document]
    checksums: Mapping[str, Sequence[int]]

    @property
    def age(self) -> tuple[int, str]:
        """What orders results from the oldest to the most recent."""
        return self.attrs["serial"], self.path.rpartition("/")[2]

    def damaged(self, problem: str) -> DamagedError:
        """Return the error that says what cannot be read, and what to do."""
        name = self.attrs["analysis"]
        return DamagedError(
            f"the result of {name!r} in {self.location.name}/{self.path} is damaged ({problem}); "
            f"compute it again with tracelab.analyze(trace, [{name!r}])"
        )


def parse(content: bytes, location: Location, path: str, run: str | None) -> Entry:
    """Return what a group's document says, if it is a result of this analysis and run (None: any).

    Raises
    ------
    ValueError
        If it is not exactly what tracelab writes.
    """
    try:
        found = json.loads(content)
        if found["node_type"] != "group" or found["zarr_format"] != 3:
            raise ValueError("it is no group of Zarr format 3")
        attrs = dict(found["attributes"])
        checksums = attrs.pop(CHECKSUMS)
        arrays = dict(found["consolidated_metadata"]["metadata"])
        _check_attributes(attrs, path.split("/")[-2], run)
        sizes: dict[str, int] = {}
        for name, described in arrays.items():
            _check_array(name, described, checksums[name], sizes)
        if "status" not in arrays or "layer" not in arrays:
            raise ValueError("it has no status or no layers")
        labels = {name: arrays[name] for name in arrays if name in sizes}
        if any(described["dimension_names"] != [name] for name, described in labels.items()):
            raise ValueError("an array has the name of a dimension that it does not label")
        if sum(map(stored_bytes, labels.values())) > MAX_LABEL_BYTES:
            raise ValueError("it has more labels than can be read")
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{problem}; it is none that this tracelab wrote") from None
    return Entry(location, path, attrs, arrays, checksums)


def _check_attributes(attrs: Mapping[str, Any], analysis: str, run: str | None) -> None:
    for name, types in _ATTRIBUTES.items():
        if not isinstance(attrs[name], types) or isinstance(attrs[name], bool):
            raise ValueError(f"the attribute {name!r} is {attrs[name]!r}")
    if attrs["analysis"] != analysis or run not in (None, attrs["run"]):
        raise ValueError("it is a result of another run or analysis")
    if not 1 <= attrs["serial"] < 2**63 or not math.isfinite(attrs["seconds"]):
        raise ValueError("its serial number or its time is no such thing")
    for name in ("warnings", "failures", "references"):
        if not all(isinstance(item, str) for item in attrs[name]):
            raise ValueError(f"{name} holds something that is no text")


def _check_array(
    name: str, described: Document, checksums: Sequence[int], sizes: dict[str, int]
) -> None:
    shape, dims = described["shape"], described["dimension_names"]
    chunk = described["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = described["data_type"]
    if not NAME.fullmatch(name) or dtype not in DTYPES:
        raise ValueError(f"an array {name!r} of type {dtype!r}")
    if not (_sizes(shape, 0) and _sizes(chunk, 1) and 1 <= len(shape) == len(chunk) == len(dims)):
        raise ValueError(f"{name} has the shape {shape!r} in chunks of {chunk!r}")
    if chunk[1:] != [max(1, size) for size in shape[1:]] or chunk[0] > max(1, shape[0]):
        raise ValueError(f"{name} has chunks of {chunk!r}")
    if len(set(dims)) != len(dims) or not all(NAME.fullmatch(dim) for dim in dims):
        raise ValueError(f"{name} has the dimensions {dims!r}")
    for dim, size in zip(dims, shape, strict=True):
        if sizes.setdefault(dim, size) != size:
            raise ValueError(f"{name} has {size} along {dim!r}, other arrays {sizes[dim]}")
    expected = {
        "zarr_format": 3,
        "node_type": "array",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": codecs(dtype),
    }
    for part, wanted in expected.items():
        if described[part] != wanted:
            raise ValueError(f"{name} has {described[part]!r} as its {part}")
    if not isinstance(described["attributes"], dict):
        raise ValueError(f"{name} has no attributes")
    chunks = 0 if 0 in shape else -(-shape[0] // chunk[0])
    if len(checksums) != chunks or not all(type(each) is int for each in checksums):
        raise ValueError(f"{name} has {len(checksums)} checksums for {chunks} chunks")
    if name in dims or dtype == "string":
        wrong_type = dtype != {"step": "int64", "layer": "string"}.get(name, dtype)
        if dims != [name] or wrong_type:
            raise ValueError(f"{name} is not what labels a dimension")


def _sizes(numbers: Any, least: int) -> bool:
    return isinstance(numbers, list) and all(
        type(number) is int and least <= number < 2**40 for number in numbers
    )


def stored_bytes(described: Document) -> int:
    """Return what an array takes in memory."""
    dtype = described["data_type"]
    itemsize = _TEXT_BYTES if dtype == "string" else np.dtype(dtype).itemsize
    return int(math.prod(described["shape"]) * itemsize)


def codecs(dtype: str) -> list[dict[str, Any]]:
    """Return the codecs of an array."""
    if dtype == "string":
        return _STRINGS
    raw: dict[str, Any] = {"name": "bytes"}
    if np.dtype(dtype).itemsize > 1:
        raw["configuration"] = {"endian": "little"}
    return [raw, {"name": "crc32c"}]
