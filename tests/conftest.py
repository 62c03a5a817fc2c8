import pytest
from traces import write_trace

import tracelab


@pytest.fixture
def trace_path(tmp_path):
    return write_trace(tmp_path / "small.zarr")


@pytest.fixture
def trace(trace_path):
    return tracelab.open(trace_path)
