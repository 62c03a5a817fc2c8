import numpy as np
import pytest
import xarray as xr

from tracelab.reporting.numbers import (
    MAX_ROWS,
    headline,
    number,
    row_label,
    status_counts,
    table,
    value_text,
)
from tracelab.typing import Status


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1437, "1,437"),
        (np.int64(-3), "-3"),
        (True, "yes"),
        (np.False_, "no"),
        (0.0, "0"),
        (0.0314159, "0.03142"),
        (274.13, "274.1"),
        (54_607.2, "54,607"),
        (1_234_567.0, "1.235e+06"),
        (2.5e-7, "2.5e-07"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (-np.inf, "−∞"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_fewer_digits():
    assert number(0.0314159, 3) == "0.0314"
    assert number(274.13, 3) == "274"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        ("SGD", "SGD"),
        ({"lr": 0.1, "betas": [0.9, 0.999]}, "lr = 0.1, betas = (0.9, 0.999)"),
        (np.array([1, 2]), "(1, 2)"),
        ({"a": {"b": True}}, "a = b = yes"),
    ],
)
def test_value_text(value, text):
    assert value_text(value) == text


def by_step(steps, status=None):
    count = len(steps)
    alpha = np.linspace(2, 1, count)[:, None] * [0.5, 1.0]
    flags = np.zeros((count, 2), np.uint8) if status is None else status
    cell = ("step", "layer")
    return xr.Dataset(
        {
            "alpha": (cell, alpha, {"long_name": "index"}),
            "alpha_low": (cell, alpha - 0.1),
            "alpha_high": (cell, alpha + 0.1),
            "alpha_se": (cell, alpha * 0),
            "alpha_control": (cell, alpha * 0 + 2),
            "other": (cell, alpha),
            "n_batches": (cell, np.full((count, 2), 512)),
            "status": (cell, flags, Status.attributes()),
        },
        coords={"step": list(steps), "layer": ["fc", "network"]},
    )


def test_a_table_by_step_shows_the_network_with_interval_control_and_size():
    found = table(by_step([0, 1000]))
    assert found.header == ("step", "alpha", "alpha_control", "n_batches", "status")
    assert found.rows == (
        ("0", "2 [1.9, 2.1]", "2", "512", "ok"),
        ("1,000", "1 [0.9, 1.1]", "2", "512", "ok"),
    )
    assert found.subject == "network, by step"
    assert found.note == ""


def test_without_network_the_last_layer_speaks():
    result = by_step([0, 1]).sel(layer=["fc"])
    assert row_label(result) == "fc"
    assert table(result).subject == "fc, by step"


def test_long_tables_keep_both_ends_and_say_so():
    found = table(by_step(range(500)))
    assert len(found.rows) == MAX_ROWS
    assert (found.rows[0][0], found.rows[-1][0]) == ("0", "499")
    assert found.note == f"{MAX_ROWS} of 500 steps"


def test_a_result_without_steps_is_shown_by_layer():
    result = by_step([0, 1]).isel(step=0, drop=True)
    found = table(result)
    assert found.header[0] == "layer"
    assert [row[0] for row in found.rows] == ["fc", "network"]
    assert headline(result).values == (("", "2 [1.9, 2.1]"),)


def test_further_dims_become_columns():
    rate = np.array([[[0.1, 0.2]]])
    cell = ("step", "layer", "test")
    result = xr.Dataset(
        {
            "rate": (cell, rate),
            "rate_low": (cell, rate),
            "rate_high": (cell, rate),
            "status": (("step", "layer"), np.zeros((1, 1), np.uint8)),
        },
        coords={"step": [5], "layer": ["network"], "test": ["one", "two"]},
    )
    found = table(result)
    assert found.header == ("step", "rate (one)", "rate (two)", "status")
    # An interval of no width is no interval: the pooled modes have none.
    assert found.rows == (("5", "0.1", "0.2", "ok"),)
    assert headline(result).quantity == "rate (one)"


def test_the_headline_takes_the_first_and_last_step_that_are_ok():
    status = np.zeros((4, 2), np.uint8)
    status[[0, 3], 1] = int(Status.FAILED)
    line = headline(by_step([0, 10, 20, 30], status))
    assert line.quantity == "index"
    assert line.values == (("step 10", "1.67 [1.57, 1.77]"), ("step 20", "1.33 [1.23, 1.43]"))


def test_the_headline_says_when_nothing_is_ok():
    result = by_step([0, 1], np.full((2, 2), int(Status.FAILED), np.uint8))
    assert headline(result).values == (("", "no cell is ok"),)
    assert headline(result.isel(step=0, drop=True)).values == (("", "failed"),)


def test_status_counts_name_what_occurs_and_always_ok():
    status = np.array([[2, 2], [5, 3]], np.uint8)
    assert status_counts(by_step([0, 1], status)) == {
        "ok": 0,
        "too few samples": 2,
        "non finite input": 1,
        "failed": 1,
    }


def test_a_result_of_another_table_of_statuses_is_counted_by_its_own_words():
    result = by_step([0])
    result["status"] = result["status"].assign_attrs(flag_values=[0, 9], flag_meanings="fine odd")
    result["status"][0, 0] = 9
    assert status_counts(result) == {"fine": 1, "odd": 1}
