"""Exit codes, and how an error becomes one clear sentence on stderr and one of them."""

from __future__ import annotations

import logging
import os
import sys
from enum import IntEnum
from typing import Any

import click

from tracelab.errors import TraceError, TracelabError, UsageError

__all__ = ["ExitCode", "Program", "code_of", "sentence"]

logger = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """What the shell is told."""

    DONE = 0
    FAILED = 1  # finished, but some cells or analyses failed
    USAGE = 2  # click's own code for a wrong option
    TRACE = 3  # a trace is unreadable or damaged
    INTERRUPTED = 130  # 128 + SIGINT, as shells report it
    BROKEN_PIPE = 141  # 128 + SIGPIPE


def code_of(error: Exception) -> ExitCode:
    """Return the exit code an error stands for."""
    if isinstance(error, TraceError):
        return ExitCode.TRACE
    return ExitCode.USAGE if isinstance(error, UsageError) else ExitCode.FAILED


def sentence(error: Exception) -> str:
    """Return an error as one sentence; one not raised on purpose is named by its type."""
    if isinstance(error, TracelabError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return f"{type(error).__name__}: {error}"


class Program(click.Group):
    """The command line: errors of the user end in a sentence and a code, never in a traceback."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as the whole process."""
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as exit_:
            if exit_.code == ExitCode.INTERRUPTED:
                # The interpreter would wait for the cells that threads are still computing.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(ExitCode.INTERRUPTED)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command and translate how it ended."""
        try:
            returned = super().invoke(ctx)
            # A closed pipe must show here, not while the interpreter shuts down.
            sys.stdout.flush()
        except BrokenPipeError:
            _silence(sys.stdout)
            ctx.exit(ExitCode.BROKEN_PIPE)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(ExitCode.INTERRUPTED)
        except (TracelabError, OSError) as error:
            logger.debug("where it was raised", exc_info=error)
            click.echo(f"Error: {sentence(error)}", err=True)
            ctx.exit(code_of(error))
        return returned


def _silence(stream: Any) -> None:
    # What is still buffered is flushed at exit, into a pipe that nobody reads.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)
