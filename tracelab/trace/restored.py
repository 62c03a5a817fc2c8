"""A trace as its next writer takes it over: groups, their documents, the rows of begun shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracelab.trace.readback import Piece
from tracelab.trace.rows import GroupRules

__all__ = ["Restored", "RestoredGroup"]


@dataclass(frozen=True, slots=True)
class RestoredGroup:
    """A group whose committed rows go on.

    Parameters
    ----------
    rules : GroupRules
        What its rows so far have settled.
    rows : int
        How many rows it has.
    documents : mapping of str to dict
        Documents of its arrays by name, and under ``""`` its own.
    begun : mapping of str to sequence of Piece
        For each array of rows what its last shard holds, nothing if that is full.
    """

    rules: GroupRules
    rows: int
    documents: Mapping[str, dict[str, Any]]
    begun: Mapping[str, Sequence[Piece]]


@dataclass(frozen=True, slots=True)
class Restored:
    """What of a trace goes on.

    Parameters
    ----------
    attributes : mapping
        Root attributes, as the next commit shall say them.
    layers : mapping of str to dict
        Documents of the layer table, by path.
    groups : tuple of RestoredGroup
    """

    attributes: Mapping[str, Any]
    layers: Mapping[str, dict[str, Any]]
    groups: tuple[RestoredGroup, ...]
