"""Kernels of initializations: by hand, against the arc-cosine kernel, and what is left alone."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors import PriorKernel
from tracelab_collectors.attach import attach


def record(net, path, collector, data, *, steps=1, seed=0, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with attach(
        net, optimizer, path, collectors=[collector], data=data, seed=seed, strict=True, **options
    ):
        for _ in range(steps):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()


def test_moments_are_those_of_the_networks_that_were_drawn(net, data, path, group):
    """Each network of an initialize= that notes it, evaluated by hand."""
    drawn: list[list[np.ndarray]] = []

    def initialize(model: nn.Module) -> None:
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        drawn.append([p.detach().double().numpy().copy() for p in model.parameters()])

    collector = PriorKernel(networks=6, groups=3, examples=10, initialize=initialize)
    record(net, path, collector, data)
    found = group("prior_kernel").isel(step=0)
    x, y = (each[found["index"].values].numpy() for each in data.tensors)
    assert found["label"].values.tolist() == y.tolist()
    assert len(np.unique(found["index"])) == 10
    # Two networks were tried on the first examples.
    assert len(drawn) == 8
    outputs = []
    for a, b, c, d in drawn[2:]:
        outputs.append(np.tanh(x @ a.T + b) @ c.T + d)
    outputs = np.reshape(outputs, (3, 2, 10, 3))
    # Forward passes of float32.
    exact = np.einsum("gmiu,gmju->gij", outputs, outputs) / 6
    np.testing.assert_allclose(found["kernel"], exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["mean"], outputs.mean((1, 3)), atol=1e-5)
    np.testing.assert_allclose(found["fourth"], (outputs**4).mean((1, 3)), rtol=1e-5)
    assert found.attrs["n_networks"] == 6
    assert found.attrs["n_units"] == 3
    assert found.attrs["n_examples"] == 10
    assert found.attrs["n_data"] == 48
    assert found.attrs["initialize"] == "given"


def arc_cosine(x: np.ndarray, layers: int) -> np.ndarray:
    """Return the covariance of a wide ReLU network's outputs, weights of variance 2 / width.

    Cho and Saul 2009, eq. 6 of order 1: E relu(u) relu(v) is |u| |v| (sin t + (pi - t) cos t) over
    2 pi.
    """
    kernel = 2 * x @ x.T / x.shape[1]
    for _ in range(layers):
        norm = np.sqrt(np.diag(kernel))
        cosine = np.clip(kernel / norm / norm[:, None], -1, 1)
        angle = np.arccos(cosine)
        kernel = norm * norm[:, None] * (np.sin(angle) + (np.pi - angle) * cosine) / np.pi
    return kernel


@pytest.mark.parametrize("layers", [1, 2])
def test_wide_relu_networks_have_the_arc_cosine_kernel(layers, path, group):
    widths = [5, *[256] * layers, 8]
    modules: list[nn.Module] = []
    for number, (a, b) in enumerate(itertools.pairwise(widths)):
        modules += [nn.ReLU()] * (number > 0) + [nn.Linear(a, b, bias=False)]
    net = nn.Sequential(*modules)

    def initialize(model: nn.Module) -> None:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=(2 / parameter.shape[1]) ** 0.5)

    data = torch.utils.data.TensorDataset(torch.randn(12, 5), torch.arange(12))
    collector = PriorKernel(networks=800, groups=8, examples=12, initialize=initialize)
    record(net, path, collector, data)
    found = group("prior_kernel").isel(step=0)
    x = data.tensors[0].numpy()[found["index"].values].astype(np.float64)
    exact = arc_cosine(x, layers)
    kernel = found["kernel"].values
    # Given the hidden units, units of the output are independent, of products of variance
    # K_ii K_jj + K_ij^2; the kernel of the hidden units itself has, by layer, a variance of
    # 4 E relu^4 - K^2 <= 5 K_ii K_jj over the width, common to the units of a network. Both are
    # averaged over 800 networks.
    spread = np.outer(np.diag(exact), np.diag(exact))
    error = np.sqrt(((spread + exact**2) / 8 + 5 * layers * spread / 256) / 800)
    score = (kernel.mean(axis=0) - exact) / error
    assert np.abs(score).max() < 4.5
    # Spread between groups is what the error says: 8 groups, 78 dependent entries.
    between = kernel.std(axis=0, ddof=1) / np.sqrt(8)
    assert 0.5 < np.median(between / error) < 1.3
    # It is another kernel with another number of layers.
    other = arc_cosine(x, layers % 2 + 1)
    assert np.abs((kernel.mean(axis=0) - other) / error).max() > 10


def test_modules_are_reset_as_pytorch_does(data, path, group):
    """The second moment of nn.Linear's uniform weights and biases: (|x|^2 + 1) / (3 d).

    In evaluation mode: dropout would double it on the diagonal.
    """
    net = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5))
    record(net, path, PriorKernel(networks=400, groups=4, examples=5), data)
    found = group("prior_kernel").isel(step=0)
    assert found.attrs["initialize"] == "reset_parameters"
    x = data.tensors[0].numpy()[found["index"].values]
    exact = (x @ x.T + 1) / 18
    # Outputs of one layer are independent; squares of sums of uniform numbers have a fourth moment
    # of less than 3.
    error = np.sqrt(2 * np.outer(np.diag(exact), np.diag(exact)) / (400 * 40))
    assert np.abs((found["kernel"].mean("group") - exact) / error).max() < 4


def test_pieces_add_up_and_seeds_repeat(net, data, tmp_path):
    rows = []
    for number, options in enumerate(({}, {"data_batch_size": 4}, {"seed": 1})):
        path = tmp_path / f"{number}.zarr"
        seed = options.pop("seed", 0)
        collector = PriorKernel(networks=4, groups=2, examples=10, **options)
        record(copy.deepcopy(net), path, collector, data, seed=seed)
        with tracelab.open(path) as trace:
            rows.append(trace.groups["prior_kernel"].load())
    np.testing.assert_allclose(rows[1]["kernel"], rows[0]["kernel"], rtol=1e-5)
    assert (rows[2]["kernel"].values != rows[0]["kernel"].values).all()


def test_once_by_default_and_anew_where_asked(net, data, path, group):
    record(net, path, PriorKernel(networks=4, groups=2, examples=6), data, steps=3)
    assert group("prior_kernel")["step"].values.tolist() == [0]
    collector = PriorKernel(networks=4, groups=2, examples=6, every=2, steps=None)
    record(net, path.with_name("more.zarr"), collector, data, steps=3)
    with tracelab.open(path.with_name("more.zarr")) as trace:
        found = trace.groups["prior_kernel"].load()
    assert found["step"].values.tolist() == [0, 2]
    assert (found["kernel"][0].values != found["kernel"][1].values).all()
    assert (found["index"][0].values == found["index"][1].values).all()


def test_outputs_and_labels_of_ones_own(net, data, path, group):
    collector = PriorKernel(
        networks=4, groups=2, examples=6,
        outputs=lambda model, batch: model(batch[0])[:, 0],
        labels=lambda batch: batch[0][:, 0] > 0,
    )  # fmt: skip
    record(net, path, collector, data)
    found = group("prior_kernel").isel(step=0)
    assert found.attrs["n_units"] == 1
    x = data.tensors[0].numpy()[found["index"].values]
    assert found["label"].values.tolist() == (x[:, 0] > 0).astype(int).tolist()


def test_the_run_is_as_it_would_be(data, tmp_path):
    """Weights, buffers, modes and generators, bit for bit; also with a model in parts evaluated."""

    def train(path):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        net[1].eval()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        session = None
        if path is not None:
            collectors = [PriorKernel(networks=4, groups=2, examples=6, every=2, steps=None)]
            session = attach(net, optimizer, path, collectors=collectors, data=data, strict=True)
        for _ in range(5):
            chosen = torch.randint(48, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                net(data.tensors[0][chosen]), data.tensors[1][chosen]
            ).backward()
            optimizer.step()
        if session is not None:
            session.detach()
        modes = [module.training for module in net.modules()]
        bits = [each.numpy().tobytes() for each in (*net.state_dict().values(), torch.rand(2))]
        return bits, modes, list(net.state_dict()), torch.get_rng_state().tolist()

    assert train(tmp_path / "run.zarr") == train(None)
    with tracelab.open(tmp_path / "run.zarr") as trace:
        assert trace.groups["prior_kernel"].sizes["step"] == 3


class Own(nn.Module):
    """A parameter that no module resets."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x)


