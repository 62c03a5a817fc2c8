"""What can be read is kept, what cannot is dropped and said, and the damaged trace is untouched."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import damage
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import tracelab
from tracelab import repair, verify
from tracelab.errors import UsageError
from tracelab.trace.writing.lock import LOCK_FILE


def slow(parameter):
    return pytest.param(parameter, marks=pytest.mark.slow)


ARRAYS = {
    "gradients": ("full", "projected"),
    "counts": ("bins", "mass"),
    "noise": ("sampled", "mean_sampled"),
    "steps": ("loss", "applied"),
}


@pytest.fixture(scope="module", params=["none", slow("lz4")])
def written(request, tmp_path_factory):
    return damage.write(tmp_path_factory.mktemp("written") / "a.zarr", compression=request.param)


@pytest.fixture
def path(written, tmp_path):
    return shutil.copytree(written, tmp_path / "a.zarr")


def rows_of(path):
    """Return every group as xarray reads it, without tracelab."""
    with xr.open_datatree(path, engine="zarr", chunks=None) as tree:
        return {name: tree[name].to_dataset().load() for name in ARRAYS if name in tree}


def check_kept(path, *, lost=()):
    """Check that every value is the recorded one, or missing in one of the arrays named."""
    found = rows_of(path)
    for group, rows in found.items():
        for number, step in enumerate(rows["step"].values.tolist()):
            for array, wanted in damage.row(step)[group].items():
                if array not in rows:
                    assert f"{group}/{array}" in lost
                    continue
                value = rows[array].values[number]
                if f"{group}/{array}" in lost:
                    missing = np.isnan(value) if value.dtype.kind == "f" else value == 0
                    assert ((value == wanted) | missing).all()
                else:
                    np.testing.assert_array_equal(value, wanted)
    return found


def mended(path):
    """Repair a trace; return what was done, after checking what holds for every repair."""
    before = damage.contents(path)
    told = repair(path, dry_run=True)
    assert damage.contents(path) == before
    assert os.listdir(path.parent) == [path.name]
    done = repair(path)
    copy = Path(done.copy)
    assert copy == path.with_name("a.damaged-1.zarr")
    assert damage.contents(copy) == before
    assert sorted(os.listdir(path.parent)) == ["a.damaged-1.zarr", "a.zarr"]
    assert [loss.sentence for loss in told.dropped] == [loss.sentence for loss in done.dropped]
    assert told.dry_run
    report = verify(path)
    assert report.sound, report
    attrs = tracelab.open(path).attrs
    assert attrs["repairs"][-1]["dropped"] == [loss.sentence for loss in done.dropped]
    if done.dropped:
        assert attrs["state"] == "incomplete"
        assert attrs["generation"] == 1
        assert "damaged; repaired on" in attrs["incomplete_reasons"][-1]
    else:
        assert attrs["state"] == "complete"
        assert attrs.get("generation", 0) == 0
    json.dumps(done.summary())
    assert repair(path).copy is None
    return done


def test_nothing_is_done_to_a_sound_trace(path):
    before = damage.contents(path)
    done = repair(path)
    assert (done.copy, done.dropped, done.restored) == (None, (), ())
    assert "nothing is damaged" in repr(done)
    assert damage.contents(path) == before


def test_a_damaged_chunk_is_missing_and_all_others_have_the_same_bytes(path):
    file = path / "gradients/full/c.1.0"
    damage.flip(file, 1000)
    done = mended(path)
    (loss,) = done.dropped
    assert (loss.group, loss.array, loss.steps) == ("gradients", "full", (160, 310))
    assert loss.sentence == "gradients/full, steps 160 to 310: 1 chunk, missing from now on"
    rows = check_kept(path, lost=("gradients/full",))
    missing = np.isnan(rows["gradients"]["full"].values)
    assert missing[16:32].all()
    assert missing.sum() == 16 * 2030
    # What did not change is shared with the damaged trace.
    copy = Path(done.copy)
    for other in damage.files(path):
        same = other.samefile(copy / other.relative_to(path))
        assert same == (other != file)


def test_other_chunks_of_the_shard_are_kept_byte_by_byte(path):
    file = path / "noise/sampled/c.0.0.0"
    before = file.read_bytes()
    slot = 16 * 24 * 4 + 4
    for cell in (0, 7, 39):
        damage.flip(file, cell * slot + 11, 0x3C)
    mended(path)
    rows = check_kept(path, lost=("noise/sampled",))
    missing = np.isnan(rows["noise"]["sampled"].values).all(axis=(1, 2))
    assert np.flatnonzero(missing).tolist() == [0, 7, 39]
    kept = [before[n * slot : (n + 1) * slot] for n in range(40) if n not in (0, 7, 39)]
    assert file.read_bytes().startswith(b"".join(kept))


def test_where_there_is_no_missing_value_rows_are_dropped(path):
    """An integer cannot be missing: its rows go, with all the group's arrays."""
    damage.overwrite(path / "counts/bins/c.0.0.0", 40, b"damage" * 20)
    done = mended(path)
    rows = check_kept(path)
    # Chunks of bins hold 32 rows.
    assert rows["counts"]["step"].values.tolist() == list(range(320, 400, 10))
    assert rows["gradients"].sizes["step"] == 40
    (loss,) = done.dropped
    assert (loss.group, loss.rows, loss.steps) == ("counts", 32, (0, 310))
    assert "counts: 32 of 40 rows, between steps 0 and 310" in loss.sentence


