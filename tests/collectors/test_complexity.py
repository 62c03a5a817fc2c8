"""Norms, margins and changes along segments of networks that were made by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from proofs.states import bits, state_of
from torch import nn

from tracelab.errors import UsageError
from tracelab_collectors import Complexity
from tracelab_collectors.attach import attach
from tracelab_collectors.frozen import Frozen
from tracelab_collectors.matrices import DENSE, TOLERANCE, matrix_of, spectral_norm
from tracelab_collectors.path_norm import chain_of, path_norm
from tracelab_collectors.segments import along


def record(net, data, path, steps=1, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"every": 1, "examples": None} | options
    with attach(net, optimizer, path, collectors=[Complexity(**options)], data=data):
        for _ in range(steps):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()


@pytest.mark.parametrize("shape", [(5, 7), (DENSE + 1, DENSE + 40), (300, 300)])
def test_spectral_norms_are_numpys(shape) -> None:
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((shape[0], min(shape))))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], min(shape))))[0]
    # The second is a tenth less: power iteration gains a factor of .81 each time.
    values = np.linspace(0.9, 0.1, min(shape))
    values[0] = 1.0
    matrix = (left * values) @ right.T * 3
    found, residual = spectral_norm(torch.from_numpy(matrix), seed=0)
    exact = np.linalg.norm(matrix, 2)
    assert exact == pytest.approx(3, rel=1e-12)
    # sigma^2 is within the residual of an eigenvalue, relative to it; sigma within half of that.
    assert residual <= TOLERANCE
    assert found == pytest.approx(exact, rel=max(residual / 2, 1e-12))
    assert found <= exact * (1 + 1e-12)


def test_matrices_that_are_zero_or_not_finite() -> None:
    for size in (3, DENSE + 1):
        assert spectral_norm(torch.zeros(size, size, dtype=torch.float64), 0) == (0.0, 0.0)
        bad = torch.full((size, size), math.nan, dtype=torch.float64)
        assert all(math.isnan(each) for each in spectral_norm(bad, 0))
    assert matrix_of(torch.zeros(4)) is None
    assert matrix_of(torch.zeros(4, 3, 2, 2)).shape == (4, 12)


def test_norms_and_distance_by_layer(data, path, group) -> None:
    net = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    before = [p.detach().clone().double() for p in net.parameters()]
    record(net, data, path, steps=2)
    found = group("complexity")
    assert found["step"].values.tolist() == [0, 1, 2]
    for layer, weight in enumerate(before):
        row = found.isel(layer=layer)
        # Each step of rate .1 along a gradient of ones.
        for step in range(3):
            exact = (weight - 0.1 * step).numpy()
            # Weights are float32.
            assert row["norm"][step] == pytest.approx(np.linalg.norm(exact), rel=1e-6)
            moved = 0.1 * step * np.sqrt(exact.size)
            assert row["distance"][step] == pytest.approx(moved, abs=1e-6)
            if exact.ndim == 1:
                assert np.isnan(row["spectral_norm"][step])
                assert (row["log_spectral_norm"][step], row["stable_rank"][step]) == (0, 0)
                continue
            matrix = exact.reshape(len(exact), -1)
            largest = np.linalg.norm(matrix, 2)
            assert row["spectral_norm"][step] == pytest.approx(largest, rel=1e-6)
            assert row["log_spectral_norm"][step] == pytest.approx(np.log(largest), abs=1e-6)
            rank = np.linalg.norm(matrix) ** 2 / largest**2
            assert row["stable_rank"][step] == pytest.approx(rank, rel=1e-5)


def test_margins_and_gradients_of_a_linear_network(path, group) -> None:
    net = nn.Linear(4, 3).double()
    inputs = torch.randn(20, 4, dtype=torch.float64)
    classes = torch.randint(0, 3, (20,))
    record(net, torch.utils.data.TensorDataset(inputs, classes), path, data_batch_size=7)
    row = group("complexity").isel(step=0)
    # The first row is at the weights of the start.
    weight, bias = (p.detach().double() for p in net.parameters())
    weight, bias = weight + 0.1, bias + 0.1
    scores = (inputs @ weight.T + bias).numpy()
    for example, (score, own) in enumerate(zip(scores, classes.tolist(), strict=True)):
        other = max((value, place) for place, value in enumerate(score) if place != own)[1]
        assert row["margin"][example] == pytest.approx(score[own] - score[other], rel=1e-9)
        slope = float((weight[own] - weight[other]).norm())
        assert row["input_gradient_norm"][example] == pytest.approx(slope, rel=1e-9)
    # Of a network without hidden layers the slope is the largest that the weights allow, at most.
    assert (row["slope"] <= np.linalg.norm(weight.numpy(), 2) * (1 + 1e-9)).all()
    assert np.isnan(row["unit_changes"]).all()


def kinked() -> nn.Module:
    """Scores (0, f(x)) with f a tent: zero at .2 and .6, bent at .1, .4 and .7."""
    net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.ones(3, 1))
        net[0].bias.copy_(torch.tensor([-0.1, -0.4, -0.7], dtype=torch.float64))
        # f = -.1 + (x - .1)+ - 2 (x - .4)+ + (x - .7)+ : up from .1, down from .4, flat from .7.
        net[2].weight.copy_(torch.tensor([[0.0, 0, 0], [1.0, -2.0, 1.0]]))
        net[2].bias.copy_(torch.tensor([0.0, -0.1], dtype=torch.float64))
    return net


@pytest.mark.parametrize("points", [1, 4, 100, 101])
def test_changes_along_a_segment_of_known_kinks(points) -> None:
    net = kinked()
    found = along(net, net, torch.zeros(1).double(), torch.ones(1).double(), points)
    grid = np.linspace(0, 1, points + 1)
    f = -0.1 + sum(c * np.maximum(grid - k, 0) for c, k in ((1, 0.1), (-2, 0.4), (1, 0.7)))
    assert found["class_changes"] == np.sum(np.diff(f > 0))
    assert found["unit_changes"] == 3
    assert found["length"] == 1
    assert found["slope"] == pytest.approx(np.max(np.abs(np.diff(f))) * points, abs=1e-12)
    if points >= 100:
        assert found["class_changes"] == 2
        assert found["slope"] == pytest.approx(1, rel=1e-9)
    # Hooks are gone.
    assert not any(module._forward_hooks for module in net.modules())


def test_a_segment_without_length_has_no_slope() -> None:
    net, point = kinked(), torch.tensor([0.3]).double()
    found = along(net, net, point, point, 4)
    assert math.isnan(found["slope"])
    assert found["class_changes"] == found["unit_changes"] == found["length"] == 0


def test_path_norm_is_the_sum_over_paths() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2)).double().eval()
    a, b, c, d = (p.detach().numpy() for p in net.parameters())
    exact = 0.0
    for out in range(2):
        exact += d[out] ** 2
        for hidden in range(4):
            exact += c[out, hidden] ** 2 * b[hidden] ** 2
            for place in range(3):
                exact += c[out, hidden] ** 2 * a[hidden, place] ** 2
    before = [p.detach().clone() for p in net.parameters()]
    found = path_norm(net, Frozen(net), -5 * torch.ones(7, 3, dtype=torch.float64))
    assert found == pytest.approx(exact, rel=1e-12)
    assert all(torch.equal(x, y) for x, y in zip(before, net.parameters(), strict=True))


def test_path_norm_of_large_weights_is_a_number() -> None:
    """Of one weight a layer it is their squares' product: 1e48, more than float32 holds."""
    net = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3)))
    for parameter in net.parameters():
        nn.init.constant_(parameter, 1e8)
    assert path_norm(net, Frozen(net), torch.ones(1, 1)) == pytest.approx(1e48, rel=1e-12)


