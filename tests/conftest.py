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


@pytest.fixture
def trace_path(tmp_path):
    return write_trace(tmp_path / "small.zarr")


@pytest.fixture
def trace(trace_path):
    return tracelab.open(trace_path)
