"""Stores from anywhere: damaged, or made to harm. Each ends in one clear TraceError."""

import copy
import json
import os
import zipfile

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from tracelab.errors import DamagedError, TraceError
from tracelab.trace import create
from tracelab.trace import open as open_trace

LAYERS = {"a": (4,), "b": (2,)}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "a"
    with create(path, LAYERS) as writer:
        for step in range(3):
            writer.append("gradients", step=step, full=np.arange(6), projected=np.ones((2, 3)))
    return json.loads((path / "zarr.json").read_bytes())


def members(document):
    return document["consolidated_metadata"]["metadata"]


def opened(tmp_path, document):
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    (tmp_path / "zarr.json").write_bytes(content)
    return open_trace(tmp_path)


def test_the_good_one_opens(good, tmp_path):
    assert list(opened(tmp_path, good).groups) == ["gradients"]


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"[1]", b"\xff\xfe", b'{"a":', b"nan", b'{"a": 1}}', b'"a"']
)
def test_a_root_that_is_not_json(tmp_path, content):
    with pytest.raises(TraceError, match=r"is damaged: its zarr\.json is not a JSON object"):
        opened(tmp_path, content)


def test_a_root_document_too_large_to_read(tmp_path):
    with (tmp_path / "zarr.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(TraceError, match=r"is damaged: its zarr\.json is larger than any trace"):
        open_trace(tmp_path)


def test_a_folder_that_is_no_store(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(TraceError, match=r"is not a tracelab trace: there is no zarr\.json"):
        open_trace(tmp_path)


def test_a_store_that_is_no_trace(tmp_path):
    zarr.create_group(tmp_path / "a")
    with pytest.raises(TraceError, match="is a Zarr store but not a tracelab trace"):
        open_trace(tmp_path / "a")


def test_a_root_that_cannot_be_read(good, tmp_path):
    (tmp_path / "zarr.json").mkdir()
    with pytest.raises(TraceError, match=r"cannot be read: zarr\.json is no plain file"):
        open_trace(tmp_path)


def test_a_newer_format(good, tmp_path):
    document = copy.deepcopy(good)
    document["attributes"]["format_version"] = 2
    with pytest.raises(TraceError, match="has format version 2, this tracelab reads 1; install"):
        opened(tmp_path, document)


def set_in(path, *keys_and_value):
    *keys, last, value = keys_and_value

    def change(document):
        target = members(document)[path] if path else document
        for key in keys:
            target = target[key]
        target[last] = value

    return change


def renamed(old, new):
    def change(document):
        members(document)[new] = members(document).pop(old)

    return change


def dropped(*keys):
    def change(document):
        target = document
        for key in keys[:-1]:
            target = target[key]
        del target[keys[-1]]

    return change


FULL = "gradients/full"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dropped("consolidated_metadata"), "no 'consolidated_metadata'"),
        (dropped("attributes", "run"), "no 'run'"),
        (set_in("", "attributes", "run", 3), "run and state must be texts"),
        (set_in("", "consolidated_metadata", []), "list indices"),
        (set_in("", "consolidated_metadata", "metadata", []), "'list' object has no attribute"),
        (renamed("gradients", ".."), r"'\.\.' cannot be the path of a group"),
        (renamed(FULL, "../../etc/passwd"), r"'\.\./\.\./etc/passwd' cannot be the path"),
        (renamed(FULL, "/etc/passwd"), "'/etc/passwd' cannot be the path"),
        (renamed(FULL, "gradients/a/b"), "'gradients/a/b' cannot be the path"),
        (renamed(FULL, "gradients/a\\b"), "cannot be the path"),
        (renamed(FULL, "other/full"), "'other' has arrays and is no group"),
        (set_in(FULL, "node_type", "group"), "'gradients/full' is no array of Zarr format 3"),
        (set_in("gradients", "zarr_format", 2), "'gradients' is no group of Zarr format 3"),
        (set_in("gradients", "attributes", {}), "'gradients' has no kind"),
        (set_in(FULL, "data_type", "object"), "gradients/full has the data type 'object'"),
        (set_in(FULL, "data_type", "null_terminated_bytes"), "has the data type 'null_"),
        (set_in(FULL, "data_type", {"name": "structured"}), "unhashable|has the data type"),
        (set_in(FULL, "shape", [10**18, 6]), r"full has the shape \[1000000000000000000, 6\]"),
        (set_in(FULL, "shape", [3, 2**50]), r"full has the shape \[3, 1125899906842624\], too lar"),
        (set_in(FULL, "shape", [2, 6]), "gradients/projected has 3 along 'step', other arrays 2"),
        (set_in(FULL, "shape", [-3, 6]), r"has the shape \[-3, 6\]"),
        (set_in(FULL, "shape", [3.0, 6]), r"has the shape \[3\.0, 6\]"),
        (set_in(FULL, "shape", [3]), r"has the shape \[3\]"),
        (set_in(FULL, "shape", [2**40, 2**40]), "has the shape"),
        (set_in(FULL, "shape", "3"), "has the shape '3'"),
        (set_in(FULL, "dimension_names", ["step", "a/b"]), r"has the dimensions \['step', 'a/b'\]"),
        (set_in(FULL, "dimension_names", ["step", None]), r"has the dimensions \['step', None\]"),
        (set_in(FULL, "chunk_grid", "configuration", "chunk_shape", [0, 6]), "has the chunk grid"),
        (set_in(FULL, "chunk_grid", "name", "rectilinear"), "has the chunk grid"),
        (set_in(FULL, "codecs", [{"name": "pickle"}]), "needs the codec 'pickle'"),
        (set_in(FULL, "codecs", [{"name": "numcodecs.pickle"}]), "needs the codec 'numcodecs.pi"),
        (set_in(FULL, "codecs", [{}]), "no 'name'"),
        (set_in("gradients/step", "data_type", "float64"), "gradients/step is not what labels"),
        (set_in("gradients/layer", "dimension_names", ["step"]), "gradients/layer is not what la"),
        (dropped("consolidated_metadata", "metadata", "gradients/step"), "has no array 'step'"),
        (dropped("consolidated_metadata", "metadata", "gradients/layer"), "has no array 'layer'"),
    ],
)
def test_a_root_that_declares_what_no_trace_holds(good, tmp_path, change, words):
    document = copy.deepcopy(good)
    change(document)
    with pytest.raises(TraceError, match=rf"is damaged: its zarr\.json cannot be used .*({words})"):
        opened(tmp_path, document)


