"""Objects on their way to a sink, stored by threads while the next ones are assembled."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from tracelab.trace.places.files import Part
from tracelab.trace.places.locations import Sink

__all__ = ["Outbox"]


class Outbox:
    """Stores objects in the background, in any order; `settle` puts an order between them.

    Parameters
    ----------
    sink : Sink
        Where objects go; called from as many threads as it likes. One writes while another waits
        for the disk; small objects are all waiting, for a journal or a server.
    name : str
        Of the threads.
    limit : int
        Bytes on their way beyond which `put` blocks; one object may be larger.
    on_failure : callable
        Called from a thread when an object could not be stored.
    """

    def __init__(self, sink: Sink, name: str, limit: int, on_failure: Callable[[], None]) -> None:
        self._sink = sink
        self._limit = limit
        self._on_failure = on_failure
        self._changed = threading.Condition()
        # Everything below is guarded by the condition's lock.
        self._waiting: deque[tuple[str, Sequence[Part], int]] = deque()
        self._bytes = 0
        self._objects = 0
        self._closing = False
        self._failure: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"{name} {number}", daemon=True)
            for number in range(sink.width)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def width(self) -> int:
        """How many objects are stored at a time."""
        return len(self._threads)

    def put(self, key: str, parts: Sequence[Part]) -> None:
        """Take an object, whose parts must not change before the next `settle` returns.

        Blocks while too much is on its way.

        Raises
        ------
        Exception
            Why an object since the last `settle` could not be stored.
        """
        size = sum(len(part) for part in parts)
        with self._changed:
            while self._objects and self._bytes + size > self._limit and not self._failure:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            self._waiting.append((key, parts, size))
            self._bytes += size
            self._objects += 1
            self._changed.notify_all()

    @property
    def failed(self) -> bool:
        """Whether an object could not be stored, which `settle` has not raised yet."""
        return self._failure is not None

    def settle(self) -> None:
        """Return once everything taken so far is stored.

        Raises
        ------
        Exception
            Why an object could not be.
        """
        with self._changed:
            while self._objects:
                self._changed.wait()
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """End the threads; what they have not begun is left out."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                key, parts, size = self._waiting.popleft()
                failed = self._failure is not None
            failure = None if failed else self._store(key, parts)
            # Held no longer than it is counted.
            del parts
            with self._changed:
                self._bytes -= size
                self._objects -= 1
                self._failure = self._failure or failure
                self._changed.notify_all()
            if failure is not None:
                self._on_failure()

    def _store(self, key: str, parts: Sequence[Part]) -> Exception | None:
        try:
            self._sink.put(key, parts)
        except Exception as error:
            return error
        return None
