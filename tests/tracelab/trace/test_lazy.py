"""Lazy arrays: the values of a part, read directly, are those that Dask computes."""

import dask
import dask.array
import numpy as np
import pytest
import xarray as xr
from dask.callbacks import Callback
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.trace.reading.lazy import chunks, lazy


class Counted:
    """An array that remembers what was asked of it."""

    def __init__(self, values):
        self.values = values
        self.asked = []

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)

    def __getitem__(self, selection):
        self.asked.append(selection)
        return self.values[selection]


def document(shape, chunk, shard=None, dtype="float32"):
    sharding = {"name": "sharding_indexed", "configuration": {"chunk_shape": list(chunk)}}
    return {
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"configuration": {"chunk_shape": list(shard or chunk)}},
        "codecs": [sharding if shard else {"name": "bytes"}],
    }


VALUES = np.arange(6 * 10 * 3, dtype=np.float32).reshape(6, 10, 3)


def made():
    stored = Counted(VALUES)
    return stored, lazy(stored, document(VALUES.shape, (2, 5, 3), (4, 5, 3)), "a")


def test_making_it_reads_nothing():
    stored, array = made()
    array[1:, 2][::2].sum()
    xr.DataArray(array, dims=("x", "y", "z")).isel(x=1).transpose()
    assert stored.asked == []


STEPS = st.integers(-3, 3).filter(bool)
PARTS = st.integers(0, 2) | st.builds(slice, st.integers(-9, 9), st.integers(-9, 9), STEPS)


@settings(max_examples=150)
@given(st.lists(st.lists(PARTS, max_size=3).map(tuple), max_size=3), st.booleans())
def test_values_of_a_part_of_a_part(indexes, dots):
    stored, array = made()
    expected = VALUES
    for index in indexes:
        index = (*index, ...) if dots else index
        try:
            expected = expected[index]
        except IndexError:
            return
        array = array[index]
        if array.shape != expected.shape:
            # Dask's own mistake: it takes x[-4:0:-1] of three elements for two of them.
            assert type(array) is dask.array.Array
            return
    found = np.asarray(array)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert len(stored.asked) == 1 or not expected.size or type(array) is dask.array.Array
    np.testing.assert_array_equal(array.compute(), expected)


def test_one_read_for_the_values_of_a_variable():
    stored, array = made()
    variable = xr.DataArray(array, dims=("x", "y", "z"), coords={"x": [0, 10, 20, 30, 40, 50]})
    part = variable.sel(x=slice(10, 40)).isel(y=[3]).isel(y=0, z=slice(None, None, -1))
    np.testing.assert_array_equal(part.values, VALUES[1:5, 3, ::-1])
    stored.asked.clear()
    part = variable.sel(x=slice(10, 40)).isel(y=3, z=slice(None, None, -1))
    np.testing.assert_array_equal(part.values, VALUES[1:5, 3, ::-1])
    assert len(stored.asked) == 1
    assert np.asarray(part.data, dtype=np.float64).dtype == np.float64


def test_who_says_how_is_obeyed(monkeypatch):
    monkeypatch.setattr("tracelab.trace.reading.lazy.TASK_BYTES", 64)
    stored, array = made()
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(np.asarray(array), VALUES)
    assert len(stored.asked) == array.npartitions > 1
    stored.asked.clear()
    seen = []
    with Callback(start=seen.append):
        np.testing.assert_array_equal(np.asarray(array), VALUES)
    assert len(seen) == 1

    def never(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=never), pytest.raises(AssertionError, match="computed"):
        np.asarray(array)


def test_what_is_changed_in_place_is_not_what_is_stored():
    _, array = made()
    array[0, 0, 0] = -1
    expected = VALUES.copy()
    expected[0, 0, 0] = -1
    np.testing.assert_array_equal(np.asarray(array), expected)
    np.testing.assert_array_equal(np.asarray(array[0]), expected[0])


def test_what_is_computed_from_it_is_an_ordinary_array():
    _, array = made()
    for found, expected in (
        (array + 1, VALUES + 1),
        (array.sum(axis=0), VALUES.sum(axis=0)),
        (array[[3, 1]], VALUES[[3, 1]]),
        (array[:, array[0, :, 0] > 3], VALUES[:, VALUES[0, :, 0] > 3]),
        (array.rechunk((6, 2, 1)), VALUES),
        (array[None], VALUES[None]),
    ):
        assert type(found) is dask.array.Array
        np.testing.assert_array_equal(np.asarray(found), expected)
    np.testing.assert_array_equal(array.persist(), VALUES)


@pytest.mark.parametrize(
    ("shape", "chunk", "shard", "expected"),
    [
        # Steps first, up to a shard's, then coordinates up to 16 MiB.
        ((128, 10**6), (16, 16_384), (64, 262_144), (64, 65_536)),
        ((100_000,), (4096,), (65_536,), (131_072,)),
        # Cells of 32 kB: 512 of them.
        ((1000, 512, 20, 16), (1, 512, 1, 16), (1024, 512, 20, 16), (512, 512, 1, 16)),
        # No part of a chunk, however large.
        ((10, 10**8), (1, 10**8), (1, 10**8), (1, 10**8)),
        # Small shards, several of them.
        ((1000, 8), (1, 8), (2, 8), (1000, 8)),
        ((0, 8), (16, 8), (64, 8), (64, 8)),
        ((), (), None, ()),
        ((100,), (10,), None, (100,)),
    ],
)
def test_what_a_task_reads(shape, chunk, shard, expected):
    assert chunks(document(shape, chunk, shard)) == expected
