"""TracelabCallback for the Trainer of Transformers, and attach for loops with Accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from tracelab.errors import MissingExtraError
from tracelab_collectors.attach import attach as attach_to
from tracelab_collectors.bystander import Bystander
from tracelab_collectors.integrations.held import Held
from tracelab_collectors.session import Session

if TYPE_CHECKING:
    from accelerate import Accelerator

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise MissingExtraError("transformers", "huggingface", "recording a Trainer") from error

__all__ = ["TracelabCallback", "attach"]

# Of what a Trainer logs; the rest are times and rates.
_LOGGED = ("loss", "eval_loss")


class TracelabCallback(TrainerCallback):
    """Records every optimizer step of ``Trainer.train``.

    The recorded gradient is the one that the optimizer uses: of all accumulated batches, unscaled
    and clipped. ``loss`` is what the Trainer logs: the mean over the steps since it last did so,
    each step's own with ``logging_steps=1``.

    A Trainer does not tell its callbacks that training raised. Within ``with callback:`` the trace
    is then closed at once, with the exception as the reason; without, when training begins again or
    the process ends.

    Parameters
    ----------
    path : str or path
        Where the trace goes.
    **options
        As for `tracelab.attach`. With ``resume=True`` the trace goes on at the step of the
        checkpoint that the Trainer has restored.

    Examples
    --------
    >>> callback = TracelabCallback("runs/gpt.zarr")  # doctest: +SKIP
    >>> trainer = Trainer(model, arguments, callbacks=[callback])  # doctest: +SKIP
    >>> with callback:  # doctest: +SKIP
    ...     trainer.train()
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        self._held = Held(path, options)

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Attach: the optimizer is there, and a checkpoint is restored."""
        assert model is not None
        self._held.begin(model, [_unwrapped(optimizer)], state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record the losses that the Trainer logs."""
        self._held.log(**{name: logs[name] for name in _LOGGED if logs and name in logs})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the trace."""
        self._held.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.end(error)


def attach(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: str | Path,
    **options: Any,
) -> Session | Bystander:
    """Record a loop with Accelerate; see `tracelab.attach`.

    Parameters
    ----------
    accelerator : Accelerator
        It prepared `model` and `optimizer`.
    model : nn.Module
        The prepared model.
    optimizer : torch.optim.Optimizer
        The prepared optimizer.
    path : str or path
        Where the trace goes.
    **options
        As for `tracelab.attach`.

    Returns
    -------
    Session
        A context manager.

    Raises
    ------
    UsageError
        If something cannot be recorded as asked.
    """
    return attach_to(accelerator.unwrap_model(model), _unwrapped(optimizer), path, **options)


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside an ``AcceleratedOptimizer``."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    found: torch.optim.Optimizer = optimizer
    return found
