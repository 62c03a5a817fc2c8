"""Closes sessions that are still open when the interpreter exits, also by SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

# Registers its own shutdown first, so that sessions hand over before writers close.
import tracelab.trace.writing.exits

if TYPE_CHECKING:
    from tracelab_collectors.session import Session

__all__ = ["forget", "reason", "register"]

logger = logging.getLogger(__name__)

_open: set[Session] = set()
_reason = ["the process ended before the session was closed"]
_termination: list[BaseException] = []


def register(session: Session) -> None:
    """Remember an open session."""
    _open.add(session)
    # By default SIGTERM ends a process without another line of Python.
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def forget(session: Session) -> None:
    """Forget a closed session."""
    _open.discard(session)
    if not _open and _in_main_thread() and signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: FrameType | None) -> None:
    """End the process as an exception does, so that nothing is interrupted half-way.

    Flushing here could wait for a lock that the interrupted line holds.
    """
    _reason[0] = f"the process was ended by {signal.Signals(number).name}"
    _termination[:] = [SystemExit(128 + number)]
    raise _termination[0]


def reason(error: BaseException | None) -> str:
    """Return why a session ends that an exception leaves; of SIGTERM's it is the signal."""
    if any(each is error for each in _termination):
        return _reason[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _detach_all() -> None:
    for session in tuple(_open):
        session.writer.mark_incomplete(_reason[0], lasting=False)
        try:
            session.detach()
        except Exception as error:
            logger.error("%s", error)


assert tracelab.trace.writing.exits
threading._register_atexit(_detach_all)  # type: ignore[attr-defined]


def _forget_all() -> None:
    """Forget the sessions in a child: it has neither the background thread nor the hooks."""
    _open.clear()
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
