"""Saves what a running job has finished, every few seconds, so that its end loses little."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from tracelab.celltable import Table, by_step, good
from tracelab.errors import TracelabError
from tracelab.trace.resultstore.unfinished import PART_BYTES, Job
from tracelab.typing import IntArray

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

SAVE_SECONDS = 3.0
"""How often what is finished is saved."""

# Saving takes at most this share of the time.
_SHARE = 0.05


@dataclass
class _Saved:
    """A part: its name, its size, and where its cells are in the table."""

    name: str
    nbytes: int
    rows: IntArray
    columns: IntArray


@dataclass
class Keeper:
    """Saves finished cells every few seconds, in a thread of its own.

    Parts are merged as they grow, each about twice as large as the next, so that there are few
    and each cell is written a few times only.
    """

    job: Job
    table: Table
    parts: list[_Saved] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting: list[tuple[IntArray, IntArray]] = []
        self._adding = threading.Lock()
        self._saving = threading.Lock()
        self._ended = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="tracelab-save", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def pending(self) -> int:
        """Number of finished cells that are not saved."""
        with self._adding:
            return sum(len(rows) for rows, _ in self._waiting)

    def add(self, rows: IntArray, columns: IntArray) -> None:
        """Take note of cells that were put into the table; the good ones are to be kept."""
        place = (rows, columns) if by_step(self.table.plan.analysis) else (columns,)
        fine = good(self.table.outputs["status"][place])
        rows, columns = rows[fine], columns[fine]
        with self._adding:
            self.table.have[rows, columns] = True
            self._waiting.append((rows, columns))

    def save(self) -> None:
        """Save what is finished now."""
        with self._saving:
            with self._adding:
                waiting, self._waiting = self._waiting, []
            if not sum(len(rows) for rows, _ in waiting):
                return
            rows, columns = (np.concatenate(each) for each in zip(*waiting, strict=True))
            try:
                self._write(rows, columns)
            except (OSError, TracelabError) as error:
                with self._adding:
                    self._waiting.insert(0, (rows, columns))
                if not self._complained:
                    logger.warning(
                        "%s: what is finished so far cannot be saved (%s); computing goes on",
                        self.job.kind.analysis,
                        getattr(error, "strerror", None) or error,
                    )
                self._complained = True

    def _write(self, rows: IntArray, columns: IntArray) -> None:
        nbytes = self.table.take(rows, columns).nbytes
        merged: list[_Saved] = []
        for part in reversed(self.parts):
            if part.nbytes > 2 * nbytes or part.nbytes + nbytes > PART_BYTES:
                break
            rows = np.concatenate([part.rows, rows])
            columns = np.concatenate([part.columns, columns])
            nbytes += part.nbytes
            merged.append(part)
        count = max(1, -(-nbytes // PART_BYTES))
        written = []
        for piece in np.array_split(np.arange(len(rows)), count):
            cells = self.table.take(rows[piece], columns[piece])
            written.append(_Saved(self.job.save(cells), cells.nbytes, rows[piece], columns[piece]))
        self.parts = [part for part in self.parts if part not in merged] + written
        for part in merged:
            self.job.drop(part.name)

    def _run(self) -> None:
        pause = SAVE_SECONDS
        while not self._ended.wait(pause):
            before = time.perf_counter()
            self.save()
            pause = max(SAVE_SECONDS, (time.perf_counter() - before) / _SHARE)
