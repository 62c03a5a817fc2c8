"""A session of a process whose gradients another process records."""

from __future__ import annotations

from typing import Self

from torch import Tensor

__all__ = ["Bystander"]


class Bystander:
    """Does nothing, with the methods of a `Session`: rank 0 records what all ranks have alike."""

    step = 0

    def log(self, **scalars: float | Tensor) -> None:
        """Do nothing."""

    def pause(self) -> Self:
        """Do nothing."""
        return self

    def over(self) -> None:
        """Do nothing."""

    def detach(self) -> None:
        """Do nothing."""

    close = detach

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def __repr__(self) -> str:
        return "<tracelab.Bystander: rank 0 records this run>"
