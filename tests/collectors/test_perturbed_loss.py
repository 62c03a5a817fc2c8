"""Losses and gradients under noise of the weights, of losses for which all of it is known."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from untouched import untouched

import tracelab
from tracelab.errors import IncompleteTraceWarning, UsageError
from tracelab_collectors import PerturbedLoss, misclassified
from tracelab_collectors.attach import attach
from tracelab_collectors.perturbation import _Spread
from tracelab_collectors.plainness import plain_sgd

SIGMAS = (1e-2, 0.1, 1.0)


def record(net, data, path, loss, steps=1, seed=0, rate=0.0, optimizer=None, **options) -> None:
    """Take steps along gradients of ones, and record a row at the first and behind the last."""
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=rate)
    options = {
        "every": 1000, "sigmas": SIGMAS, "draws": 2, "batches": 2, "batch_size": 4,
        "gradient_draws": 1,
    } | options  # fmt: skip
    collectors = [PerturbedLoss(**options)]
    with attach(net, optimizer, path, collectors=collectors, loss=loss, data=data, seed=seed):
        for _ in range(steps):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()


class Point(nn.Module):
    """Weights alone: what a function of them takes."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(weights))


def quadratic(hessian: np.ndarray):
    """Mean over examples z of (w - z)'H(w - z)/2."""
    matrix = torch.from_numpy(hessian)

    def of(model: nn.Module, batch: list[Tensor]) -> Tensor:
        away = model.w - batch[0]
        return 0.5 * (away @ matrix * away).sum(-1).mean()

    return of


def points(values: np.ndarray) -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(torch.from_numpy(values))


def bent(rng, d: int) -> np.ndarray:
    root = rng.standard_normal((d, d))
    return root @ root.T / d


def within(values: np.ndarray, exact: float) -> bool:
    """Whether a mean of independent values is within four of its standard errors."""
    return abs(values.mean() - exact) < 4 * values.std(ddof=1) / np.sqrt(values.size)


def test_a_quadratic_under_noise(path: Path, group) -> None:
    rng = np.random.default_rng(0)
    d, n, draws, damping = 12, 30, 60, 0.5
    h, w = bent(rng, d), rng.standard_normal(d)
    train, held = rng.standard_normal((n, d)), rng.standard_normal((n, d)) + 1
    record(
        Point(w), points(train), path, quadratic(h), held_out=points(held), draws=draws,
        gradient_draws=draws, curvature=3, lanczos_steps=d, damping=damping,
    )  # fmt: skip
    found = group("perturbed_loss").isel(step=0)
    away = np.stack([w - train, w - held])
    exact = 0.5 * np.einsum("sni,ij,snj->s", away, h, away) / n
    np.testing.assert_allclose(found["loss"], exact, rtol=1e-12)
    assert found["sigma"].values.tolist() == list(SIGMAS)
    # The noise that follows the Hessian, by another program's eigenvectors.
    values, vectors = np.linalg.eigh(h)
    np.testing.assert_allclose(found["eigenvalue"], values[::-1][:3], rtol=1e-8)
    top = vectors[:, -3:]
    s = np.eye(d) - top @ np.diag(1 - 1 / (1 + values[-3:] / damping)) @ top.T
    np.testing.assert_allclose(found["noise_variance"], [1, np.trace(s) / d], rtol=1e-8)
    np.testing.assert_allclose(found["noise_log_det"], [0, np.linalg.slogdet(s)[1]], rtol=1e-8)
    rises = found["noise_loss"].mean("sign").values - exact[:, None, None, None]
    for shape, covariance in enumerate((np.eye(d), s)):
        forms = rises[:, shape] / (np.array(SIGMAS)[:, None] ** 2 / 2)
        # Half v'Hv on both sets and for every sigma alike, to the rounding of the smallest rise.
        np.testing.assert_allclose(forms[1], forms[0], rtol=1e-7)
        np.testing.assert_allclose(forms[0, 0], forms[0, 2], rtol=1e-7)
        assert within(forms[0, 2], np.trace(h @ covariance))
    # What is odd in the noise is sigma times gradient times noise: of variance g'g, to sqrt(2/n).
    plus, minus = found["noise_loss"].values[1, 0, 1]
    gradient = h @ (w - held.mean(0))
    odd = (plus - minus) / 2 / SIGMAS[1]
    assert odd.var(ddof=1) == pytest.approx(gradient @ gradient, rel=4 * np.sqrt(2 / draws))
    changes = found["gradient_change"].values / np.array(SIGMAS)[:, None] ** 2
    np.testing.assert_allclose(changes[0], changes[2], rtol=1e-7)
    assert within(changes[2], np.sum(h**2))
    assert np.isnan(found["noise_error"]).all()
    assert np.isnan(found["error"]).all()


