"""Closes sessions that are still open when the interpreter exits, also by SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

# Registers its own shutdown first, so that sessions hand over before writers close.
import tracelab.trace.writing.exits

if TYPE_CHECKING:
    from tracelab_collectors.session import Session

__all__ = ["by_signal", "forget", "reason", "register"]

logger = logging.getLogger(__name__)

_open: set[Session] = set()
_termination: list[tuple[BaseException, str]] = []


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
    error = SystemExit(128 + number)
    _termination[:] = [(error, f"the process was ended by {signal.Signals(number).name}")]
    raise error


def by_signal() -> bool:
    """Return whether a signal is ending the process."""
    return bool(_termination)


def reason(error: BaseException) -> str:
    """Return an exception in words; of the one that SIGTERM raised, the signal."""
    for raised, words in _termination:
        if error is raised:
            return words
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _why() -> str:
    """Return why the process ends."""
    if _termination:
        return _termination[0][1]
    # Python keeps the exception that nobody caught; at a prompt it is any one before.
    error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    if error is None:
        return "the process ended before the session was closed"
    return reason(error)


def _detach_all() -> None:
    for session in tuple(_open):
        session.writer.mark_incomplete(_why(), lasting=False)
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
