"""Statistics and weights against float64 NumPy on the same tensors."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tracelab
from tracelab.errors import IncompleteTraceWarning, UsageError
from tracelab_collectors import Gradients, Statistics, Weights
from tracelab_collectors.attach import attach
from tracelab_collectors.layout import CHUNK, Layout
from tracelab_collectors.moments import (
    MOMENTS,
    device_squares,
    device_sums,
    moments,
    squared_norms,
)

SHAPES = ((3, 5), (CHUNK,), (CHUNK + 1,), (40, 1000), (1,))
LAYOUT = Layout(tuple("abcde"), SHAPES, (0, 15, 271, 528, 40528))


def reference(values: np.ndarray) -> dict[str, float]:
    x = values.astype(np.float64).ravel()
    finite = np.abs(x[np.isfinite(x) & (x != 0)])
    logs = np.log(finite)
    with np.errstate(invalid="ignore"):
        return {
            "norm": np.sqrt((x**2).sum()),
            **{("mean" if k == 1 else f"moment{k}"): (x**k).mean() for k in range(1, 5)},
            "abs_max": np.abs(x).max(),
            "log_abs_mean": logs.mean() if logs.size else np.nan,
            "log_abs_var": logs.var() if logs.size else np.nan,
            "zeros": float((x == 0).sum()),
            "nonfinite": float((~np.isfinite(x)).sum()),
        }


def tensors(scale: float, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    # Heavy tails and zeros, as in the gradients of a network with rectifiers.
    return [((x**3 * (x > -1)) * scale).to(dtype) for x in drawn]


@pytest.fixture(params=["kernel", "device"], autouse=True)
def path_of_sums(request, monkeypatch) -> str:
    """Take either way to the sums: the CPU's kernels, or the torch operations of a device."""
    if request.param == "device":
        module = sys.modules[moments.__module__]
        monkeypatch.setattr(module.kernels, "sums", _device_sums)
        monkeypatch.setattr(module.kernels, "squares", _device_squares)
    return str(request.param)


def _layout(starts: np.ndarray, numels: np.ndarray) -> Layout:
    shapes = tuple((int(numel),) for numel in numels)
    layout = Layout(tuple(map(str, starts)), shapes, tuple(int(start) for start in starts))
    assert layout.starts[:-1] == tuple(starts)
    return layout


def _device_sums(rows: np.ndarray, starts: np.ndarray, numels: np.ndarray) -> np.ndarray:
    return device_sums(torch.from_numpy(rows), _layout(starts, numels)).numpy()


def _device_squares(rows, starts, numels, out: np.ndarray) -> None:
    out[:] = device_squares(torch.from_numpy(rows), _layout(starts, numels)).numpy()


def check(layers: list[torch.Tensor], dtype: torch.dtype, rtol: float) -> None:
    rows = torch.stack([LAYOUT.flat(layers, dtype=dtype, device=torch.device("cpu"))] * 2)
    found = moments(rows, LAYOUT)
    assert tuple(found) == MOMENTS
    for layer, values in enumerate(layers):
        for name, expected in reference(values.to(dtype).numpy()).items():
            # The mean and the third moment cancel: relative to the absolute moment instead.
            power = {"mean": 1, "moment3": 3}.get(name)
            finite = values[values.isfinite()].double().abs()
            atol = rtol * float((finite**power).mean()) if power else 1e-6 * ("log" in name)
            np.testing.assert_allclose(
                found[name][:, layer], expected, rtol=rtol, atol=atol, err_msg=f"{name} {layer}"
            )


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-30, 1e9])
def test_moments_at_any_scale(scale: float) -> None:
    """Fourth powers neither underflow nor overflow, although values are float32."""
    check(tensors(scale), torch.float32, 3e-6)


def test_moments_in_float64() -> None:
    check(tensors(1e-3, torch.float64), torch.float64, 1e-12)


def test_moments_of_zeros_and_of_what_is_not_finite() -> None:
    layers = tensors(1.0)
    layers[0] = torch.zeros(SHAPES[0])
    layers[1][3:6] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    layers[3][7, 8] = torch.inf
    layers[4] = torch.full(SHAPES[4], torch.nan)
    check(layers, torch.float32, 3e-6)


