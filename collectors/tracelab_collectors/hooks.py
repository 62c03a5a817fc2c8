"""Hooks that hold no state: a model or an optimizer that carries them can be copied and pickled."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

__all__ = ["Hooks", "Listener", "behind_backward", "steps_within_itself"]


class Listener(Protocol):
    """What hooks call."""

    def before_step(
        self, which: int, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Hear of a step that an optimizer is about to take; may replace its arguments."""

    def after_step(self, which: int) -> None:
        """Hear of a step taken."""

    def arriving(self, layer: int, gradient: Tensor | None) -> None:
        """Hear of a gradient before it is added to a layer's."""

    def accumulated(self, layer: int) -> None:
        """Hear of a gradient added to a layer's."""

    def passed(self) -> None:
        """Hear of the end of a backward pass that it asked for with `behind_backward`."""


_listeners: dict[int, Listener] = {}
_tokens = itertools.count()
_OPTIMIZER = torch.optim.Optimizer.profile_hook_step.__code__.co_filename

if hasattr(os, "register_at_fork"):
    # A child process has no background thread: hooks that it inherited must stay silent.
    os.register_at_fork(after_in_child=_listeners.clear)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _before(
    token: int, which: int, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
) -> tuple[Any, Any] | None:
    listener = _listeners.get(token)
    return None if listener is None else listener.before_step(which, optimizer, args, kwargs)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _after(token: int, which: int) -> None:
    listener = _listeners.get(token)
    if listener is not None:
        listener.after_step(which)


@dataclass(frozen=True, slots=True)
class _BeforeStep:
    token: int
    which: int

    def __call__(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        replaced: tuple[Any, Any] | None = _before(self.token, self.which, optimizer, args, kwargs)
        return replaced


@dataclass(frozen=True, slots=True)
class _AfterStep:
    token: int
    which: int

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        _after(self.token, self.which)


@dataclass(frozen=True, slots=True)
class _Arriving:
    token: int
    layer: int

    def __call__(self, gradient: Tensor | None) -> None:
        listener = _listeners.get(self.token)
        if listener is not None:
            listener.arriving(self.layer, gradient)


@dataclass(frozen=True, slots=True)
class _Accumulated:
    token: int
    layer: int

    def __call__(self, parameter: Tensor) -> None:
        listener = _listeners.get(self.token)
        if listener is not None:
            listener.accumulated(self.layer)


def behind_backward(call: Any) -> None:
    """Call at the very end of the backward pass that is under way.

    Data parallelism and sharding finish gradients in callbacks of their own at that end; one that
    is queued by a callback runs behind these.
    """
    engine = Variable._execution_engine
    engine.queue_callback(lambda: engine.queue_callback(call))


def steps_within_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the step that a hook tells of was called by another one of the same optimizer.

    A class whose ``step`` calls that of its parent runs the hooks twice, if torch has put hooks
    around both, which it does when a class is first used. After a step that raised, hooks run again
    just the same: only the stack tells these apart.
    """
    frame, found = inspect.currentframe(), 0
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _OPTIMIZER and frame.f_locals.get("self") is optimizer:
            found += code.co_name == "wrapper"
        frame = frame.f_back
    return found > 1


class Hooks:
    """The hooks of one session, from registration to `remove`.

    A hook on every layer would cost a microsecond a layer and backward pass. One layer tells of a
    pass, as long as every pass reaches it; `watch` says which.

    Parameters
    ----------
    listener : Listener
        What they call.
    optimizers : sequence of torch.optim.Optimizer
        Whose steps.
    parameters : sequence of Tensor
        Whose gradients.
    arriving : bool
        Whether the listener hears of the arriving gradients of every layer.
    """

    def __init__(
        self,
        listener: Listener,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Sequence[Tensor],
        *,
        arriving: bool,
    ) -> None:
        self._token = next(_tokens)
        self._arriving = arriving
        self._parameters = list(parameters)
        self._watched: frozenset[int] = frozenset()
        self._layers: dict[int, list[RemovableHandle]] = {}
        _listeners[self._token] = listener
        self._orders: list[tuple[Any, int]] = []
        self._handles: list[RemovableHandle] = []
        for which, optimizer in enumerate(optimizers):
            before = optimizer.register_step_pre_hook(_BeforeStep(self._token, which))
            self._orders.append((optimizer._optimizer_step_pre_hooks, before.id))
            after = optimizer.register_step_post_hook(_AfterStep(self._token, which))
            self._handles += [before, after]
        self.watch(range(len(self._parameters)))

    def watch(self, layers: Sequence[int]) -> None:
        """Hear of passes from these layers alone."""
        self._watched = frozenset(layers)
        for layer, parameter in enumerate(self._parameters):
            for handle in self._layers.pop(layer, ()):
                handle.remove()
            found = []
            if not parameter.requires_grad:
                continue
            if self._arriving or layer in self._watched:
                found.append(parameter.register_hook(_Arriving(self._token, layer)))
            if layer in self._watched:
                hook = _Accumulated(self._token, layer)
                found.append(parameter.register_post_accumulate_grad_hook(hook))
            if found:
                self._layers[layer] = found

    def move_to(self, parameters: Sequence[Tensor]) -> None:
        """Hear of other parameters, which took the place of those before."""
        for handles in self._layers.values():
            for handle in handles:
                handle.remove()
        self._layers = {}
        self._parameters = list(parameters)
        self.watch(sorted(self._watched))

    def move_last(self) -> None:
        """Let the hooks before steps run behind those registered since.

        They may change the gradient, and what is recorded is the gradient that the optimizer uses.
        """
        for order, own in self._orders:
            if next(reversed(order)) != own:
                order.move_to_end(own)

    def remove(self) -> None:
        """Remove every hook."""
        _listeners.pop(self._token, None)
        for handles in (self._handles, *self._layers.values()):
            for handle in handles:
                handle.remove()