def test_minibatches_about_a_gradient_that_is_known(path: Path, group) -> None:
    """Held-out examples that are all alike have two halves with the gradient of all."""
    rng = np.random.default_rng(1)
    d, n, b, batches = 3, 20, 4, 600
    h, w, train = bent(rng, d), rng.standard_normal(d), rng.standard_normal((n, d))
    middle = np.full((1, d), 0.5)
    record(
        Point(w), points(train), path, quadratic(h), held_out=points(middle.repeat(6, 0)),
        batches=batches, batch_size=b,
    )  # fmt: skip
    found = group("perturbed_loss").isel(step=0)
    each = (w - train) @ h
    spread = np.trace(np.cov(each.T, bias=True)) / b
    bias = np.sum(((train.mean(0) - middle) @ h) ** 2)
    assert within(found["deviation"].values, spread + bias)
    assert bias > 0.2 * spread
    # A mean of squares of normal numbers in d dimensions is known to sqrt(2 / (batches - 1)) or
    # better; means of four are nearly normal, and their kurtosis is below 3 + (3 - 1) / b.
    error = np.sqrt(2.5 / batches)
    assert found["variance"] == pytest.approx(spread, rel=4 * error)
    example = np.trace(np.cov(each.T))
    ratio = float(found["example_variance"] / found["variance"])
    assert ratio == pytest.approx(example / spread, rel=1e-12)
    assert found["max_gradient_norm"] <= np.linalg.norm(each, axis=1).max()
    assert found["max_gradient_norm"] > np.linalg.norm(each.mean(0))


@pytest.mark.parametrize("size", [5, 20])
def test_minibatches_without_replacement(size, path: Path, group) -> None:
    rng = np.random.default_rng(2)
    d, n, batches = 2, 20, 400
    h, w, train = bent(rng, d), rng.standard_normal(d), rng.standard_normal((n, d))
    middle = np.full((5, d), 0.5)
    record(
        Point(w), points(train), path, quadratic(h), held_out=points(middle), batches=batches,
        batch_size=size, replacement=False,
    )  # fmt: skip
    found = group("perturbed_loss").isel(step=0)
    each = (w - train) @ h
    example = np.trace(np.cov(each.T))
    exact = example / size * (n - size) / n
    assert found["variance"] == pytest.approx(exact, rel=4 * np.sqrt(2.5 / batches), abs=1e-25)
    assert found["example_variance"] == pytest.approx(example, rel=4 * np.sqrt(2.5 / batches))
    if size < n:
        ratio = float(found["example_variance"] / found["variance"])
        assert ratio == pytest.approx(example / exact, rel=1e-12)
    else:
        bias = np.sum(((train.mean(0) - middle[0]) @ h) ** 2)
        np.testing.assert_allclose(found["deviation"], bias, rtol=1e-10)


def test_the_change_of_the_gradient_is_by_two_halves(path: Path, group) -> None:
    """Halves of curvature 1 and 3 change by s and 3 s: neither s^2 nor 9 s^2 is an estimate."""
    curvature = np.array([[1.0], [3.0]])

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return (batch[0] * model.w.square()).mean() / 2

    record(Point(np.ones(1)), points(np.full((4, 1), 2.0)), path, loss, held_out=points(curvature))
    found = group("perturbed_loss").isel(step=0)
    rise = found["noise_loss"][0, 0].mean("sign").values - float(found["loss"][0])
    # On the training data, of curvature 2, the same draw raises the loss by its square.
    np.testing.assert_allclose(found["gradient_change"][:, 0], 3 * rise[:, 0], rtol=1e-9)


