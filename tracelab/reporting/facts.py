"""Facts of runs side by side: what was trained, how, and what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tracelab.errors import DamagedError
from tracelab.reporting.numbers import number, value_text
from tracelab.trace import Trace
from tracelab.trace.ranks import unfinished

__all__ = ["Fact", "facts"]

_ALWAYS_DIFFER = ("run", "recorded (UTC)", "size of arrays")


@dataclass(frozen=True, slots=True)
class Fact:
    """One row of the table of runs.

    Parameters
    ----------
    name : str
        What it is.
    values : tuple of str
        One by trace; empty where a trace does not say.
    differs : bool
        Whether traces disagree: what a reader compares.
    """

    name: str
    values: tuple[str, ...]
    differs: bool


def facts(traces: Mapping[str, Trace]) -> list[Fact]:
    """Return what is known of each run; facts that no trace knows are left out."""
    found = [_by_trace(name, get, traces) for name, get in _FACTS.items()]
    keys = dict.fromkeys(key for trace in traces.values() for key in _mapping(trace, "metadata"))
    found += [_by_trace(str(key), _metadata(key), traces) for key in keys]
    return [fact for fact in found if any(fact.values)]


def _by_trace(name: str, get: Callable[[Trace], Any], traces: Mapping[str, Trace]) -> Fact:
    values = []
    for trace in traces.values():
        try:
            value = get(trace)
        except DamagedError:
            value = "damaged"
        values.append(value if isinstance(value, str) else value_text(value))
    told = set(values) - {""}
    return Fact(name, tuple(values), len(told) > 1 and name not in _ALWAYS_DIFFER)


def _mapping(trace: Trace, key: str) -> Mapping[str, Any]:
    value = trace.attrs.get(key)
    return value if isinstance(value, Mapping) else {}


def _metadata(key: str) -> Callable[[Trace], Any]:
    return lambda trace: _mapping(trace, "metadata").get(key, "")


def _run(trace: Trace) -> str:
    return str(trace.run)[:8]


def _state(trace: Trace) -> str:
    reasons = [str(reason) for reason in trace.attrs.get("incomplete_reasons") or ()]
    reasons += [note] if (note := unfinished(trace.rank_states)) else []
    return f"{trace.state}: {'; '.join(reasons)}" if reasons else str(trace.state)


def _created(trace: Trace) -> str:
    return str(trace.attrs.get("created", ""))[:19].replace("T", " ")


def _attribute(key: str) -> Callable[[Trace], Any]:
    def get(trace: Trace) -> Any:
        value = trace.attrs.get(key)
        if value is None or (isinstance(value, (str, list, Mapping)) and not value):
            return ""
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            # Of an optimizer's many settings, those that are off or empty say nothing.
            told = {k: v for k, v in value.items() if k != "name" and not _is_off(v)}
            return f"{value['name']} ({value_text(told)})" if told else value["name"]
        return value

    return get


def _is_off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (list, Mapping)) and not value)


def _parameters(trace: Trace) -> str:
    numel = trace.layers["numel"].values
    return f"{number(int(numel.sum()))} in {number(numel.size)} layers"


def _steps(trace: Trace) -> str:
    last = [int(group["step"].values[-1]) for group in trace.groups.values() if _rows(group)]
    return number(max(last)) if last else "none"


def _loss(trace: Trace) -> str:
    values = _scalars(trace, "loss")
    return f"{number(values[0])} → {number(values[-1])}" if values.size else ""


def _batch_size(trace: Trace) -> str:
    values = _scalars(trace, "batch_size")
    if not values.size:
        return ""
    low, high = int(values.min()), int(values.max())
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _scalars(trace: Trace, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what was logged under a name, in order; steps without it left out."""
    group = trace.groups.get("steps")
    if group is None or name not in group:
        return np.empty(0)
    values = np.asarray(group[name].values, dtype=np.float64)
    return values[np.isfinite(values)]


def _probes(trace: Trace) -> str:
    told = []
    for group in trace.groups.values():
        if group.attrs.get("kind") != "noise" or not _rows(group):
            continue
        text = f"{number(_rows(group))} × {number(group.sizes['batch'])} minibatches"
        if "batch_size" in group.attrs:
            text += f" of {number(int(group.attrs['batch_size']))}"
        if "replacement" in group.attrs:
            text += f" {'with' if group.attrs['replacement'] else 'without'} replacement"
        told.append(text)
    return "; ".join(told)


def _data_size(trace: Trace) -> str:
    sizes = {
        int(group.attrs["n_data"]) for group in trace.groups.values() if "n_data" in group.attrs
    }
    return ", ".join(number(size) for size in sorted(sizes))


def _groups(trace: Trace) -> str:
    return ", ".join(f"{name} ({number(_rows(group))})" for name, group in trace.groups.items())


def _rows(group: xr.Dataset) -> int:
    return int(group.sizes.get("step", 0))


def _bytes(trace: Trace) -> str:
    size = float(sum(group.nbytes for group in trace.groups.values()))
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


_FACTS: dict[str, Callable[[Trace], Any]] = {
    "run": _run,
    "state": _state,
    "model": _attribute("model"),
    "parameters": _parameters,
    "optimizer": _attribute("optimizer"),
    "batch size": _batch_size,
    "data size": _data_size,
    "last step": _steps,
    "loss, first to last": _loss,
    "noise probes": _probes,
    "groups (rows)": _groups,
    "size of arrays": _bytes,
    "seed": _attribute("seed"),
    "recorded (UTC)": _created,
    "software": _attribute("software"),
}
