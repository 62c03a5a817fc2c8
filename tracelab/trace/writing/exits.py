"""What happens to open writers when the process forks or exits.

zarr-python, and with it every store that is not a folder, needs the thread pools that
``concurrent.futures`` shuts down before plain ``atexit`` handlers run. The threading module calls
functions registered with it earlier than that, last registered first; `concurrent.futures` itself
relies on it.
"""

from __future__ import annotations

import concurrent.futures.thread  # registers its own shutdown first, so that ours runs before
import logging
import os
import threading
from typing import TYPE_CHECKING

from tracelab.errors import TraceError

if TYPE_CHECKING:
    from tracelab.trace.writing.writer import Writer

__all__ = ["forget", "register", "writers"]

logger = logging.getLogger(__name__)

_open: set[Writer] = set()


def register(writer: Writer) -> None:
    """Remember an open writer."""
    _open.add(writer)


def forget(writer: Writer) -> None:
    """Forget a closed writer."""
    _open.discard(writer)


def writers() -> tuple[Writer, ...]:
    """Return the open writers of this process."""
    return tuple(_open)


def _close_all() -> None:
    for writer in writers():
        writer.mark_incomplete("the process ended before the writer was closed", lasting=False)
        try:
            writer.close()
        except TraceError as error:
            logger.error("%s", error)


assert concurrent.futures.thread
threading._register_atexit(_close_all)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    # A child has no background thread; its copies of the parent's writers are not its own.
    os.register_at_fork(after_in_child=_open.clear)
