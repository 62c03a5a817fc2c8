"""A real scheduler and real workers on loopback, as processes that tests may kill."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from distributed import Client

HERE = Path(__file__).parent


class Processes:
    """A scheduler and its workers.

    Parameters
    ----------
    folder : Path
        For their files.
    """

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler = None
        self.workers = []

    def start_scheduler(self):
        self.scheduler = self._start(
            "distributed.cli.dask_scheduler",
            *("--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"),
        )
        self._wait(0)

    def start_workers(self, count=4, *, nanny=False, memory="1GiB"):
        """Start workers and return once the scheduler knows them."""
        known = self._known()
        for _ in range(count):
            worker = self._start(
                "distributed.cli.dask_worker",
                self.address,
                *("--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard"),
                *("--memory-limit", memory, "--nanny" if nanny else "--no-nanny"),
                *("--local-directory", str(self.folder), "--death-timeout", "60"),
            )
            self.workers.append(worker)
        self._wait(known + count)

    def kill_scheduler(self):
        self.scheduler.kill()
        self.scheduler.wait()

    def stop(self):
        for process in (*self.workers, self.scheduler):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _start(self, module, *options):
        # Quick to notice what died, so that tests are.
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "2",
        }
        log = self.folder / f"{module.rpartition('_')[2]}-{time.monotonic_ns()}.log"
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", module, *options],
                env=environment,
                stdout=file,
                stderr=file,
                # A group of its own: nannies have children.
                start_new_session=True,
                cwd=self.folder,
            )

    def _known(self):
        with Client(self.address, timeout=60, set_as_default=False) as client:
            return len(client.nthreads())

    def _wait(self, workers):
        with Client(self.address, timeout=60, set_as_default=False) as client:
            if workers:
                client.wait_for_workers(workers, timeout=60)
