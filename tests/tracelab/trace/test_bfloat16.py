import json

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.trace import bfloat16, create
from tracelab.trace import open as open_trace

LAYERS = {"fc.weight": (4, 6), "fc.bias": (4,)}


def rounded(values):
    """The same by torch, back in float32."""
    return torch.from_numpy(np.array(values, "f4")).bfloat16().float().numpy()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_rounds_as_torch_does(bits):
    values = np.array(bits, np.uint32).view(np.float32)
    found = bfloat16.decode(bfloat16.encode(values))
    np.testing.assert_array_equal(found, rounded(values))


def test_every_bfloat16_keeps_its_bits():
    bits = np.arange(2**16, dtype=np.uint16)
    values = bfloat16.decode(bits)
    found = bfloat16.encode(values)
    np.testing.assert_array_equal(found[~np.isnan(values)], bits[~np.isnan(values)])
    assert np.isnan(bfloat16.decode(found[np.isnan(values)])).all()


def test_ties_go_to_even_and_nothing_is_clamped():
    largest = np.finfo(np.float32).max
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, largest, -np.inf], "f4")
    found = bfloat16.decode(bfloat16.encode(values))
    assert found.tolist() == [1, 1 + 2**-6, 1 + 2**-7, np.inf, -np.inf]


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_sketches_of_a_group(tmp_path, compression):
    rng = np.random.default_rng(0)
    full = rng.standard_normal((40, 28))
    norm = rng.standard_normal((40, 2))
    full[7, :3] = [np.nan, np.inf, 1e-40]
    with create(tmp_path / "a", LAYERS, compression=compression) as writer:
        writer.define("weights", dtype="bfloat16")
        for step in range(40):
            row = {"norm": norm[step]} if step == 5 else {"full": full[step], "norm": norm[step]}
            writer.append("weights", step=step, **row)
            if step == 20:
                writer.flush()
    full[5] = np.nan
    weights = open_trace(tmp_path / "a").weights
    assert weights["full"].dtype == np.float32
    assert weights["full"].chunks is not None
    np.testing.assert_array_equal(weights["full"].values, rounded(full))
    np.testing.assert_array_equal(weights["full"][3:9, 2].values, rounded(full[3:9, 2]))
    # Norms are no sketches.
    np.testing.assert_array_equal(weights["norm"].values, norm)
    plain = xr.open_datatree(tmp_path / "a", engine="zarr")["weights"]["full"]
    assert plain.dtype == np.uint16
    assert plain.attrs["stored_dtype"] == "bfloat16"
    np.testing.assert_array_equal(bfloat16.decode(plain.values), rounded(full))


def test_an_array_of_the_users_own(tmp_path):
    variable = Variable("velocity", ("step", "coordinate"), "weight", "bfloat16")
    with create(tmp_path / "a", LAYERS) as writer:
        writer.define("momentum", kind="buffers", variables=[variable])
        writer.extend("momentum", steps=[3, 4], velocity=np.full((2, 28), np.pi))
    found = open_trace(tmp_path / "a").groups["momentum"]["velocity"]
    assert found.values.tolist() == np.full((2, 28), 3.140625).tolist()
    document = json.loads((tmp_path / "a/momentum/velocity/zarr.json").read_text())
    assert document["data_type"] == "uint16"
    # What is missing reads as NaN.
    assert np.isnan(bfloat16.decode(np.array([document["fill_value"]], np.uint16)))


@pytest.mark.parametrize(
    ("group", "dtype", "words"),
    [
        ("weights", "float16", "sketches are stored as float32 or bfloat16, got dtype='float16'"),
        ("steps", "bfloat16", "'steps' has none; give the dtype of each Variable"),
    ],
)
def test_what_cannot_be(tmp_path, group, dtype, words):
    with create(tmp_path / "a", LAYERS) as writer, pytest.raises(UsageError, match=words):
        writer.define(group, dtype=dtype)