def test_rows_between_others_are_dropped_and_the_rest_is_cut_anew(tmp_path):
    """Chunks that end elsewhere, many shards, rows that are missing, shards side by side."""
    path = tmp_path / "a.zarr"
    variables = (
        tracelab.contracts.Variable("bins", ("step", "bin"), "1", "int32", "counts"),
        tracelab.contracts.Variable("mass", ("step", "coordinate"), "1", "float32", "floats"),
        tracelab.contracts.Variable("late", ("step", "bin"), "1", "float64", "from row 90 on"),
    )

    def values(step):
        rng = np.random.default_rng(step)
        found = {
            "bins": rng.integers(0, 99, 3000, dtype=np.int32),
            "mass": rng.standard_normal(40_000).astype(np.float32),
        }
        return found | ({"late": rng.standard_normal(3000)} if step >= 90 else {})

    with tracelab.create(path, {"w": (40_000,)}, queue_bytes=2**20) as writer:
        writer.define("g", kind="own", variables=variables)
        for step in range(130):
            writer.append("g", step=step, **values(step))
    shard, chunk = (
        extents["chunk_shape"][0]
        for codec in [json.loads((path / "g/bins/zarr.json").read_bytes())]
        for extents in (
            codec["chunk_grid"]["configuration"],
            codec["codecs"][0]["configuration"],
        )
    )
    assert len(list((path / "g/mass").glob("c.*.*"))) > 8
    assert chunk < shard < 130
    damage.overwrite(path / f"g/bins/c.{37 // shard}.0", 100, b"damage" * 9)
    damage.overwrite(path / "g/mass/c.7.0", 100, b"damage" * 9)
    first, last = next(each.rows for each in verify(path).damages if each.array == "bins")
    mended(path)
    with xr.open_datatree(path, engine="zarr", chunks=None) as tree:
        rows = tree["g"].to_dataset().load()
    kept = [step for step in range(130) if not first <= step <= last]
    assert rows["step"].values.tolist() == kept
    for place, step in enumerate(kept):
        wanted = values(step)
        np.testing.assert_array_equal(rows["bins"].values[place], wanted["bins"])
        mass = rows["mass"].values[place]
        assert ((mass == wanted["mass"]) | np.isnan(mass)).all()
        late = rows["late"].values[place]
        assert np.array_equal(late, wanted["late"]) if step >= 90 else np.isnan(late).all()
    missing = np.isnan(rows["mass"].values)
    assert 0 < missing.sum() < missing.size / 2


