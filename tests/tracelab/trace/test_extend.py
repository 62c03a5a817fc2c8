import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace

LAYERS = {"fc.weight": (4, 6), "fc.bias": (4,)}
ROWS = 40
# Small rows are gathered; those of `big`, over 512 KiB, are not.
VARIABLES = {
    "small": [
        Variable("a", ("step",), dtype="float64"),
        Variable("b", ("step", "x"), dtype="float32"),
        Variable("c", ("step", "x", "y"), dtype="bfloat16"),
        Variable("d", ("step", "y"), dtype="int64"),
        Variable("e", ("step", "x"), dtype="float32"),
    ],
    "big": [Variable("f", ("step", "z"), dtype="float32")],
}
SHAPES = {"a": (), "b": (5,), "c": (5, 3), "d": (3,), "e": (5,), "f": (140_000,)}


def rows_of(group, seed=0):
    rng = np.random.default_rng(seed)
    return {
        variable.name: rng.integers(0, 99, (ROWS, *SHAPES[variable.name]))
        for variable in VARIABLES[group]
    }


def shards(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("c.*")
        if file.is_file()
    }


def record(path, group, pieces, compression="none"):
    """Record rows in pieces: a number is that many rows at once, 0 one row by `append`."""
    arrays, done = rows_of(group), 0
    with create(
        path, LAYERS, overwrite=True, compression=compression, flush_seconds=3600
    ) as writer:
        writer.define(group, kind="mine", variables=VARIABLES[group])
        for piece in [*pieces, *[0] * ROWS]:
            if done == ROWS:
                break
            if piece == 0:
                row = {name: array[done] for name, array in arrays.items()}
                writer.append(group, step=2 * done, **row)
                done += 1
                continue
            part = slice(done, min(done + piece, ROWS))
            steps = range(2 * part.start, 2 * part.stop, 2)
            writer.extend(group, steps=steps, **{n: array[part] for n, array in arrays.items()})
            done = part.stop
    return shards(path / group)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    group=st.sampled_from(["small", "small", "big"]),
    pieces=st.lists(st.integers(0, 30), max_size=10),
    compression=st.sampled_from(["none", "lz4"]),
)
def test_any_split_of_rows_gives_the_same_bytes(tmp_path, group, pieces, compression):
    whole = record(tmp_path / "whole", group, [ROWS], compression)
    assert record(tmp_path / "split", group, pieces, compression) == whole
    found = open_trace(tmp_path / "split").groups[group]
    np.testing.assert_array_equal(found["step"].values, np.arange(0, 2 * ROWS, 2))
    for name, wanted in rows_of(group).items():
        np.testing.assert_array_equal(found[name].values, wanted)


@pytest.mark.parametrize("numel", [100, 200_000])
def test_what_the_caller_changes_afterwards_is_not_recorded(tmp_path, numel):
    rows = np.arange(3 * numel, dtype="f4").reshape(3, numel)
    wanted = rows.copy()
    with create(tmp_path / "a", {"w": (numel,)}) as writer:
        writer.extend("weights", steps=[0, 1, 2], full=rows)
        rows[:] = 0
    np.testing.assert_array_equal(open_trace(tmp_path / "a").weights["full"].values, wanted)


def test_no_rows_are_no_rows(tmp_path):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.extend("steps", steps=[], loss=[])
        writer.extend("steps", steps=[4], loss=[1.0])
        writer.extend("steps", steps=[], loss=[])
    assert open_trace(tmp_path / "a").steps["step"].values.tolist() == [4]


def test_more_rows_at_once_than_the_queue_holds(tmp_path):
    values = np.arange(5_000.0)
    with create(tmp_path / "a", LAYERS, queue_bytes=1_000) as writer:
        writer.extend("steps", steps=np.arange(5_000), loss=values)
    np.testing.assert_array_equal(open_trace(tmp_path / "a").steps["loss"].values, values)


@pytest.mark.parametrize(
    ("steps", "loss", "words"),
    [
        ([5, 6], [1.0], r"'loss' has the shape \(1,\), and its first dimension must be that of th"),
        ([5, 6], 1.0, r"'loss' has the shape \(\), and its first dimension must be that of the 2"),
        ([5, 7, 7], [1.0] * 3, "step 7 does not come after step 7; steps must increase"),
        ([3, 4], [1.0] * 2, "step 3 does not come after step 3"),
        ([-1, 4], [1.0] * 2, "step must be a non-negative integer, got"),
        ([5.0, 6.0], [1.0] * 2, "steps must be a sequence of integers, got an array of float64"),
        (5, [1.0], r"steps must be a sequence of integers, got an array of int64 of shape \(\)"),
        ([5, 6], ["a", "b"], "'loss' is stored as float64, got <U1"),
    ],
)
def test_rows_that_do_not_fit_leave_nothing(tmp_path, steps, loss, words):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.append("steps", step=3, loss=0.5)
        with pytest.raises(UsageError, match=words):
            writer.extend("steps", steps=steps, loss=loss)
        writer.append("steps", step=8, loss=0.25)
    assert open_trace(tmp_path / "a").steps["step"].values.tolist() == [3, 8]
