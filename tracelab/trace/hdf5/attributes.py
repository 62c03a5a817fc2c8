"""Attributes of a trace as attributes of an HDF5 object, and back.

Texts and numbers are HDF5's own; everything else JSON can say is a JSON text, and one attribute
lists which are. Nothing is pickled, and what no trace holds is refused before it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from tracelab.errors import DamagedError, TraceError
from tracelab.trace.hdf5 import checksums
from tracelab.trace.reading import strictjson
from tracelab.trace.writing import documents

__all__ = [
    "CRC32C",
    "DTYPE",
    "LABELS",
    "VERSION",
    "changed",
    "check_labels",
    "read",
    "refusing",
    "write",
]

JSON = "tracelab_json"
"""JSON list of the object's attributes whose text is JSON."""

OTHERS = "tracelab_attributes"
"""JSON object of the attributes whose names HDF5 cannot hold, or keeps for itself."""

DTYPE = "tracelab_dtype"
"""Dtype of a dataset, where its HDF5 type alone does not tell."""

VERSION = "tracelab_hdf5"
"""Version of these conventions, on the root."""

CRC32C = "tracelab_crc32c"
"""crc32c of a dataset's values."""

TEXTS = "tracelab_texts_crc32c"
"""JSON object: crc32c of each attribute that is a text, which HDF5 itself gives none."""

LABELS = "DIMENSION_LABELS"
"""What HDF5 calls the attribute with the labels of the dimensions."""

# What the HDF5 and netCDF libraries keep for themselves.
_HDF5 = ("CLASS", "NAME", "DIMENSION_LIST", LABELS, "REFERENCE_LIST")
_OURS = (DTYPE, VERSION, CRC32C, TEXTS)
_RESERVED = frozenset((JSON, OTHERS, *_OURS, *_HDF5, "_FillValue"))

LONGEST_NAME = 255
MAX_ATTRIBUTES = 10_000
MAX_ATTRIBUTE_BYTES = strictjson.MAX_BYTES

_CLASSES = frozenset((h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM))


def write(
    target: Any,
    attributes: Mapping[str, Any],
    *,
    dtype: str | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Give an HDF5 object the attributes of a trace, a group or an array.

    Parameters
    ----------
    target : h5py.Group or h5py.Dataset
        The object.
    attributes : mapping
        As JSON holds them.
    dtype : str, optional
        The dtype in the trace, of a dataset whose HDF5 type does not tell.
    labels : sequence of str, optional
        What the dimensions of a dataset are labelled.
    """
    natives: dict[str, Any] = {}
    listed, others = [], {}
    for name, value in attributes.items():
        if name in _RESERVED or not (_is_text(name) and 0 < len(name.encode()) <= LONGEST_NAME):
            others[name] = value
            continue
        native = _native(value)
        if native is None:
            listed.append(name)
            native = _dump(value)
        natives[name] = native
    if listed:
        natives[JSON] = _dump(sorted(listed))
    if others:
        natives[OTHERS] = _dump(others)
    if dtype is not None:
        natives[DTYPE] = dtype
    for name, native in natives.items():
        target.attrs[name] = native
    sums = {
        name: checksums.of_text(native)
        for name, native in sorted(natives.items())
        if isinstance(native, str)
    }
    if labels is not None:
        sums[LABELS] = _of_labels(labels)
    if sums:
        target.attrs[TEXTS] = _dump(sums)


def _of_labels(labels: Sequence[str]) -> int:
    return checksums.of_text("\0".join(labels))


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
        if key not in (*_HDF5, TEXTS):
            found[key] = _one(source, key, name)
    for key, checksum in _text_checksums(source, name).items():
        if key != LABELS and (
            not isinstance(found.get(key), str) or checksums.of_text(found[key]) != checksum
        ):
            raise changed(f"the attribute {key!r} of {name}", TEXTS)
    for key in _OURS:
        found.pop(key, None)
    for key in _parsed(found.pop(JSON, "[]"), list, f"the attribute {JSON!r} of {name}"):
        if not isinstance(found.get(key), str):
            raise TraceError(f"{name} lists {key!r} as JSON and has no such text")
        found[key] = _parsed(found[key], object, f"the attribute {key!r} of {name}")
    others = _parsed(found.pop(OTHERS, "{}"), dict, f"the attribute {OTHERS!r} of {name}")
    return {**found, **others}


def _one(source: Any, key: str, name: str) -> Any:
    handle = h5py.h5a.open(source.id, key.encode("utf-8", "surrogateescape"))
    described = f"the attribute {key!r} of {name}"
    refusing(handle.get_type(), described)
    if handle.get_storage_size() > MAX_ATTRIBUTE_BYTES:
        raise TraceError(
            f"{described} takes {handle.get_storage_size()} bytes, more than any trace's"
        )
    return _plain(source.attrs[key], described)


def _text_checksums(source: Any, name: str) -> dict[str, Any]:
    """Return the crc32c by name of those attributes of an HDF5 object that were written with one.

    Parameters
    ----------
    source : h5py.Group or h5py.Dataset
        The object.
    name : str
        What to call it in messages.

    Raises
    ------
    TraceError
        If that is not what the attribute holds.
    """
    if TEXTS not in source.attrs:
        return {}
    found: dict[str, Any] = _parsed(
        _one(source, TEXTS, name), dict, f"the attribute {TEXTS!r} of {name}"
    )
    return found


def check_labels(source: Any, labels: Sequence[str], name: str) -> None:
    """Refuse labels of dimensions that are not those that were written.

    Parameters
    ----------
    source : h5py.Dataset
        What has them.
    labels : sequence of str
        As they were read; none if they are not there.
    name : str
        What to call it in messages.

    Raises
    ------
    DamagedError
        If they have another crc32c.
    """
    checksum = _text_checksums(source, name).get(LABELS)
    if checksum is not None and checksum != _of_labels(labels):
        raise changed(f"the attribute {LABELS!r} of {name}", TEXTS)


def changed(described: str, checksum: str) -> DamagedError:
    """Return the error of what has another crc32c than it was written with.

    Parameters
    ----------
    described : str
        What has.
    checksum : str
        The attribute that says which it was written with.
    """
    return DamagedError(
        f"{described} is not what was written: its crc32c is another; if it was changed on "
        f"purpose, delete the attribute {checksum!r} beside it"
    )


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