@pytest.mark.slow
def test_deviations_have_no_bias_of_few_held_out_examples(tmp_path: Path) -> None:
    """Over 100 sets of four: the squared distance from their mean gradient would have d/4 more."""
    rng = np.random.default_rng(3)
    d, runs = 2, 100
    train = rng.standard_normal((6, d))
    found = np.empty(runs)
    for run in range(runs):
        path = tmp_path / f"{run}.zarr"
        record(
            Point(np.zeros(d)), points(train), path, quadratic(np.eye(d)), steps=0, sigmas=(0.1,),
            draws=1, held_out=points(rng.standard_normal((4, d))), batch_size=6, replacement=False,
        )  # fmt: skip
        with tracelab.open(path) as trace:
            found[run] = float(trace.groups["perturbed_loss"]["deviation"][-1, 0])
    exact = np.sum(train.mean(0) ** 2)
    assert within(found, exact)
    assert 4 * found.std(ddof=1) / np.sqrt(runs) < d / 4


def test_without_held_out_data_deviations_are_from_the_training_gradient(path, group) -> None:
    rng = np.random.default_rng(4)
    d, n = 3, 7
    h, w, train = bent(rng, d), rng.standard_normal(d), rng.standard_normal((n, d))
    record(
        Point(w), points(train), path, quadratic(h), batches=4, batch_size=7, replacement=False,
    )  # fmt: skip
    found = group("perturbed_loss").isel(step=0)
    np.testing.assert_allclose(found["deviation"], 0, atol=1e-25)
    for name in ("loss", "loss_se"):
        assert np.isnan(found[name][1])
    assert np.isnan(found["noise_loss"][1]).all()
    assert np.isnan(found["noise_loss"][0, 1]).all()
    assert np.isnan(found["eigenvalue"]).all()
    assert found.attrs["held_out"] is False
    assert found.attrs["n_held_out"] == 0


def test_standard_errors_are_those_of_examples(path: Path, group) -> None:
    """Sets of at most 32 examples have parts of one each."""
    rng = np.random.default_rng(5)
    train, held = rng.standard_normal((20, 2)), rng.standard_normal((31, 2))
    record(Point(np.ones(2)), points(train), path, quadratic(np.eye(2)), held_out=points(held))
    found = group("perturbed_loss").isel(step=0)
    for place, values in enumerate((train, held)):
        losses = 0.5 * np.sum((1 - values) ** 2, axis=1)
        exact = losses.std(ddof=1) / np.sqrt(losses.size)
        assert found["loss_se"][place] == pytest.approx(exact, rel=1e-10)
    largest = max((0.5 * np.sum((1 - each) ** 2, axis=1)).max() for each in (train, held))
    assert found["max_loss"] == pytest.approx(largest, rel=1e-12)


def test_distance_and_the_row_behind_the_last_step(path: Path, group) -> None:
    record(
        Point(np.zeros(4)), points(np.ones((5, 4))), path, quadratic(np.eye(4)), steps=3, rate=0.5
    )
    found = group("perturbed_loss")
    assert found["step"].values.tolist() == [0, 3]
    np.testing.assert_allclose(found["distance"], [0, 1.5 * np.sqrt(4)], rtol=1e-14)
    np.testing.assert_allclose(found["loss"][:, 0], [2, 0.5 * 4 * 2.5**2], rtol=1e-14)


def test_some_layers_move_and_the_others_stay(net, data, cross_entropy, path, group) -> None:
    """Moving the last bias by a and -a moves the logits so: losses of a pair have a closed form."""
    record(net, data, path, cross_entropy, layers="2.bias", sigmas=(1e-2,), draws=200, steps=0)
    found = group("perturbed_loss").isel(step=-1)
    assert found.attrs["n_weights"] == 3
    assert found.attrs["all_layers"] is False
    inputs, targets = data.tensors
    with torch.no_grad():
        p = net(inputs).double().softmax(1)
    # By the bias the loss has the gradient p - y, and curvature beyond the noise's reach.
    gradient = p.mean(0) - torch.nn.functional.one_hot(targets, 3).double().mean(0)
    plus, minus = found["noise_loss"].values[0, 0, 0]
    odd = (plus - minus) / 2 / 1e-2
    exact = float(gradient.square().sum())
    assert odd.var(ddof=1) == pytest.approx(exact, rel=4 * np.sqrt(2 / 200))


def test_pieces_add_up(net, data, cross_entropy, tmp_path) -> None:
    rows = []
    held = _double(data)
    for number, piece in enumerate((None, 20)):
        path = tmp_path / f"{number}.zarr"
        record(net.double(), _double(data), path, cross_entropy, data_batch_size=piece,
               error=misclassified, held_out=held, curvature=2, steps=0)  # fmt: skip
        with tracelab.open(path) as trace:
            rows.append(trace.groups["perturbed_loss"].isel(step=-1).load())
    for name in rows[0]:
        np.testing.assert_allclose(rows[1][name], rows[0][name], rtol=1e-7, err_msg=name)


