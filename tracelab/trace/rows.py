"""What a group accepts: its layers, its arrays, their shapes; checked on every row."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.trace import documents
from tracelab.trace.schema import DTYPES, KINDS, NAME, RESERVED_GROUPS, Kind, fill_value
from tracelab.typing import Array, IntArray

__all__ = ["GroupRules", "Row", "declare"]

_NOT_ROWS = ("step", "layer", "coordinate_layer", "coordinate_index")
_SAMPLED = ("sampled", "mean_sampled")
_FULL = ("full", "mean_full")


@dataclass(frozen=True, slots=True)
class Row:
    """One row on its way to the store, checked and of the stored dtypes."""

    group: str
    step: int
    arrays: Mapping[str, Array]
    nbytes: int


@dataclass(slots=True)
class GroupRules:
    """A group as declared, and what its rows so far have settled.

    Parameters
    ----------
    name : str
        Name of the group.
    kind : Kind
        What it can record.
    layers : dict of str to int
        Number of weights of each of its layers, in order.
    attrs : dict
        Attributes of the stored group.
    coordinates : tuple of two arrays, or None
        Layer position and index inside the layer of each sampled coordinate, as declared.
    """

    name: str
    kind: Kind
    layers: dict[str, int]
    attrs: dict[str, Any]
    coordinates: tuple[IntArray, IntArray] | None = None
    variables: dict[str, Variable] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, str]] = field(default_factory=dict)
    last_step: int = -1

    @property
    def layered(self) -> bool:
        """Whether anything of its kind belongs to layers."""
        return any({"layer", "coordinate"} & set(v.dims) for v in self.kind.variables)

    def row(self, step: Any, arrays: Mapping[str, Any]) -> Row:
        """Return a checked row; what it settles is kept only if all of it is right.

        Raises
        ------
        UsageError
            A step that does not come after the last, an unknown array, a shape or dtype that
            does not fit.
        """
        number = self._step(step)
        if not arrays:
            raise UsageError(f"a row of group {self.name!r} needs at least one array")
        checked = {name: self._stored(name, value) for name, value in arrays.items()}
        new = [name for name in checked if name not in self.variables]
        if new:
            self._settle({name: checked[name] for name in new})
        for name in self.variables:
            if name not in checked and fill_value(self.variables[name].dtype) is None:
                self._forget(new)
                raise UsageError(
                    f"group {self.name!r}: the row of step {number} lacks {name!r}, and its dtype "
                    f"{self.variables[name].dtype} has no missing value; give it in every row"
                )
        self.last_step = number
        return Row(
            self.name, number, checked, 128 + sum(array.nbytes for array in checked.values())
        )

    def _step(self, step: Any) -> int:
        try:
            number = operator.index(step)
        except TypeError:
            number = -1
        if number < 0 or number > 2**62 or isinstance(step, bool | np.bool_):
            raise UsageError(
                f"group {self.name!r}: step must be a non-negative integer, got {step!r}"
            )
        if number <= self.last_step:
            raise UsageError(
                f"group {self.name!r}: step {number} does not come after step {self.last_step}; "
                "steps must increase"
            )
        return number

    def _variable(self, name: str) -> Variable:
        known = self.variables.get(name)
        if known is not None:
            return known
        if name in self.kind.names():
            return self.kind[name]
        if not NAME.fullmatch(name) or name in _NOT_ROWS:
            raise UsageError(
                f"group {self.name!r}: an array cannot be called {name!r}; use letters, digits, "
                f"'_', '.', '-', and none of {', '.join(_NOT_ROWS)}"
            )
        if self.kind.open_ended:
            return Variable(name, ("step",), "1", "float64", f"{name}, logged by the user")
        raise UsageError(
            f"group {self.name!r} of kind {self.kind.name!r} has no array {name!r}; it has: "
            f"{', '.join(self.kind.names())}"
        )

    def _stored(self, name: str, value: Any) -> Array:
        variable = self._variable(name)
        array = self._converted(variable, value)
        shape = self.shapes.get(name)
        if shape is None:
            if array.ndim != len(variable.dims) - 1:
                raise UsageError(
                    f"group {self.name!r}: a row of {name!r} has the dimensions "
                    f"{variable.dims[1:]}, got an array of shape {array.shape}"
                )
        elif array.shape != shape:
            raise UsageError(
                f"group {self.name!r}: {name!r} has had rows of shape {shape}, got {array.shape}"
            )
        return array

    def _converted(self, variable: Variable, value: Any) -> Array:
        """Return an array of the stored dtype that nobody else will change."""
        try:
            given = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"group {self.name!r}: {variable.name!r} is no array of numbers: {error}"
            ) from None
        target = np.dtype(variable.dtype)
        allowed = "biuf" if target.kind == "f" else "biu" if target.kind in "iu" else "b"
        if given.dtype.kind not in allowed:
            raise UsageError(
                f"group {self.name!r}: {variable.name!r} is stored as {target}, "
                f"got {given.dtype}; convert it first"
            )
        if given.dtype != target:
            return given.astype(target)
        # A read-only array is a promise; any other may change before it is written.
        return given.copy() if given.flags.writeable else given

    def _settle(self, arrays: Mapping[str, Array]) -> None:
        """Keep the shapes of arrays seen for the first time, all or none."""
        sizes = dict(self.sizes)
        variables = {name: self._variable(name) for name in arrays}
        for name, array in arrays.items():
            for dim, size in zip(variables[name].dims[1:], array.shape, strict=True):
                known = sizes.setdefault(dim, (size, name))
                if known[0] != size:
                    whose = "the group's layers" if dim == "layer" else f"{known[1]!r}"
                    raise UsageError(
                        f"group {self.name!r}: dimension {dim!r} of {name!r} has size {size}, "
                        f"and {known[0]} in {whose}"
                    )
                if size == 0:
                    raise UsageError(f"group {self.name!r}: dimension {dim!r} of {name!r} is empty")
        self._check_coordinates({**self.variables, **variables}, sizes)
        self.sizes = sizes
        self.variables = {**self.variables, **variables}
        self.shapes = {**self.shapes, **{name: array.shape for name, array in arrays.items()}}

    def _forget(self, names: Sequence[str]) -> None:
        self.variables = {key: var for key, var in self.variables.items() if key not in names}
        self.shapes = {key: shape for key, shape in self.shapes.items() if key not in names}

    def _check_coordinates(
        self, variables: Mapping[str, Variable], sizes: Mapping[str, tuple[int, str]]
    ) -> None:
        count, _ = sizes.get("coordinate", (0, ""))
        sampled = [name for name in _SAMPLED if name in variables]
        full = [name for name in _FULL if name in variables]
        if sampled and full:
            raise UsageError(
                f"group {self.name!r} cannot hold {sampled[0]!r} and {full[0]!r}: full holds every "
                "coordinate; record one of them, or the other in a group of another name"
            )
        total = sum(self.layers.values())
        if full and count != total:
            raise UsageError(
                f"group {self.name!r}: {full[0]!r} must hold the {total} weights of its layers, "
                f"got {count} coordinates"
            )
        if full and self.coordinates is not None:
            raise UsageError(
                f"group {self.name!r}: {full[0]!r} holds every coordinate in order; "
                "define it without coordinates="
            )
        if sampled and self.coordinates is None and count != total:
            raise UsageError(
                f"group {self.name!r}: {count} sampled coordinates of {total} weights: say which "
                f"with define({self.name!r}, coordinates=(coordinate_layer, coordinate_index))"
            )

    def tables(self) -> tuple[IntArray, IntArray] | None:
        """Return the coordinate tables to store: as declared, or of every coordinate in order."""
        if self.coordinates is not None:
            return self.coordinates
        if not any(name in self.variables for name in _SAMPLED):
            return None
        numel = list(self.layers.values())
        return (
            np.repeat(np.arange(len(numel), dtype=np.int32), numel),
            np.concatenate([np.arange(count, dtype=np.int64) for count in numel]),
        )


def declare(
    name: str,
    layers: Mapping[str, tuple[int, ...]],
    *,
    kind: str | None,
    subset: Sequence[str] | None,
    sketches: Sequence[Any],
    attrs: Mapping[str, Any] | None,
    coordinates: tuple[Any, Any] | None,
    variables: Sequence[Variable] | None,
) -> GroupRules:
    """Return the rules of a new group.

    Raises
    ------
    UsageError
        A name, kind, layer, table or variable that cannot be.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in RESERVED_GROUPS:
        raise UsageError(
            f"a group cannot be called {name!r}; use letters, digits, '_', '.', '-', "
            f"and none of {', '.join(RESERVED_GROUPS)}"
        )
    chosen = list(layers) if subset is None else list(subset)
    unknown = [layer for layer in chosen if layer not in layers]
    if unknown or not chosen or len(set(chosen)) != len(chosen):
        raise UsageError(
            f"group {name!r}: layers must be different ones of {', '.join(layers)}, got {chosen}"
        )
    numel = {layer: math.prod(layers[layer]) for layer in chosen}
    own = documents.plain(dict(attrs or {}), f"attrs of group {name!r}")
    for reserved in ("kind", "sketches", "complete", "coordinates"):
        if reserved in own:
            raise UsageError(f"group {name!r}: the attribute {reserved!r} is set by tracelab")
    rules = GroupRules(
        name,
        _kind(name, kind or name, variables),
        numel,
        {
            "kind": kind or name,
            "sketches": [_sketch(name, sketch) for sketch in sketches],
            "complete": False,
            **own,
        },
        None if coordinates is None else _tables(name, numel, coordinates),
    )
    rules.sizes["layer"] = (len(numel), "layer")
    if rules.coordinates is not None:
        rules.sizes["coordinate"] = (rules.coordinates[0].size, "coordinate_layer")
    return rules


