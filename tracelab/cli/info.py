"""``tracelab info``: what a trace holds and what can be analysed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from tracelab.cli.console import emit_json, paragraph, size, table

__all__ = ["info"]

LAYERS_SHOWN = 20


@click.command()
@click.argument("trace")
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on stdout.")
def info(trace: str, as_json: bool) -> None:
    """Show the run, steps, layers, groups and sizes of TRACE, and what can be analysed."""
    from tracelab import jobs
    from tracelab.trace import open as open_trace

    with open_trace(trace) as opened:
        summary = {
            **opened.summary(),
            "analyses": {
                name: {"applicable": reason is None, "reason": reason}
                for name, reason in jobs.applicable(opened).items()
            },
        }
    if as_json:
        emit_json(summary)
    else:
        click.echo(_text(summary))


def _text(summary: Mapping[str, Any]) -> str:
    from tracelab.trace.ranks import unfinished

    layers, ranks = summary["layers"], summary["ranks"]
    states = {int(rank): each["state"] for rank, each in ranks.items()}
    notes = [note for note in (*summary["incomplete_reasons"], unfinished(states)) if note]
    facts = {
        "trace": summary["location"],
        "run": summary["run"],
        "state": " - ".join([summary["state"], *notes]),
        "created": summary["created"],
        "model": _words(summary["model"]),
        "optimizer": _words(summary["optimizer"]),
        "metadata": _words(summary["metadata"]),
        "weights": f"{sum(layer['numel'] for layer in layers):,} in {len(layers)} layers",
    }
    blocks = ["\n".join(f"{label:<11}{fact}" for label, fact in facts.items() if fact)]
    shown = layers[:LAYERS_SHOWN]
    listing = table({key: [each[key] for each in shown] for key in ("name", "kind", "shape")})
    if len(layers) > len(shown):
        listing += f"\n... and {len(layers) - len(shown)} more: see --json"
    blocks.append(listing)
    groups = summary["groups"]
    if groups:
        blocks.append(
            table(
                {
                    "group": list(groups),
                    "kind": [each["kind"] for each in groups.values()],
                    "rows": [each["rows"] for each in groups.values()],
                    "steps": [_range(summary["steps"][name]) for name in groups],
                    "size": [size(each["bytes"]) for each in groups.values()],
                    "arrays": [_arrays(each["arrays"]) for each in groups.values()],
                }
            )
        )
    else:
        blocks.append("nothing recorded yet")
    if ranks:
        blocks.append(
            table(
                {
                    "rank": list(ranks),
                    "state": [each["state"] for each in ranks.values()],
                    "rows": [_rows(each["rows"]) for each in ranks.values()],
                }
            )
        )
    blocks += [f"damaged: {words}" for words in summary["damage"]]
    width = max(map(len, summary["analyses"]), default=0)
    verdicts = [
        paragraph(f"{name:<{width}}  ", verdict["reason"] or "can be computed")
        for name, verdict in summary["analyses"].items()
    ]
    blocks.append("\n".join(verdicts))
    return "\n\n".join(blocks)


def _rows(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{group} {count}" for group, count in rows.items()) or "none"


def _words(described: Any) -> str:
    if isinstance(described, Mapping):
        told = {key: item for key, item in described.items() if item not in (None, "", [], {})}
        return ", ".join(f"{key}={item}" for key, item in told.items())
    return "" if described is None else str(described)


def _range(steps: Mapping[str, Any]) -> str:
    return "-" if steps["first"] is None else f"{steps['first']} to {steps['last']}"


def _arrays(arrays: Mapping[str, Any]) -> str:
    # The labels of a group's axes and its coordinate tables are no news.
    telling = [name for name in arrays if name not in ("step", "layer") and "coord" not in name]
    return ", ".join(telling) if len(telling) <= 6 else f"{', '.join(telling[:5])}, ..."
