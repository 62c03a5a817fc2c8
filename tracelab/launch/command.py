"""The command line of ``python -m tracelab.attach``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracelab.errors import UsageError
from tracelab.launch.script import Script

__all__ = ["USAGE", "Command", "parse"]

USAGE = """\
Usage: python -m tracelab.attach --config FILE [--] SCRIPT [ARGUMENTS]...
       python -m tracelab.attach --config FILE -m MODULE [ARGUMENTS]...

Run a training script unedited, as python would, and record what its optimizer does.

  --config FILE  What to record and where: a YAML file.
  -m MODULE      Run a module, as python -m does.
  -h, --help     Show this text."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a command line asks for.

    Parameters
    ----------
    config : str
        The configuration's file.
    script : Script
        What to run.
    """

    config: str
    script: Script


def parse(arguments: Sequence[str]) -> Command:
    """Return what a command line asks for; everything behind the script's name is the script's.

    Raises
    ------
    UsageError
        If something is missing or unknown.
    """
    rest = list(arguments)
    config: str | None = None
    while rest and rest[0].startswith("-") and rest[0] not in ("-m", "--"):
        option, equals, value = rest.pop(0).partition("=")
        if option != "--config":
            raise UsageError(
                f"there is no option {option!r}; give --config FILE, then the script and its own "
                "arguments"
            )
        if not equals:
            value = rest.pop(0) if rest else ""
        if not value:
            raise UsageError("--config needs the name of a file, as in --config trace.yaml")
        config = value
    if config is None:
        raise UsageError("--config is missing; give a YAML file that says what to record and where")
    if rest[:1] == ["--"]:
        rest.pop(0)
    is_module = rest[:1] == ["-m"]
    if is_module:
        rest.pop(0)
    if not rest:
        raise UsageError(
            f"nothing to run; name a {'module behind -m' if is_module else 'script'} after the "
            "options"
        )
    return Command(config, Script(rest[0], tuple(rest[1:]), is_module))
