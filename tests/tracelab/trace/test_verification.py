"""Every way in which a file can be damaged is found, and nothing else is."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile

import damage
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore, WrapperStore

import tracelab
from tracelab import verify
from tracelab.errors import TraceError, UsageError


@pytest.fixture(scope="module", params=["none", pytest.param("lz4", marks=pytest.mark.slow)])
def good(request, tmp_path_factory):
    return damage.write(tmp_path_factory.mktemp("good") / "a.zarr", compression=request.param)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return damage.write(tmp_path_factory.mktemp("written") / "a.zarr")


@pytest.fixture
def path(written, tmp_path):
    return shutil.copytree(written, tmp_path / "a.zarr")


def only(report):
    """Return the one damage of a report."""
    assert len(report.damages) == 1, report
    return report.damages[0]


def test_a_sound_trace(good):
    report = verify(good)
    assert report.sound
    assert report.damages == ()
    assert report.leftovers == ()
    assert report.rows == dict.fromkeys(("counts", "gradients", "noise", "steps"), damage.ROWS)
    assert report.state == "complete"
    assert report.run == tracelab.open(good).run
    # Every byte of every data file.
    assert report.nbytes == sum(file.stat().st_size for file in damage.files(good))
    assert "sound" in repr(report)
    assert json.loads(json.dumps(report.summary()))["sound"]


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_finds_the_same(path, workers):
    damage.flip(path / "gradients/full/c.1.0", 5)
    damage.flip(path / "noise/sampled/c.0.0.0", 40)
    found = verify(path, workers=workers)
    assert [each.path for each in found.damages] == ["gradients/full", "noise/sampled"]


def test_progress_is_told(path):
    calls = []
    verify(path, progress=lambda *call: calls.append(call))
    total = len(damage.files(path))
    assert [call[1:] for call in calls] == [(done, total) for done in range(1, total + 1)]


def test_a_flipped_bit_names_steps_and_layers(path):
    damage.flip(path / "gradients/full/c.1.0", 1000)
    found = only(verify(path))
    assert (found.group, found.array, found.shard) == ("gradients", "full", "c.1.0")
    assert (found.kind, found.chunk) == ("checksum", (1, 0))
    assert (found.rows, found.steps) == ((16, 31), (160, 310))
    assert (found.layers, found.coordinates) == ((), (0, 2029))
    assert found.sentence == (
        "gradients/full, steps 160 to 310: its checksum differs (chunk 1.0 of c.1.0)"
    )


def test_a_flipped_bit_of_one_cell(path):
    slot = 16 * 24 * 4 + 4
    damage.flip(path / "noise/sampled/c.0.0.0", 7 * slot + 3)
    found = only(verify(path))
    assert (found.steps, found.layers, found.chunk) == ((70, 70), ("a", "b"), (7, 0, 0))


def test_a_missing_shard(path):
    (path / "counts/bins/c.1.0.0").unlink()
    found = only(verify(path))
    assert (found.kind, found.chunk, found.steps) == ("missing", None, (320, 390))
    assert found.layers == ("a", "b")


def test_many_damaged_chunks_of_a_shard_are_one_damage(path):
    for step in range(30):
        damage.flip(path / "noise/sampled/c.0.0.0", step * (16 * 24 * 4 + 4))
    found = only(verify(path))
    assert found.steps == (0, 290)
    assert "30 of 40 chunks are damaged" in found.reason


@pytest.mark.parametrize("way", damage.WAYS)
def test_every_way_is_found_in_every_file(path, way):
    for file in damage.files(path):
        content = file.read_bytes()
        damage.WAYS[way](file)
        report = verify(path, workers=1)
        assert not report.sound, file
        assert {each.path for each in report.damages} == {
            str(file.parent.relative_to(path)).replace(os.sep, "/")
        }
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        file.with_name("elsewhere").unlink(missing_ok=True)
        file.write_bytes(content)
    assert verify(path).sound


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_flipped_byte_is_found_and_nothing_else(good, data):
    file = data.draw(st.sampled_from(damage.files(good)))
    place = data.draw(st.integers(0, file.stat().st_size - 1))
    mask = data.draw(st.integers(1, 255))
    damage.flip(file, place, mask)
    try:
        report = verify(good, workers=1)
    finally:
        damage.flip(file, place, mask)
    touched = {(each.path, each.shard) for each in report.damages}
    assert touched == {(str(file.parent.relative_to(good)), file.name)}


READER = """
import json, sys
import numpy as np, tensorstore as ts
for line in sys.stdin:
    path, array = json.loads(line)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/{array}/"}}
    try:
        ts.open(spec, open=True, context=ts.Context()).result().read().result()
        print("read", flush=True)
    except Exception as error:
        print("refused", flush=True)
