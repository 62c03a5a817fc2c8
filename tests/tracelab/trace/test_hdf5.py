import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import everykind
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from traces import LAYERS, STEPS, define_noise, write_noise

import tracelab
from tracelab.contracts import Variable
from tracelab.errors import (
    DamagedError,
    MissingExtraError,
    NotRecordedError,
    StorageError,
    TraceError,
    UsageError,
)
from tracelab.trace.hdf5 import writing as hdf5_writing

FEW = settings(
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def write_trace(path):
    """Write noise and weights alone: here every array is read and written several times."""
    rng = np.random.default_rng(0)
    with tracelab.create(path, layers=LAYERS) as writer:
        define_noise(writer)
        for step in STEPS:
            write_noise(writer, step, rng)
        for step in range(200):
            distance = np.sqrt(step) * rng.uniform(0.9, 1, 2)
            writer.append("weights", step=step, distance=distance, norm=1 + distance)
    return path


def root_document(path):
    return json.loads((Path(path) / "zarr.json").read_text())


def assert_same_bits(one, other):
    """Compare values as bytes: NaN payloads and the sign of zero count."""
    assert one.dims == other.dims
    assert one.dtype == other.dtype
    if one.dtype.kind in "OT":
        assert one.values.tolist() == other.values.tolist()
    else:
        assert one.values.tobytes() == other.values.tobytes()


def assert_same_traces(one, other):
    one, other = tracelab.open(one), tracelab.open(other)
    assert one.attrs == other.attrs
    assert set(one.groups) == set(other.groups)
    pairs = [(one.groups[name], other.groups[name]) for name in one.groups]
    pairs += [(one.layers, other.layers)]
    pairs += [(one.results[name], other.results[name]) for name in one.results]
    assert list(one.results) == list(other.results)
    for mine, theirs in pairs:
        assert mine.identical(theirs)
        for name in mine.variables:
            assert_same_bits(mine[name], theirs[name])


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return everykind.write(tmp_path_factory.mktemp("every") / "every.zarr")


@pytest.fixture(scope="module")
def exported(everything):
    file = everything.with_suffix(".h5")
    tracelab.export_hdf5(everything, file)
    return file


# ------------------------------------------------------------------------------------- round trips


def test_everything_comes_back(everything, exported, tmp_path):
    tracelab.import_hdf5(exported, tmp_path / "back.zarr")
    assert_same_traces(everything, tmp_path / "back.zarr")
    # Chunks, codecs, units, the attributes of arrays and groups: what every reader goes by.
    assert root_document(everything) == root_document(tmp_path / "back.zarr")


def test_compressed_traces_come_back_compressed(tmp_path):
    one = everykind.write(tmp_path / "one.zarr", "lz4")
    tracelab.export_hdf5(one, tmp_path / "one.h5")
    tracelab.import_hdf5(tmp_path / "one.h5", tmp_path / "two.zarr")
    assert_same_traces(one, tmp_path / "two.zarr")
    assert root_document(one) == root_document(tmp_path / "two.zarr")


def contents(file):
    """Return all attributes and values of a file, by path."""
    found = {}

    def visit(name, member):
        kept = {
            key: np.asarray(member.attrs[key]).tolist()
            for key in member.attrs
            # References to datasets are addresses in the file.
            if key not in ("DIMENSION_LIST", "REFERENCE_LIST", "tracelab_json")
        }
        kept["tracelab_json"] = sorted(json.loads(member.attrs.get("tracelab_json", "[]")))
        if isinstance(member, h5py.Dataset):
            values = member[()]
            bits = values.tolist() if values.dtype.kind == "O" else values.tobytes()
            scales = [[scale.name for scale in dim.values()] for dim in member.dims]
            found[name] = kept, str(member.dtype), member.shape, member.chunks, bits, scales
        else:
            found[name] = kept

    with h5py.File(file) as root:
        root.visititems(visit)
        visit("/", root)
    return found


def test_hdf5_to_zarr_to_hdf5(exported, tmp_path):
    tracelab.import_hdf5(exported, tmp_path / "back.zarr")
    tracelab.export_hdf5(tmp_path / "back.zarr", tmp_path / "again.h5")
    assert contents(exported) == contents(tmp_path / "again.h5")


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,12}", fullmatch=True).filter(
    lambda name: name not in ("step", "layer", "coordinate_layer", "coordinate_index")
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
SIZES = {"probe": 3, "direction": 5, "batch": 2}


