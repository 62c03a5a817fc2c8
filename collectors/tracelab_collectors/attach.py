"""attach(): records a training run without a change to its loop, its weights or its generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from tracelab.errors import UsageError
from tracelab.trace import create
from tracelab.trace.writing.resuming import look
from tracelab_collectors.agenda import Member
from tracelab_collectors.beginning import START, begin, check_start, recorded_start, store_start
from tracelab_collectors.bystander import Bystander
from tracelab_collectors.collector import Collector, Loss, Run
from tracelab_collectors.handover import STEPS
from tracelab_collectors.presets import chosen
from tracelab_collectors.rehearsal import rehearse_loss
from tracelab_collectors.session import Session
from tracelab_collectors.subject import Subject
from tracelab_collectors.whole import begin_whole

__all__ = ["attach"]


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    path: str | Path,
    *,
    collectors: str | Sequence[Collector] | None = None,
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
    max_bytes: int | None = None,
    when_full: str = "block",
) -> Session | Bystander:
    """Record what an optimizer does to a model, until the session is closed.

    The clock is the optimizer's step. Gradients, weights and losses of step t are those at the
    weights before it. Weights, optimizer state, buffers and random generators of the training
    run are bitwise the same as without recording.

    Parameters
    ----------
    model : nn.Module
        The model; it may be compiled or wrapped for data parallelism.
    optimizer : torch.optim.Optimizer or sequence of them
        Trains the model's parameters. Layers of the trace are the parameters that it trains and
        that require a gradient now; the trace names the others. With several optimizers a step of
        the trace ends when each has stepped, or before one steps for the second time; a layer
        whose optimizer took no part in a step has no gradient there.
    path : str or path
        Where the trace goes.
    collectors : sequence of Collector or {"light", "standard", "full"}
        What is recorded, or one of `tracelab_collectors.presets.PRESETS`. Default: ``"standard"``,
        which is `Statistics` and projected and sampled `Gradients`, at every step.
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
        ``world_size`` and ``run`` of `tracelab.create`. Rank 0 makes the trace of the whole job
        where there is none, through which analyses read all ranks, and replaces none. Default,
        where ``torch.distributed`` runs several processes: those whose parameters are shards record
        one each, as the rank that they are; of others only rank 0 records, and the session of the
        rest does nothing.
    strict : bool
        Raise where a collector fails. Default: warn once, go on without it and mark the trace as
        incomplete.
    layers, exclude : str, optional
        Regular expressions that whole layer names must, or must not, match.
    max_bytes : int, optional
        Bytes of rows, before compression, after which recording stops and training goes on.
    when_full : {"block", "thin"}
        What a step does while storage does not keep up: wait, or leave rows out, which the trace
        then says.

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
    if when_full not in ("block", "thin"):
        raise UsageError(f"when_full must be 'block' or 'thin', got {when_full!r}")
    if max_bytes is not None and (not isinstance(max_bytes, int) or max_bytes < 1):
        raise UsageError(f"max_bytes must be a positive integer, got {max_bytes!r}")
    subject = Subject.of(model, optimizer, layers, exclude)
    together = False
    if rank is None and distributed.is_available() and distributed.is_initialized():
        if subject.layout.shards is not None:
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
            together = True
        elif distributed.get_rank():
            return Bystander()
    collectors = chosen(collectors, probes=loss is not None and data is not None)
    names = [STEPS, START, *(collector.name for collector in collectors)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two groups are called {name!r}; give one of them name=")
    found = look(path, resume, rank)
    if found is not None:
        found.check_layers(subject.shapes, subject.kinds)
        seed = int(found.snapshot.attrs.get("seed", 0)) if seed is None else seed
    seed = seed or 0
    first = subject.tensors[0]
    double = any(each.dtype == torch.float64 for each in subject.tensors)
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
        subject.optimizers,
    )
    bound = {
        collector.name: Member(collector.kind, collector.schedule, collector.bind(run))
        for collector in collectors
    }
    recordings = {name: member.recording for name, member in bound.items()}
    check_start(found, run.start, recordings)
    rehearse_loss(run, recordings)
    row_bytes = 0
    for name, member in bound.items():
        if found is not None:
            found.check_group(name, **member.definition())
        row_bytes += member.rehearse(run)
    if max_bytes is not None and row_bytes > max_bytes:
        raise UsageError(
            f"max_bytes={max_bytes} is less than one row of every group takes, {row_bytes} bytes; "
            "raise it or record less"
        )
    beginning = begin(found, resume, STEPS, recordings)
    said = {name: each for name, each in subject.attrs.items() if name != "shards"}
    whole = None
    if together:
        try:
            if rank == 0:
                whole = create(
                    path,
                    subject.shapes,
                    metadata,
                    overwrite=overwrite,
                    resume=resume is not False,
                    world_size=world_size,
                    attrs=said,
                    kinds=subject.kinds,
                )
        finally:
            # The ranks' traces are inside the one that rank 0 makes, or replaces.
            distributed.barrier()
    elif rank == 0:
        whole = begin_whole(
            path,
            subject,
            metadata,
            world_size=world_size,
            run=run_id,
            resume=resume is not False,
        )
    writer = None
    try:
        writer = create(
            path,
            subject.shapes,
            metadata,
            overwrite=overwrite,
            resume=resume,
            rank=rank,
            world_size=world_size,
            run=run_id,
            attrs={**subject.attrs, "seed": seed, "software": {"torch": torch.__version__}},
            kinds=subject.kinds,
            when_full=when_full,
        )
        for name, member in bound.items():
            writer.define(name, **member.definition())
        if run.start is None and any(each.from_start for each in recordings.values()):
            store_start(writer, run, beginning.step)
        return Session(
            run,
            subject,
            writer,
            bound,
            beginning,
            whole=whole,
            strict=strict,
            max_bytes=max_bytes,
            waits=when_full == "block",
        )
    except BaseException:
        for each in (writer, whole):
            if each is not None:
                each.mark_incomplete("recording could not start", lasting=False)
                each.close()
        raise
