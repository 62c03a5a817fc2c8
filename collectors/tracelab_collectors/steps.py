"""Rows of the group ``steps``: what is known of every optimizer step, and the user's scalars."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tracelab.errors import UsageError
from tracelab.trace.schema import NAME

__all__ = ["StepRows", "scalar"]

RESERVED = frozenset(
    {"step", "applied", "learning_rate", "micro_batches", "plain_sgd", "skipped", "wall_time"}
)


class StepRows:
    """Rows not handed over yet; the last can still be added to.

    A scalar belongs to the step just taken, unless a backward pass has begun since or that step
    already has a scalar of its name: then it belongs to the coming step. So `log` can stand
    anywhere in the loop.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._coming: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, step: int, **values: Any) -> None:
        """Start the row of a step that is about to be taken; it counts as not applied yet."""
        self._rows.append({"step": step, **values, **self._coming, "applied": False})
        self._coming = {}

    def count(self, *, micro_batches: float, skipped: int) -> None:
        """Say of the step last begun of how many passes its gradient is, and what went before."""
        self._rows[-1] |= {"micro_batches": micro_batches, "skipped": skipped}

    def finish(self, *, applied: bool | Tensor) -> None:
        """Say of the step last begun whether it moved the weights."""
        on_host = isinstance(applied, bool) or applied.device.type == "cpu"
        self._rows[-1]["applied"] = bool(applied) if on_host else applied

    def log(self, scalars: dict[str, Any], *, backward_begun: bool) -> None:
        """Add scalars to the step they belong to.

        Raises
        ------
        UsageError
            If a name is one the session fills, or a value is no scalar.
        """
        taken = {name: _checked(name, value) for name, value in scalars.items()}
        last = self._rows[-1] if self._rows else None
        for name, value in taken.items():
            if last is None or backward_begun or name in last:
                self._coming[name] = value
            else:
                last[name] = value

    def take(self, *, last: bool) -> list[dict[str, Any]]:
        """Return the rows, without the last unless `last`."""
        keep = 0 if last else 1
        taken = self._rows[: len(self._rows) - keep]
        self._rows = self._rows[len(taken) :]
        return taken


def scalar(value: Any) -> float | Tensor:
    """Return a number, or a copy of a device's scalar, to be read when it is handed over."""
    if not isinstance(value, Tensor):
        return float(value)
    detached = value.detach().reshape(())
    # Reading a device's scalar now would wait for the device.
    return float(detached) if detached.device.type == "cpu" else detached.clone()


def _checked(name: str, value: Any) -> float | Tensor:
    if name in RESERVED:
        raise UsageError(f"{name!r} is filled by the session; log the scalar under another name")
    if not NAME.fullmatch(name):
        raise UsageError(f"a scalar cannot be called {name!r}; use letters, digits, '_', '.', '-'")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UsageError(
            f"{name!r} must be a scalar, got a tensor of shape {tuple(value.shape)}; "
            "reduce it first"
        )
    try:
        return scalar(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name!r} must be a number or a 0-d tensor, got {value!r}") from None
