"""analyze(): chooses analyses, skips what is done, runs the rest, stores results."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tracelab import computing, engine, planning, registry, reuse
from tracelab.computing import Counts
from tracelab.contracts import NETWORK, Analysis
from tracelab.errors import DamagedError, NotRecordedError, TraceError, UsageError
from tracelab.trace import Trace
from tracelab.trace import open as open_trace
from tracelab.trace.places.locations import PathLike
from tracelab.trace.resultstore import shelves
from tracelab.trace.resultstore.resultform import DTYPES_OF_RESULTS
from tracelab.trace.resultstore.results import Results
from tracelab.trace.resultstore.shelves import Shelf
from tracelab.typing import Status

__all__ = ["Counts", "analyze", "applicable", "failed_cells"]

Announce = Callable[[str, str, Counts], None]
logger = logging.getLogger(__name__)


def applicable(trace: Trace) -> dict[str, str | None]:
    """Return, for each installed analysis, None if the trace holds what it needs, else why not."""
    return {
        name: None if problem is None else str(problem)
        for name, problem in _problems(trace).items()
    }


def _problems(trace: Trace) -> dict[str, UsageError | TraceError | None]:
    found: dict[str, UsageError | TraceError | None] = {}
    for name, analysis in registry.analyses().items():
        try:
            planning.plan(analysis, trace, analysis.resolve({}))
        except (UsageError, TraceError) as error:
            found[name] = error
        else:
            found[name] = None
    return found


def failed_cells(result: xr.Dataset) -> int:
    """Return how many cells of a result failed (an exception in the kernel, not poor data)."""
    return int((result["status"] == int(Status.FAILED)).sum())


def analyze(
    trace: Trace | str,
    names: Sequence[str] | str | None = None,
    *,
    steps: slice | None = None,
    layers: str | None = None,
    seed: int = 0,
    out: PathLike | None = None,
    force: bool = False,
    client: Any = None,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    announce: Announce | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    **shared: Any,
) -> dict[str, xr.Dataset]:
    """Run analyses on a trace and store their results beside it, or elsewhere.

    Cells that were computed before, by the same version of the analysis with the same parameters
    on the same rows, are taken from stored results and from jobs that were interrupted.

    Parameters
    ----------
    trace : Trace or str
        A trace or its location.
    names : sequence of str, optional
        Analyses. Default: every installed one for which the trace holds what it needs.
    steps : slice, optional
        Positions along the recorded steps (``slice(0, None, 2)``: every second one).
    layers : str, optional
        Regular expression a layer's whole name must match; ``network`` is the row of all layers.
    seed : int
        Seed; with it a result has the same bits on any number of workers.
    out : str, path or zarr Store, optional
        Where results are kept instead: a store for results alone, of any number of traces, made if
        there is none. Default: what the trace was opened with as `results`, else beside it.
    force : bool
        Compute even what is stored.
    client : distributed.Client, optional
        Run on this client's cluster.
    scheduler : str, optional
        Run on the cluster whose scheduler has this address.
    workers : int, optional
        Run on that many processes of this machine. Default: threads.
    memory : str or int, optional
        Bound on memory (``"4GiB"``).
    progress : callable, optional
        Called with (analysis, blocks done, blocks to compute).
    announce : callable, optional
        Called with (analysis, ``"stored"`` | ``"computed"``, counts) as each result is ready;
        counts says how many cells were reused, computed, and of these failed or unreadable.
        ``"damaged"`` says that there is no result, because no step or layer can be named.
    parameters : mapping, optional
        Parameters by analysis: ``{"tail_index": {"confidence": 0.9}}``.
    **shared
        Parameters given to every chosen analysis that has them.

    Returns
    -------
    dict of str to xarray.Dataset
        By analysis. Each carries ``status`` by cell, units, and its provenance in ``attrs``.

    Raises
    ------
    UsageError
        An unknown analysis, parameter, layer or value; results that must be computed and cannot be
        stored.
    NotRecordedError
        An analysis named here needs what the trace does not hold.
    DamagedError
        The labels of what every chosen analysis needs cannot be read.
    StorageError
        A result could not be stored; those before it are.
    KeyboardInterrupt
        After Ctrl-C. What is finished is kept: the same call goes on with it.
    """
    opened = open_trace(trace) if not isinstance(trace, Trace) else trace
    chosen = _choose(opened, names)
    given = _assign(chosen, parameters or {}, shared)
    matches = _matcher(opened, layers)
    execution = engine.Execution(client, scheduler, workers, memory)
    for analysis in chosen.values():
        _check_storable(analysis)
    # Every plan is made, and so every mistake reported, before the first hour of computing.
    plans: dict[str, planning.Plan] = {}
    damaged: dict[str, DamagedError] = {}
    for name, analysis in chosen.items():
        resolved = analysis.resolve(given[name])
        try:
            plans[name] = planning.plan(
                analysis, opened, resolved, steps=steps, layers=matches, seed=seed
            )
        except DamagedError as error:
            damaged[name] = error
    if not plans:
        raise next(iter(damaged.values()))
    for name, problem in damaged.items():
        logger.warning("%s is left out: %s", name, problem)
        if announce is not None:
            announce(name, "damaged", Counts(0, 0, 0, 0))
    places, shelf = _places(opened, out)
    results: dict[str, xr.Dataset] = {}
    for name, plan in plans.items():
        outcome = computing.compute(
            plan,
            opened,
            execution,
            None if progress is None else _named(progress, name),
            identity=reuse.identify(plan, opened),
            results=places,
            shelf=shelf,
            force=force,
        )
        results[name] = outcome.result
        if announce is not None:
            announce(name, outcome.state, outcome.counts)
    return results


def _places(trace: Trace, out: PathLike | None) -> tuple[Results, Shelf]:
    """Return where results are sought, and where they go."""
    places = trace.results.places
    if out is None:
        return Results(places), places[-1]
    shelf = shelves.elsewhere(out, trace.identity, create=True)
    return Results((*(place for place in places if place.name != shelf.name), shelf)), shelf


def _named(progress: Callable[[str, int, int], None], name: str) -> engine.Progress:
    return lambda done, total: progress(name, done, total)


def _choose(trace: Trace, names: Sequence[str] | str | None) -> dict[str, Analysis]:
    if names is None:
        problems = _problems(trace)
        # One whose input is damaged was wanted too: what is wrong with it is said.
        fitting = [
            name for name, problem in problems.items() if not isinstance(problem, UsageError)
        ]
        if not fitting:
            reasons = "; ".join(str(problem) for problem in problems.values())
            raise NotRecordedError(f"no analysis fits this trace: {reasons}")
        return {name: registry.analysis(name) for name in fitting}
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise UsageError("name at least one analysis, or leave the names out to run all that fit")
    return {name: registry.analysis(name) for name in dict.fromkeys(wanted)}


def _check_storable(analysis: Analysis) -> None:
    for variable in analysis.outputs:
        if np.dtype(variable.dtype).name not in DTYPES_OF_RESULTS:
            raise UsageError(
                f"analysis {analysis.name!r} declares {variable.name!r} as {variable.dtype!r}, "
                f"which cannot be stored; there are: {', '.join(sorted(DTYPES_OF_RESULTS))}"
            )


def _assign(
    chosen: Mapping[str, Analysis],
    by_analysis: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    for name in by_analysis:
        if name not in chosen:
            raise UsageError(
                f"parameters were given for the analysis {name!r}, which is not among those to "
                f"run: {', '.join(chosen)}"
            )
    names = {
        name: {parameter.name for parameter in analysis.parameters}
        for name, analysis in chosen.items()
    }
    for key in shared:
        if not any(key in known for known in names.values()):
            everything = sorted(set().union(*names.values()))
            close = difflib.get_close_matches(key, everything, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {everything}"
            raise UsageError(f"none of {', '.join(chosen)} has a parameter {key!r}; {hint}")
    return {
        name: {
            **{key: value for key, value in shared.items() if key in names[name]},
            **by_analysis.get(name, {}),
        }
        for name in chosen
    }


def _matcher(trace: Trace, layers: str | None) -> Callable[[str], bool] | None:
    if layers is None:
        return None
    try:
        pattern = re.compile(layers)
    except re.error as error:
        raise UsageError(f"layers must be a regular expression, got {layers!r}: {error}") from None
    names = [str(name) for name in trace.layers["layer"].values]
    if not any(pattern.fullmatch(name) for name in (*names, NETWORK)):
        raise UsageError(
            f"no layer matches {layers!r}; the trace has: {', '.join(names[:20])}"
            f"{', ...' if len(names) > 20 else ''} and {NETWORK}"
        )
    return lambda name: pattern.fullmatch(name) is not None
