"""The one declaration of what a trace holds: group kinds, their variables, their tables.

The writer checks rows against it, the reader checks stores against it, and ``docs/format.md``
describes it. Every variable here has ``step`` as its first dimension; a table has no step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tracelab.contracts import Variable
from tracelab.typing import Array

__all__ = [
    "BFLOAT16",
    "BFLOAT16_NAN",
    "COORDINATE_TABLES",
    "DTYPES",
    "FORMAT",
    "FORMAT_VERSION",
    "KINDS",
    "LAYER",
    "LAYER_TABLE",
    "NAME",
    "RESERVED_GROUPS",
    "SKETCHED",
    "STEP",
    "Kind",
    "array_attributes",
    "fill_value",
    "stored_dtype",
    "taken_dtype",
]

FORMAT = "tracelab"
FORMAT_VERSION = 1

NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,128}")
"""What a group or an array may be called: one plain path segment, on every file system."""

RESERVED_GROUPS = ("layers", "results", "workers")
"""Groups that are not for rows: the layer table, what analyses computed, and traces of ranks."""

DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float32", "float64", "string"}
)
"""Every dtype a trace may hold; nothing in it needs more than reading bytes."""

BFLOAT16 = "bfloat16"
"""A dtype of variables: the upper half of a float32, stored as uint16 that says so."""

BFLOAT16_NAN = 0x7FC0

STEP = Variable(
    "step", ("step",), "step", "int64", "number of completed optimizer steps before this row"
)
LAYER = Variable("layer", ("layer",), "1", "string", "name of the trainable parameter tensor")

LAYER_TABLE = (
    LAYER,
    Variable("kind", ("layer",), "1", "string", "class of the module that owns the layer"),
    Variable("shape", ("layer",), "1", "string", "shape of the layer, a JSON list"),
    Variable("numel", ("layer",), "1", "int64", "number of weights of the layer"),
    Variable("offset", ("layer",), "1", "int64", "index of its first weight among all weights"),
)

COORDINATE_TABLES = (
    Variable(
        "coordinate_layer",
        ("coordinate",),
        "1",
        "int32",
        "position of the coordinate's layer along this group's layer dimension",
    ),
    Variable(
        "coordinate_index",
        ("coordinate",),
        "1",
        "int64",
        "row-major flat index of the coordinate inside its layer",
    ),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a group of some kind can record.

    Parameters
    ----------
    name : str
        The kind; also the default name of its group.
    variables : tuple of Variable
        Its arrays.
    open_ended : bool
        Whether a name that is not declared is taken as a scalar of the user's.
    """

    name: str
    variables: tuple[Variable, ...]
    open_ended: bool = False

    def __getitem__(self, name: str) -> Variable:
        return {variable.name: variable for variable in self.variables}[name]

    def names(self) -> tuple[str, ...]:
        """Return the names of the declared variables."""
        return tuple(variable.name for variable in self.variables)


_PROJECTED = ("layer", "direction")
_COORDINATES = ("coordinate",)


def _steps() -> Kind:
    dims = ("step",)
    return Kind(
        "steps",
        (
            Variable("loss", dims, "loss", "float64", "training loss of the step"),
            Variable(
                "learning_rate",
                dims,
                "weight^2/loss",
                "float64",
                "learning rate of the step, of the first parameter group",
            ),
            Variable(
                "plain_sgd",
                dims,
                "1",
                "float64",
                "1 where the step was the gradient times one rate of all weights, by the settings "
                "of the optimizers at that step; 0 where it was not",
            ),
            Variable("batch_size", dims, "1", "float64", "examples in the step's batch"),
            Variable("micro_batches", dims, "1", "float64", "backward passes accumulated"),
            Variable(
                "skipped",
                dims,
                "1",
                "float64",
                "gradients thrown away before the step, as after an overflow",
            ),
            Variable("applied", dims, "1", "bool", "whether the optimizer moved the weights"),
            Variable("wall_time", dims, "s", "float64", "seconds since recording started"),
        ),
        open_ended=True,
    )


