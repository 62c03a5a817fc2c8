"""What goes in comes out: every row, every bit, through tracelab and through plain xarray."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from tracelab.trace import create
from tracelab.trace import open as open_trace

LAYERS = {"conv.weight": (4, 3), "conv.bias": (4,), "scale": ()}


@st.composite
def recordings(draw):
    rows = draw(st.lists(st.sampled_from(["row", "flush"]), min_size=1, max_size=12))
    return {
        "operations": rows,
        "direction": draw(st.integers(1, 9)),
        "batch": draw(st.integers(1, 5)),
        "queue_bytes": draw(st.sampled_from([1, 2_000, 2**28])),
        "seed": draw(st.integers(0, 2**32)),
    }


@settings(max_examples=25)
@given(recordings())
def test_a_reader_sees_exactly_the_rows_before_the_flush(drawn):
    rng = np.random.default_rng(drawn["seed"])
    store = MemoryStore()
    written = {"loss": [], "projected": [], "full": [], "accuracy": [], "applied": []}
    steps = []
    # An hour: what is seen was flushed.
    with create(store, LAYERS, queue_bytes=drawn["queue_bytes"], flush_seconds=3600) as writer:
        for operation in drawn["operations"]:
            if operation == "flush":
                writer.flush()
                check(store, steps, written)
                continue
            step = (steps[-1] if steps else -1) + int(rng.integers(1, 4))
            steps.append(step)
            row = {
                "projected": rng.normal(size=(3, drawn["direction"])).astype("f4"),
                "full": rng.normal(size=17).astype("f4"),
            }
            writer.append("gradients", step=step, **row)
            scalars = {"loss": rng.normal()}
            if rng.random() < 0.5:
                scalars["accuracy"] = rng.normal()
            if rng.random() < 0.5:
                scalars["applied"] = True
            writer.append("steps", step=step, **scalars)
            for name, value in (row | scalars).items():
                written[name].append(value)
            for name, missing in (("accuracy", np.nan), ("applied", False)):
                if name not in scalars:
                    written[name].append(missing)
    check(store, steps, written)
    compare_with_plain_xarray(store)


def check(store, steps, written):
    trace = open_trace(store)
    if not steps:
        assert set(trace.groups) == set()
        return
    for group, names in (
        ("gradients", ["projected", "full"]),
        ("steps", ["loss", "accuracy", "applied"]),
    ):
        found = trace.groups[group]
        np.testing.assert_array_equal(found["step"].values, steps)
        for name in names:
            wanted = np.asarray(written[name])
            if name not in found:
                assert name in ("accuracy", "applied")
                assert not np.nan_to_num(wanted).any()
                continue
            assert found[name].dtype == wanted.dtype
            np.testing.assert_array_equal(found[name].values, wanted)


def compare_with_plain_xarray(store):
    trace = open_trace(store)
    tree = xr.open_datatree(store, engine="zarr", chunks=None)
    assert set(tree.children) == {"layers", *trace.groups}
    xr.testing.assert_identical(tree["layers"].to_dataset().load(), trace.layers)
    for group in trace.groups:
        xr.testing.assert_identical(tree[group].to_dataset().load(), trace.groups[group].compute())


@pytest.fixture
def bits():
    """Float32 values that must survive bit by bit, NaN payloads among them."""
    zeros, infinities, nans = (0, 1 << 31), (0x7F800000, 0xFF800000), (0x7FC00001, 0xFFC12345)
    smallest, largest, one = 1, 0x7F7FFFFF, 0x3F800000
    return np.array(
        [*zeros, *infinities, *nans, smallest, largest, one],
        dtype=np.uint32,
    ).view(np.float32)


def test_every_bit_survives(tmp_path, bits):
    with create(tmp_path / "run.zarr", {"w": (9,)}) as writer:
        for step in range(3):
            writer.append("weights", step=step, full=bits)
    full = open_trace(tmp_path / "run.zarr").weights["full"].values
    for row in full:
        np.testing.assert_array_equal(row.view(np.uint32), bits.view(np.uint32))


def test_numbers_are_stored_in_the_declared_dtype():
    store = MemoryStore()
    with create(store, LAYERS) as writer:
        writer.append("gradients", step=0, full=np.arange(17))
        writer.append("gradients", step=1, full=[0.1] * 17)
        writer.append("steps", step=0, loss=3, batch_size=np.float32(8), applied=np.True_)
    trace = open_trace(store)
    assert trace.gradients["full"].dtype == np.float32
    np.testing.assert_array_equal(trace.gradients["full"].values[0], np.arange(17))
    np.testing.assert_array_equal(trace.gradients["full"].values[1], np.float32(0.1))
    assert trace.steps["loss"].values == 3.0
    assert trace.steps["applied"].dtype == np.bool_
    assert trace.steps["applied"].values[0]


@pytest.mark.parametrize("numel", [10, 400_000])
def test_a_buffer_may_be_reused_after_append(numel):
    store = MemoryStore()
    buffer = np.empty(numel, np.float32)
    with create(store, {"w": (numel,)}) as writer:
        for step in range(5):
            buffer[:] = step
            writer.append("gradients", step=step, full=buffer)
        buffer[:] = -1
    full = open_trace(store).gradients["full"].values
    np.testing.assert_array_equal(full, np.repeat(np.arange(5, dtype="f4")[:, None], numel, 1))


def test_a_large_read_only_row_is_not_copied():
    from tracelab.trace.writing.blocks import owned
    from tracelab.trace.writing.rows import declare

    rules = declare(
        "gradients",
        {"w": (400_000,)},
        kind=None,
        subset=None,
        sketches=(),
        attrs=None,
        coordinates=None,
        variables=None,
    )
    row = np.zeros(400_000, np.float32)
    _, checked = rules.row(0, {"full": row})
    nbytes = rules.row_bytes(checked)
    assert not np.shares_memory(owned(rules, checked, nbytes)["full"], row)
    row.setflags(write=False)
    assert owned(rules, checked, nbytes)["full"] is row


def test_arrays_larger_than_a_shard(tmp_path):
    """A row in several shards along its coordinates, many rows in several along step."""
    rng = np.random.default_rng(0)
    numel, rows = 50_000, 37
    values = rng.normal(size=(rows, numel)).astype("f4")
    # A group may gather as much as the queue holds: 32 rows, less what `step` and `norm` take.
    with create(tmp_path / "run.zarr", {"w": (numel,)}, queue_bytes=32 * 4 * numel) as writer:
        for step, row in enumerate(values):
            writer.append("weights", step=step, full=row, norm=[np.linalg.norm(row)])
    shards = sorted(path.name for path in (tmp_path / "run.zarr/weights/full").glob("c.*"))
    assert len(shards) == -(-rows // 16)
    trace = open_trace(tmp_path / "run.zarr")
    np.testing.assert_array_equal(trace.weights["full"].values, values)
    np.testing.assert_array_equal(
        trace.weights["full"].isel(step=30, coordinate=slice(20_000, 20_100)).values,
        values[30, 20_000:20_100],
    )


def test_one_row_larger_than_what_may_be_gathered(tmp_path):
    values = np.arange(2 * 70_000, dtype="f4").reshape(2, -1)
    with create(tmp_path / "run.zarr", {"w": (70_000,)}, queue_bytes=2**16) as writer:
        for step, row in enumerate(values):
            writer.append("gradients", step=step, full=row)
    # 70,000 float32 in chunks of 16,384 and shards of at most 64 KiB: five shards a row.
    assert len(list((tmp_path / "run.zarr/gradients/full").glob("c.*"))) == 10
    found = open_trace(tmp_path / "run.zarr").gradients["full"].values
    np.testing.assert_array_equal(found, values)


def test_noise_in_every_sketch(tmp_path):
    rng = np.random.default_rng(1)
    rows = {
        "projected": rng.normal(size=(4, 6, 3, 5)).astype("f4"),
        "sampled": rng.normal(size=(4, 6, 17)).astype("f4"),
        "mean_projected": rng.normal(size=(4, 3, 5)).astype("f4"),
        "mean_sampled": rng.normal(size=(4, 17)).astype("f4"),
        "squared_norm": rng.normal(size=(4, 6, 3)),
        "squared_deviation": rng.normal(size=(4, 6, 3)),
        "mean_squared_norm": rng.normal(size=(4, 3)),
        "loss": rng.normal(size=(4, 6)),
        "mean_loss": rng.normal(size=4),
    }
    with create(tmp_path / "run.zarr", LAYERS) as writer:
        writer.define("noise", attrs={"batch_size": 32, "replacement": True, "n_data": 1000})
        for step in range(4):
            writer.append("noise", step=step, **{name: rows[name][step] for name in rows})
    trace = open_trace(tmp_path / "run.zarr")
    group = trace.groups["noise"]
    for name, values in rows.items():
        np.testing.assert_array_equal(group[name].values, values)
    assert group.attrs["batch_size"] == 32
    found = trace.noise(step=2, layer="conv.bias", sketch="sampled")
    wanted = rows["sampled"][2, :, 12:16].astype(float) - rows["mean_sampled"][2, 12:16]
    np.testing.assert_allclose(found.values, wanted, rtol=1e-12)
    assert found.attrs["units"] == "loss/weight"


def test_groups_that_get_more_arrays_in_later_commits_stay_whole_for_zarr_python(tmp_path):
    path = tmp_path / "a"
    with create(path, {"w": (4,)}) as writer:
        for name in ("gradients", "a-b", "a"):
            writer.define(name, kind="gradients")
        writer.flush()
        for step, array in enumerate(("full", "projected")):
            for name in ("gradients", "a-b", "a"):
                row = {"full": np.ones(4), "projected": np.ones((1, 2))}
                writer.append(name, step=step, **{array: row[array]})
            writer.flush()
    tree = xr.open_datatree(path, engine="zarr", chunks=None)
    for name in ("gradients", "a-b", "a"):
        assert set(tree[name].data_vars) == {"full", "projected"}
        assert tree[name].sizes["step"] == 2
