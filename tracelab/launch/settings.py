"""The configuration of zero-code recording: YAML, whose every mistake is told in a sentence."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

import yaml

from tracelab.errors import UsageError
from tracelab.launch.collectors import collectors
from tracelab.launch.references import Reference

__all__ = ["Settings", "read"]

FIRST, ALL = "first", "all"
# How a script is launched, not its configuration, says which process this is.
_NOT_HERE = frozenset({"rank", "world_size", "run_id"})


@dataclass(frozen=True, slots=True)
class Settings:
    """What to record of a script.

    Parameters
    ----------
    path : str
        Where the trace goes.
    options : mapping
        Further options of `tracelab.attach`; ``loss`` and ``data`` are references.
    every_optimizer : bool
        Whether every optimizer gets a trace, and not the first one to step alone.
    """

    path: str
    options: Mapping[str, Any]
    every_optimizer: bool = False

    @property
    def strict(self) -> bool:
        """Whether what goes wrong in recording ends training."""
        return bool(self.options.get("strict", False))

    def resolve(self, *, late: bool) -> dict[str, Any]:
        """Return the options with references replaced by the objects they name.

        Parameters
        ----------
        late : bool
            Whether the script runs already: before, what it defines itself stays a reference.

        Raises
        ------
        UsageError
            If there is no such object.
        """
        return {
            name: value.load()
            if isinstance(value, Reference) and (late or not value.in_script)
            else value
            for name, value in self.options.items()
        }


def read(file: str, known: Sequence[str]) -> Settings:
    """Return the settings in a file.

    Parameters
    ----------
    file : str
        A YAML file.
    known : sequence of str
        The options of `tracelab.attach`.

    Raises
    ------
    UsageError
        If the file cannot be read, or something in it cannot be used.
    """
    try:
        content = _load(file)
        return _settings(content, [*_OWN, *(name for name in known if name not in _NOT_HERE)])
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _load(file: str) -> dict[Any, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}; check --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"is no YAML file: {reason}; correct it") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"must hold keys and values such as 'path: runs/sgd.zarr', got {content!r}"
        )
    return content


def _settings(content: Mapping[Any, Any], keys: list[str]) -> Settings:
    for key in content:
        if key not in keys:
            close = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(keys)}"
            raise UsageError(f"there is no key {key!r}; {hint}")
    if "path" not in content:
        raise UsageError("path is missing; say where the trace goes, as in 'path: runs/sgd.zarr'")
    options = {
        name: _OPTIONS[name](name, value) if name in _OPTIONS else value
        for name, value in content.items()
        if name not in _OWN
    }
    if options.get("overwrite") and options.get("resume", False) is not False:
        raise UsageError("overwrite and resume contradict each other; give one of them")
    return Settings(
        _path("path", content["path"]), options, _optimizers(content.get("optimizers", FIRST))
    )


_OWN = ("path", "optimizers")


def _of(kinds: tuple[type, ...], wanted: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if type(value) not in kinds:
            raise UsageError(f"{name} must be {wanted}, got {value!r}")
        return value

    return check


def _path(name: str, value: Any) -> str:
    text = str(_of((str,), "a path or URL in words")(name, value))
    try:
        path = Template(text).substitute(os.environ)
    except KeyError as error:
        raise UsageError(
            f"path {text!r} names the environment variable {error.args[0]!r}, which is not set; "
            "set it or leave it out"
        ) from None
    except ValueError:
        raise UsageError(
            f"path {text!r} has a '$' that starts no environment variable's name; write '$$' for "
            "a dollar sign"
        ) from None
    if not path:
        raise UsageError("path is empty; say where the trace goes")
    return path


def _optimizers(value: Any) -> bool:
    if value not in (FIRST, ALL):
        raise UsageError(f"optimizers must be {FIRST!r} or {ALL!r}, got {value!r}")
    return bool(value == ALL)


def _expression(name: str, value: Any) -> str:
    text = str(_of((str,), "a regular expression")(name, value))
    try:
        re.compile(text)
    except re.error as error:
        raise UsageError(f"{name}: {text!r} is no regular expression: {error}") from error
    return text


def _metadata(name: str, value: Any) -> Any:
    _of((dict,), "a mapping")(name, value)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be stored as JSON: {error}; put it in quotes") from error
    return value


_INTEGER = _of((int,), "an integer")
_TRUTH = _of((bool,), "true or false")
_OPTIONS: Mapping[str, Callable[[str, Any], Any]] = {
    "collectors": collectors,
    "loss": Reference.of,
    "data": Reference.of,
    "data_size": _INTEGER,
    "seed": _INTEGER,
    "metadata": _metadata,
    "overwrite": _TRUTH,
    "resume": _of((bool, int), "true, false or a step"),
    "strict": _TRUTH,
    "layers": _expression,
    "exclude": _expression,
}
