"""The basin in the optimizer's metric, against explicit matrices and against the optimizer."""

import numpy as np
import pytest
import torch
from explicit import explicit
from torch import nn

from tracelab.errors import UsageError
from tracelab_collectors import Basin
from tracelab_collectors.attach import attach
from tracelab_collectors.optimizer_state import long_run_step

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, nesterov=True),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, dampening=0.3),
    "groups": lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.3}, {"params": p[1:]}], lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.7, 0.9), weight_decay=0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def record(net, data, path, loss, optimizer, steps=3, at=None, **options):
    """Train on one constant gradient, so that momentum settles; record the last step."""
    options = {
        "steps": [steps - 1] if at is None else at, "lanczos_steps": 40, "top": 3, "examples": None,
        "noise_batches": 4, "batch_size": 8, "noise_forms": 2,
    } | options  # fmt: skip
    rng = torch.Generator().manual_seed(5)
    gradients = [torch.randn(p.shape, generator=rng) for p in net.parameters()]
    with attach(net, optimizer, path, collectors=[Basin(**options)], loss=loss, data=data):
        for _ in range(steps):
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            before = [p.detach().clone() for p in net.parameters()]
            optimizer.step()
    moved = [b - p.detach() for b, p in zip(before, net.parameters(), strict=True)]
    for parameter, old in zip(net.parameters(), before, strict=True):
        parameter.data.copy_(old)
    return [m / g for m, g in zip(moved, gradients, strict=True)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_metric_is_how_far_the_optimizer_moves_in_the_long_run(
    name, net, data, inputs, targets, cross_entropy, path, group
):
    """After 120 steps of one gradient the next step is a times it: taken from the optimizer."""
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    ratios = record(net, data, path, cross_entropy, optimizer, steps=120)
    a = torch.cat([each.flatten() for each in ratios]).double().numpy()
    if name == "adagrad":
        # Its sum has grown by the 120th square when it takes the step.
        a *= np.sqrt(120 / 119)
    found = group("basin").isel(step=0)
    assert found["median_step"] == pytest.approx(np.sort(a)[(a.size - 1) // 2], rel=2e-3)
    root = np.sqrt(a)
    matrix = root[:, None] * explicit(net, cross_entropy, (inputs, targets)) * root
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(found["eigenvalue"], values[:-4:-1], rtol=3e-3)
    assert (found["residual"] < 1e-3 * values[-1]).all()
    kept = found["kept"].values
    if isinstance(optimizer, torch.optim.SGD):
        np.testing.assert_allclose(kept, 1, rtol=1e-6)
    else:
        assert ((kept > 0) & (kept < 1.1)).all()
    beta = {"momentum": 0.8, "nesterov": 0.8, "dampened": 0.8, "adam": 0.9, "adamw": 0.7,
            "rmsprop": 0.5}.get(name, 0.0)  # fmt: skip
    assert found["memory"] == pytest.approx(1 / (1 - beta))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "amsgrad", "adamax", "nadam", "radam", "centered"])
def test_steps_that_have_seen_a_gradient_are_those_of_an_optimizer_that_has(name, net):
    makers = OPTIMIZERS | {
        "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
        "adamax": torch.optim.Adamax,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "centered": lambda p: torch.optim.RMSprop(p, centered=True),
    }
    optimizer = makers[name](list(net.parameters()))
    layers = list(net.parameters())
    for turn in range(9):
        if turn == 8:
            before = [
                long_run_step([optimizer], layer, torch.full_like(layer, 3.0))[0].clone()
                for layer in layers
            ]
        for layer in layers:
            layer.grad = torch.full_like(layer, 3.0) if turn == 8 else torch.randn_like(layer)
        optimizer.step()
    for layer, found in zip(layers, before, strict=True):
        torch.testing.assert_close(found, long_run_step([optimizer], layer)[0])


def test_everything_in_the_metric_of_sgd_is_that_of_the_weights(
    net, data, inputs, targets, cross_entropy, path, group
):
    rate = 0.25
    record(
        net, data, path, cross_entropy, torch.optim.SGD(net.parameters(), lr=rate), steps=1,
        noise_batches=600, noise_forms=600, heights=(1e-3, 1e-1, 10.0),
    )  # fmt: skip
    found = group("basin").isel(step=0)
    hessian = explicit(net, cross_entropy, (inputs, targets))
    values, vectors = np.linalg.eigh(hessian)
    np.testing.assert_allclose(found["eigenvalue"], rate * values[:-4:-1], rtol=1e-4)
    u = vectors[:, :-4:-1].T
    each = []
    for x, y in zip(inputs, targets, strict=True):
        gradient = torch.autograd.grad(
            cross_entropy(net, (x[None], y[None])), list(net.parameters())
        )
        each.append(torch.cat([part.flatten() for part in gradient]).double().numpy())
    each = np.array(each)
    mean, covariance = each.mean(axis=0), np.cov(each.T, bias=True) / 8
    # Eigenvectors have no sign.
    np.testing.assert_allclose(
        np.abs(found["gradient_along"]), np.abs(np.sqrt(rate) * u @ mean), atol=1e-5
    )
    variance = rate * np.einsum("ki,ij,kj->k", u, covariance, u)
    recorded = found["noise_along"].values
    np.testing.assert_allclose(recorded.var(axis=0), variance, rtol=4 * np.sqrt(3 / 600))
    error = 4 * np.sqrt(variance / 600)
    assert (np.abs(recorded.mean(axis=0) - found["gradient_along"].values) < error).all()
    for name, exact in (
        ("noise_squared_norm", rate * np.trace(covariance)),
        ("noise_form", rate * rate * np.sum(hessian * covariance)),
    ):
        drawn = found[name].values
        assert abs(drawn.mean() - exact) < 4 * drawn.std() / np.sqrt(drawn.size)
    np.testing.assert_array_equal(found["quadratic_rise"], (1e-3, 1e-1, 10.0))
    base = float(found["loss"])
    with torch.no_grad():
        assert base == pytest.approx(float(cross_entropy(net, (inputs, targets))), rel=1e-6)
        for pair in range(3):
            seen = []
            for height in found["quadratic_rise"].values:
                for sign in (-1, 1):
                    away = sign * np.sqrt(2 * height / values[-1 - pair]) * u[pair]
                    flat = torch.nn.utils.parameters_to_vector(net.parameters())
                    moved = flat + torch.tensor(away, dtype=flat.dtype)
                    nn.utils.vector_to_parameters(moved, net.parameters())
                    seen.append(float(cross_entropy(net, (inputs, targets))))
                    nn.utils.vector_to_parameters(flat, net.parameters())
            exact = np.reshape(seen, (3, 2))
            profile = found["profile_loss"].values[pair]
            flipped = float(np.sign(found["gradient_along"][pair])) != np.sign(u[pair] @ mean)
            np.testing.assert_allclose(profile, exact[:, ::-1] if flipped else exact, rtol=2e-3)
    # So near by, the loss is its quadratic.
    rise = found["profile_loss"].values[:, 0].mean(axis=-1) - base
    np.testing.assert_allclose(rise, 1e-3, rtol=0.1)


def test_row_is_missing_before_the_first_step_and_of_unknown_optimizers(
    net, data, cross_entropy, path, group
):
    record(net, data, path, cross_entropy, torch.optim.Adam(net.parameters()), 2, at=[0, 1])
    found = group("basin")
    assert found["eigenvalue"].isel(step=0).isnull().all()
    assert found["profile_loss"].isel(step=0).isnull().all()
    assert found["eigenvalue"].isel(step=1).notnull().all()


class Mine(torch.optim.SGD):
    """A rule that nobody knows."""


def test_unknown_rule_gives_a_row_of_nothing(net, data, cross_entropy, path, group):
    record(net, data, path, cross_entropy, Mine(net.parameters(), lr=0.1), steps=1)
    found = group("basin")
    assert found.attrs["optimizers"] == ["Mine"]
    assert all(found[name].isnull().all() for name in found.data_vars)


def test_pieces_change_nothing(data, cross_entropy, tmp_path, net):
    import tracelab

    rows = []
    for name, piece in (("whole", None), ("pieces", 7)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        path = tmp_path / f"{name}.zarr"
        record(net, data, path, cross_entropy, optimizer, steps=1, data_batch_size=piece)
        with tracelab.open(path) as trace:
            rows.append(trace.groups["basin"].isel(step=0).load())
    for name in ("eigenvalue", "profile_loss", "loss", "noise_squared_norm"):
        np.testing.assert_allclose(rows[0][name], rows[1][name], rtol=2e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": 0}, "Basin's top"),
        ({"top": 5, "lanczos_steps": 3}, "take at least as many lanczos_steps"),
        ({"noise_forms": 9, "noise_batches": 8}, "exceeds noise_batches"),
        ({"heights": ()}, "heights must be positive and rise"),
        ({"heights": (1.0, 1.0)}, "heights must be positive and rise"),
        ({"heights": (-1.0, 1.0)}, "heights must be positive and rise"),
        ({"heights": (1.0, float("inf"))}, "heights must be positive and rise"),
        ({"mode": "train"}, "mode must be 'eval' or None"),
        ({"examples": 0}, "Basin's examples"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(UsageError, match=words):
        Basin(**options)


def test_loss_without_a_derivative_is_refused(net, data, path):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def loss(model, batch):
        return model(batch[0]).detach().sum()

    with pytest.raises(UsageError, match="fails on the first examples"):
        attach(net, optimizer, path, collectors=[Basin(steps=[0])], loss=loss, data=data)
