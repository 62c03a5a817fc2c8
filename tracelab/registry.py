"""Finds analyses, collectors and recorders by their entry points; the core names none of them."""

from __future__ import annotations

import difflib
import inspect
import logging
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tracelab.contracts import Analysis
from tracelab.errors import MissingExtraError, TracelabError, UsageError

__all__ = [
    "ANALYSES",
    "COLLECTORS",
    "DEMOS",
    "LAUNCHERS",
    "RECORDERS",
    "analyses",
    "analysis",
    "collectors",
    "demo",
    "launcher",
    "options",
    "recorder",
]

ANALYSES = "tracelab.analyses"
COLLECTORS = "tracelab.collectors"
DEMOS = "tracelab.demos"
LAUNCHERS = "tracelab.launchers"
RECORDERS = "tracelab.recorders"

logger = logging.getLogger(__name__)


@cache
def _entries(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=group))}


def _load(group: str, name: str) -> Any:
    entry = _entries(group)[name]
    try:
        return entry.load()
    except ImportError as error:
        if isinstance(error, TracelabError):
            raise
        if error.name == "torch":
            raise MissingExtraError("torch", "collect", "recording a training run") from error
        raise UsageError(
            f"the plugin {name!r} ({entry.value}) cannot be imported: {error}; "
            "install what it needs or uninstall it"
        ) from error


def analyses() -> dict[str, Analysis]:
    """Return every installed analysis by name; one that cannot be loaded is warned of."""
    found = {}
    for name in _entries(ANALYSES):
        try:
            found[name] = analysis(name)
        except UsageError as error:
            # Somebody's broken plugin must not take the others along.
            logger.warning("%s", error)
    return found


def analysis(name: str) -> Analysis:
    """Return the analysis called `name`.

    Raises
    ------
    UsageError
        If there is none, naming the closest; or if its plugin is no `Analysis`.
    """
    known = _entries(ANALYSES)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
        raise UsageError(f"no analysis is called {name!r}; {hint}")
    found = _load(ANALYSES, name)
    if not isinstance(found, Analysis):
        raise UsageError(
            f"the plugin {name!r} ({known[name].value}) is a {type(found).__name__}, "
            "not a tracelab.contracts.Analysis; name its ANALYSIS constant"
        )
    return found


def collectors() -> dict[str, Any]:
    """Return every installed collector's class by name; one that cannot be loaded is warned of."""
    found = {}
    for name in _entries(COLLECTORS):
        try:
            found[name] = _load(COLLECTORS, name)
        except MissingExtraError:
            raise
        except UsageError as error:
            logger.warning("%s", error)
    return found


def recorder(framework: str) -> Any:
    """Return the function that attaches collectors to a training run of `framework`."""
    known = _entries(RECORDERS)
    if framework not in known:
        raise UsageError(
            f"no recorder for {framework!r} is installed; there are: {', '.join(known) or 'none'}"
        )
    return _load(RECORDERS, framework)


def options(recorder: Any) -> list[str]:
    """Return the names of what a recorder takes by keyword alone."""
    parameters = inspect.signature(recorder).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def launcher(framework: str) -> Any:
    """Return the function that records a script of `framework` that is not edited."""
    known = _entries(LAUNCHERS)
    if framework not in known:
        raise UsageError(
            f"no launcher for {framework!r} is installed; there are: {', '.join(known) or 'none'}"
        )
    return _load(LAUNCHERS, framework)


def demo(name: str) -> Any:
    """Return the function that records the training runs of the demonstration `name`."""
    known = _entries(DEMOS)
    if name not in known:
        raise UsageError(
            f"no demonstration is called {name!r}; there are: {', '.join(known) or 'none'}"
        )
    return _load(DEMOS, name)
