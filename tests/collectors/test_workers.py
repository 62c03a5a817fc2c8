"""Each process's own gradient and weights, by itself and read side by side."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors import Workers
from tracelab_collectors.attach import attach
from tracelab_collectors.collector import Run
from tracelab_collectors.layout import Layout

# As many directions as weights or more: a layer's projection is the layer, but for signs.
WIDE = tracelab.Project(64)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


def layers_of(net):
    offset = 0
    for _, parameter in net.named_parameters():
        yield offset, parameter.numel()
        offset += parameter.numel()


@pytest.fixture
def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def train(net, optimizer, inputs, counts):
    """Take a step of each number of passes; return weights before and the passes' gradients."""
    found = []
    for step, count in enumerate(counts):
        optimizer.zero_grad()
        weights, passes = flat(net.parameters()).astype(np.float64), []
        for part in range(count):
            loss = net(inputs[part::4] * (1 + step)).square().mean() / count
            passes.append(flat(torch.autograd.grad(loss, net.parameters(), retain_graph=True)))
            loss.backward()
        optimizer.step()
        found.append((weights, np.asarray(passes, dtype=np.float64)))
    return found


def test_records_the_processs_own_sum_and_its_noise(net, optimizer, inputs, path, group):
    with attach(net, optimizer, path, collectors=[Workers(batches=3, sketch=WIDE)]):
        truth = train(net, optimizer, inputs, (3, 2, 1))
    found = group("worker")
    assert found.attrs["kind"] == "workers"
    assert found["gradient_projected"].dims == ("step", "worker", "layer", "direction")
    for step, (weights, passes) in enumerate(truth):
        total = passes.sum(0)
        for layer, (offset, numel) in enumerate(layers_of(net)):
            own = slice(offset, offset + numel)
            row = found.isel(step=step, worker=0, layer=layer)
            wanted = WIDE.project(total[own], offset)
            np.testing.assert_allclose(row["gradient_projected"], wanted, rtol=0, atol=1e-6)
            wanted = WIDE.project(weights[own], offset)
            np.testing.assert_allclose(row["weight_projected"], wanted, rtol=0, atol=1e-6)
            norm, square = row["gradient_squared_norm"], row["weight_squared_norm"]
            assert float(norm) == pytest.approx(np.sum(total[own] ** 2), rel=1e-5)
            assert float(square) == pytest.approx(np.sum(weights[own] ** 2), rel=1e-5)
            if len(passes) == 1:
                assert np.isnan(row["gradient_variance"])
                continue
            variance = len(passes) * passes[:, own].var(axis=0, ddof=1).sum()
            assert float(row["gradient_variance"]) == pytest.approx(variance, rel=1e-4)


def test_a_gradient_of_more_passes_than_were_heard_is_missing(net, optimizer, inputs, path, group):
    with attach(net, optimizer, path, collectors=[Workers(batches=2, sketch=WIDE)]):
        train(net, optimizer, inputs, (2, 3, 4, 1))
    found = group("worker")
    missing = np.isnan(found["gradient_squared_norm"].values).all(axis=(1, 2))
    assert missing.tolist() == [False, True, True, False]
    everywhere = np.isnan(found["gradient_projected"].values).all(axis=(1, 2, 3))
    assert everywhere.tolist() == missing.tolist()
    assert np.isfinite(found["weight_projected"].values).all()


def test_a_layer_without_a_gradient_is_missing_alone(path, group):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    net = Idle()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with attach(net, optimizer, path, collectors=[Workers(sketch=WIDE)]):
        net(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    found = group("worker").isel(step=0, worker=0)
    missing = np.isnan(found["gradient_projected"].values).all(axis=-1)
    assert missing.tolist() == [name.startswith("idle") for name in map(str, found["layer"].values)]


def test_ranks_are_read_through_the_trace_of_the_whole(inputs, path):
    """Three ranks one after the other; the trace of the whole is made by rank 0."""
    for rank in range(3):
        torch.manual_seed(rank)
        net = nn.Linear(6, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        collectors = [Workers(sketch=WIDE)]
        options = {"rank": rank, "world_size": 3, "run_id": "job"}
        with attach(net, optimizer, path, collectors=collectors, **options):
            train(net, optimizer, inputs, (1,) * (5 - rank))
    trace = tracelab.open(path)
    assert (trace.run, trace.state, trace.attrs["world_size"]) == ("job", "complete", 3)
    found = trace.groups["workers/worker"]["weight_squared_norm"].values
    assert found.shape == (5, 3, 2)
    assert np.isnan(found).all(axis=2).sum(axis=0).tolist() == [0, 1, 2]


def one_rank(net, inputs, path, *, rate=0.1, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    collectors = [Workers(sketch=WIDE)]
    with attach(net, optimizer, path, collectors=collectors, rank=0, **options):
        train(net, optimizer, inputs, (1, 1))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"run_id": "old"}, {"run_id": "new"}, "recorded with run 'old', and now run is 'new'"),
        ({"world_size": 8}, {"world_size": 4}, "recorded with world_size 8, and now"),
        ({}, {"rate": 0.5}, "recorded with optimizer .*'lr': 0.1.* and now optimizer is"),
    ],
)
def test_a_whole_of_another_job_is_not_taken_for_that_of_this(
    first, second, words, net, inputs, path
):
    """What analyses read of it, such as the optimizer, would not be that of the ranks."""
    one_rank(net, inputs, path, **first)
    before = (path / "workers/rank-000/zarr.json").read_bytes()
    with pytest.raises(UsageError, match=words):
        one_rank(net, inputs, path, overwrite=True, **second)
    assert (path / "workers/rank-000/zarr.json").read_bytes() == before
    one_rank(net, inputs, path, overwrite=True, **first)


def test_a_whole_whose_rank_0_was_killed_ends_with_the_job_that_goes_on(net, inputs, path):
    one_rank(net, inputs, path)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["state"] = "recording"
    (path / "zarr.json").write_text(json.dumps(document))
    layers = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    kinds = dict.fromkeys(layers, "Linear")
    with tracelab.create(path, layers, kinds=kinds, resume=True) as writer:
        # Somebody else's to end, while it is open.
        one_rank(net, inputs, path, resume=True)
        assert tracelab.open(path).state == "recording"
        writer.append("steps", step=0, loss=1.0)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["state"] = "recording"
    (path / "zarr.json").write_text(json.dumps(document))
    one_rank(net, inputs, path, resume=True)
    trace = tracelab.open(path)
    assert trace.state == "complete"
    assert trace.steps["loss"].values.tolist() == [1.0]
    assert trace.ranks[0].rows["worker"] == 6


def test_a_rank_that_cannot_begin_leaves_no_whole_open(net, inputs, path):
    one_rank(net, inputs, path)
    (path / "zarr.json").unlink()
    shutil.rmtree(path / "layers")
    with pytest.raises(UsageError, match=r"there is a trace at .*rank-000"):
        one_rank(net, inputs, path)
    assert tracelab.open(path).state == "incomplete"


def test_refuses_what_ranks_do_not_share(net):
    shards = Layout(("w",), ((2, 3),), (0,), ((0, 12),))
    run = Run(shards, {}, net, torch.float32, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"weights are sharded over ranks, and none has weights"):
        Workers().bind(run)
    with pytest.raises(UsageError, match=r"Workers' sketch must be a Project\(k\), got Full"):
        Workers(sketch=tracelab.Full())
    with pytest.raises(UsageError, match="Workers' batches must be an integer of at least 1"):
        Workers(batches=0)
