"""Curvature against the explicit Hessian, row by row of its own definition."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from explicit import explicit
from torch import Tensor, nn
from untouched import untouched

import tracelab
from tracelab.errors import UsageError
from tracelab.stats import spectrum
from tracelab.typing import Status
from tracelab_collectors import HessianVectors
from tracelab_collectors.attach import attach
from tracelab_collectors.products import inner, lanczos


def record(net, data, path, loss, steps=1, seed=0, **options) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {
        "every": 1, "vectors": 4, "lanczos_steps": 6, "top": 2, "examples": None,
        "noise_batches": 3, "batch_size": 8,
    } | options  # fmt: skip
    with attach(
        net, optimizer, path, collectors=[HessianVectors(**options)], loss=loss, data=data,
        seed=seed,
    ):  # fmt: skip
        for _ in range(steps):
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()


class Attention(nn.Module):
    """One block with what second derivatives stumble over: attention and layer normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 18)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x.unflatten(-1, (1, 6)).expand(-1, 4, -1) * torch.arange(1, 5)[:, None])
        q, k, v = self.mix(rows).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


def networks() -> dict[str, nn.Module]:
    return {
        "tanh": nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        "attention": Attention(),
        "norm": nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    }


@pytest.mark.parametrize("kind", networks())
@pytest.mark.parametrize("data_batch_size", [None, 20])
def test_everything_is_that_of_the_explicit_hessian(
    kind, data_batch_size, inputs, targets, data, cross_entropy, path: Path, group
) -> None:
    net = networks()[kind]
    net(inputs)
    record(
        net, data, path, cross_entropy, sketch=tracelab.Full(), data_batch_size=data_batch_size,
        noise_forms=2, lanczos_steps=40,
    )  # fmt: skip
    found = group("hessian").isel(step=0)
    hessian = explicit(net.eval(), cross_entropy, (inputs, targets))
    d = len(hessian)
    sizes = [p.numel() for p in net.parameters()]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    for i, seed in enumerate(found["vector_seed"].values):
        v = tracelab.Project(1, seed=int(seed)).signs(0, d).astype(np.float64)
        image = hessian @ v
        np.testing.assert_allclose(found["product_full"][i], image, atol=2e-5)
        by_layer = np.bincount(owner, v * image, len(sizes))
        np.testing.assert_allclose(found["form"][:, i], by_layer, atol=2e-4)
        np.testing.assert_allclose(found["product_squared_norm"][i], image @ image, rtol=1e-4)
    values, vectors = np.linalg.eigh(hessian)
    np.testing.assert_allclose(found["eigenvalue"], values[:-3:-1], rtol=1e-4)
    assert (found["residual"] < 1e-3 * values[-1]).all()
    for pair in range(2):
        u = found["eigenvector_full"].values[pair].astype(np.float64)
        assert abs(u @ vectors[:, -1 - pair]) == pytest.approx(1, abs=1e-4)
        share = np.bincount(owner, u * u, len(sizes))
        np.testing.assert_allclose(found["eigenvector_share"][pair], share, atol=1e-5)
    bounds = spectrum.extremes(
        found["lanczos_diagonal"].values[0], found["lanczos_beside"].values[0], d
    )
    assert bounds.value[0] == pytest.approx(values[-1], rel=1e-4)
    assert bounds.bound >= values[-1] * (1 - 1e-5)
    gradient = torch.autograd.grad(cross_entropy(net, (inputs, targets)), list(net.parameters()))
    flat = torch.cat([each.flatten() for each in gradient]).numpy()
    assert found["loss_gradient_norm"] == pytest.approx(np.linalg.norm(flat), rel=1e-4)
    np.testing.assert_allclose(
        found["gradient_along"], found["eigenvector_full"].values @ flat, atol=1e-5
    )


