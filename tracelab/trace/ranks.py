"""Traces of the ranks of one job: ordinary traces inside the trace of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracelab.errors import NotRecordedError, TraceError, UsageError
from tracelab.trace.inside import WORKERS
from tracelab.trace.places.locations import Location, Sink
from tracelab.trace.writing import documents

if TYPE_CHECKING:
    from tracelab.trace.reading.reader import Trace

__all__ = ["Ranks", "begin_workers", "describe_ranks", "place", "unfinished"]

MAX_RANK = 10**6
MAX_LISTED = 4096


class Ranks(Mapping[int, "Trace"]):
    """Traces of ranks by their number; each is opened when first asked for.

    Parameters
    ----------
    found : tuple of int
        The ranks there are.
    load : callable
        Opens the trace of one.
    """

    def __init__(self, found: tuple[int, ...], load: Callable[[int], Trace]) -> None:
        self._found = found
        self._load = load
        self._opened: dict[int, Trace] = {}

    def __getitem__(self, rank: int) -> Trace:
        if rank not in self._found:
            have = ", ".join(map(str, self._found)) or "none"
            raise NotRecordedError(f"this trace has no rank {rank!r}; ranks: {have}")
        if rank not in self._opened:
            self._opened[rank] = self._load(rank)
        return self._opened[rank]

    def __contains__(self, rank: object) -> bool:
        return rank in self._found

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return f"<tracelab.Ranks: {', '.join(map(str, self._found)) or 'none'}>"


def place(location: Location, rank: int, world_size: int | None = None) -> Location:
    """Return where the trace of a rank is.

    Raises
    ------
    UsageError
        If the rank is no number of a rank.
    """
    if (
        isinstance(rank, bool)
        or not isinstance(rank, int)
        or not 0 <= rank < (world_size or MAX_RANK)
    ):
        below = f"below world_size={world_size}" if world_size else f"below {MAX_RANK}"
        raise UsageError(f"rank must be an integer of at least 0 and {below}, got {rank!r}")
    return location.at(f"{WORKERS}/rank-{rank:03d}")


def describe_ranks(ranks: Mapping[int, Trace], attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is in the traces of ranks, as JSON can hold it; of a damaged one, what is wrong.

    Each has ``state``, ``run`` and ``rows`` by group. The state of a rank that has no trace where
    others have is ``missing``: it recorded nothing.

    Parameters
    ----------
    ranks : mapping of int to Trace
        Traces of ranks, by rank.
    attrs : mapping
        Attributes of the trace of the whole, which says how many ranks there are.
    """
    found: dict[int, dict[str, Any]] = {}
    sizes = [attrs.get("world_size", 0)]
    for rank in ranks:
        try:
            trace = ranks[rank]
            found[rank] = {"state": trace.state, "run": trace.run, "rows": trace.rows}
            sizes.append(trace.attrs.get("world_size", 0))
        except TraceError as error:
            found[rank] = {"state": "damaged", "run": None, "rows": {}, "problem": str(error)}
    world = max(size for size in (*sizes, max(ranks, default=-1) + 1) if type(size) is int)
    # Nobody lists a million ranks because one says so.
    listed = range(world) if found and world <= MAX_LISTED else sorted(found)
    missing: dict[str, Any] = {"state": "missing", "run": None, "rows": {}}
    return {str(rank): found.get(rank, missing) for rank in listed}


def unfinished(states: Mapping[int, str]) -> str:
    """Return which ranks' recording is not complete and why, in words; "" if all are."""
    alike: dict[str, list[int]] = {}
    for rank, state in sorted(states.items()):
        if state != "complete":
            alike.setdefault(state, []).append(rank)
    return ", ".join(
        f"rank{'s' * (len(ranks) > 1)} {_runs(ranks)} {state}" for state, ranks in alike.items()
    )


def _runs(numbers: Sequence[int]) -> str:
    """Return rising numbers in words, those that follow each other by their ends."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ", ".join(
        str(low) if low == high else f"{low}{', ' if high == low + 1 else ' to '}{high}"
        for low, high in ends
    )


def begin_workers(sink: Sink) -> None:
    """Store what makes the ranks' folder a group, for readers that list the store."""
    sink.put(f"{WORKERS}/zarr.json", [documents.dump(documents.group({}))])
