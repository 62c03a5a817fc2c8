"""``tracelab analyze``: run analyses on traces; what is stored is not computed again."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from tracelab.cli.console import Console, emit_json, paragraph
from tracelab.cli.exits import ExitCode, code_of, sentence
from tracelab.errors import UsageError

if TYPE_CHECKING:
    import xarray as xr

    from tracelab.jobs import Counts

__all__ = ["analyze"]

logger = logging.getLogger(__name__)


@click.command()
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...")
@click.option(
    "-a",
    "--analysis",
    "names",
    multiple=True,
    metavar="NAME",
    help="An analysis; repeatable. Default: all for which the trace holds what they need.",
)
@click.option(
    "-p",
    "--parameter",
    "assignments",
    multiple=True,
    metavar="[NAME.]KEY=VALUE",
    help="A parameter of analysis NAME, or of every chosen one that has it; repeatable.",
)
@click.option("--steps", metavar="A:B:C", help="Positions along the recorded steps, as a slice.")
@click.option(
    "--layers",
    metavar="REGEX",
    help="Layers whose whole name matches; 'network' is all of them together.",
)
@click.option("--mode", metavar="MODE", help="Short for -p mode=MODE.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: threads.")
@click.option("--scheduler", metavar="ADDRESS", help="A running dask.distributed scheduler.")
@click.option("--memory", metavar="SIZE", help="Bound on memory, such as 4GiB.")
@click.option(
    "--out",
    metavar="RESULTS",
    help="Keep results in this store, not beside TRACE: for traces that cannot be written.",
)
@click.option("--force", is_flag=True, help="Compute even what is stored.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the analyses.")
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on stdout.")
@click.pass_context
def analyze(
    ctx: click.Context,
    traces: tuple[str, ...],
    names: tuple[str, ...],
    assignments: tuple[str, ...],
    steps: str | None,
    layers: str | None,
    mode: str | None,
    workers: int | None,
    scheduler: str | None,
    memory: str | None,
    out: str | None,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Run analyses on every TRACE and store their results beside it, or in RESULTS.

    What was computed before, by the same version of the analysis with the same parameters on the
    same rows, is not computed again, whole results and parts of them. What an interrupted command
    had finished is kept, and the same command goes on with it.
    """
    if workers is not None and scheduler is not None:
        raise UsageError("--workers and --scheduler exclude each other; give one of them")
    if mode is not None:
        assignments = (*assignments, f"mode={mode}")
    by_analysis, shared = parse_assignments(assignments)
    selected = None if steps is None else parse_slice(steps)

    from tracelab import jobs, registry

    # A wrong name is one mistake, however many traces there are.
    chosen = [registry.analysis(name).name for name in names] or None
    for name, given in by_analysis.items():
        registry.analysis(name).resolve(given)

    console: Console = ctx.obj
    outcomes: list[dict[str, Any]] = []
    worst = ExitCode.DONE
    for trace in dict.fromkeys(traces):
        how: dict[str, tuple[str, jobs.Counts]] = {}

        def announce(
            name: str,
            state: str,
            counts: jobs.Counts,
            trace: str = trace,
            how: dict[str, tuple[str, jobs.Counts]] = how,
        ) -> None:
            how[name] = (state, counts)
            logger.info("%s: %s %s (%s)", trace, name, state, _counted(counts))

        outcome: dict[str, Any] = {"trace": trace, "error": None, "results": []}
        outcomes.append(outcome)
        try:
            results = jobs.analyze(
                trace,
                chosen,
                steps=selected,
                layers=layers,
                seed=seed,
                out=out,
                force=force,
                scheduler=scheduler,
                workers=workers,
                memory=memory,
                progress=console.bar(f"{trace}: "),
                announce=announce,
                parameters=by_analysis,
                **shared,
            )
        except KeyboardInterrupt as error:
            kept = f"; {error}" if str(error) else ""
            click.echo(
                f"Interrupted: the analyses that finished are stored{kept}. "
                "The same command goes on from here.",
                err=True,
            )
            ctx.exit(ExitCode.INTERRUPTED)
        except BrokenPipeError:
            raise
        except Exception as error:
            # The other traces have nothing to do with what is wrong with this one.
            logger.debug("where it was raised", exc_info=error)
            outcome["error"] = sentence(error)
            click.echo(f"Error: {trace}: {sentence(error)}", err=True)
            worst = max(worst, code_of(error))
            continue
        outcome["results"] = [_described(name, *how[name], results[name]) for name in results]
        if any(each["failed_cells"] or each["unreadable_cells"] for each in outcome["results"]):
            worst = max(worst, ExitCode.FAILED)
        # An analysis whose steps or layers cannot be read has no result.
        if any(state == "damaged" for state, _ in how.values()):
            worst = max(worst, ExitCode.FAILED)
        if not as_json:
            _show(trace, outcome["results"], console)
    if as_json:
        emit_json(outcomes)
    ctx.exit(worst)


