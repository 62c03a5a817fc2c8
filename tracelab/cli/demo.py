"""``tracelab demo``: train on real images, collect, analyse, report."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracelab.cli.console import Console, emit_json, paragraph
from tracelab.cli.exits import ExitCode
from tracelab.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import xarray as xr

    from tracelab.cli.answers import Study

__all__ = ["demo"]

REQUIRED = {"torch": "torch", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder of the traces and the report.",
)
@click.option("--quick", is_flag=True, help="Train and record less: a minute becomes seconds.")
@click.option("--force", is_flag=True, help="Replace the traces of an earlier demonstration.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything.")
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on stdout.")
@click.pass_context
def demo(ctx: click.Context, out: Path, quick: bool, force: bool, seed: int, as_json: bool) -> None:
    """Train on handwritten digits with SGD and Adam, collect, analyse, report.

    A small network is trained by SGD at two batch sizes and by Adam. Is its gradient noise
    Gaussian? How heavy are its tails, and what of that is an artefact of pooling? How large is
    the noise, and how do the weights leave their initialization?
    """
    for module, package in REQUIRED.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "demo", "the demonstration")
    existing = sorted(path.name for path in out.glob("*.zarr"))
    if existing and not force:
        raise UsageError(
            f"the folder {str(out)!r} holds traces already ({', '.join(existing)}); "
            "choose another with --out, or replace them with --force"
        )

    from tracelab import registry
    from tracelab.cli.answers import MORE_STUDIES, STUDIES, answers
    from tracelab.jobs import analyze, failed_cells
    from tracelab.reporting import report as write_report
    from tracelab.trace import open as open_trace

    console: Console = ctx.obj
    console.note(f"training three networks on handwritten digits, recording into {out}")
    train = registry.demo("digits")
    paths = train(out, quick, seed=seed, overwrite=force, progress=console.bar("training "))
    # Results in the order they were made: the answers' own are the most recent.
    studies = STUDIES if quick else MORE_STUDIES + STUDIES
    found: dict[str, dict[Study, xr.Dataset]] = {path.stem: {} for path in paths}
    batch_sizes: dict[str, int] = {}
    failed = 0
    for path in paths:
        console.note(f"analysing {path}")
        trace = open_trace(path)
        batch_sizes[path.stem] = int(trace.groups["noise"].attrs["batch_size"])
        for study in studies:
            (result,) = analyze(
                trace,
                [study.analysis],
                seed=seed,
                progress=console.bar(),
                **study.parameters,
            ).values()
            found[path.stem][study] = result
            failed += failed_cells(result)
    page = out / "report.html"
    write_report(paths, page)
    said = answers(found, batch_sizes)
    if as_json:
        emit_json({"traces": list(map(str, paths)), "report": str(page), "answers": said})
    else:
        click.echo(f"traces  {' '.join(map(str, paths))}\nreport  {page}\n")
        click.echo("\n".join(paragraph(line[:3], line[3:]) for line in said))
    ctx.exit(ExitCode.FAILED if failed else ExitCode.DONE)
