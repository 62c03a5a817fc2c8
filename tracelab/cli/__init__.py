"""The command line: thin commands over the library, one file each.

Data go to stdout, progress and logs to stderr. What is heavy is imported inside the commands, so
that ``--help`` answers at once.
"""

from __future__ import annotations

import logging

import click

from tracelab.cli.analyses import analyses
from tracelab.cli.analyze import analyze
from tracelab.cli.console import Console
from tracelab.cli.demo import demo
from tracelab.cli.exits import Program
from tracelab.cli.export import export, import_
from tracelab.cli.info import info
from tracelab.cli.repair import repair
from tracelab.cli.report import report
from tracelab.cli.results import results
from tracelab.cli.runs import compare, runs
from tracelab.cli.verify import verify

__all__ = ["main"]


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tracelab", message="tracelab %(version)s")
@click.option("-q", "--quiet", is_flag=True, help="Nothing but errors on stderr.")
@click.option("-v", "--verbose", count=True, help="More on stderr; -vv for debugging.")
@click.pass_context
def main(ctx: click.Context, quiet: bool, verbose: int) -> None:
    """Record the gradient noise of a training run, analyse it, query the results.

    Exit codes: 0 done; 1 finished, but some cells or analyses failed; 2 wrong usage; 3 a trace is
    unreadable or damaged; 130 interrupted.
    """
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose contradict each other; give one of them")
    levels = [logging.WARNING, logging.INFO, logging.DEBUG]
    console = Console(logging.ERROR if quiet else levels[min(verbose, 2)])
    ctx.obj = console
    ctx.call_on_close(console.start_logging())


for command in (
    demo,
    info,
    analyses,
    analyze,
    results,
    report,
    runs,
    compare,
    export,
    import_,
    verify,
    repair,
):
    main.add_command(command)
