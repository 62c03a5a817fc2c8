"""Gradients one step ahead, of quadratics where they are known, and of networks by autograd."""

import copy

import numpy as np
import pytest
import torch
from proofs.states import bits, state_of
from scipy import stats
from torch import Tensor, nn

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors import SmoothedGradient
from tracelab_collectors.attach import attach


class Point(nn.Module):
    """Two layers of weights: what a function of them takes."""

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.from_numpy(first))
        self.b = nn.Parameter(torch.from_numpy(second))


def quadratic(hessian: np.ndarray):
    """Mean over examples of (w - x_i)' H (w - x_i) / 2."""
    matrix = torch.from_numpy(hessian)

    def of(model: nn.Module, batch: list[Tensor]) -> Tensor:
        away = torch.cat([model.a, model.b]) - batch[0]
        return 0.5 * torch.einsum("ni,ij,nj->n", away, matrix, away).mean()

    return of


def problem(n=30):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((7, 7))
    examples = rng.standard_normal((n, 7))
    w = rng.standard_normal(7)
    return root @ root.T / 7, examples, w


def record(net, data, path, loss, groups=None, steps=1, **options):
    optimizer = torch.optim.SGD(groups or net.parameters(), lr=0.1)
    options = {"every": 1, "draws": 5, "batch_size": 4} | options
    with attach(
        net, optimizer, path, collectors=[SmoothedGradient(**options)], loss=loss, data=data
    ):
        for _ in range(steps):
            optimizer.zero_grad()
            loss(net, [torch.stack(each) for each in zip(*data, strict=True)]).backward()
            optimizer.step()


def unsigned(projected: np.ndarray, layers, seed=0) -> np.ndarray:
    """Undo a projection that has a direction for each weight."""
    offset, found = 0, []
    for place, numel in enumerate(layers):
        signs = tracelab.Project(1, seed).signs(offset, numel)
        found.append(projected[..., place, :numel] * signs)
        assert (projected[..., place, numel:] == 0).all()
        offset += numel
    return np.concatenate(found, -1)


def test_of_a_quadratic_everything_is_known(path, group) -> None:
    h, examples, w = problem()
    net = Point(w[:4].copy(), w[4:].copy())
    data = torch.utils.data.TensorDataset(torch.from_numpy(examples))
    # Each layer has a learning rate of its own.
    groups = [{"params": [net.a], "lr": 0.3}, {"params": [net.b], "lr": 0.05}]
    record(net, data, path, quadratic(h), groups, neighbours=6, radius=0.7, data_batch_size=11)
    found = group("smoothed_gradient")
    row = found.isel(step=0)
    rate = np.repeat([0.3, 0.05], [4, 3])
    assert row["learning_rate"].values.tolist() == [0.3, 0.05]
    assert row["member"].values.tolist() == [[1, 0], [0, 1]]
    assert row["numel"].values.tolist() == [4, 3]
    g = h @ (w - examples.mean(0))
    # Projections are float32.
    np.testing.assert_allclose(unsigned(row["weight"].values, (4, 3)), w, rtol=1e-6)
    np.testing.assert_allclose(unsigned(row["gradient"].values, (4, 3)), g, rtol=1e-6)
    np.testing.assert_allclose(row["squared_norm"], [g[:4] @ g[:4], g[4:] @ g[4:]], rtol=1e-10)
    # grad f(y - eta omega) = grad f(y) - H eta omega, and the noise is what is left of it.
    smoothed = unsigned(row["smoothed"].values, (4, 3))
    at_y = h @ (w - rate * g - examples.mean(0))
    omega = np.linalg.solve(h, (at_y - smoothed).T).T / rate
    squares = np.stack([(omega[:, :4] ** 2).sum(1), (omega[:, 4:] ** 2).sum(1)], 1)
    np.testing.assert_allclose(row["noise_squared_norm"], squares, rtol=1e-3)
    assert squares.min() > 0.01
    mean = smoothed.mean(0)
    np.testing.assert_allclose(
        row["smoothed_squared_norm"], [mean[:4] @ mean[:4], mean[4:] @ mean[4:]], rtol=1e-5
    )
    there = w - rate * (g + omega)
    away = there[:, None] - examples
    losses = 0.5 * np.einsum("kni,ij,knj->k", away, h, away) / len(examples)
    np.testing.assert_allclose(row["smoothed_loss"], losses, rtol=1e-4)
    # A neighbour's gradient says where it is.
    near = unsigned(row["neighbour_gradient"].values, (4, 3))
    offset = np.linalg.solve(h, (near - g).T).T
    lengths = np.linalg.norm(offset, axis=1)
    assert (lengths <= 0.7 * (1 + 1e-4)).all()
    assert len(set(lengths.round(4))) == 6
    outward = near * offset
    np.testing.assert_allclose(
        row["neighbour_outward"], np.stack([outward[:, :4].sum(1), outward[:, 4:].sum(1)], 1),
        atol=1e-4,
    )  # fmt: skip
    # The last row is of the weights at the end.
    assert found["step"].values.tolist() == [0, 1]
    last = unsigned(found["weight"].values[1], (4, 3))
    np.testing.assert_allclose(last, w - rate * g, rtol=1e-6)


