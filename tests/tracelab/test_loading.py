"""What a kernel receives, against the whole arrays opened with xarray."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import tracelab
from tracelab import cutting, loading, noise, planning, registry
from tracelab.cells import run
from tracelab.contracts import NETWORK
from tracelab.typing import Status

LAYERS = {"a": (4, 6), "b": (4,), "c": (3,)}
BATCHES, STEPS = 24, (0, 3, 10, 11, 40)


def record(path, *, owners=(0, 0, 0, 1, 1, 2), exact=False):
    """Write a noise group of every sketch, and distances."""
    rng = np.random.default_rng(1)
    table = (np.array(owners), np.array([owners[:i].count(o) for i, o in enumerate(owners)]))
    with tracelab.create(path, layers=LAYERS) as writer:
        writer.define(
            "noise",
            attrs={"batch_size": 8, "replacement": True, "n_data": 1_000},
            coordinates=table,
        )
        for step in STEPS:
            writer.append(
                "noise",
                step=step,
                sampled=rng.standard_normal((BATCHES, 6)) + 1,
                mean_sampled=rng.standard_normal(6),
                projected=rng.standard_normal((BATCHES, 3, 5)) + 1,
                mean_projected=rng.standard_normal((3, 5)),
                **({"squared_deviation": rng.chisquare(3, (BATCHES, 3))} if exact else {}),
            )
            writer.append("weights", step=step, distance=rng.random(3), norm=np.ones(3))
    return tracelab.open(path)


def plan_of(trace, name, parameters=(), **options):
    analysis = registry.analysis(name)
    return planning.plan(analysis, trace, analysis.resolve(dict(parameters)), **options)


def loaded(plan, trace):
    """Return the kernel's inputs of every cell, put together again."""
    parts = [part for block in plan.blocks for part in loading.load(plan, block, trace)]
    return {(plan.steps[b.first], plan.labels[b.left]): inputs for b, inputs in parts}