def test_no_row_of_a_group_can_be_kept(path):
    (path / "gradients/step/c.0").unlink()
    done = mended(path)
    assert "gradients: 40 of 40 rows, all of them, whose steps cannot be read" in repr(done)
    rows = check_kept(path)
    assert rows["gradients"].sizes["step"] == 0
    assert rows["noise"].sizes["step"] == 40


@pytest.mark.parametrize("place", [-1, 3, -20, *map(slow, [-2, 200, -60])])
def test_a_damaged_index_loses_nothing_that_proves_right(path, place):
    """Every chunk has a checksum of its own: the index is made anew from those that fit it."""
    file = path / "noise/sampled/c.0.0.0"
    length = (
        16
        * json.loads((path / "noise/sampled/zarr.json").read_bytes())["chunk_grid"][
            "configuration"
        ]["chunk_shape"][0]
    )
    damage.flip(file, place if place < 0 else file.stat().st_size - 4 - length + place)
    done = mended(path)
    rows = check_kept(path, lost=("noise/sampled",))
    missing = np.isnan(rows["noise"]["sampled"].values).all(axis=(1, 2)).sum()
    assert missing == sum(len(loss.sentence) > 0 for loss in done.dropped)
    assert missing <= 1
    if place in (-1, -2):
        assert missing == 0
        assert done.restored == ("noise/sampled/c.0.0.0: nothing of it is lost",)


def test_an_index_that_is_cut_off_is_found_again(tmp_path):
    path = damage.write(tmp_path / "a.zarr")
    file = path / "noise/sampled/c.0.0.0"
    os.truncate(file, file.stat().st_size - 3)
    done = mended(path)
    assert done.dropped == ()
    check_kept(path)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 32808 * 8 - 1))
