"""Closes sessions that are still open when the interpreter exits."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

# Registers its own shutdown first, so that sessions hand over before writers close.
import tracelab.trace.writing.exits

if TYPE_CHECKING:
    from tracelab_collectors.session import Session

__all__ = ["forget", "register"]

logger = logging.getLogger(__name__)

_open: set[Session] = set()


def register(session: Session) -> None:
    """Remember an open session."""
    _open.add(session)


def forget(session: Session) -> None:
    """Forget a closed session."""
    _open.discard(session)


def _detach_all() -> None:
    for session in tuple(_open):
        reason = "the process ended before the session was closed"
        session.writer.mark_incomplete(reason, lasting=False)
        try:
            session.detach()
        except Exception as error:
            logger.error("%s", error)


assert tracelab.trace.writing.exits
threading._register_atexit(_detach_all)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    # A child has neither the background thread nor the hooks.
    os.register_at_fork(after_in_child=_open.clear)
