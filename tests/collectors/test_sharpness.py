"""Largest losses in boxes and losses under noise, of functions whose rise is known."""

import copy
import itertools
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor, nn
from untouched import untouched

import tracelab
from tracelab.errors import IncompleteTraceWarning, UsageError
from tracelab_collectors import Sharpness, boxes, misclassified
from tracelab_collectors.attach import attach
from tracelab_collectors.boxes import GaussianSpace
from tracelab_collectors.layout import Layout


def record(net, data, path, loss, steps=1, seed=0, **options) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"every": 1, "sigmas": (0.01, 0.1), "draws": 2, "examples": None} | options
    with attach(
        net, optimizer, path, collectors=[Sharpness(**options)], loss=loss, data=data, seed=seed
    ):
        for _ in range(steps):
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()


class Point(nn.Module):
    """Weights alone: what a function of them takes."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(weights))


def quadratic(hessian: np.ndarray, centre: np.ndarray, loss: float = 0.5):
    """A loss of known curvature, whatever the examples are."""
    matrix, middle = torch.from_numpy(hessian), torch.from_numpy(centre)

    def of(model: nn.Module, batch: object) -> Tensor:
        away = model.w - middle
        return loss + 0.5 * away @ matrix @ away

    return of


ONE = torch.utils.data.TensorDataset(torch.zeros(1, 1))


def test_a_box_of_separate_curvatures(path: Path, group) -> None:
    """Each coordinate has its own maximum: at a face, or inside where the loss bends down."""
    rng = np.random.default_rng(0)
    h = np.array([3.0, 1.0, 0.2, 5.0, -2.0, -8.0, 0.0])
    w, centre = rng.standard_normal((2, 7))
    record(
        Point(w), ONE, path, quadratic(np.diag(h), centre), epsilons=(1e-3, 0.1, 1.0),
        iterations=200, subspace=0, corner=True,
    )  # fmt: skip
    found = group("sharpness").isel(step=0)
    away = w - centre
    assert found["loss"] == pytest.approx(0.5 + 0.5 * h @ away**2, rel=1e-14)
    width = np.abs(w) + 1
    assert found["box_gradient"][0] == pytest.approx(np.abs(h * away) @ width, rel=1e-12)
    for place, epsilon in enumerate((1e-3, 0.1, 1.0)):
        reach = epsilon * width
        up = 0.5 * h * (np.abs(away) + reach) ** 2
        down = 0.5 * h * np.maximum(np.abs(away) - reach, 0) ** 2
        exact = 0.5 + np.where(h > 0, up, down).sum()
        rise = exact - float(found["loss"])
        for search in range(2):
            # The search ends where a step gains less than 2.2e-9 of the rise (SciPy's ftol), and
            # Newton-like steps gain what is left many times over: 1e-6 of it is far beyond.
            value = float(found["max_loss"][0, place, search])
            assert value == pytest.approx(exact, abs=1e-6 * rise)
            assert value <= exact + 1e-13 * abs(exact)
        assert found["converged"][0, place].all()
    assert np.isnan(found["max_loss"][1]).all()
    assert np.isnan(found["box_gradient"][1])


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_corner_of_a_convex_loss(seed: int, path: Path, group) -> None:
    d = 7
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, d))
    h = root @ root.T / d
    w, centre = rng.standard_normal((2, d))
    # Where the gradient exceeds what the box can change it by, its corner is the only maximum.
    slope = h @ (w - centre)
    width = np.abs(w) + 1
    small = 0.9 * np.min(np.abs(slope) / (np.abs(h) @ width))
    sizes = (small, max(10 * small, 0.5))
    record(
        Point(w), ONE, path, quadratic(h, centre), epsilons=sizes, corner=True, iterations=50,
        subspace=0,
    )  # fmt: skip
    found = group("sharpness").isel(step=0)
    for place, epsilon in enumerate(sizes):
        corners = np.array(list(itertools.product((-1.0, 1.0), repeat=d))) * epsilon * width
        away = w - centre + corners
        losses = 0.5 + 0.5 * np.einsum("ci,ij,cj->c", away, h, away)
        reached = found["max_loss"][0, place].values
        assert (reached <= losses.max() * (1 + 1e-13)).all()
        away = w - centre + np.sign(slope) * epsilon * width
        assert reached[1] >= (0.5 + 0.5 * away @ h @ away) * (1 - 1e-13)
        if place == 0:
            np.testing.assert_allclose(reached, losses.max(), rtol=1e-12)


def test_where_there_is_no_gradient_a_search_begins_in_a_corner(path: Path, group) -> None:
    w = np.array([0.5, -1.0, 2.0])
    h = np.diag([1.0, 2.0, 3.0])
    record(Point(w), ONE, path, quadratic(h, w), epsilons=(0.1,), corner=True, subspace=0)
    found = group("sharpness").isel(step=0)
    exact = 0.5 + 0.5 * np.diag(h) @ (0.1 * (np.abs(w) + 1)) ** 2
    middle, corner = found["max_loss"][0, 0].values
    # A search that begins where nothing rises stays there, as the original does.
    assert middle == 0.5
    assert corner == pytest.approx(exact, rel=1e-12)
    assert found["box_gradient"][0] == 0
    assert np.isnan(found["ascent_loss"]).all()


def test_noise_of_a_quadratic_raises_it_by_its_trace(path: Path, group) -> None:
    rng = np.random.default_rng(0)
    d, draws = 20, 200
    root = rng.standard_normal((d, d))
    h = root @ root.T / d
    w, centre = rng.standard_normal((2, d))
    sigmas = (1e-3, 0.03, 1.0)
    record(
        Point(w), ONE, path, quadratic(h, centre), sigmas=sigmas, draws=draws, epsilons=(1e-3,),
        iterations=1, subspace=0,
    )  # fmt: skip
    found = group("sharpness").isel(step=0)
    rises = found["noise_loss"].mean("sign").values - float(found["loss"])
    for geometry, scale in enumerate((np.ones(d), np.abs(w))):
        # Half v'Hv for every sigma alike: odd orders cancel, and draws are common to all sigmas.
        forms = rises[geometry] / (np.array(sigmas)[:, None] ** 2 / 2)
        np.testing.assert_allclose(forms[1], forms[2], rtol=1e-9)
        exact = np.trace(scale[:, None] * h * scale)
        error = forms[2].std(ddof=1) / np.sqrt(draws)
        assert abs(forms[2].mean() - exact) < 4 * error
        assert error < 0.15 * exact
        # What is odd is sigma times gradient times noise: of variance |g c|^2.
        plus, minus = found["noise_loss"].values[geometry, 1]
        odd = (plus - minus) / 2 / sigmas[1]
        variance = np.sum((scale * (h @ (w - centre))) ** 2)
        # Of n normal draws the variance is known to sqrt(2 / n) of it.
        assert odd.var(ddof=1) == pytest.approx(variance, rel=4 * np.sqrt(2 / draws))


def test_a_step_uphill(path: Path, group) -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 6))
    h = root @ root.T
    w, centre = rng.standard_normal((2, 6))
    radii = (0.01, 0.2)
    record(Point(w), ONE, path, quadratic(h, centre), radii=radii, epsilons=(1e-3,), subspace=0)
    found = group("sharpness").isel(step=0)
    g = h @ (w - centre)
    for place, radius in enumerate(radii):
        for geometry, z in enumerate(
            (radius * g / np.linalg.norm(g), radius * w**2 * g / np.linalg.norm(w * g))
        ):
            away = w + z - centre
            exact = 0.5 + 0.5 * away @ h @ away
            assert found["ascent_loss"][geometry, place] == pytest.approx(exact, rel=1e-12)


def test_a_linear_loss_rises_by_its_gradient_alone(path: Path, group) -> None:
    a = np.arange(-3.0, 4.0)
    w = np.linspace(-1, 2, 7)
    slope = torch.from_numpy(a)
    record(Point(w), ONE, path, lambda model, batch: model.w @ slope + 10, subspace=0)
    found = group("sharpness").isel(step=0)
    linear = found["epsilon"].values * float(found["box_gradient"][0])
    np.testing.assert_allclose(found["max_loss"][0, :, 0] - found["loss"], linear, rtol=1e-9)


class Plain:
    """The same network in NumPy, by hand: tanh, cross-entropy, float64."""

    def __init__(self, net: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        self.shapes = [p.shape for p in net.parameters()]
        self.w = np.concatenate([p.detach().double().numpy().ravel() for p in net.parameters()])
        self.x, self.y = inputs.double().numpy(), targets.numpy()

    def __call__(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        ends = np.cumsum([0] + [int(np.prod(shape)) for shape in self.shapes])
        a, b, c, d = (
            w[i:j].reshape(s) for (i, j), s in zip(pairwise(ends), self.shapes, strict=True)
        )
        hidden = np.tanh(self.x @ a.T + b)
        scores = hidden @ c.T + d
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        n = len(self.y)
        out = np.exp(logs)
        out[np.arange(n), self.y] -= 1
        out /= n
        back = (out @ c) * (1 - hidden**2)
        parts = (back.T @ self.x, back.sum(0), out.T @ hidden, out.sum(0))
        return -logs[np.arange(n), self.y].mean(), np.concatenate([p.ravel() for p in parts])

    def largest(self, matrix: np.ndarray, epsilon: float, iterations: int) -> float:
        """Metric 2.1 as published: variables z, SciPy's own tolerances."""
        half = epsilon * (np.abs(np.linalg.pinv(matrix) @ self.w) + 1)

        def down(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self(self.w + matrix @ z)
            return -value, -matrix.T @ gradient

        found = optimize.minimize(
            down, np.zeros(len(half)), jac=True, method="L-BFGS-B",
            bounds=list(zip(-half, half, strict=True)), options={"maxiter": iterations},
        )  # fmt: skip
        return -float(found.fun)


def dense(layout: Layout, space: GaussianSpace, p: int) -> np.ndarray:
    """The matrix A, column by column, without padding."""
    columns = [
        np.concatenate([
            space.lift(unit)[start : start + numel]
            for start, numel in zip(layout.starts, layout.numel, strict=False)
        ])
        for unit in np.eye(p)
    ]  # fmt: skip
    return np.stack(columns, axis=1)


def layout_of(net: nn.Module) -> Layout:
    names, parameters = zip(*net.named_parameters(), strict=True)
    offsets = np.cumsum([0] + [p.numel() for p in parameters])
    return Layout(
        names, tuple(tuple(p.shape) for p in parameters), tuple(int(o) for o in offsets[:-1])
    )


@pytest.mark.parametrize("double", [False, True])
def test_sharpness_of_a_network_is_that_of_another_program(
    double, net, inputs, targets, cross_entropy, path, group
) -> None:
    if double:
        net, inputs = net.double(), inputs.double()
    data = torch.utils.data.TensorDataset(inputs, targets)
    plain = Plain(net, inputs, targets)
    sizes = (1e-3, 1e-2, 0.1)
    record(net, data, path, cross_entropy, epsilons=sizes, subspace=5, iterations=100)
    found = group("sharpness").isel(step=0)
    loss, gradient = plain(plain.w)
    rounding = 1e-12 if double else 1e-6
    assert found["loss"] == pytest.approx(loss, rel=rounding)
    assert found["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    with tracelab.open(path) as trace:
        seed = trace.groups["sharpness"].attrs["subspace_seed"]
    matrix = dense(layout_of(net), GaussianSpace(layout_of(net), 5, seed), 5)
    width = np.abs(np.linalg.pinv(matrix) @ plain.w) + 1
    assert found["box_gradient"][1] == pytest.approx(np.abs(matrix.T @ gradient) @ width, rel=1e-5)
    for place, epsilon in enumerate(sizes):
        for space, a in enumerate((np.eye(len(plain.w)), matrix)):
            # Both are maxima to SciPy's tolerance; in float32 by what its losses are rounded to.
            exact = plain.largest(a, epsilon, 1000)
            rise = exact - loss
            reached = float(found["max_loss"][space, place, 0])
            assert reached == pytest.approx(exact, abs=2e-3 * rise + 4 * rounding * loss)


def test_ten_iterations_come_close(net, inputs, targets, cross_entropy, path, group) -> None:
    data = torch.utils.data.TensorDataset(inputs.double(), targets)
    net = net.double()
    plain = Plain(net, inputs, targets)
    record(net, data, path, cross_entropy, subspace=0)
    found = group("sharpness").isel(step=0)
    assert (found["iterations"][0] <= 10).all()
    for place, epsilon in enumerate(found["epsilon"].values):
        rises = [
            plain.largest(np.eye(len(plain.w)), epsilon, iterations) - float(found["loss"])
            for iterations in (10, 1000)
        ]
        rise = float(found["max_loss"][0, place, 0] - found["loss"])
        # As far as the published search comes, and nearly all of what there is.
        assert rise > 0.99 * rises[0]
        assert rise > 0.97 * rises[1]


def test_a_rescaled_relu_network_is_as_sharp_as_one_likes(
    inputs, targets, cross_entropy, tmp_path
) -> None:
    """Dinh et al. 2017: the same function, and what it does to each measure is known."""
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    scaled = copy.deepcopy(net)
    factor = 8.0
    with torch.no_grad():
        scaled[0].weight *= factor
        scaled[0].bias *= factor
        scaled[2].weight /= factor
    data = torch.utils.data.TensorDataset(inputs.double(), targets)
    rows = []
    for number, each in enumerate((net, scaled)):
        path = tmp_path / f"{number}.zarr"
        record(each, data, path, cross_entropy, subspace=0, radii=(0.05,), draws=4)
        with tracelab.open(path) as trace:
            rows.append(trace.groups["sharpness"].isel(step=0).load())
    before, after = rows
    assert after["loss"] == pytest.approx(float(before["loss"]), rel=1e-12)
    # What is measured in units of the weights does not see it.
    for name in ("noise_loss", "ascent_loss"):
        np.testing.assert_allclose(after[name][1], before[name][1], rtol=1e-10)
    gradient = torch.autograd.grad(
        cross_entropy(net, (inputs.double(), targets)), list(net.parameters())
    )
    sums = np.array([float(each.abs().sum()) for each in gradient])
    relative = sum(
        float((g * p.detach()).abs().sum()) for g, p in zip(gradient, net.parameters(), strict=True)
    )
    by_hand = relative + sums @ [1 / factor, 1 / factor, factor, 1]
    assert before["box_gradient"][0] == pytest.approx(relative + sums.sum(), rel=1e-12)
    assert after["box_gradient"][0] == pytest.approx(by_hand, rel=1e-12)
    rise = [np.asarray(row["max_loss"][0, :, 0] - row["loss"]) for row in rows]
    assert (rise[1] > 1.5 * rise[0]).all()


def test_the_random_matrix_is_normal_and_never_needed_whole(monkeypatch) -> None:
    net = nn.Sequential(nn.Linear(30, 150), nn.Linear(150, 4))
    layout = layout_of(net)
    space = GaussianSpace(layout, 6, seed=3)
    matrix = dense(layout, space, 6)
    # Of 31,000 numbers; a p-value below 1e-6 would be one in a million.
    assert stats.kstest(matrix.ravel(), "norm").pvalue > 1e-6
    correlation = np.corrcoef(matrix.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(matrix))
    rng = np.random.default_rng(0)
    flat = rng.standard_normal(layout.size)
    own = np.concatenate([
        flat[start : start + numel]
        for start, numel in zip(layout.starts, layout.numel, strict=False)
    ])  # fmt: skip
    np.testing.assert_allclose(space.pull(flat), matrix.T @ own, rtol=1e-10)
    np.testing.assert_allclose(
        space.coordinates(flat), np.linalg.pinv(matrix) @ own, rtol=1e-8, atol=1e-12
    )
    monkeypatch.setattr(boxes, "KEPT_BYTES", 0)
    streamed = GaussianSpace(layout, 6, seed=3)
    assert streamed._kept is None
    z = rng.standard_normal(6)
    assert streamed.lift(z).tobytes() == space.lift(z).tobytes()
    assert streamed.pull(flat).tobytes() == space.pull(flat).tobytes()
    # A coordinate has its row whatever other layers are recorded.
    late = layout.select(["1.weight", "1.bias"])
    part = GaussianSpace(late, 6, seed=3).lift(z)
    begin = layout.starts[2]
    assert part[:600].tobytes() == space.lift(z)[begin : begin + 600].tobytes()
    assert (dense(layout, GaussianSpace(layout, 6, seed=4), 6) != matrix).any()


def test_some_layers_move_and_the_others_stay(net, data, cross_entropy, path, group) -> None:
    record(net, data, path, cross_entropy, layers="2.bias", subspace=0, epsilons=(0.1,))
    found = group("sharpness").isel(step=0)
    bias = net[2].bias
    with torch.no_grad():
        features = net[1](net[0](data.tensors[0])) @ net[2].weight.T
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    losses = [
        float(
            nn.functional.cross_entropy(
                features + bias.detach() + 0.1 * (bias.detach().abs() + 1) * torch.tensor(corner),
                data.tensors[1],
            )
        )
        for corner in corners.astype(np.float32)
    ]
    assert found["max_loss"][0, 0, 0] == pytest.approx(max(losses), rel=1e-5)


def test_pieces_add_up(net, data, cross_entropy, tmp_path) -> None:
    rows = []
    for number, piece in enumerate((None, 20)):
        path = tmp_path / f"{number}.zarr"
        record(net.double(), _double(data), path, cross_entropy, data_batch_size=piece,
               error=misclassified, subspace=4)  # fmt: skip
        with tracelab.open(path) as trace:
            rows.append(trace.groups["sharpness"].isel(step=0).load())
    for name in ("loss", "gradient_norm", "box_gradient", "noise_loss", "noise_error", "error"):
        np.testing.assert_allclose(rows[1][name], rows[0][name], rtol=1e-10)
    # Searches amplify rounding: at most to what ten iterations leave undone.
    np.testing.assert_allclose(rows[1]["max_loss"], rows[0]["max_loss"], rtol=1e-4)


def _double(data):
    return torch.utils.data.TensorDataset(data.tensors[0].double(), data.tensors[1])


def test_errors_are_counted_where_losses_are(net, data, cross_entropy, path, group) -> None:
    """Noise too small to change a class leaves the error; huge noise leaves chance."""
    record(net, data, path, cross_entropy, error=misclassified, sigmas=(1e-6, 1e3), draws=50)
    found = group("sharpness").isel(step=0)
    inputs, targets = data.tensors
    exact = float((net(inputs).argmax(1) != targets).double().mean())
    assert found["error"] == pytest.approx(exact)
    np.testing.assert_allclose(found["noise_error"][:, 0], exact)
    # Labels have nothing to do with weights that are noise: 100 means, of at most .5 spread each.
    assert float(found["noise_error"][0, 1].mean()) == pytest.approx(2 / 3, abs=4 * 0.5 / 10)


def test_draws_do_not_repeat_and_can_be_repeated(data, net, cross_entropy, tmp_path) -> None:
    rows = []
    for number, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{number}.zarr"
        record(copy.deepcopy(net), data, path, cross_entropy, steps=2, seed=seed, epsilons=(1e-3,))
        with tracelab.open(path) as trace:
            rows.append(trace.groups["sharpness"].load())
    first, again, other = rows
    assert first.identical(again.assign_attrs(first.attrs))
    assert (first["noise_loss"].values[0] != first["noise_loss"].values[1]).all()
    assert (first["noise_loss"].values != other["noise_loss"].values).all()
    # The subspace is the same at every step of a run, and another in another.
    assert (first["box_gradient"].values[0] == first["box_gradient"].values[1]).all()
    assert first["box_gradient"].values[0, 1] != other["box_gradient"].values[0, 1]


@pytest.mark.parametrize("mode", ["eval", None])
def test_the_model_and_the_generators_are_as_before(mode, data, cross_entropy, path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    net[1].eval()
    with untouched(net):
        record(net, data, path, cross_entropy, steps=2, mode=mode, error=misclassified, corner=True)


def test_training_is_the_same_bit_for_bit(data, cross_entropy, tmp_path) -> None:
    def train(path: Path | None) -> list[bytes]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        session = None
        if path is not None:
            collectors = [Sharpness(every=2, draws=2, sigmas=(0.1,), corner=True)]
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
        assert trace.groups["sharpness"].sizes["step"] == 3


@pytest.mark.parametrize("bad", ["everywhere", "in the box", "infinite"])
def test_a_loss_that_is_not_finite_is_recorded_as_such(bad, path: Path, group) -> None:
    w = np.array([1.0, 2.0])
    spoiled = torch.zeros((), dtype=torch.float64)

    def loss(model: nn.Module, batch: object) -> Tensor:
        value = model.w.sum()
        if bad == "everywhere":
            return value + spoiled
        wrong = torch.nan if bad == "in the box" else torch.inf
        return value + torch.where(value > 3.001, wrong, 0.0)

    net = Point(w)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collector = Sharpness(every=1, draws=1, sigmas=(1e-6,), subspace=0)
    with attach(net, optimizer, path, collectors=[collector], loss=loss, data=ONE):
        spoiled.fill_(torch.nan)
        net.w.grad = torch.zeros_like(net.w)
        optimizer.step()
    found = group("sharpness").isel(step=0)
    largest = found["max_loss"][0, :, 0].values
    if bad == "everywhere":
        assert np.isnan(found["loss"])
        assert np.isnan(largest).all()
        assert (found["evaluations"] == 0).all()
        return
    assert found["loss"] == 3
    assert largest[0] == pytest.approx(3 + 1e-4 * 5)
    assert np.isnan(largest[-1]) if bad == "in the box" else np.isinf(largest[-1])
    assert not found["converged"][0, -1, 0]


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
        ({"epsilons": ()}, "epsilons must be one or more positive numbers, rising"),
        ({"epsilons": (0.0, 1e-3)}, "epsilons must be one or more positive"),
        ({"epsilons": (-1e-3,)}, "epsilons must be one or more positive"),
        ({"epsilons": (1e-2, 1e-3)}, "epsilons must be one or more positive"),
        ({"epsilons": 1e-3}, "epsilons must be one or more positive"),
        ({"epsilons": ("a",)}, "epsilons must be one or more positive"),
        ({"epsilons": (1e-3, float("nan"))}, "epsilons must be one or more positive"),
        ({"sigmas": (0.1, float("inf"))}, "sigmas must be one or more positive"),
        ({"radii": ()}, "radii must be one or more positive"),
        ({"iterations": 0}, "iterations must be an integer of at least 1"),
        ({"draws": 0}, "draws must be an integer of at least 1"),
        ({"subspace": -1}, "subspace must be an integer of at least 0"),
        ({"examples": 0}, "examples must be an integer of at least 1"),
        ({"mode": "train"}, "mode must be 'eval' or None"),
    ):
        with pytest.raises(UsageError, match=message):
            Sharpness(**options)
    with pytest.raises(UsageError, match="subspace=54 exceeds the 53 weights"):
        record(net, data, path, cross_entropy, subspace=54)
    with pytest.raises(UsageError, match="needs loss"):
        record(net, data, path, None)
    with pytest.raises(UsageError, match="needs data"):
        record(net, None, path, cross_entropy)
    with pytest.raises(UsageError, match="fails on the first examples: RuntimeError"):
        record(net, data, path, lambda model, batch: model(batch[0]).mean().detach())
    with pytest.raises(UsageError, match="must return the scalar mean loss"):
        record(net, data, path, lambda model, batch: model(batch[0]))
    with pytest.raises(UsageError, match="misclassified needs scores"):
        record(net, data, path, cross_entropy,
               error=lambda model, batch: misclassified(model, batch[:1] * 2))  # fmt: skip