def test_smallest_floats() -> None:
    layers = tensors(1.0)
    layers[1] = torch.full(SHAPES[1], 1e-45)
    layers[2][:] = torch.logspace(-44, 30, CHUNK + 1)
    check(layers, torch.float32, 3e-6)


def test_squared_norms_are_summed_in_float64() -> None:
    layers = tensors(1e-25)
    rows = LAYOUT.flat(layers, dtype=torch.float32, device=torch.device("cpu")).unsqueeze(0)
    expected = [(layer.double() ** 2).sum().item() for layer in layers]
    np.testing.assert_allclose(squared_norms(rows, LAYOUT)[0], expected, rtol=1e-13)


def test_recorded_statistics(net, inputs, path: Path, group) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    start = [parameter.detach().clone() for parameter in net.parameters()]
    kept: dict[str, list] = {"gradient": [], "weight": [], "update": [], "distance": []}
    quantities = ("gradient", "weight", "update")
    with attach(net, optimizer, path, collectors=[Statistics(quantities=quantities)]):
        # More steps than a block holds.
        for _ in range(40):
            optimizer.zero_grad()
            net(inputs).square().mean().backward()
            before = [parameter.detach().clone() for parameter in net.parameters()]
            kept["gradient"].append([parameter.grad.clone() for parameter in net.parameters()])
            optimizer.step()
            kept["weight"].append(before)
            kept["update"].append(
                [p.detach() - w for p, w in zip(net.parameters(), before, strict=True)]
            )
            kept["distance"].append(
                [(w - s).norm().item() for w, s in zip(before, start, strict=True)]
            )
    found = group("statistics")
    assert found["step"].values.tolist() == list(range(40))
    for quantity in quantities:
        references = [[reference(tensor.numpy()) for tensor in row] for row in kept[quantity]]
        for name in MOMENTS:
            values = found[f"{quantity}_{name}"]
            expected = [[layer[name] for layer in row] for row in references]
            np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-8, err_msg=name)
    np.testing.assert_allclose(found["distance"], kept["distance"], rtol=1e-5, atol=1e-9)


