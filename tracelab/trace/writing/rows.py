"""What a group accepts: its layers, its arrays, their shapes; checked on every row."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.trace.schema import (
    BFLOAT16,
    DTYPES,
    KINDS,
    NAME,
    RESERVED_GROUPS,
    SKETCHED,
    Kind,
    fill_value,
    taken_dtype,
)
from tracelab.trace.writing import documents
from tracelab.typing import Array, IntArray

__all__ = ["GroupRules", "declare", "with_dtype"]

_NOT_ROWS = ("step", "layer", "coordinate_layer", "coordinate_index")
_SAMPLED = tuple(name for name in SKETCHED if name.endswith("sampled"))
_FULL = tuple(name for name in SKETCHED if name.endswith("full"))
_ROW_DTYPES = (DTYPES - {"string"}) | {BFLOAT16}


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
    known: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = field(default_factory=dict)
    always: tuple[str, ...] = ()
    last_step: int = -1
    # Names of the last row, and its bytes: nearly always those of the next.
    weighed: tuple[tuple[str, ...], int] = ((), 8)

    @property
    def layered(self) -> bool:
        """Whether anything of its kind belongs to layers."""
        return any({"layer", "coordinate"} & set(v.dims) for v in self.kind.variables)

    @property
    def sketched_dtype(self) -> str | None:
        """What `declare` was given as ``dtype``, if the kind is one of tracelab's with sketches."""
        dtypes = {v.dtype for v in self.kind.variables if v.name in SKETCHED}
        return dtypes.pop() if self.kind.name in KINDS and dtypes else None

    def row(self, step: Any, arrays: Mapping[str, Any]) -> tuple[int, dict[str, Array]]:
        """Return a checked row; what it settles is kept only if all of it is right.

        Returns
        -------
        step : int
        arrays : dict of str to ndarray
            As given, if they are arrays: still the caller's, and not yet of the stored dtype.

        Raises
        ------
        UsageError
            A step that does not come after the last, an unknown array, a shape or dtype that
            does not fit.
        """
        number = self._step(step)
        if not arrays:
            raise UsageError(f"a row of group {self.name!r} needs at least one array")
        checked: dict[str, Array] = {}
        new = []
        for name, value in arrays.items():
            given = value if type(value) is np.ndarray else self._array(name, value)
            known = self.known.get(name)
            if known is None:
                new.append(name)
                self._check(name, given)
            # Most rows are what the rows before were: one comparison of identities is enough.
            elif given.shape != known[1] or (
                given.dtype is not known[0] and given.dtype.kind not in _allowed(known[0])
            ):
                self._check(name, given)
            checked[name] = given
        if self.always:
            self._check_complete(number, checked)
        if new:
            self._settle({name: checked[name] for name in new})
        self.last_step = number
        return number, checked

    def rows(self, steps: Any, arrays: Mapping[str, Any]) -> tuple[IntArray, dict[str, Array]]:
        """Return checked rows that all hold the same arrays; what they settle, as `row` does.

        Returns
        -------
        steps : ndarray of int64, shape (row,)
        arrays : dict of str to ndarray, shape (row, ...)
            As given, if they are arrays.

        Raises
        ------
        UsageError
            What `row` says of any of them.
        """
        given = {name: self._array(name, value) for name, value in arrays.items()}
        numbers = self._array("steps", steps)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise UsageError(
                f"group {self.name!r}: steps must be a sequence of integers, got an array of "
                f"{numbers.dtype} of shape {numbers.shape}"
            )
        for name, array in given.items():
            if array.shape[:1] != numbers.shape:
                raise UsageError(
                    f"group {self.name!r}: {name!r} has the shape {array.shape}, and its first "
                    f"dimension must be that of the {numbers.size} steps"
                )
        if numbers.size == 0:
            return np.empty(0, dtype=np.int64), given
        for number in numbers[[0, -1]]:
            self._step(number)
        backwards = np.flatnonzero(numbers[1:] <= numbers[:-1])
        if backwards.size:
            place = int(backwards[0])
            raise UsageError(
                f"group {self.name!r}: step {numbers[place + 1]} does not come after step "
                f"{numbers[place]}; steps must increase"
            )
        first = {name: np.asarray(array[0]) for name, array in given.items()}
        self.row(numbers[0], first)
        self.last_step = int(numbers[-1])
        return numbers.astype(np.int64), given

    def _check_complete(self, step: int, row: Mapping[str, Array]) -> None:
        for name in self.always:
            if name not in row:
                raise UsageError(
                    f"group {self.name!r}: the row of step {step} lacks {name!r}, and its dtype "
                    f"{self.variables[name].dtype} has no missing value; give it in every row"
                )

    def row_bytes(self, row: Iterable[str]) -> int:
        """Return the bytes of a row that holds these arrays, with its step."""
        names = tuple(row)
        if names != self.weighed[0]:
            self.weighed = names, 8 + sum(self.known[name][2] for name in names)
        return self.weighed[1]

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

    def _array(self, name: str, value: Any) -> Array:
        try:
            return np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"group {self.name!r}: {name!r} is no array of numbers: {error}"
            ) from None

    def _check(self, name: str, given: Array) -> None:
        variable = self._variable(name)
        if given.dtype.kind not in _allowed(taken_dtype(variable.dtype)):
            raise UsageError(
                f"group {self.name!r}: {name!r} is stored as {variable.dtype}, got {given.dtype}; "
                "convert it first"
            )
        if name in self.shapes and given.shape != self.shapes[name]:
            raise UsageError(
                f"group {self.name!r}: {name!r} has had rows of shape {self.shapes[name]}, got "
                f"{given.shape}"
            )
        if given.ndim != len(variable.dims) - 1:
            raise UsageError(
                f"group {self.name!r}: a row of {name!r} has the dimensions {variable.dims[1:]}, "
                f"got an array of shape {given.shape}"
            )

    def _settle(self, arrays: Mapping[str, Array]) -> None:
        """Keep the shapes of arrays seen for the first time, all or none."""
        sizes = dict(self.sizes)
        variables = {name: self._variable(name) for name in arrays}
        for name, array in arrays.items():
            if self.last_step >= 0 and fill_value(variables[name].dtype) is None:
                raise UsageError(
                    f"group {self.name!r}: {name!r} was not in the rows before, and its dtype "
                    f"{variables[name].dtype} has no missing value; give it from the first row on"
                )
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
        self._keep(variables, {name: array.shape for name, array in arrays.items()})

    def restore(
        self,
        variables: Mapping[str, Variable],
        shapes: Mapping[str, tuple[int, ...]],
        last_step: int,
    ) -> None:
        """Go on from rows that are stored: their arrays, their shapes and their last step."""
        for name, shape in shapes.items():
            for dim, size in zip(variables[name].dims[1:], shape, strict=True):
                self.sizes.setdefault(dim, (size, name))
        self._keep(variables, shapes)
        self.last_step = last_step

    def _keep(
        self, variables: Mapping[str, Variable], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.variables = {**self.variables, **variables}
        self.shapes = {**self.shapes, **shapes}
        self.known = {
            name: (
                taken_dtype(variable.dtype),
                self.shapes[name],
                taken_dtype(variable.dtype).itemsize * math.prod(self.shapes[name]),
            )
            for name, variable in self.variables.items()
        }
        self.always = tuple(
            name for name, variable in self.variables.items() if fill_value(variable.dtype) is None
        )

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
        return self.every_coordinate() if any(n in self.variables for n in _SAMPLED) else None

    def every_coordinate(self) -> tuple[IntArray, IntArray]:
        """Return the coordinate tables of every coordinate of its layers, in order."""
        numel = list(self.layers.values())
        return (
            np.repeat(np.arange(len(numel), dtype=np.int32), numel),
            np.concatenate([np.arange(count, dtype=np.int64) for count in numel]),
        )


def _allowed(stored: np.dtype[Any]) -> str:
    """Return the kinds of NumPy dtypes that a stored dtype takes without losing their meaning."""
    return {"f": "biuf", "b": "b"}.get(stored.kind, "biu")


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
    dtype: str | None = None,
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
        with_dtype(name, _kind(name, kind or name, variables), dtype),
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
            and variable.dtype in _ROW_DTYPES
        )
        if not fits:
            raise UsageError(
                f"group {group!r}: {variable} cannot be stored; its name must be a plain one, its "
                f"dims start with 'step' and differ, its dtype be one of "
                f"{', '.join(sorted(_ROW_DTYPES))}"
            )
    return Kind(kind, tuple(variables))


def with_dtype(group: str, kind: Kind, dtype: str | None) -> Kind:
    """Return a kind whose sketched arrays are stored as `dtype`."""
    if dtype is None:
        return kind
    if dtype not in ("float32", BFLOAT16):
        raise UsageError(
            f"group {group!r}: sketches are stored as float32 or {BFLOAT16}, got dtype={dtype!r}"
        )
    if kind.name not in KINDS or not set(SKETCHED) & set(kind.names()):
        raise UsageError(
            f"group {group!r}: dtype= is for the sketches of a kind of tracelab's, and "
            f"{kind.name!r} has none; give the dtype of each Variable"
        )
    variables = [
        replace(variable, dtype=dtype) if variable.name in SKETCHED else variable
        for variable in kind.variables
    ]
    return replace(kind, variables=tuple(variables))


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
