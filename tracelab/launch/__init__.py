"""Zero-code recording: runs a training script as ``python`` would, and records what it trains.

What watches the script is found through the entry point group ``tracelab.launchers``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from tracelab import registry
from tracelab.errors import TracelabError, UsageError
from tracelab.launch.command import USAGE, parse
from tracelab.launch.settings import Settings, read
from tracelab.launch.tracebacks import hide_own_frames

__all__ = ["Watch", "main"]

FRAMEWORK = "torch"


class Watch(Protocol):
    """What records while a script runs; made by a launcher."""

    def finish(self, error: BaseException | None) -> None:
        """End the recording: the script has ended, by an exception if one is given."""


Launcher: TypeAlias = Callable[[Settings], Watch]
"""Starts to watch; before the script, a UsageError says what cannot be recorded as asked."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what a command line says, recorded; it ends as the script itself would end.

    Parameters
    ----------
    argv : sequence of str, optional
        Default: that of the process.

    Raises
    ------
    SystemExit
        With code 2 if the command line or the configuration is wrong, before the script starts.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return
    try:
        command = parse(arguments)
        command.script.check()
        command.script.enter()
        watch = _watch(command.config)
    except TracelabError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        command.script.run()
    except BaseException as error:
        hide_own_frames()
        watch.finish(error)
        raise
    watch.finish(None)


def _watch(config: str) -> Watch:
    launcher: Launcher = registry.launcher(FRAMEWORK)
    settings = read(config, registry.options(registry.recorder(FRAMEWORK)))
    try:
        return launcher(settings)
    except UsageError as error:
        raise UsageError(f"{config}: {error}") from error
