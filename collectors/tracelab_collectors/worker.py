"""The thread that reduces blocks and appends rows, so that training does not wait for either."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
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
    """Start copying tensors to the host; return a function that waits and returns them."""
    if all(array.device.type != "cuda" for array in arrays.values()):
        return lambda: {name: array.detach().cpu().numpy() for name, array in arrays.items()}
    copies = {
        name: torch.empty(array.shape, dtype=array.dtype, pin_memory=True).copy_(
            array, non_blocking=True
        )
        for name, array in arrays.items()
    }
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> dict[str, Array]:
        copied.synchronize()
        return {name: copy.numpy() for name, copy in copies.items()}

    return wait
