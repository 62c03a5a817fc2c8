"""Hooks that hold no state: a model or an optimizer that carries them can be copied and pickled."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

__all__ = ["Hooks", "Listener"]


class Listener(Protocol):
    """What hooks call."""

    def before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Hear of a step about to be taken; may replace its arguments."""

    def after_step(self) -> None:
        """Hear of a step taken."""

    def accumulated(self, layer: int) -> None:
        """Hear of a gradient added to a layer's."""


_listeners: dict[int, Listener] = {}
_tokens = itertools.count()

if hasattr(os, "register_at_fork"):
    # A child process has no background thread: hooks that it inherited must stay silent.
    os.register_at_fork(after_in_child=_listeners.clear)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _before(
    token: int, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
) -> tuple[Any, Any] | None:
    listener = _listeners.get(token)
    return None if listener is None else listener.before_step(optimizer, args, kwargs)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _after(token: int) -> None:
    listener = _listeners.get(token)
    if listener is not None:
        listener.after_step()


@dataclass(frozen=True, slots=True)
class _BeforeStep:
    token: int

    def __call__(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        replaced: tuple[Any, Any] | None = _before(self.token, optimizer, args, kwargs)
        return replaced


@dataclass(frozen=True, slots=True)
class _AfterStep:
    token: int

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        _after(self.token)


@dataclass(frozen=True, slots=True)
class _Accumulated:
    token: int
    layer: int

    def __call__(self, parameter: Tensor) -> None:
        listener = _listeners.get(self.token)
        if listener is not None:
            listener.accumulated(self.layer)


class Hooks:
    """The hooks of one session, from registration to `remove`.

    Parameters
    ----------
    listener : Listener
        What they call.
    optimizer : torch.optim.Optimizer
        Whose steps.
    parameters : sequence of Tensor
        Whose gradients.
    """

    def __init__(
        self, listener: Listener, optimizer: torch.optim.Optimizer, parameters: list[Tensor]
    ) -> None:
        self._token = next(_tokens)
        _listeners[self._token] = listener
        self._before = optimizer.register_step_pre_hook(_BeforeStep(self._token))
        self._order: Any = optimizer._optimizer_step_pre_hooks
        self._handles: list[RemovableHandle] = [
            self._before,
            optimizer.register_step_post_hook(_AfterStep(self._token)),
            *(
                parameter.register_post_accumulate_grad_hook(_Accumulated(self._token, layer))
                for layer, parameter in enumerate(parameters)
            ),
        ]

    def move_last(self) -> None:
        """Let the hook before the step run behind those registered since.

        They may change the gradient, and what is recorded is the gradient that the optimizer uses.
        """
        if next(reversed(self._order)) != self._before.id:
            self._order.move_to_end(self._before.id)

    def remove(self) -> None:
        """Remove every hook."""
        _listeners.pop(self._token, None)
        for handle in self._handles:
            handle.remove()
