import io
import json

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.blosc import Blosc
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from tracelab.contracts import Variable
from tracelab.trace.writing import documents
from tracelab.trace.writing.layout import COMPRESSIONS, Layout
from tracelab.trace.writing.shards import ShardBuilder, encode_strings, encode_table


def store_of(objects):
    store = MemoryStore()
    for key, content in objects.items():
        buffer = default_buffer_prototype().buffer.from_bytes(content)
        sync(store.set(key, buffer))
    return store


def zarr_reads(document, shards, rows):
    """What zarr-python, which shares no code with the builder, finds in the shards."""
    document = document | {"shape": [rows, *document["shape"][1:]]}
    objects = {"zarr.json": documents.dump(document)} | shards
    return zarr.open_array(store_of(objects), mode="r")[...]


@st.composite
def layouts(draw, wide=1):
    inner = [
        (draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(1, 3)))
        for _ in range(draw(st.integers(0, 2)))
    ]
    chunk_rows, per_shard = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    inner = [(size * wide, part * wide, count) for size, part, count in inner]
    shape = tuple(size for size, _, _ in inner)
    chunk = (chunk_rows, *(part for _, part, _ in inner))
    shard = (chunk_rows * per_shard, *(part * count for _, part, count in inner))
    return shape, Layout(chunk, shard, draw(st.sampled_from(COMPRESSIONS)))


@settings(max_examples=80)
@given(
    cut=layouts(),
    dtype=st.sampled_from(["float32", "float64", "bool", "int32"]),
    pieces=st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), max_size=8),
    seed=st.integers(0, 2**32),
)
def test_zarr_reads_the_rows_whenever_they_are_stored(cut, dtype, pieces, seed):
    shape, layout = cut
    rng = np.random.default_rng(seed)
    fill = np.asarray({"f": np.nan, "b": False, "i": 0}[np.dtype(dtype).kind], dtype=dtype)
    dims = ("step", "a", "b")[: 1 + len(shape)]
    document = documents.array(Variable("x", dims, dtype=dtype), shape, layout)
    builder = ShardBuilder(layout, shape, dtype, fill)
    shards, rows = {}, []
    for count, missing, flush in pieces:
        values = rng.integers(0, 2**16, (count, *shape)).astype(dtype)
        for key, parts in builder.extend(None if missing else values, count):
            shards[key] = b"".join(parts)
        rows.append(np.full_like(values, fill) if missing else values)
        if flush:
            shards |= {key: b"".join(parts) for key, parts in builder.partial()}
            wanted = np.concatenate(rows)
            np.testing.assert_array_equal(zarr_reads(document, shards, len(wanted)), wanted)
    assert builder.rows == sum(count for count, _, _ in pieces)


@settings(max_examples=100)
@given(
    # Blosc does not compress what is tiny.
    cut=layouts(wide=64),
    pieces=st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([False, False, True]), st.booleans()),
        min_size=1,
        max_size=10,
    ),
)
def test_an_index_read_before_points_at_the_same_rows_in_the_shard_written_after(cut, pieces):
    """A reader takes the index and then the chunk: between the two the file may be replaced."""
    shape, layout = cut
    rng = np.random.default_rng(0)
    builder = ShardBuilder(layout, shape, "float32", np.asarray(np.nan, "f4"))
    tail = 16 * int(np.prod(layout.chunks_per_shard)) + 4

    def decoded(content, start, length):
        stored = content[int(start) : int(start + length)]
        assert google_crc32c.value(stored[:-4]) == int.from_bytes(stored[-4:], "little")
        return np.frombuffer(
            stored[:-4] if layout.compression == "none" else Blosc().decode(stored[:-4]), "<f4"
        )

    before: dict[str, bytes] = {}
    for count, missing, commit in pieces:
        values = None if missing else rng.integers(1, 9, (count, *shape)).astype("f4")
        after = {key: b"".join(parts) for key, parts in builder.extend(values, count)}
        if commit:
            after |= {key: b"".join(parts) for key, parts in builder.partial()}
        for key in set(before) & set(after):
            old, new = (
                np.frombuffer(content[key][-tail:-4], "<u8").reshape(-1, 2)
                for content in (before, after)
            )
            known = old[:, 0] != np.iinfo(np.uint64).max
            np.testing.assert_array_equal(old[known], new[known])
            for start, length in old[known]:
                then, now = (decoded(content[key], start, length) for content in (before, after))
                # Zero is where no row was yet.
                assert ((then == now) | (then == 0) | np.isnan(then) & np.isnan(now)).all()
        before |= after