@pytest.mark.parametrize("owners", [(0, 0, 0, 1, 1, 2), (1, 0, 2, 0, 1, 0)])
@pytest.mark.parametrize("sketch", ["sampled", "projected"])
@pytest.mark.parametrize("mode", ["batches", "standardized"])
@pytest.mark.parametrize("steps", [None, slice(1, None, 2)])
def test_noise_cells_are_those_of_the_public_view(tmp_path, owners, sketch, mode, steps):
    trace = record(tmp_path / "a.zarr", owners=owners)
    plan = plan_of(trace, "tail_index", {"sketch": sketch, "mode": mode}, steps=steps)
    found = loaded(plan, trace)
    assert set(found) == {(s, label) for s in plan.steps for label in (*LAYERS, NETWORK)}
    for (step, label), inputs in found.items():
        wanted = noise.layer_samples(
            trace.groups["noise"].sel(step=[step]),
            trace.layers,
            label,
            sketch=sketch,
        )
        wanted = noise.standardize(wanted) if mode == "standardized" else wanted
        np.testing.assert_allclose(inputs["noise"][0], wanted.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sketch", ["projected", "sampled"])
def test_squared_norms_are_derived_where_they_were_not_recorded(tmp_path, sketch):
    trace = record(tmp_path / "a.zarr")
    if sketch == "sampled":
        group = trace.groups["noise"].drop_vars(["projected", "mean_projected"])
        trace.groups = {**trace.groups, "noise": group}
    plan = plan_of(trace, "noise_scale")
    assert {read.kind for read in plan.reads.values()} == {"constant", "deviation", "signal"}
    (inputs,) = [inputs for _, inputs in loading.load(plan, plan.whole, trace)]
    group = trace.groups["noise"].load().astype(np.float64)
    apart = group[sketch] - group[f"mean_{sketch}"]
    for name, values in (("squared_deviation", apart), ("signal", group[f"mean_{sketch}"])):
        if sketch == "projected":
            wanted = (values**2).sum("direction").transpose("step", "layer", ...).values
        else:
            squares = (values**2).transpose("step", "coordinate", ...).values
            scaled = [
                squares[:, s].mean(1) * n for s, n in ((slice(3), 24), ((3, 4), 4), ((5,), 3))
            ]
            wanted = np.stack(scaled, axis=1)
        wanted = np.concatenate([wanted, wanted.sum(1, keepdims=True)], axis=1)
        np.testing.assert_allclose(inputs[name], wanted, rtol=1e-6)


def test_fields_and_their_network_row(tmp_path):
    trace = record(tmp_path / "a.zarr", exact=True)
    plan = plan_of(trace, "noise_scale", layers=lambda name: name != "b")
    (inputs,) = [inputs for _, inputs in loading.load(plan, plan.whole, trace)]
    recorded = trace.groups["noise"]["squared_deviation"].transpose("step", "layer", "batch").values
    wanted = np.stack([recorded[:, 0], recorded[:, 2], recorded.sum(1)], axis=1)
    np.testing.assert_allclose(inputs["squared_deviation"], wanted, rtol=1e-12)
    plan = plan_of(trace, "weight_diffusion")
    (inputs,) = [inputs for _, inputs in loading.load(plan, plan.whole, trace)]
    distance = trace.groups["weights"]["distance"].values
    np.testing.assert_array_equal(inputs["distance"][:3], distance.T)
    np.testing.assert_allclose(inputs["distance"][3], np.sqrt((distance**2).sum(1)))
    np.testing.assert_array_equal(inputs["step"], STEPS)


@pytest.mark.parametrize("name", ["tail_index", "noise_scale", "weight_diffusion"])
@pytest.mark.parametrize("sketch", ["sampled", "projected"])
def test_pieces_change_no_bit(tmp_path, monkeypatch, name, sketch):
    trace = record(tmp_path / "a.zarr")
    parameters = {"sketch": sketch} if name == "tail_index" else {}
    plan = plan_of(trace, name, parameters)
    whole, failures = run((trace, plan), plan.whole)
    assert not failures
    monkeypatch.setattr(loading, "TRANSIENT_BYTES", 1)
    pieces, _ = run((trace, replace(plan, piece_bytes=1)), plan.whole)
    for output, values in whole.items():
        np.testing.assert_array_equal(values, pieces[output])


def test_no_chunk_is_read_that_a_cell_does_not_need(tmp_path, monkeypatch):
    """One layer of two, far apart along the coordinates, reads its own chunks alone."""
    rng = np.random.default_rng(0)
    layers = {"a": (40_000,), "b": (40_000,)}
    with tracelab.create(tmp_path / "wide.zarr", layers=layers) as writer:
        for step in range(2):
            writer.append("noise", step=step, full=rng.standard_normal((20, 80_000)))
    trace = tracelab.open(tmp_path / "wide.zarr")
    read = []
    real = tracelab.trace.reading.stored.Stored.__getitem__

    def counted(self, selection):
        found = real(self, selection)
        read.append(found.nbytes)
        return found

    monkeypatch.setattr(tracelab.trace.reading.stored.Stored, "__getitem__", counted)
    plan = plan_of(trace, "gaussianity", layers=lambda name: name == "b", steps=slice(1, None))
    read.clear()
    list(loading.load(plan, plan.whole, trace))
    assert sum(read) == 20 * 40_000 * 4


def test_damage_is_a_status_of_its_cells_alone(tmp_path):
    trace = record(tmp_path / "a.zarr")
    monkey = registry.analysis("noise_scale")
    plan = planning.plan(monkey, trace, monkey.resolve({}))
    (shard,) = sorted((tmp_path / "a.zarr" / "noise" / "projected").glob("c.*"))
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    outputs, failures = run((tracelab.open(tmp_path / "a.zarr"), plan), plan.whole)
    status = xr.DataArray(outputs["status"], dims=("step", "layer"))
    # The first chunk is layer a of the first step; the network needs all layers.
    assert status.values[0].tolist()[0] == int(Status.UNREADABLE)
    assert status.values[0].tolist()[3] == int(Status.UNREADABLE)
    assert (status.values[1:] == int(Status.OK)).all()
    assert len(failures) == 2
    assert "checksum" in failures[0]


@pytest.mark.parametrize("limit", [1, 10**9])
def test_blocks_cover_every_cell_once(monkeypatch, limit):
    monkeypatch.setattr(cutting, "MAX_TASKS", 50)
    rng = np.random.default_rng(0)
    for by_step in (True, False):
        grain = cutting.Grain(
            read_bytes=rng.integers(1, 10**6, 37).astype(float),
            held_bytes=rng.integers(1, 10**6, 37).astype(float),
            row_chunk=np.sort(rng.integers(0, 9, 101)),
            column_chunk=np.sort(rng.integers(0, 5, 37)),
            by_step=by_step,
        )
        covered = np.zeros((101, 37), int)
        found = cutting.blocks(grain)
        assert len(found) <= 50
        for block in found:
            for piece in cutting.pieces(grain, block, limit):
                covered[piece.first : piece.last, piece.left : piece.right] += 1
        assert (covered == 1).all()
