"""The recorded gradient is the one the optimizer used, however the loop produced it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors import Gradients, Weights
from tracelab_collectors.attach import attach

FULL = (Gradients(sketch=tracelab.Full()),)


def flat(tensors) -> np.ndarray:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


def weights(net: nn.Module) -> np.ndarray:
    return flat(net.parameters())


def loss_of(net: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(inputs), targets)


def plain(net, optimizer, inputs, targets):
    loss_of(net, inputs, targets).backward()


def accumulated(net, optimizer, inputs, targets):
    for part in range(4):
        (loss_of(net, inputs[part::4], targets[part::4]) / 4).backward()


def clipped(net, optimizer, inputs, targets):
    loss_of(net, inputs, targets).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)


@pytest.mark.parametrize("backward", [plain, accumulated, clipped])
@pytest.mark.parametrize("foreach", [False, True])
def test_gradient_is_the_move_over_the_learning_rate(
    backward: Callable, foreach: bool, net, inputs, targets, path: Path, group
) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, foreach=foreach)
    moved = []
    with attach(net, optimizer, path, collectors=FULL):
        for _ in range(3):
            optimizer.zero_grad()
            backward(net, optimizer, inputs, targets)
            before = weights(net)
            optimizer.step()
            moved.append((before - weights(net)) / 0.5)
    # Rounding of w - lr g: half a unit in the last place of a weight below 1, over lr.
    np.testing.assert_allclose(group("gradients")["full"], moved, rtol=0, atol=2.5e-7)
    passes = 4 if backward is accumulated else 1
    assert group("steps")["micro_batches"].values.tolist() == [passes] * 3
    if backward is clipped:
        norms = np.linalg.norm(group("gradients")["full"], axis=1)
        np.testing.assert_allclose(norms, 1e-3, rtol=1e-2)


def test_full_sketch_against_autograd(net, inputs, targets, path: Path, group) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    expected = []
    with attach(net, optimizer, path, collectors=FULL):
        for _ in range(4):
            loss = loss_of(net, inputs, targets)
            expected.append(flat(torch.autograd.grad(loss, list(net.parameters()))))
            optimizer.zero_grad()
            loss_of(net, inputs, targets).backward()
            optimizer.step()
            # A held reference is zeroed or mutated; a copy is not.
            optimizer.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(group("gradients")["full"], expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(fused: bool, unscale: bool, net, inputs, targets, path, group) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = []
    with attach(net, optimizer, path, collectors=FULL):
        for step in range(3):
            optimizer.zero_grad()
            loss = loss_of(net, inputs, targets)
            expected.append(flat(torch.autograd.grad(loss, list(net.parameters()))))
            loss = loss_of(net, inputs, targets) * (float("inf") if step == 1 else 1.0)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            before = weights(net)
            scaler.step(optimizer)
            scaler.update()
            assert np.array_equal(weights(net), before) == (step == 1)
    full, steps = group("gradients")["full"].values, group("steps")
    # A fused step is called at an overflow and skips by itself; another is not called.
    rows = {0: 0, 2: 2} if fused else {0: 0, 1: 2}
    assert steps["applied"].values.tolist() == ([True, False, True] if fused else [True, True])
    for row, step in rows.items():
        # Scales are powers of two: exact.
        np.testing.assert_array_equal(full[row], expected[step])
    if fused:
        assert not np.isfinite(full[1]).any()


def test_a_later_hook_of_the_user_is_seen(net, inputs, targets, path: Path, group) -> None:
    """Ours moves behind hooks that were registered after it, already at the first step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)

    def halve(*_: object) -> None:
        for parameter in net.parameters():
            parameter.grad.mul_(0.5)

    with attach(net, optimizer, path, collectors=FULL):
        optimizer.register_step_pre_hook(halve)
        moved = []
        for _ in range(2):
            optimizer.zero_grad()
            plain(net, optimizer, inputs, targets)
            before = weights(net)
            optimizer.step()
            moved.append((before - weights(net)) / 0.5)
    np.testing.assert_allclose(group("gradients")["full"], moved, rtol=0, atol=2.5e-7)


@pytest.mark.parametrize("keyword", [False, True])
def test_closure(keyword: bool, net, inputs, targets, path: Path, group) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, inputs, targets)
        loss.backward()
        return loss

    moved = []
    with attach(net, optimizer, path, collectors=FULL):
        for _ in range(3):
            before = weights(net)
            loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
            assert loss is not None
            moved.append((before - weights(net)) / 0.5)
    np.testing.assert_allclose(group("gradients")["full"], moved, rtol=0, atol=2.5e-7)
    assert group("steps")["micro_batches"].values.tolist() == [1, 1, 1]


