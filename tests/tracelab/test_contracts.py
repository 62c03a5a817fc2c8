import numpy as np
import pytest

from tracelab.contracts import Analysis, Finding, Parameter, Reference, Variable
from tracelab.errors import MissingExtraError, NotRecordedError, UsageError
from tracelab.typing import Status

LEVEL = Parameter("level", 0.05, "a level", low=0.0, high=0.5)
COUNT = Parameter("count", 10, "a count", low=1)
MODE = Parameter("mode", "a", "a choice", choices=("a", "b"))
TESTS = Parameter("tests", ("x", "y"), "several", choices=("x", "y", "z"))
FLAG = Parameter("flag", False, "a flag")
SIZE = Parameter("size", None, "an optional number", low=1)


@pytest.mark.parametrize(
    ("parameter", "given", "wanted"),
    [
        (LEVEL, "0.1", 0.1),
        (LEVEL, 0, 0.0),
        (COUNT, "12", 12),
        (COUNT, 12.0, 12),
        (COUNT, np.int64(3), 3),
        (MODE, "b", "b"),
        (TESTS, "x,z", ("x", "z")),
        (TESTS, ["z"], ("z",)),
        (FLAG, "true", True),
        (FLAG, np.True_, True),
        (SIZE, "none", None),
        (SIZE, None, None),
        (SIZE, "64", 64),
        (SIZE, 1.5, 1.5),
    ],
)
def test_parse_gives_the_parameters_type(parameter, given, wanted):
    parsed = parameter.parse(given)
    assert parsed == wanted
    assert type(parsed) is type(wanted)


@pytest.mark.parametrize(
    ("parameter", "given", "words"),
    [
        (LEVEL, "much", r"'level' must be a number in \[0, 0.5\], got 'much'"),
        (LEVEL, 0.6, r"'level' must be a number in \[0, 0.5\], got 0.6"),
        (LEVEL, float("nan"), "'level' must be a number"),
        (LEVEL, None, "got None"),
        (COUNT, 1.5, r"'count' must be an integer in \[1, inf\], got 1.5"),
        (COUNT, True, "got True"),
        (COUNT, 0, "got 0"),
        (MODE, "c", "'mode' must be one of a, b, got 'c'"),
        (MODE, 3, "got 3"),
        (TESTS, "x,q", "'tests' must be one or more of x, y, z, got 'q'"),
        (FLAG, "maybe", "'flag' must be true or false, got 'maybe'"),
        (FLAG, 1, "got 1"),
        (SIZE, 0, "got 0"),
    ],
)
def test_parse_refuses_in_one_sentence(parameter, given, words):
    with pytest.raises(UsageError, match=words):
        parameter.parse(given)


def make(**changes):
    values = {
        "name": "example",
        "summary": "an example",
        "version": 1,
        "inputs": (),
        "outputs": (Variable("status", ("layer",), dtype="uint8"),),
        "cell": ("layer",),
        "kernel": dict,
        "finding": lambda result: Finding("nothing"),
        "plot": lambda results: None,
        "references": (Reference("nobody"),),
        "parameters": (LEVEL, MODE),
    }
    return Analysis(**{**values, **changes})


def test_resolve_fills_in_defaults():
    assert make().resolve({"level": "0.2"}) == {"level": 0.2, "mode": "a"}


def test_resolve_refuses_an_unknown_name_and_lists_the_known():
    with pytest.raises(UsageError, match="'example' has no parameter 'levle'; it has: level, mode"):
        make().resolve({"levle": 1})
    with pytest.raises(UsageError, match="it has: none"):
        make(parameters=()).resolve({"level": 1})


def test_status_decodes_with_cf_attributes():
    attributes = Status.attributes()
    meanings = attributes["flag_meanings"].split()
    assert dict(zip(attributes["flag_values"], meanings, strict=True))[3] == "non_finite_input"


def test_errors_can_be_caught_by_their_builtin_kind():
    assert issubclass(UsageError, ValueError)
    assert issubclass(NotRecordedError, LookupError)
    error = MissingExtraError("matplotlib", "report", "a report")
    assert isinstance(error, ImportError)
    assert "pip install 'tracelab[report]'" in str(error)
