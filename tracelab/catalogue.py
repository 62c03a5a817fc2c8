"""Hyper-parameters of runs as flat columns, and queries over them; plain values only, no eval."""

from __future__ import annotations

import difflib
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tracelab.errors import UsageError

__all__ = ["column", "flatten", "matches", "parse_condition"]

_SECTIONS = ("metadata", "optimizer", "model")
_LONGEST_LIST = 8

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


def flatten(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trace's metadata, optimizer, model and seed as one flat mapping.

    Parameters
    ----------
    attrs : mapping
        Root attributes of a trace.

    Returns
    -------
    dict of str to scalar, str or None
        Keys such as ``"metadata.dataset"`` and ``"optimizer.lr"``; ``"optimizer"`` and
        ``"model"`` are their names. Lists of up to 8 plain values become one text, larger ones
        and what is empty are left out.

    Examples
    --------
    >>> flatten({"optimizer": {"name": "SGD", "lr": 0.1}, "metadata": {"data": {"n": 5}}})
    {'metadata.data.n': 5, 'optimizer': 'SGD', 'optimizer.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for section in _SECTIONS:
        described = attrs.get(section)
        if isinstance(described, Mapping):
            for key, value in _leaves(described):
                found[section if key == "name" else f"{section}.{key}"] = value
        elif isinstance(described, str | int | float | bool):
            found[section] = described
    for key in ("seed", "rank"):
        if isinstance(attrs.get(key), int):
            found[key] = attrs[key]
    return found


def _leaves(described: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in described.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, list):
            plain = all(isinstance(item, str | int | float | bool) for item in value)
            if value and plain and len(value) <= _LONGEST_LIST:
                yield name, ", ".join(map(str, value))
        else:
            yield name, value


def column(name: str, columns: Iterable[str]) -> str:
    """Return the column that `name` means: itself, or the only one that ends in ``.name``.

    Raises
    ------
    UsageError
        If there is none, or several.
    """
    known = list(dict.fromkeys(columns))
    if name in known:
        return name
    ends = [each for each in known if each.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"{name!r} can be {' or '.join(ends)}; give the whole name")
    short = {each.rpartition(".")[2]: each for each in known} | {each: each for each in known}
    close = difflib.get_close_matches(name, short, n=1)
    hint = f"did you mean {short[close[0]]!r}?" if close else f"there are: {', '.join(known)}"
    raise UsageError(f"no run has a hyper-parameter {name!r}; {hint}")


def matches(value: Any, wanted: Any) -> bool:
    """Return whether a hyper-parameter is what is wanted.

    Parameters
    ----------
    value : scalar, str or None
        The run's; None where it has no such hyper-parameter.
    wanted : value, list, slice or callable
        Equal to it; one of them; between both ends, which are included; or true of it.
    """
    if callable(wanted):
        return value is not None and bool(wanted(value))
    if isinstance(wanted, slice):
        if wanted.step is not None:
            raise UsageError(f"a range of hyper-parameters has two ends and no step, got {wanted}")
        above = wanted.start is None or _holds(operator.ge, value, wanted.start)
        return (
            value is not None
            and above
            and (wanted.stop is None or _holds(operator.le, value, wanted.stop))
        )
    if isinstance(wanted, list | tuple | set | frozenset):
        return any(matches(value, each) for each in wanted)
    # True is no 1 here: momentum=1 does not mean nesterov=True.
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _holds(comparison: Callable[[Any, Any], bool], value: Any, bound: Any) -> bool:
    try:
        return comparison(value, bound)
    except TypeError:
        return False


def parse_condition(text: str) -> tuple[str, Any]:
    """Return name and wanted value of ``KEY=VALUE``, ``KEY!=VALUE``, ``KEY<VALUE`` and so on.

    Values are read as JSON (0.1, true, null, "text") and else as texts; ``KEY=A|B`` is any of
    them.

    Raises
    ------
    UsageError
        If it is no such condition.
    """
    found = re.fullmatch(r"\s*([^<>=!]+?)\s*(<=|>=|!=|<|>|=)\s*(.*?)\s*", text, flags=re.DOTALL)
    if found is None:
        raise UsageError(
            f"a condition is KEY=VALUE, KEY!=VALUE or KEY<VALUE (also <=, >, >=), got {text!r}"
        )
    name, sign, right = found.groups()
    if sign == "=":
        values = [_value(part) for part in right.split("|")]
        return name, values if len(values) > 1 else values[0]
    comparison, bound = _COMPARISONS[sign], _value(right)
    return name, lambda value: _holds(comparison, value, bound)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