def test_noise_is_that_of_minibatches(inputs, targets, data, net, cross_entropy, path, group):
    record(
        net, data, path, cross_entropy, sketch=tracelab.Full(), noise_batches=400, noise_forms=400,
        batch_size=8, top=3, lanczos_steps=8,
    )  # fmt: skip
    found = group("hessian").isel(step=0)
    each = []
    for x, y in zip(inputs, targets, strict=True):
        loss = cross_entropy(net, (x[None], y[None]))
        gradient = torch.autograd.grad(loss, list(net.parameters()))
        each.append(torch.cat([part.flatten() for part in gradient]).double().numpy())
    # With replacement: the covariance of one example's gradient over the batch size.
    covariance = np.cov(np.array(each).T, bias=True) / 8
    hessian = explicit(net, cross_entropy, (inputs, targets))
    u = found["eigenvector_full"].values.astype(np.float64)
    # Means of 400: four standard errors of each.
    for name, exact in (
        ("noise_squared_norm", np.trace(covariance)), ("noise_form", np.trace(hessian @ covariance))
    ):  # fmt: skip
        values = found[name].values
        assert values.mean() == pytest.approx(exact, abs=4 * values.std() / 20)
    overlap = found["noise_overlap"].values
    assert np.isnan(overlap[0])
    # Neighbouring pairs share a minibatch: their squares are not quite independent.
    error = overlap[1:].std() ** 2 / 10
    assert np.mean(overlap[1:] ** 2) == pytest.approx(np.sum(covariance**2), abs=4 * error)
    along = found["noise_along"].values
    assert along.shape == (400, 3)
    variance = np.einsum("ki,ij,kj->k", u, covariance, u)
    np.testing.assert_allclose(along.var(0, ddof=1), variance, rtol=4 * np.sqrt(2 / 400) * 1.5)
    np.testing.assert_allclose(
        along.mean(0), found["gradient_along"], atol=4 * np.sqrt(variance.max() / 400)
    )


def test_some_layers_have_their_block(inputs, targets, data, net, cross_entropy, path, group):
    record(net, data, path, cross_entropy, layers="2.*", sketch=tracelab.Full())
    found = group("hessian").isel(step=0)
    block = explicit(net, cross_entropy, (inputs, targets), {"2.weight", "2.bias"})
    offset = sum(p.numel() for name, p in net.named_parameters() if name.startswith("0"))
    v = tracelab.Project(1, seed=int(found["vector_seed"][0])).signs(offset, len(block))
    np.testing.assert_allclose(found["product_full"][0], block @ v, atol=1e-5)
    assert found["layer"].values.tolist() == ["2.weight", "2.bias"]


def test_estimates_from_stored_numbers(inputs, targets, data, net, cross_entropy, path, group):
    record(net, data, path, cross_entropy, vectors=300, starts=40, lanczos_steps=12)
    found = group("hessian").isel(step=0)
    hessian = explicit(net, cross_entropy, (inputs, targets))
    trace = spectrum.trace(found["form"].sum("layer").values)
    assert abs(trace.estimate - np.trace(hessian)) < 4 * trace.se
    sizes = np.cumsum([0] + [p.numel() for p in net.parameters()])
    by_layer = spectrum.trace(found["form"].values)
    for layer, (a, b) in enumerate(itertools.pairwise(sizes)):
        exact = np.trace(hessian[a:b, a:b])
        assert abs(by_layer.estimate[layer] - exact) < 4 * by_layer.se[layer]
    squared = found["product_squared_norm"].values
    assert squared.mean() == pytest.approx(np.sum(hessian**2), abs=4 * squared.std() / 17)
    rule = spectrum.quadrature(found["lanczos_diagonal"], found["lanczos_beside"])
    moments = np.nansum(rule.weight * rule.node**2, axis=-1)
    exact = np.sum(hessian**2) / len(hessian)
    assert moments.mean() == pytest.approx(exact, abs=4 * moments.std() / np.sqrt(40))


def test_draws_do_not_repeat_and_can_be_repeated(data, net, cross_entropy, tmp_path):
    traces = []
    for number, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{number}.zarr"
        torch.manual_seed(1)
        record(copy.deepcopy(net), data, path, cross_entropy, steps=2, seed=seed)
        with tracelab.open(path) as trace:
            traces.append(trace.groups["hessian"].load())
    first, again, other = traces
    assert first.identical(again.assign_attrs(first.attrs))
    assert np.unique(np.concatenate([t["vector_seed"].values for t in (first, other)])).size == 16
    assert (first["form"].values[0] != first["form"].values[1]).any()


@pytest.mark.parametrize("mode", ["eval", None])
def test_the_model_and_the_generators_are_as_before(mode, inputs, data, cross_entropy, path):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    net[1].eval()
    with untouched(net):
        record(net, data, path, cross_entropy, steps=2, mode=mode)


def test_a_linear_loss_has_no_curvature(inputs, data, path, group):
    net = nn.Linear(6, 3)
    record(net, data, path, lambda model, batch: model(batch[0]).mean())
    found = group("hessian").isel(step=0)
    assert (found["form"] == 0).all()
    assert found["lanczos_diagonal"][0, 0] == 0
    assert found["lanczos_beside"][0, 0] == 0
    assert np.isnan(found["lanczos_diagonal"][0, 1:]).all()
    assert found["eigenvalue"][0] == 0
    assert np.isnan(found["eigenvalue"][1])