def test_the_rate_is_that_of_the_run_and_not_its_float32(path, group) -> None:
    """A minibatch of all data has no noise: the loss ahead is known to float64."""
    h, examples, w = problem()
    data = torch.utils.data.TensorDataset(torch.from_numpy(examples))
    net = Point(w[:4].copy(), w[4:].copy())
    record(net, data, path, quadratic(h), batch_size=30, replacement=False, draws=1)
    away = w - 0.1 * h @ (w - examples.mean(0)) - examples
    exact = 0.5 * np.einsum("ni,ij,nj->n", away, h, away).mean()
    # A rate of float32 is off by 1e-8 of it.
    assert group("smoothed_gradient")["smoothed_loss"][0, 0] == pytest.approx(exact, rel=1e-12)


def test_points_are_uniform_in_the_ball(path, group) -> None:
    """The n-th power of the distance over the radius is uniform, n = 2 + 1."""
    net = Point(np.zeros(2), np.zeros(1))
    data = torch.utils.data.TensorDataset(torch.zeros(4, 3, dtype=torch.float64))
    record(net, data, path, quadratic(np.eye(3)), neighbours=400, radius=2.0, draws=1)
    row = group("smoothed_gradient").isel(step=0)
    lengths = np.sqrt(row["neighbour_squared_norm"].values.sum(-1))
    # A p-value below 1e-4 would be one in ten thousand.
    assert stats.kstest((lengths / 2) ** 3, "uniform").pvalue > 1e-4
    # The gradient of |w|^2 / 2 at a point is the point.
    np.testing.assert_allclose(row["neighbour_outward"].values.sum(-1), lengths**2, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("replacement", [True, False])
def test_the_noise_is_that_of_minibatches(replacement, path, group) -> None:
    """E|omega|^2 = tr(Sigma) / b, times (n - b) / (n - 1) without replacement."""
    h, examples, w = problem(n=20)
    data = torch.utils.data.TensorDataset(torch.from_numpy(examples))
    record(
        Point(w[:4].copy(), w[4:].copy()), data, path, quadratic(h),
        draws=400, batch_size=5, replacement=replacement,
    )  # fmt: skip
    squares = group("smoothed_gradient")["noise_squared_norm"].values[0].sum(-1)
    each = (examples - examples.mean(0)) @ h
    exact = np.sum(each**2) / 20 / 5 * (1 if replacement else 15 / 19)
    error = squares.std(ddof=1) / np.sqrt(400)
    assert error < 0.06 * exact
    # With and without replacement are 21 % apart.
    assert abs(squares.mean() - exact) < 3 * error


def test_whole_data_as_a_minibatch_has_no_noise(net, data, cross_entropy, path, group) -> None:
    record(net, data, path, cross_entropy, batch_size=48, replacement=False, draws=2)
    row = group("smoothed_gradient").isel(step=0)
    # What float32 rounds.
    assert (row["noise_squared_norm"] < 1e-12).all()
    np.testing.assert_allclose(row["smoothed"][0], row["smoothed"][1], atol=1e-6)
    later = group("smoothed_gradient").isel(step=1)
    np.testing.assert_allclose(row["smoothed"][0], later["gradient"], atol=1e-6)
    np.testing.assert_allclose(row["smoothed_loss"], later["loss"], rtol=1e-6)


def test_a_projection_is_the_librarys(net, data, cross_entropy, path, group) -> None:
    before = [p.detach().clone() for p in net.parameters()]
    record(net, data, path, cross_entropy, sketch=tracelab.Project(7, seed=3))
    found = group("smoothed_gradient")
    offset = 0
    for place, weight in enumerate(before):
        exact = tracelab.Project(7, seed=3).project(weight.numpy().ravel(), offset)
        np.testing.assert_allclose(found["weight"][0, place], exact, atol=1e-6)
        offset += weight.numel()
    assert found.attrs["directions"] == 7
    assert "neighbour_gradient" not in found


@pytest.mark.parametrize("mode", ["eval", None])
def test_training_is_the_same_bit_for_bit(mode, tmp_path) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)
    )
    inputs, classes = torch.randn(40, 6), torch.randint(0, 3, (40,))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    left = []
    for recorded in (False, True):
        own = copy.deepcopy(net)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(2)
        session = recorded and attach(
            own, optimizer, tmp_path / f"{mode}.zarr",
            collectors=[SmoothedGradient(every=2, mode=mode, draws=2, batch_size=8, neighbours=2)],
            loss=loss, data=torch.utils.data.TensorDataset(inputs, classes),
        )  # fmt: skip
        for _ in range(5):
            optimizer.zero_grad()
            loss(own, (inputs, classes)).backward()
            optimizer.step()
        if session:
            session.detach()
        left.append([*state_of(own, [optimizer]), *bits([torch.rand(3)])])
    assert left[0] == left[1]


def test_bad_input(net, data, cross_entropy, path) -> None:
    for options, message in (
        ({"draws": 0}, "draws must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"neighbours": -1}, "neighbours must be an integer of at least 0"),
        ({"examples": 0}, "examples must be an integer of at least 1"),
        ({"radius": 0.0}, "radius must be a positive number, got 0.0"),
        ({"radius": "1"}, "radius must be a positive number"),
        ({"sketch": tracelab.Full()}, "sketch must be tracelab.Project"),
        ({"mode": "train"}, "mode must be 'eval' or None"),
    ):
        with pytest.raises(UsageError, match=message):
            SmoothedGradient(**options)
    with pytest.raises(UsageError, match="needs loss"):
        record(net, data, path, None)
    with pytest.raises(UsageError, match="batch_size=49 without replacement exceeds the 48"):
        record(net, data, path, cross_entropy, batch_size=49, replacement=False)
    with pytest.raises(UsageError, match="fails on the first examples: RuntimeError"):
        record(net, data, path, lambda model, batch: model(batch[0]).mean().detach())