"""


def test_the_verdict_is_that_of_tensorstore_and_zarr(path):
    """Where a shard is there: both take one that is not there as one of missing values."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(READER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    group = zarr.open_group(path, mode="r")
    rng = np.random.default_rng(0)
    verdicts = set()
    with process:
        for file in damage.files(path):
            array = str(file.parent.relative_to(path))
            # TensorStore has no texts.
            names = array.endswith(("layer", "kind", "shape"))
            size = file.stat().st_size
            for place in (None, 0, size - 1, size - 5, *rng.integers(0, size, 2)):
                if place is not None:
                    damage.flip(file, int(place))
                sound = not any(each.path == array for each in verify(path, workers=1).damages)
                try:
                    group[array][...]
                    zarr_reads = True
                except (ValueError, RuntimeError):
                    zarr_reads = False
                assert zarr_reads == sound, (file, place)
                if not names or array.endswith("coordinate_layer"):
                    process.stdin.write(f"{json.dumps([str(path), array])}\n")
                    process.stdin.flush()
                    answer = process.stdout.readline().strip()
                    assert answer == ("read" if sound else "refused"), (file, place)
                verdicts.add(sound)
                if place is not None:
                    damage.flip(file, int(place))
        process.stdin.close()
    assert verdicts == {True, False}


def test_uncommitted_rows_are_no_damage(tmp_path):
    """A writer that died left rows that no root document names, whole or not."""
    path = damage.write(tmp_path / "a.zarr", rows=20)
    root = (path / "zarr.json").read_bytes()
    longer = damage.write(tmp_path / "b.zarr", rows=40)
    document = json.loads(root)
    document["attributes"]["state"] = "recording"
    (longer / "zarr.json").write_text(json.dumps(document))
    for file in damage.files(longer):
        # All that differs is behind the rows of the shorter trace.
        if file.name not in {each.name for each in damage.files(path)}:
            damage.flip(file, 3)
    os.truncate(longer / "gradients/full/c.2.0", 17)
    (longer / "gradients/full/c.3.0.partial").write_bytes(b"x")
    report = verify(longer)
    assert report.sound, report
    assert report.rows["gradients"] == 20
    assert "gradients/full/c.2.0" in report.leftovers
    assert "gradients/full/c.3.0.partial" in report.leftovers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: document.update(shape=[41, 2030]), "its shape is not that of"),
        (lambda document: document.update(shape=[39, 2030]), "its shape is not that of"),
        (lambda document: document.update(shape=7), "its shape is not that of"),
        (lambda document: document.update(fill_value=0), "its fill_value is not that of"),
        (lambda document: document.pop("codecs"), "its codecs is not that of"),
    ],
)
def test_documents_that_differ_from_the_root_document(path, change, reason):
    damage.rewrite(path / "gradients/full/zarr.json", change)
    found = only(verify(path))
    assert (found.kind, found.path) == ("document", "gradients/full")
    assert reason in found.reason


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff" * 9])
@pytest.mark.parametrize("key", ["gradients", "gradients/full", "layers", "layers/numel"])
def test_documents_that_cannot_be_read(path, key, content):
    file = path / key / "zarr.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    found = only(verify(path))
    assert (found.kind, found.path) == ("document", key)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"attributes":{}}', b"\xff" * 9])
def test_a_damaged_root_document(path, content):
    run = tracelab.open(path).run
    (path / "zarr.json").unlink()
    if content is not None:
        (path / "zarr.json").write_bytes(content)
    damage.flip(path / "gradients/full/c.1.0", 5)
    report = verify(path)
    assert [each.path for each in report.damages] == ["zarr.json", "gradients/full"]
    assert report.rows["gradients"] == damage.ROWS
    assert report.run != run


