"""Root attributes of a trace that goes on: what was said stays, what is new is added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracelab.errors import UsageError
from tracelab.trace.writing.resuming import Found

__all__ = ["GENERATION", "attributes", "check"]

GENERATION = "generation"
"""How often rows that had been committed were changed or taken away; absent stands for 0."""


def check(found: Found, given: Mapping[str, Any], compression: str) -> None:
    """Compare what a trace says of itself with what is given now.

    Raises
    ------
    UsageError
        If the run, the seed or the compression is another one.
    """
    old = found.snapshot.attrs
    for name in ("run", "seed"):
        if name in given and name in old and given[name] != old[name]:
            raise UsageError(
                f"{found.location.name} was recorded with {name} {old[name]!r}, and now {name} is "
                f"{given[name]!r}; leave it out or give the same, or record into another trace"
            )
    if compression not in ("auto", old.get("compression")):
        raise UsageError(
            f"{found.location.name} is recorded with compression={old.get('compression')!r}, and "
            f"now it is {compression!r}; leave it out, or record into another trace"
        )


def attributes(
    found: Found,
    given: Mapping[str, Any],
    fresh: Mapping[str, Any],
    *,
    step: int | None,
) -> dict[str, Any]:
    """Return the attributes of a resumption's first commit.

    Parameters
    ----------
    found : Found
        The trace.
    given : mapping
        What the user gives now, ``run`` and ``metadata`` included if given.
    fresh : mapping
        What a new trace would say: ``created`` and ``software`` are the resumption's.
    step : int, optional
        Step at which training goes on.

    """
    old = found.snapshot.attrs
    reasons = list(old.get("incomplete_reasons", []))
    ended = list(old.get("interruptions", []))
    entry: dict[str, Any] = {
        "created": fresh["created"],
        "rows": dict(found.rows),
        "software": fresh["software"],
        "interruptions": ended,
    }
    if step is not None:
        entry["step"] = step
    changed = {name: value for name, value in given.items() if old.get(name, value) != value}
    if changed:
        entry["attrs"] = changed
    added = {name: value for name, value in given.items() if name not in old}
    result = {
        **old,
        **added,
        "state": "recording",
        "incomplete_reasons": [reason for reason in reasons if reason not in ended],
        "interruptions": [],
        "resumed": [*old.get("resumed", []), entry],
    }
    if found.set_aside:
        result[GENERATION] = int(old.get(GENERATION, 0)) + 1
    return result
