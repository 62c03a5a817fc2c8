"""A recording in progress: what its hooks do at every step, and what happens when one fails."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from tracelab.errors import IncompleteTraceWarning, TraceError
from tracelab.trace import Writer
from tracelab_collectors import exits
from tracelab_collectors.agenda import Agenda, Member
from tracelab_collectors.beginning import Beginning
from tracelab_collectors.collector import Run
from tracelab_collectors.handover import STEPS, BudgetSpentError, Handover
from tracelab_collectors.hooks import Hooks, behind_backward, steps_within_itself
from tracelab_collectors.passes import Passes
from tracelab_collectors.plainness import plain_sgd
from tracelab_collectors.scaling import calling_scale
from tracelab_collectors.steps import StepRows, scalar
from tracelab_collectors.subject import Subject

__all__ = ["Pause", "Session"]

# Nothing recorded waits longer than this for its hand-over while training goes on.
SECONDS = 2.0
ROWS = 256


class Pause:
    """A session that records nothing until the ``with`` block ends, or until `over`."""

    def __init__(self, over: Callable[[], None]) -> None:
        self.over = over

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.over()


class Session:
    """A recording in progress; made by `attach`.

    Use it as a context manager, or call `detach` at the end. An exception inside the ``with``
    block leaves the trace incomplete with the exception as the reason, and keeps what was
    recorded.

    Attributes
    ----------
    writer : tracelab.Writer
        What the session records into.
    """

    def __init__(
        self,
        run: Run,
        subject: Subject,
        writer: Writer,
        members: Mapping[str, Member],
        beginning: Beginning,
        *,
        whole: Writer | None = None,
        strict: bool,
        max_bytes: int | None,
        waits: bool,
    ) -> None:
        self.writer = writer
        self._whole = whole
        self._strict = strict
        self._subject = subject
        self._groups = [STEPS, *members]
        self._handover = Handover(writer, run.device, beginning.recorded, max_bytes, waits=waits)
        self._agenda = Agenda(run, members, self._handover, beginning.step, waits=waits)
        self._rows = StepRows()
        self._first = self._taken = beginning.step
        self._passes = Passes(subject.owners, len(run.optimizers))
        self._found_inf: list[Tensor] = []
        # Of the step that has begun and that not every optimizer has taken yet.
        self._begun = False
        # Whether it began while the session was paused, and has no row.
        self._silent = False
        self._due = False
        self._entered: set[int] = set()
        self._stepped: set[int] = set()
        # Steps of a class below that are under way within a step of each optimizer.
        self._inner = [0] * len(self._subject.optimizers)
        # Their gradient is recorded; a closure may compute others, at other weights.
        self._recorded: set[int] = set()
        self._counted: tuple[int, int] | None = None
        self._made_of = 0
        # While a probe runs the model, hooks are silent; after a failure of all, they stay so.
        self._suspended = False
        self._stopped = False
        self._pauses = 0
        self._asked = False
        self._open = True
        self._pid = os.getpid()
        self._error: Exception | None = None
        self._handed_over = time.perf_counter()
        self._started = self._handed_over - beginning.wall_time
        self._hooks = Hooks(
            self, run.optimizers, list(run.parameters.values()), arriving=self._agenda.hears
        )
        listening = [member.recording.listen for member in members.values()]
        self._ends = [listen() for listen in listening if listen is not None]
        exits.register(self)

    @property
    def step(self) -> int:
        """Number of optimizer steps begun, with those before the session of a run that goes on."""
        return self._taken

    def log(self, **scalars: float | Tensor) -> None:
        """Record scalars of a step, such as ``loss`` and ``batch_size``.

        They belong to the step just taken, unless a backward pass has begun since or that step
        already has a scalar of the name: then to the coming one. So the call can stand anywhere
        in the loop; of several in one step the last counts.

        Parameters
        ----------
        **scalars : float or 0-d Tensor
            A tensor on a device is read later, without waiting for the device.

        Raises
        ------
        UsageError
            If a value is no scalar or a name cannot be used.
        """
        if self._open and not self._pauses:
            self._rows.log(scalars, backward_begun=self._passes.begun)

    def pause(self) -> Pause:
        """Record nothing of the steps until the ``with`` block ends, or until ``over()``.

        Steps taken meanwhile count: their numbers are missing in the trace.

        Returns
        -------
        Pause
            A context manager.
        """
        self._pauses += 1
        ended = False

        def over() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._pauses -= 1

        return Pause(over)

    def detach(self) -> None:
        """Record the final weights, leave model and optimizer as they were, close the trace.

        Doing so again does nothing.

        Raises
        ------
        TracelabError
            With ``strict=True``, the first failure that was not raised before.
        """
        if not self._open:
            return
        self._open = False
        if self._pid != os.getpid():
            # A forked child: background thread, hooks and locks are its parent's.
            return
        self._hooks.remove()
        for end in self._ends:
            end()
        try:
            if self._begun:
                self._end_step()
            self._hand_over(last=True)
            self._agenda.conclude(self._taken)
        except Exception as error:
            self._handover.fail(STEPS, error)
        finally:
            self._handover.close()
            self._settle(raising=False)
            exits.forget(self)
            self._close_writer()
        if self._strict and self._error is not None:
            raise self._error

    close = detach

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.detach()
            return
        self.writer.mark_incomplete(
            kind.__name__ if error is None else exits.reason(error), lasting=False
        )
        try:
            self.detach()
        except Exception as second:
            # The first exception is the news; this one goes along.
            if error is not None and error is not second:
                error.add_note(str(second))

    def __repr__(self) -> str:
        state = "recording" if self._open else "closed"
        groups = ", ".join(self._groups)
        return f"<tracelab.Session {self.writer.location} ({state}, step {self._taken}): {groups}>"

    # What hooks call, in the training thread.

    def before_step(
        self, which: int, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Record what is due at a step, before an optimizer takes it."""
        if self._suspended:
            return None
        replaced = None
        try:
            under_way = which in self._entered and which not in self._stepped
            if under_way and steps_within_itself(optimizer):
                self._go_further(which, optimizer, args, kwargs)
            else:
                replaced = self._begin(which, optimizer, args, kwargs)
        except Exception as error:
            self._handover.fail(STEPS, error)
        if self._handover.failures:
            self._settle(raising=True)
        return replaced

    def after_step(self, which: int) -> None:
        """Complete what is recorded of a step, after an optimizer took it."""
        if self._suspended or not self._begun:
            return
        if self._inner[which]:
            self._inner[which] -= 1
            return
        try:
            self._finish(which)
        except Exception as error:
            self._handover.fail(STEPS, error)
            self._settle(raising=True)

    def arriving(self, layer: int, gradient: Tensor | None) -> None:
        """Hear of a gradient before it is added to a layer's."""
        if self._suspended:
            return
        # An error in a hook would end the backward pass.
        try:
            first = self._subject.tensors[layer].grad is None
            self._passes.arriving(layer, first=first)
            heard = gradient is not None and self._agenda.hears and not self._pauses
            if heard and self._subject.owners[layer] not in self._recorded:
                assert gradient is not None
                step, index = self._coming(), self._passes.before(layer)
                self._agenda.arriving(step, layer, index, gradient)
        except Exception as error:
            self._handover.fail(STEPS, error)

    def accumulated(self, layer: int) -> None:
        """Count the backward passes that reach a layer."""
        if self._suspended:
            return
        try:
            ends = self._passes.needs_ends or self._agenda.listens
            self._passes.accumulated(layer, ends=ends)
            self._hooks.move_last()
            if ends and not self._asked:
                self._asked = True
                behind_backward(self.passed)
        except Exception as error:
            self._handover.fail(STEPS, error)

    def passed(self) -> None:
        """Copy what is known only at the end of a backward pass."""
        self._asked = False
        self._passes.ended()
        if self._open and not self._suspended and not self._pauses:
            try:
                self._agenda.passed(self._coming(), self._stepped | self._recorded)
            except Exception as error:
                self._handover.fail(STEPS, error)

    def _coming(self) -> int:
        """Return the step whose gradient backward passes compute now."""
        return self._taken - 1 if self._begun else self._taken

    def _begin(
        self, which: int, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        if which in self._entered:
            # Not every optimizer takes every step, and one that raised has not taken it.
            self._end_step()
        if not self._begun:
            self._begin_step(optimizer)
        self._entered.add(which)
        self._inner[which] = 0
        if self._silent:
            return None
        # A fused optimizer under a GradScaler unscales by itself, and skips overflows by itself.
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None:
            self._found_inf.append(found_inf)
        closure = _closure(args, kwargs)
        if closure is None:
            self._record(which, optimizer, scale)
            return None
        return self._with_closure(which, optimizer, closure, args, kwargs)

    def _go_further(
        self, which: int, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        """Record the gradient anew: a step of the user's own calls that of the class below."""
        self._inner[which] += 1
        if not self._silent and _closure(args, kwargs) is None:
            self._record(which, optimizer, getattr(optimizer, "grad_scale", None))

    def _begin_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin a step, with the first optimizer that takes it."""
        step = self._taken
        self._taken += 1
        self._begun = True
        self._silent = self._pauses > 0
        if self._silent:
            return
        rate = scalar(optimizer.param_groups[0]["lr"])
        now = time.perf_counter()
        plain = plain_sgd(self._subject.optimizers)
        self._rows.begin(step, learning_rate=rate, plain_sgd=plain, wall_time=now - self._started)
        self._due = step >= self._agenda.next
        if self._due:
            if self._subject.changed():
                self._follow(step)
            self._suspended = True
            try:
                self._agenda.begin(step)
            finally:
                self._suspended = False

    def _record(self, which: int, optimizer: torch.optim.Optimizer, scale: Tensor | None) -> None:
        """Record the gradient with which an optimizer is about to step."""
        self._counted = self._passes.count(which), self._passes.skipped(which)
        self._recorded.add(which)
        if self._due:
            passes_scale = scale
            if scale is None and self._agenda.listens:
                passes_scale = calling_scale(optimizer)
            self._agenda.gradients(self._taken - 1, which, scale, passes_scale)

    def _with_closure(
        self,
        which: int,
        optimizer: torch.optim.Optimizer,
        closure: Callable[[], Any],
        args: Any,
        kwargs: Any,
    ) -> tuple[Any, Any]:
        """Return the step's arguments with a closure behind whose first call is recorded."""
        recorded = False

        def recording() -> Any:
            nonlocal recorded
            result = closure()
            if not recorded:
                recorded = True
                try:
                    self._record(which, optimizer, None)
                except Exception as error:
                    self._handover.fail(STEPS, error)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": recording}
        return (args[0], recording, *args[2:]), kwargs

    def _finish(self, which: int) -> None:
        passes, skipped = self._counted or (self._passes.count(which), 0)
        self._counted = None
        if not self._stepped and not self._silent:
            self._made_of = passes
            # Attached between backward passes and their step, it has not heard them.
            unheard = not passes and self._taken - 1 == self._first
            self._rows.count(micro_batches=math.nan if unheard else passes, skipped=skipped)
        self._stepped.add(which)
        if self._passes.stepped(which):
            self._hooks.watch(self._passes.watched)
        if self._due:
            self._agenda.complete(self._taken - 1, which)
        if len(self._stepped) == len(self._subject.optimizers):
            self._end_step()

    def _end_step(self) -> None:
        """Complete the row of a step that all optimizers have taken, or that a next one follows."""
        applied: bool | Tensor = bool(self._stepped)
        for found_inf in self._found_inf:
            applied = (found_inf.detach() == 0) & applied
        if not self._silent:
            self._rows.finish(applied=applied)
        if self._due:
            self._agenda.close(self._taken - 1, self._made_of, self._stepped)
        self._begun = self._due = False
        self._entered, self._stepped, self._recorded = set(), set(), set()
        self._found_inf = []
        # Not later: what the next backward passes leave is in the memory of the next row.
        now = time.perf_counter()
        if len(self._rows) >= ROWS or now - self._handed_over > SECONDS:
            self._hand_over(last=False)
            self._handed_over = now

    def _follow(self, step: int) -> None:
        """Record the parameters that took the place of others, and say what cannot be."""
        told = self._subject.follow()
        self._agenda.refresh()
        self._hooks.move_to(self._subject.tensors)
        for reason in told:
            self.writer.mark_incomplete(f"from step {step} on: {reason}")
            warnings.warn(
                f"{reason}; the trace {self.writer.location} is incomplete from step {step} on",
                IncompleteTraceWarning,
                stacklevel=2,
            )

    def _hand_over(self, *, last: bool) -> None:
        self._agenda.hand_over()
        self._handover.rows(self._rows.take(last=last))

    # Failures: noted where they happen, told in the training thread.

    def _settle(self, *, raising: bool) -> None:
        """Warn of failures noted since, or raise the first if the session is strict."""
        failures, failed = self._handover.failures, self._handover.failed
        if self._stopped:
            # The background was in the middle of something; there is nothing more to tell.
            failures.clear()
        while failures:
            name, error = failures.popleft()
            spent = isinstance(error, BudgetSpentError)
            stopped = spent or name == STEPS or isinstance(error, TraceError)
            what = "recording" if stopped else f"collector {name!r}"
            cause = str(error) if spent else f"{type(error).__name__}: {error}"
            reason = f"{what} stopped at step {self._taken}: {cause}"
            self.writer.mark_incomplete(reason)
            if stopped:
                failed.update(self._groups)
                failures.clear()
                self._stopped = True
                self._agenda.stop()
                self._suspended = True
            if self._strict and not spent:
                self._error = self._error or error
                if raising:
                    self._error = None
                    raise error
            else:
                warnings.warn(
                    f"{reason}; training goes on, the trace {self.writer.location} is incomplete",
                    IncompleteTraceWarning,
                    stacklevel=3,
                )

    def _close_writer(self) -> None:
        try:
            try:
                self.writer.close()
            finally:
                if self._whole is not None:
                    self._whole.close()
        except TraceError as error:
            if self._strict:
                self._error = self._error or error
            elif STEPS not in self._handover.failed:
                warnings.warn(str(error), IncompleteTraceWarning, stacklevel=4)


def _closure(args: Any, kwargs: Any) -> Callable[[], Any] | None:
    found: Callable[[], Any] | None = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return found
