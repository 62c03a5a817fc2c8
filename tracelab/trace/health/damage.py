"""What is damaged in a trace, in terms of what was recorded: groups, steps, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tracelab.trace.reading.shardform import Form
from tracelab.trace.reading.snapshot import Group
from tracelab.typing import IntArray

__all__ = ["KINDS", "Damage", "Labels", "describe", "region"]

KINDS = (
    "missing",
    "truncated",
    "checksum",
    "index",
    "unreadable",
    "permission",
    "labels",
    "document",
    "result",
)
"""What can be wrong with an object of a trace."""

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that cannot be read.

    Parameters
    ----------
    group, array : str
        Where it is; empty for the root document.
    shard : str
        The object, below the array; empty if it is not about one.
    chunk : tuple of int or None
        The chunk of the array; None if it is about more than one chunk.
    kind : str
        One of `KINDS`.
    rows : tuple of int or None
        First and last row of the group that it touches.
    steps : tuple of int or None
        Their steps, as far as these can be read.
    layers : tuple of str
        The layers it touches; empty for what does not belong to layers.
    coordinates : tuple of int or None
        First and last coordinate it touches.
    reason : str
        What is wrong, as in "its checksum differs".
    """

    group: str
    array: str
    shard: str
    chunk: tuple[int, ...] | None
    kind: str
    rows: tuple[int, int] | None
    steps: tuple[int, int] | None
    layers: tuple[str, ...]
    coordinates: tuple[int, int] | None
    reason: str

    @property
    def path(self) -> str:
        """Group and array, as one path."""
        return f"{self.group}/{self.array}".strip("/") or "zarr.json"

    @property
    def sentence(self) -> str:
        """The damage in words: what, at which steps, of which layers, why."""
        parts = [self.path]
        if self.steps is not None:
            parts.append(_span("step", *self.steps))
        elif self.rows is not None:
            parts.append(_span("row", *self.rows))
        if self.layers:
            more = f" and {len(self.layers) - _SHOWN} more" if len(self.layers) > _SHOWN else ""
            name = "layer" if len(self.layers) == 1 else "layers"
            parts.append(f"{name} {', '.join(self.layers[:_SHOWN])}{more}")
        place = f" ({self._object()})" if self.shard else ""
        return f"{', '.join(parts)}: {self.reason}{place}"

    def _object(self) -> str:
        if self.chunk is None:
            return self.shard
        return f"chunk {'.'.join(map(str, self.chunk))} of {self.shard}"

    def summary(self) -> dict[str, Any]:
        """Return the damage as JSON can hold it."""
        return {**asdict(self), "path": self.path, "sentence": self.sentence}


def _span(name: str, first: int, last: int) -> str:
    return f"{name} {first}" if first == last else f"{name}s {first} to {last}"


@dataclass(frozen=True, slots=True)
class Labels:
    """What rows, layers and coordinates of a group are called, as far as that can be read.

    Parameters
    ----------
    steps : ndarray of int64, shape (row,), or None
        -1 where a label cannot be read.
    layers : tuple of str or None
        Names along ``layer``.
    owners : ndarray of int64, shape (coordinate,), or None
        Position of each coordinate's layer in `layers`.
    """

    steps: IntArray | None = None
    layers: tuple[str, ...] | None = None
    owners: IntArray | None = None


def region(form: Form, shard: Sequence[int], chunk: int | None) -> list[tuple[int, int]]:
    """Return first and last index, by dimension, that a shard or one of its chunks holds.

    Parameters
    ----------
    form : Form
        How the array is stored.
    shard : sequence of int
        Position of the shard.
    chunk : int or None
        Position of the chunk in the shard's index; None for the whole shard.
    """
    cells = [0] * len(form.cells)
    if chunk is not None:
        cells = [int(cell) for cell in np.unravel_index(chunk, form.cells)]
    found = []
    for place, cell, whole, part, size in zip(
        shard, cells, form.shard, form.chunk, form.shape, strict=True
    ):
        first = place * whole + cell * part
        extent = whole if chunk is None else part
        found.append((first, min(first + extent, size) - 1))
    return found


def describe(
    group: Group,
    array: str,
    labels: Labels,
    *,
    kind: str,
    reason: str,
    shard: str = "",
    chunk: tuple[int, ...] | None = None,
    spans: Sequence[tuple[int, int]] | None = None,
) -> Damage:
    """Return a damage with its steps and layers named.

    Parameters
    ----------
    group : Group
        The group.
    array : str
        Its array.
    labels : Labels
        Of the group.
    kind, reason, shard, chunk
        As of `Damage`.
    spans : sequence of tuple of int, optional
        First and last index by dimension. Default: the whole array.
    """
    document = group.arrays[array]
    if spans is None:
        spans = [(0, size - 1) for size in document["shape"]]
    by_dim: Mapping[str, tuple[int, int]] = dict(
        zip(document["dimension_names"], spans, strict=True)
    )
    rows = by_dim.get("step")
    coordinates = by_dim.get("coordinate")
    return Damage(
        group=group.name,
        array=array,
        shard=shard,
        chunk=chunk,
        kind=kind,
        rows=rows,
        steps=None if rows is None else _steps(labels, *rows),
        layers=_layers(labels, by_dim.get("layer"), coordinates),
        coordinates=coordinates,
        reason=reason,
    )


def _steps(labels: Labels, first: int, last: int) -> tuple[int, int] | None:
    if labels.steps is None:
        return None
    known = labels.steps[first : last + 1]
    if known.size == 0 or known[0] < 0 or known[-1] < 0:
        return None
    return int(known[0]), int(known[-1])


def _layers(
    labels: Labels, layer: tuple[int, int] | None, coordinates: tuple[int, int] | None
) -> tuple[str, ...]:
    if labels.layers is None:
        return ()
    if layer is not None:
        return labels.layers[layer[0] : layer[1] + 1]
    if coordinates is None or labels.owners is None:
        return ()
    touched = np.unique(labels.owners[coordinates[0] : coordinates[1] + 1])
    return tuple(labels.layers[owner] for owner in touched if 0 <= owner < len(labels.layers))
