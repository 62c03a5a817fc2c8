import os

import psutil
import pytest

from tracelab import engine
from tracelab.errors import UsageError


def listening():
    """Return the addresses on which this process and its children listen."""
    here = psutil.Process()
    return {
        connection.laddr.ip
        for process in (here, *here.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_embedded_clusters_listen_on_loopback_and_do_not_clash():
    execution = engine.Execution(workers=1)
    with engine._client(execution), engine._client(execution):
        assert listening() == {"127.0.0.1"}


def test_memory_bounds_the_threads(monkeypatch):
    """A task needs about eight times its block; at least one thread runs whatever the bound."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    class Cut:
        block_bytes = 2**20

    assert engine._threads(Cut, engine.Execution()) == 16
    assert engine._threads(Cut, engine.Execution(memory="32MiB")) == 4
    assert engine._threads(Cut, engine.Execution(memory="1KiB")) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"memory": "much"}, "memory must be a positive size such as '4GiB', got 'much'"),
        ({"memory": -1}, "memory must be a positive size"),
    ],
)
def test_where_to_run_is_checked_at_once(options, words):
    with pytest.raises(UsageError, match=words):
        engine.Execution(**options)
