"""What an HDF5 file says it holds, checked before any of it is believed.

A file comes from anywhere. Links that lead elsewhere, storage in other files, types and filters
that need foreign code, and sizes that the file cannot hold are refused; nothing is read until the
structure of the whole file has been walked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from tracelab.errors import DamagedError, TraceError
from tracelab.trace.hdf5 import attributes as hdf5_attributes
from tracelab.trace.hdf5.input import Input
from tracelab.trace.hdf5.values import Stored
from tracelab.trace.resultstore.results import RESULTS
from tracelab.trace.schema import DTYPES, NAME

__all__ = ["FoundArray", "FoundGroup", "FoundTrace", "inspect"]

WORKERS = "workers"
RANK = re.compile(r"rank-[0-9]{1,9}")

MAX_MEMBERS = 10_000
MAX_CHUNK_BYTES = 2**26
MAX_TEXT_BYTES = 2**16
TEXTS_AT_ONCE = 2**16
# gzip makes nothing smaller than a thousandth.
LARGEST_RATIO = 2_000
# Attributes and texts are in neither: indexes of chunks, object headers, free space.
OVERHEAD_BYTES = 2**27
OVERHEAD_SHARE = 64

_FILTERS = {
    h5py.h5z.FILTER_DEFLATE: "gzip",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
    h5py.h5z.FILTER_LZF: "lzf",
}


@dataclass(frozen=True, slots=True)
class FoundArray:
    """An array: where its values are, its dimensions (None: not said) and attributes."""

    values: Any
    dtype: str
    dims: tuple[str, ...] | None
    attributes: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        shape: tuple[int, ...] = self.values.shape
        return shape


@dataclass(frozen=True, slots=True)
class FoundGroup:
    """A group: its attributes and its arrays."""

    attributes: Mapping[str, Any]
    arrays: Mapping[str, FoundArray]


@dataclass(frozen=True, slots=True)
class FoundTrace:
    """A trace: root attributes, groups, results by path, and the traces of workers by path."""

    attributes: Mapping[str, Any]
    groups: Mapping[str, FoundGroup]
    results: Mapping[str, FoundGroup] = field(default_factory=dict)
    ranks: Mapping[str, FoundTrace] = field(default_factory=dict)


def inspect(root: Any, file: Input) -> FoundTrace:
    """Return what a file holds.

    Parameters
    ----------
    root : h5py.File
        The open file.
    file : Input
        What it is opened from.

    Raises
    ------
    TraceError
        If it is not a trace's file, or holds what no trace does.
    """
    if "format" not in root.attrs:
        raise TraceError(
            "it is an HDF5 file but holds no tracelab trace: its top has no attribute 'format'"
        )
    sizes = _Sizes(file)
    tree = _walk(root, "", sizes, top=True)
    sizes.check()
    return _trace(root, tree)


@dataclass(slots=True)
class _Tree:
    """Checked members of a group."""

    datasets: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, tuple[Any, _Tree]] = field(default_factory=dict)


@dataclass(slots=True)
class _Sizes:
    """What the datasets seen so far declare, against what the file can hold."""

    file: Input
    declared: int = 0
    texts: int = 0
    stored: dict[int, int] = field(default_factory=dict)

    def add(self, dataset: Any, nbytes: int) -> None:
        self.declared += nbytes
        self.texts += sum(_text_bytes(dataset, self.file))
        self.stored[h5py.h5o.get_info(dataset.id).addr] = dataset.id.get_storage_size()

    def check(self) -> None:
        file_bytes = self.file.size
        if self.declared > LARGEST_RATIO * file_bytes or self.texts > file_bytes:
            raise TraceError(
                f"its datasets declare {self.declared} bytes, and texts of {self.texts} bytes, "
                f"which a file of {file_bytes} bytes cannot hold"
            )
        # Attributes and texts are outside of all datasets.
        rest = file_bytes - sum(self.stored.values())
        if not 0 <= rest <= OVERHEAD_BYTES + file_bytes // OVERHEAD_SHARE:
            raise TraceError(
                f"{rest} of its {file_bytes} bytes are not values of datasets; attributes "
                "and texts of a trace are smaller (h5repack removes free space from a file)"
            )


def _text_bytes(dataset: Any, file: Input) -> Iterator[int]:
    """Yield how long texts of variable length say they are; HDF5 allocates it before it looks."""
    kind = dataset.id.get_type()
    if kind.get_class() != h5py.h5t.STRING or not kind.is_variable_str():
        return
    if dataset.id.get_create_plist().get_nfilters():
        # These entries are compressed, so damage is found when they are read.
        return
    # An entry is the length of a text, then where it is.
    entry = 8 + dataset.file.id.get_create_plist().get_sizes()[0]
    if dataset.chunks is None:
        start = dataset.id.get_offset()
        for first in range(0, 0 if start is None else dataset.size, TEXTS_AT_ONCE):
            count = min(TEXTS_AT_ONCE, dataset.size - first)
            yield _lengths(file.content(start + first * entry, count * entry), entry)
        return
    chunks: list[Any] = []
    dataset.id.chunk_iter(chunks.append)
    for chunk in chunks:
        if chunk.size != math.prod(dataset.chunks) * entry:
            raise DamagedError(
                f"{dataset.name} has a chunk of {chunk.size} bytes, which is not its own"
            )
        yield _lengths(file.content(chunk.byte_offset, chunk.size), entry)


def _lengths(content: bytes, entry: int) -> int:
    entries = np.frombuffer(content, np.uint8)[: len(content) // entry * entry]
    lengths = entries.reshape(-1, entry)[:, :4].copy().view("<u4")
    return int(lengths.sum(dtype=np.int64))


def _members(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    if len(group) > MAX_MEMBERS:
        raise TraceError(f"/{path} has more than {MAX_MEMBERS} members")
    for name in group:
        described = f"{path}/{name}".lstrip("/")
        if not NAME.fullmatch(name):
            raise TraceError(f"{described!r} cannot be the name of a group or an array")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "an external" if isinstance(link, h5py.ExternalLink) else "a soft"
            raise TraceError(f"{described} is {kind} link; a trace's file holds what it names")
        yield name, group[name]


def _walk(group: Any, path: str, sizes: _Sizes, *, top: bool) -> _Tree:
    """Check a group and all below it; groups are nowhere deeper than here, so no cycle is run."""
    tree = _Tree()
    for name, member in _members(group, path):
        described = f"{path}/{name}".lstrip("/")
        if not isinstance(member, h5py.Group):
            raise TraceError(f"{described} is no group; a trace has its arrays in groups")
        if name == RESULTS:
            tree.groups[name] = (member, _levels(member, described, sizes, 2))
        elif name == WORKERS and top and len(member) and all(map(RANK.fullmatch, member)):
            ranks = _Tree()
            for rank, inside in _members(member, described):
                if not isinstance(inside, h5py.Group):
                    raise TraceError(f"{described}/{rank} is no group")
                found = _walk(inside, f"{described}/{rank}", sizes, top=False)
                ranks.groups[rank] = (inside, found)
            tree.groups[name] = (member, ranks)
        else:
            tree.groups[name] = (member, _levels(member, described, sizes, 0))
    return tree


def _levels(group: Any, path: str, sizes: _Sizes, depth: int) -> _Tree:
    """Check `depth` levels of groups, and below them datasets."""
    tree = _Tree()
    for name, member in _members(group, path):
        described = f"{path}/{name}"
        if depth and isinstance(member, h5py.Group):
            tree.groups[name] = (member, _levels(member, described, sizes, depth - 1))
        elif not depth and isinstance(member, h5py.Dataset):
            _check_dataset(member, described, sizes)
            tree.datasets[name] = member
        else:
            raise TraceError(f"{described} is not {'a group' if depth else 'a dataset'}")
    return tree


def _check_dataset(dataset: Any, name: str, sizes: _Sizes) -> None:
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise TraceError(f"{name} keeps its values in other files, which are not read")
    for number in range(properties.get_nfilters()):
        code = properties.get_filter(number)[0]
        if code not in _FILTERS:
            raise TraceError(
                f"{name} needs the filter {code}, which is not among {', '.join(_FILTERS.values())}"
                "; h5repack -f GZIP=1 stores it with one that is"
            )
    kind = dataset.id.get_type()
    hdf5_attributes.refusing(kind, name)
    if kind.get_class() == h5py.h5t.ENUM and dataset.dtype != np.bool_:
        raise TraceError(f"{name} is an enumeration; a trace holds numbers and texts only")
    if dataset.shape is None or math.prod(dataset.shape) >= 2**62:
        raise TraceError(f"{name} has the shape {dataset.shape}, which no array of a trace has")
    if kind.get_size() > MAX_TEXT_BYTES:
        raise TraceError(f"{name} has texts of {kind.get_size()} bytes, longer than a trace's")
    if math.prod(dataset.chunks or ()) * kind.get_size() > MAX_CHUNK_BYTES:
        raise TraceError(
            f"{name} has chunks of {dataset.chunks}, too large to read one by one; "
            "h5repack -l CHUNK=... cuts them anew"
        )
    sizes.add(dataset, math.prod(dataset.shape) * kind.get_size())


def _trace(root: Any, tree: _Tree) -> FoundTrace:
    attributes = hdf5_attributes.read(root, root.name)
    groups, results, ranks = {}, {}, {}
    for name, (group, inside) in tree.groups.items():
        if name == RESULTS:
            results = {
                f"{RESULTS}/{analysis}/{key}": _group(found, below)
                for analysis, (_, keys) in inside.groups.items()
                for key, (found, below) in keys.groups.items()
            }
        elif inside.groups:
            ranks = {
                f"{name}/{rank}": _trace(found, below)
                for rank, (found, below) in inside.groups.items()
            }
        else:
            groups[name] = _group(group, inside)
    return FoundTrace(attributes, groups, results, ranks)


def _group(group: Any, tree: _Tree) -> FoundGroup:
    arrays = {}
    for name, dataset in tree.datasets.items():
        described = str(dataset.name).lstrip("/")
        dtype = _dtype(dataset, described)
        attributes = hdf5_attributes.read(dataset, described)
        values = Stored(dataset, dtype, described, _crc32c(dataset, described))
        arrays[name] = FoundArray(values, dtype, _labels(dataset, described), attributes)
    return FoundGroup(hdf5_attributes.read(group, str(group.name).lstrip("/")), arrays)


def _dtype(dataset: Any, name: str) -> str:
    """Return the dtype of a dataset in a trace."""
    marker = ""
    if hdf5_attributes.DTYPE in dataset.attrs:
        hdf5_attributes.refusing(dataset.attrs.get_id(hdf5_attributes.DTYPE).get_type(), name)
        marker = str(dataset.attrs[hdf5_attributes.DTYPE])
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return "string"
    found = str(dataset.dtype.newbyteorder("="))
    if marker:
        if marker != "bool" or found not in ("uint8", "int8", "bool"):
            raise TraceError(f"{name} holds {found} and says its dtype is {marker!r}")
        return marker
    if found not in DTYPES:
        raise TraceError(f"{name} holds {found}; a trace holds {', '.join(sorted(DTYPES))}")
    return found


def _crc32c(dataset: Any, name: str) -> int | None:
    """Return the checksum of a dataset's values, if it was written with one."""
    key = hdf5_attributes.CRC32C
    if key not in dataset.attrs:
        return None
    handle = dataset.attrs.get_id(key)
    if handle.get_type().get_class() != h5py.h5t.INTEGER or handle.shape != ():
        raise TraceError(f"the attribute {key!r} of {name} is no checksum")
    return int(dataset.attrs[key])


def _labels(dataset: Any, name: str) -> tuple[str, ...] | None:
    """Return the labels of the dimensions.

    Not through the HDF5 library's own function, which believes what it finds in the attribute.
    """
    if hdf5_attributes.LABELS not in dataset.attrs:
        hdf5_attributes.check_labels(dataset, (), name)
        return () if dataset.ndim == 0 else None
    handle = dataset.attrs.get_id(hdf5_attributes.LABELS)
    hdf5_attributes.refusing(handle.get_type(), f"the labels of the dimensions of {name}")
    if handle.get_type().get_class() != h5py.h5t.STRING or handle.shape != (dataset.ndim,):
        raise TraceError(f"{name} has {dataset.ndim} dimensions and not as many labels of them")
    labels = tuple(
        label.decode("utf-8", "surrogateescape") if isinstance(label, bytes) else str(label)
        for label in dataset.attrs[hdf5_attributes.LABELS].tolist()
    )
    hdf5_attributes.check_labels(dataset, labels, name)
    return labels if all(labels) else None
