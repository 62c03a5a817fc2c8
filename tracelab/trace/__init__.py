"""One run's recording on disk: written by `create`, read by `open`."""

from tracelab.trace.creation import create
from tracelab.trace.reader import Trace, open
from tracelab.trace.writer import Writer

__all__ = ["Trace", "Writer", "create", "open"]
