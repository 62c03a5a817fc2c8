"""``tracelab runs`` and ``tracelab compare``: many traces by their hyper-parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tracelab.cli.console import Console, emit_json, setting, table, value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracelab.runs import Runs

__all__ = ["compare", "runs"]

_WHERE = click.option(
    "-w",
    "--where",
    "conditions",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only runs with this hyper-parameter: lr=0.1, lr<=0.1, optimizer=SGD|Adam; repeatable.",
)
_FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
)
_RESULTS = click.option(
    "--results",
    metavar="STORE",
    help="Also read results of the traces in this store, which `analyze --out` wrote.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Short for --format json.")


@click.command()
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...")
@_WHERE
@_RESULTS
@_FORMAT
@_JSON
@click.pass_obj
def runs(
    console: Console,
    traces: tuple[str, ...],
    conditions: tuple[str, ...],
    results: str | None,
    form: str,
    as_json: bool,
) -> None:
    """List runs: state, rows, results and the hyper-parameters in which they differ.

    A TRACE is a location, a folder of traces, or a quoted pattern such as 'runs/**/*.zarr'.
    """
    from tracelab.trace.ranks import unfinished

    found = _open(traces, conditions, results)
    form = "json" if as_json else form
    rows = [
        {
            "run": name,
            "state": ", ".join(filter(None, (trace.state, unfinished(trace.rank_states)))),
            "rows": max(trace.rows.values(), default=0),
            "results": ", ".join(trace.results),
            **{
                key: found.hyperparameters[name].get(key)
                for key in (found.columns if form != "table" else found.differing)
            },
        }
        for name, trace in found.items()
    ]
    if form == "json":
        emit_json(
            [
                {
                    "run": name,
                    "location": trace.location,
                    "id": trace.run,
                    "state": trace.state,
                    "created": trace.attrs.get("created"),
                    "rows": trace.rows,
                    "results": list(trace.results),
                    "hyperparameters": found.hyperparameters[name],
                }
                for name, trace in found.items()
            ]
        )
    elif rows:
        _emit(rows, form)
    else:
        console.note("no run is like that")


@click.command()
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...")
@click.option("--by", metavar="KEY", help="Sort by this hyper-parameter and show it alone.")
@click.option("-a", "--analysis", "names", multiple=True, metavar="NAME", help="Repeatable.")
@click.option("--layer", metavar="NAME", help="Default: the network, else the last layer.")
@click.option("--step", type=int, help="Default: the last step of each run.")
@_WHERE
@_RESULTS
@_FORMAT
@_JSON
@click.pass_obj
def compare(
    console: Console,
    traces: tuple[str, ...],
    by: str | None,
    names: tuple[str, ...],
    layer: str | None,
    step: int | None,
    conditions: tuple[str, ...],
    results: str | None,
    form: str,
    as_json: bool,
) -> None:
    """Show stored results of several runs side by side, by hyper-parameter.

    Each number comes with its interval, sample size and status. A TRACE is a location, a folder of
    traces, or a quoted pattern such as 'runs/*.zarr'.
    """
    from tracelab import registry
    from tracelab.reporting.comparison import compare as records_of

    chosen = [registry.analysis(name).name for name in names] or None
    found = _open(traces, conditions, results)
    if not found:
        console.note("no run is like that")
        return
    records = records_of(found, chosen, by=by, layer=layer, step=step)
    form = "json" if as_json else form
    if form == "json":
        emit_json(records)
        return
    if form == "csv":
        _emit([_flat(record) for record in records], form)
        return
    blocks = []
    for name in dict.fromkeys(record["analysis"] for record in records):
        own = [record for record in records if record["analysis"] == name]
        blocks.append(f"{name}\n{_text(own)}")
    click.echo("\n\n".join(blocks))


def _open(traces: Sequence[str], conditions: Sequence[str], results: str | None) -> Runs:
    from tracelab import catalogue
    from tracelab.runs import open_runs

    wanted = [catalogue.parse_condition(text) for text in conditions]
    found = open_runs(traces, results)
    for key, condition in wanted:
        found = found.select({key: condition})
    return found


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    parameters = record["parameters"] or {}
    return {
        **{key: item for key, item in record.items() if key not in ("parameters", "samples")},
        "parameters": ", ".join(f"{key}={setting(item)}" for key, item in parameters.items()),
        **record["samples"],
    }


def _text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records of one analysis as a table: a row a run, a column a quantity."""
    known = ("run", "analysis", "parameters", "quantity", "layer", "step")
    values = (*known, "estimate", "low", "high", "units", "samples", "status")
    keys = [key for key in records[0] if key not in values]
    quantities = dict.fromkeys(_heading(each) for each in records if each["quantity"])
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        row = rows.setdefault(
            record["run"],
            {
                **{key: record[key] for key in keys},
                "run": record["run"],
                "layer": record["layer"],
                "step": record["step"],
                **dict.fromkeys(quantities),
            },
        )
        if record["quantity"]:
            row[_heading(record)] = _estimate(record)
        row |= {**record["samples"], "status": record["status"]}
    headings = list(dict.fromkeys(key for row in rows.values() for key in row))
    # The status ends a row, whatever a run lacks.
    headings.sort(key=lambda heading: heading == "status")
    return table({heading: [row.get(heading) for row in rows.values()] for heading in headings})


def _heading(record: Mapping[str, Any]) -> str:
    quantity: str = record["quantity"]
    units = record["units"]
    return quantity if units in (None, "1") else f"{quantity}, {units}"


def _estimate(record: Mapping[str, Any]) -> str:
    if record["low"] is None or record["high"] is None:
        return value(record["estimate"])
    return f"{value(record['estimate'])} [{value(record['low'])}, {value(record['high'])}]"


def _emit(rows: Sequence[Mapping[str, Any]], form: str) -> None:
    headings = list(dict.fromkeys(key for row in rows for key in row))
    columns = {heading: [row.get(heading) for row in rows] for heading in headings}
    if form == "csv":
        import pandas as pd

        click.echo(pd.DataFrame(columns).to_csv(index=False), nl=False)
    else:
        click.echo(table(columns))
