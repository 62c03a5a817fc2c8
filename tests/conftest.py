import gc
import shutil
import signal

import hypothesis
import pytest
from traces import write_trace

import tracelab

# What a shell starts in the background ignores Ctrl-C, and so would every process that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Time says more of what else the machine does than of an example.
hypothesis.settings.register_profile("tracelab", deadline=None)
hypothesis.settings.load_profile("tracelab")


def pytest_collection_finish():
    """Let passes of the garbage collector, some libraries' own, skip what is there to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Write what `trace_path` copies."""
    return write_trace(tmp_path_factory.mktemp("small") / "small.zarr")


@pytest.fixture
def trace_path(small, tmp_path):
    return shutil.copytree(small, tmp_path / "small.zarr")


@pytest.fixture
def trace(trace_path):
    return tracelab.open(trace_path)