def _double(data):
    return torch.utils.data.TensorDataset(data.tensors[0].double(), data.tensors[1])


def test_errors_are_counted_where_losses_are(net, data, cross_entropy, path, group) -> None:
    """Noise too small to change a class leaves the error; huge noise leaves chance."""
    record(net, data, path, cross_entropy, error=misclassified, sigmas=(1e-6, 1e3), draws=50)
    found = group("perturbed_loss").isel(step=0)
    inputs, targets = data.tensors
    exact = float((net(inputs).argmax(1) != targets).double().mean())
    assert found["error"][0] == pytest.approx(exact)
    np.testing.assert_allclose(found["noise_error"][0, 0, 0], exact)
    # Labels have nothing to do with weights that are noise: 100 means, of at most .5 spread each.
    assert float(found["noise_error"][0, 0, 1].mean()) == pytest.approx(2 / 3, abs=4 * 0.5 / 10)


def test_draws_do_not_repeat_and_can_be_repeated(data, net, cross_entropy, tmp_path) -> None:
    rows = []
    for number, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{number}.zarr"
        record(copy.deepcopy(net), data, path, cross_entropy, steps=2, seed=seed, every=1)
        with tracelab.open(path) as trace:
            rows.append(trace.groups["perturbed_loss"].load())
    first, again, other = rows
    assert first.identical(again.assign_attrs(first.attrs))
    for name in ("noise_loss", "gradient_change", "deviation"):
        values = first[name].values[:, 0] if name == "noise_loss" else first[name].values
        values = values[..., 0, :, :, :] if name == "noise_loss" else values
        assert (values[0] != values[1]).all(), name
        assert not (first[name].values == other[name].values).any(), name


@pytest.mark.parametrize(
    ("optimizer", "plain"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), True),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), False),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1e-4), False),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), False),
        (lambda p: torch.optim.Adam(p), False),
    ],
    ids=["sgd", "momentum", "decay", "ascent", "adam"],
)
def test_it_says_whether_a_step_is_the_gradient(optimizer, plain, path, group) -> None:
    net = Point(np.zeros(2))
    record(net, points(np.ones((4, 2))), path, quadratic(np.eye(2)), steps=0,
           optimizer=optimizer(net.parameters()))  # fmt: skip
    assert group("perturbed_loss").attrs["plain_sgd"] is plain


@pytest.mark.parametrize(("rate", "plain"), [(0.1, True), (0.2, False)])
def test_steps_of_two_rates_are_not_the_gradient(
    rate, plain, net, data, cross_entropy, path, group
):
    """Layers of a rate of their own: the trace has that of the first."""
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": rate}]
    record(net, data, path, cross_entropy, steps=0, optimizer=torch.optim.SGD(groups, lr=0.1))
    assert group("perturbed_loss").attrs["plain_sgd"] is plain


def test_all_that_training_changes_moves_or_it_is_said(net, data, cross_entropy, tmp_path) -> None:
    """Layers that the whole trace leaves out are trained too, and so are running statistics."""
    normalized = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    frozen = copy.deepcopy(net)
    frozen[0].requires_grad_(False)
    cases = (
        (net, None, True),
        (net, "2.*", False),
        (frozen, None, True),
        (normalized, None, False),
    )
    for number, (model, layers, all_layers) in enumerate(cases):
        path = tmp_path / f"{number}.zarr"
        collector = PerturbedLoss(sigmas=(0.1,), draws=1, batches=2, batch_size=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"collectors": [collector], "loss": cross_entropy, "data": data}
        with attach(model, optimizer, path, layers=layers, **options):
            pass
        with tracelab.open(path) as trace:
            attrs = trace.groups["perturbed_loss"].attrs
        assert attrs["all_layers"] is all_layers, number


