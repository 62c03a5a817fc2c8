"""Damaged rows of a group: chunks that become missing, rows that go."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracelab.trace.health.checking import check_task, tasks
from tracelab.trace.health.damage import Damage, Labels, describe, region
from tracelab.trace.health.drafts import Draft
from tracelab.trace.health.losses import Loss, Mended
from tracelab.trace.health.salvage import salvage
from tracelab.trace.places.locations import Location
from tracelab.trace.reading.shardform import Form
from tracelab.trace.reading.snapshot import Group
from tracelab.trace.schema import BFLOAT16
from tracelab.typing import BoolArray, IntArray

__all__ = ["mend_rows"]


def mend_rows(
    location: Location,
    draft: Draft,
    group: Group,
    labels: Labels,
    damages: Sequence[Damage],
    gone: set[str],
    done: Mended,
) -> BoolArray:
    """Make chunks missing where the format has missing values; else find the rows that must go.

    Parameters
    ----------
    location : Location
        The damaged trace.
    draft : Draft
        The repaired one: shards are rewritten there, rows not yet taken out.
    group : Group
        The group.
    labels : Labels
        Its labels.
    damages : sequence of Damage
        What is damaged in it.
    gone : set of str
        Arrays that are dropped anyway.
    done : Mended
        Takes what is lost.

    Returns
    -------
    ndarray of bool, shape (row,)
        The rows that stay.
    """
    keep = np.ones(group.rows, dtype=np.bool_)
    suspects = {(damage.array, damage.shard) for damage in damages if damage.kind != "labels"}
    whole = {array for array, shard in suspects if not shard}
    for array, document in group.arrays.items():
        if array in gone or document["dimension_names"][:1] != ["step"]:
            continue
        for task in tasks(group, array):
            if (array, task.key) not in suspects and array not in whole:
                continue
            if array in whole and check_task(location, task).sound:
                continue
            lost = salvage(location, draft, task)
            if not lost.size:
                done.restored.append(f"{task.path}: nothing of it is lost")
                continue
            if _has_missing(document):
                done.dropped.append(_loss(task.form, group, array, labels, task.shard, lost))
                continue
            for number in lost:
                first, last = region(task.form, task.shard, int(number))[0]
                keep[first : last + 1] = False
    if any(damage.kind == "labels" and damage.array == "step" for damage in damages):
        keep &= _increasing(labels.steps, keep)
    if not keep.all():
        done.dropped.append(_rows_lost(group, labels, keep))
    return keep


def _has_missing(document: Mapping[str, Any]) -> bool:
    """Return whether the format says that something of an array may be missing."""
    attributes = document["attributes"]
    bits = isinstance(attributes, dict) and attributes.get("stored_dtype") == BFLOAT16
    nan = document["data_type"].startswith("float") and document.get("fill_value") == "NaN"
    return bits or nan or document["data_type"] == "bool"


def _loss(
    stored: Form, group: Group, array: str, labels: Labels, shard: Sequence[int], lost: IntArray
) -> Loss:
    regions = np.array([region(stored, shard, int(number)) for number in lost])
    spans = [
        (int(first), int(last))
        for first, last in zip(
            regions[:, :, 0].min(axis=0), regions[:, :, 1].max(axis=0), strict=True
        )
    ]
    chunks = f"{len(lost)} chunks" if len(lost) > 1 else "1 chunk"
    told = describe(
        group, array, labels, kind="", reason=f"{chunks}, missing from now on", spans=spans
    )
    rows = 0 if told.rows is None else told.rows[1] - told.rows[0] + 1
    return Loss(group.name, array, rows, told.steps, told.layers, told.sentence)


def _rows_lost(group: Group, labels: Labels, keep: BoolArray) -> Loss:
    gone = np.flatnonzero(~keep)
    steps = None
    if labels.steps is not None and (labels.steps[gone[[0, -1]]] >= 0).all():
        steps = int(labels.steps[gone[0]]), int(labels.steps[gone[-1]])
    where = f"between steps {steps[0]} and {steps[1]}" if steps else "whose steps cannot be read"
    everything = ", all of them" if not keep.any() else ""
    return Loss(
        group.name,
        "",
        gone.size,
        steps,
        (),
        f"{group.name}: {gone.size} of {keep.size} rows{everything}, {where}: something in them "
        "that has no missing value cannot be read",
    )


def _increasing(steps: IntArray | None, keep: BoolArray) -> BoolArray:
    """Return the most rows, of those kept, whose steps increase."""
    chosen = np.zeros(keep.size, dtype=np.bool_)
    if steps is None:
        return chosen
    tails: list[int] = []
    rows: list[int] = []
    before = np.full(keep.size, -1)
    for row in np.flatnonzero(keep & (steps >= 0)).tolist():
        place = bisect.bisect_left(tails, int(steps[row]))
        tails[place : place + 1] = [int(steps[row])]
        rows[place : place + 1] = [row]
        before[row] = rows[place - 1] if place else -1
    row = rows[-1] if rows else -1
    while row >= 0:
        chosen[row] = True
        row = int(before[row])
    return chosen