def test_layers_without_a_gradient_are_nan(net, inputs, targets, path: Path, group) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with attach(net, optimizer, path):
        for step in range(3):
            optimizer.zero_grad()
            for parameter in net[0].parameters():
                parameter.requires_grad_(step != 1)
            loss_of(net, inputs, targets).backward()
            optimizer.step()
    gradients, statistics = group("gradients"), group("statistics")
    absent = np.zeros((3, 4), dtype=bool)
    absent[1, :2] = True
    np.testing.assert_array_equal(np.isnan(gradients["projected"]).all("direction"), absent)
    np.testing.assert_array_equal(np.isnan(gradients["projected"]).any("direction"), absent)
    for name, values in statistics.data_vars.items():
        expected = absent if str(name).startswith("gradient") else np.zeros_like(absent)
        np.testing.assert_array_equal(np.isnan(values), expected, err_msg=str(name))


def test_non_finite_gradients_are_recorded_and_counted(net, inputs, path: Path, group) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with attach(net, optimizer, path, collectors=None):
        for _ in range(2):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            net[0].weight.grad[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
            optimizer.step()
    statistics = group("statistics")
    assert statistics["gradient_nonfinite"].values.tolist() == [[3, 0, 0, 0]] * 2
    assert np.isnan(statistics["gradient_norm"][:, 0]).all()
    np.testing.assert_allclose(statistics["gradient_log_abs_mean"][:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(statistics["gradient_norm"][:, 1], np.sqrt(5), rtol=1e-6)
    assert not np.isfinite(group("gradients")["projected"][:, 0]).all()


def test_sparse_gradients_are_summed_over_repeats(path: Path, group) -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(12, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rows = torch.tensor([[1, 1, 7], [1, 2, 7]])
    with attach(model, optimizer, path, collectors=FULL):
        before = weights(model)
        model(rows).sum().backward()
        assert model[0].weight.grad.is_sparse
        optimizer.step()
    np.testing.assert_allclose(
        group("gradients")["full"][0], (before - weights(model)) / 0.5, atol=1e-6
    )


def test_tied_weights_stand_once(path: Path, group, attrs) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inward, self.outward = nn.Linear(4, 4), nn.Linear(4, 4)
            self.outward.weight = self.inward.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.outward(self.inward(x))

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with attach(model, optimizer, path, collectors=FULL):
        before = weights(model)
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
    recorded = group("gradients")
    assert recorded["layer"].values.tolist() == ["inward.weight", "inward.bias", "outward.bias"]
    np.testing.assert_allclose(recorded["full"][0], (before - weights(model)) / 0.5, atol=1e-6)
    assert attrs()["model"]["tied"] == {"outward.weight": "inward.weight"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, net, inputs, targets, path: Path, group) -> None:
    net = net.to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with attach(net, optimizer, path, collectors=FULL):
        loss_of(net, inputs.to(dtype), targets).backward()
        expected = flat(parameter.grad.float() for parameter in net.parameters())
        optimizer.step()
    assert group("gradients")["full"].dtype == np.float32
    np.testing.assert_array_equal(group("gradients")["full"][0], expected)


def test_channels_last_is_kept_in_logical_order(path: Path, group) -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    with attach(model, optimizer, path, collectors=FULL):
        model(images).square().sum().backward()
        assert not model.weight.grad.is_contiguous()
        expected = flat(parameter.grad for parameter in model.parameters())
        optimizer.step()
    np.testing.assert_array_equal(group("gradients")["full"][0], expected)


def test_projection_and_coordinates_are_those_of_the_core(
    net, inputs, targets, path: Path, group
) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sketches = (tracelab.Project(7, seed=2), tracelab.Sample(4, seed=3))
    with attach(net, optimizer, path, collectors=[*FULL, Gradients(sketch=sketches, name="s")]):
        for _ in range(40):
            optimizer.zero_grad()
            loss_of(net, inputs, targets).backward()
            optimizer.step()
    full, found = group("gradients")["full"].values, group("s")
    with tracelab.open(path) as trace:
        layers = trace.layers.load()
    index = found["coordinate_index"].values
    starts = layers["offset"].values[found["coordinate_layer"].values]
    np.testing.assert_array_equal(found["sampled"], full[:, starts + index])
    for layer, (offset, numel) in enumerate(
        zip(layers["offset"].values, layers["numel"].values, strict=True)
    ):
        expected = sketches[0].project(full[:, offset : offset + numel], int(offset))
        np.testing.assert_allclose(found["projected"][:, layer], expected, rtol=0, atol=1e-6)
        name = str(layers["layer"].values[layer])
        kept = index[found["coordinate_layer"].values == layer]
        np.testing.assert_array_equal(kept, sketches[1].indices(name, int(numel)))


def test_layer_filters(net, inputs, targets, path: Path, group, attrs) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    some = Gradients(layers=r"2\..*", name="some", every=2, start=1, stop=6)
    with attach(net, optimizer, path, collectors=[Gradients(), some], exclude=r".*\.bias"):
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(net, inputs, targets).backward()
            optimizer.step()
    everything: xr.Dataset = group("gradients")
    assert everything["layer"].values.tolist() == ["0.weight", "2.weight"]
    assert group("some")["layer"].values.tolist() == ["2.weight"]
    assert group("some")["step"].values.tolist() == [1, 3, 5]
    np.testing.assert_array_equal(
        group("some")["projected"].values, everything["projected"].values[1:6:2, 1:]
    )
    assert attrs()["model"]["not_recorded"] == ["0.bias", "2.bias"]


def test_stages(net, inputs, targets, path: Path, group) -> None:
    """Before clipping, as used, and as the weights moved."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    collectors = [
        Gradients(stage=stage, sketch=tracelab.Full(), every=2)
        for stage in ("pre_clip", "post_clip", "update")
    ]
    expected, norms = [], []
    with attach(net, optimizer, path, collectors=collectors):
        for step in range(40):
            optimizer.zero_grad()
            for part in range(2):
                loss_of(net, inputs[part::2], targets[part::2]).backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
            before = weights(net)
            optimizer.step()
            if step % 2 == 0:
                norms.append(float(norm))
                expected.append(weights(net) - before)
    raw, used, moved = (group(name) for name in ("pre_clip", "gradients", "updates"))
    assert [each.attrs["stage"] for each in (raw, used, moved)] == [
        "pre_clip",
        "post_clip",
        "update",
    ]
    assert moved["full"].attrs["units"] == "weight"
    np.testing.assert_array_equal(moved["full"], expected)
    np.testing.assert_allclose(np.linalg.norm(raw["full"], axis=1), norms, rtol=1e-6)
    # Clipping multiplies by max_norm / (norm + 1e-6).
    factor = 1e-2 / (np.array(norms) + 1e-6)
    np.testing.assert_allclose(used["full"], raw["full"] * factor[:, None], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moved["full"], -0.5 * used["full"], rtol=0, atol=2e-7)


def test_unclipped_stages_agree(net, inputs, targets, path: Path, group) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    sketch = (tracelab.Project(8), tracelab.Sample(4))
    collectors = [Gradients(sketch=sketch), Gradients(sketch=sketch, stage="pre_clip")]
    with attach(net, optimizer, path, collectors=collectors):
        for _ in range(20):
            optimizer.zero_grad()
            loss_of(net, inputs, targets).backward()
            optimizer.step()
    xr.testing.assert_equal(group("gradients").load(), group("pre_clip").load())


def test_a_stage_that_is_none() -> None:
    with pytest.raises(UsageError, match="stage must be one of pre_clip, post_clip, update, got"):
        Gradients(stage="clipped")


def train_with(net, inputs, targets, path, collectors, steps=12) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with attach(net, optimizer, path, collectors=collectors):
        for step in range(steps):
            optimizer.zero_grad()
            for parameter in net[0].parameters():
                parameter.requires_grad_(step != 5)
            loss_of(net, inputs, targets).backward()
            optimizer.step()


def test_histograms_beside_other_sketches(net, inputs, targets, path: Path, group) -> None:
    sketches = [tracelab.Project(7), tracelab.Sample(4), tracelab.Histogram(3, (-20, 2))]
    collectors = [*FULL, Gradients(sketch=sketches, name="s")]
    train_with(net, inputs, targets, path, collectors)
    full, found = group("gradients")["full"].values, group("s")
    assert set(found.data_vars) == {"projected", "sampled", "histogram"}
    sketch = tracelab.Histogram.of(found.attrs)
    assert sketch == sketches[2]
    counts = found["histogram"]
    assert counts.dims == ("step", "layer", "bin")
    assert counts.dtype == np.uint32
    with tracelab.open(path) as trace:
        ends = np.cumsum(trace.layers["numel"].values)
    for layer, rows in enumerate(np.split(full, ends[:-1], axis=1)):
        expected = sketch.count(rows)
        if layer < 2:
            # Without a gradient at step 5: no counts, rather than counts of NaN.
            assert expected[5, sketch.nan] == rows.shape[1]
            expected[5] = 0
        np.testing.assert_array_equal(counts[:, layer].values, expected)
    numel = np.diff(ends, prepend=0)
    recorded = counts.sum("bin").values == numel
    assert recorded.sum() == recorded.size - 2
    assert not recorded[5, :2].any()


def test_histograms_of_updates_and_weights(net, inputs, targets, path: Path, group) -> None:
    both = [tracelab.Full(), tracelab.Histogram()]
    collectors = [Gradients(sketch=both, stage="update"), Weights(sketch=both, every=5)]
    train_with(net, inputs, targets, path, collectors)
    for name, rows in (("updates", 12), ("weights", 4)):
        found = group(name)
        assert found.sizes["step"] == rows
        network = tracelab.Histogram().count(found["full"].values)
        np.testing.assert_array_equal(found["histogram"].sum("layer").values, network)


def test_float64_gradients_are_counted_as_the_float32_that_is_stored(
    net, inputs, targets, path: Path, group
) -> None:
    net, inputs = net.double(), inputs.double()
    both = [tracelab.Full(), tracelab.Histogram()]
    train_with(net, inputs, targets, path, [Gradients(sketch=both)], steps=3)
    found = group("gradients")
    assert found["full"].dtype == np.float32
    np.testing.assert_array_equal(
        found["histogram"].sum("layer").values, tracelab.Histogram().count(found["full"].values)
    )