@pytest.mark.parametrize("mode", ["eval", None])
def test_the_model_and_the_generators_are_as_before(mode, data, cross_entropy, path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    net[1].eval()
    with untouched(net):
        record(net, data, path, cross_entropy, steps=2, mode=mode, error=misclassified,
               held_out=data, curvature=2)  # fmt: skip


def test_training_is_the_same_bit_for_bit(data, cross_entropy, tmp_path) -> None:
    def train(path: Path | None) -> list[bytes]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        session = None
        if path is not None:
            few = {"draws": 2, "batches": 2, "batch_size": 8, "curvature": 2}
            collectors = [PerturbedLoss(every=2, sigmas=(0.1,), held_out=data, **few)]
            session = attach(
                net, optimizer, path, collectors=collectors, loss=cross_entropy, data=data
            )
        for _ in range(6):
            chosen = torch.randint(48, (16,))
            optimizer.zero_grad()
            cross_entropy(net, data[chosen]).backward()
            optimizer.step()
        if session is not None:
            session.detach()
        return [each.numpy().tobytes() for each in (*net.state_dict().values(), torch.rand(2))]

    assert train(tmp_path / "run.zarr") == train(None)
    with tracelab.open(tmp_path / "run.zarr") as trace:
        assert trace.groups["perturbed_loss"].sizes["step"] == 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_is_recorded_as_such(bad, path: Path, group) -> None:
    spoiled = torch.zeros((), dtype=torch.float64)

    def loss(model: nn.Module, batch: object) -> Tensor:
        return model.w.square().sum() + spoiled

    net = Point(np.array([1.0, 2.0]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collector = PerturbedLoss(every=1, draws=1, sigmas=(0.1,), curvature=1, batches=2)
    with attach(
        net, optimizer, path, collectors=[collector], loss=loss, data=points(np.ones((4, 1)))
    ):
        spoiled.fill_(bad)
        net.w.grad = torch.zeros_like(net.w)
        optimizer.step()
    found = group("perturbed_loss").isel(step=0)
    assert not np.isfinite(found["loss"][0])
    assert not np.isfinite(found["noise_loss"][0, 0]).any()
    assert not np.isfinite(found["max_loss"])


def test_a_loss_that_fails_later_stops_the_collector_alone(net, data, path) -> None:
    calls = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(1)
        if len(calls) > 20:
            raise RuntimeError("no such luck")
        return model(batch[0]).square().mean()

    with pytest.warns(IncompleteTraceWarning, match="no such luck"):
        record(net, data, path, loss)


def test_bad_input(data, net, cross_entropy, path) -> None:
    for options, message in (
        ({"sigmas": ()}, "sigmas must be one or more positive numbers, rising"),
        ({"sigmas": (0.2, 0.1)}, "sigmas must be one or more positive"),
        ({"damping": 0.0}, "damping must be one or more positive"),
        ({"draws": 0}, "draws must be an integer of at least 1"),
        ({"gradient_draws": 0}, "gradient_draws must be an integer of at least 1"),
        ({"batches": 1}, "batches must be an integer of at least 2"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"curvature": -1}, "curvature must be an integer of at least 0"),
        ({"curvature": 40}, "curvature=40 eigenpairs take at least as many lanczos_steps, got 32"),
        ({"examples": 1}, "examples must be an integer of at least 2"),
        ({"held_out_examples": 1}, "held_out_examples must be an integer of at least 2"),
        ({"data_batch_size": 0}, "data_batch_size must be an integer of at least 1"),
        ({"mode": "train"}, "mode must be 'eval' or None"),
    ):
        with pytest.raises(UsageError, match=message):
            PerturbedLoss(**options)
    with pytest.raises(UsageError, match="batch_size=64 exceeds the 48 examples of data"):
        record(net, data, path, cross_entropy, replacement=False, batch_size=64)
    one = torch.utils.data.Subset(data, [0])
    with pytest.raises(UsageError, match="held_out has 1 example, which has no halves"):
        record(net, data, path, cross_entropy, held_out=one)
    with pytest.raises(UsageError, match="an iterable cannot be drawn from at random"):
        record(net, data, path, cross_entropy, held_out=3)
    with pytest.raises(UsageError, match="needs loss"):
        record(net, data, path, None)
    with pytest.raises(UsageError, match="needs data"):
        record(net, None, path, cross_entropy)
    with pytest.raises(UsageError, match="fails on the first examples: RuntimeError"):
        record(net, data, path, lambda model, batch: model(batch[0]).mean().detach())
    with pytest.raises(UsageError, match="misclassified needs scores"):
        record(net, data, path, cross_entropy,
               error=lambda model, batch: misclassified(model, batch[:1] * 2))  # fmt: skip


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (lambda model, batch: batch[0].sum(-1) * 0 + 3.0, "3"),
        (lambda model, batch: (batch[0].sum(-1) * 0 - 0.5).mean(), "-0.5"),
        (lambda model, batch: torch.linspace(-1, 1, len(batch[0])), "-1"),
        (lambda model, batch: batch[0].sum(-1) * torch.nan, "nan"),
    ],
    ids=["three", "negative", "mean within", "nan"],
)
def test_an_error_outside_its_range_is_refused_before_training(error, value, path) -> None:
    net = Point(np.zeros(2))
    with pytest.raises(
        UsageError, match=rf"error\(model, batch\) is {value} on the first examples.*within 0 and 1"
    ):
        record(net, points(np.ones((8, 2))), path, quadratic(np.eye(2)), error=error)


