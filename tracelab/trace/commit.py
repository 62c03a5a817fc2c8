"""Turns rows into shards and stores them: data first, then each array's document.

Runs in the writer's background thread. The metadata documents live in memory, so that nothing of
the store is read or listed. What is stored here shows only once the root document names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tracelab.contracts import Variable
from tracelab.trace import documents
from tracelab.trace.blocks import Block
from tracelab.trace.layout import cut
from tracelab.trace.locations import Sink
from tracelab.trace.rows import GroupRules
from tracelab.trace.schema import COORDINATE_TABLES, LAYER, LAYER_TABLE, STEP, fill_value
from tracelab.trace.shards import Part, ShardBuilder, encode_strings, encode_table
from tracelab.typing import Array

__all__ = ["Documents", "GroupStore", "store_layers"]

TABLE_CHUNK = 2**20

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
    """

    def __init__(self, rules: GroupRules, sink: Sink, memory: int) -> None:
        self.rules = rules
        self.rows = 0
        self._sink = sink
        self._memory = memory
        self._builders: dict[str, ShardBuilder] = {}
        self._documents: Documents = {}

    def extend(self, block: Block) -> None:
        """Take rows; store the shards they fill."""
        columns = {STEP.name: block.steps[: block.count]} | {
            name: values[: block.count] for name, values in block.arrays.items()
        }
        new = [name for name in columns if name not in self._builders]
        for name in new:
            self._begin(name, share=self._memory // (len(self._builders) + len(new)))
        for name, builder in self._builders.items():
            self._put_shards(name, builder.extend(columns.get(name), block.count))
        self.rows += block.count

    def _begin(self, name: str, share: int) -> None:
        variable = STEP if name == STEP.name else self.rules.variables[name]
        shape = self.rules.shapes.get(name, ())
        layout = cut(variable.dims, shape, variable.dtype, share=share, largest=self._memory)
        builder = ShardBuilder(layout, shape, variable.dtype, fill_value(variable.dtype))
        # An array that appears late was missing from all rows before.
        self._put_shards(name, builder.extend(None, self.rows))
        self._builders[name] = builder
        self._documents[name] = documents.array(variable, shape, layout)

    def _put_shards(self, name: str, shards: Iterable[tuple[str, list[Part]]]) -> None:
        for key, parts in shards:
            self._sink.put(f"{self.rules.name}/{name}/{key}", parts)

    def store(self) -> Documents:
        """Store what is not stored yet; return the group's documents, by path."""
        found = self._documents
        if self.rules.layered and LAYER.name not in found:
            names = list(self.rules.layers)
            found[LAYER.name] = _store_table(self._sink, self.rules.name, LAYER, names)
            self._put_document(LAYER.name)
        if STEP.name not in self._builders:
            self._begin(STEP.name, share=self._memory)
            self._put_document(STEP.name)
        tables = self.rules.tables()
        if tables is not None and COORDINATE_TABLES[0].name not in found:
            for variable, values in zip(COORDINATE_TABLES, tables, strict=True):
                found[variable.name] = _store_table(self._sink, self.rules.name, variable, values)
                self._put_document(variable.name)
        changed = [
            name for name, builder in self._builders.items() if found[name]["shape"][0] < self.rows
        ]
        for name in changed:
            self._put_shards(name, self._builders[name].partial())
        for name in changed:
            # A new document: the committed one may still have to be said again.
            found[name] = found[name] | {"shape": [self.rows, *found[name]["shape"][1:]]}
            self._put_document(name)
        own = documents.group(self._attributes())
        if found.get("") != own:
            found[""] = own
            self._put_document("")
        return {f"{self.rules.name}/{name}".rstrip("/"): found[name] for name in sorted(found)}

    def _attributes(self) -> Mapping[str, Any]:
        if COORDINATE_TABLES[0].name not in self._documents:
            return dict(self.rules.attrs)
        # How xarray is told that arrays are coordinates.
        return self.rules.attrs | {"coordinates": " ".join(v.name for v in COORDINATE_TABLES)}

    def _put_document(self, name: str) -> None:
        path = f"{self.rules.name}/{name}/zarr.json".replace("//", "/")
        self._sink.put(path, [documents.dump(self._documents[name])])


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
        found[path] = _store_table(sink, "layers", variable, columns[variable.name])
    for path, document in found.items():
        sink.put(f"{path}/zarr.json", [documents.dump(document)])
    return found


def _store_table(
    sink: Sink, group: str, variable: Variable, values: Sequence[str] | Array
) -> dict[str, Any]:
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
