"""Collectors in a configuration: a preset's name, or a list of names with options."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args

from tracelab import registry
from tracelab.errors import UsageError
from tracelab.schedule import log_spaced
from tracelab.sketch import Sketch

__all__ = ["collectors"]

_SKETCHES: Mapping[str, Callable[..., Any]] = {each.__name__: each for each in get_args(Sketch)}
_SCHEDULES: Mapping[str, Callable[..., Any]] = {"log_spaced": log_spaced}
# Options whose values are made by a call; all others are what YAML says.
_CALLS = {"sketch": _SKETCHES, "every": _SCHEDULES}


def collectors(key: str, value: Any) -> Any:
    """Return what `tracelab.attach` takes as ``collectors``.

    Parameters
    ----------
    key : str
        The configuration's key, for errors.
    value : str or list
        The name of a preset, or a list whose items are names, or mappings of one name to options.

    Raises
    ------
    UsageError
        If a collector or an option is unknown, or a value cannot be used.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise UsageError(
            f"{key} must be the name of a preset or a list such as "
            f"'- Gradients: {{every: 10}}', got {value!r}"
        )
    return [_collector(key, item) for item in value]


def _collector(key: str, item: Any) -> Any:
    name, options = _named(key, item)
    known = registry.collectors()
    made = known.get(name) or next((c for c in known.values() if c.__name__ == name), None)
    if made is None:
        names = [found.__name__ for found in known.values()]
        raise UsageError(f"{key}: no collector is called {name!r}; {_hint(name, names)}")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise UsageError(
            f"{key}: the options of {name} must be a mapping such as {{every: 10}}, got {options!r}"
        )
    return _call(
        f"{key}: {name}",
        made,
        {
            option: _value(f"{key}: {name}: {option}", value, _CALLS[option])
            if option in _CALLS
            else value
            for option, value in options.items()
        },
    )


def _named(key: str, item: Any) -> tuple[str, Any]:
    """Return a name and what stands behind it: ``name`` or ``{name: options}``."""
    if isinstance(item, str):
        return item, None
    if isinstance(item, dict) and len(item) == 1:
        ((name, options),) = item.items()
        if isinstance(name, str):
            return name, options
    raise UsageError(
        f"{key}: each item must be a name, or one name with its options, got {item!r}; "
        "start each with '- '"
    )


def _value(key: str, value: Any, calls: Mapping[str, Callable[..., Any]]) -> Any:
    """Return a value in which ``{Name: argument}`` and ``{Name: {option: ...}}`` are calls."""
    if isinstance(value, list) and calls is _SKETCHES:
        return tuple(_value(key, each, calls) for each in value)
    if not isinstance(value, (str, dict)):
        return value
    name, argument = _named(key, value)
    if name not in calls:
        raise UsageError(f"{key}: {name!r} is unknown; {_hint(name, list(calls))}")
    if argument is None:
        return _call(f"{key}: {name}", calls[name], {})
    if isinstance(argument, dict):
        return _call(f"{key}: {name}", calls[name], argument)
    first = next(iter(inspect.signature(calls[name]).parameters), None)
    if first is None:
        raise UsageError(f"{key}: {name} takes no option, got {argument!r}; leave it out")
    return _call(f"{key}: {name}", calls[name], {first: argument})


def _call(key: str, made: Callable[..., Any], options: Mapping[Any, Any]) -> Any:
    parameters = inspect.signature(made).parameters
    for option in options:
        if option not in parameters:
            raise UsageError(f"{key} has no option {option!r}; {_hint(option, list(parameters))}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise UsageError(f"{key} needs {name}; give it as {{{name}: ...}}")
    try:
        return made(**options)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error
    except Exception as error:
        raise UsageError(
            f"{key} cannot be made of {dict(options)!r}: {error}; correct the values"
        ) from error


def _hint(name: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known) or 'none'}"