def test_default_quantities(net, inputs, path: Path, group) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with attach(net, optimizer, path, collectors=[Statistics(quantities=("gradient",))]):
        net(inputs).sum().backward()
        optimizer.step()
    assert set(group("statistics").data_vars) == {
        "distance",
        *(f"gradient_{name}" for name in MOMENTS),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights(dtype: torch.dtype, net, inputs, path: Path, group) -> None:
    net = net.to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sketch = (tracelab.Project(16), tracelab.Full())
    seen = []
    with attach(net, optimizer, path, collectors=[Weights(every=3, sketch=sketch)]):
        for _ in range(8):
            seen.append([parameter.detach().clone() for parameter in net.parameters()])
            optimizer.zero_grad()
            net(inputs.to(dtype)).square().mean().backward()
            optimizer.step()
    seen.append(list(net.parameters()))
    found = group("weights")
    # The last row holds the weights behind the last step.
    assert found["step"].values.tolist() == [0, 3, 6, 8]
    for row, step in enumerate(found["step"].values):
        flat = torch.cat([tensor.detach().flatten() for tensor in seen[step]])
        np.testing.assert_array_equal(found["full"][row], flat.float())
        norms = [tensor.detach().double().norm().item() for tensor in seen[step]]
        moved = [
            (a - b).detach().double().norm().item()
            for a, b in zip(seen[step], seen[0], strict=True)
        ]
        rtol = 1e-12 if dtype == torch.float64 else 1e-7
        np.testing.assert_allclose(found["norm"][row], norms, rtol=rtol)
        np.testing.assert_allclose(found["distance"][row], moved, rtol=rtol)


def test_final_weights_of_a_run_without_steps(net, path: Path, group) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(net, optimizer, path, collectors=[Weights()]).detach()
    assert group("weights")["step"].values.tolist() == [0]
    assert group("weights")["distance"].values.tolist() == [[0.0] * 4]


def test_large_layers_take_several_blocks_and_stretches(path: Path, group) -> None:
    """A layer longer than a stretch, and a buffer so large that a block holds one step."""
    model = nn.Linear(3000, 1500, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    collectors = [Statistics(), Gradients(sketch=tracelab.Project(64))]
    gradients = []
    with attach(model, optimizer, path, collectors=collectors):
        for step in range(3):
            gradients.append(torch.randn(1500, 3000, generator=torch.Generator().manual_seed(step)))
            model.weight.grad = gradients[-1].clone()
            optimizer.step()
    for step, gradient in enumerate(gradients):
        flat = gradient.double().numpy().ravel()
        expected = tracelab.Project(64).project(flat, 0)
        found = group("gradients")["projected"].values[step, 0]
        # Summed in float64, stored in float32.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(
            group("statistics")["gradient_norm"][step, 0], np.linalg.norm(flat), rtol=1e-6
        )


@pytest.mark.parametrize("quantities", [("gradients",), "gradient", ("weight", "loss")])
def test_unknown_quantities(quantities) -> None:
    with pytest.raises(UsageError, match="must be a sequence of gradient, weight, update"):
        Statistics(quantities=quantities)


def test_displacement_is_of_the_weights_at_the_start(path: Path, group) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    collectors = [Statistics(quantities=("displacement",))]
    with attach(net, optimizer, path, collectors=collectors, strict=True):
        for _ in range(3):
            net(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            moved = [p.detach() - w for p, w in zip(net.parameters(), before, strict=True)]
        optimizer.step()
    found = group("statistics")
    assert not [name for name in found if str(name).startswith(("gradient", "weight", "update"))]
    np.testing.assert_allclose(found["displacement_norm"], found["distance"], rtol=1e-6)
    assert (found["displacement_zeros"][0] == [6, 2, 2, 1]).all()
    for layer, values in enumerate(moved):
        for name, expected in reference(values.numpy()).items():
            actual = found[f"displacement_{name}"][3, layer]
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9, err_msg=name)


def test_a_part_without_coordinates() -> None:
    """As a process has it of a layer with fewer rows than there are processes."""
    layout = Layout(("a", "b", "c"), ((0, 5), (2, 3), (0,)), (0, 0, 6), ((0, 5), (0, 6), (4, 4)))
    values = torch.arange(1.0, 7.0)
    rows = layout.flat(
        [torch.empty(0, 5), values.view(2, 3), torch.empty(0)],
        dtype=torch.float32,
        device=torch.device("cpu"),
    ).unsqueeze(0)
    found = moments(rows, layout)
    for layer in (0, 2):
        zero = {"norm", "abs_max", "zeros", "nonfinite"}
        assert all(found[name][0, layer] == 0 for name in zero)
        assert all(found[name][0, layer].isnan() for name in set(found) - zero)
    for name, expected in reference(values.numpy()).items():
        np.testing.assert_allclose(found[name][0, 1], expected, rtol=1e-6)
    np.testing.assert_array_equal(squared_norms(rows, layout), [[0, 91, 0]])


def test_an_update_that_was_not_taken_is_missing_in_every_statistic(path: Path, group) -> None:
    """Counts too: of an optimizer that did not step, and of a layer that none has any more."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    one = torch.optim.SGD([*net[0].parameters(), *net[1].parameters()], lr=0.1)
    two = torch.optim.SGD(net[2].parameters(), lr=0.1)
    collectors = [Statistics(quantities=("update",))]
    with attach(net, [one, two], path, collectors=collectors, strict=True):
        for both in (True, False):
            net(torch.ones(4, 3)).sum().backward()
            one.step()
            if both:
                two.step()
        one.param_groups[0]["params"] = list(net[0].parameters())
        with pytest.warns(IncompleteTraceWarning, match="'1.weight' is no longer trained"):
            one.step()
        two.step()
    found = group("statistics")
    missing = [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]]
    for name in MOMENTS:
        values = found[f"update_{name}"]
        np.testing.assert_array_equal(np.isnan(values[[1, 2]]), missing, err_msg=name)
    assert not np.isnan(found["update_nonfinite"][0]).any()