def sharding(document, path=FULL):
    return members(document)[path]["codecs"][0]["configuration"]


@pytest.mark.parametrize(
    ("chunk", "grid", "words"),
    [
        ([2, 4], [16, 6], "has shards .* of chunks"),
        ([1], [16, 6], "has shards .* of chunks"),
        ([0, 6], [16, 6], "has shards .* of chunks"),
        ([1, 1], [2**30, 2**30], "of too many chunks"),
        ([2**40, 6], [2**40, 6], "has chunks of shape .* too large to read"),
    ],
)
def test_absurd_shards(good, tmp_path, chunk, grid, words):
    document = copy.deepcopy(good)
    sharding(document)["chunk_shape"] = chunk
    members(document)[FULL]["chunk_grid"]["configuration"]["chunk_shape"] = grid
    with pytest.raises(TraceError, match=words):
        opened(tmp_path, document)


def test_a_codec_inside_a_shard(good, tmp_path):
    document = copy.deepcopy(good)
    sharding(document)["codecs"].append({"name": "numcodecs.json2"})
    with pytest.raises(TraceError, match=r"needs the codec 'numcodecs\.json2'"):
        opened(tmp_path, document)


def with_rows(tmp_path, rows):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.append("steps", step=0, loss=0.0)
    document = json.loads((tmp_path / "a/zarr.json").read_bytes())
    for name in ("step", "loss"):
        members(document)[f"steps/{name}"]["shape"] = [rows]
    return document


def test_more_rows_than_can_be_read(tmp_path):
    document = with_rows(tmp_path, 2 * 10**8)
    with pytest.raises(TraceError, match="steps declares 200000000 rows, at most 100000000 can"):
        opened(tmp_path / "a", document)


def test_labels_that_are_declared_and_not_there(tmp_path):
    """A hundred million steps would take 800 MB; nothing is taken for a chunk that is missing."""
    trace = opened(tmp_path / "a", with_rows(tmp_path, 10**8))
    words = r"steps/step of .* is damaged: shard c\.1 is missing; .*: tracelab verify "
    with pytest.raises(TraceError, match=words):
        trace.groups["steps"]


@pytest.fixture
def damaged(tmp_path):
    path = tmp_path / "a"
    with create(path, LAYERS) as writer:
        for step in range(3):
            writer.append("gradients", step=step, full=np.arange(6))
    return path


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x40
    path.write_bytes(content)


def test_a_flipped_bit_in_the_labels(damaged):
    flip(damaged / "gradients/step/c.0", 0)
    with pytest.raises(
        TraceError, match=r"s/step of .* is damaged: shard c\.0, chunk 0 has another ch"
    ):
        open_trace(damaged).groups["gradients"]


def test_a_flipped_bit_in_the_data_is_never_returned(damaged):
    flip(damaged / "gradients/full/c.0.0", 3)
    with pytest.raises(
        DamagedError, match=r"full of .* shard c\.0\.0, chunk 0\.0 has another checks"
    ):
        open_trace(damaged).gradients["full"].compute()


