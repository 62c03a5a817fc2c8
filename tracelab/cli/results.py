"""``tracelab results``: which results a trace has, and their numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracelab.cli.console import Console, is_terminal, paragraph, setting, table, to_json
from tracelab.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["results"]


@click.command()
@click.argument("trace")
@click.argument("name", required=False)
@click.option(
    "--results",
    "elsewhere",
    metavar="RESULTS",
    help="Also show results of TRACE in this store, which `analyze --out` wrote.",
)
@click.option("--all", "every", is_flag=True, help="Every result of NAME, not the most recent.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="What is missing is '-' in a table, empty in CSV, null in JSON and Parquet.",
)
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to a file instead of stdout.",
)
@click.pass_obj
def results(
    console: Console,
    trace: str,
    name: str | None,
    elsewhere: str | None,
    every: bool,
    form: str,
    as_json: bool,
    output: Path | None,
) -> None:
    """List the stored results of TRACE, or write the numbers of the analysis NAME.

    Numbers are those of the most recent result, one row a cell; numbers of a cell that are by more,
    such as by test, have rows of their own below, where labels and numbers that a row does not have
    are missing. With --all, columns hold the parameters and say which result a row belongs to.
    """
    if every and name is None:
        raise UsageError("--all needs the NAME of an analysis; without NAME every result is listed")
    form = "json" if as_json else form
    if form == "parquet":
        _check_parquet(output)

    from tracelab.trace import open as open_trace

    with open_trace(trace, elsewhere) as opened:
        if name is None:
            stored = [each for key in opened.results for each in opened.results.all(key).values()]
            if not stored:
                console.note(f"{trace}: no results yet; compute them with `tracelab analyze`")
        else:
            newest = opened.results[name]
            stored = list(opened.results.all(name).values()) if every else [newest]
        written = _written(stored, form, numbers=name is not None, every=every)
    if output is not None:
        output.write_bytes(written)
        console.note(f"wrote {output}")
    else:
        rest = memoryview(written)
        while rest:
            # Unbuffered (PYTHONUNBUFFERED), a pipe takes a part only once its reader is gone.
            rest = rest[sys.stdout.buffer.write(rest) :]


def _check_parquet(output: Path | None) -> None:
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "all", "writing Parquet")
    if output is None and is_terminal():
        raise UsageError(
            "Parquet is binary and stdout is a terminal; name a file with -o, or use a pipe"
        )


def _written(stored: Sequence[xr.Dataset], form: str, *, numbers: bool, every: bool) -> bytes:
    if form == "json":
        return f"{to_json([_described(each, numbers=numbers) for each in stored])}\n".encode()
    if form == "table":
        text = _numbers_text(stored) if numbers else _listing_text(stored)
        return f"{text}\n".encode() if text else b""
    frame = _frame(stored, with_parameters=every) if numbers else _listing(stored)
    if form == "csv":
        return frame.to_csv(index=False).encode()
    parquet: bytes = frame.to_parquet(engine="pyarrow", index=False)
    return parquet


def _described(result: xr.Dataset, *, numbers: bool) -> dict[str, Any]:
    described = {str(key): attribute for key, attribute in result.attrs.items()}
    if numbers:
        described["units"] = {
            str(name): result[name].attrs["units"]
            for name in result.variables
            if "units" in result[name].attrs
        }
        described["rows"] = _without_gaps(_cells(result)).to_dict("records")
    return described


def _parameters(result: xr.Dataset) -> dict[str, Any]:
    return {str(key): setting(item) for key, item in dict(result.attrs["parameters"]).items()}


def _listing(stored: Sequence[xr.Dataset]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "analysis": [each.attrs["analysis"] for each in stored],
            "parameters": [_assignments(each) for each in stored],
            "created": [each.attrs["created"] for each in stored],
            "finding": [each.attrs["finding"] for each in stored],
        }
    )


def _assignments(result: xr.Dataset) -> str:
    return ", ".join(f"{key}={item}" for key, item in _parameters(result).items())


def _listing_text(stored: Sequence[xr.Dataset]) -> str:
    lines = []
    for result in stored:
        when = str(result.attrs["created"])[:16].replace("T", " ")
        lines.append(
            paragraph(f"{result.attrs['analysis']}  ", f"{when} UTC  {_assignments(result)}")
        )
        lines.append(paragraph("    ", str(result.attrs["finding"])))
        lines += [paragraph("    note: ", warning) for warning in result.attrs["warnings"]]
    return "\n".join(lines)


def _cells(result: xr.Dataset) -> pd.DataFrame:
    """Return labels, numbers as declared, and the status in words: no number more than once.

    Numbers of the same dimensions are beside each other, those of others in rows below, in which
    columns that they do not have are missing. Each row has the status of its cell.
    """
    import pandas as pd

    status = result["status"]
    words = dict(
        zip(status.attrs["flag_values"], status.attrs["flag_meanings"].split(), strict=True)
    )
    first = [dim for dim in ("step", "layer") if dim in result.dims]
    order = [*first, *(str(dim) for dim in result.dims if dim not in first)]
    declared = _declared(result)
    blocks: dict[tuple[str, ...], list[str]] = {}
    for name in declared:
        if name != "status":
            dims = tuple(dim for dim in order if dim in result[name].dims)
            blocks.setdefault(dims, []).append(name)
    frames = []
    for dims, names in sorted(blocks.items(), key=lambda block: len(block[0])):
        held = [*names, "status"] if set(status.dims) <= set(dims) else names
        frame = result[held].to_dataframe(dim_order=list(dims)).reset_index()[[*dims, *held]]
        if len(blocks) > 1:
            # Whole numbers stay such in columns that other rows do not have.
            whole = {name: "Int64" for name in frame if frame[name].dtype.kind in "iu"}
            frame = frame.astype(whole | {n: "boolean" for n in frame if frame[n].dtype == bool})
        if "status" in frame:
            frame["status"] = [words[code] for code in frame["status"]]
        frames.append(frame)
    joined = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    return joined[[*order, *declared]]


def _without_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame of Python's objects, with None where a row does not have a column."""
    return frame.astype(object).where(frame.notna(), None)


def _declared(result: xr.Dataset) -> list[str]:
    # A store lists its arrays in any order.
    from tracelab import registry

    try:
        outputs = registry.analysis(str(result.attrs["analysis"])).outputs
    except UsageError:
        return sorted(map(str, result.data_vars))
    return [variable.name for variable in outputs if variable.name in result]


def _frame(stored: Sequence[xr.Dataset], *, with_parameters: bool) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for result in stored:
        frame = _cells(result)
        if with_parameters:
            for place, (key, item) in enumerate(_parameters(result).items()):
                frame.insert(place, key, item)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _numbers_text(stored: Sequence[xr.Dataset]) -> str:
    frame = _without_gaps(_frame(stored, with_parameters=len(stored) > 1))
    units = {str(name): stored[0][name].attrs.get("units", "1") for name in stored[0].variables}
    headings = {
        name: name if units.get(name, "1") in ("1", name) else f"{name} [{units[name]}]"
        for name in map(str, frame.columns)
    }
    # A parameter that is the same in all results says nothing about a row.
    telling = [
        name for name in headings if name in stored[0].variables or len(set(frame[name])) > 1
    ]
    return table({headings[name]: frame[name].tolist() for name in telling})