def test_a_chunk_of_missing_rows_takes_no_bytes():
    layout = Layout((2,), (4,))
    builder = ShardBuilder(layout, (), "float64", np.asarray(np.nan))
    (shard,) = builder.extend(None, 4)
    assert shard[0] == "c.0"
    # Only the index: two chunks of two uint64, and its checksum.
    assert len(b"".join(shard[1])) == 2 * 16 + 4


def test_full_chunks_are_compressed_unless_a_commit_came_before_they_were_full():
    layout = Layout((64, 64), (256, 64), "lz4")
    document = documents.array(Variable("x", ("step", "a"), dtype="float32"), (64,), layout)
    values = np.ones((256, 64), "f4")
    raw = values[:64].nbytes + 16 + 4
    builder = ShardBuilder(layout, (64,), "float32", None)

    def lengths(content):
        return np.frombuffer(content[-4 * 16 - 4 : -4], "<u8").reshape(4, 2)[:, 1]

    assert not list(builder.extend(values[:100], 100))
    ((key, parts),) = builder.partial()
    content = b"".join(parts)
    first, second, *_ = lengths(content)
    assert first < raw / 20
    assert second == raw
    np.testing.assert_array_equal(zarr_reads(document, {key: content}, 100), values[:100])
    ((key, parts),) = builder.extend(values[100:], 156)
    content = b"".join(parts)
    assert lengths(content).tolist() == [first, raw, first, first]
    np.testing.assert_array_equal(zarr_reads(document, {key: content}, 256), values)


def test_what_does_not_shrink_takes_a_header_more():
    layout = Layout((64, 64), (64, 64), "lz4")
    document = documents.array(Variable("x", ("step", "a"), dtype="float32"), (64,), layout)
    noise = np.random.default_rng(0).bytes(64 * 64 * 4)
    values = np.frombuffer(noise, "f4").reshape(64, 64)
    builder = ShardBuilder(layout, (64,), "float32", None)
    ((key, parts),) = builder.extend(values, 64)
    content = b"".join(parts)
    assert len(content) == len(noise) + 16 + 4 + 16 + 4
    found = zarr_reads(document, {key: content}, 64)
    assert found.tobytes() == noise


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_flipped_bit_is_noticed(compression):
    layout = Layout((2, 3), (4, 3), compression)
    document = documents.array(Variable("x", ("step", "a"), dtype="float32"), (3,), layout)
    builder = ShardBuilder(layout, (3,), "float32", None)
    ((key, parts),) = builder.extend(np.ones((4, 3), "f4"), 4)
    content = bytearray(b"".join(parts))
    content[5] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        zarr_reads(document, {key: bytes(content)}, 4)


@pytest.mark.parametrize("texts", [["fc.weight", "", "größe", "層"], ["x"]])
def test_strings(texts):
    document = documents.table(Variable("x", ("layer",), dtype="string"), len(texts), len(texts))
    assert zarr_reads(document, {"c.0": encode_strings(texts)}, len(texts)).tolist() == texts


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_tables(dtype):
    values = np.arange(1000, dtype=dtype)
    document = documents.table(Variable("x", ("coordinate",), dtype=dtype), 1000, 1000)
    encoded = encode_table(values)
    np.testing.assert_array_equal(zarr_reads(document, {"c.0": encoded}, 1000), values)
    assert len(encoded) < values.nbytes / 4


def test_a_document_is_plain_json():
    layout = Layout((2,), (4,))
    document = documents.array(Variable("x", ("step",), dtype="float32"), (), layout)
    assert json.load(io.BytesIO(documents.dump(document))) == document
