import signal

import pytest
from traces import write_trace

import tracelab

# What a shell starts in the background ignores Ctrl-C, and so would every process that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def trace_path(tmp_path):
    return write_trace(tmp_path / "small.zarr")


@pytest.fixture
def trace(trace_path):
    return tracelab.open(trace_path)