def _kind(group: str, kind: str, variables: Sequence[Variable] | None) -> Kind:
    if kind in KINDS:
        if variables is not None:
            raise UsageError(
                f"group {group!r}: the arrays of kind {kind!r} are declared by tracelab; leave "
                "variables out or choose another kind"
            )
        return KINDS[kind]
    if not NAME.fullmatch(kind):
        raise UsageError(f"group {group!r}: a kind cannot be called {kind!r}")
    if not variables:
        raise UsageError(
            f"group {group!r}: {kind!r} is not one of the kinds {', '.join(KINDS)}; say what it "
            "holds with define(..., variables=[Variable(...), ...])"
        )
    for variable in variables:
        fits = (
            NAME.fullmatch(variable.name)
            and variable.name not in _NOT_ROWS
            and variable.dims[:1] == ("step",)
            and len(set(variable.dims)) == len(variable.dims)
            and all(NAME.fullmatch(dim) for dim in variable.dims)
            and variable.dtype in DTYPES - {"string"}
        )
        if not fits:
            raise UsageError(
                f"group {group!r}: {variable} cannot be stored; its name must be a plain one, its "
                f"dims start with 'step' and differ, its dtype be one of "
                f"{', '.join(sorted(DTYPES - {'string'}))}"
            )
    return Kind(kind, tuple(variables))


