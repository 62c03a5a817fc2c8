"""``tracelab report``: one HTML page of several traces' results."""

from __future__ import annotations

from pathlib import Path

import click

from tracelab.cli.console import Console

__all__ = ["report"]


@click.command()
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page to write; an older one is replaced.",
)
@click.option(
    "--results",
    metavar="RESULTS",
    help="Also show results of the traces in this store, which `analyze --out` wrote.",
)
@click.pass_obj
def report(console: Console, traces: tuple[str, ...], output: Path, results: str | None) -> None:
    """Write the stored results of every TRACE into one self-contained HTML page.

    Prints where the page is. Results are computed by `tracelab analyze`, not here.
    """
    from tracelab.reporting import report as write_report

    console.note(f"writing {output}")
    write_report(list(dict.fromkeys(traces)), output, results=results)
    click.echo(output)