def test_a_matrix_of_zeros_has_no_rank(data, path, group) -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    nn.init.zeros_(net[2].weight)
    record(net, data, path)
    row = group("complexity").isel(step=0).sel(layer="2.weight")
    assert (row["norm"], row["spectral_norm"], row["stable_rank"]) == (0, 0, 0)
    assert (row["log_spectral_norm"], row["log_norm"]) == (-math.inf, -math.inf)


def test_no_path_norm_where_the_network_is_no_chain() -> None:
    assert chain_of(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()), nn.Flatten())) == ""
    assert "Tanh" in chain_of(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    assert "BatchNorm1d" in chain_of(nn.Sequential(nn.Sequential(nn.BatchNorm1d(2))))
    circular = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")
    assert "circular" in chain_of(circular)
    # Squares of the parameters are no squares of such a weight.
    normed = nn.utils.spectral_norm(nn.Linear(2, 2))
    assert "weight of Linear is computed" in chain_of(nn.Sequential(normed, nn.ReLU()))


def test_path_norm_drops_nothing(data, path, group) -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))
    exact = path_norm(net.eval(), Frozen(net), torch.ones(1, 6))
    record(net.train(), data, path, mode=None)
    found = group("complexity")
    assert found["path_norm"][0] == pytest.approx(exact, rel=1e-6)
    assert net[2].training


