"""``tracelab verify``: every checksum and every committed row, and what is bad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tracelab.cli.console import Console, emit_json, size
from tracelab.cli.exits import ExitCode, code_of, sentence
from tracelab.errors import TracelabError

if TYPE_CHECKING:
    from tracelab.trace.health.verification import Report

__all__ = ["verify"]

DAMAGES_SHOWN = 20


@click.command()
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...")
@click.option("--workers", type=click.IntRange(min=1), help="Objects read at the same time.")
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on stdout.")
@click.pass_context
def verify(ctx: click.Context, traces: tuple[str, ...], workers: int | None, as_json: bool) -> None:
    """Check every checksum, every committed row and every result of each TRACE.

    Nothing is changed; a trace may be recorded meanwhile. Exit code 3 if something is damaged:
    `tracelab repair` then makes a trace of what can be read.
    """
    from tracelab.trace.health.verification import verify as verify_trace

    console: Console = ctx.obj
    outcomes: list[dict[str, Any]] = []
    worst = ExitCode.DONE
    for trace in dict.fromkeys(traces):
        try:
            report = verify_trace(trace, workers=workers, progress=console.bar(f"{trace}: "))
        except (TracelabError, OSError) as error:
            # The other traces have nothing to do with what is wrong with this one.
            click.echo(f"Error: {sentence(error)}", err=True)
            outcomes.append({"location": trace, "sound": False, "error": sentence(error)})
            worst = max(worst, code_of(error))
            continue
        outcomes.append(report.summary())
        if not report.sound:
            worst = max(worst, ExitCode.TRACE)
        if not as_json:
            _show(report, console)
    if as_json:
        emit_json(outcomes)
    ctx.exit(worst)


def _show(report: Report, console: Console) -> None:
    rows = ", ".join(f"{count:,} of {name}" for name, count in report.rows.items())
    ranks = f", {len(report.ranks)} ranks" if report.ranks else ""
    checked = f"{size(report.nbytes)}, rows: {rows or 'none'}{ranks}"
    if report.sound:
        click.echo(f"{report.location}: sound ({checked})")
    else:
        found = report.all_damages()
        click.echo(f"{report.location}: damaged ({checked})")
        for rank, damage in found[:DAMAGES_SHOWN]:
            inside = "" if rank is None else f"rank {rank}: "
            click.echo(f"  {inside}{damage.sentence}")
        if len(found) > DAMAGES_SHOWN:
            click.echo(f"  and {len(found) - DAMAGES_SHOWN} more: see --json")
        click.echo(
            f"  `tracelab repair {report.location}` makes a trace of what can be read and keeps "
            "this one beside it"
        )
    if report.leftovers and console.verbose:
        click.echo(
            f"  {len(report.leftovers)} objects belong to no committed row, which is no damage: "
            f"{', '.join(report.leftovers[:5])}{', ...' if len(report.leftovers) > 5 else ''}"
        )
