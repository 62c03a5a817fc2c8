"""Waits for the first step of a script's optimizer, and attaches to it and its model there."""

from __future__ import annotations

import os
import warnings
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tracelab.errors import IncompleteTraceWarning, UsageError
from tracelab.launch.settings import Settings
from tracelab.trace.places.locations import resolve
from tracelab.trace.writing.room import vacant
from tracelab_collectors import exits
from tracelab_collectors.attach import attach
from tracelab_collectors.bystander import Bystander
from tracelab_collectors.examples import Examples
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.noise_probe import NoiseProbe
from tracelab_collectors.owners import owner
from tracelab_collectors.presets import chosen
from tracelab_collectors.session import Session

__all__ = ["Watch", "watch"]

# Read once, when PyTorch is imported: before the script could set them.
_READ_AT_IMPORT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def watch(settings: Settings) -> Watch:
    """Return what attaches to the optimizers of a script that is about to run.

    Parameters
    ----------
    settings : Settings
        What to record, and where.

    Raises
    ------
    UsageError
        If it can be seen already that it cannot be recorded as asked.
    """
    options = settings.options
    collectors = chosen(options.get("collectors"), probes={"loss", "data"} <= options.keys())
    for collector in collectors:
        for needed in ("loss", "data"):
            if isinstance(collector, (NoiseProbe, Examples)) and needed not in options:
                raise UsageError(
                    f"collector {collector.name!r} measures gradients by itself and needs "
                    f"{needed}; give {needed}: package.module:name"
                )
    if not options.get("overwrite") and options.get("resume", False) is False:
        location = resolve(settings.path)
        if not vacant(location):
            raise UsageError(
                f"there is something at {location.name}; choose another path, or write "
                "overwrite: true to replace a trace, or resume: true to go on after its last row"
            )
    with forked_generators(0):
        settings.resolve(late=False)
    return Watch(settings)


class Watch:
    """Sessions of optimizers that step for the first time; made by `watch`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sessions: list[Session | Bystander] = []
        self._seen: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._steps_seen = False
        self._process = os.getpid()
        self._environment = _environment()
        # Hooks before every optimizer's step run ahead of the optimizer's own: those of a session
        # that begins inside of one still see this very step.
        self._handle = register_optimizer_step_pre_hook(self._before_step)

    def finish(self, error: BaseException | None) -> None:
        """Close the sessions: the script has ended, by an exception if one is given."""
        self._handle.remove()
        if os.getpid() != self._process:
            return
        failed = error
        if isinstance(error, SystemExit) and error.code in (None, 0):
            failed = None
        if failed is None and not self._steps_seen:
            _warn(
                "the script took no optimizer step in this process, so that nothing is at "
                f"{self._settings.path}; processes that a script starts are not recorded"
            )
        if exits.by_signal():
            # Sessions are closed as the process ends, and say which.
            return
        for session in self._sessions:
            if failed is None:
                session.detach()
            else:
                session.__exit__(type(failed), failed, failed.__traceback__)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._steps_seen and not self._settings.every_optimizer:
            return
        if optimizer in self._seen or os.getpid() != self._process:
            return
        self._seen.add(optimizer)
        number = len(self._seen)
        self._steps_seen = True
        try:
            self._attach(optimizer, number)
        except Exception as error:
            if self._settings.strict:
                raise
            _warn(
                f"recording could not start: {type(error).__name__}: {error}; training goes on, "
                "unrecorded"
            )

    def _attach(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        path = self._settings.path if number == 1 else _numbered(self._settings.path, number)
        options = self._settings.resolve(late=True)
        self._sessions.append(attach(owner(optimizer), optimizer, path, **options))
        for name, value in _environment().items():
            if value != self._environment[name]:
                _warn(
                    f"the script set {name}={value} after PyTorch had been imported, so that it "
                    "has no effect; set it outside of the script"
                )


def _environment() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in _READ_AT_IMPORT}


def _numbered(path: str, number: int) -> str:
    """Return ``runs/gan-2.zarr`` for ``runs/gan.zarr``."""
    stem, dot, ending = path.rpartition(".")
    if not dot or "/" in ending or not stem:
        return f"{path}-{number}"
    return f"{stem}-{number}.{ending}"


def _warn(words: str) -> None:
    warnings.warn(words, IncompleteTraceWarning, stacklevel=2)