def _moments(quantity: str, units: str, text: str) -> tuple[Variable, ...]:
    """Return the statistics of each layer that one quantity has."""
    dims = ("step", "layer")
    power = f"({units})^{{}}" if set("/^") & set(units) else f"{units}^{{}}"
    return tuple(
        Variable(f"{quantity}_{name}", dims, unit, dtype, f"{what} of the {text}")
        for name, unit, dtype, what in (
            ("norm", units, "float32", "Euclidean norm"),
            ("mean", units, "float32", "mean over coordinates"),
            ("moment2", power.format(2), "float32", "second raw moment over coordinates"),
            ("moment3", power.format(3), "float32", "third raw moment over coordinates"),
            ("moment4", power.format(4), "float32", "fourth raw moment over coordinates"),
            ("abs_max", units, "float32", "largest absolute coordinate"),
            ("log_abs_mean", "1", "float32", "mean of ln|x| over nonzero finite coordinates"),
            ("log_abs_var", "1", "float32", "variance of ln|x| over nonzero finite coordinates"),
            ("zeros", "1", "float64", "number of zero coordinates"),
            ("nonfinite", "1", "float64", "number of NaN or infinite coordinates"),
        )
    )


def _statistics() -> Kind:
    return Kind(
        "statistics",
        (
            *_moments("gradient", "loss/weight", "gradient"),
            *_moments("weight", "weight", "weight"),
            *_moments("update", "weight", "update"),
            *_moments("displacement", "weight", "displacement w_t - w_0"),
            Variable(
                "distance",
                ("step", "layer"),
                "weight",
                "float32",
                "||w_t - w_0||, distance from the start",
            ),
        ),
    )


SKETCHED = (
    *("projected", "sampled", "full", "mean_projected", "mean_sampled", "mean_full"),
    *("momentum_projected", "momentum_sampled", "momentum_full"),
    *("second_moment_sampled", "second_moment_full"),
    *("effective_step_sampled", "effective_step_full"),
)
"""Arrays of tracelab's kinds that hold sketches of vectors."""


def _sketches(units: str, text: str, inner: tuple[str, ...] = ()) -> tuple[Variable, ...]:
    step = ("step", *inner)
    return (
        Variable("projected", step + _PROJECTED, units, "float32", f"seeded projection of {text}"),
        Variable("sampled", step + _COORDINATES, units, "float32", f"coordinates of {text}"),
        Variable("full", step + _COORDINATES, units, "float32", f"all coordinates of {text}"),
    )


def _histogram(text: str) -> Variable:
    return Variable(
        "histogram",
        ("step", "layer", "bin"),
        "1",
        "uint32",
        f"number of weights of the layer by the leading bits of {text}; all 0 where missing",
    )


def _noise() -> Kind:
    gradient, square = "loss/weight", "(loss/weight)^2"
    by_batch = ("step", "batch", "layer")
    mean = tuple(
        Variable(f"mean_{v.name}", v.dims, v.units, v.dtype, v.description)
        for v in _sketches(gradient, "the full-data gradient at the same weights")
    )
    return Kind(
        "noise",
        (
            *_sketches(gradient, "minibatch gradients at frozen weights, not centred", ("batch",)),
            *mean,
            Variable("squared_norm", by_batch, square, "float64", "||g_b||^2, exact"),
            Variable("squared_deviation", by_batch, square, "float64", "||g_b - g||^2, exact"),
            Variable(
                "mean_squared_norm",
                ("step", "layer"),
                square,
                "float64",
                "||g||^2 of the full-data gradient, exact",
            ),
            Variable(
                "batch_mean",
                ("step", "weight"),
                gradient,
                "float32",
                "mean of the minibatch gradients, of all weights of the group's layers in order",
            ),
            Variable(
                "variance",
                ("step", "weight"),
                square,
                "float32",
                "variance of the minibatch gradients, divisor batches - 1, of all weights of the "
                "group's layers in order",
            ),
            Variable(
                "variance_sum",
                ("step", "layer"),
                square,
                "float64",
                "sum of the variance over the layer's weights, the trace of the covariance",
            ),
            Variable(
                "variance_square_sum",
                ("step", "layer"),
                "(loss/weight)^4",
                "float64",
                "sum of the squared variance over the layer's weights",
            ),
            Variable("loss", ("step", "batch"), "loss", "float64", "loss of the minibatch"),
            Variable("mean_loss", ("step",), "loss", "float64", "full-data loss"),
        ),
    )