def test_a_root_document_whose_attributes_can_be_read_keeps_its_run(path):
    run = tracelab.open(path).run
    content = (path / "zarr.json").read_bytes()
    (path / "zarr.json").write_bytes(content[: len(content) // 2])
    assert verify(path).run == run


def test_what_is_no_trace(tmp_path, path):
    with pytest.raises(UsageError, match="there is no trace at"):
        verify(tmp_path / "nothing")
    with pytest.raises(UsageError, match="workers must be at least 1"):
        verify(path, workers=0)
    zarr.create_group(tmp_path / "store")
    with pytest.raises(TraceError, match="not a tracelab trace"):
        verify(tmp_path / "store")
    damage.rewrite(path / "zarr.json", lambda root: root["attributes"].update(format_version=2))
    with pytest.raises(TraceError, match="format version 2"):
        verify(path)


def test_steps_that_do_not_increase(path):
    steps = zarr.open_array(path / "gradients/step", mode="r+")
    steps[20:22] = [5, 5]
    found = only(verify(path))
    assert (found.kind, found.path, found.rows) == ("labels", "gradients/step", (20, 21))


def test_names_that_are_not_different(path):
    array = zarr.open_array(path / "gradients/layer", mode="r+")
    array[:] = np.array(["a", "a"], dtype=np.dtypes.StringDType())
    found = only(verify(path))
    assert (found.kind, found.path) == ("labels", "gradients/layer")


def test_results_are_read(tmp_path, trace_path):
    tracelab.analyze(trace_path, ["noise_scale"])
    assert verify(trace_path).sound
    data = [file for file in damage.files(trace_path / "results") if file.stat().st_size > 20]
    assert data
    # Results have no checksums of their own; a codec that finds nonsense is what tells.
    for file in data:
        file.write_bytes(b"\0" * 8)
    found = [each for each in verify(trace_path).damages if each.kind == "result"]
    assert found
    assert all(each.group.startswith("results/noise_scale/") for each in found)


def test_a_zip(path, tmp_path):
    damage.flip(path / "gradients/full/c.1.0", 9)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for key, content in damage.contents(path).items():
            file.writestr(key, content)
    on_disk, zipped = verify(path), verify(archive)
    assert on_disk.damages == zipped.damages
    assert zipped.nbytes == on_disk.nbytes


@pytest.mark.parametrize("kind", ["memory", "wrapped", "fsspec"])
def test_stores_that_are_no_folder(path, kind):
    damage.flip(path / "gradients/full/c.1.0", 9)
    (path / "counts/bins/c.1.0.0").unlink()
    os.truncate(path / "noise/sampled/c.0.0.0", 100)
    if kind == "wrapped":
        store = WrapperStore(LocalStore(path))
    elif kind == "memory":
        store = MemoryStore()
    else:
        store = zarr.storage.FsspecStore.from_url(f"memory://{path.name}")
    if kind != "wrapped":
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        for key, content in damage.contents(path).items():
            buffer = default_buffer_prototype().buffer.from_bytes(content)
            sync(store.set(key, buffer))
    assert verify(store).damages == verify(path).damages


def test_a_trace_that_may_not_be_written(path):
    for parent, folders, names in os.walk(path):
        for name in (*folders, *names):
            os.chmod(os.path.join(parent, name), 0o555)
    before = damage.contents(path)
    assert verify(path).sound
    assert damage.contents(path) == before
    for parent, folders, _ in os.walk(path):
        for name in folders:
            os.chmod(os.path.join(parent, name), 0o755)


def test_a_file_that_may_not_be_read(path, monkeypatch):
    really = os.open

    def guarded(file, *arguments, **options):
        if os.path.basename(os.fspath(file)) == "c.1.0":
            raise PermissionError(errno.EACCES, "Permission denied", file)
        return really(file, *arguments, **options)

    # Whoever runs the tests may be root, who may read everything.
    monkeypatch.setattr(os, "open", guarded)
    found = only(verify(path))
    assert (found.kind, found.path) == ("permission", "gradients/full")
    assert "Permission denied" in found.sentence
    with pytest.raises(UsageError, match="files that you may not read, which may be all right"):
        tracelab.repair(path)


@pytest.mark.parametrize("key", ["gradients", "gradients/full", "layers"])
def test_a_folder_that_is_a_link_is_damage_as_it_is_for_who_reads(path, tmp_path, key):
    (path / key).rename(tmp_path / "elsewhere")
    (path / key).symlink_to(tmp_path / "elsewhere")
    report = verify(path)
    assert {each.group for each in report.damages} == {key.split("/")[0]}
    assert all("is a symbolic link" in each.reason for each in report.damages)
    with pytest.raises(TraceError, match="is a symbolic link"):
        read_all(path)


def read_all(path):
    trace = tracelab.open(path)
    return trace.layers["numel"].values, trace.gradients["full"].values


def test_links_lead_nowhere(path, tmp_path):
    """Nothing outside is named, read or followed for ever."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("x")
    for key in ("results", "workers", "gradients/more", "more"):
        (path / key).symlink_to(tmp_path / "secret")
    (path / "counts/cycle").symlink_to(path)
    report = verify(path)
    assert report.sound
    assert "secret" not in repr(report.leftovers)
    assert not any("file" in name for name in report.leftovers)


def test_a_trace_object_is_taken_too(path):
    assert verify(tracelab.open(path)).sound


def test_ranks(path):
    for rank in (0, 3):
        damage.write(path / f"workers/rank-{rank:03d}", rows=5)
    (path / "workers/rank-004").mkdir()
    assert verify(path).sound
    damage.flip(path / "workers/rank-003/gradients/full/c.0.0", 9)
    report = verify(path)
    assert sorted(report.ranks) == [0, 3]
    assert not report.sound
    assert report.damages == ()
    ((rank, found),) = report.all_damages()
    assert (rank, found.path) == (3, "gradients/full")


def test_more_missing_shards_than_can_be_named(tmp_path):
    with tracelab.create(tmp_path / "a", {"w": (4,)}, compression="none") as writer:
        writer.append("steps", step=0, loss=1.0)

    def grow(document):
        for name in ("step", "loss"):
            declared = document["consolidated_metadata"]["metadata"][f"steps/{name}"]
            declared["shape"] = [10**8]
            declared["chunk_grid"]["configuration"]["chunk_shape"] = [4096]
            declared["codecs"][0]["configuration"]["chunk_shape"] = [4096]

    damage.rewrite(tmp_path / "a/zarr.json", grow)
    report = verify(tmp_path / "a")
    kinds = {(each.path, each.kind) for each in report.damages}
    assert ("steps/loss", "missing") in kinds
    assert len(report.damages) < 10


def test_a_copy_of_everything_is_sound_again(path, tmp_path):
    """A report says nothing about where a trace is."""
    shutil.copytree(path, tmp_path / "b.zarr")
    assert verify(tmp_path / "b.zarr").sound


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
import damage, tracelab
with tracelab.create(
    sys.argv[1], damage.LAYERS, queue_bytes=2**18, flush_seconds=0.02, compression=sys.argv[3]
) as writer:
    writer.define("counts", kind="histogram", variables=damage.COUNTS)
    print("ready", flush=True)
    for step in range(10**9):
        row = damage.row(step)
        for group in ("gradients", "counts", "steps"):
            writer.append(group, step=step, **row[group])
"""


@pytest.mark.parametrize("compression", [pytest.param("none", marks=pytest.mark.slow), "lz4"])
def test_a_trace_that_is_being_recorded_gives_no_false_alarm(tmp_path, compression):
    path = tmp_path / "a.zarr"
    here = os.path.dirname(damage.__file__)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, here, compression], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout.readline() == "ready\n"
            seen = set()
            while len(seen) < 12:
                report = verify(path)
                assert report.sound, report
                assert report.state == "recording"
                seen.add(report.rows.get("gradients", 0))
            # Damage is found all the same. Shards that are full are not written again.
            damage.flip(path / "gradients/full/c.0.0", 9)
            assert [each.path for each in verify(path).damages] == ["gradients/full"]
            with pytest.raises(UsageError, match="is being recorded by process"):
                tracelab.repair(path)
        finally:
            process.kill()
    assert [each.path for each in verify(path).damages] == ["gradients/full"]


def test_a_trace_that_is_replaced_meanwhile(path):
    """What looks bad is looked at again, as it is declared by then."""
    first = tracelab.open(path).run

    def replace(label, done, total):
        if done == 3:
            damage.write(path, rows=5, overwrite=True)

    report = verify(path, workers=1, progress=replace)
    assert report.sound, report
    assert report.run != first
    assert report.rows["gradients"] == 5
