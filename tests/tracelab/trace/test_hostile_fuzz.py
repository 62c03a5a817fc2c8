"""A root document with anything anywhere: it opens, or it is refused with a TraceError."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracelab.errors import NotRecordedError, TraceError
from tracelab.trace import create
from tracelab.trace import open as open_trace

LAYERS = {"a": (4,), "b": (2,)}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "a"
    with create(path, LAYERS, {"lr": 0.1}, compression="lz4") as writer:
        writer.define("noise", attrs={"batch_size": 8})
        for step in range(3):
            writer.append("steps", step=step, loss=step, applied=True)
            writer.append("gradients", step=step, full=np.arange(6), projected=np.ones((2, 3)))
            writer.append("noise", step=step, projected=np.ones((4, 2, 3)))
    return path, (path / "zarr.json").read_bytes()


def places(value, path=()):
    """Paths of everything in a document, down to single numbers."""
    yield path
    if isinstance(value, dict | list):
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inside, (*path, key))


def changed(document, path, change, value):
    if not path:
        return value
    *parents, last = path
    target = document
    for key in parents:
        target = target[key]
    if change == "put":
        target[last] = value
    elif change == "drop":
        del target[last]
    elif isinstance(target, dict):
        # Under another name: one that is a text, whatever it was.
        target[value if isinstance(value, str) else json.dumps(value)] = target.pop(last)
    else:
        target.insert(0, value)
    return document


NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 6, 2**20, 2**31, 2**62, 2**63, 10**18, 10**400, 0.5])
WORDS = ["", "..", "/", "a/b", "NaN", "0x00", "step", "layer", "lz4", "float32", "string", "bool"]
WORDS += ["int64", "bytes", "blosc", "crc32c", "gzip", "zstd", "transpose", "sharding_indexed"]
WORDS += ["vlen-utf8", "v2", "start", "end", "big", ".", "bfloat16", "group", "\x1b[31m", "\ud800"]
SCALARS = NUMBERS | st.sampled_from(WORDS) | st.sampled_from([None, True, False])
VALUES = st.recursive(
    SCALARS,
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "configuration", "chunk_shape"]), inside)
    ),
    max_leaves=5,
)


def look_at(path):
    """Everything that reads metadata and labels; values are another matter."""
    trace = open_trace(path)
    repr(trace)
    trace._repr_html_()
    for name in trace.groups:
        try:
            repr(trace.groups[name])
        except TraceError:
            continue
    trace.summary()
    trace.select("steps", step=1)
    gradients = trace.select("gradients", layer="a")
    if "full" in gradients:
        gradients["full"].values  # noqa: B018


def replaced_values(trace, data):
    path, content = trace
    document = json.loads(content)
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from(list(places(document))))
        change = data.draw(st.sampled_from(["put", "drop", "rename"]))
        document = changed(document, where, change, data.draw(VALUES))
        if not isinstance(document, dict):
            break
    opens_or_is_refused(path, json.dumps(document).encode(), content)


def replaced_bytes(trace, data):
    path, content = trace
    changing = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(changing) - 1))
        changing[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    opens_or_is_refused(path, bytes(changing), content)


def opens_or_is_refused(path, changed_content, content):
    (path / "zarr.json").write_bytes(changed_content)
    try:
        # A group or a layer that the change took away is one that was not recorded.
        with contextlib.suppress(TraceError, NotRecordedError):
            look_at(path)
    finally:
        (path / "zarr.json").write_bytes(content)


CALM = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=100, **CALM)
@given(data=st.data())
def test_any_value_anywhere(trace, data):
    replaced_values(trace, data)


@settings(max_examples=50, **CALM)
@given(data=st.data())
def test_any_bytes_anywhere(trace, data):
    replaced_bytes(trace, data)


@pytest.mark.slow
@settings(max_examples=3000, **CALM)
@given(data=st.data())
def test_any_value_anywhere_for_long(trace, data):
    replaced_values(trace, data)


@pytest.mark.slow
@settings(max_examples=2000, **CALM)
@given(data=st.data())
def test_any_bytes_anywhere_for_long(trace, data):
    replaced_bytes(trace, data)
