"""The analysis against an explicit Hessian, from a recorded run to the finding."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import tracelab
from tracelab.typing import Status
from tracelab_analyses.curvature import ANALYSIS, curvature
from tracelab_collectors import HessianVectors

STEPS, RATE = 60, 0.5


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A small network trained on a task it can learn, and its explicit matrices at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        x = torch.randn(200, 5)
        y = (x @ torch.randn(5, 3)).argmax(1)
        data = torch.utils.data.TensorDataset(x, y)
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE)

        def loss(model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        path = tmp_path_factory.mktemp("curvature") / "run.zarr"
        collector = HessianVectors(
            every=STEPS // 2, vectors=200, lanczos_steps=40, starts=8, top=5, examples=None,
            noise_batches=400, noise_forms=200, batch_size=16,
        )  # fmt: skip
        with tracelab.attach(net, optimizer, path, collectors=[collector], loss=loss, data=data):
            for step in range(STEPS + 1):
                if step == STEPS:
                    exact = _explicit(net, loss, x, y)
                optimizer.zero_grad()
                loss(net, (x[:64], y[:64])).backward()
                optimizer.step()
    with tracelab.open(path) as trace:
        result = tracelab.analyze(trace, ["curvature"])["curvature"].load()
    return result, exact


def _explicit(net, loss, x, y):
    parameters = list(net.parameters())

    def flat(parts):
        return torch.cat([part.flatten() for part in parts])

    gradient = flat(torch.autograd.grad(loss(net, (x, y)), parameters, create_graph=True))
    hessian = torch.stack([
        flat(torch.autograd.grad(entry, parameters, retain_graph=True)) for entry in gradient
    ])  # fmt: skip
    each = torch.stack([
        flat(torch.autograd.grad(loss(net, (a[None], b[None])), parameters))
        for a, b in zip(x, y, strict=True)
    ])  # fmt: skip
    covariance = np.cov(each.double().numpy().T, bias=True) / 16
    return hessian.double().numpy(), covariance, [p.numel() for p in parameters]


def test_numbers_are_those_of_the_explicit_matrices(recorded):
    result, (hessian, covariance, sizes) = recorded
    assert result.sizes["step"] == 3
    assert (result["status"] == Status.OK).all()
    last = result.isel(step=-1)
    edges = np.cumsum([0, *sizes])
    for layer, (a, b) in enumerate(itertools.pairwise(edges)):
        row = last.isel(layer=layer)
        assert abs(row["trace"] - np.trace(hessian[a:b, a:b])) < 4 * row["trace_se"]
        assert np.isnan(row["largest"])
    row = last.sel(layer="network")
    values, vectors = np.linalg.eigh(hessian)
    assert abs(row["trace"] - values.sum()) < 4 * row["trace_se"]
    np.testing.assert_allclose(row["eigenvalue"], values[:-6:-1], rtol=1e-3)
    assert row["largest"] == pytest.approx(values[-1], rel=1e-4)
    assert values[-1] <= row["largest_high"] * (1 + 1e-6)
    assert row["smallest"] == pytest.approx(values[0], rel=0.05, abs=1e-4)
    assert row["sharpness_rate"] == pytest.approx(RATE * values[-1], rel=1e-4)
    # Parts of the spectrum: 8 random starts in 75 dimensions know a share to a tenth.
    assert row["negative_share"] == pytest.approx(np.mean(values < 0), abs=0.15)
    top = vectors[:, :-6:-1]
    variance = np.einsum("ik,ij,jk->k", top, covariance, top)
    np.testing.assert_allclose(row["noise_along"], variance, rtol=4 * 1.5 * np.sqrt(2 / 400))
    aligned = np.sum(hessian * covariance)
    assert abs(row["aligned"] - aligned) < 4 * row["aligned_se"]
    assert row["aligned_se"] < 0.1 * aligned
    trace_c = np.trace(covariance)
    assert abs(row["noise_trace"] - trace_c) < 4 * row["noise_trace_se"]
    assert row["noise_share"] == pytest.approx(variance.sum() / trace_c, abs=0.1)
    # Each of the three means is known to some percent.
    assert row["anisotropy"] == pytest.approx(
        aligned * len(values) / (values.sum() * trace_c), rel=0.25
    )
    norms = np.sqrt(np.sum(hessian**2) * np.sum(covariance**2))
    assert row["cosine"] == pytest.approx(aligned / norms, rel=0.25)


def test_density_integrates_to_one_and_has_the_mean(recorded):
    result, (hessian, *_) = recorded
    row = result.isel(step=-1).sel(layer="network")
    where, density = row["density_eigenvalue"].values, row["density"].values
    assert np.trapezoid(density, where) == pytest.approx(1, abs=1e-4)
    mean = np.trapezoid(density * where, where)
    assert mean == pytest.approx(np.trace(hessian) / len(hessian), rel=0.3)


def test_shares_of_layers_add_up(recorded):
    result, _ = recorded
    layers = result["top_share"].isel(layer=slice(0, 4)).sum("layer")
    np.testing.assert_allclose(layers, 1, atol=1e-5)
    np.testing.assert_allclose(result["top_share"].sel(layer="network"), 1, atol=1e-5)


def test_finding_and_figure(recorded):
    result, _ = recorded
    found = ANALYSIS.finding(result)
    assert "The loss of the network has a Hessian of trace" in found.sentence
    assert "at step 60" in found.sentence
    figure = ANALYSIS.plot({"run": result})
    assert figure.get_label().startswith("Trace of the Hessian")
    assert len(figure.axes) == 3
    nothing = result.assign(status=result["status"] * 0 + int(Status.NON_FINITE_INPUT))
    assert ANALYSIS.finding(nothing).sentence.startswith("No step had enough")


def inputs(vectors=6, batches=4, pairs=2, lanczos=3, starts=1):
    rng = np.random.default_rng(0)
    alphas = rng.standard_normal((1, starts, lanczos))
    return {
        "form": rng.standard_normal((1, 1, vectors)),
        "product_squared_norm": rng.exponential(size=(1, vectors)),
        "lanczos_diagonal": alphas,
        "lanczos_beside": rng.exponential(size=(1, starts, lanczos)),
        "share": np.ones((1, 1, pairs)),
        "eigenvalue": np.ones((1, pairs)),
        "residual": np.zeros((1, pairs)),
        "noise_squared_norm": rng.exponential(size=(1, batches)),
        "noise_overlap": rng.standard_normal((1, batches)),
        "noise_along": rng.standard_normal((1, batches, pairs)),
        "noise_form": rng.standard_normal((1, batches)),
        "learning_rate": np.ones(1),
        "numel": np.array([[10.0]]),
        "n_weights": np.array(10),
    }


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("form", np.full((1, 1, 6), np.nan), Status.NON_FINITE_INPUT),
        ("form", np.ones((1, 1, 2)), Status.TOO_FEW_SAMPLES),
        ("lanczos_diagonal", np.full((1, 1, 3), np.nan), Status.OK),
        ("noise_squared_norm", np.full((1, 4), np.nan), Status.OK),
        ("noise_form", np.ones((1, 1)), Status.OK),
    ],
)
def test_what_is_missing_is_missing(name, value, status):
    found = curvature(**(inputs() | {name: value}))
    assert found["status"][0, 0] == status
    if name == "lanczos_diagonal":
        assert np.isnan(found["largest"][0, 0])
        assert np.isnan(found["density"]).all()
        assert np.isfinite(found["trace"][0, 0])
    if name.startswith("noise"):
        assert np.isnan(found["aligned"][0, 0])
        assert np.isfinite(found["largest"][0, 0])


def test_a_layer_that_holds_all_of_an_eigenvector_is_no_network():
    found = curvature(**(inputs() | {"n_weights": np.array(11)}))
    assert found["status"][0, 0] == Status.OK
    assert np.isfinite(found["trace"][0, 0])
    assert np.isnan(found["largest"][0, 0])
    assert np.isnan(found["aligned"][0, 0])
