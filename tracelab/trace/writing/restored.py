"""A trace as its next writer takes it over: groups, their documents, the rows of begun shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracelab.trace.writing.readback import Piece
from tracelab.trace.writing.rows import GroupRules

__all__ = ["Restored", "RestoredGroup", "interrupted"]


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

    def members(self) -> dict[str, dict[str, Any]]:
        """Return the documents by path."""
        name = self.rules.name
        return {f"{name}/{array}".rstrip("/"): each for array, each in self.documents.items()}


@dataclass(frozen=True, slots=True)
class Restored:
    """What of a trace goes on.

    Parameters
    ----------
    layers : mapping of str to dict
        Documents of the layer table, by path.
    groups : tuple of RestoredGroup
    """

    layers: Mapping[str, dict[str, Any]]
    groups: tuple[RestoredGroup, ...]


def interrupted(attributes: Mapping[str, Any], reason: str) -> dict[str, list[str]]:
    """Return the root attributes of a recording that ends for a reason that resuming lifts."""
    return {
        name: [*attributes.get(name, []), reason]
        for name in ("incomplete_reasons", "interruptions")
    }
