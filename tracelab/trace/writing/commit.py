"""Turns rows into shards and stores them: data first, then each array's document.

Runs in the writer's background thread. The metadata documents live in memory, so that nothing of
the store is read or listed. What is stored here shows only once the root document names it. The
sink may store in the background; whoever calls waits for the data before it stores the documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tracelab.contracts import Variable
from tracelab.trace import bfloat16
from tracelab.trace.places.files import Part
from tracelab.trace.places.locations import Sink
from tracelab.trace.schema import (
    BFLOAT16,
    COORDINATE_TABLES,
    LAYER,
    LAYER_TABLE,
    STEP,
    fill_value,
    stored_dtype,
)
from tracelab.trace.writing import documents
from tracelab.trace.writing.blocks import Block
from tracelab.trace.writing.layout import Layout, cut
from tracelab.trace.writing.restored import RestoredGroup
from tracelab.trace.writing.rows import GroupRules
from tracelab.trace.writing.shards import ShardBuilder, encode_strings, encode_table
from tracelab.typing import Array

__all__ = ["TABLE_CHUNK", "Documents", "GroupStore", "store_layers", "store_table"]

TABLE_CHUNK = 2**20

# Every array gets at least this part of a group's memory, also one that comes when all is given
# away; what takes no more is not counted, so that steps and norms do not halve a vector's shards.
_SMALL_SHARE = 64

Documents = dict[str, dict[str, Any]]


class GroupStore:
    """The arrays of one group, between memory and the store.

    Parameters
    ----------
    rules : GroupRules
        What the group holds; the shapes of a row are settled before it arrives here.
    sink : Sink
        Where objects go.
    memory : int
        Bytes of rows that may be held until shards are full.
    compression : {"none", "lz4"}
        How chunks that are not tiny are stored.
    """

    def __init__(
        self, rules: GroupRules, sink: Sink, memory: int, compression: str = "none"
    ) -> None:
        self.rules = rules
        self.rows = 0
        self._sink = sink
        self._memory = memory
        self._free = memory
        self._compression = compression
        self._builders: dict[str, ShardBuilder] = {}
        self._documents: Documents = {}
        self._changed: set[str] = set()

    def restore(self, group: RestoredGroup) -> None:
        """Go on after rows that are stored; those of shards that are not full are held again."""
        self.rows = group.rows
        self._documents = dict(group.documents)
        for name, pieces in group.begun.items():
            variable = STEP if name == STEP.name else self.rules.variables[name]
            shape, dtype = self.rules.shapes.get(name, ()), stored_dtype(variable.dtype)
            layout = documents.layout(self._documents[name])
            builder = ShardBuilder(layout, shape, dtype, fill_value(variable.dtype))
            builder.rows = group.rows - sum(count for _, count, _ in pieces)
            for rows, count, plain in pieces:
                builder.restore(rows, count, plain=plain)
            self._builders[name] = builder
            self._reserve(layout, shape, dtype)

    def extend(self, block: Block) -> None:
        """Take rows; store the shards they fill."""
        columns = {STEP.name: block.steps[: block.count]} | {
            name: values[: block.count] for name, values in block.arrays.items()
        }
        new = [name for name in columns if name not in self._builders]
        # What small arrays do not need is for the large.
        new.sort(key=lambda name: columns[name].itemsize * math.prod(columns[name].shape[1:]))
        for place, name in enumerate(new):
            share = self._free // (len(new) - place)
            self._begin(name, max(share, self._memory // _SMALL_SHARE))
        for name, builder in self._builders.items():
            rows = columns.get(name)
            if rows is not None and name != STEP.name:
                rows = _bits(self.rules.variables[name], rows)
            self._put_shards(name, builder.extend(rows, block.count))
        self.rows += block.count

    def _begin(self, name: str, share: int) -> None:
        variable = STEP if name == STEP.name else self.rules.variables[name]
        shape = self.rules.shapes.get(name, ())
        dtype = stored_dtype(variable.dtype)
        layout = cut(
            variable.dims,
            shape,
            dtype,
            share=share,
            largest=self._memory,
            compression=self._compression,
        )
        builder = ShardBuilder(layout, shape, dtype, fill_value(variable.dtype))
        self._reserve(layout, shape, dtype)
        # An array that appears late was missing from all rows before.
        self._put_shards(name, builder.extend(None, self.rows))
        self._builders[name] = builder
        self._documents[name] = documents.array(variable, shape, layout)

    def _reserve(self, layout: Layout, shape: tuple[int, ...], dtype: str) -> None:
        nbytes = layout.shard[0] * math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes > self._memory // _SMALL_SHARE:
            self._free = max(0, self._free - nbytes)

    def _put_shards(self, name: str, shards: Iterable[tuple[str, list[Part]]]) -> None:
        for key, parts in shards:
            self._sink.put(f"{self.rules.name}/{name}/{key}", parts)

    def store_rows(self) -> None:
        """Store the rows and tables that are not stored yet."""
        found = self._documents
        if self.rules.layered and LAYER.name not in found:
            names = list(self.rules.layers)
            found[LAYER.name] = store_table(self._sink, self.rules.name, LAYER, names)
            self._changed.add(LAYER.name)
        if STEP.name not in self._builders:
            self._begin(STEP.name, share=self._memory)
            self._changed.add(STEP.name)
        tables = self.rules.tables()
        if tables is not None and COORDINATE_TABLES[0].name not in found:
            for variable, values in zip(COORDINATE_TABLES, tables, strict=True):
                found[variable.name] = store_table(self._sink, self.rules.name, variable, values)
                self._changed.add(variable.name)
        for name, builder in self._builders.items():
            if found[name]["shape"][0] < self.rows:
                self._put_shards(name, builder.partial())
                # A new document: the committed one may still have to be said again.
                found[name] = found[name] | {"shape": [self.rows, *found[name]["shape"][1:]]}
                self._changed.add(name)

    def store_documents(self) -> Documents:
        """Store the documents of what `store_rows` stored; return all of the group's, by path."""
        found = self._documents
        own = documents.group(self._attributes())
        if found.get("") != own:
            found[""] = own
            self._changed.add("")
        for name in sorted(self._changed):
            self._put_document(name)
        self._changed.clear()
        return {f"{self.rules.name}/{name}".rstrip("/"): found[name] for name in sorted(found)}

    def _attributes(self) -> Mapping[str, Any]:
        if COORDINATE_TABLES[0].name not in self._documents:
            return dict(self.rules.attrs)
        # How xarray is told that arrays are coordinates.
        return self.rules.attrs | {"coordinates": " ".join(v.name for v in COORDINATE_TABLES)}

    def _put_document(self, name: str) -> None:
        path = f"{self.rules.name}/{name}/zarr.json".replace("//", "/")
        self._sink.put(path, [documents.dump(self._documents[name])])


