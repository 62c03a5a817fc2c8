"""Makes of what a file holds a whole trace: checks what labels rows, adds what can be left out.

A file that tracelab wrote is complete. One that somebody's own script wrote may leave out what
tracelab knows: units, dimensions of arrays that it knows, labels of layers, who wrote it.
"""

from __future__ import annotations

import json
import math
import platform
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from tracelab.contracts import NETWORK, Variable
from tracelab.errors import TraceError
from tracelab.trace.hdf5.reading import FoundArray, FoundGroup, FoundTrace
from tracelab.trace.hdf5.values import Stored, checked, whole
from tracelab.trace.schema import (
    COORDINATE_TABLES,
    FORMAT,
    FORMAT_VERSION,
    KINDS,
    LAYER,
    LAYER_TABLE,
    STEP,
    array_attributes,
)
from tracelab.typing import Array

__all__ = ["complete"]

BLOCK = 2**20
_OWN = {variable.name: variable for variable in (STEP, LAYER, *COORDINATE_TABLES)}
_SAMPLED = ("sampled", "mean_sampled")
_FULL = ("full", "mean_full")


def complete(found: FoundTrace) -> FoundTrace:
    """Return a trace of which everything is said, and what labels its rows is right.

    Raises
    ------
    TraceError
        If something is missing that cannot be known, or contradicts something else.
    """
    attributes = _root(found.attributes)
    table, sizes = _layers(found.groups.get("layers"))
    done = attributes["state"] == "complete"
    groups = {
        name: _group(name, group, sizes, done)
        for name, group in found.groups.items()
        if name != "layers"
    }
    ranks = {path: complete(rank) for path, rank in found.ranks.items()}
    return replace(found, attributes=attributes, groups={"layers": table, **groups}, ranks=ranks)


def _root(given: Mapping[str, Any]) -> dict[str, Any]:
    if given.get("format") != FORMAT:
        raise TraceError(
            f"it holds no tracelab trace: its attribute 'format' is {given.get('format')!r}"
        )
    if given.get("format_version") != FORMAT_VERSION:
        raise TraceError(
            f"it has format version {given.get('format_version')!r}, this tracelab reads "
            f"{FORMAT_VERSION}; install the version that wrote it, or a newer one"
        )
    assumed = {
        "run": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(),
        "state": "complete",
        "incomplete_reasons": [],
        "metadata": {},
        "compression": "none",
        "software": {"python": platform.python_version()}
        | {name: version(name) for name in ("tracelab", "numpy", "zarr")},
    }
    attributes = {**assumed, **given}
    for name, wanted in assumed.items():
        if not isinstance(attributes[name], type(wanted)):
            raise TraceError(f"its attribute {name!r} is {attributes[name]!r}")
    return attributes


def _layers(group: FoundGroup | None) -> tuple[FoundGroup, dict[str, int]]:
    """Return the layer table, and the number of weights by layer."""
    if group is None or not {"layer", "shape"} <= group.arrays.keys():
        raise TraceError(
            "it has no group 'layers' with the datasets 'layer', names, and 'shape', JSON lists"
        )
    given = {variable.name: group.arrays.get(variable.name) for variable in LAYER_TABLE}
    names, shapes = (_texts(group.arrays[name], name) for name in ("layer", "shape"))
    if len(names) != len(shapes) or len(set(names)) != len(names) or not names:
        raise TraceError("its layers are not one or more different names with a shape each")
    for name in names:
        if not name or not name.isprintable() or name == NETWORK:
            raise TraceError(f"a layer cannot be called {name!r}")
    numel = np.array([_numel(name, shape) for name, shape in zip(names, shapes, strict=True)])
    columns: dict[str, Any] = {
        "layer": np.array(names, dtype=object),
        "kind": np.array(["parameter"] * len(names), dtype=object),
        "shape": np.array(shapes, dtype=object),
        "numel": numel,
        "offset": np.concatenate([[0], np.cumsum(numel)[:-1]]).astype(np.int64),
    }
    arrays = {}
    for variable in LAYER_TABLE:
        known = given[variable.name]
        values = columns[variable.name]
        attributes = array_attributes(variable)
        if known is not None:
            attributes = {**attributes, **known.attributes}
            found = _texts(known, variable.name) if known.dtype == "string" else whole(known.values)
            if variable.name == "kind":
                values = np.array(found, dtype=object)
            if known.shape != (len(names),) or not np.array_equal(values, found):
                raise TraceError(f"layers/{variable.name} does not agree with layers/shape")
        arrays[variable.name] = FoundArray(values, variable.dtype, ("layer",), attributes)
    rest = {
        name: _array("layers", name, array, "")
        for name, array in group.arrays.items()
        if name not in arrays
    }
    attributes = {"kind": "layers", **group.attributes}
    sizes = dict(zip(names, numel.tolist(), strict=True))
    return FoundGroup(attributes, {**rest, **arrays}), sizes


def _texts(array: FoundArray, name: str) -> list[str]:
    if array.dtype != "string" or len(array.shape) != 1:
        raise TraceError(f"{name!r} is not a list of texts")
    return [str(text) for text in whole(array.values)]


def _numel(layer: str, text: str) -> int:
    try:
        shape = json.loads(text)
    except (ValueError, RecursionError):
        shape = None
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise TraceError(f"layer {layer!r} has the shape {text!r}, which is no JSON list of sizes")
    numel = math.prod(shape)
    if numel > 2**62:
        raise TraceError(f"layer {layer!r} has the shape {text!r}, more weights than there can be")
    return numel