@st.composite
def groups(draw):
    """Return arrays by name: dtype, dimensions, first row; a number of rows, attributes."""
    found = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique_by=str.lower)):
        if name in ("layers", "results", "workers"):
            continue
        arrays = {}
        rows = draw(st.integers(1, 40))
        for array in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
            dtype = draw(st.sampled_from(everykind.DTYPES))
            dims = draw(st.lists(st.sampled_from(list(SIZES)), unique=True, max_size=2))
            late = dtype.startswith(("float", "bool")) and draw(st.booleans())
            arrays[array] = dtype, tuple(dims), draw(st.integers(0, rows)) if late else 0
        attributes = draw(st.dictionaries(NAMES, JSON, max_size=3))
        for key in ("kind", "sketches", "complete", "coordinates"):
            attributes.pop(key, None)
        found[name] = arrays, rows, attributes
    return found


@given(
    groups=groups(),
    metadata=st.dictionaries(st.text(max_size=12), JSON, max_size=4),
    seed=st.integers(0, 99),
)
@FEW
def test_any_trace_comes_back(groups, metadata, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(seed)
    given_ = {f"user {key}": value for key, value in metadata.items() if key.isprintable()}
    with tracelab.create(
        folder / "one.zarr", layers={"a": (2, 2)}, metadata=metadata, attrs=given_
    ) as writer:
        for name, (arrays, rows, attributes) in groups.items():
            variables = [
                Variable(array, ("step", *dims), "1", dtype)
                for array, (dtype, dims, _) in arrays.items()
            ]
            writer.define(name, kind="of_a_test", variables=variables, attrs=attributes)
            for row in range(rows):
                values = {
                    array: everykind.odd_values(rng, dtype, [SIZES[dim] for dim in dims])
                    for array, (dtype, dims, first) in arrays.items()
                    if row >= first
                }
                if values:
                    writer.append(name, step=row * 3, **values)
    tracelab.export_hdf5(folder / "one.zarr", folder / "one.h5")
    tracelab.import_hdf5(folder / "one.h5", folder / "two.zarr")
    assert_same_traces(folder / "one.zarr", folder / "two.zarr")
    assert root_document(folder / "one.zarr") == root_document(folder / "two.zarr")


def test_results_come_back(tmp_path):
    one = write_trace(tmp_path / "one.zarr")
    tracelab.analyze(tracelab.open(one), ["noise_scale", "weight_diffusion"])
    tracelab.export_hdf5(one, tmp_path / "one.h5")
    tracelab.import_hdf5(tmp_path / "one.h5", tmp_path / "two.zarr")
    assert len(tracelab.open(tmp_path / "two.zarr").results) == 2
    assert_same_traces(one, tmp_path / "two.zarr")


def test_traces_of_ranks_come_back(tmp_path):
    one = tmp_path / "one.zarr"
    write_trace(one)
    for rank in (0, 3):
        with tracelab.create(one, layers={"a": (2,)}, rank=rank) as writer:
            writer.append("weights", step=5, norm=[float(rank)])
    tracelab.export_hdf5(one, tmp_path / "one.h5")
    tracelab.import_hdf5(tmp_path / "one.h5", tmp_path / "two.zarr")
    assert_same_traces(one, tmp_path / "two.zarr")
    back = tracelab.open(tmp_path / "two.zarr")
    assert list(back.ranks) == [0, 3]
    for rank in back.ranks:
        inside = f"workers/rank-{rank:03d}"
        assert_same_traces(one / inside, tmp_path / "two.zarr" / inside)


def test_a_live_trace_is_exported_as_one_commit(tmp_path):
    with everykind.begin(tmp_path / "one.zarr", flush_seconds=3600) as writer:
        writer.flush()
        before = tracelab.open(tmp_path / "one.zarr")

        def progress(array, done, total):
            # Committed while the export is under way: shards are replaced by longer ones.
            writer.append("gradients", step=1000 + progress.calls, full=np.ones(everykind.WEIGHTS))
            writer.flush()
            progress.calls += 1

        progress.calls = 0
        tracelab.export_hdf5(before, tmp_path / "one.h5", progress=progress)
        assert progress.calls > 40
        tracelab.import_hdf5(tmp_path / "one.h5", tmp_path / "two.zarr")
        back = tracelab.open(tmp_path / "two.zarr")
        assert back.state == "recording"
        assert back.attrs == before.attrs
        assert back.gradients.sizes["step"] == 70
        for name in before.groups:
            for variable in before.groups[name].variables:
                assert_same_bits(before.groups[name][variable], back.groups[name][variable])
        assert before.refresh().gradients.sizes["step"] == 70 + progress.calls


def test_chosen_groups_alone(everything, tmp_path):
    tracelab.export_hdf5(everything, tmp_path / "part.h5", groups=["weights"])
    tracelab.import_hdf5(tmp_path / "part.h5", tmp_path / "part.zarr")
    assert list(tracelab.open(tmp_path / "part.zarr").groups) == ["weights"]
    with pytest.raises(NotRecordedError, match="did you mean 'weights'"):
        tracelab.export_hdf5(everything, tmp_path / "other.h5", groups=["weigths"])
    assert not (tmp_path / "other.h5").exists()


def test_other_stores(everything, exported, tmp_path):
    import zarr

    store = zarr.storage.MemoryStore()
    tracelab.import_hdf5(exported, store)
    tracelab.export_hdf5(store, tmp_path / "from_memory.h5")
    assert contents(exported) == contents(tmp_path / "from_memory.h5")
    with pytest.raises(UsageError, match="there is a trace at"):
        tracelab.import_hdf5(exported, store)
    tracelab.import_hdf5(exported, store, overwrite=True)
    assert tracelab.open(store).attrs == tracelab.open(everything).attrs


# --------------------------------------------------------------------------- what is in the file


def test_what_other_readers_go_by(everything, exported):
    trace = tracelab.open(everything)
    with h5py.File(exported) as file:
        assert file.attrs["run"] == trace.run
        assert json.loads(file.attrs["metadata"]) == trace.attrs["metadata"]
        assert "metadata" in json.loads(file.attrs["tracelab_json"])
        assert "seed" not in json.loads(file.attrs["tracelab_json"])
        assert file.attrs["seed"] == 7
        assert file.attrs["seed"].dtype == np.int64
        assert file["layers/layer"].asstr()[:].tolist() == list(everykind.LAYERS)
        noise = file["noise"]
        assert [dim.label for dim in noise["sampled"].dims] == ["step", "batch", "coordinate"]
        scales = [[scale.name for scale in dim.values()] for dim in noise["sampled"].dims]
        assert scales == [
            ["/noise/step"],
            [],
            ["/noise/coordinate_layer", "/noise/coordinate_index"],
        ]
        assert [scale.name for scale in noise["projected"].dims[2].values()] == ["/noise/layer"]
        assert noise["sampled"].attrs["units"] == "loss/weight"
        full = file["gradients/full"]
        np.testing.assert_array_equal(full[:], trace.gradients["full"].values)
        assert np.isnan(full.fillvalue)


def test_types_are_what_every_reader_knows(exported):
    """Numbers, and texts of variable length in UTF-8; no enumeration, compound or reference."""
    native = {h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING}
    checked = 0

    def visit(name, member):
        nonlocal checked
        if isinstance(member, h5py.Dataset):
            assert member.id.get_type().get_class() in native
            assert member.id.get_create_plist().get_nfilters() <= 1
            assert np.prod(member.chunks) * member.dtype.itemsize <= 4 * 2**20
            checked += 1
        for key in member.attrs:
            if key not in ("DIMENSION_LIST", "REFERENCE_LIST"):
                assert member.attrs.get_id(key).get_type().get_class() in native, key

    with h5py.File(exported) as file:
        file.visititems(visit)
        visit("/", file)
        assert file["steps/applied"].dtype == np.uint8
        assert set(file["steps/applied"][:]) == {0, 1}
        assert file["steps/applied"].attrs["tracelab_dtype"] == "bool"
    assert checked > 40


def test_chunks_are_the_traces_as_far_as_hdf5_goes(tmp_path):
    with tracelab.create(tmp_path / "a.zarr", layers={"a": (300, 300)}) as writer:
        for step in range(40):
            writer.append("gradients", step=step, full=np.zeros(90_000))
    tracelab.export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["gradients/full"].chunks == (16, 16_384)
        assert file["gradients/full"].maxshape == (None, 90_000)
        assert file["gradients/step"].chunks == (40,)


@pytest.mark.parametrize(
    ("shape", "wanted", "chunk"),
    [
        ((40, 90_000), (16, 16_384), (16, 16_384)),
        ((3, 90_000), (16, 16_384), (3, 16_384)),
        ((0, 5), (1024, 5), (1, 5)),
        ((9, 3000, 90_000), (1, 3000, 16_384), (1, 750, 1024)),
        ((1000, 50, 7, 4), (1, 50, 1, 4), (11, 50, 7, 4)),
    ],
)
def test_chunks_hdf5_can_work_with(shape, wanted, chunk):
    assert hdf5_writing._chunk(shape, wanted, 4) == chunk


@pytest.mark.parametrize("itemsize", [1, 8])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (100, 3), (5, 200, 90_000), (3, 1, 10**7)])
def test_blocks_cover_an_array_once(shape, itemsize):
    chunk = [min(max(size, 1), 1000) for size in shape]
    covered = 0
    corners = set()
    for block in hdf5_writing.blocks(shape, chunk, itemsize):
        sizes = [part.stop - part.start for part in block]
        assert all(part.start % size == 0 for part, size in zip(block, chunk, strict=True))
        assert np.prod(sizes) * itemsize <= max(hdf5_writing.BLOCK_BYTES, np.prod(chunk) * itemsize)
        corners.add(tuple(part.start for part in block))
        covered += int(np.prod(sizes))
    assert covered == int(np.prod(shape))
    assert len(corners) == len(list(hdf5_writing.blocks(shape, chunk, itemsize)))