def _examples() -> Kind:
    gradient, square = "loss/weight", "(loss/weight)^2"
    by_example = ("step", "example", "layer")
    return Kind(
        "examples",
        (
            *_sketches(gradient, "gradients of single examples, not centred", ("example",)),
            *(each for each in _noise().variables if each.name.startswith("mean_")),
            Variable("squared_norm", by_example, square, "float64", "||g_i||^2, exact"),
            Variable("squared_deviation", by_example, square, "float64", "||g_i - g||^2, exact"),
            Variable("loss", ("step", "example"), "loss", "float64", "loss of the example"),
            Variable(
                "index", ("step", "example"), "1", "int64", "index of the example in the data"
            ),
        ),
    )


def _weights() -> Kind:
    dims = ("step", "layer")
    return Kind(
        "weights",
        (
            *_sketches("weight", "the weights"),
            _histogram("the weight"),
            Variable("norm", dims, "weight", "float64", "||w_t||, exact"),
            Variable("distance", dims, "weight", "float64", "||w_t - w_0||, exact"),
        ),
    )


def _optimizer_state() -> Kind:
    variables: list[Variable] = []
    for quantity, units, text in (
        ("momentum", "loss/weight", "first moment the optimizer holds, without bias"),
        ("second_moment", "(loss/weight)^2", "second moment the optimizer holds, without bias"),
        ("effective_step", "weight^2/loss", "factor of the first moment in the last update"),
    ):
        variables += _moments(quantity, units, text)
        variables += [
            replace(each, name=f"{quantity}_{each.name}")
            for each in _sketches(units, f"the {text}")
            # Projections of what is positive everywhere tell nothing about it.
            if quantity == "momentum" or each.name != "projected"
        ]
    return Kind("optimizer_state", tuple(variables))


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        _steps(),
        _statistics(),
        Kind(
            "gradients",
            (
                *_sketches("loss/weight", "the gradient the optimizer used"),
                _histogram("its gradient"),
            ),
        ),
        Kind(
            "updates",
            (*_sketches("weight", "the update of the step"), _histogram("its update")),
        ),
        _noise(),
        _examples(),
        _weights(),
        _optimizer_state(),
    )
}


def stored_dtype(dtype: str) -> str:
    """Return the dtype of a variable's stored array: bfloat16 is kept as its bits."""
    return "uint16" if dtype == BFLOAT16 else dtype


def taken_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype in which rows of a variable are handed over."""
    return np.dtype("float32" if dtype == BFLOAT16 else dtype)


def fill_value(dtype: str) -> Array | None:
    """Return what stands for an array missing from a row, or None if the dtype has nothing."""
    if dtype == BFLOAT16:
        return np.asarray(BFLOAT16_NAN, dtype=np.uint16)
    if dtype.startswith("float"):
        return np.asarray(np.nan, dtype=dtype)
    return np.asarray(False) if dtype == "bool" else None


def array_attributes(variable: Variable) -> dict[str, str]:
    """Return the attributes of a stored array: unit, description, and what its bits stand for."""
    attributes = {"units": variable.units, "long_name": variable.description}
    if variable.dtype == BFLOAT16:
        attributes["stored_dtype"] = BFLOAT16
    return attributes
