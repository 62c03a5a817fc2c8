"""``tracelab analyses``: what there is, what it needs, what it gives, what it cites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tracelab.cli.console import emit_json, paragraph, setting, table

if TYPE_CHECKING:
    from tracelab.contracts import Analysis

__all__ = ["analyses"]


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on stdout.")
def analyses(name: str | None, as_json: bool) -> None:
    """List the installed analyses, or describe the one called NAME."""
    from tracelab import registry

    if name is not None:
        analysis = registry.analysis(name)
        if as_json:
            emit_json(_described(analysis))
        else:
            click.echo(_text(analysis))
        return
    found = registry.analyses()
    if as_json:
        emit_json([_described(analysis) for analysis in found.values()])
        return
    listing = {"analysis": list(found), "summary": [each.summary for each in found.values()]}
    click.echo(table(listing))


def _described(analysis: Analysis) -> dict[str, Any]:
    return {
        "name": analysis.name,
        "version": analysis.version,
        "summary": analysis.summary,
        "cell": analysis.cell,
        "inputs": [
            {
                "name": needed.variable.name,
                "dims": needed.variable.dims,
                "units": needed.variable.units,
                "sources": needed.sources,
                "network": needed.network,
                "optional": needed.optional,
            }
            for needed in analysis.inputs
        ],
        "parameters": [
            {
                "name": parameter.name,
                "default": parameter.default,
                "choices": parameter.choices,
                "low": parameter.low,
                "high": parameter.high,
                "description": parameter.description,
            }
            for parameter in analysis.parameters
        ],
        "outputs": [
            {
                "name": variable.name,
                "dims": variable.dims,
                "units": variable.units,
                "dtype": variable.dtype,
                "description": variable.description,
            }
            for variable in analysis.outputs
        ],
        "references": [
            {"citation": reference.citation, "url": reference.url}
            for reference in analysis.references
        ],
    }


def _text(analysis: Analysis) -> str:
    inputs, parameters, outputs = analysis.inputs, analysis.parameters, analysis.outputs
    blocks = [
        f"{analysis.name} (version {analysis.version}): {analysis.summary}",
        "Needs, by {}\n{}".format(
            " and ".join(analysis.cell),
            _indented(
                {
                    "input": [each.variable.name for each in inputs],
                    "dims": [each.variable.dims for each in inputs],
                    "units": [each.variable.units for each in inputs],
                    "recorded as": [
                        " or ".join(each.sources) + (" (if recorded)" if each.optional else "")
                        for each in inputs
                    ],
                }
            ),
        ),
    ]
    if parameters:
        columns = {
            "parameter": [each.name for each in parameters],
            "default": [setting(each.default) for each in parameters],
            "allowed": [_allowed(each.choices, each.low, each.high) for each in parameters],
            "meaning": [each.description for each in parameters],
        }
        blocks.append(f"Parameters, set by -p {analysis.name}.NAME=VALUE\n{_indented(columns)}")
    gives: dict[str, list[Any]] = {
        "output": [each.name for each in outputs],
        "dims": [each.dims for each in outputs],
        "units": [each.units for each in outputs],
        "meaning": [
            each.description or ("why a cell has no number" if each.name == "status" else "")
            for each in outputs
        ],
    }
    blocks.append(f"Gives\n{_indented(gives)}")
    cited = [
        paragraph("  ", " ".join(filter(None, (reference.citation, reference.url))))
        for reference in analysis.references
    ]
    blocks.append("\n".join(["Cites", *cited]))
    return "\n\n".join(blocks)


def _allowed(choices: tuple[str, ...], low: float | None, high: float | None) -> str:
    if choices:
        return " | ".join(choices)
    if low is None and high is None:
        return ""
    bounds = ("-inf" if low is None else f"{low:g}", "inf" if high is None else f"{high:g}")
    return "{} to {}".format(*bounds)


def _indented(columns: dict[str, list[Any]]) -> str:
    return "\n".join(f"  {line}" for line in table(columns).splitlines())
