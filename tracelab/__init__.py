"""Record the gradient noise of a training run, analyse it, and query the results.

>>> import tracelab
>>> with tracelab.attach(model, optimizer, "runs/sgd.zarr"):  # doctest: +SKIP
...     train(model, optimizer)
>>> trace = tracelab.open("runs/sgd.zarr")  # doctest: +SKIP
>>> tracelab.analyze(trace, ["noise_scale"])  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracelab import stats as stats
    from tracelab.jobs import analyze as analyze
    from tracelab.kronecker import Kronecker as Kronecker
    from tracelab.reporting import report as report
    from tracelab.runs import open_runs as open_runs
    from tracelab.schedule import log_spaced as log_spaced
    from tracelab.sketch import Full as Full
    from tracelab.sketch import Histogram as Histogram
    from tracelab.sketch import Project as Project
    from tracelab.sketch import Sample as Sample
    from tracelab.trace import Trace as Trace
    from tracelab.trace import Writer as Writer
    from tracelab.trace import create as create
    from tracelab.trace import open as open
    from tracelab.trace.hdf5 import export_hdf5 as export_hdf5
    from tracelab.trace.hdf5 import import_hdf5 as import_hdf5
    from tracelab.trace.health.repairing import repair as repair
    from tracelab.trace.health.verification import verify as verify

    # Type checkers would take `tracelab/attach.py`, which can only be run, for it.
    attach: Callable[..., Any]

__version__ = "0.1.0"

__all__ = [
    "Full",
    "Histogram",
    "Kronecker",
    "Project",
    "Sample",
    "Trace",
    "Writer",
    "__version__",
    "analyze",
    "attach",
    "create",
    "export_hdf5",
    "import_hdf5",
    "log_spaced",
    "open",
    "open_runs",
    "repair",
    "report",
    "stats",
    "verify",
]

# Imported on first use: `tracelab --help` and a training script pay for what they touch.
_HOMES = {
    "Full": "tracelab.sketch",
    "Histogram": "tracelab.sketch",
    "Kronecker": "tracelab.kronecker",
    "Project": "tracelab.sketch",
    "Sample": "tracelab.sketch",
    "Trace": "tracelab.trace",
    "Writer": "tracelab.trace",
    "analyze": "tracelab.jobs",
    "create": "tracelab.trace",
    "export_hdf5": "tracelab.trace.hdf5",
    "import_hdf5": "tracelab.trace.hdf5",
    "log_spaced": "tracelab.schedule",
    "open": "tracelab.trace",
    "open_runs": "tracelab.runs",
    "repair": "tracelab.trace.health.repairing",
    "report": "tracelab.reporting",
    "verify": "tracelab.trace.health.verification",
}


def __getattr__(name: str) -> Any:
    if name == "attach":
        found = import_module("tracelab.registry").recorder("torch")
    elif name == "stats":
        return import_module("tracelab.stats")
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'tracelab' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
