"""analyze(): chooses analyses, skips what is done, runs the rest, stores results."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import xarray as xr

from tracelab import engine, planning, registry
from tracelab.contracts import NETWORK, Analysis
from tracelab.errors import NotRecordedError, UsageError
from tracelab.trace import Trace
from tracelab.trace import open as open_trace
from tracelab.trace.results import write_result
from tracelab.typing import Status

__all__ = ["analyze", "applicable", "failed_cells"]

Announce = Callable[[str, str], None]
logger = logging.getLogger(__name__)


def applicable(trace: Trace) -> dict[str, str | None]:
    """Return, for each installed analysis, None if the trace holds what it needs, else why not."""
    verdicts: dict[str, str | None] = {}
    for name, analysis in registry.analyses().items():
        try:
            planning.plan(analysis, trace, analysis.resolve({}))
        except UsageError as error:
            verdicts[name] = str(error)
        else:
            verdicts[name] = None
    return verdicts


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
    """Run analyses on a trace and store their results beside it.

    What was computed before, by the same version of the analysis with the same parameters on the
    same rows, is read from the store.

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
        Called with (analysis, blocks done, blocks in all).
    announce : callable, optional
        Called with (analysis, ``"stored"`` | ``"computed"``) as each result is ready.
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
        An unknown analysis, parameter, layer or value.
    NotRecordedError
        An analysis named here needs what the trace does not hold.
    """
    opened = open_trace(trace) if not isinstance(trace, Trace) else trace
    chosen = _choose(opened, names)
    given = _assign(chosen, parameters or {}, shared)
    matches = _matcher(opened, layers)
    execution = engine.Execution(client, scheduler, workers, memory)
    # Every plan is made, and so every mistake reported, before the first hour of computing.
    plans = {
        name: planning.plan(
            analysis,
            opened,
            analysis.resolve(given[name]),
            steps=steps,
            layers=matches,
            seed=seed,
        )
        for name, analysis in chosen.items()
    }
    results: dict[str, xr.Dataset] = {}
    for name, plan in plans.items():
        key = _key(plan, opened)
        stored = None if force else opened.results.get_key(name, key)
        if stored is not None:
            results[name] = stored
            if announce is not None:
                announce(name, "stored")
            continue
        tell = None
        if progress is not None:
            tell = _named(progress, name)
        results[name] = _compute(plan, opened, execution, tell, key)
        if announce is not None:
            announce(name, "computed")
    return results


def _named(progress: Callable[[str, int, int], None], name: str) -> engine.Progress:
    return lambda done, total: progress(name, done, total)


def _choose(trace: Trace, names: Sequence[str] | str | None) -> dict[str, Analysis]:
    if names is None:
        verdicts = applicable(trace)
        fitting = [name for name, reason in verdicts.items() if reason is None]
        if not fitting:
            reasons = "; ".join(str(reason) for reason in verdicts.values())
            raise NotRecordedError(f"no analysis fits this trace: {reasons}")
        return {name: registry.analysis(name) for name in fitting}
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise UsageError("name at least one analysis, or leave the names out to run all that fit")
    return {name: registry.analysis(name) for name in dict.fromkeys(wanted)}


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


def _key(plan: planning.Plan, trace: Trace) -> str:
    """Return the cache key: analysis version, parameters, cells, seed, and the input's digest."""
    analysis = plan.analysis
    identity = {
        "analysis": analysis.name,
        "version": analysis.version,
        "parameters": plan.parameters,
        "layers": plan.labels,
        "seed": plan.seed,
        "input": _input_digest(plan, trace),
    }
    return _digest(identity)


def _input_digest(plan: planning.Plan, trace: Trace) -> str:
    # Rows are only ever appended: run, steps and layout tell them apart without reading them.
    groups = {}
    for name in sorted(set(plan.groups.values())):
        group = trace.groups[name]
        groups[name] = {
            "attributes": {key: str(value) for key, value in sorted(group.attrs.items())},
            "arrays": {
                str(array): [list(group[array].dims), list(group[array].shape[1:])]
                for array in sorted(map(str, group.variables))
            },
        }
    return _digest(
        {"run": trace.run, "steps": plan.steps, "groups": groups, "sources": plan.sources}
    )


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _compute(
    plan: planning.Plan,
    trace: Trace,
    execution: engine.Execution,
    progress: engine.Progress | None,
    key: str,
) -> xr.Dataset:
    started = time.perf_counter()
    result, failures = engine.compute(plan, trace, execution, progress)
    analysis = plan.analysis
    result.attrs = {
        "analysis": analysis.name,
        "analysis_version": analysis.version,
        "summary": analysis.summary,
        "parameters": _plain(plan.parameters),
        "sources": dict(plan.sources),
        "run": trace.run,
        "input_digest": _input_digest(plan, trace),
        "seed": plan.seed,
        "references": [reference.citation for reference in analysis.references],
        "software": _software(),
        "created": datetime.now(UTC).isoformat(),
        "seconds": round(time.perf_counter() - started, 3),
        "failures": list(failures[:100]),
        "n_failures": len(failures),
    }
    found = analysis.finding(result)
    result.attrs["finding"] = found.sentence
    result.attrs["warnings"] = list(found.warnings)
    if failures:
        logger.warning(
            "%s: %d cells failed, the first: %s", analysis.name, len(failures), failures[0]
        )
    write_result(trace.store, analysis.name, key, result)
    return result


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in parameters.items()
    }


def _software() -> dict[str, str]:
    packages: Iterable[str] = ("tracelab", "numpy", "scipy", "numba", "statsmodels", "dask")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
