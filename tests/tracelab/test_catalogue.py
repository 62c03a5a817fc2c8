import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelab import catalogue
from tracelab.errors import UsageError

ATTRS = {
    "format": "tracelab",
    "optimizer": {"name": "Adam", "lr": 0.1, "betas": [0.9, 0.999], "fused": None},
    "model": {"name": "Net", "parameters": 10, "tied": {}, "frozen": []},
    "metadata": {"dataset": "digits", "data": {"n": 5, "lr": 3}, "long": list(range(100))},
    "seed": 7,
}


def test_flat_columns_name_where_they_come_from():
    assert catalogue.flatten(ATTRS) == {
        "metadata.dataset": "digits",
        "metadata.data.n": 5,
        "metadata.data.lr": 3,
        "optimizer": "Adam",
        "optimizer.lr": 0.1,
        "optimizer.betas": "0.9, 0.999",
        "optimizer.fused": None,
        "model": "Net",
        "model.parameters": 10,
        "seed": 7,
    }


@pytest.mark.parametrize("attrs", [{}, {"optimizer": None}, {"metadata": []}, {"seed": "x"}])
def test_attributes_that_say_nothing(attrs):
    assert catalogue.flatten(attrs) == {}


def test_an_optimizer_that_is_only_a_name():
    assert catalogue.flatten({"optimizer": "SGD"}) == {"optimizer": "SGD"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [("seed", "seed"), ("n", "metadata.data.n"), ("data.n", "metadata.data.n")],
)
def test_a_name_may_be_short_where_it_is_clear(name, meant):
    assert catalogue.column(name, catalogue.flatten(ATTRS)) == meant


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lr", "'lr' can be metadata.data.lr or optimizer.lr; give the whole name"),
        ("datset", "did you mean 'metadata.dataset'"),
        ("zzz", "there are: metadata.dataset, "),
    ],
)
def test_a_name_that_cannot_be_understood(name, sentence):
    with pytest.raises(UsageError, match=sentence):
        catalogue.column(name, catalogue.flatten(ATTRS))


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (0.1, 0.1, True),
        (1, 1.0, True),
        (True, 1, False),
        (1, True, False),
        ("SGD", ["SGD", "Adam"], True),
        ("SGD", "sgd", False),
        (0.1, slice(0.1, 0.2), True),
        (0.2, slice(0.1, 0.2), True),
        (0.3, slice(None, 0.2), False),
        (None, slice(None, None), False),
        ("SGD", slice(0, 1), False),
        (None, None, True),
        (None, lambda value: True, False),
        (3, lambda value: value > 2, True),
    ],
)
def test_matching(value, wanted, expected):
    assert catalogue.matches(value, wanted) is expected


def test_a_range_has_no_step():
    with pytest.raises(UsageError, match="no step"):
        catalogue.matches(1, slice(0, 1, 2))


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_conditions_compare_as_python_does(value, bound):
    truth = {
        "=": value == bound,
        "!=": value != bound,
        "<": value < bound,
        "<=": value <= bound,
        ">": value > bound,
        ">=": value >= bound,
    }
    for sign, expected in truth.items():
        # JSON spells infinities as Python's json module does.
        text = str(bound).replace("inf", "Infinity")
        name, wanted = catalogue.parse_condition(f"lr {sign} {text}")
        assert name == "lr"
        assert catalogue.matches(value, wanted) is expected


@pytest.mark.parametrize(
    ("text", "name", "value", "expected"),
    [
        ("optimizer=SGD|Adam", "optimizer", "Adam", True),
        ("optimizer=SGD|Adam", "optimizer", "SGD|Adam", False),
        ("nesterov=true", "nesterov", True, True),
        ("fused=null", "fused", None, True),
        ('name="0.1"', "name", "0.1", True),
        ("a.b=c=d", "a.b", "c=d", True),
        ("optimizer<5", "optimizer", "SGD", False),
        ("x=", "x", "", True),
    ],
)
def test_conditions_as_texts(text, name, value, expected):
    found, wanted = catalogue.parse_condition(text)
    assert found == name
    assert catalogue.matches(value, wanted) is expected


@pytest.mark.parametrize("text", ["", "lr", "=3", "<3", "__import__('os')"])
def test_what_is_no_condition(text):
    with pytest.raises(UsageError, match="a condition is KEY=VALUE"):
        catalogue.parse_condition(text)
