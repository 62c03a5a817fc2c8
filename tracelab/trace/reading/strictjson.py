"""JSON from anywhere: only what JSON is, no larger than honest documents, nothing said twice."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "check_free", "parse"]

MAX_BYTES = 2**22
"""Of a root document. One of 1e4 layers and 62 arrays has 47 kB: layers are rows of a table."""

MAX_VALUES = 2**17
"""Of a document: a parsed value takes up to a hundred times its bytes."""

MAX_DEPTH = 32
"""Of what users put into attributes."""


def parse(content: bytes) -> Any:
    """Return what a document says.

    Raises
    ------
    ValueError
        If it is no JSON, is larger or has more values than a document of ours can have, names
        something twice, or holds a number that is none.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    if sum(map(content.count, (b",", b"{", b"["))) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES} values")
    try:
        return json.loads(
            content.decode(), object_pairs_hook=_once, parse_constant=_none, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it says {twice[:80]!r} twice")
    return found


def _none(text: str) -> Any:
    raise ValueError(f"it holds {text}, which JSON does not have")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"it holds {text[:20]}, which is larger than any float64")
    return number


def check_free(value: Any) -> None:
    """Check what users may have written: texts that can be shown, and no deep nesting.

    Raises
    ------
    ValueError
        If it cannot be shown, or hardly be walked through.
    """
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"its attributes are nested more than {MAX_DEPTH} deep")
        if isinstance(item, str):
            # Half of a character, escaped in JSON, can be neither printed nor stored.
            item.encode()
        elif isinstance(item, dict):
            for name, inside in item.items():
                name.encode()
                waiting.append((inside, depth + 1))
        elif isinstance(item, list):
            waiting += [(inside, depth + 1) for inside in item]
