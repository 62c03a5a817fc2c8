"""What can be reached from objects, to see whether a call changed any of it."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor, nn

__all__ = ["reached", "unchanged"]

# How far containers and attributes are followed, how many elements of one, and how many in all.
DEPTH = 4
ELEMENTS = 256
MOST = 20_000

_VALUES = (bool, int, float, str, bytes)
_OPAQUE = (*_VALUES, type, types.ModuleType, types.BuiltinFunctionType, Tensor)
_CONTAINERS = (list, tuple, set, frozenset, deque)


def reached(*roots: Any) -> list[Any]:
    """Return what objects hold: modules, containers, attributes, closures and globals.

    What is returned keeps it alive, so that nothing new can have the same identity.

    Parameters
    ----------
    *roots : object
        Modules, functions or other objects.

    Returns
    -------
    list of object
        In an order that depends on what there is alone, with the lengths of containers. It ends
        with an object of its own if there is more than can be looked at.
    """
    found = list(islice(_walk(roots, DEPTH, set()), MOST))
    return [*found, object()] if len(found) == MOST else found


def unchanged(before: list[Any], after: list[Any]) -> bool:
    """Return whether two results of `reached` hold the same objects and equal numbers and texts."""
    return len(before) == len(after) and all(
        a is b or (type(a) is type(b) and isinstance(a, _VALUES) and a == b)
        for a, b in zip(before, after, strict=True)
    )


def _walk(values: Iterable[Any], depth: int, seen: set[int]) -> Iterator[Any]:
    for value in values:
        yield value
        if depth == 0 or isinstance(value, _OPAQUE) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            # Every module of a network, however deep it lies.
            modules = [each for each in value.modules() if each is value or id(each) not in seen]
            seen.update(map(id, modules))
            for module in modules:
                yield from _walk(list(vars(module).values()), DEPTH - 1, seen)
        elif isinstance(value, types.MethodType):
            yield from _walk([value.__self__, value.__func__], depth, seen)
        else:
            if isinstance(value, (dict, *_CONTAINERS)):
                yield len(value)
            yield from _walk(list(_held(value)), depth - 1, seen)


def _held(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from islice(value.values(), ELEMENTS)
    elif isinstance(value, _CONTAINERS):
        yield from islice(value, ELEMENTS)
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:
                continue
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield value.__globals__[name]
    elif isinstance(attributes := getattr(value, "__dict__", None), dict):
        yield from attributes.values()