def _sketch(group: str, sketch: Any) -> dict[str, Any]:
    """Return a sketch as its attributes: a mapping as it is, a sketch by its fields."""
    described = sketch if isinstance(sketch, Mapping) else getattr(sketch, "describe", dict)()
    if "kind" not in described:
        raise UsageError(
            f"group {group!r}: a sketch is a mapping with kind, k and seed, or a tracelab sketch, "
            f"got {sketch!r}"
        )
    plain: dict[str, Any] = documents.plain(described, f"sketches of group {group!r}")
    return plain


def _tables(
    group: str, numel: Mapping[str, int], coordinates: tuple[Any, Any]
) -> tuple[IntArray, IntArray]:
    try:
        layer, index = (np.array(table) for table in coordinates)
    except ValueError:
        layer = index = np.empty(0)
    if not (layer.ndim == 1 and layer.shape == index.shape and layer.size) or not (
        layer.dtype.kind in "iu" and index.dtype.kind in "iu"
    ):
        raise UsageError(
            f"group {group!r}: coordinates must be two integer vectors of one length: the "
            "position of each coordinate's layer in the group, and its index in the layer"
        )
    sizes = np.array(list(numel.values()))
    inside = (layer >= 0) & (layer < sizes.size)
    if not inside.all() or not ((index >= 0) & (index < sizes[layer])).all():
        raise UsageError(
            f"group {group!r}: coordinates point outside its {sizes.size} layers or beyond a "
            "layer's last weight"
        )
    return layer.astype(np.int32), index.astype(np.int64)