def parse_slice(text: str) -> slice:
    """Return ``A:B:C`` as a slice.

    Raises
    ------
    UsageError
        If it is none.
    """
    parts = text.split(":")
    try:
        bounds = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        bounds = []
    if len(bounds) not in (2, 3) or (len(bounds) == 3 and bounds[2] == 0):
        raise UsageError(
            f"--steps must be a slice A:B or A:B:C of integers (0:100:10, ::2, -5:), got {text!r}"
        )
    return slice(*bounds)


def parse_assignments(
    texts: Sequence[str],
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return parameters by analysis, and those for every analysis, from ``[NAME.]KEY=VALUE``.

    Raises
    ------
    UsageError
        If one cannot be read, is given twice or is an option of the command.
    """
    by_analysis: defaultdict[str, dict[str, str]] = defaultdict(dict)
    shared: dict[str, str] = {}
    for text in texts:
        left, equals, given = text.partition("=")
        name, dot, key = left.strip().rpartition(".")
        if not equals or not key or (dot and not name):
            raise UsageError(f"-p takes [NAME.]KEY=VALUE, such as mode=pooled, got {text!r}")
        if not name and key in _OPTIONS:
            raise UsageError(f"{key!r} is no parameter of an analysis but an option: --{key}")
        target = by_analysis[name] if name else shared
        if key in target:
            raise UsageError(f"the parameter {left.strip()!r} is given twice; give it once")
        target[key] = given
    return dict(by_analysis), shared


_OPTIONS = frozenset(
    ("force", "json", "layers", "memory", "out", "scheduler", "seed", "steps", "workers")
)


def _counted(counts: Counts) -> str:
    told = {
        "reused": counts.reused,
        "computed": counts.computed,
        "failed": counts.failed,
        "unreadable": counts.unreadable,
    }
    return f"cells: {', '.join(f'{count:,} {what}' for what, count in told.items())}"


def _described(name: str, state: str, counts: Counts, result: xr.Dataset) -> dict[str, Any]:
    attributes: Mapping[Any, Any] = result.attrs
    return {
        "analysis": name,
        "state": state,
        "parameters": attributes["parameters"],
        "finding": attributes["finding"],
        "warnings": attributes["warnings"],
        "cells": result["status"].size,
        "reused_cells": counts.reused,
        "computed_cells": counts.computed,
        "failed_cells": counts.failed,
        "unreadable_cells": counts.unreadable,
        "failures": attributes["failures"],
        "seconds": attributes["seconds"],
    }


def _show(trace: str, outcomes: Sequence[Mapping[str, Any]], console: Console) -> None:
    click.echo(trace)
    width = max(len(outcome["analysis"]) for outcome in outcomes)
    for outcome in outcomes:
        head = f"  {outcome['analysis']:<{width}}  {outcome['state']:<8}  "
        click.echo(paragraph(head, outcome["finding"]))
        first = f"; the first: {outcome['failures'][0]}" if outcome["failures"] else ""
        for count, what in (
            (outcome["failed_cells"], "failed"),
            (outcome["unreadable_cells"], "cannot be read: the trace is damaged there"),
        ):
            if count:
                told = f"{count} of {outcome['cells']} cells {what}{first}"
                click.echo(paragraph(" " * len(head), told))
        if console.verbose:
            for warning in outcome["warnings"]:
                click.echo(paragraph(f"{'':{len(head)}}note: ", warning))
    if all(outcome["state"] == "stored" for outcome in outcomes):
        console.note(f"{trace}: everything was stored; nothing was computed")
