import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tracelab
from tracelab.contracts import Variable
from tracelab.trace.writing import commit
from tracelab.trace.writing.layout import GROUP_BYTES, Layout, cut

MIB = 2**20


def layout(dims, shape, dtype="float32", share=64 * MIB, largest=64 * MIB):
    return cut(dims, shape, dtype, share=share, largest=largest)


def test_a_cell_of_noise_is_one_chunk():
    found = layout(("step", "batch", "layer", "direction"), (512, 20, 256))
    assert found.chunk == (1, 512, 1, 256)
    # 10 MiB a row: two rows stay below 32 MiB, the next power of two does not.
    assert found.shard == (2, 512, 20, 256)


def test_vectors_are_cut_into_16_steps_by_16384_coordinates():
    found = layout(("step", "coordinate"), (262_144,))
    assert found.chunk == (16, 16_384)
    assert found.shard == (64, 262_144)


def test_a_vector_too_large_to_gather_is_stored_row_by_row_in_shards_of_bounded_size():
    found = layout(("step", "coordinate"), (10**9,))
    assert found.chunk == (1, 16_384)
    assert found.shard[0] == 1
    assert 32 * MIB < 4 * found.shard[1] <= 64 * MIB


def test_sampled_noise_has_chunks_of_at_most_4_mebibytes():
    assert layout(("step", "batch", "coordinate"), (64, 10**6)).chunk == (1, 64, 16_384)
    assert layout(("step", "batch", "coordinate"), (512, 10**6)).chunk == (1, 512, 2_048)


def test_series_are_cut_into_many_steps_of_few_layers():
    assert layout(("step",), (), "float64").chunk == (4096,)
    assert layout(("step", "layer"), (20,)).chunk == (1024, 20)
    assert layout(("step", "layer", "direction"), (100, 256)).chunk == (64, 4, 256)


def test_what_workers_did_is_cut_as_series():
    """Of one, as the trace of a rank has it, and of many in one trace; minibatches stay cells."""
    dims = ("step", "worker", "layer", "direction")
    assert layout(dims, (1, 100, 256)).chunk == (64, 1, 4, 256)
    assert layout(dims, (64, 100, 256)).chunk == (4, 64, 1, 256)
    assert layout(("step", "worker", "layer"), (64, 20)).chunk == (64, 64, 16)
    with_batches = ("step", "worker", "batch", "layer", "direction")
    assert layout(with_batches, (2, 8, 100, 256)).chunk == (1, 2, 8, 1, 256)


def test_a_trace_goes_on_as_it_is_cut(tmp_path, monkeypatch):
    """As one that was begun when workers were cut by cells."""
    values = np.random.default_rng(0).standard_normal((90, 1, 5, 32)).astype(np.float32)

    def append(steps, **options):
        with tracelab.create(tmp_path / "a", {f"l{i}": (40,) for i in range(5)}, **options) as w:
            dims = ("step", "worker", "layer", "direction")
            w.define("own", kind="own", variables=(Variable("g", dims, "loss/weight", "float32"),))
            for step in steps:
                w.append("own", step=step, g=values[step])

    with monkeypatch.context() as patch:
        by_cells = Layout((1, 1, 1, 32), (16, 1, 5, 32))
        patch.setattr(
            commit, "cut", lambda dims, *rest, **options: (
                by_cells if "worker" in dims else cut(dims, *rest, **options)
            ),
        )  # fmt: skip
        append(range(40))
    append(range(40, 90), resume=True)
    trace = tracelab.open(tmp_path / "a")
    assert trace.stored("own")["g"].chunk == (1, 1, 1, 32)
    np.testing.assert_array_equal(trace.groups["own"]["g"].values, values)
    assert not tracelab.verify(tmp_path / "a").damages


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_histograms_are_cut_by_step_and_compressed_in_any_case(compression):
    found = cut(
        ("step", "layer", "bin"), (100, 6562), "uint32", share=64 * MIB, compression=compression
    )
    # As many layers as make 65,536 numbers; 2.6 MB a row, of which eight are below 32 MiB.
    assert found.chunk == (1, 9, 6562)
    assert found.shard == (8, 108, 6562)
    assert found.compression == "lz4"
    small = cut(("step", "layer", "bin"), (2, 20), "uint32", share=MIB)
    assert (small.chunk, small.compression) == ((1, 2, 20), "lz4")


def test_other_arrays_along_bins_are_series():
    assert layout(("step", "layer", "bin"), (100, 256)).chunk == (64, 4, 256)
    assert layout(("step", "bin"), (256,), "int64").compression == "none"


DIMS = st.sampled_from(
    [
        ("step",),
        ("step", "layer"),
        ("step", "coordinate"),
        ("step", "batch"),
        ("step", "batch", "layer"),
        ("step", "batch", "coordinate"),
        ("step", "layer", "direction"),
        ("step", "batch", "layer", "direction"),
        ("step", "vector", "direction"),
        ("step", "a", "b", "c"),
    ]
)


@given(dims=DIMS, data=st.data(), share=st.integers(2**14, GROUP_BYTES))
def test_shards_are_whole_chunks_and_bounded(dims, data, share):
    sizes = st.integers(1, 3000) if len(dims) < 4 else st.integers(1, 60)
    shape = tuple(data.draw(sizes) for _ in dims[1:])
    found = cut(dims, shape, "float32", share=share, largest=GROUP_BYTES)
    assert all(whole % part == 0 for whole, part in zip(found.shard, found.chunk, strict=True))
    assert math.prod(found.chunks_per_shard) == math.prod(found.shard) // math.prod(found.chunk)
    # No more rows are gathered than fit the share, unless one row alone does not.
    row_bytes = 4 * math.prod(shape)
    assert found.shard[0] == 1 or found.shard[0] * row_bytes <= share
    # Shards cover a row with less than one chunk to spare along each dimension.
    for size, whole, part in zip(shape, found.shard[1:], found.chunk[1:], strict=True):
        assert whole <= -(-size // part) * part
    assert 4 * math.prod(found.shard) <= GROUP_BYTES or found.chunks_per_shard[1:] == (1,) * len(
        shape
    )


@pytest.mark.parametrize("rows", [1, 2, 64, 65_536])
def test_rows_of_a_shard_are_a_power_of_two(rows):
    found = cut(("step",), (), "float64", share=8 * rows + 7, largest=GROUP_BYTES)
    assert found.shard == (rows,)
