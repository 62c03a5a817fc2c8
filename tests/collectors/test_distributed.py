"""Data parallelism and sharding, in real processes that talk by gloo."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from proofs.processes import Uneven, data_parallel, launch, sharded

import tracelab

distributed = pytest.importorskip("torch.distributed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo"),
]
STEPS = 6


def states(results: list[dict[str, Any]]) -> list[list[bytes]]:
    return [each["state"] for each in results]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[bytes]]]:
    """States of every rank without recording, by number of ranks."""
    folder = tmp_path_factory.mktemp("bare")
    return {world: states(launch(data_parallel, world, folder, STEPS, None)) for world in (2, 4)}


@pytest.mark.parametrize("world", [2, 4])
def test_rank_0_records_the_average(world: int, bare, tmp_path: Path) -> None:
    results = launch(data_parallel, world, tmp_path, STEPS, "by rank 0")
    assert states(results) == bare[world]
    trace = tracelab.open(tmp_path / "run.zarr")
    assert (trace.state, len(trace.ranks)) == ("complete", 0)
    mean = np.mean([each["both"].astype(np.float64) for each in results], axis=0)
    found = trace.gradients["full"].values
    assert found.shape == mean.shape
    # Ranks are added in another order than here: 1e-6 of the largest gradient.
    assert np.abs(found - mean).max() <= 1e-6 * np.abs(mean).max()
    # Each rank has its own batches: the average is none of them.
    assert np.abs(found - results[0]["both"]).max() > 1e-2 * np.abs(mean).max()
    assert trace.steps["micro_batches"].values.tolist() == [2] * STEPS


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_records_its_own_passes_and_the_average(world, bare, tmp_path: Path) -> None:
    results = launch(data_parallel, world, tmp_path, STEPS, "by every rank")
    assert states(results) == bare[world]
    ranks = [tracelab.open(tmp_path / "run.zarr" / f"workers/rank-{r:03}") for r in range(world)]
    for rank, (trace, result) in enumerate(zip(ranks, results, strict=True)):
        assert trace.state == "complete"
        assert (trace.run, trace.attrs["rank"], trace.attrs["world_size"]) == ("job", rank, world)
        # To the last bit what autograd says in this process.
        passes = trace.groups["micro_batches"]["full"].values
        np.testing.assert_array_equal(passes[:, 0], result["first"])
        np.testing.assert_array_equal(passes.sum(1), result["both"])
        np.testing.assert_array_equal(trace.gradients["full"], ranks[0].gradients["full"])


def test_everything_on_changes_no_bit_of_any_rank(bare, tmp_path: Path) -> None:
    assert states(launch(data_parallel, 2, tmp_path, STEPS, "everything")) == bare[2]
    trace = tracelab.open(tmp_path / "run.zarr")
    assert trace.state == "complete"
    assert {"noise", "micro_batches", "pre_clip", "weights"} <= set(trace.groups)


# FSDP2: each process has a part of the rows of every weight.


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("shards")
    return folder, launch(sharded, 2, folder, 0, STEPS, "sketches", {})


def traces_of(folder: Path) -> list[tracelab.trace.Trace]:
    return [tracelab.open(folder / f"run.zarr/workers/rank-{rank:03}") for rank in range(2)]


def layers() -> list[tuple[str, int, int]]:
    """Return name, offset and number of weights of each layer of the whole network."""
    found, offset = [], 0
    for name, parameter in Uneven().named_parameters():
        found.append((name, offset, parameter.numel()))
        offset += parameter.numel()
    return found


@pytest.mark.parametrize("collectors", ["sketches", "everything"])
def test_sharded_training_is_bitwise_the_same(collectors, tmp_path: Path) -> None:
    with_recording = launch(sharded, 2, tmp_path, 0, STEPS, collectors, {})
    assert states(with_recording) == states(launch(sharded, 2, tmp_path, 0, STEPS, None, {}))
    for trace in traces_of(tmp_path):
        assert trace.state == "complete"
        assert trace.rows["steps"] == STEPS


def test_shards_are_a_partition_and_some_are_empty(shards) -> None:
    sizes = [
        np.bincount(trace.groups["full"]["coordinate_layer"], minlength=len(layers())).tolist()
        for trace in traces_of(shards[0])
    ]
    assert np.sum(sizes, axis=0).tolist() == [numel for _, _, numel in layers()]
    assert 0 in sizes[1]


def test_full_sketches_of_ranks_are_the_whole_gradient(shards) -> None:
    folder, results = shards
    whole = results[0]["gradient"]
    np.testing.assert_array_equal(whole, results[1]["gradient"])
    offsets = np.array([offset for _, offset, _ in layers()])
    seen = np.zeros(whole.shape[1], dtype=int)
    for trace, result in zip(traces_of(folder), results, strict=True):
        group = trace.groups["full"].load()
        np.testing.assert_array_equal(group["sampled"], result["local"])
        at = offsets[group["coordinate_layer"].values] + group["coordinate_index"].values
        np.testing.assert_array_equal(group["sampled"], whole[:, at])
        seen[at] += 1
    assert (seen == 1).all()


def test_projections_of_ranks_add_up_to_that_of_the_whole(shards) -> None:
    folder, results = shards
    whole = results[0]["gradient"].astype(np.float64)
    added = sum(
        trace.gradients["projected"].values.astype(np.float64) for trace in traces_of(folder)
    )
    sketch = tracelab.Project(16, seed=4)
    for layer, (_, offset, numel) in enumerate(layers()):
        wanted = sketch.project(whole[:, offset : offset + numel], offset)
        assert np.abs(added[:, layer] - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_sampled_coordinates_of_ranks_are_those_of_the_whole(shards) -> None:
    folder, results = shards
    whole, sketch = results[0]["gradient"], tracelab.Sample(6, seed=2)
    groups = [trace.gradients.load() for trace in traces_of(folder)]
    for layer, (name, offset, numel) in enumerate(layers()):
        kept = []
        for group in groups:
            here = group["coordinate_layer"].values == layer
            index = group["coordinate_index"].values[here]
            np.testing.assert_array_equal(group["sampled"][:, here], whole[:, offset + index])
            kept += index.tolist()
        assert kept == sketch.indices(name, numel).tolist()


def test_statistics_are_of_the_part_that_a_rank_has(shards) -> None:
    folder, results = shards
    groups = [trace.groups["statistics"].load() for trace in traces_of(folder)]
    tables = [trace.groups["full"]["coordinate_layer"].values for trace in traces_of(folder)]
    for group, table, result in zip(groups, tables, results, strict=True):
        for layer, (name, _, _) in enumerate(layers()):
            part = result["local"][:, table == layer].astype(np.float64)
            found = group.isel(layer=layer)
            np.testing.assert_allclose(
                found["gradient_norm"], np.linalg.norm(part, axis=1), rtol=1e-6, err_msg=name
            )
            np.testing.assert_array_equal(found["gradient_nonfinite"], 0)
            if not part.shape[1]:
                # Nothing is here: no mean, and sums over nothing.
                assert np.isnan(found["gradient_mean"]).all()
                continue
            np.testing.assert_allclose(
                found["gradient_moment2"], (part**2).mean(1), rtol=1e-6, err_msg=name
            )
            np.testing.assert_allclose(
                found["gradient_abs_max"], np.abs(part).max(1), rtol=1e-6, err_msg=name
            )
    for layer, (_, offset, numel) in enumerate(layers()):
        squares = sum(
            group["weight_norm"].values[:, layer].astype(np.float64) ** 2 for group in groups
        )
        whole = results[0]["weight"][:, offset : offset + numel].astype(np.float64)
        np.testing.assert_allclose(squares, (whole**2).sum(1), rtol=1e-6)


def test_a_sharded_run_goes_on(shards, tmp_path: Path) -> None:
    """Interrupted behind step 3 and recorded again from a checkpoint of step 2."""
    folder, results = shards
    launch(sharded, 2, tmp_path, 0, 2, "sketches", {})
    saved = {each.name: each.read_bytes() for each in tmp_path.glob("checkpoint-*")}
    launch(sharded, 2, tmp_path, 2, 1, "sketches", {"resume": 2})
    for name, content in saved.items():
        (tmp_path / name).write_bytes(content)
    again = launch(sharded, 2, tmp_path, 2, STEPS - 2, "sketches", {"resume": 2})
    for trace, whole in zip(traces_of(tmp_path), traces_of(folder), strict=True):
        assert trace.state == "complete"
        assert trace.attrs["generation"] == 1
        for name in ("gradients", "full", "statistics"):
            xr.testing.assert_identical(trace.groups[name].load(), whole.groups[name].load())
    # The bits of weights, too: what is compared above is not two equal mistakes.
    assert torch.equal(
        torch.from_numpy(again[0]["gradient"]), torch.from_numpy(results[0]["gradient"][2:])
    )
