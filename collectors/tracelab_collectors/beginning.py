"""Where a session begins: at its first step, or where the trace that it goes on with ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.trace import Writer
from tracelab.trace.writing.resuming import Found, first_step
from tracelab_collectors.collector import Recording, Run, local_part

__all__ = ["START", "Beginning", "begin", "check_start", "recorded_start", "store_start"]

START = "start"
"""Group of the weights from which distances are measured: one row, all weights."""

_WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the rows so far say of where a session goes on.

    Parameters
    ----------
    step : int
        Its first step.
    wall_time : float
        Seconds of recording so far.
    recorded : mapping of str to int
        Step of the last row of each group.
    """

    step: int = 0
    wall_time: float = 0.0
    recorded: Mapping[str, int] = field(default_factory=dict)


def begin(
    found: Found | None, resume: bool | int, steps: str, recordings: Mapping[str, Recording]
) -> Beginning:
    """Return where a session begins.

    Parameters
    ----------
    found : Found or None
        The trace that goes on, if there is one.
    resume : bool or int
        As given to ``attach``.
    steps : str
        The group that has a row of every step.
    recordings : mapping of str to Recording
        The session's collectors by group.
    """
    step = first_step(resume)
    if found is None:
        return Beginning(step or 0)
    recorded = {name: found.last_step(name) for name in found.rows}
    if step is None:
        # The final weights have the label of the step that would have come next.
        final = {name for name, each in recordings.items() if each.final}
        counted = {name: last for name, last in recorded.items() if name != START}
        step = max((last + (name not in final) for name, last in counted.items()), default=0)
        step = max(step, 0)
    wall_time = 0.0
    kept = found.rows.get(steps, 0)
    if kept and "wall_time" in found.arrays(steps):
        wall_time = float(found.read(steps, "wall_time", kept - 1, kept)[0])
    return Beginning(step, wall_time, recorded)


def recorded_start(found: Found | None) -> Tensor | None:
    """Return the weights at the start of a trace that goes on, shape (weight,), if it has them."""
    if found is None or not found.rows.get(START):
        return None
    return torch.from_numpy(found.read(START, _WEIGHTS, 0, 1)[0])


def check_start(
    found: Found | None, start: Tensor | None, members: Mapping[str, Recording]
) -> None:
    """Check that distances can be measured from where a trace that goes on began.

    Raises
    ------
    UsageError
        If a collector measures them, and the trace has rows but no weights of its start.
    """
    if found is None or start is not None or not any(found.rows.values()):
        return
    for name, recording in members.items():
        if recording.from_start:
            raise UsageError(
                f"{found.location.name} does not hold the weights at its start, from which "
                f"collector {name!r} measures distances; leave the collector out, or record into "
                "another trace"
            )


def store_start(writer: Writer, run: Run, step: int) -> None:
    """Store the present weights as those at the start, before training goes on."""
    dtype = str(run.dtype).removeprefix("torch.")
    weights = Variable(
        _WEIGHTS,
        ("step", "weight"),
        "weight",
        dtype,
        "weights of all layers, in order, from which distances are measured",
    )
    flat = [
        local_part(each.detach()).reshape(-1).to("cpu", run.dtype)
        for each in run.parameters.values()
    ]
    values = torch.cat(flat).numpy()
    values.setflags(write=False)
    writer.define(START, variables=[weights])
    writer.append(START, step=step, **{_WEIGHTS: values})
    # A resumption may need them before the first rows are committed.
    writer.flush()
