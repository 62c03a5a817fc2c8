"""A session that a framework's callback holds while the framework trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracelab_collectors.attach import attach
from tracelab_collectors.bystander import Bystander
from tracelab_collectors.session import Session

__all__ = ["Held"]


class Held:
    """At most one open session; copies and pickles of it hold none.

    Parameters
    ----------
    path : str or path
        Where the trace goes.
    options : mapping
        Further options of `tracelab.attach`.
    """

    def __init__(self, path: str | Path, options: Mapping[str, Any]) -> None:
        self._path = path
        self._options = dict(options)
        self._session: Session | Bystander | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_session": None}

    @property
    def step(self) -> int:
        """Optimizer steps begun, or 0 while nothing is recorded."""
        return 0 if self._session is None else self._session.step

    def begin(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], steps_taken: int
    ) -> None:
        """Attach, in place of a session that was never ended.

        Parameters
        ----------
        model : nn.Module
            The model.
        optimizers : sequence of torch.optim.Optimizer
            What trains it, without the framework's wrappers.
        steps_taken : int
            Steps before this one, according to the framework. With ``resume=True`` the trace goes
            on there, and not after its last row: a checkpoint can be older.

        Raises
        ------
        UsageError
            If something cannot be recorded as asked.
        """
        self.end("training began anew before it had ended")
        options = dict(self._options)
        if options.get("resume") is True and steps_taken:
            options["resume"] = steps_taken
        self._session = attach(model, optimizers, self._path, **options)

    def log(self, **scalars: float | Tensor) -> None:
        """Record scalars of the step just taken."""
        if self._session is not None:
            self._session.log(**scalars)

    def end(self, reason: BaseException | str | None = None) -> None:
        """Close the session, if there is one.

        Parameters
        ----------
        reason : exception or str, optional
            Why the trace is incomplete.
        """
        session, self._session = self._session, None
        if session is None:
            return
        if isinstance(reason, BaseException):
            session.__exit__(type(reason), reason, reason.__traceback__)
            return
        if reason is not None and isinstance(session, Session):
            session.writer.mark_incomplete(reason, lasting=False)
        session.detach()
