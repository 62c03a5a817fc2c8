from pathlib import Path

import numpy as np
import pytest

from tracelab.errors import UsageError
from tracelab.trace.writing import documents


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        (True, True),
        ({"a": (1, 2.5), 3: "x"}, {"a": [1, 2.5], "3": "x"}),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        ([np.inf], ["Infinity"]),
        (Path("a/b"), "a/b"),
    ],
)
def test_what_json_can_say(value, wanted):
    assert documents.plain(value, "metadata") == wanted


def test_what_json_cannot_say_is_named():
    with pytest.raises(UsageError, match=r"metadata\.model\.net holds a object, which JSON"):
        documents.plain({"model": {"net": object()}}, "metadata")


def nested(depth):
    value = {"a": 1}
    for _ in range(depth):
        value = {"a": value}
    return value


CYCLE = {}
CYCLE["again"] = CYCLE


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("x" * 2**21, r"metadata takes 2,097,154 bytes and 0 values as JSON, at most 1,048,576 an"),
        (list(range(40_000)), r"metadata takes .* bytes and 40,000 values as JSON, at most .* 32,"),
        (nested(40), "metadata cannot be stored: its attributes are nested more than 32 deep"),
        (CYCLE, "metadata is nested too deeply, or holds itself"),
        ("\ud800", "metadata cannot be stored: 'utf-8' codec can't encode"),
        pytest.param(10**5000, "metadata cannot be stored: Exceeds the limit", id="digits"),
    ],
)
def test_what_a_reader_would_refuse_is_refused(value, words):
    with pytest.raises(UsageError, match=words):
        documents.plain(value, "metadata")


def test_the_root_document_consolidates_its_groups_as_zarr_python_does():
    members = {"a": documents.group({"kind": "x"})}
    inline = documents.root({}, members)["consolidated_metadata"]
    assert inline["kind"] == "inline"
    assert inline["metadata"]["a"]["consolidated_metadata"]["metadata"] == {}
    assert "consolidated_metadata" not in members["a"]