def test_a_flipped_bit_in_the_steps_loses_nothing(written, tmp_path_factory, bit):
    """Of its chunk, the checksum leaves no doubt; of its index, the chunk's."""
    folder = tmp_path_factory.mktemp("flipped")
    path = shutil.copytree(written, folder / "a.zarr")
    damage.flip(path / "gradients/step/c.0", bit // 8, 1 << bit % 8)
    done = repair(path)
    assert verify(path).sound
    if bit // 8 < 32772:
        assert done.dropped == ()
        check_kept(path)
    shutil.rmtree(folder)


def test_values_are_never_guessed(path):
    """The same flipped bit in a chunk of floats makes it missing."""
    damage.flip(path / "counts/mass/c.0.0", 17, 1)
    mended(path)
    assert np.isnan(rows_of(path)["counts"]["mass"].values).all()


def test_damage_beyond_the_last_row_loses_nothing(path):
    damage.overwrite(path / "counts/mass/c.0.0", 6000, b"damage")
    assert not verify(path).sound
    done = mended(path)
    assert done.dropped == ()
    check_kept(path)


def test_steps_that_do_not_increase(path):
    zarr.open_array(path / "gradients/step", mode="r+")[20:22] = [10_000, 5]
    done = mended(path)
    steps = rows_of(path)["gradients"]["step"].values.tolist()
    assert steps == [10 * row for row in range(40) if row not in (20, 21)]
    assert "2 of 40 rows" in done.dropped[0].sentence


@pytest.mark.parametrize("name", ["layer", "kind", "shape", "numel", "offset"])
@pytest.mark.parametrize("way", ["deleted", "first byte", *map(slow, ["half", "folder"])])
def test_the_layer_table(path, name, way):
    table = tracelab.open(path).layers.load()
    damage.WAYS[way](path / f"layers/{name}/c.0")
    done = mended(path)
    found = tracelab.open(path).layers.load()
    if name in ("layer", "numel", "offset"):
        # Without its bytes nothing proves that the order is the same.
        assert len(done.dropped) == (name == "layer" and way != "first byte")
        xr.testing.assert_identical(found, table)
    else:
        assert len(done.dropped) == 1
        xr.testing.assert_identical(found.drop_vars(name), table.drop_vars(name))
        wanted = {"kind": ["unknown"] * 2, "shape": ["[2000]", "[30]"]}[name]
        assert found[name].values.tolist() == wanted
    check_kept(path)


@pytest.mark.parametrize("way", ["deleted", "first byte", "last byte", "half"])
def test_names_of_layers_of_a_group(path, way):
    damage.WAYS[way](path / "gradients/layer/c.0")
    done = mended(path)
    proved = way in ("first byte", "last byte")
    assert len(done.dropped) == (not proved)
    assert ("taken to be those of the trace" in repr(done)) == (not proved)
    assert rows_of(path)["gradients"]["layer"].values.tolist() == ["a", "b"]
    check_kept(path)


def record_subset(path, layers):
    shapes = dict.fromkeys("abcdef", (3,))
    with tracelab.create(path, shapes) as writer:
        writer.define("gradients", layers=layers)
        for step in range(3):
            writer.append("gradients", step=step, full=np.ones(3 * len(layers)))
            writer.append("weights", step=step, norm=np.ones(6))
    return Path(path)


def test_names_of_layers_are_never_given_in_another_order(tmp_path):
    """Names of the right number are there, in an order that the checksums speak against."""
    path = record_subset(tmp_path / "a.zarr", list("fedcba"))
    damage.overwrite(path / "layers/layer/c.0", 9, b"x\0x")
    damage.overwrite(path / "weights/layer/c.0", 9, b"x\0x")
    done = mended(path)
    assert tracelab.open(path).layers["layer"].values.tolist()[0] == "unknown-0"
    assert list(tracelab.open(path).groups) == ["gradients"]
    assert len(done.dropped) == 2


def test_a_flipped_bit_in_names_loses_nothing(tmp_path):
    path = record_subset(tmp_path / "a.zarr", list("fedcba"))
    damage.flip(path / "layers/layer/c.0", 9)
    damage.flip(path / "weights/layer/c.0", -2)
    done = mended(path)
    assert done.dropped == ()
    assert tracelab.open(path).layers["layer"].values.tolist() == list("abcdef")
    assert tracelab.open(path).weights["layer"].values.tolist() == list("abcdef")


def test_a_group_whose_layers_nobody_knows_is_dropped_as_a_whole(tmp_path):
    path = record_subset(tmp_path / "a.zarr", ["b", "e"])
    (path / "gradients/layer/c.0").unlink()
    done = mended(path)
    (loss,) = done.dropped
    assert loss.sentence.startswith("gradients: all of it; the names of its layers cannot be read")
    assert list(tracelab.open(path).groups) == ["weights"]
    assert not (path / "gradients").exists()


def test_layers_whose_names_nobody_knows(tmp_path):
    path = record_subset(tmp_path / "a.zarr", ["b", "e"])
    shutil.rmtree(path / "weights")
    document = json.loads((path / "zarr.json").read_bytes())
    held = document["consolidated_metadata"]["metadata"]
    for key in [key for key in held if key.startswith("weights")]:
        del held[key]
    (path / "zarr.json").write_text(json.dumps(document))
    (path / "layers/layer/c.0").unlink()
    done = mended(path)
    assert "no group has the names of all layers" in done.dropped[0].sentence
    names = tracelab.open(path).layers["layer"].values.tolist()
    assert names == [f"unknown-{number}" for number in range(6)]
    assert tracelab.open(path).gradients["layer"].values.tolist() == ["b", "e"]


@pytest.mark.parametrize("name", ["coordinate_layer", "coordinate_index"])
def test_coordinate_tables_come_back_from_their_sketch(path, name):
    damage.flip(path / f"noise/{name}/c.0", 20)
    tables = tracelab.Sample(12).tables({"a": 2000, "b": 30})
    done = mended(path)
    assert done.dropped == ()
    noise = tracelab.open(path).noise
    del noise
    group = tracelab.open(path).groups["noise"]
    np.testing.assert_array_equal(group["coordinate_layer"].values, tables[0])
    np.testing.assert_array_equal(group["coordinate_index"].values, tables[1])
    check_kept(path)


def test_coordinates_that_nobody_knows_take_their_arrays_along(path):
    """Without its file there is no evidence that the sketch's coordinates are those recorded."""
    (path / "noise/coordinate_index/c.0").unlink()
    done = mended(path)
    assert {loss.array for loss in done.dropped} == {
        "coordinate_index",
        "coordinate_layer",
        "mean_sampled",
        "sampled",
    }
    assert list(tracelab.open(path).groups["noise"].variables) == ["step", "layer"]


@pytest.mark.parametrize(
    "content", [None, b"{", "half", *map(slow, [b"", b"[]", b"\xff" * 9, "folder"])]
)
def test_a_damaged_root_document(path, content):
    attrs = tracelab.open(path).attrs
    root = path / "zarr.json"
    whole = root.read_bytes()
    root.unlink()
    if content == "folder":
        root.mkdir()
    elif content is not None:
        root.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    done = mended(path)
    assert "the root document, from those of groups and arrays" in done.restored
    found = check_kept(path)
    assert {name: rows.sizes["step"] for name, rows in found.items()} == dict.fromkeys(ARRAYS, 40)
    now = tracelab.open(path).attrs
    if content == "half":
        assert done.dropped == ()
        assert {key: now[key] for key in attrs} == attrs
    else:
        assert now["run"] != attrs["run"]
        assert "the run's identifier" in done.dropped[0].sentence
        assert "metadata, model, optimizer, seed, created" in done.dropped[1].sentence


def test_the_run_of_a_lost_root_document_is_that_of_its_results(trace_path):
    run = tracelab.open(trace_path).run
    tracelab.analyze(trace_path, ["noise_scale"])
    (trace_path / "zarr.json").unlink()
    repair(trace_path)
    trace = tracelab.open(trace_path)
    assert trace.run == run
    assert list(trace.results) == ["noise_scale"]


def test_documents_come_back_from_the_root_document(path):
    for key in ("gradients", "gradients/full", "layers", "layers/numel"):
        (path / key / "zarr.json").write_text("{")
    damage.rewrite(
        path / "counts/bins/zarr.json", lambda document: document.update(shape=[3, 2, 300])
    )
    before = damage.contents(path)
    done = mended(path)
    assert done.dropped == ()
    assert len(done.restored) == 5
    assert before.keys() == damage.contents(path).keys()
    assert zarr.open_array(path / "counts/bins", mode="r").shape == (40, 2, 300)
    check_kept(path)


def test_damaged_results_are_removed(trace_path):
    tracelab.analyze(trace_path, ["noise_scale"])
    data = [file for file in damage.files(trace_path / "results") if file.stat().st_size > 20]
    for file in data:
        file.write_bytes(b"\0" * 8)
    done = repair(trace_path)
    assert done.dropped
    assert all(loss.group.startswith("results/noise_scale/") for loss in done.dropped)
    assert verify(trace_path).sound
    trace = tracelab.open(trace_path)
    assert list(trace.results) == []
    # No row is touched.
    assert trace.state == "complete"
    assert trace.attrs.get("generation", 0) == 0
    assert tracelab.analyze(trace, ["noise_scale"])["noise_scale"]["status"].size


def test_leftovers_are_not_taken_along(path):
    (path / "gradients/full/c.9.0.partial").write_bytes(b"x")
    damage.flip(path / "gradients/full/c.1.0", 9)
    mended(path)
    assert verify(path).leftovers == ()


def test_a_link_to_a_good_shard_becomes_a_file(path, tmp_path):
    file = path / "gradients/full/c.1.0"
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    done = repair(path)
    assert done.dropped == ()
    assert not file.is_symlink()
    check_kept(path)


@pytest.mark.parametrize("way", ["cycle", "pipe", "folder"])
def test_what_is_no_file_holds_nothing(path, way):
    damage.WAYS[way](path / "gradients/full/c.1.0")
    done = mended_without_comparing(path)
    assert [loss.steps for loss in done.dropped] == [(160, 310)]
    check_kept(path, lost=("gradients/full",))


def mended_without_comparing(path):
    """Repair a trace with an object whose bytes cannot be read to compare them."""
    done = repair(path)
    assert verify(path).sound
    assert (path / "gradients/full/c.1.0").is_file()
    return done


@pytest.mark.parametrize("key", ["gradients", "gradients/full", "layers"])
def test_a_link_to_a_good_folder_becomes_a_folder(path, tmp_path, key):
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    (path / key).rename(elsewhere)
    (path / key).symlink_to(elsewhere)
    before = damage.contents(elsewhere)
    done = repair(path)
    # Kinds and shapes of layers have no second place, and no checksum is trusted through a link.
    assert {loss.group for loss in done.dropped} <= {"layers"}
    assert damage.contents(elsewhere) == before
    assert not (path / key).is_symlink()
    assert verify(path).sound
    check_kept(path)


@pytest.mark.parametrize("key", ["gradients", "gradients/full", "layers", "layers/numel"])
def test_a_file_in_the_place_of_a_folder(path, key):
    shutil.rmtree(path / key)
    (path / key).write_text("x")
    repair(path)
    assert verify(path).sound
    found = check_kept(path, lost=("gradients/full", "gradients/projected"))
    assert sum(rows.sizes["step"] for rows in found.values()) >= 120


def test_a_missing_value_of_bfloat16_is_its_nan(tmp_path):
    path = tmp_path / "a.zarr"
    variables = (tracelab.contracts.Variable("v", ("step", "bin"), "1", "bfloat16", "halves"),)
    with tracelab.create(path, {"w": (1,)}, compression="none") as writer:
        writer.define("g", kind="own", variables=variables)
        for step in range(5):
            writer.append("g", step=step, v=np.full(100, step, np.float32))
    damage.overwrite(path / "g/v/c.0.0", 30, b"damage" * 9)
    mended(path)
    assert np.isnan(tracelab.open(path).groups["g"]["v"].values.astype(np.float32)).all()


def test_recording_goes_on_after_a_repair(path):
    damage.flip(path / "gradients/full/c.2.0", 1000)
    damage.overwrite(path / "counts/bins/c.1.0.0", 40, b"damage" * 9)
    repair(path)
    with tracelab.create(path, damage.LAYERS, resume=True, queue_bytes=2**18) as writer:
        for number in range(40, 50):
            for group, arrays in damage.row(10 * number).items():
                writer.append(group, step=10 * number, **arrays)
    assert verify(path).sound
    rows = check_kept(path, lost=("gradients/full",))
    assert [each.sizes["step"] for each in rows.values()] == [50, 42, 50, 50]
    missing = np.isnan(rows["gradients"]["full"].values).all(axis=1)
    assert np.flatnonzero(missing).tolist() == list(range(32, 40))


@pytest.mark.slow
@pytest.mark.parametrize("way", damage.WAYS)
def test_after_every_way_the_rest_is_kept(path, way):
    rng = np.random.default_rng(sum(map(ord, way)))
    for file in rng.choice(damage.files(path), 4, replace=False):
        arrays = f"{Path(file).parent.relative_to(path)}"
        damage.WAYS[way](Path(file))
        repair(path)
        assert verify(path).sound
        dropped = {f"{loss.group}/{loss.array}" for loss in repair(path).dropped}
        assert not dropped
        found = check_kept(path, lost=(arrays, "noise/sampled", "noise/mean_sampled"))
        steps = [rows.sizes["step"] for rows in found.values()]
        assert sum(count == 40 for count in steps) >= len(steps) - 1
        for folder in path.parent.iterdir():
            shutil.rmtree(folder)
        damage.write(path)


def test_repairs_are_counted(path):
    for number in (1, 2):
        damage.flip(path / f"gradients/full/c.{number}.0", 1000)
        assert repair(path).copy.endswith(f"a.damaged-{number}.zarr")
    attrs = tracelab.open(path).attrs
    assert attrs["generation"] == 2
    assert len(attrs["repairs"]) == 2


def test_ranks(path):
    for rank in (0, 3):
        damage.write(path / f"workers/rank-{rank:03d}", rows=20)
    damage.flip(path / "workers/rank-003/gradients/full/c.0.0", 1000)
    with pytest.raises(UsageError, match=r"is a part of the trace .*; repair that"):
        repair(path / "workers/rank-003")
    done = repair(path)
    (loss,) = done.dropped
    assert loss.group == "workers/rank-003/gradients"
    assert loss.sentence.startswith("rank 3: gradients/full, steps 0 to 150")
    assert verify(path).sound
    assert tracelab.open(path).state == "complete"
    assert tracelab.open(path / "workers/rank-003").state == "incomplete"


def test_what_is_no_folder_is_refused(path, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(path / "zarr.json", "zarr.json")
    with pytest.raises(UsageError, match=r"is not in a folder, .*copy it to a folder, repair that"):
        repair(archive)
    with pytest.raises(UsageError, match="is not in a folder"):
        repair(MemoryStore())
    with pytest.raises(UsageError, match="there is no trace at"):
        repair(tmp_path / "nothing")


def test_a_folder_beside_which_nothing_can_be_written(path, monkeypatch):
    damage.flip(path / "gradients/full/c.1.0", 1000)
    really = Path.mkdir

    def refuse(self, *arguments, **options):
        if "repair" in self.name:
            raise OSError(30, "Read-only file system")
        return really(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    before = damage.contents(path)
    with pytest.raises(UsageError, match=r"nothing can be written beside it .*copy it to a folder"):
        repair(path)
    assert damage.contents(path) == before


def test_where_there_are_no_links_files_are_copied(path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    damage.flip(path / "gradients/full/c.1.0", 1000)
    mended(path)
    check_kept(path, lost=("gradients/full",))


KILLER = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import damage, tracelab
from pathlib import Path
from tracelab.trace.health import repairing

CHANGES = {"os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
path, moment, seen = Path(sys.argv[1]), 0, 0

def hook(event, arguments):
    global seen
    if event in CHANGES or (event == "open" and "x" in str(arguments[1])):
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
while True:
    line = sys.stdin.readline()
    if not line:
        break
    moment = int(line)
    child = os.fork()
    if child == 0:
        seen = 0
        tracelab.repair(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def recorded(path):
    """Return the files of a trace, without the lock of a process that was killed."""
    return {key: each for key, each in damage.contents(path).items() if key != LOCK_FILE}


def kill_everywhere(path, stride):
    """Kill a repair before every change to the disk; return how often."""
    damage.flip(path / "gradients/full/c.1.0", 1000)
    damage.overwrite(path / "counts/bins/c.0.0.0", 40, b"damage" * 20)
    before = damage.contents(path)
    spare = shutil.copytree(path, path.parent.parent / "spare")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLER, path, os.path.dirname(damage.__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    states = {"old": 0, "new": 0, "between": 0}
    with process:
        for moment in range(1, 10**6, stride):
            process.stdin.write(f"{moment}\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            copy = path.with_name("a.damaged-1.zarr")
            if not path.exists():
                states["between"] += 1
                assert recorded(copy) == before
            elif copy.exists():
                states["new"] += 1
                assert verify(path).sound
            else:
                states["old"] += 1
                assert recorded(path) == before
            # The next one finishes, or starts anew.
            repair(path)
            assert verify(path).sound
            assert recorded(copy) == before
            assert sorted(os.listdir(path.parent)) == ["a.damaged-1.zarr", "a.zarr"]
            rows = check_kept(path, lost=("gradients/full",))
            assert [each.sizes["step"] for each in rows.values()] == [40, 8, 40, 40]
            for folder in (path, copy):
                shutil.rmtree(folder)
            shutil.copytree(spare, path)
            if code == 0:
                break
            assert code == -9
        process.stdin.close()
        process.kill()
    return states


def test_a_repair_that_is_killed_leaves_the_old_or_the_new_trace(tmp_path):
    path = damage.write(tmp_path / "runs/a.zarr")
    states = kill_everywhere(path, stride=90)
    assert states["old"] >= 1


@pytest.mark.slow
def test_a_repair_that_is_killed_at_any_moment(tmp_path):
    path = damage.write(tmp_path / "runs/a.zarr")
    states = kill_everywhere(path, stride=1)
    assert states["old"] > 60
    # Between the two renames; and after them.
    assert states["between"] == 1
    assert states["new"] >= 1
