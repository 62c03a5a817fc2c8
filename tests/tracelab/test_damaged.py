"""Analyses of a damaged trace: the good cells go on, the others say what is damaged."""

import os
import shutil

import damage
import numpy as np
import pytest
from click.testing import CliRunner

import tracelab
from tracelab.cli import main
from tracelab.errors import DamagedError
from tracelab.typing import Status

LAYERS = {"a": (40,), "b": (40,), "c": (40,), "d": (40,)}
STEPS, SHARD, BATCHES, DIRECTIONS = 32, 8, 64, 16
ANALYSES = ("gaussianity", "noise_scale")


def write(path):
    rng = np.random.default_rng(0)
    with tracelab.create(path, LAYERS, queue_bytes=2**18, compression="none") as writer:
        writer.define("noise", attrs={"batch_size": 8, "replacement": True, "n_data": 1_000})
        for step in range(STEPS):
            projected = rng.standard_normal((BATCHES, len(LAYERS), DIRECTIONS)) + 1
            writer.append(
                "noise",
                step=10 * step,
                projected=projected,
                mean_projected=np.ones((len(LAYERS), DIRECTIONS)),
            )
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("sound") / "a.zarr")
    # A chunk for each step and layer, and some steps a shard.
    stored = tracelab.open(path).groups["noise"]["projected"]
    assert stored.shape == (STEPS, BATCHES, len(LAYERS), DIRECTIONS)
    names = {file.name for file in (path / "noise/projected").glob("c.*")}
    assert names == {f"c.{number}.0.0.0" for number in range(STEPS // SHARD)}
    return path


@pytest.fixture(scope="module")
def expected(sound):
    return tracelab.analyze(sound, ANALYSES, mode="batches")


@pytest.fixture
def damaged(sound, tmp_path):
    path = shutil.copytree(sound, tmp_path / "a.zarr", ignore=shutil.ignore_patterns("results"))
    # Step 10 of layer c; the second shard; the third.
    damage.flip(path / "noise/projected/c.0.0.0.0", 6 * (BATCHES * DIRECTIONS * 4 + 4) + 100)
    os.truncate(path / "noise/projected/c.1.0.0.0", 9_000)
    (path / "noise/projected/c.2.0.0.0").unlink()
    return path


def lost_cells():
    """Return which cells (step, layer) read a damaged chunk; the last layer is the network."""
    lost = np.zeros((STEPS, len(LAYERS) + 1), dtype=bool)
    lost[1, [2, 4]] = True
    lost[SHARD : 3 * SHARD] = True
    return lost


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_exactly_the_cells_that_touch_damage_are_unreadable(damaged, expected, workers):
    results = tracelab.analyze(damaged, ANALYSES, mode="batches", workers=workers)
    lost = lost_cells()
    for name, wanted in expected.items():
        found = results[name]
        assert (wanted["status"].values == Status.OK).all()
        np.testing.assert_array_equal(found["status"].values == Status.UNREADABLE, lost)
        for variable in wanted.data_vars:
            values = found[variable].values
            good = wanted[variable].values[~lost]
            # Bit by bit: NaN is a value too.
            assert values[~lost].tobytes() == good.tobytes()
            if values.dtype.kind == "f":
                assert np.isnan(values[lost]).all()


def test_messages_say_where_and_what(damaged):
    result = tracelab.analyze(damaged, ["gaussianity"], mode="batches")["gaussianity"]
    assert result.attrs["n_failures"] == lost_cells().sum()
    failures = result.attrs["failures"]
    (flipped,) = [text for text in failures if text.startswith("step 10, c: ")]
    assert "noise/projected" in flipped
    assert "checksum" in flipped
    (missing,) = [text for text in failures if text.startswith(f"step {10 * (2 * SHARD + 1)}, a: ")]
    assert "c.2.0.0.0" in missing
    assert "tracelab verify" in missing


def test_the_command_line_says_so(damaged):
    done = CliRunner().invoke(main, ["analyze", str(damaged), "-a", "gaussianity"])
    assert done.exit_code == 1
    assert f"{lost_cells().sum()} of {lost_cells().size} cells" in done.stdout
    assert "damaged" in done.stdout


def test_the_report_says_so(damaged, tmp_path):
    tracelab.analyze(damaged, ["gaussianity"], mode="batches")
    tracelab.report([damaged], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert f"{lost_cells().sum()} failed or unreadable, among them" in text
    assert "unreadable" in text


@pytest.fixture
def unlabelled(trace_path):
    """A trace with a group whose steps cannot be read."""
    damage.overwrite(trace_path / "weights/step/c.0", 0, b"damage")
    return trace_path


def test_a_group_without_steps_takes_only_its_own_analyses_along(unlabelled, caplog):
    heard = []
    results = tracelab.analyze(
        unlabelled, announce=lambda name, state, _: heard.append((name, state))
    )
    assert "weight_diffusion" not in results
    assert {"gaussianity", "noise_scale", "tail_index"} <= set(results)
    assert ("weight_diffusion", "damaged") in heard
    assert "weight_diffusion is left out: " in caplog.text
    assert "tracelab verify" in caplog.text
    with pytest.raises(DamagedError, match="weights"):
        tracelab.analyze(unlabelled, ["weight_diffusion"])


def test_the_command_line_and_the_report_go_on_without_it(unlabelled, tmp_path):
    arguments = ["analyze", str(unlabelled), "-a", "noise_scale", "-a", "weight_diffusion"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "noise_scale" in done.stdout
    assert "weight_diffusion is left out" in done.stderr
    tracelab.report([unlabelled], tmp_path / "report.html")
    assert "damaged" in (tmp_path / "report.html").read_text()


def test_what_is_repaired_is_computed_again(damaged, expected):
    """The cells whose input is missing now have a status of their own; all others stay."""
    tracelab.analyze(damaged, ["gaussianity"], mode="batches")
    tracelab.repair(damaged)
    found = tracelab.analyze(damaged, ["gaussianity"], mode="batches")["gaussianity"]
    lost = lost_cells()
    assert (found["status"].values[lost] == Status.NON_FINITE_INPUT).all()
    wanted = expected["gaussianity"]["rejection_rate"].values[~lost]
    assert found["rejection_rate"].values[~lost].tobytes() == wanted.tobytes()