def test_bad_input(net, data, path):
    for options, message in (
        ({"groups": 1}, "PriorKernel's groups must be an integer of at least 2, got 1"),
        ({"examples": 1}, "PriorKernel's examples must be an integer of at least 2"),
        ({"networks": 0}, "PriorKernel's networks must be an integer of at least 1"),
        ({"networks": 9}, "networks=9 do not make 8 equal groups; give a multiple of groups"),
        ({"data_batch_size": 0}, "data_batch_size must be an integer of at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            PriorKernel(**options)
    small = {"networks": 4, "groups": 2, "examples": 6}
    with pytest.raises(UsageError, match=r"needs data; give attach\(data=\.\.\.\)"):
        record(net, path, PriorKernel(**small), None)
    with pytest.raises(
        UsageError, match=r"Own has parameters and no reset_parameters\(\); give Pri"
    ):
        record(Own(), path, PriorKernel(**small), data)
    with pytest.raises(UsageError, match="two initializations give the same outputs"):
        record(net, path, PriorKernel(**small, initialize=lambda model: None), data)
    with pytest.raises(
        UsageError, match=r"needs outputs of shape \(example, unit\) of 6 examples, "
    ):
        record(net, path, PriorKernel(**small, outputs=lambda m, b: m(b[0])[:, :, None]), data)
    with pytest.raises(
        UsageError, match=r"integer class of each of 6 examples, got torch\.float32"
    ):
        record(net, path, PriorKernel(**small, labels=lambda batch: batch[0]), data)
    with pytest.raises(UsageError, match="fails on the first examples: IndexError"):
        record(net, path, PriorKernel(**small, outputs=lambda m, b: m(b[7])), data)
