"""Attributes of a trace as attributes of an HDF5 object, and back.

Texts and numbers are HDF5's own; everything else JSON can say is a JSON text, and one attribute
lists which are. Nothing is pickled, and what no trace holds is refused before it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from tracelab.errors import TraceError
from tracelab.trace.reading import strictjson
from tracelab.trace.writing import documents

__all__ = ["DTYPE", "VERSION", "read", "refusing", "write"]

JSON = "tracelab_json"
"""JSON list of the object's attributes whose text is JSON."""

OTHERS = "tracelab_attributes"
"""JSON object of the attributes whose names HDF5 cannot hold, or keeps for itself."""

DTYPE = "tracelab_dtype"
"""Dtype of a dataset, where its HDF5 type alone does not tell."""

VERSION = "tracelab_hdf5"
"""Version of these conventions, on the root."""

# What the HDF5 and netCDF libraries keep for themselves.
_HDF5 = ("CLASS", "NAME", "DIMENSION_LIST", "DIMENSION_LABELS", "REFERENCE_LIST")
_RESERVED = frozenset((JSON, OTHERS, DTYPE, VERSION, *_HDF5, "_FillValue"))

LONGEST_NAME = 255
MAX_ATTRIBUTES = 10_000
MAX_ATTRIBUTE_BYTES = strictjson.MAX_BYTES

_CLASSES = frozenset((h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM))


def write(target: Any, attributes: Mapping[str, Any]) -> None:
    """Give an HDF5 object the attributes of a trace, a group or an array.

    Parameters
    ----------
    target : h5py.Group or h5py.Dataset
        The object.
    attributes : mapping
        As JSON holds them.
    """
    listed, others = [], {}
    for name, value in attributes.items():
        if name in _RESERVED or not (_is_text(name) and 0 < len(name.encode()) <= LONGEST_NAME):
            others[name] = value
            continue
        native = _native(value)
        if native is None:
            listed.append(name)
            native = _dump(value)
        target.attrs[name] = native
    if listed:
        target.attrs[JSON] = _dump(listed)
    if others:
        target.attrs[OTHERS] = _dump(others)


def _native(value: Any) -> Any:
    """Return what HDF5 says as well as JSON, or None."""
    if isinstance(value, str):
        return value if _is_text(value) else None
    # A boolean is an enumeration of h5py's own, which few other readers know.
    if isinstance(value, int) and not isinstance(value, bool):
        if -(2**63) <= value < 2**63:
            return np.int64(value)
        return np.uint64(value) if 0 <= value < 2**64 else None
    return np.float64(value) if isinstance(value, float) else None


def _is_text(text: str) -> bool:
    """Return whether HDF5 can hold a text: it ends strings at NUL and wants valid UTF-8."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if _is_text(text) else json.dumps(value)


def read(source: Any, name: str) -> dict[str, Any]:
    """Return the attributes of an HDF5 object, as JSON holds them.

    Parameters
    ----------
    source : h5py.Group or h5py.Dataset
        The object.
    name : str
        What to call it in messages.

    Raises
    ------
    TraceError
        If one is larger than any trace's, or is of a type that no trace holds.
    """
    if h5py.h5a.get_num_attrs(source.id) > MAX_ATTRIBUTES:
        raise TraceError(f"{name} has more than {MAX_ATTRIBUTES} attributes")
    found: dict[str, Any] = {}
    for key in source.attrs:
        if key in _HDF5:
            continue
        handle = h5py.h5a.open(source.id, key.encode("utf-8", "surrogateescape"))
        described = f"the attribute {key!r} of {name}"
        refusing(handle.get_type(), described)
        if handle.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            raise TraceError(
                f"{described} takes {handle.get_storage_size()} bytes, more than any trace's"
            )
        found[key] = _plain(source.attrs[key], described)
    for key in (DTYPE, VERSION):
        found.pop(key, None)
    for key in _parsed(found.pop(JSON, "[]"), list, f"the attribute {JSON!r} of {name}"):
        if not isinstance(found.get(key), str):
            raise TraceError(f"{name} lists {key!r} as JSON and has no such text")
        found[key] = _parsed(found[key], object, f"the attribute {key!r} of {name}")
    others = _parsed(found.pop(OTHERS, "{}"), dict, f"the attribute {OTHERS!r} of {name}")
    return {**found, **others}


def refusing(kind: Any, described: str) -> None:
    """Refuse an HDF5 type that is neither numbers nor texts.

    Parameters
    ----------
    kind : h5py.h5t.TypeID
        The type.
    described : str
        What has it, for the message.

    Raises
    ------
    TraceError
        If it is a reference, a compound, opaque, or of another such class.
    """
    if kind.get_class() not in _CLASSES:
        names = {
            h5py.h5t.REFERENCE: "a reference",
            h5py.h5t.COMPOUND: "a compound",
            h5py.h5t.OPAQUE: "opaque",
            h5py.h5t.VLEN: "a list of variable length",
            h5py.h5t.ARRAY: "an array type",
        }
        raise TraceError(
            f"{described} is {names.get(kind.get_class(), 'of an unknown type')}; a trace holds "
            "numbers and texts only"
        )


def _plain(value: Any, described: str) -> Any:
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.ndarray):
        return [_plain(item, described) for item in value.tolist()]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        # This is how h5py gives bytes that are not UTF-8.
        if not _is_text(value):
            raise TraceError(f"{described} is no text in UTF-8")
        return value
    return documents.plain(value, described)


def _parsed(text: Any, wanted: type, described: str) -> Any:
    try:
        value = strictjson.parse(text.encode())
    except (AttributeError, ValueError) as error:
        raise TraceError(f"{described} is not the JSON it should be: {error}") from None
    if not isinstance(value, wanted):
        raise TraceError(f"{described} is not the JSON it should be")
    return value