def _group(name: str, group: FoundGroup, sizes: Mapping[str, int], done: bool) -> FoundGroup:
    attributes = {"kind": name, "sketches": [], "complete": done, **group.attributes}
    kind = attributes["kind"]
    if not isinstance(kind, str):
        raise TraceError(f"group {name!r} has the kind {kind!r}")
    arrays = {each: _array(name, each, array, kind) for each, array in group.arrays.items()}
    if STEP.name not in arrays:
        raise TraceError(
            f"group {name!r} has no dataset 'step': the number of completed optimizer steps "
            "before each row"
        )
    arrays[STEP.name] = _steps(name, arrays[STEP.name])
    dims = {dim for array in arrays.values() for dim in array.dims or ()}
    if dims & {"layer", "coordinate"} and LAYER.name not in arrays:
        labels = np.array(list(sizes), dtype=object)
        arrays[LAYER.name] = FoundArray(labels, "string", ("layer",), array_attributes(LAYER))
    own: Mapping[str, int] = {}
    if LAYER.name in arrays:
        own = _own_layers(name, arrays[LAYER.name], sizes)
    if "coordinate" in dims:
        _complete_coordinates(name, arrays, attributes, np.array(list(own.values())))
    return FoundGroup(attributes, arrays)


def _own_layers(group: str, array: FoundArray, sizes: Mapping[str, int]) -> dict[str, int]:
    labels = _texts(array, f"{group}/layer")
    unknown = [label for label in labels if label not in sizes]
    if unknown or len(set(labels)) != len(labels):
        raise TraceError(f"group {group!r} does not have different layers of the table: {labels}")
    return {label: sizes[label] for label in labels}


def _array(group: str, name: str, array: FoundArray, kind: str) -> FoundArray:
    """Return an array with its dimensions, its unit and its description."""
    known: Variable | None = _OWN.get(name)
    if known is None and kind in KINDS and name in KINDS[kind].names():
        known = KINDS[kind][name]
    if known is None and kind in KINDS and KINDS[kind].open_ended and len(array.shape) == 1:
        known = Variable(name, ("step",), "1", array.dtype, f"{name}, logged by the user")
    dims = array.dims
    if dims is None and known is not None and len(known.dims) == len(array.shape):
        dims = known.dims
    if dims is None:
        raise TraceError(
            f"{group}/{name} does not say what its {len(array.shape)} dimensions are; in h5py: "
            f'file["{group}/{name}"].dims[0].label = "step", and so on'
        )
    assumed = array_attributes(known or Variable(name, dims, "1", array.dtype, name))
    return replace(array, dims=dims, attributes={**assumed, **array.attributes})


def _steps(group: str, steps: FoundArray) -> FoundArray:
    if steps.dims != ("step",) or np.dtype(steps.dtype).kind not in "iu":
        raise TraceError(f"{group}/step is not a list of integers")
    last, wrong = -1, None
    with checked(steps.values) as values:
        for start in range(0, steps.shape[0], BLOCK):
            block = values[start : start + BLOCK]
            if block[0] <= last or block[-1] > 2**62 or (block[1:] <= block[:-1]).any():
                wrong = start if wrong is None else wrong
            last = int(block[-1])
    if wrong is not None:
        raise TraceError(
            f"{group}/step holds steps that do not increase from 0 on, near row {wrong}"
        )
    return _as(steps, "int64")


def _as(array: FoundArray, dtype: str) -> FoundArray:
    values = array.values
    if isinstance(values, Stored):
        values = replace(values, dtype=dtype)
    return replace(array, values=values, dtype=dtype)


def _complete_coordinates(
    group: str, arrays: dict[str, FoundArray], attributes: dict[str, Any], numel: Array
) -> None:
    """Check that every coordinate has its place in a layer."""
    count = next(
        array.shape[array.dims.index("coordinate")]
        for array in arrays.values()
        if array.dims and "coordinate" in array.dims
    )
    names = [variable.name for variable in COORDINATE_TABLES]
    if all(name in arrays for name in names):
        _check_tables(group, arrays[names[0]], arrays[names[1]], numel)
        for variable in COORDINATE_TABLES:
            arrays[variable.name] = _as(arrays[variable.name], variable.dtype)
        attributes.setdefault("coordinates", " ".join(names))
        return
    if any(name in arrays for name in (*_FULL, *_SAMPLED)) and count != numel.sum():
        raise TraceError(
            f"group {group!r} has {count} coordinates of {numel.sum()} weights; "
            "'coordinate_layer' and 'coordinate_index' must say which"
        )
    if any(name in arrays for name in _SAMPLED):
        columns = (
            np.repeat(np.arange(numel.size, dtype=np.int32), numel),
            np.concatenate([np.arange(size, dtype=np.int64) for size in numel]),
        )
        for variable, values in zip(COORDINATE_TABLES, columns, strict=True):
            arrays[variable.name] = FoundArray(
                values, variable.dtype, variable.dims, array_attributes(variable)
            )
        attributes.setdefault("coordinates", " ".join(names))


def _check_tables(group: str, layer: FoundArray, index: FoundArray, numel: Array) -> None:
    if not (layer.dims == index.dims == ("coordinate",) and layer.shape == index.shape) or any(
        np.dtype(table.dtype).kind not in "iu" for table in (layer, index)
    ):
        raise TraceError(f"the coordinate tables of group {group!r} are not two lists of integers")
    wrong = None
    with checked(layer.values) as of_layer, checked(index.values) as of_index:
        for start in range(0, layer.shape[0], BLOCK):
            owners = of_layer[start : start + BLOCK]
            places = of_index[start : start + BLOCK]
            inside = (owners >= 0) & (owners < numel.size)
            owned = (places >= 0) & (places < numel[np.where(inside, owners, 0)])
            if wrong is None and not (inside & owned).all():
                wrong = start
    if wrong is not None:
        raise TraceError(
            f"the coordinate tables of group {group!r} point outside of its layers, "
            f"near coordinate {wrong}"
        )
