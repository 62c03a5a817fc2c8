"""Where the inputs of an analysis are in a trace: its own groups, its ranks', its attributes."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr

from tracelab import noise
from tracelab.contracts import Analysis, Input
from tracelab.errors import NotRecordedError, UsageError
from tracelab.trace import Trace
from tracelab.trace.gathered import PREFIX

__all__ = ["DERIVED", "SAMPLES", "SHARING", "SKETCHED", "check_units", "locate"]

# Quantities that are taken from the group if it holds them, else derived from gradients.
DERIVED = {"noise/squared_deviation": "squared_deviation", "noise/signal": "mean_squared_norm"}

# Squared norms of the minibatch gradients of one sketch, of them and of their deviations: unlike
# those above never from another source, so that what projecting loses is the same of both.
SKETCHED = {
    f"{group}/sketch_{kind}": kind
    for group in ("micro_batches", "noise")
    for kind in ("norm", "deviation")
}

# How many weights of a layer each direction of its projections adds up.
SHARING = "weights/sharing"

# Sources of noise samples.
SAMPLES = ("noise", "examples")


def _kind(source: str) -> str:
    return source.split("/")[0].split("@")[0]


def locate(needed: Input, trace: Trace, analysis: Analysis, group: str) -> tuple[str, str]:
    """Return the first source of an input that a trace holds, and the group that holds it.

    Parameters
    ----------
    needed : Input
        The input.
    trace : Trace
        The trace.
    analysis : Analysis
        Whose input it is, for errors.
    group : str
        The group of noise or examples that the user names, or ``"auto"``.

    Returns
    -------
    source, group : str
        The group is ``""`` where the source is an attribute of the trace.

    Raises
    ------
    NotRecordedError
        If none is recorded, with what would record it.
    UsageError
        If several groups could be meant.
    """
    if group != "auto" and {_kind(source) for source in needed.sources} & set(SAMPLES):
        return _named(group, needed, trace, analysis)
    for source in needed.sources:
        if source.startswith("@"):
            if source[1:] in trace.attrs:
                return source, ""
            continue
        kind = _kind(source)
        # What ranks recorded side by side comes after what the trace itself holds.
        candidates = _candidates(kind, trace.kinds) or _candidates(kind, trace.gathered.kinds)
        if len(candidates) > 1 and "@" in source and needed.optional:
            # Several groups of a run agree, or it is not known which of them is meant.
            name = source.split("@")[1]
            values = {trace.groups[each].attrs.get(name) for each in candidates}
            candidates = candidates[:1] if len(values) == 1 else []
        if len(candidates) > 1:
            raise UsageError(
                f"analysis {analysis.name!r} reads a group of kind {kind!r}, and the trace has "
                f"several: {', '.join(candidates)}; name one of them {kind!r}"
                f"{', or give group=NAME' if kind in SAMPLES else ''}"
            )
        if candidates and _holds(trace.groups[candidates[0]], source):
            return source, candidates[0]
        if candidates and "@" in source:
            # What another group says of itself is not true of this one.
            break
    remedy = f"record it with {needed.collector}; " if needed.collector else ""
    raise NotRecordedError(
        f"analysis {analysis.name!r} needs {' or '.join(needed.sources)}, which this trace does "
        f"not hold; {remedy}it holds: {', '.join(trace.groups) or 'no group'}"
    )


def _candidates(kind: str, kinds: Mapping[str, str]) -> list[str]:
    """Return the group called as its kind is, or all groups of the kind."""
    called = [name for name in (kind, f"{PREFIX}{kind}") if name in kinds]
    return called or [name for name, each in kinds.items() if each == kind]


def _named(group: str, needed: Input, trace: Trace, analysis: Analysis) -> tuple[str, str]:
    """Return the source of a group that the user names."""
    kinds = trace.gathered.kinds if group.startswith(PREFIX) else trace.kinds
    wanted = {_kind(source): source for source in reversed(needed.sources)}
    fitting = [name for name, kind in kinds.items() if kind in wanted]
    if group not in fitting:
        raise NotRecordedError(
            f"analysis {analysis.name!r} reads groups of kind {' or '.join(reversed(wanted))}, and "
            f"{group!r} is none of this trace; there are: {', '.join(fitting) or 'none'}"
        )
    source = wanted[kinds[group]]
    if not _holds(trace.groups[group], source):
        raise NotRecordedError(
            f"the group {group!r} holds no {'gradients' if source in SAMPLES else source}"
        )
    return source, group


def _holds(group: xr.Dataset, source: str) -> bool:
    if "@" in source:
        return source.split("@")[1] in group.attrs
    if source == "noise/signal":
        return any(str(name).startswith("mean_") and name != "mean_loss" for name in group)
    if source == "noise" or source in DERIVED or source in SKETCHED:
        return "batch" in group.dims
    if source == "examples":
        return "example" in group.dims
    if source == SHARING:
        return "projected" in group
    return source.split("/")[1] in group.variables


def check_units(
    needed: Input, source: str, groups: Mapping[str, str], trace: Trace, analysis: Analysis
) -> None:
    """Raise a UsageError where a trace holds an input in another unit than the analysis needs."""
    if "@" in source:
        return
    group = trace.groups[groups[source]]
    wanted = needed.variable.units
    if source in SAMPLES:
        names: tuple[str, ...] = noise.SKETCHED
    elif source in DERIVED or source in SKETCHED:
        # Derived from the gradients themselves, unless recorded as such.
        names, wanted = noise.SKETCHED, "loss/weight"
    else:
        names = (source.split("/")[1],)
    wrong = sorted(
        str(group[name].attrs.get("units"))
        for name in names
        if name in group.variables and group[name].attrs.get("units") != wanted
    )
    if wrong:
        raise UsageError(
            f"analysis {analysis.name!r} needs {source} in {wanted!r}, "
            f"and the trace holds it in {wrong[0]!r}"
        )
