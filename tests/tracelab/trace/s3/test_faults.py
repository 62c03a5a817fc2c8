"""What goes wrong on a network: said in a sentence, repeated where that helps, bounded in time."""

import socket
import subprocess
import sys

import numpy as np
import pytest
from objectstores import RESET, Reply

import tracelab
from tracelab.errors import TraceError, UsageError
from tracelab.trace.places import remote

COMMAND = [sys.executable, "-W", "error", "-c", "from tracelab.cli import main; main()"]
LAYERS = {"w": (2, 3)}

pytestmark = pytest.mark.slow
SLOW_DOWN = Reply(503, "SlowDown", "Please reduce your request rate.")
DENIED = Reply(403, "AccessDenied", "Access Denied")
SKEWED = Reply(
    403,
    "RequestTimeTooSkewed",
    "The difference between the request time and the current time is too large.",
)


def row(step):
    return {"full": np.full(6, step, np.float32)}


def append(writer, first, last):
    for step in range(first, last):
        writer.append("gradients", step=step, **row(step))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "READ_PATIENCE", 0.5)
    monkeypatch.setattr(remote, "WRITE_PATIENCE", 1.0)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def only(method, key, fault, times=10**9):
    """Return a rule that fails some requests so many times."""
    left = [times]

    def rule(request):
        if request.method == method and request.key.endswith(key) and left[0]:
            left[0] -= 1
            return fault
        return None

    return rule


def test_no_such_bucket_is_a_usage_error(bucket):
    for act in (tracelab.open, lambda url: tracelab.create(url, LAYERS)):
        with pytest.raises(UsageError, match=r"there is no bucket 'nowhere'.*create it"):
            act("s3://nowhere/run.zarr")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (DENIED, "access is denied; check credentials and permissions"),
        (SKEWED, "clock differs too much from the server's; set the clock"),
        (SLOW_DOWN, "the server was too busy, also when asked again"),
        (RESET, "the connection broke, also when tried again; check the network"),
    ],
)
def test_a_request_that_fails_for_good_is_a_sentence(bucket, proxy, fault, words):
    tracelab.create(bucket.url(), LAYERS).close()
    proxy.fault = lambda request: fault
    for act in (tracelab.open, lambda url: tracelab.create(url, LAYERS)):
        with pytest.raises(TraceError) as raised:
            act(bucket.url())
        message = str(raised.value)
        assert words in message
        assert bucket.url() in message
        assert "\n" not in message
        assert raised.value.__cause__ is None


def test_nothing_listens_is_said_in_a_bounded_time(bucket, monkeypatch):
    with socket.socket() as taken:
        # Bound and not listening: no other process gets the port.
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(TraceError, match="the server cannot be reached; check the endpoint"):
            tracelab.open(bucket.url())


def test_no_credentials_is_said(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(TraceError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        tracelab.open(bucket.url())


def test_an_unknown_user_is_told_so(strict_bucket, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(TraceError, match=r"access is denied.*Access Key Id you provided"):
        tracelab.open(strict_bucket.url())


@pytest.mark.parametrize("fault", [SLOW_DOWN, RESET, Reply(500, "InternalError")])
def test_what_fails_in_passing_is_repeated(bucket, proxy, fault, monkeypatch):
    monkeypatch.setattr(remote, "READ_PATIENCE", 20)
    monkeypatch.setattr(remote, "WRITE_PATIENCE", 20)
    with tracelab.create(bucket.url(), LAYERS) as writer:
        proxy.fault = only("PUT", "/gradients/full/c.0.0", fault, times=3)
        append(writer, 0, 20)
        writer.flush()
        proxy.fault = only("PUT", "/run.zarr/zarr.json", fault, times=2)
        append(writer, 20, 30)
    proxy.fault = only("GET", "/gradients/full/c.0.0", fault, times=2)
    trace = tracelab.open(bucket.url())
    np.testing.assert_array_equal(trace.gradients["full"][:, 0].values, np.arange(30))
    assert trace.state == "complete"


def test_a_put_that_fails_for_good_stops_the_writer_and_counts_what_is_lost(bucket, proxy):
    writer = tracelab.create(bucket.url(), LAYERS)
    append(writer, 0, 20)
    writer.flush()
    proxy.fault = lambda request: DENIED if request.method == "PUT" else None
    append(writer, 20, 27)
    with pytest.raises(TraceError, match=r"access is denied.*lost: 7 of 'gradients'"):
        writer.flush()
    with pytest.raises(TraceError, match=r"recording to s3://.* stopped"):
        writer.append("gradients", step=30, **row(30))
    with pytest.raises(TraceError, match="7 of 'gradients'"):
        writer.close()
    proxy.fault = None
    trace = tracelab.open(bucket.url())
    np.testing.assert_array_equal(trace.gradients["full"][:, 0].values, np.arange(20))


def test_reading_that_fails_is_no_damage(bucket, proxy):
    with tracelab.create(bucket.url(), LAYERS) as writer:
        append(writer, 0, 20)
    full = tracelab.open(bucket.url()).gradients["full"]
    proxy.fault = only("GET", "c.0.0", DENIED)
    with pytest.raises(remote.RemoteError, match="access is denied"):
        full.values  # noqa: B018


def test_damage_is_found_and_named(bucket):
    with tracelab.create(bucket.url(), LAYERS, compression="none") as writer:
        append(writer, 0, 20)
    key = "run.zarr/gradients/full/c.0.0"
    content = bytearray(bucket.get(key))
    for damage, words in (
        ("flip", "checksum"),
        ("cut", "checksum|cut off|bytes"),
        ("gone", "missing"),
    ):
        if damage == "flip":
            content[5] ^= 1
        elif damage == "cut":
            del content[-9:]
        if damage == "gone":
            bucket.client.delete_object(Bucket=bucket.name, Key=key)
        else:
            bucket.client.put_object(Bucket=bucket.name, Key=key, Body=bytes(content))
        with pytest.raises(tracelab.errors.DamagedError, match=f"gradients/full of s3.*({words})"):
            tracelab.open(bucket.url()).gradients["full"].values  # noqa: B018
        assert not tracelab.verify(bucket.url()).sound


def test_the_command_line_says_it_in_one_line(bucket, moto_port):
    code = {"s3://nowhere/run.zarr": 2, bucket.url("none.zarr"): 2, "s3://u:pw@b/run.zarr": 2}
    for url, expected in code.items():
        done = subprocess.run([*COMMAND, "info", url], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (expected, "")
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "pw" not in done.stderr


ATTACHED = """
import sys, torch, tracelab
from tracelab.trace.writing.creation import create
create.__kwdefaults__["flush_seconds"] = 0.05
torch.manual_seed(0)
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with tracelab.attach(model, optimizer, sys.argv[1]) as session:
    for step in range(int(sys.argv[2])):
        if step == 20:
            print("ready", flush=True)
            sys.stdin.readline()
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    print("trained", flush=True)
"""


def test_training_goes_on_when_the_bucket_is_gone(bucket, proxy):
    process = subprocess.Popen(
        [sys.executable, "-c", ATTACHED, bucket.url(), "300"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    proxy.fault = lambda request: DENIED if request.method == "PUT" else None
    out, err = process.communicate("go\n", timeout=120)
    assert out == "trained\n"
    assert "access is denied" in err
