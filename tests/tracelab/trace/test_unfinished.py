"""What running jobs keep: parts, locks, and who may remove them."""

import json
import os

import google_crc32c
import numpy as np
import pytest
import zarr

from tracelab.trace.places import objects
from tracelab.trace.places.locations import resolve
from tracelab.trace.resultstore import parts, shelves, unfinished
from tracelab.trace.resultstore.parts import Cells
from tracelab.trace.resultstore.unfinished import Job, Kind

BASIS, OTHER = "a" * 20, "b" * 20
KIND = Kind("toy", 2, 1, BASIS)
WANTED = {"value": ("float64", ()), "part": ("float32", (2,)), "status": ("uint8", ())}


@pytest.fixture(params=["folder", "objects"])
def shelf(request, tmp_path):
    place = tmp_path if request.param == "folder" else zarr.storage.MemoryStore()
    return shelves.beside(resolve(place), "run")


@pytest.fixture
def folder(tmp_path):
    return shelves.beside(resolve(tmp_path), "run")


def cells(*steps, seed=0):
    rng = np.random.default_rng(seed)
    count = len(steps)
    outputs = {
        "value": np.where(rng.random(count) < 0.3, np.nan, rng.standard_normal(count)),
        "part": rng.standard_normal((count, 2)).astype(np.float32),
        "status": rng.integers(0, 4, count).astype(np.uint8),
    }
    return Cells(np.array(steps, np.int64), ("слой", "b"), rng.integers(0, 2, count), outputs)


def found(shelf, kind=KIND):
    return list(unfinished.parts(shelf, kind, WANTED))


def check_same(one, other):
    assert one.layers == other.layers
    np.testing.assert_array_equal(one.steps, other.steps)
    np.testing.assert_array_equal(one.columns, other.columns)
    for name in WANTED:
        np.testing.assert_array_equal(one.outputs[name], other.outputs[name])
        assert one.outputs[name].dtype == other.outputs[name].dtype


def jobs(shelf):
    return [name for name in objects.names(shelf.location, "results/.jobs") if name != "zarr.json"]


def nothing_left(shelf):
    return objects.names(shelf.location, "results") in ([], [".jobs"]) and not objects.names(
        shelf.location, "results/.jobs"
    )


def clean(shelf, kind=KIND, holds=lambda _: False):
    unfinished.clean(shelf, kind, holds, WANTED)


@pytest.mark.parametrize("steps", [(), (3,), (1, 5, 2**40)])
def test_cells_come_back_bit_for_bit(shelf, steps):
    with Job(shelf, KIND) as job:
        job.save(cells(*steps))
        (back,) = found(shelf)
        check_same(back, cells(*steps))
        assert found(shelf, Kind("toy", 2, 1, OTHER)) == []
        job.discard()
    assert nothing_left(shelf)


def test_cells_without_steps(shelf):
    plain = Cells(None, ("a",), np.zeros(2, np.int64), cells(1, 2).outputs)
    with Job(shelf, KIND) as job:
        job.save(plain)
        (back,) = found(shelf)
    assert back.steps is None


def test_parts_of_a_job_that_ended_badly_stay(shelf):
    with Job(shelf, KIND) as job:
        first = job.save(cells(1))
        job.save(cells(1, 2))
        job.drop(first)
    (back,) = found(shelf)
    assert back.steps.tolist() == [1, 2]


def test_a_job_without_parts_leaves_nothing(shelf):
    with pytest.raises(ZeroDivisionError), Job(shelf, KIND):
        raise ZeroDivisionError
    assert nothing_left(shelf)


def dead(shelf, *kinds):
    """Leave the parts of jobs that ended badly."""
    for kind in kinds:
        with Job(shelf, kind) as job:
            job.save(cells(1))


def test_what_is_in_a_result_goes_and_the_rest_stays(shelf):
    dead(shelf, KIND, Kind("toy", 2, 1, OTHER))
    clean(shelf)
    assert len(jobs(shelf)) == 2
    clean(shelf, holds=lambda found: found.steps.tolist() == [1])
    assert len(jobs(shelf)) == 1
    assert len(found(shelf, Kind("toy", 2, 1, OTHER))) == 1


@pytest.mark.parametrize(
    ("old", "goes"),
    [
        (Kind("toy", 1, 1, OTHER), True),
        (Kind("toy", 3, 1, OTHER), False),
        (Kind("tail", 1, 1, OTHER), False),
        (Kind("tail", 1, 0, OTHER), True),
        (Kind("toy", 2, 1, OTHER), False),
    ],
    ids=["version", "newer", "another", "generation", "parameters"],
)
def test_what_nobody_can_use_any_more_goes(folder, old, goes):
    dead(folder, old)
    clean(folder)
    assert nothing_left(folder) == goes