# ---------------------------------------------------------------------------- files of other hands


def foreign(path):
    """Write what somebody who has only read the conventions would."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "tracelab"
        file.attrs["format_version"] = 1
        file.attrs["optimizer"] = "adam"
        file.attrs["betas"] = [0.9, 0.999]
        file["layers/layer"] = ["dense/kernel", "dense/bias"]
        file["layers/shape"] = ["[3, 4]", "[4]"]
        file["steps/step"] = np.arange(10, dtype=np.int32)
        file["steps/loss"] = np.linspace(2, 1, 10, dtype=np.float32)
        file["steps/applied"] = np.ones(10, bool)
        file["noise/step"] = [0, 5]
        file["noise/full"] = rng.standard_normal((2, 8, 16)).astype(">f4")
        file["noise"].attrs["batch_size"] = 32
        file["eigenvalues/step"] = [0, 5]
        file["eigenvalues/top"] = rng.standard_normal((2, 3))
        file["eigenvalues/top"].dims[0].label = "step"
        file["eigenvalues/top"].dims[1].label = "rank"
        file["eigenvalues/top"].attrs["units"] = "loss/weight^2"


def test_a_script_without_tracelab_can_write_one(tmp_path):
    foreign(tmp_path / "jax.h5")
    tracelab.import_hdf5(tmp_path / "jax.h5", tmp_path / "jax.zarr")
    trace = tracelab.open(tmp_path / "jax.zarr")
    assert trace.state == "complete"
    assert re.fullmatch("[0-9a-f]{32}", trace.run)
    assert trace.attrs["optimizer"] == "adam"
    assert trace.attrs["betas"] == [0.9, 0.999]
    assert trace.layers["numel"].values.tolist() == [12, 4]
    assert trace.layers["offset"].values.tolist() == [0, 12]
    assert trace.steps["applied"].dtype == bool
    assert trace.steps["loss"].attrs["units"] == "loss"
    noise = trace.groups["noise"]
    assert noise["full"].dims == ("step", "batch", "coordinate")
    assert noise["layer"].values.tolist() == ["dense/kernel", "dense/bias"]
    with h5py.File(tmp_path / "jax.h5") as file:
        assert (noise["full"].values == file["noise/full"][:]).all()
    assert trace.eigenvalues["top"].dims == ("step", "rank")
    assert trace.eigenvalues["top"].attrs == {"units": "loss/weight^2", "long_name": "top"}
    found = tracelab.analyze(trace, ["tail_index"])["tail_index"]
    assert (found.sizes["step"], found.sizes["layer"]) == (2, 3)


def test_sampled_coordinates_of_other_hands(tmp_path):
    foreign(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["gradients/step"] = [0]
        file["gradients/sampled"] = np.ones((1, 16), np.float32)
    tracelab.import_hdf5(tmp_path / "a.h5", tmp_path / "a.zarr")
    gradients = tracelab.open(tmp_path / "a.zarr").gradients
    assert gradients["coordinate_layer"].values.tolist() == [0] * 12 + [1] * 4
    assert gradients["coordinate_index"].values.tolist() == [*range(12), *range(4)]


def refused(change):
    """Return a file of another hand, changed."""

    def write(path):
        foreign(path)
        with h5py.File(path, "a") as file:
            change(file)

    return write


def soft_cycle(file):
    file["noise/again"] = h5py.SoftLink("/noise")


def external_link(file):
    file["other"] = h5py.ExternalLink("/etc/passwd", "/")


def hard_cycle(file):
    file["noise/again"] = file["noise"]


def rank_cycle(file):
    file["workers/rank-000"] = file["/"]


def external_storage(file):
    file.create_dataset("noise/x", (2,), "f4", external=[("/etc/passwd", 0, 8)])


def virtual(file):
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (2,))
    file.create_virtual_dataset("noise/x", layout)


def unknown_filter(file):
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((2,))
    properties.set_filter(32_001, h5py.h5z.FLAG_OPTIONAL, (0,) * 4)
    space = h5py.h5s.create_simple((2,))
    h5py.h5d.create(file["noise"].id, b"x", h5py.h5t.NATIVE_FLOAT, space, properties)


def huge(shape, chunks):
    def change(file):
        file.create_dataset("gradients/step", (1,), "i8")
        file.create_dataset("gradients/full", shape, "f4", chunks=chunks)

    return change


def put(path, values):
    def change(file):
        if path in file:
            del file[path]
        file[path] = values

    return change


def attribute(path, name, value):
    def change(file):
        file[path].attrs[name] = value

    return change


def attribute_of_references(file):
    file["noise"].attrs["see"] = file["noise"].ref


def wrong_labels(file):
    file["noise/full"].attrs["DIMENSION_LABELS"] = np.arange(3)


HOSTILE = {
    "soft link that leads back": (soft_cycle, "noise/again is a soft link"),
    "external link": (external_link, "other is an external link"),
    "group in itself": (hard_cycle, "noise/again is not a dataset"),
    "rank that is the whole": (rank_cycle, "workers/rank-000/workers/rank-000 is not a dataset"),
    "external storage": (external_storage, "keeps its values in other files"),
    "virtual dataset": (virtual, "keeps its values in other files"),
    "filter of a plugin": (unknown_filter, "needs the filter 32001"),
    "shape of 1e18": (huge((10**9, 10**9), (1, 1024)), "which a file of .* bytes cannot hold"),
    "large chunks": (huge((100, 10**8), (1, 10**8)), "too large to read one by one"),
    "compound": (put("noise/x", np.zeros(2, [("a", "f4")])), "noise/x is a compound"),
    "complex": (put("noise/x", np.zeros(2, complex)), "noise/x is a compound"),
    "half precision": (put("noise/x", np.zeros(2, "f2")), "noise/x holds float16"),
    "opaque": (put("noise/x", np.zeros(2, "V3")), "noise/x is opaque"),
    "null space": (put("noise/x", h5py.Empty("f4")), "has the shape None"),
    "scalar": (put("steps/x", 3.0), "steps/x does not say what its 0 dimensions are|has the shape"),
    "reference": (attribute_of_references, "'see' of noise is a reference"),
    "labels that are numbers": (wrong_labels, "noise/full has 3 dimensions"),
    "text that is no UTF-8": (
        attribute("noise", "said", np.bytes_(b"\xff\xfe")),
        "'said' of noise is no text",
    ),
    "dataset at the top": (put("x", [1.0]), "x is no group"),
    "name that is no name": (put("noise/a b", [1.0, 2.0]), "cannot be the name"),
    "steps that go back": (
        put("noise/step", [5, 5]),
        "noise/step holds steps that do not increase",
    ),
    "negative steps": (put("noise/step", [-1, 5]), "noise/step holds steps"),
    "steps that are no integers": (put("noise/step", [0.0, 1.0]), "not a list of integers"),
    "steps of another length": (put("noise/step", [0, 5, 6]), "along 'step'"),
    "no layers": (lambda file: file.__delitem__("layers"), "no group 'layers'"),
    "layers twice": (put("layers/layer", ["a", "a"]), "different names"),
    "shape that is none": (put("layers/shape", ["[3, 4]", "(4,)"]), "no JSON list of sizes"),
    "shape of a billion billions": (
        put("layers/shape", ["[3, 4]", f"[{10**18}, {10**18}]"]),
        "more weights than there can be",
    ),
    "numel of another shape": (put("layers/numel", [12, 5]), "does not agree with layers/shape"),
    "unknown layer": (put("noise/layer", ["nobody"]), "does not have different layers"),
    "another number of weights": (put("layers/shape", ["[3, 4]", "[5]"]), "16 coordinates of 17"),
    "dimensions unsaid": (put("noise/x", np.zeros((2, 2))), 'dims.0..label = "step"'),
    "newer format": (attribute("/", "format_version", 2), "has format version 2"),
    "another format": (attribute("/", "format", "netcdf"), "'format' is 'netcdf'"),
    "state that is no text": (attribute("/", "state", 3), "'state' is 3"),
    "JSON that is none": (attribute("/", "tracelab_json", '["optimizer"]'), "not the JSON"),
    "JSON of something absent": (attribute("/", "tracelab_json", '["gone"]'), "lists 'gone'"),
    "deep JSON": (attribute("/", "tracelab_attributes", "[" * 10**5), "not the JSON"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_trace_holds_is_refused(what, tmp_path):
    change, words = HOSTILE[what]
    refused(change)(tmp_path / "a.h5")
    with pytest.raises(TraceError, match=words) as caught:
        tracelab.import_hdf5(tmp_path / "a.h5", tmp_path / "a.zarr")
    assert "a.h5 cannot be imported" in str(caught.value)
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.slow
def test_an_attribute_of_1_gb_is_refused_before_it_is_read(tmp_path):
    foreign(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["long"] = "x" * 10**9
    script = """
        import sys
        from pathlib import Path
        import h5py, xarray, dask.array, tracelab, tracelab.trace.hdf5
        import tracelab.trace.hdf5.restoring, tracelab.trace.hdf5.completing
        def peak():
            # Not ru_maxrss: that begins with what the process that started this one had taken.
            return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        before = peak()
        try:
            tracelab.import_hdf5(sys.argv[1], sys.argv[2])
        except tracelab.errors.TraceError as error:
            print(error)
        assert peak() - before < 100_000
    """
    done = run(script, tmp_path / "a.h5", tmp_path / "a.zarr")
    assert "are not values of datasets" in done.stdout


def test_every_checksum_is_checked(exported, tmp_path):
    with h5py.File(exported) as file:
        for path in ("gradients/full", "noise/projected", "layers/numel", "noise/step"):
            chunk = file[path].id.get_chunk_info(0)
            content = bytearray(exported.read_bytes())
            content[chunk.byte_offset + chunk.size // 2] ^= 1
            (tmp_path / "a.h5").write_bytes(content)
            with pytest.raises(DamagedError, match=f"a.h5 cannot be imported.*{path}"):
                tracelab.import_hdf5(tmp_path / "a.h5", tmp_path / "a.zarr")
            assert os.listdir(tmp_path) == ["a.h5"]


def test_a_cut_off_file_is_damaged(exported, tmp_path):
    content = exported.read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedError, match=r"a\.h5 cannot be imported"):
        tracelab.import_hdf5(tmp_path / "a.h5", tmp_path / "a.zarr")
    assert os.listdir(tmp_path) == ["a.h5"]


def test_files_that_are_none(everything, tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(TraceError, match=r"text\.h5 is not an HDF5 file"):
        tracelab.import_hdf5(tmp_path / "text.h5", tmp_path / "a.zarr")
    with pytest.raises(TraceError, match="holds no tracelab trace"):
        tracelab.import_hdf5(tmp_path / "other.h5", tmp_path / "a.zarr")
    with pytest.raises(UsageError, match="there is no file"):
        tracelab.import_hdf5(tmp_path / "none.h5", tmp_path / "a.zarr")
    with pytest.raises(UsageError, match="named by a local path"):
        tracelab.export_hdf5(everything, "s3://bucket/a.h5")


# ------------------------------------------------------------------------ what is there stays there


def test_a_file_is_replaced_only_when_asked(everything, exported, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an HDF5 file, so it is left alone"):
        tracelab.export_hdf5(everything, tmp_path / "notes.txt", overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="overwrite=True"):
        tracelab.export_hdf5(everything, exported)
    with pytest.raises(UsageError, match="there is no folder"):
        tracelab.export_hdf5(everything, tmp_path / "none" / "a.h5")
    foreign(tmp_path / "a.h5")
    tracelab.export_hdf5(everything, tmp_path / "a.h5", overwrite=True)
    assert contents(tmp_path / "a.h5") == contents(exported)


def test_a_trace_is_replaced_only_when_asked(exported, everything, tmp_path):
    path = write_trace(tmp_path / "a.zarr")
    with pytest.raises(UsageError, match="there is a trace at"):
        tracelab.import_hdf5(exported, path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a trace, so it is left alone"):
        tracelab.import_hdf5(exported, tmp_path / "b", overwrite=True)
    with tracelab.create(tmp_path / "c.zarr", layers={"a": (1,)}) as writer:
        with pytest.raises(UsageError, match="is being recorded"):
            tracelab.import_hdf5(exported, tmp_path / "c.zarr", overwrite=True)
        writer.append("weights", step=0, norm=[1.0])
    assert tracelab.open(tmp_path / "c.zarr").weights.sizes["step"] == 1
    tracelab.import_hdf5(exported, path, overwrite=True)
    assert_same_traces(everything, path)
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b", "c.zarr"]


class Stop(BaseException):
    """As Ctrl-C comes: no Exception."""


@pytest.mark.parametrize("calls", [1, 10, 40])
def test_an_interruption_leaves_what_was_there(calls, everything, exported, tmp_path):
    foreign(tmp_path / "a.h5")
    path = write_trace(tmp_path / "a.zarr")
    before = (tmp_path / "a.h5").read_bytes(), root_document(path)
    left = calls

    def progress(array, done, total):
        nonlocal left
        left -= 1
        if not left:
            raise Stop

    for work in (
        lambda: tracelab.export_hdf5(
            everything, tmp_path / "a.h5", overwrite=True, progress=progress
        ),
        lambda: tracelab.import_hdf5(exported, path, overwrite=True, progress=progress),
    ):
        left = calls
        with pytest.raises(Stop):
            work()
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "a.zarr"]
    assert ((tmp_path / "a.h5").read_bytes(), root_document(path)) == before
    assert len(tracelab.open(path).weights["norm"].values) == 200


def test_a_damaged_trace_is_not_exported(tmp_path):
    path = everykind.write(tmp_path / "a.zarr")
    shard = next((path / "gradients" / "full").glob("c.*"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedError, match=r"gradients/full"):
        tracelab.export_hdf5(path, tmp_path / "a.h5")
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_a_trace_replaced_meanwhile_is_not_exported(tmp_path):
    path = write_trace(tmp_path / "a.zarr")
    trace = tracelab.open(path)
    tracelab.create(path, layers={"a": (1,)}, overwrite=True).close()
    with pytest.raises(TraceError):
        tracelab.export_hdf5(trace, tmp_path / "a.h5")
    assert os.listdir(tmp_path) == ["a.zarr"]


def run(script, *arguments, check=True):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=check,
    )


def test_without_room_nothing_is_left(everything, exported, tmp_path):
    """A limit on the size of files fails as a full disk does."""
    limit = os.path.getsize(exported) // 2
    script = """
        import os, resource, sys
        import tracelab
        trace, file, back, limit = sys.argv[1:]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
        for work in (
            lambda: tracelab.export_hdf5(trace, file),
            lambda: tracelab.import_hdf5(trace[:-5] + ".h5", back),
        ):
            try:
                work()
            except tracelab.errors.StorageError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, int(limit)))
    """
    done = run(script, everything, tmp_path / "a.h5", tmp_path / "a.zarr", limit)
    first, second = done.stdout.splitlines()
    assert "a.h5 cannot be written: File too large; nothing is left of it" in first
    assert "a.zarr cannot be written: File too large; nothing is left of it" in second
    assert os.listdir(tmp_path) == []


def test_a_killed_export_leaves_no_file_of_that_name(everything, tmp_path):
    script = """
        import os, signal, sys
        import tracelab
        calls = 0
        def progress(array, done, total):
            global calls
            calls += 1
            if calls == 20:
                os.kill(os.getpid(), signal.SIGKILL)
        tracelab.export_hdf5(sys.argv[1], sys.argv[2], progress=progress)
    """
    done = run(script, everything, tmp_path / "a.h5", check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_memory_does_not_grow_with_the_trace(compression, tmp_path):
    """A trace of 1.5 GB goes both ways in less than 300 MB over what importing modules takes."""
    base = np.random.default_rng(0).standard_normal(10**6, dtype=np.float32)
    with tracelab.create(
        tmp_path / "a.zarr", layers={"a": (1000, 1000)}, compression=compression
    ) as writer:
        for step in range(250):
            writer.append("gradients", step=step, full=np.roll(base, step))
        for step in range(2):
            # A row is larger than what may be held.
            row = np.tile(base, (64, 1))
            writer.append("noise", step=step, full=row)
    script = """
        import sys
        from pathlib import Path
        import h5py, xarray, dask.array, tracelab, tracelab.trace.hdf5, tracelab.trace.hdf5.parts
        import tracelab.trace.hdf5.restoring, tracelab.trace.hdf5.completing
        def peak():
            # Not ru_maxrss: that begins with what the process that started this one had taken.
            return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        before = peak()
        tracelab.export_hdf5(sys.argv[1], sys.argv[2])
        middle = peak()
        tracelab.import_hdf5(sys.argv[2], sys.argv[3])
        print((middle - before) / 1024, (peak() - before) / 1024)
    """
    done = run(script, tmp_path / "a.zarr", tmp_path / "a.h5", tmp_path / "b.zarr")
    assert all(float(grown) < 300 for grown in done.stdout.split())
    assert os.path.getsize(tmp_path / "a.h5") > 1.4e9
    one, two = (tracelab.open(tmp_path / name) for name in ("a.zarr", "b.zarr"))
    for step in (0, 100, 249):
        assert (
            one.gradients["full"].sel(step=step).values.tobytes()
            == two.gradients["full"].sel(step=step).values.tobytes()
        )


def test_what_is_missing_is_named(everything, tmp_path, monkeypatch):
    monkeypatch.setattr("tracelab.trace.hdf5.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"tracelab\[hdf5\]"):
        tracelab.export_hdf5(everything, tmp_path / "a.h5")
    with pytest.raises(MissingExtraError, match=r"tracelab\[hdf5\]"):
        tracelab.import_hdf5(tmp_path / "a.h5", tmp_path / "a.zarr")


def test_a_text_that_ends_at_nul_is_refused_in_a_sentence(tmp_path):
    document = {
        "data_type": "string",
        "shape": [2],
        "dimension_names": ["layer"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "codecs": [{"name": "vlen-utf8"}],
        "attributes": {},
    }
    values = np.array(["a", "b\0c"], dtype=object)
    with h5py.File(tmp_path / "a.h5", "w") as file, pytest.raises(TraceError, match="ends texts"):
        list(hdf5_writing.write_group(file, "layers", {}, {"layer": (document, values)}))


def test_where_nothing_can_be_written(everything):
    with pytest.raises(StorageError, match="cannot be written"):
        tracelab.export_hdf5(everything, "/proc/a.h5")


def test_results_kept_elsewhere_come_along(tmp_path):
    one = write_trace(tmp_path / "one.zarr")
    tracelab.analyze(tracelab.open(one), ["noise_scale"], out=tmp_path / "results")
    shown = tracelab.open(one, results=tmp_path / "results")
    tracelab.export_hdf5(shown, tmp_path / "one.h5")
    tracelab.import_hdf5(tmp_path / "one.h5", tmp_path / "two.zarr")
    back = tracelab.open(tmp_path / "two.zarr").results
    assert list(back) == ["noise_scale"]
    assert back["noise_scale"].identical(shown.results["noise_scale"])


def test_a_trace_whose_rank_is_recording_is_not_replaced(exported, tmp_path):
    path = write_trace(tmp_path / "a.zarr")
    with tracelab.create(path, layers={"a": (2,)}, rank=1) as writer:
        writer.append("weights", step=0, norm=[1.0])
        writer.flush()
        with pytest.raises(UsageError, match="is being recorded"):
            tracelab.import_hdf5(exported, path, overwrite=True)
    assert tracelab.open(path).ranks[1].weights.sizes["step"] == 1
    assert os.listdir(tmp_path) == ["a.zarr"]
