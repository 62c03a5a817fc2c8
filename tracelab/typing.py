"""Types shared by signatures across the project."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Assumption",
    "BoolArray",
    "FloatArray",
    "IntArray",
    "JSONValue",
    "Mode",
    "Sketched",
    "Status",
]

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
JSONValue: TypeAlias = (
    str | int | float | bool | list["JSONValue"] | Mapping[str, "JSONValue"] | None
)
Mode: TypeAlias = Literal["batches", "pooled", "standardized"]
Sketched: TypeAlias = Literal["sampled", "projected", "full"]


class Assumption(IntEnum):
    """Whether what a theory takes for granted holds, as far as a trace can tell."""

    UNCHECKED = 0
    HOLDS = 1
    FAILS = 2
    NOT_NEEDED = 3

    @classmethod
    def meanings(cls) -> str:
        """What the numbers in a result stand for."""
        return ", ".join(f"{each.value} {each.name.lower().replace('_', ' ')}" for each in cls)


class Status(IntEnum):
    """Why a cell's numbers can be trusted or not; stored as uint8 with CF flag attributes."""

    OK = 0
    NOT_CONVERGED = 1
    TOO_FEW_SAMPLES = 2
    NON_FINITE_INPUT = 3
    CONSTANT_INPUT = 4
    FAILED = 5
    UNREADABLE = 6

    @classmethod
    def attributes(cls) -> dict[str, Any]:
        """CF attributes that let any reader of the store decode a status array."""
        return {
            "flag_values": [int(member) for member in cls],
            "flag_meanings": " ".join(member.name.lower() for member in cls),
        }