def test_what_is_not_a_chain_is_said(net, data, path, group) -> None:
    record(net, data, path)
    found = group("complexity")
    assert np.isnan(found["path_norm"]).all()
    assert "Tanh" in found.attrs["path_norm"]


def test_scores_of_ones_own(data, path, group) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    record(net, data, path, scores=lambda model, inputs: model(inputs[:, :3]))
    found = group("complexity")
    assert np.isfinite(found["margin"]).all()
    assert np.isnan(found["path_norm"]).all()
    assert found.attrs["path_norm"] == "scores= is given"


class Head(nn.Module):
    """Scores with parameters and running statistics of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, model, inputs):
        return self.norm(model(inputs))


def test_scores_that_are_a_module_are_left_as_they_were(net, data, path) -> None:
    head = Head()
    before = bits(head.state_dict())
    record(net, data, path, scores=head, mode=None)
    assert bits(head.state_dict()) == before
    assert head.norm.training


def test_pairs_share_no_example_and_stay_the_same(path, group) -> None:
    inputs = torch.arange(10.0)[:, None] ** 3
    data = torch.utils.data.TensorDataset(inputs, torch.randint(0, 2, (10,)))
    record(nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2)), data, path, pairs=9)
    lengths = group("complexity")["length"].values
    assert lengths.shape == (2, 5)
    np.testing.assert_array_equal(lengths[0], lengths[1])
    # Differences of cubes are all different: five pairs of ten numbers, each used once.
    cubes = np.arange(10.0) ** 3
    table = {abs(a - b): (a, b) for a in cubes for b in cubes if a != b}
    used = [each for length in lengths[0] for each in table[length]]
    assert sorted(used) == cubes.tolist()


def test_words_have_no_segments(path, group) -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    data = torch.utils.data.TensorDataset(torch.randint(0, 5, (12, 2)), torch.randint(0, 3, (12,)))
    record(net, data, path)
    found = group("complexity")
    assert np.isfinite(found["margin"]).all()
    for name in ("input_gradient_norm", "class_changes", "unit_changes", "slope"):
        assert np.isnan(found[name]).all()


class Rounded(nn.Module):
    """Numbers become words inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)

    def forward(self, inputs):
        return self.words(inputs.long().clamp(0, 4)).mean(1)


def test_numbers_that_become_words_have_no_gradient(path, group) -> None:
    data = torch.utils.data.TensorDataset(5 * torch.rand(12, 2), torch.randint(0, 3, (12,)))
    record(Rounded(), data, path)
    found = group("complexity")
    assert np.isnan(found["input_gradient_norm"]).all()
    assert np.isfinite(found["class_changes"]).all()


@pytest.mark.parametrize("mode", ["eval", None])
def test_training_is_the_same_bit_for_bit(mode, tmp_path) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)
    )
    inputs, classes = torch.randn(40, 6), torch.randint(0, 3, (40,))
    left = []
    for recorded in (False, True):
        own = copy.deepcopy(net)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(2)
        session = recorded and attach(
            own, optimizer, tmp_path / f"{mode}.zarr",
            collectors=[Complexity(every=2, mode=mode, pairs=3, points=5)],
            data=torch.utils.data.TensorDataset(inputs, classes),
        )  # fmt: skip
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(inputs), classes).backward()
            optimizer.step()
        if session:
            session.detach()
        left.append([*state_of(own, [optimizer]), *bits([torch.rand(3)])])
    assert left[0] == left[1]


def test_bad_input(net, data, path) -> None:
    for options, message in (
        ({"pairs": 0}, "pairs must be an integer of at least 1"),
        ({"points": 0}, "points must be an integer of at least 1"),
        ({"data_batch_size": 0}, "data_batch_size must be an integer of at least 1"),
        ({"examples": 1}, "examples must be an integer of at least 2"),
        ({"mode": "train"}, "mode must be 'eval' or None"),
    ):
        with pytest.raises(UsageError, match=message):
            Complexity(**options)
    with pytest.raises(UsageError, match="needs data"):
        record(net, None, path)
    with pytest.raises(UsageError, match="needs 2 examples or more, and data has 1"):
        record(net, torch.utils.data.Subset(data, [0]), path)
    with pytest.raises(UsageError, match="scores of shape"):
        record(net, data, path, scores=lambda model, inputs: model(inputs)[:, 0])
    with pytest.raises(UsageError, match="fails on the first examples: RuntimeError"):
        record(net, data, path, scores=lambda model, inputs: model(inputs.T))