def test_a_truncated_shard_is_never_returned(damaged):
    shard = damaged / "gradients/full/c.0.0"
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(DamagedError, match=r"full of .* shard c\.0\.0 "):
        open_trace(damaged).gradients["full"].compute()


def test_steps_that_do_not_increase(damaged):
    steps = zarr.open_array(damaged / "gradients/step", mode="r+")
    steps[:] = [2, 1, 0]
    with pytest.raises(TraceError, match="is damaged: its steps do not increase"):
        open_trace(damaged).groups["gradients"]


# ----------------------------------------------------------------- damage is where it is, only


@pytest.fixture(params=["folder", "memory", "zip"])
def place(request, tmp_path):
    """Something that damages an object of a trace, and then opens the trace."""
    path = tmp_path / "a"
    with create(path, LAYERS) as writer:
        for step in range(3):
            writer.append("steps", step=step, loss=1.0)
            writer.append("gradients", step=step, full=np.arange(6), projected=np.ones((2, 3)))

    def opened(damage):
        damage(path)
        if request.param == "folder":
            return open_trace(path)
        files = {
            str(file.relative_to(path)): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file()
        }
        if request.param == "zip":
            with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            return open_trace(tmp_path / "a.zip")
        buffer = default_buffer_prototype().buffer
        return open_trace(MemoryStore({k: buffer.from_bytes(v) for k, v in files.items()}))

    return opened


DAMAGES = {
    "flipped": lambda file: flip(file, 1),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "missing": os.remove,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_only_what_is_damaged_raises(place, kind):
    trace = place(lambda path: DAMAGES[kind](path / "gradients/full/c.0.0"))
    assert trace.gradients["step"].values.tolist() == [0, 1, 2]
    assert (trace.gradients["projected"].values == 1).all()
    assert (trace.steps["loss"].values == 1).all()
    assert trace.summary()["damage"] == []
    for read in (lambda full: full.values, lambda full: full.compute(), lambda full: full[1, 2:3]):
        with pytest.raises(DamagedError, match=r"^gradients/full of .* is damaged: shard c\.0\.0"):
            np.asarray(read(trace.gradients["full"]))


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("labels", ["step", "layer"])
def test_damaged_labels_cost_their_group(place, kind, labels):
    trace = place(lambda path: DAMAGES[kind](path / f"gradients/{labels}/c.0"))
    for _ in range(2):
        with pytest.raises(
            DamagedError, match=rf"^gradients/{labels} of .* is damaged: shard c\.0"
        ):
            trace.groups["gradients"]
    assert (trace.steps["loss"].values == 1).all()
    summary = trace.summary()
    assert summary["groups"]["gradients"]["rows"] == 3
    assert summary["steps"]["steps"] == {"count": 3, "first": 0, "last": 2}
    assert summary["steps"]["gradients"] == {"count": 3, "first": None, "last": None}
    assert [words.split(" of ")[0] for words in summary["damage"]] == [f"gradients/{labels}"]
    assert "gradients" in repr(trace)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_table_of_layers_costs_only_itself(place, kind):
    trace = place(lambda path: DAMAGES[kind](path / "layers/numel/c.0"))
    assert trace.gradients["full"].values.shape == (3, 6)
    with pytest.raises(DamagedError, match=r"^layers/numel of .* is damaged"):
        trace.layers  # noqa: B018
    summary = trace.summary()
    assert summary["layers"] == []
    assert len(summary["damage"]) == 1


@pytest.mark.parametrize("codec", [zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec()])
def test_what_another_program_stored_is_read_and_its_damage_told(place, codec):
    """Rows only: what labels are stored as is ours to read."""

    def stored_anew(path):
        values = zarr.open_array(path / "gradients/full", mode="r")[...]
        chunks = {"name": "default", "separator": "."}
        array = zarr.create_array(
            path / "gradients/full",
            data=values,
            chunks=(2, 6),
            compressors=codec,
            chunk_key_encoding=chunks,
            dimension_names=["step", "coordinate"],
            overwrite=True,
        )
        document = json.loads((path / "zarr.json").read_bytes())
        members(document)[FULL] = array.metadata.to_dict() | {"attributes": {}}
        (path / "zarr.json").write_text(json.dumps(document, default=str))
        os.remove(path / "gradients/full/c.1.0")

    trace = place(stored_anew)
    np.testing.assert_array_equal(trace.gradients["full"][:2].values, [np.arange(6)] * 2)
    with pytest.raises(DamagedError, match=r"gradients/full/c\.1\.0 of .* is missing"):
        trace.gradients["full"].values  # noqa: B018
