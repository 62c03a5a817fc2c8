"""Maps a function over items on threads of this process, results in the order they finish."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

__all__ = ["unordered"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# How long a thread whose result nobody takes waits before it looks whether it is still wanted.
_LOOK_SECONDS = 0.2


def unordered(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
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
    """
    waiting = iter(items)
    taking = threading.Lock()
    stopped = threading.Event()
    # Bounded: with a slow taker, results wait in their threads and not in memory.
    finished: queue.Queue[tuple[Item, Result | BaseException]] = queue.Queue(2 * threads)

    def work() -> None:
        while not stopped.is_set():
            with taking:
                try:
                    item = next(waiting)
                except StopIteration:
                    return
            found: Result | BaseException
            try:
                found = function(item)
            except BaseException as error:
                found = error
            while not stopped.is_set():
                try:
                    finished.put((item, found), timeout=_LOOK_SECONDS)
                    break
                except queue.Full:
                    continue

    count = min(threads, len(items))
    for index in range(count):
        # Daemons: an interrupted program ends without waiting for what they compute.
        threading.Thread(target=work, name=f"tracelab-{index}", daemon=True).start()
    try:
        for _ in range(len(items)):
            yield finished.get()
    finally:
        stopped.set()
