"""What reaches the screen: tables and JSON on stdout; logs and progress bars on stderr."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

__all__ = [
    "Console",
    "emit_json",
    "is_terminal",
    "paragraph",
    "setting",
    "size",
    "table",
    "to_json",
    "value",
]

BAR_WIDTH = 24
REDRAW_SECONDS = 0.1
_CLEAR_LINE = "\r\033[K"


@dataclass(frozen=True, slots=True)
class Console:
    """How much a command says beside its data.

    Parameters
    ----------
    level : int
        Level of the ``tracelab`` loggers that reaches stderr: ERROR with ``-q``, WARNING by
        default, INFO with ``-v``, DEBUG with ``-vv``.
    """

    level: int = logging.WARNING

    @property
    def quiet(self) -> bool:
        """Whether only errors are wanted on stderr."""
        return self.level >= logging.ERROR

    @property
    def verbose(self) -> bool:
        """Whether details are wanted."""
        return self.level <= logging.INFO

    def note(self, text: str) -> None:
        """Write a line about what is going on to stderr, unless quiet."""
        if not self.quiet:
            click.echo(text, err=True)

    def bar(self, prefix: str = "") -> Callable[[str, int, int], None] | None:
        """Return a function that draws a bar, or None if nobody would see it.

        It takes (what is computed, parts done, parts in all); a full bar erases itself.
        """
        if self.quiet or not sys.stderr.isatty():
            return None
        drawn = 0.0

        def draw(label: str, done: int, total: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            if done < total and now - drawn < REDRAW_SECONDS:
                return
            drawn = now
            filled = BAR_WIDTH * done // max(total, 1)
            bar = "#" * filled + "-" * (BAR_WIDTH - filled)
            text = "" if done >= total else f"{prefix}{label} [{bar}] {done}/{total}"
            click.echo(f"{_CLEAR_LINE}{text}", err=True, nl=False)

        return draw

    def start_logging(self) -> Callable[[], None]:
        """Send the library's log to stderr; return the function that ends it."""
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        library = logging.getLogger("tracelab")
        before = library.level
        library.addHandler(handler)
        library.setLevel(self.level)

        def stop() -> None:
            library.removeHandler(handler)
            library.setLevel(before)

        return stop


class _Stderr(logging.Handler):
    """Writes to whatever stderr is now, over a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        clear = _CLEAR_LINE if sys.stderr.isatty() else ""
        click.echo(f"{clear}{self.format(record)}", err=True)


def emit_json(data: object) -> None:
    """Write strict JSON to stdout."""
    click.echo(to_json(data))


def to_json(data: object) -> str:
    """Return strict JSON: NaN and infinities become null."""
    return json.dumps(_plain(data), indent=2, allow_nan=False, ensure_ascii=False)


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _plain(item) for key, item in data.items()}
    if isinstance(data, (list, tuple, set, frozenset)):
        return [_plain(item) for item in data]
    if hasattr(data, "tolist"):
        return _plain(data.tolist())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if data is None or isinstance(data, (bool, int, str)):
        return data
    return str(data)


def value(item: object) -> str:
    """Return a cell of a table: four significant digits, ``-`` for what is missing."""
    if item is None:
        return "-"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return "-" if math.isnan(item) else f"{item:.4g}"
    if isinstance(item, (list, tuple)):
        return ", ".join(map(value, item))
    return str(item)


def setting(item: object) -> str:
    """Return the value of a parameter as ``-p`` takes it."""
    if item is None or isinstance(item, bool):
        return str(item).lower()
    return ",".join(item) if isinstance(item, (list, tuple)) else str(item)


def size(n_bytes: float) -> str:
    """Return a number of bytes for reading: ``12.3 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n_bytes < 1024 or unit == "TiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"


def table(columns: Mapping[str, Sequence[object]]) -> str:
    """Return columns under their headings, numbers aligned to the right.

    Parameters
    ----------
    columns : mapping of str to sequence
        Cells by heading, all of one length.
    """
    parts = []
    for heading, items in columns.items():
        numeric = all(
            item is None or (isinstance(item, (int, float)) and not isinstance(item, bool))
            for item in items
        )
        cells = [heading, *map(value, items)]
        width = max(map(len, cells))
        parts.append([cell.rjust(width) if numeric else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*parts, strict=True))


def is_terminal() -> bool:
    """Return whether stdout is read by a person."""
    return sys.stdout.isatty()


def paragraph(head: str, text: str) -> str:
    """Return `head` and `text`; on a terminal wrapped, with the text under itself.

    Elsewhere it is one line, so that ``grep`` finds all of it.
    """
    if not is_terminal():
        return f"{head}{text}".rstrip()
    width = max(shutil.get_terminal_size().columns, len(head) + 24)
    return textwrap.fill(
        text or " ",
        width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    ).rstrip()
