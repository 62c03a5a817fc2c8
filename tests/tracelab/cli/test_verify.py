"""``tracelab verify`` and ``tracelab repair``: what is lost, in words, JSON and exit codes."""

import json

import damage
import pytest

import tracelab


@pytest.fixture
def path(tmp_path):
    return damage.write(tmp_path / "a.zarr")


@pytest.fixture
def damaged(path):
    damage.flip(path / "gradients/full/c.1.0", 1000)
    return path


def test_a_sound_trace_is_one_line(run, path):
    done = run("verify", path)
    assert done.exit_code == 0
    assert done.stderr == ""
    assert done.stdout.startswith(f"{path}: sound (")
    assert "40 of gradients" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_damaged_one_says_what_is_lost_and_what_to_do(run, damaged):
    done = run("verify", damaged)
    assert done.exit_code == 3
    assert "gradients/full, steps 160 to 310: its checksum differs" in done.stdout
    assert f"`tracelab repair {damaged}`" in done.stdout


def test_many_damages_are_counted(run, path):
    for file in damage.files(path):
        damage.flip(file, -1)
    done = run("verify", path)
    assert done.exit_code == 3
    assert f"and {len(damage.files(path)) - 20} more: see --json" in done.stdout


def test_every_trace_is_checked(run, damaged, tmp_path):
    sound = damage.write(tmp_path / "b.zarr", rows=3)
    done = run("verify", tmp_path / "nothing", damaged, sound, sound)
    assert done.exit_code == 3
    assert f"there is no trace at {tmp_path / 'nothing'}" in done.stderr
    assert done.stdout.count(f"{sound}: sound") == 1
    assert f"{damaged}: damaged" in done.stdout
    assert run("verify", tmp_path / "nothing").exit_code == 2


def test_json(run, damaged, tmp_path):
    done = run("verify", "--json", damaged, tmp_path / "nothing")
    first, second = json.loads(done.stdout)
    assert done.exit_code == 3
    assert not first["sound"]
    (found,) = first["damages"]
    assert (found["path"], found["kind"], found["steps"]) == (
        "gradients/full",
        "checksum",
        [160, 310],
    )
    assert "there is no trace" in second["error"]


def test_leftovers_are_told_to_who_wants_details(run, path):
    (path / "gradients/full/c.9.0.partial").write_bytes(b"x")
    assert "c.9.0.partial" not in run("verify", path).stdout
    done = run("-v", "verify", path)
    assert done.exit_code == 0
    assert "gradients/full/c.9.0.partial" in done.stdout


def test_repair(run, damaged, tmp_path):
    line = "dropped:  gradients/full, steps 160 to 310: 1 chunk, missing from now on"
    dry = run("repair", "--dry-run", damaged)
    assert dry.exit_code == 0
    assert dry.stdout == f"{damaged}: would be repaired\n  {line}\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a.zarr"]
    done = run("repair", damaged)
    assert done.exit_code == 0
    assert done.stdout == f"{damaged}: repaired\n  {line}\n"
    assert str(tmp_path / "a.damaged-1.zarr") in done.stderr
    assert run("verify", damaged).exit_code == 0
    assert run("repair", damaged).stdout == f"{damaged}: nothing is damaged\n"


def test_repair_as_json(run, damaged):
    told = json.loads(run("repair", "--json", damaged).stdout)
    assert told["copy"].endswith("a.damaged-1.zarr")
    assert [loss["array"] for loss in told["dropped"]] == ["full"]


def test_what_cannot_be_repaired_says_why(run, path, tmp_path):
    done = run("repair", tmp_path / "nothing")
    assert done.exit_code == 2
    assert "there is no trace at" in done.stderr
    with tracelab.create(tmp_path / "b.zarr", {"w": (1,)}):
        done = run("repair", tmp_path / "b.zarr")
    assert done.exit_code == 2
    assert "is being recorded by" in done.stderr