def _bits(variable: Variable, rows: Array) -> Array:
    """Return rows as they are stored: bfloat16 as its bits, anything else as it is."""
    return bfloat16.encode(rows) if variable.dtype == BFLOAT16 else rows


def store_layers(
    sink: Sink, layers: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]
) -> Documents:
    """Store the layer table; return its documents, by path."""
    numel = [math.prod(shape) for shape in layers.values()]
    columns: Mapping[str, Sequence[str] | Array] = {
        "layer": list(layers),
        "kind": [kinds.get(layer, "parameter") for layer in layers],
        "shape": [json.dumps(list(shape)) for shape in layers.values()],
        "numel": np.asarray(numel, dtype=np.int64),
        "offset": np.concatenate([[0], np.cumsum(numel)[:-1]]).astype(np.int64),
    }
    found = {"layers": documents.group({"kind": "layers"})}
    for variable in LAYER_TABLE:
        path = f"layers/{variable.name}"
        found[path] = store_table(sink, "layers", variable, columns[variable.name])
    for path, document in found.items():
        sink.put(f"{path}/zarr.json", [documents.dump(document)])
    return found


def store_table(
    sink: Sink, group: str, variable: Variable, values: Sequence[str] | Array
) -> dict[str, Any]:
    """Store a table's array, which is written once; return its document."""
    count = len(values)
    chunk = max(1, min(count, TABLE_CHUNK))
    for number, start in enumerate(range(0, count, chunk)):
        part = values[start : start + chunk]
        if isinstance(part, np.ndarray):
            # A chunk is stored whole, also where the table ends inside it.
            whole = np.zeros(chunk, dtype=variable.dtype)
            whole[: len(part)] = part
            content = encode_table(whole)
        else:
            content = encode_strings([*part, *[""] * (chunk - len(part))])
        sink.put(f"{group}/{variable.name}/c.{number}", [content])
    return documents.table(variable, count, chunk)
