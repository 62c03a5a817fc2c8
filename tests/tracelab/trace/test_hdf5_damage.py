"""Damaged HDF5 files: an error, or not a bit of the trace is another.

HDF5 gives checksums to chunks of numbers and to most of its own structures, but none to the indexes
of chunks and none to the heaps of texts.
"""

import itertools
import json
import re
import struct
from types import SimpleNamespace

import everykind
import google_crc32c
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import tracelab
from tracelab.contracts import Variable
from tracelab.errors import DamagedError, TraceError, UsageError
from tracelab.trace.hdf5.checksums import Checksum


def imported(file):
    """Return every object of the trace that a file makes, by key."""
    objects = {}
    tracelab.import_hdf5(file, MemoryStore(objects))
    return {key: content.to_bytes() for key, content in objects.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file with numbers, texts, bits and booleans; its bytes, and what it makes."""
    folder = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    with tracelab.create(folder / "a.zarr", {"a": (4, 6), "b": (3,)}, attrs={"seed": 7}) as writer:
        variables = [
            Variable("late", ("step", "k"), "1", "float32"),
            Variable("applied", ("step",), "1", "bool"),
            Variable("bits", ("step", "k"), "1", "bfloat16"),
        ]
        writer.define("measured", kind="measurements", variables=variables)
        for step in range(40):
            writer.append("gradients", step=step, full=rng.standard_normal(27, dtype=np.float32))
            late = {"late": rng.standard_normal(3)} if step >= 20 else {}
            writer.append("measured", step=step, applied=step % 3 > 0, bits=[step, 0, 1], **late)
    file = folder / "a.h5"
    tracelab.export_hdf5(folder / "a.zarr", file)
    return SimpleNamespace(file=file, content=file.read_bytes(), objects=imported(file))


def put(content, place, new):
    return content[:place] + new + content[place + len(new) :]


def flipped(content, place, mask):
    return put(content, place, bytes([content[place] ^ mask]))


def check(whole, content, path):
    """Return whether damaged content is refused; if not, nothing of it may have an effect."""
    path.write_bytes(content)
    try:
        found = imported(path)
    except TraceError:
        return True
    # Not compared by `assert`: pytest would look for minutes for how many bytes differ.
    other = [key for key in {**found, **whole.objects} if found.get(key) != whole.objects.get(key)]
    assert not other
    return False


def chunk(file, name):
    with h5py.File(file) as root:
        return root[name].id.get_chunk_info(0)


def node(whole, name):
    """Return where the index of a dataset of one chunk is, and where in it the chunk's address."""
    address = struct.pack("<Q", chunk(whole.file, name).byte_offset)
    for found in re.finditer(b"TREE\x01\x00\x01\x00", whole.content):
        # Two siblings, then the key: size, skipped filters, offset along each axis and in an item.
        with h5py.File(whole.file) as root:
            place = found.start() + 24 + 8 + 8 * (root[name].ndim + 1)
        if whole.content[place : place + 8] == address:
            return found.start(), place
    raise AssertionError(name)


def names(whole):
    found = []
    with h5py.File(whole.file) as root:
        root.visititems(
            lambda name, member: found.append(name) if isinstance(member, h5py.Dataset) else None
        )
    return found


# ----------------------------------------------------------------------------- indexes of chunks


def test_a_chunk_that_is_not_listed_is_missed(whole, tmp_path):
    """The library gives fill values for it, and says nothing."""
    for name in names(whole):
        start, _ = node(whole, name)
        (tmp_path / "a.h5").write_bytes(put(whole.content, start + 6, b"\0"))
        with pytest.raises(DamagedError, match=f"a.h5 cannot be imported.* {name} is not what was"):
            imported(tmp_path / "a.h5")


def test_a_chunk_in_another_place_is_missed(whole, tmp_path):
    for name in names(whole):
        start, _ = node(whole, name)
        assert check(whole, flipped(whole.content, start + 32, 1), tmp_path / "a.h5")


def test_another_chunk_with_the_right_checksum_is_noticed(whole, tmp_path):
    """These have the same size, so only the sum over all values tells them apart."""
    for name, other in [("gradients/step", "measured/step"), ("layers/numel", "layers/offset")]:
        one, two = chunk(whole.file, name), chunk(whole.file, other)
        assert one.size == two.size
        _, place = node(whole, name)
        content = put(whole.content, place, struct.pack("<Q", two.byte_offset))
        same = name == "gradients/step"
        assert check(whole, content, tmp_path / "a.h5") is not same


def test_zeros_have_the_right_checksum_of_hdf5_and_not_ours(whole, tmp_path):
    zeros = whole.content.index(bytes(40))
    _, place = node(whole, "layers/numel")
    (tmp_path / "a.h5").write_bytes(put(whole.content, place, struct.pack("<Q", zeros)))
    with h5py.File(tmp_path / "a.h5") as root:
        assert root["layers/numel"][:].tolist() == [0, 0]
    with pytest.raises(DamagedError, match="layers/numel is not what was written"):
        imported(tmp_path / "a.h5")


def test_texts_that_say_they_are_long_take_no_memory(whole, tmp_path):
    """The library would allocate, and fill, gigabytes before it looks for the text."""
    numbers = chunk(whole.file, "gradients/full").byte_offset
    _, place = node(whole, "layers/layer")
    (tmp_path / "a.h5").write_bytes(put(whole.content, place, struct.pack("<Q", numbers)))
    with pytest.raises(TraceError, match=r"texts of [0-9]{9,} bytes, which a file of"):
        imported(tmp_path / "a.h5")


# -------------------------------------------------------------------------------- heaps of texts


def heap(content):
    """Return where the objects of the first heap are, and how long each says it is."""
    start = content.index(b"GCOL")
    size = int.from_bytes(content[start + 8 : start + 16], "little")
    found, place = [], start + 16
    while place + 16 <= start + size:
        number, _, length = struct.unpack("<HHxxxxQ", content[place : place + 16])
        if not number:
            break
        found.append((place, length))
        place += 16 + 8 * -(-length // 8)
    return found


def test_a_heap_without_an_end_is_refused(whole, tmp_path):
    """The library goes round for ever in one whose entry is free space of no bytes."""
    for place, length in heap(whole.content)[::8]:
        content = put(whole.content, place, bytes(16))
        assert check(whole, content, tmp_path / "a.h5")
        # The next entry is looked for inside of texts, or before this one.
        for longer in (length + 256, 2**64 - 16):
            content = put(whole.content, place + 8, struct.pack("<Q", longer))
            assert check(whole, content, tmp_path / "a.h5")


def test_a_changed_text_is_refused(whole, tmp_path):
    for text, said in [
        (b"bfloat16", "the attribute 'stored_dtype' of measured/bits is not what was written"),
        (b"measurements", "the attribute 'kind' of measured is not what was written"),
        (b"[4, 6]", "layers/shape is not what was written"),
        (b"complete", "the attribute 'state' of / is not what was written"),
    ]:
        place = whole.content.index(text)
        (tmp_path / "a.h5").write_bytes(flipped(whole.content, place + 1, 1))
        with pytest.raises(DamagedError, match=re.escape(said)):
            imported(tmp_path / "a.h5")


# ------------------------------------------------------------------------------------- everything


@pytest.mark.slow
@pytest.mark.parametrize("mask", [1, 0x10, 0x80])
def test_every_byte_of_some_indexes(mask, whole, tmp_path):
    refused = 0
    for name in ("gradients/full", "layers/layer", "measured/bits"):
        start, address = node(whole, name)
        for place in range(start, address + 48):
            refused += check(whole, flipped(whole.content, place, mask), tmp_path / "a.h5")
    assert refused > 100


@pytest.mark.slow
def test_every_length_of_a_heap(whole, tmp_path):
    refused = 0
    for number, (start, _) in enumerate(heap(whole.content)):
        for place in (start, start + 1, *range(start + 8, start + 16)):
            content = flipped(whole.content, place, 1 << number % 8)
            refused += check(whole, content, tmp_path / "a.h5")
    assert refused > 300


@pytest.mark.slow
@given(place=st.floats(0, 1), mask=st.integers(1, 255))
@settings(
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_damage_is_an_error_or_harmless(place, mask, whole, tmp_path):
    content = flipped(whole.content, int(place * (len(whole.content) - 1)), mask)
    check(whole, content, tmp_path / "a.h5")


# --------------------------------------------------------------------------- checksums in the file


def test_checksums_are_those_of_the_values_and_texts(tmp_path):
    one = everykind.write(tmp_path / "one.zarr")
    tracelab.export_hdf5(one, tmp_path / "one.h5")
    checked = 0

    def visit(name, member):
        nonlocal checked
        sums = json.loads(member.attrs.get("tracelab_texts_crc32c", "{}"))
        texts = {
            key: value
            for key, value in member.attrs.items()
            if isinstance(value, str) and key not in ("CLASS", "NAME", "tracelab_texts_crc32c")
        }
        if "DIMENSION_LABELS" in sums:
            texts["DIMENSION_LABELS"] = "\0".join(member.attrs["DIMENSION_LABELS"])
        assert sums == {
            key: google_crc32c.value(value.encode()) for key, value in sorted(texts.items())
        }
        if isinstance(member, h5py.Dataset):
            values = member[()]
            if values.dtype.kind == "O":
                each = [google_crc32c.value(text) for text in values.flat]
                values = np.array(each, "<u4")
            assert member.attrs["tracelab_crc32c"] == google_crc32c.value(values.tobytes())
            checked += 1

    with h5py.File(tmp_path / "one.h5") as root:
        root.visititems(visit)
        visit("/", root)
    assert checked > 40


def test_checksums_do_not_depend_on_chunks(whole, tmp_path):
    """Files that h5repack made of exported ones."""
    with h5py.File(whole.file) as old, h5py.File(tmp_path / "a.h5", "w") as new:
        for name in old:
            old.copy(name, new)
        for key, value in old.attrs.items():
            new.attrs[key] = value
        for name, options in [
            ("gradients/full", {"chunks": (7, 4), "compression": "gzip"}),
            ("gradients/step", {"chunks": (13,)}),
            ("layers/layer", {"chunks": (1,), "compression": "gzip"}),
            ("measured/applied", {}),
        ]:
            kept = dict(old[name].attrs)
            del new[name]
            new.create_dataset(name, data=old[name][()], dtype=old[name].dtype, **options)
            for key in kept.keys() - {"DIMENSION_LIST", "REFERENCE_LIST"}:
                new[name].attrs[key] = kept[key]
    assert not check(whole, (tmp_path / "a.h5").read_bytes(), tmp_path / "a.h5")


def test_who_changes_a_file_on_purpose_is_told_how(whole, tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(whole.content)
    with h5py.File(path, "a") as root:
        root["measured"].attrs["note"] = "added"
    assert b"added" in imported(path)["zarr.json"]
    with h5py.File(path, "a") as root:
        root["measured/late"][39] = 0
    with pytest.raises(DamagedError, match=r"measured/late .* the attribute 'tracelab_crc32c'"):
        imported(path)
    with h5py.File(path, "a") as root:
        del root["measured/late"].attrs["tracelab_crc32c"]
        root["measured/late"].attrs["units"] = "m"
    with pytest.raises(DamagedError, match=r"'units' of measured/late .*'tracelab_texts_crc32c'"):
        imported(path)
    with h5py.File(path, "a") as root:
        del root["measured/late"].attrs["tracelab_texts_crc32c"]
    assert b'"m"' in imported(path)["zarr.json"]


@pytest.mark.parametrize("value", ["0", [1, 2], 0.5])
def test_a_checksum_that_is_no_number_is_refused(value, whole, tmp_path):
    (tmp_path / "a.h5").write_bytes(whole.content)
    with h5py.File(tmp_path / "a.h5", "a") as root:
        root["measured/late"].attrs["tracelab_crc32c"] = value
    with pytest.raises(TraceError, match="'tracelab_crc32c' of measured/late is no checksum"):
        imported(tmp_path / "a.h5")


def test_a_file_that_is_being_written_is_not_imported(whole, tmp_path):
    (tmp_path / "a.h5").write_bytes(whole.content)
    with (
        h5py.File(tmp_path / "a.h5", "a", locking=True),
        pytest.raises(UsageError, match="is being written"),
    ):
        imported(tmp_path / "a.h5")


SHAPES = [
    ((), ()),
    ((0,), (5,)),
    ((1000,), (7,)),
    ((30, 40), (7, 9)),
    ((5, 6, 7), (2, 6, 3)),
    ((5, 6, 7), (2, 2, 7)),
    ((3, 1, 4, 1), (1, 1, 3, 1)),
]


@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f8", "O"])
@pytest.mark.parametrize(("shape", "part"), SHAPES)
def test_a_checksum_of_parts_in_any_order(shape, part, dtype):
    rng = np.random.default_rng(0)
    values = np.asarray(rng.integers(0, 256, shape)).astype(dtype)
    plain = values.astype(values.dtype.newbyteorder("<"))
    if dtype == "O":
        values = np.array([str(value) for value in values.flat], dtype=object).reshape(shape)
        plain = np.array([google_crc32c.value(text.encode()) for text in values.flat], "<u4")
    parts = [
        tuple(slice(start, start + size) for start, size in zip(starts, part, strict=True))
        for starts in itertools.product(*map(range, itertools.repeat(0), shape, part))
    ]
    rng.shuffle(parts)
    checksum = Checksum(shape, values.dtype)
    for selection in parts:
        checksum.add([cut.start for cut in selection], np.asarray(values[selection], dtype))
    assert checksum.value == google_crc32c.value(plain.tobytes())