def test_errors_of_single_examples_are_seen(path, group) -> None:
    """One that leaves its range later, and means, of which nothing is known."""
    top = torch.tensor(1.0)

    def error(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return torch.linspace(0, 1, len(batch[0])) * top

    net = Point(np.zeros(2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"draws": 1, "sigmas": (0.1,), "batches": 2, "batch_size": 4}
    of_means = PerturbedLoss(
        every=1, error=lambda model, batch: error(model, batch).mean(), name="means", **options
    )
    collectors = [PerturbedLoss(every=1, error=error, **options), of_means]
    loss, data = quadratic(np.eye(2)), points(np.ones((8, 2)))
    with attach(net, optimizer, path, collectors=collectors, loss=loss, data=data):
        for value in (1.0, 1.5):
            top.fill_(value)
            net.w.grad = torch.zeros_like(net.w)
            optimizer.step()
    found = group("perturbed_loss")
    assert found["error_low"].values.tolist() == [0, 0, 0]
    assert found["error_high"].values.tolist() == [1, 1.5, 1.5]
    assert (found["error"][:, 0] < 1).all()
    assert np.isnan(group("means")["error_high"]).all()


def test_the_error_of_the_variance_is_its_spread() -> None:
    """Over samples of 16 vectors: normal ones, and ones whose squares are heavier."""
    generator = torch.Generator().manual_seed(0)
    for heavy in (False, True):
        variances, errors = [], []
        for _ in range(400):
            rows = torch.randn(16, 3, generator=generator, dtype=torch.float64)
            if heavy:
                rows = rows * torch.rand(16, 1, generator=generator, dtype=torch.float64).exp()
            spread = _Spread.like(rows[0])
            for row in rows:
                spread.take(row)
            torch.testing.assert_close(spread.variance(), rows.var(0).sum())
            variances.append(float(spread.variance()))
            errors.append(float(spread.error()) ** 2)
        # Variances of 400 are known to a tenth, and 15 squares to a little less than they say.
        ratio = np.mean(errors) / np.var(variances, ddof=1)
        assert abs(np.log(ratio)) < 4 * np.sqrt(2 / 400) + 0.1, heavy


def test_changes_of_the_optimizer_are_seen_at_every_step(net, data, cross_entropy, path, group):
    """Momentum that comes and goes, a group with a rate of its own: what attach cannot know."""
    optimizer = torch.optim.SGD([net[0].weight, net[0].bias], lr=0.1)
    optimizer.add_param_group({"params": net[2].parameters()})
    with attach(net, optimizer, path):
        for step in range(5):
            optimizer.param_groups[1]["momentum"] = 0.9 * (step == 1)
            optimizer.param_groups[1]["lr"] = 0.2 if step == 3 else 0.1
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert group("steps")["plain_sgd"].values.tolist() == [1, 0, 1, 0, 1]


def test_rates_that_are_tensors_are_compared_where_they_are() -> None:
    def of(*rates):
        # Those of NumPy as they are, as a schedule of one's own may give them.
        groups = [
            {
                "params": [nn.Parameter(torch.zeros(1))],
                "lr": each if isinstance(each, np.float64) else torch.tensor(each),
            }
            for each in rates
        ]
        return bool(plain_sgd([torch.optim.SGD(groups, lr=0.1)]))

    assert of(0.1)
    assert of(0.1, 0.1, 0.1)
    assert not of(0.1, 0.2, 0.1)
    assert of(np.float64(0.1), 0.1, np.float64(0.1))
    assert of(0.1, np.float64(0.1), 0.1)
    assert not of(0.1, 0.1, np.float64(0.2))
    assert not of(np.float64(0.1), 0.2, 0.1)
