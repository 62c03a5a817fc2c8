"""Rows of a group by their steps, and why there are none: not recorded, not then, or not yet."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from tracelab.errors import NotRecordedError, UsageError
from tracelab.typing import IntArray

__all__ = ["select"]

_LAST = 2**62


def select(group: xr.Dataset, step: Any, *, name: str, recording: bool = False) -> xr.Dataset:
    """Return the rows of a group at some steps.

    Parameters
    ----------
    group : xarray.Dataset
        With labels ``step`` that increase.
    step : None, int, slice or sequence of int
        Steps by label; None for all. A slice includes both ends, and its step counts rows. An
        integer drops the dimension. A sequence gives rows in its order.
    name : str
        What messages call the group.
    recording : bool
        Whether there may be more rows later.

    Returns
    -------
    xarray.Dataset
        As lazy as the group.

    Raises
    ------
    NotRecordedError
        If a step has no row, or a slice holds none: not yet, or never.
    UsageError
        If `step` is something else, or negative: labels do not count from the end.
    """
    if step is None:
        return group
    if "step" not in group.coords:
        raise NotRecordedError(f"group {name!r} has no rows: nothing was recorded by step")
    recorded: IntArray = group["step"].values
    if isinstance(step, slice):
        return group.isel(step=_between(recorded, step, name, recording))
    wanted = np.asarray(step)
    if wanted.ndim > 1 or wanted.dtype.kind not in "iu":
        if not (wanted.ndim == 1 and not wanted.size):
            raise UsageError(
                f"step must be an integer, a list of integers or a slice, got {step!r}"
            )
        raise UsageError("step is an empty list, which selects nothing; leave it out for all steps")
    _check(wanted.min(), step)
    # An unsigned integer would be compared as a float.
    labels = np.minimum(wanted.astype(np.uint64), np.uint64(_LAST)).astype(np.int64)
    positions = np.searchsorted(recorded, labels)
    found = np.zeros(wanted.shape, dtype=bool)
    inside = positions < recorded.size
    found[inside] = recorded[positions[inside]] == labels[inside]
    if not found.all():
        missing = int(wanted[~found][0])
        raise NotRecordedError(_why(recorded, missing, name, recording))
    return group.isel(step=int(positions) if wanted.ndim == 0 else positions)


def _between(recorded: IntArray, step: slice, name: str, recording: bool) -> slice:
    for part in (step.start, step.stop, step.step):
        if part is not None:
            if isinstance(part, bool) or not isinstance(part, int | np.integer):
                raise UsageError(f"a slice of steps has integers as its ends, got {step!r}")
            _check(part, step)
    if step.step == 0:
        raise UsageError(f"a slice of steps takes every first row or fewer, got {step!r}")
    first = 0 if step.start is None else int(np.searchsorted(recorded, min(step.start, _LAST)))
    end = recorded.size
    if step.stop is not None:
        end = int(np.searchsorted(recorded, min(step.stop, _LAST), side="right"))
    if first >= end and (step.start is not None or step.stop is not None):
        raise NotRecordedError(_why_none(recorded, step, name, recording))
    return slice(first, end, step.step)


def _check(least: Any, step: Any) -> None:
    if least < 0:
        raise UsageError(
            f"steps are labels of at least 0 and do not count from the end, got {step!r}; "
            "for rows by position use .isel(step=...)"
        )


def _why(recorded: IntArray, wanted: int, name: str, recording: bool) -> str:
    if recording and (not recorded.size or wanted > recorded[-1]):
        return f"group {name!r} has no row at step {wanted} yet: {_so_far(recorded)}"
    if not recorded.size:
        return f"group {name!r} has no rows"
    nearest = recorded[np.abs(recorded - min(wanted, _LAST)).argmin()]
    return f"group {name!r} was not recorded at step {wanted}; the nearest is {nearest}"


def _why_none(recorded: IntArray, step: slice, name: str, recording: bool) -> str:
    first = "the first" if step.start is None else step.start
    which = f"from {first} to {'the last' if step.stop is None else step.stop}"
    if None not in (step.start, step.stop) and step.start > step.stop:
        return f"there is no step {which}: the slice begins behind its end"
    if recording and (not recorded.size or (step.start or 0) > recorded[-1]):
        return f"group {name!r} has no row {which} yet: {_so_far(recorded)}"
    if not recorded.size:
        return f"group {name!r} has no rows"
    return (
        f"group {name!r} has no row {which}; its {recorded.size} rows are from step {recorded[0]} "
        f"to {recorded[-1]}"
    )


def _so_far(recorded: IntArray) -> str:
    last = f"the last is {recorded[-1]}" if recorded.size else "there is none so far"
    return f"{last}, and the run is still recording; call refresh() and try again"
