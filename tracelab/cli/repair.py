"""``tracelab repair``: a trace of what can be read, the damaged one beside it."""

from __future__ import annotations

import click

from tracelab.cli.console import Console, emit_json

__all__ = ["repair"]

LINES_SHOWN = 40


@click.command()
@click.argument("trace")
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be dropped.")
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on stdout.")
@click.pass_obj
def repair(console: Console, trace: str, dry_run: bool, as_json: bool) -> None:
    """Drop what cannot be read from TRACE, and keep the damaged trace beside it.

    The damaged trace is untouched and called NAME.damaged-1.zarr afterwards. Prints what was
    dropped, which the repaired trace also says in its attribute `repairs`.
    """
    from tracelab.trace.health.repairing import repair as repair_trace

    done = repair_trace(trace, dry_run=dry_run, progress=console.bar(f"{trace}: "))
    if as_json:
        emit_json(done.summary())
        return
    lines = [f"dropped:  {loss.sentence}" for loss in done.dropped]
    lines += [f"restored: {restored}" for restored in done.restored]
    if not lines:
        how = "a repair that had been killed is finished" if done.finished else "nothing is damaged"
        click.echo(f"{done.location}: {how}")
        return
    click.echo(f"{done.location}: {'would be repaired' if dry_run else 'repaired'}")
    for line in lines[:LINES_SHOWN]:
        click.echo(f"  {line}")
    if len(lines) > LINES_SHOWN:
        click.echo(f"  and {len(lines) - LINES_SHOWN} more: see --json")
    if done.copy is not None:
        console.note(f"the damaged trace is {done.copy}; delete it once you do not need it")
