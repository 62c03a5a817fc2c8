"""TracelabCallback for Lightning: records what ``Trainer.fit`` does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracelab.errors import MissingExtraError
from tracelab_collectors.integrations.held import Held

__all__ = ["TracelabCallback"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _base() -> Any:
    """Return the class of callbacks of the package that is in use, or else of one installed."""
    imported = [name for name in _PACKAGES if name in sys.modules]
    for name in [*imported, *_PACKAGES]:
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise MissingExtraError("lightning", "lightning", "recording a Lightning Trainer")


class TracelabCallback(_base()):  # type: ignore[misc]
    """Records every step of ``Trainer.fit``, with the loss.

    The recorded gradient is the one that the optimizer uses: of all accumulated batches, unscaled
    and clipped. ``loss`` is the mean of what the batches of a step returned.

    Parameters
    ----------
    path : str or path
        Where the trace goes.
    **options
        As for `tracelab.attach`. With ``resume=True`` the trace goes on at the step of the
        checkpoint that the trainer has restored.

    Raises
    ------
    MissingExtraError
        At import, if neither ``lightning`` nor ``pytorch_lightning`` is installed.

    Examples
    --------
    >>> from lightning import Trainer  # doctest: +SKIP
    >>> Trainer(callbacks=[TracelabCallback("runs/sgd.zarr")]).fit(model)  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__()
        self._held = Held(path, options)
        self._losses: list[Tensor] = []
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach: the optimizers are there, and a checkpoint is restored."""
        optimizers = [_unwrapped(each) for each in trainer.optimizers]
        self._held.begin(pl_module, optimizers, trainer.global_step)
        self._losses, self._steps = [], self._held.step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss, once the batches of a step are through."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Under automatic optimization Lightning divides it by the number of batches of a step.
            parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._losses.append(loss.detach().float() * parts)
        if self._held.step == self._steps:
            return
        self._steps = self._held.step
        if self._losses:
            self._held.log(loss=torch.stack(self._losses).mean())
        self._losses = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the trace."""
        self._held.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the trace as incomplete, with the exception as the reason."""
        self._held.end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close what neither of them closed."""
        self._held.end("training was torn down before it had ended")


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside a ``LightningOptimizer``."""
    inner = getattr(optimizer, "_optimizer", optimizer)
    return inner if isinstance(inner, torch.optim.Optimizer) else optimizer
