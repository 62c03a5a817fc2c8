"""A script's traceback looks as without us."""

from __future__ import annotations

import runpy
import sys
from functools import partial
from pathlib import Path
from types import TracebackType

__all__ = ["hide_own_frames"]

_PACKAGE = Path(__file__).parent
_ATTACH = str(_PACKAGE.with_name("attach.py"))


def hide_own_frames() -> None:
    """Let an exception that ends the process be shown from the script's first frame on.

    Whoever shows it now, the script's own hook if it has set one, goes on doing so.
    """
    sys.excepthook = partial(_show, sys.excepthook)


def _show(
    show: object, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    rest = traceback
    while rest is not None and _is_ours(rest.tb_frame.f_code.co_filename):
        rest = rest.tb_next
    # Python's own hook shows what the exception carries.
    error.__traceback__ = rest
    assert callable(show)
    show(kind, error, rest)


def _is_ours(file: str) -> bool:
    # Python itself ran us by `runpy`.
    return file in (_ATTACH, runpy.__file__, "<frozen runpy>") or Path(file).parent == _PACKAGE
