import re
from pathlib import Path

import numpy as np
import pytest

from tracelab.trace.schema import DTYPES, KINDS, NAME, array_attributes, fill_value

STATISTICS = ["norm", "mean", "moment2", "moment3", "moment4"]
QUANTITIES = ["gradient", "weight", "update", "displacement"]
STATISTICS += ["abs_max", "log_abs_mean", "log_abs_var", "zeros", "nonfinite"]

QUANTITY = "^(gradient|weight|update|displacement|momentum|second_moment|effective_step)_"


def test_every_variable_is_indexed_by_step_and_has_a_unit_a_dtype_and_a_description():
    for kind in KINDS.values():
        names = [variable.name for variable in kind.variables]
        assert len(set(names)) == len(names)
        for variable in kind.variables:
            assert variable.dims[0] == "step"
            assert variable.dtype in DTYPES - {"string"}
            assert NAME.fullmatch(variable.name)
            assert array_attributes(variable)["units"] == variable.units != ""
            assert array_attributes(variable)["long_name"] == variable.description != ""


def test_statistics_are_ten_of_each_quantity_and_the_distance():
    wanted = {f"{q}_{name}" for q in QUANTITIES for name in STATISTICS}
    assert set(KINDS["statistics"].names()) == wanted | {"distance"}


@pytest.mark.parametrize(
    ("kind", "name", "units"),
    [
        ("steps", "loss", "loss"),
        ("steps", "learning_rate", "weight^2/loss"),
        ("steps", "wall_time", "s"),
        ("statistics", "gradient_norm", "loss/weight"),
        ("statistics", "gradient_moment2", "(loss/weight)^2"),
        ("statistics", "gradient_moment4", "(loss/weight)^4"),
        ("statistics", "weight_moment3", "weight^3"),
        ("statistics", "update_mean", "weight"),
        ("statistics", "gradient_log_abs_mean", "1"),
        ("statistics", "distance", "weight"),
        ("gradients", "projected", "loss/weight"),
        ("gradients", "histogram", "1"),
        ("noise", "sampled", "loss/weight"),
        ("noise", "mean_full", "loss/weight"),
        ("noise", "squared_norm", "(loss/weight)^2"),
        ("noise", "mean_squared_norm", "(loss/weight)^2"),
        ("noise", "mean_loss", "loss"),
        ("noise", "batch_mean", "loss/weight"),
        ("noise", "variance", "(loss/weight)^2"),
        ("noise", "variance_square_sum", "(loss/weight)^4"),
        ("optimizer_state", "momentum_projected", "loss/weight"),
        ("optimizer_state", "second_moment_moment2", "((loss/weight)^2)^2"),
        ("optimizer_state", "effective_step_sampled", "weight^2/loss"),
        ("weights", "full", "weight"),
        ("weights", "distance", "weight"),
    ],
)
def test_units(kind, name, units):
    assert KINDS[kind][name].units == units


def test_the_page_on_the_format_names_every_kind_and_array():
    page = (Path(__file__).parents[3] / "docs/format.md").read_text()
    for kind in KINDS.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{kind.name}`"))
        for name in kind.names():
            suffix = re.sub(QUANTITY, "_", name)
            assert f"`{name}`" in row or f"`{suffix}`" in row, name


def test_noise_keeps_batches_and_their_mean_in_the_same_sketch():
    noise = KINDS["noise"]
    for sketch in ("projected", "sampled", "full"):
        dims = noise[sketch].dims
        assert dims[:2] == ("step", "batch")
        assert noise[f"mean_{sketch}"].dims == (dims[0], *dims[2:])


def test_what_is_missing_is_nan_or_false_and_integers_cannot_be_missing():
    assert np.isnan(fill_value("float32"))
    assert fill_value("float64").dtype == np.float64
    assert fill_value("bool") == np.False_
    assert fill_value("int64") is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "a\n", "a" * 129, "ä"])
def test_a_name_is_one_plain_path_segment(name):
    assert not NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["noise", "late_gradients", "a.b-c", "..."])
def test_plain_names(name):
    assert NAME.fullmatch(name)
