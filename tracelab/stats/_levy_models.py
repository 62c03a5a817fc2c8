"""Potentials, regions and dynamics of Levy-driven equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tracelab.errors import UsageError
from tracelab.typing import BoolArray, FloatArray

__all__ = [
    "Adam",
    "Ball",
    "Box",
    "DoubleWell",
    "Dynamics",
    "Overdamped",
    "Potential",
    "Quadratic",
    "Region",
    "Sublevel",
    "Underdamped",
]


def positive(name: str, value: npt.ArrayLike) -> FloatArray:
    """Return numbers as an array, or raise a UsageError if one is not positive and finite."""
    found = np.asarray(value, dtype=np.float64)
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise UsageError(f"{name} must be positive and finite, got {value!r}")
    return found


@dataclass(frozen=True, slots=True)
class Potential:
    """A potential of the user's own.

    Parameters
    ----------
    gradient : callable
        From points, (replica, d), to gradients of the same shape.
    value : callable, optional
        From points to values, (replica,): for `Sublevel` regions.
    """

    gradient: Callable[[FloatArray], FloatArray]
    value: Callable[[FloatArray], FloatArray] | None = None


@dataclass(frozen=True, slots=True)
class Quadratic:
    """The potential ``sum(curvature * x^2) / 2``.

    Parameters
    ----------
    curvature : array_like
        Of each coordinate, or of all.
    """

    curvature: npt.ArrayLike

    def gradient(self, x: FloatArray) -> FloatArray:
        """Return the gradients at points, (replica, d)."""
        return np.asarray(self.curvature, dtype=np.float64) * x

    def value(self, x: FloatArray) -> FloatArray:
        """Return the values at points, (replica,)."""
        found: FloatArray = 0.5 * np.sum(np.asarray(self.curvature) * x * x, axis=-1)
        return found


@dataclass(frozen=True, slots=True)
class DoubleWell:
    """Two wells at ``-width`` and ``width`` of the first coordinate, a barrier between them.

    ``height * (1 - (x_1 / width)^2)^2``, and ``sum(curvature * x^2) / 2`` over the other
    coordinates, with the curvature at the bottom of the wells, ``8 height / width^2``.

    Parameters
    ----------
    height, width : float
        Height of the barrier, and distance of a well from it.
    """

    height: float = 1.0
    width: float = 1.0

    def __post_init__(self) -> None:
        positive("height", self.height)
        positive("width", self.width)

    @property
    def curvature(self) -> float:
        """Second derivative at the bottom of the wells; at the barrier it is minus half of it."""
        return 8 * self.height / self.width**2

    def gradient(self, x: FloatArray) -> FloatArray:
        """Return the gradients at points, (replica, d)."""
        found = self.curvature * x
        along = x[..., 0] / self.width
        found[..., 0] = 4 * self.height / self.width * along * (along * along - 1)
        return found

    def value(self, x: FloatArray) -> FloatArray:
        """Return the values at points, (replica,)."""
        along = x[..., 0] / self.width
        rest = np.sum(x[..., 1:] ** 2, axis=-1)
        found: FloatArray = self.height * (1 - along**2) ** 2 + 0.5 * self.curvature * rest
        return found


class Region(Protocol):
    """What a process is in until it exits."""

    def contains(self, x: FloatArray) -> BoolArray:
        """Return which points, (replica, d), are within."""


@dataclass(frozen=True, slots=True)
class Box:
    """Points between two sides in every coordinate; an interval in one dimension.

    Parameters
    ----------
    low, high : array_like
        The sides, of each coordinate or of all; infinite where there is none.
    """

    low: npt.ArrayLike
    high: npt.ArrayLike

    def __post_init__(self) -> None:
        if not (np.asarray(self.low) < np.asarray(self.high)).all():
            raise UsageError(f"low must be below high, got {self.low!r} and {self.high!r}")

    def contains(self, x: FloatArray) -> BoolArray:
        """Return which points, (replica, d), are within."""
        low, high = (np.asarray(side, dtype=np.float64) for side in (self.low, self.high))
        found: BoolArray = np.all((low < x) & (x < high), axis=-1)
        return found


@dataclass(frozen=True, slots=True)
class Ball:
    """Points nearer to the origin than a radius, in coordinates over their axes: an ellipsoid.

    Parameters
    ----------
    radius : float
        The radius.
    axes : array_like
        Relative half axes, of each coordinate or of all.
    """

    radius: float = 1.0
    axes: npt.ArrayLike = 1.0
    weight: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        radius, axes = positive("radius", self.radius), positive("axes", self.axes)
        object.__setattr__(self, "weight", 1 / (radius * axes) ** 2)

    def contains(self, x: FloatArray) -> BoolArray:
        """Return which points, (replica, d), are within."""
        found: BoolArray = np.sum(self.weight * x * x, axis=-1) < 1
        return found


@dataclass(frozen=True, slots=True)
class Sublevel:
    """Points where a potential is below a level. (Other basins below it count as within.)

    Parameters
    ----------
    potential : Potential, Quadratic or DoubleWell
        With values.
    level : float
        The level.
    """

    potential: Potential | Quadratic | DoubleWell
    level: float

    def __post_init__(self) -> None:
        if self.potential.value is None:
            raise UsageError("a Sublevel needs a potential with values: Potential(gradient, value)")
        if not math.isfinite(self.level):
            raise UsageError(f"level must be finite, got {self.level!r}")

    def contains(self, x: FloatArray) -> BoolArray:
        """Return which points, (replica, d), are within."""
        value = self.potential.value
        assert value is not None
        found: BoolArray = value(x) < self.level
        return found


@dataclass(frozen=True, slots=True)
class Overdamped:
    """``dx = -P grad U dt + scale P dL``.

    Parameters
    ----------
    preconditioner : array_like
        The diagonal of P.
    """

    preconditioner: npt.ArrayLike = 1.0

    def __post_init__(self) -> None:
        positive("preconditioner", self.preconditioner)


@dataclass(frozen=True, slots=True)
class Underdamped:
    """``dx = v dt``, ``dv = -friction v dt - grad U dt + scale dL``: momentum.

    Parameters
    ----------
    friction : float
        Of the velocity.
    """

    friction: float = 1.0

    def __post_init__(self) -> None:
        positive("friction", self.friction)


@dataclass(frozen=True, slots=True)
class Adam:
    """``dx = -P m dt + scale P dL``, ``dm = rate (grad U - m) dt``: Adam near a minimum.

    Zhou et al. (2020) with a settled second moment v: P is one over ``sqrt(v) + epsilon``, and bias
    corrections are over.

    Parameters
    ----------
    rate : float
        At which the first moment forgets: ``(1 - beta_1) / step``.
    preconditioner : array_like
        The diagonal of P.
    """

    rate: float = 1.0
    preconditioner: npt.ArrayLike = 1.0

    def __post_init__(self) -> None:
        positive("rate", self.rate)
        positive("preconditioner", self.preconditioner)


Dynamics: TypeAlias = Overdamped | Underdamped | Adam
