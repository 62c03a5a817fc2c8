"""The thread that reduces blocks and appends rows, so that training does not wait for either."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import cache
from queue import Full, Queue
from typing import TypeAlias

import torch
from torch import Tensor

from tracelab.typing import Array

__all__ = ["Worker", "to_host"]

Task: TypeAlias = Callable[[], None]

TASKS = 64


class Worker:
    """One background thread that runs tasks in order.

    Parameters
    ----------
    name : str
        Name of the thread.

    Notes
    -----
    A task handles its own errors.
    """

    def __init__(self, name: str) -> None:
        # Bounded, so that what waits for a slow disk stays bounded.
        self._tasks: Queue[Task | None] = Queue(TASKS)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, task: Task, *, wait: bool = True) -> bool:
        """Run `task` after all earlier ones; return False if there is no room and it may not wait.

        Parameters
        ----------
        task : callable
            The task.
        wait : bool
            Whether to wait for room.
        """
        try:
            self._tasks.put(task, block=wait)
        except Full:
            return False
        return True

    def close(self) -> None:
        """Return once every task has run and the thread has ended."""
        self._tasks.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


def to_host(arrays: Mapping[str, Tensor]) -> Callable[[], dict[str, Array]]:
    """Start copying tensors to the host; return a function that waits and returns them.

    Copies from a GPU go into pinned memory, on a stream of their own: the stream that trains goes
    on beside them.
    """
    device = next((each.device for each in arrays.values() if each.device.type == "cuda"), None)
    if device is None:
        return lambda: {name: array.detach().cpu().numpy() for name, array in arrays.items()}
    stream = _copying(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    copies = {}
    with torch.cuda.stream(stream):
        for name, array in arrays.items():
            pinned = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
            copies[name] = pinned.copy_(array.detach(), non_blocking=True)
            if array.device.type == "cuda":
                # Its memory is not given to others before the copy has been made.
                array.record_stream(stream)
        copied = torch.cuda.Event()
        copied.record(stream)

    def wait() -> dict[str, Array]:
        copied.synchronize()
        return {name: copy.numpy() for name, copy in copies.items()}

    return wait


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
