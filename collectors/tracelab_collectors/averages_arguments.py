"""What `measure_averages` is given, checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import nn

from tracelab.errors import NotRecordedError, UsageError
from tracelab.trace import Trace
from tracelab.trace.places.locations import PathLike, resolve
from tracelab.trace.reading.snapshot import ROOT
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.stored_weights import StoredWeights

__all__ = [
    "check_model",
    "check_vacant",
    "indexed",
    "named_sets",
    "places",
    "rates",
    "windows_of",
]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def _is_step(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def _several(value: Any) -> list[Any] | None:
    """Return what a sequence or an array holds, None of what is neither."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return None
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return None
    return list(value)


def places(line: Sequence[float]) -> tuple[float, ...]:
    """Return the places on the line.

    Raises
    ------
    UsageError
        If there is none, or they are not finite numbers.
    """
    found = _several(line)
    if not found or not all(_is_number(each) and math.isfinite(each) for each in found):
        raise UsageError(
            f"line must be one or more finite numbers, got {line!r}; 0 is the last weights, 1 "
            "the average"
        )
    return tuple(float(each) for each in found)


def check_model(model: Any, *, loss: Any, data: Any, sets: Any, error: Any) -> None:
    """Raise a UsageError if there is something to measure and nothing to measure it of, or not."""
    if model is None:
        measured = {"loss": loss, "data": data, "sets": sets, "error": error}
        named = [f"{name}=" for name, each in measured.items() if each is not None]
        if named:
            raise UsageError(
                f"{', '.join(named)}: measure_averages measures them of a model; give model=, or "
                "leave them out and only distances are measured"
            )
        return
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model must be a torch.nn.Module with the trained parameters' names, got {model!r}"
        )
    for name, function in (("loss", loss), ("error", error)):
        if function is not None and not callable(function):
            raise UsageError(f"{name} must be a callable {name}(model, batch), got {function!r}")
    if loss is None or data is None:
        missing = "loss" if loss is None else "data"
        raise UsageError(f"measure_averages measures a model and needs {missing}=")


def named_sets(sets: Any) -> dict[str, Any]:
    """Return further sets by name.

    Raises
    ------
    UsageError
        If they are no mapping of names, or one is called as the data are.
    """
    if sets is None:
        return {}
    if not isinstance(sets, Mapping) or not all(isinstance(name, str) for name in sets):
        raise UsageError(f"sets must be a mapping of names to datasets, got {sets!r}")
    if "data" in sets:
        raise UsageError("sets= names a set 'data', which is what data= is called; rename it")
    return dict(sets)


def indexed(name: str, data: Any, size: int | None, device: torch.device) -> Indexed:
    """Return the examples of a set.

    Raises
    ------
    UsageError
        If they cannot be indexed.
    """
    if name == "data":
        return Indexed.of(data, size, device)
    if callable(data) and not hasattr(data, "__len__"):
        raise UsageError(
            f"sets[{name!r}]={data!r} has no length; give a dataset, or a callable with __len__"
        )
    try:
        return Indexed.of(data, size, device)
    except UsageError as error:
        raise UsageError(f"sets[{name!r}]: {error}") from error


def check_vacant(out: PathLike) -> None:
    """Raise a UsageError if there is a trace where a new one goes."""
    location = resolve(out)
    if location.has(ROOT):
        raise UsageError(
            f"there is a trace at {location.name}, and measure_averages replaces none; give out= "
            "another place"
        )


def windows_of(windows: Any, weights: StoredWeights) -> list[tuple[int, int]]:
    """Return first and last step of each window, the last one at which weights are stored.

    Raises
    ------
    NotRecordedError
        If weights are stored at fewer than two of its steps.
    UsageError
        If one is neither a share nor a pair of steps among those at which weights are stored.
    """
    each_of = _several(windows)
    if each_of is None:
        raise UsageError(
            f"windows must be a list of shares in (0, 1] or pairs (start, stop), got {windows!r}"
        )
    if not each_of:
        raise UsageError("windows must name one window or more, got none")
    steps = weights.steps
    if steps.size < 2:
        raise NotRecordedError(
            f"weights are stored at {steps.size} steps, and an average takes 2; record "
            "Weights(every=...) more often"
        )
    first, last = int(steps[0]), int(steps[-1])
    found = []
    for each in each_of:
        start, stop = _window(each, first, last)
        inside = steps[(steps >= start) & (steps <= stop)]
        if start > stop or inside.size == 0:
            raise UsageError(
                f"the window {each!r} holds no stored weights; they are stored from step "
                f"{first} to {last}"
            )
        if start < first or stop > last:
            raise UsageError(
                f"the window {each!r} goes beyond the stored weights; they are stored from step "
                f"{first} to {last}"
            )
        weights.rows(start, stop)
        found.append((start, int(inside[-1])))
    return found


def _window(each: Any, first: int, last: int) -> tuple[int, int]:
    if _is_number(each) and 0 < each <= 1:
        return math.ceil(last - float(each) * (last - first)), last
    pair = _several(each)
    if pair is None or len(pair) != 2 or not all(map(_is_step, pair)):
        raise UsageError(f"a window must be a share in (0, 1] or (start, stop), got {each!r}")
    return int(pair[0]), int(pair[1])


def rates(
    trace: Trace, stops: Iterable[int], learning_rate: Any, *, needed: bool
) -> dict[int, float]:
    """Return the learning rate of each last step: as given, else recorded before; NaN of none.

    Raises
    ------
    UsageError
        If it is no positive number, or one is needed and none such is recorded.
    """
    if learning_rate is not None:
        if not (_is_number(learning_rate) and 0 < learning_rate < math.inf):
            raise UsageError(f"learning_rate must be a positive number, got {learning_rate!r}")
        return dict.fromkeys(stops, float(learning_rate))
    found = {stop: _recorded(trace, stop) for stop in stops}
    for stop, rate in found.items():
        if needed and not 0 < rate < math.inf:
            what = "no learning rate" if math.isnan(rate) else f"a learning rate of {rate:g}"
            raise UsageError(
                f"{what} is recorded before step {stop}, and noise moves the weights by a positive "
                "one; give learning_rate="
            )
    return found


def _recorded(trace: Trace, stop: int) -> float:
    """Return the learning rate recorded before a step; NaN where there is none."""
    steps = trace.groups.get("steps")
    if steps is None or "learning_rate" not in steps:
        return math.nan
    before = np.flatnonzero(steps["step"].values < stop)
    return float(steps["learning_rate"].values[before[-1]]) if before.size else math.nan
