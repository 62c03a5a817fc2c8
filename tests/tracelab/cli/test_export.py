import os

import h5py

import tracelab


def test_there_and_back(run, record, tmp_path):
    path, file, back = record(), tmp_path / "run.h5", tmp_path / "back.zarr"
    result = run("export", path, file)
    assert (result.exit_code, result.stdout) == (0, f"{file}\n")
    result = run("import", file, back)
    assert (result.exit_code, result.stdout) == (0, f"{back}\n")
    assert tracelab.open(back).noise(step=10).identical(tracelab.open(path).noise(step=10))


def test_what_is_there_is_replaced_with_force_only(run, record, tmp_path):
    path, file = record(), tmp_path / "run.h5"
    run("export", path, file)
    for command in (("export", path, file), ("import", file, path)):
        result = run(*command)
        assert result.exit_code == 2
        assert "--force" in result.stderr
        assert run(*command, "--force").exit_code == 0


def test_some_groups(run, record, tmp_path):
    file = tmp_path / "run.h5"
    assert run("export", record(), file, "--group", "noise").exit_code == 0
    with h5py.File(file) as opened:
        assert set(opened) == {"layers", "noise"}
    result = run("export", record("b"), tmp_path / "b.h5", "--group", "nois")
    assert result.exit_code == 2
    assert "did you mean 'noise'?" in result.stderr


def test_codes_of_what_cannot_be(run, record, tmp_path):
    (tmp_path / "notes.txt").write_text("no HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    for name, code in (("notes.txt", 3), ("other.h5", 3), ("none.h5", 2)):
        result = run("import", tmp_path / name, tmp_path / "a.zarr")
        assert result.exit_code == code
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1
    assert run("export", tmp_path / "none.zarr", tmp_path / "a.h5").exit_code == 2
    assert run("export", record(), "/proc/a.h5").exit_code == 1
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "other.h5", "run.zarr"]