def test_a_loss_that_is_not_finite_is_recorded_as_such(data, net, path, group):
    spoiled = torch.zeros(())

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0]).square().mean() + spoiled * model(batch[0]).sum()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collector = HessianVectors(every=1, vectors=2, lanczos_steps=4, top=2, noise_batches=2)
    with attach(net, optimizer, path, collectors=[collector], loss=loss, data=data):
        spoiled.fill_(torch.nan)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    found = group("hessian").isel(step=0)
    assert np.isnan(found["loss_gradient_norm"])
    assert np.isnan(found["noise_squared_norm"]).all()
    rule = spectrum.quadrature(found["lanczos_diagonal"], found["lanczos_beside"])
    assert (rule.status != Status.OK).all()
    assert np.isnan(found["eigenvalue"]).all()
    assert np.isnan(found["form"].sum("layer", skipna=False)).all()


def test_lanczos_ends_where_nothing_is_left():
    matrix = torch.diag(torch.tensor([1.0, 1, 2, 2, 5], dtype=torch.float64))
    start = torch.ones(5, dtype=torch.float64)
    found = lanczos(lambda v: matrix @ v, start, 5)
    assert found.basis.shape == (3, 5)
    assert found.beside[2] == 0
    assert found.diagonal[3:].isnan().all()
    gram = found.basis @ found.basis.T
    torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64), atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanczos_stays_orthonormal_where_eigenvalues_have_converged(dtype):
    """Without full orthogonalization such a spectrum loses it after a few steps."""
    rng = np.random.default_rng(0)
    n, k = 300, 60
    frame, _ = np.linalg.qr(rng.standard_normal((n, n)))
    values = np.geomspace(1e-6, 1, n)
    matrix = torch.from_numpy(frame * values @ frame.T).to(dtype)
    found = lanczos(lambda v: matrix @ v, torch.from_numpy(rng.standard_normal(n)).to(dtype), k)
    gram = (found.basis @ found.basis.T).double() - torch.eye(k, dtype=torch.float64)
    # A coefficient is rounded to sqrt(n) eps of the vector, what is subtracted to sqrt(k) eps, and
    # the last pass takes away no more than it leaves: twice their sum, and as much in the Gram
    # matrix itself.
    assert gram.abs().max() < 4 * (np.sqrt(n) + np.sqrt(k)) * torch.finfo(dtype).eps
    ritz = np.linalg.eigvalsh(
        np.diag(found.diagonal) + np.diag(found.beside[:-1], 1) + np.diag(found.beside[:-1], -1)
    )
    assert ritz[-1] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2**15, 2**15 + 1, 100_000])
def test_inner_products_are_summed_in_double(size):
    rng = np.random.default_rng(0)
    rows, other = rng.standard_normal((3, size)), rng.standard_normal(size)
    rows, other = torch.from_numpy(rows).float(), torch.from_numpy(other).float()
    exact = rows.numpy().astype(np.float64) @ other.numpy().astype(np.float64)
    found = inner(rows, other)
    assert found.dtype == torch.float64
    # Sums of numbers of size 1, in float64.
    np.testing.assert_allclose(found, exact, atol=1e-15 * size)
    squares = (rows.numpy().astype(np.float64) ** 2).sum(-1)
    np.testing.assert_allclose(inner(rows, rows), squares, rtol=1e-12)


def test_bad_input(data, net, cross_entropy, path):
    for options, message in (
        ({"vectors": -1}, "vectors must be an integer of at least 0"),
        ({"starts": 0}, "starts must be an integer of at least 1"),
        ({"vectors": 0, "lanczos_steps": 0, "top": 0}, "nothing is recorded"),
        ({"top": 7, "lanczos_steps": 6}, "take at least as many lanczos_steps"),
        ({"noise_forms": 70, "noise_batches": 64}, "exceeds noise_batches"),
        ({"mode": "train"}, "mode must be 'eval' or None"),
    ):
        with pytest.raises(UsageError, match=message):
            HessianVectors(**options)
    with pytest.raises(UsageError, match="needs loss"):
        record(net, data, path, None)
    with pytest.raises(UsageError, match="needs data"):
        record(net, None, path, cross_entropy)
    with pytest.raises(UsageError, match="fails on the first examples: RuntimeError"):
        record(net, data, path, lambda model, batch: model(batch[0]).mean().detach())
