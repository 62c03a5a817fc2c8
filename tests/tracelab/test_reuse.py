"""Only cells that are not there are computed, and the result has the bits of a fresh one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import toys
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import tracelab
from tracelab import planning, registry, reuse
from tracelab.celltable import Table
from tracelab.errors import TraceError
from tracelab.trace.resultstore.parts import Cells
from tracelab.typing import Status

N_LABELS = len(toys.LABELS)


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_entries", toys.entries)
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))


@pytest.fixture
def computed(tmp_path):
    """Return how many cells were computed since the last call."""

    def count():
        seeds = toys.noted(tmp_path / "log")
        assert len(seeds) == len(set(seeds)), "a cell was computed twice"
        return len(seeds)

    return count


def fresh(trace, tmp_path, name="toy", **options):
    """Return what is computed where nothing is known."""
    out = tmp_path / "fresh"
    return tracelab.analyze(trace, name, force=True, out=out, **options)[name]


def same(found, wanted):
    """Check for equal numbers, labels and attributes of variables, bit for bit."""
    xr.testing.assert_identical(found.load().drop_attrs(deep=False), wanted.drop_attrs(deep=False))
    for name in found.variables:
        assert found[name].dtype == wanted[name].dtype
    assert found.attrs["finding"] == wanted.attrs["finding"]


def test_a_trace_that_grows_is_analysed_where_it_is_new(tmp_path, computed):
    rng = np.random.default_rng(1)
    with tracelab.create(tmp_path / "run", toys.LAYERS) as writer:
        step = 0
        for _ in range(8):
            more = int(rng.integers(1, 6))
            toys.append(writer, range(step, step + more))
            step += more
            writer.flush()
            trace = tracelab.open(tmp_path / "run")
            found = tracelab.analyze(trace, "toy")["toy"]
            assert computed() == more * N_LABELS
            assert found.sizes["step"] == step
            assert found.attrs["reused_cells"] == (step - more) * N_LABELS
            same(trace.results["toy"], fresh(trace, tmp_path))
            computed()
    # What a more recent result holds is not kept a second time.
    assert len(trace.results.keys_of("toy")) == 1


def test_closing_the_writer_changes_no_cell(tmp_path, computed):
    with tracelab.create(tmp_path / "run", toys.LAYERS) as writer:
        toys.append(writer, range(3))
        writer.flush()
        tracelab.analyze(tmp_path / "run", "toy")
        assert computed() == 3 * N_LABELS
    trace = tracelab.open(tmp_path / "run")
    assert trace.state == "complete"
    tracelab.analyze(trace, "toy")
    assert computed() == 0


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return toys.write(tmp_path_factory.mktemp("grid") / "run", range(0, 24, 2))


SLICES = st.builds(
    slice,
    st.one_of(st.none(), st.integers(0, 6)),
    st.one_of(st.none(), st.integers(7, 12)),
    st.sampled_from([None, 1, 2, 3]),
)
LAYERS = st.sampled_from([None, "a", "[ab]", "c|network", "network", "[^n].*"])


@pytest.mark.slow
@settings(max_examples=25)
@given(requests=st.lists(st.tuples(SLICES, LAYERS), min_size=1, max_size=5), size=st.booleans())
def test_any_selections_share_their_cells(grid, tmp_path_factory, requests, size):
    """Each cell is computed once however requests overlap, and each result is as if alone."""
    folder = tmp_path_factory.mktemp("any")
    trace = tracelab.open(grid)
    known = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_entries", toys.entries)
        patch.setenv("TOY_LOG", str(folder / "log"))
        if size:
            patch.setattr("tracelab.cutting.BLOCK_BYTES", 1)
            patch.setattr("tracelab.cutting.SHARED_BYTES", 1)
        for steps, layers in requests:
            options = {"steps": steps, "layers": layers}
            found = tracelab.analyze(trace, "toy", out=folder / "out", **options)["toy"]
            ran = toys.noted(folder / "log")
            cells = {
                (step, label)
                for step in found["step"].values.tolist()
                for label in found["layer"].values.tolist()
            }
            assert len(ran) == len(set(ran)) == len(cells - known)
            known |= cells
            same(tracelab.open(grid, results=folder / "out").results["toy"], found)
            same(found, fresh(trace, folder, **options))
            toys.noted(folder / "log")


def test_what_was_asked_for_last_is_shown(tmp_path, computed):
    trace = tracelab.open(toys.write(tmp_path / "run", range(4)))
    whole = tracelab.analyze(trace, "toy")["toy"]
    some = tracelab.analyze(trace, "toy", steps=slice(0, 2))["toy"]
    same(trace.results["toy"], some)
    assert tracelab.analyze(trace, "toy")["toy"].attrs["serial"] == 3
    same(trace.results["toy"], whole)
    assert tracelab.analyze(trace, "toy")["toy"].attrs["serial"] == 3
    assert computed() == 4 * N_LABELS
    assert len(trace.results.keys_of("toy")) == 1


@pytest.mark.parametrize(
    "options",
    [{"offset": 1.0}, {"seed": 1}, {"force": True}],
    ids=lambda options: next(iter(options)),
)
def test_what_differs_is_computed(tmp_path, computed, options):
    trace = tracelab.open(toys.write(tmp_path / "run", range(2)))
    tracelab.analyze(trace, "toy")
    computed()
    tracelab.analyze(trace, "toy", **options)
    assert computed() == 2 * N_LABELS


def test_another_version_computes_anew(tmp_path, computed, monkeypatch):
    trace = tracelab.open(toys.write(tmp_path / "run", range(2)))
    tracelab.analyze(trace, "toy")
    computed()
    monkeypatch.setattr(toys, "TOY", replace(toys.TOY, version=2))
    tracelab.analyze(trace, "toy")
    assert computed() == 2 * N_LABELS


def test_a_cell_without_steps_is_computed_from_all_of_them(tmp_path, computed):
    trace = tracelab.open(toys.write(tmp_path / "run", range(5)))
    tracelab.analyze(trace, "path", layers="a|b")
    assert computed() == 2
    whole = tracelab.analyze(trace, "path")["path"]
    assert computed() == 2
    same(whole, fresh(trace, tmp_path, "path"))
    computed()
    tracelab.analyze(trace, "path", steps=slice(0, 4))
    assert computed() == N_LABELS


def raise_generation(path, generation):
    document = json.loads((path / "zarr.json").read_bytes())
    document["attributes"]["generation"] = generation
    (path / "zarr.json").write_text(json.dumps(document))


def test_rows_that_changed_are_analysed_anew(tmp_path, computed):
    path = toys.write(tmp_path / "run", range(3))
    tracelab.analyze(path, "toy")
    computed()
    raise_generation(path, 0)
    tracelab.analyze(path, "toy")
    assert computed() == 0
    raise_generation(path, 1)
    tracelab.analyze(path, "toy")
    assert computed() == 3 * N_LABELS


@pytest.mark.parametrize("generation", ["1", -1, 10**9, True, None])
def test_a_generation_that_is_no_number_is_damage(tmp_path, generation):
    path = toys.write(tmp_path / "run", range(1))
    raise_generation(path, generation)
    # What cannot be opened at all is refused before.
    with pytest.raises(TraceError, match="generation"):
        tracelab.analyze(path, "toy")


def test_failed_cells_are_tried_again_and_poor_data_is_not(tmp_path, computed, monkeypatch):
    with tracelab.create(tmp_path / "run", toys.LAYERS) as writer:
        writer.append("statistics", step=0, gradient_norm=[1.0, np.nan, 1.0])
        writer.append("statistics", step=1, gradient_norm=[1.0, 1.0, -1.0])
    trace = tracelab.open(tmp_path / "run")
    told = []
    announce = lambda name, state, counts: told.append((state, counts))  # noqa: E731
    first = tracelab.analyze(trace, "toy", announce=announce)["toy"]
    assert first["status"].sel(step=1, layer="c") == Status.FAILED
    assert first["status"].sel(step=0, layer="b") == Status.NON_FINITE_INPUT
    assert (first.attrs["n_failures"], told[-1][0], told[-1][1].failed) == (1, "computed", 1)
    computed()
    again = tracelab.analyze(trace, "toy", announce=announce)["toy"]
    assert computed() == 0
    same(again, first)
    assert again.attrs["reused_cells"] == 2 * N_LABELS - 1
    assert told[-1][1].computed == 1
    # What made it fail is mended.
    monkeypatch.setattr(toys, "TOY", replace(toys.TOY, kernel=mended))
    fine = tracelab.analyze(trace, "toy", announce=announce)["toy"]
    assert fine["status"].sel(step=1, layer="c") == Status.OK
    assert told[-1][1] == tracelab.jobs.Counts(reused=7, computed=1, failed=0, unreadable=0)
    assert len(trace.results.keys_of("toy")) == 1


def mended(x, seed, offset, pause):
    value = np.abs(x)
    status = np.zeros(x.shape, np.uint8)
    return {"value": value, "part": np.stack([value, value], -1), "status": status}


def test_unreadable_cells_are_tried_again(tmp_path, computed):
    """A result that says UNREADABLE is not final: the medium may be back, or the trace repaired."""
    trace = tracelab.open(toys.write(tmp_path / "run", range(2)))
    analysis = toys.TOY
    plan = planning.plan(analysis, trace, analysis.resolve({}))
    table = Table.empty(plan)
    status = np.array([Status.UNREADABLE, Status.FAILED, Status.OK, Status.NOT_CONVERGED], np.uint8)
    cells = Cells(
        np.zeros(4, np.int64),
        toys.LABELS,
        np.arange(4),
        {
            "value": np.ones(4),
            "part": np.ones((4, 2), np.float32),
            "status": status,
        },
    )
    assert table.adopt(cells) == 2
    assert table.have.tolist() == [[False, False, True, True], [False] * 4]


def test_cells_of_other_steps_and_layers_are_left_alone(tmp_path):
    trace = tracelab.open(toys.write(tmp_path / "run", [3, 5]))
    plan = planning.plan(toys.TOY, trace, toys.TOY.resolve({}))
    table = Table.empty(plan)
    steps = np.array([0, 3, 4, 5, 6, 5])
    columns = np.array([0, 0, 0, 0, 0, 1])
    outputs = {
        "value": np.arange(6.0),
        "part": np.zeros((6, 2), np.float32),
        "status": np.zeros(6, np.uint8),
    }
    cells = Cells(steps, ("b", "gone"), columns, outputs)
    assert not table.holds(cells)
    assert table.adopt(cells) == 2
    assert table.outputs["value"][:, 1].tolist() == [1.0, 3.0]


def test_a_damaged_result_is_computed_again(tmp_path, computed):
    path = toys.write(tmp_path / "run", range(3))
    trace = tracelab.open(path)
    first = tracelab.analyze(trace, "toy")["toy"]
    computed()
    (file,) = (path / "results" / "toy").glob("*/value/c.0.0")
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    again = tracelab.analyze(trace, "toy")["toy"]
    assert computed() == 3 * N_LABELS
    same(again, first)
    same(trace.results["toy"], first)
    assert len(trace.results.keys_of("toy")) == 1


def test_an_analysis_whose_numbers_cannot_be_stored_is_refused_at_once(
    tmp_path, computed, monkeypatch
):
    outputs = (replace(toys.TOY.outputs[0], dtype="complex64"), *toys.TOY.outputs[1:])
    monkeypatch.setattr(toys, "TOY", replace(toys.TOY, outputs=outputs))
    trace = tracelab.open(toys.write(tmp_path / "run", range(1)))
    with pytest.raises(tracelab.errors.UsageError, match="declares 'value' as 'complex64'"):
        tracelab.analyze(trace, "toy")
    assert computed() == 0


def test_progress_is_of_what_must_be_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("tracelab.cutting.BLOCK_BYTES", 1)
    monkeypatch.setattr("tracelab.cutting.SHARED_BYTES", 1)
    trace = tracelab.open(toys.write(tmp_path / "run", range(8)))
    told = []
    tracelab.analyze(trace, "toy", steps=slice(0, 6))
    tracelab.analyze(trace, "toy", progress=lambda *given: told.append(given))
    blocks = len(told)
    assert told == [("toy", done, blocks) for done in range(1, blocks + 1)]
    assert 1 < blocks <= 2 * N_LABELS


@settings(max_examples=60)
@given(data=st.data(), few=st.booleans())
def test_what_is_missing_is_cut_into_blocks_that_hold_nothing_else(grid, data, few):
    plan = planning.plan(toys.TOY, tracelab.open(grid), toys.TOY.resolve({}))
    table = Table.empty(plan)
    rows, columns = table.have.shape
    bits = data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    table.have[...] = np.reshape(bits, (rows, columns))
    with pytest.MonkeyPatch.context() as patch:
        if few:
            patch.setattr(reuse, "MAX_BLOCKS", 1)
        left = reuse.missing(table)
    if left is None:
        assert table.have.all()
        return
    covered = np.zeros((rows, columns), int)
    for block in left.blocks:
        inside = [plan.steps.index(step) for step in left.steps[block.first : block.last]]
        covered[inside, block.left : block.right] += 1
    assert (covered[~table.have] == 1).all()
    if few:
        assert len(left.blocks) <= 2 * len(plan.blocks)
        assert covered.max() == 1
    else:
        assert (covered[table.have] == 0).all()
