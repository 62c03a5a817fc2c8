"""``tracelab export`` and ``tracelab import``: a trace as one HDF5 file, and back."""

from __future__ import annotations

from pathlib import Path

import click

from tracelab.cli.console import Console

__all__ = ["export", "import_"]


@click.command()
@click.argument("trace")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.h5")
@click.option("--force", is_flag=True, help="Replace the HDF5 file that is there.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    help="Only this group; repeatable. Default: all, with results and workers.",
)
@click.pass_obj
def export(console: Console, trace: str, file: Path, force: bool, groups: tuple[str, ...]) -> None:
    """Write TRACE into one HDF5 file, without loss.

    Of a live trace, what one commit holds. Prints where the file is, which appears when it is
    complete.
    """
    from tracelab.trace.hdf5 import export_hdf5

    export_hdf5(
        trace,
        file,
        overwrite=force,
        groups=groups or None,
        progress=console.bar(f"{file} (MiB): "),
    )
    click.echo(file)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.h5")
@click.argument("trace")
@click.option("--force", is_flag=True, help="Replace the trace that is there.")
@click.pass_obj
def import_(console: Console, file: Path, trace: str, force: bool) -> None:
    """Make TRACE of an HDF5 file, exported by tracelab or written by a script of yours.

    All of the file is checked before any of it is stored. Prints where the trace is, which
    appears when it is complete.
    """
    from tracelab.trace.hdf5 import import_hdf5

    import_hdf5(file, trace, overwrite=force, progress=console.bar(f"{trace} (MiB): "))
    click.echo(trace)
