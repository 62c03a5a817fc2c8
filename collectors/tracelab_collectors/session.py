"""attach(): records a training run without a change to its loop, its weights or its generators."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from tracelab.errors import IncompleteTraceWarning, TraceError, UsageError
from tracelab.sketch import Project, Sample
from tracelab.trace import Writer, create
from tracelab.trace.writing.resuming import look
from tracelab_collectors import exits
from tracelab_collectors.agenda import Agenda, Member
from tracelab_collectors.beginning import (
    START,
    Beginning,
    begin,
    check_start,
    recorded_start,
    store_start,
)
from tracelab_collectors.collector import Collector, Loss, Run
from tracelab_collectors.gradients import Gradients
from tracelab_collectors.handover import STEPS, Handover
from tracelab_collectors.hooks import Hooks
from tracelab_collectors.statistics import Statistics
from tracelab_collectors.steps import StepRows, scalar
from tracelab_collectors.subject import Subject

__all__ = ["Session", "attach"]

# Nothing recorded waits longer than this for its hand-over while training goes on.
SECONDS = 2.0
ROWS = 256


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: str | Path,
    *,
    collectors: Sequence[Collector] | None = None,
    loss: Loss | None = None,
    data: Any = None,
    data_size: int | None = None,
    seed: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool | int = False,
    rank: int | None = None,
    world_size: int | None = None,
    run_id: str | None = None,
    strict: bool = False,
    layers: str | None = None,
    exclude: str | None = None,
) -> Session:
    """Record what an optimizer does to a model, until the session is closed.

    The clock is this optimizer's step. Gradients, weights and losses of step t are those at the
    weights before it. Weights, optimizer state, buffers and random generators of the training
    run are bitwise the same as without recording.

    Parameters
    ----------
    model : nn.Module
        The model; it may be compiled or wrapped for data parallelism.
    optimizer : torch.optim.Optimizer
        Trains at least one of the model's parameters. Layers of the trace are the parameters that
        it trains and that require a gradient now; the trace names the others.
    path : str or path
        Where the trace goes.
    collectors : sequence of Collector, optional
        Default: `Statistics` and projected and sampled `Gradients`, at every step.
    loss : callable, optional
        ``loss(model, batch)`` returns the scalar mean loss of a batch; for probes.
    data : Dataset or callable, optional
        A map-style dataset, collated as by a ``DataLoader`` and moved to the model's device, or a
        callable that takes a tensor of indices and returns a batch; for probes.
    data_size : int, optional
        Number of examples, where `data` has no length.
    seed : int, optional
        Seed of what probes draw. Default: 0, or that of the trace that goes on.
    metadata : mapping, optional
        Anything of the user's that JSON can hold.
    overwrite : bool
        Replace the trace at `path`, if there is one.
    resume : bool or int
        Go on with the trace at `path`, if there is one. With a step, the first step of this session
        is that one: restore the checkpoint that was saved after so many optimizer steps, and give
        their number. What was recorded of later steps is moved to a trace of its own. With True,
        the session goes on after the last step that was recorded: for a run that ended, and whose
        last weights are those of now.
    rank, world_size, run_id : optional
        Record one process of a job into a trace of its own inside the one at `path`; see ``rank``,
        ``world_size`` and ``run`` of `tracelab.create`.
    strict : bool
        Raise where a collector fails. Default: warn once, go on without it and mark the trace as
        incomplete.
    layers, exclude : str, optional
        Regular expressions that whole layer names must, or must not, match.

    Returns
    -------
    Session
        A context manager.

    Raises
    ------
    UsageError
        If something cannot be recorded as asked; always before training starts.

    Examples
    --------
    >>> with attach(model, optimizer, "runs/sgd.zarr") as session:  # doctest: +SKIP
    ...     for x, y in loader:
    ...         ...
    ...         session.log(loss=loss)
    """
    if collectors is None:
        collectors = (Statistics(), Gradients(sketch=(Project(256), Sample(64))))
    for collector in collectors:
        if not isinstance(collector, Collector):
            raise UsageError(
                f"collectors must hold collectors such as Gradients(), got {collector!r}"
            )
    names = [STEPS, START, *(collector.name for collector in collectors)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two groups are called {name!r}; give one of them name=")
    subject = Subject.of(model, optimizer, layers, exclude)
    shapes = dict(zip(subject.layout.names, subject.layout.shapes, strict=True))
    found = look(path, resume, rank)
    if found is not None:
        found.check_layers(shapes, subject.kinds)
        seed = int(found.snapshot.attrs.get("seed", 0)) if seed is None else seed
    seed = seed or 0
    first = next(iter(subject.parameters.values()))
    double = any(each.dtype == torch.float64 for each in subject.parameters.values())
    run = Run(
        subject.layout,
        subject.parameters,
        subject.model,
        torch.float64 if double else torch.float32,
        first.device,
        seed,
        loss,
        data,
        data_size,
        recorded_start(found),
    )
    bound = {
        collector.name: Member(collector.kind, collector.schedule, collector.bind(run))
        for collector in collectors
    }
    recordings = {name: member.recording for name, member in bound.items()}
    check_start(found, run.start, recordings)
    for name, member in bound.items():
        if found is not None:
            found.check_group(name, **member.definition())
        member.rehearse(run)
    beginning = begin(found, resume, STEPS, recordings)
    writer = create(
        path,
        shapes,
        metadata,
        overwrite=overwrite,
        resume=resume,
        rank=rank,
        world_size=world_size,
        run=run_id,
        attrs={**subject.attrs, "seed": seed, "software": {"torch": torch.__version__}},
        kinds=subject.kinds,
    )
    try:
        for name, member in bound.items():
            writer.define(name, **member.definition())
        if run.start is None and any(each.from_start for each in recordings.values()):
            store_start(writer, run, beginning.step)
        return Session(run, optimizer, writer, bound, beginning, strict=strict)
    except BaseException:
        writer.mark_incomplete("recording could not start", lasting=False)
        writer.close()
        raise


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
        optimizer: torch.optim.Optimizer,
        writer: Writer,
        members: Mapping[str, Member],
        beginning: Beginning,
        *,
        strict: bool,
    ) -> None:
        self.writer = writer
        self._strict = strict
        self._groups = [STEPS, *members]
        self._handover = Handover(writer, run.device, beginning.recorded)
        self._agenda = Agenda(run, members, self._handover, beginning.step)
        self._rows = StepRows()
        self._taken = beginning.step
        self._fires = [0] * len(run.parameters)
        self._found_inf: Tensor | None = None
        self._stepping = False
        # While a probe runs the model, hooks are silent; after a failure of all, they stay so.
        self._suspended = False
        self._open = True
        self._error: Exception | None = None
        self._handed_over = time.perf_counter()
        self._started = self._handed_over - beginning.wall_time
        self._hooks = Hooks(self, optimizer, list(run.parameters.values()))
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
        if self._open:
            self._rows.log(scalars, backward_begun=any(self._fires))

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
        self._hooks.remove()
        try:
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
        reason = f"{kind.__name__}: {error}" if str(error) else kind.__name__
        self.writer.mark_incomplete(reason, lasting=False)
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
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Record what is due at a step, before the optimizer takes it."""
        if self._suspended:
            return None
        replaced = None
        try:
            replaced = self._begin(optimizer, args, kwargs)
        except Exception as error:
            self._handover.fail(STEPS, error)
        if self._handover.failures:
            self._settle(raising=True)
        return replaced

    def after_step(self) -> None:
        """Complete a step's row, after the optimizer took it."""
        if self._suspended or not self._stepping:
            return
        self._stepping = False
        try:
            self._finish()
        except Exception as error:
            self._handover.fail(STEPS, error)
            self._settle(raising=True)

    def accumulated(self, layer: int) -> None:
        """Count the backward passes that reach a layer."""
        if not self._suspended:
            self._fires[layer] += 1
            if layer == 0:
                self._hooks.move_last()

    def _begin(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        step = self._taken
        self._taken += 1
        self._stepping = True
        now = time.perf_counter()
        if len(self._rows) >= ROWS or now - self._handed_over > SECONDS:
            self._hand_over(last=False)
            self._handed_over = now
        rate = scalar(optimizer.param_groups[0]["lr"])
        self._rows.begin(step, learning_rate=rate, wall_time=now - self._started)
        # A fused optimizer under a GradScaler unscales by itself, and skips overflows by itself.
        scale = getattr(optimizer, "grad_scale", None)
        self._found_inf = getattr(optimizer, "found_inf", None)
        if step < self._agenda.next:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._record(step, scale)
            return None
        return self._with_closure(step, closure, args, kwargs)

    def _record(self, step: int, scale: Tensor | None) -> None:
        self._suspended = True
        try:
            self._agenda.record(step, scale)
        finally:
            self._suspended = False

    def _with_closure(
        self, step: int, closure: Callable[[], Any], args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        """Return the step's arguments with a closure behind whose first call is recorded."""
        recorded = False

        def recording() -> Any:
            nonlocal recorded
            result = closure()
            if not recorded:
                recorded = True
                try:
                    self._record(step, None)
                except Exception as error:
                    self._handover.fail(STEPS, error)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": recording}
        return (args[0], recording, *args[2:]), kwargs

    def _finish(self) -> None:
        applied = True if self._found_inf is None else self._found_inf.detach() == 0
        self._rows.finish(applied=applied, micro_batches=max(self._fires))
        self._fires = [0] * len(self._fires)
        self._hooks.move_last()
        self._agenda.complete(self._taken - 1)

    def _hand_over(self, *, last: bool) -> None:
        self._agenda.hand_over()
        self._handover.rows(self._rows.take(last=last))

    # Failures: noted where they happen, told in the training thread.

    def _settle(self, *, raising: bool) -> None:
        """Warn of failures noted since, or raise the first if the session is strict."""
        failures, failed = self._handover.failures, self._handover.failed
        while failures:
            name, error = failures.popleft()
            stopped = name == STEPS or isinstance(error, TraceError)
            what = "recording" if stopped else f"collector {name!r}"
            reason = f"{what} stopped at step {self._taken}: {type(error).__name__}: {error}"
            self.writer.mark_incomplete(reason)
            if stopped:
                failed.update(self._groups)
                failures.clear()
                self._agenda.stop()
                self._suspended = True
            if self._strict:
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
            self.writer.close()
        except TraceError as error:
            if self._strict:
                self._error = self._error or error
            elif STEPS not in self._handover.failed:
                warnings.warn(str(error), IncompleteTraceWarning, stacklevel=4)
