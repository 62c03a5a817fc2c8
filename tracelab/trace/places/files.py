"""Stores a file in one instant: written beside its place, flushed to the disk, renamed into it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

__all__ = ["PARTIAL", "Part", "put"]

Part: TypeAlias = bytes | memoryview

PARTIAL = ".partial"
"""How the names of files end that are not in their place yet; a killed process leaves them."""


def put(path: Path, parts: Iterable[Part]) -> None:
    """Store a file; whoever reads at the same time sees all of it or what was before.

    Not through zarr-python: its thread pool is gone when the interpreter exits, and it does not
    survive a fork.

    Raises
    ------
    OSError
        If it cannot be stored; what was before is untouched.
    """
    # A name of its own: several processes may store the same object.
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        try:
            file = unfinished.open("xb")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = unfinished.open("xb")
        with file:
            for part in parts:
                file.write(part)
            file.flush()
            # Renamed before its bytes are on disk, a file can be empty after a power cut.
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
