"""One run's recording on disk: written by `create`, read by `open`.

The writer's side loads without the reader's: a training process needs neither xarray nor Dask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelab.trace.reading.reader import Trace, open
    from tracelab.trace.writing.creation import create
    from tracelab.trace.writing.writer import Writer

__all__ = ["Trace", "Writer", "create", "open"]

_HOMES = {
    "Trace": "reading.reader",
    "Writer": "writing.writer",
    "create": "writing.creation",
    "open": "reading.reader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
