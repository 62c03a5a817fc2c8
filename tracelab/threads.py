"""Maps a function over items on threads of this process, results in the order they finish."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["unordered"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# How long a thread whose result nobody takes waits before it looks whether it is still wanted.
_LOOK_SECONDS = 0.2


# A thread that comes back from compiled code waits so long for one that interprets: not the
# interpreter's 5 ms, a third of a cell. With it two threads were 1.97 times one, without 1.86.
_SWITCH_SECONDS = 2e-4
_switching = threading.Lock()
_switched: list[float] = []


@contextmanager
def _quick_switching() -> Iterator[None]:
    """Let threads take turns more often, until the last of those who want that is done."""
    with _switching:
        _switched.append(sys.getswitchinterval())
        sys.setswitchinterval(min(_SWITCH_SECONDS, _switched[0]))
    try:
        yield
    finally:
        with _switching:
            first = _switched[0]
            _switched.pop()
            if not _switched:
                sys.setswitchinterval(first)


def unordered(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int,
    weights: Sequence[int] | None = None,
    allowed: int = 0,
) -> Generator[tuple[Item, Result | BaseException]]:
    """Yield each item with what the function returned for it, or with what it raised.

    Closing the iterator, by a break or an exception such as KeyboardInterrupt, starts no further
    item and waits for none: what is being computed is abandoned.

    Parameters
    ----------
    function : callable
        Must not depend on the order of calls.
    items : sequence
        What to call it with; taken in order.
    threads : int
        How many items are worked on at a time.
    weights : sequence of int, optional
        What each item weighs.
    allowed : int
        What may be worked on together weighs no more, unless it is a single item.
    """
    heavy = iter(zip(items, weights or [0] * len(items), strict=True))
    stopped = threading.Event()
    turn = threading.Condition()
    running = 0
    # Bounded: with a slow taker, results wait in their threads and not in memory.
    finished: queue.Queue[tuple[Item, Result | BaseException]] = queue.Queue(2 * threads)

    def begin() -> tuple[Item, int] | None:
        nonlocal running
        with turn:
            found = next(heavy, None)
            if found is None:
                return None
            # The lock is let go meanwhile: light items may pass a heavy one.
            while running and running + found[1] > allowed and not stopped.is_set():
                turn.wait(_LOOK_SECONDS)
            running += found[1]
        return found

    def end(weight: int) -> None:
        nonlocal running
        with turn:
            running -= weight
            turn.notify_all()

    def work() -> None:
        while not stopped.is_set():
            begun = begin()
            if begun is None or stopped.is_set():
                return
            item, weight = begun
            found: Result | BaseException
            try:
                found = function(item)
            except BaseException as error:
                found = error
            end(weight)
            while not stopped.is_set():
                try:
                    finished.put((item, found), timeout=_LOOK_SECONDS)
                    break
                except queue.Full:
                    continue

    try:
        with _quick_switching():
            for index in range(min(threads, len(items))):
                # Daemons: an interrupted program ends without waiting for what they compute.
                threading.Thread(target=work, name=f"tracelab-{index}", daemon=True).start()
            for _ in range(len(items)):
                yield finished.get()
    finally:
        stopped.set()