def test_nothing_of_a_living_job_is_touched(folder, tmp_path):
    with Job(folder, Kind("toy", 1, 0, OTHER)) as job:
        job.save(cells(1))
        (tmp_path / job.path / "result").mkdir()
        before = sorted(tmp_path.rglob("*"))
        clean(folder, holds=lambda _: True)
        assert sorted(tmp_path.rglob("*")) == before
    clean(folder)
    assert nothing_left(folder)


def test_what_a_dead_job_was_writing_goes(folder, tmp_path):
    dead(folder, Kind("toy", 2, 1, OTHER))
    (job,) = jobs(folder)
    (tmp_path / "results/.jobs" / job / "result").mkdir()
    (tmp_path / "results/.jobs" / job / "result" / "x").write_text("x")
    (tmp_path / "results/.jobs" / job / "y.partial").write_text("x")
    clean(folder)
    assert len(os.listdir(tmp_path / "results/.jobs" / job)) == 2
    assert len(found(folder, Kind("toy", 2, 1, OTHER))) == 1


def test_a_job_that_died_before_it_was_locked(folder, tmp_path):
    (tmp_path / "results/.jobs/toy-0123456789ab").mkdir(parents=True)
    clean(folder)
    assert nothing_left(folder)


def test_what_is_not_ours_is_left_alone(folder, tmp_path):
    strange = tmp_path / "results/.jobs/notes"
    strange.mkdir(parents=True)
    (tmp_path / "results/.jobs/toy-0123456789ab").symlink_to(strange)
    (strange / f"{BASIS}.v1.g0.1").write_text("x")
    assert found(folder) == []
    clean(folder)
    assert (strange / f"{BASIS}.v1.g0.1").exists()


def test_a_folder_of_jobs_that_vanishes_is_made_again(folder, tmp_path, monkeypatch):
    """Another job leaves, as the last, at the worst moment."""
    real, calls = objects.put, []

    def put(location, key, parts):
        real(location, key, parts)
        if not calls:
            unfinished._leave(folder)
        calls.append(key)

    monkeypatch.setattr(objects, "put", put)
    with Job(folder, KIND) as job:
        assert (tmp_path / job.path / "lock").exists()


# ---------------------------------------------------------------------------------------- damage


def harmed(shelf, tmp_path, harm):
    dead(shelf, KIND)
    (file,) = (tmp_path / "results/.jobs").glob("*/*.g1.*")
    file.write_bytes(harm(file.read_bytes()))


def forged(change):
    """Return a part with another header, and a right checksum."""

    def harm(content):
        start = len(parts._MAGIC) + 8
        end = start + int.from_bytes(content[start - 8 : start], "little")
        header = json.loads(content[start:end])
        change(header)
        text = json.dumps(header).encode()
        body = parts._MAGIC + len(text).to_bytes(8, "little") + text + content[end:-4]
        return body + google_crc32c.value(body).to_bytes(4, "little")

    return harm


def of_array(index, place, value):
    def change(header):
        header["arrays"][index][place] = value

    return forged(change)


HARM = {
    "flipped": lambda content: content[:50] + b"x" + content[51:],
    "cut": lambda content: content[:-5],
    "empty": lambda content: b"",
    "no part": lambda content: b"x" * 100,
    "no list": forged(lambda header: header.update(arrays=3)),
    "no layers": forged(lambda header: header.update(layers=[])),
    "object": of_array(2, 1, "object"),
    "large": of_array(2, 2, [10**18]),
    "negative": of_array(2, 2, [-1]),
    "other": of_array(2, 0, "different"),
    "shape": of_array(3, 2, [2]),
    "step": of_array(1, 1, "float64"),
    "deep": of_array(2, 2, [[1]]),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_part_that_is_none_is_left_out_and_removed(folder, tmp_path, harm):
    harmed(folder, tmp_path, harm)
    assert found(folder) == []
    clean(folder)
    assert nothing_left(folder)


def test_the_forger_of_these_tests_can_make_a_part(folder, tmp_path):
    harmed(folder, tmp_path, forged(lambda header: None))
    (back,) = found(folder)
    check_same(back, cells(1))


def test_a_part_larger_than_any_is_not_read(folder, tmp_path, monkeypatch):
    dead(folder, KIND)
    (file,) = (tmp_path / "results/.jobs").glob("*/*.g1.*")
    os.truncate(file, 2**40)
    assert found(folder) == []


def test_only_our_own_is_removed_where_there_are_no_locks():
    store = zarr.storage.MemoryStore()
    shelf = shelves.beside(resolve(store), "run")
    old = Kind("toy", 1, 0, OTHER)
    dead(shelf, old, KIND)
    clean(shelf, holds=lambda _: True)
    assert len(found(shelf, old)) == 1
    assert found(shelf) == []
