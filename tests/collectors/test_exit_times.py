"""Exits of replicas against loops written out, laws with a known answer, and a double well."""

import copy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from proofs.states import bits, generators
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import TensorDataset

import tracelab
from tracelab.errors import IncompleteTraceWarning, UsageError
from tracelab.sketch import splitmix64
from tracelab_collectors import ExitTimes, exit_times
from tracelab_collectors.attach import attach
from tracelab_collectors.exit_times import Criterion
from tracelab_collectors.replicas import ReplicaLoss, Replicas, Way, tried
from tracelab_collectors.stacking import Listed, Stacked
from tracelab_collectors.twins import trained

LR = 0.05
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=LR),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, weight_decay=0.01),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=LR),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=LR, amsgrad=True, foreach=False),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=LR, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=LR),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=LR),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=LR),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=LR),
}


class Signs(torch.optim.Optimizer):
    """Of a user's own: with a number that is no part of its state, and a step without closure."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.taken = 0

    @torch.no_grad()
    def step(self) -> None:
        self.taken += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] / self.taken**0.5 * parameter.grad.sign()


class Untidy(nn.Module):
    """With tied weights, one that is not used, one that is frozen, and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.unused = nn.Linear(2, 2)
        self.out = nn.Linear(6, 3)
        self.out.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        # Behind a tanh: a bias just before the norm has a gradient of rounding alone, which
        # Adam makes steps of.
        return self.out(self.norm(self.second(self.first(x).tanh()).tanh()))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture
def double(inputs: Tensor, targets: Tensor) -> TensorDataset:
    return TensorDataset(inputs.double(), targets)


def train(net, optimizer, batch, loss, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net, batch).backward()
        optimizer.step()


def record(net, optimizer, path, loss, data, collector, *, seed: int = 0, steps: int = 1) -> None:
    """Train on all of the data, and record."""
    with attach(
        net, optimizer, path, collectors=[collector], loss=loss, data=data, seed=seed, strict=True
    ):
        train(net, optimizer, data[:], loss, steps)


def seeds_of(step: int, replicas: int, seed: int = 0) -> list[int]:
    """The seeds of replicas, as the session, the step and their numbers give them."""
    of_run = int(splitmix64(seed, 0, 1)[0]) >> 2
    of_step = int(splitmix64(of_run, step, 1)[0]) >> 2
    return [int(each) >> 2 for each in splitmix64(of_step, 1, replicas)]


def alone(net, optimizer, data, loss, indices, clip_norm=None):
    """Yield the model of a loop that goes on from a state, behind every step."""
    own, stepper = copy.deepcopy((net, optimizer))
    for each in indices:
        stepper.zero_grad()
        loss(own, data[each]).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(own.parameters(), clip_norm)
        stepper.step()
        yield own


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("network", [mlp, Untidy])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replicas_step_as_a_loop_does(name, network, clip_norm, double, cross_entropy) -> None:
    """Of three replicas, one dropped half-way: weights and buffers of three loops, to rounding."""
    net = network().double()
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, double[:], cross_entropy, 3)
    before = bits([net.state_dict(), optimizer.state_dict()])
    draw = torch.Generator().manual_seed(5)
    indices = torch.randint(48, (6, 3, 8), generator=draw)
    names = {id(p): n for n, p in net.named_parameters()}
    found = [names[id(p)] for p in trained([optimizer])]
    way = Way(True, frozenset(i for i, n in enumerate(found) if n.startswith("unused")))
    loss = ReplicaLoss(cross_entropy, net, trained([optimizer]), way)
    crew = Replicas(loss, [optimizer], 3, clip_norm)
    present = [0, 1, 2]
    for step, drawn in enumerate(indices):
        if step == 3:
            crew.keep(torch.tensor([True, False, True]))
            present = [0, 2]
        crew.step(Stacked.of([double[drawn[i]] for i in present]))
    for row, replica in enumerate(present):
        *_, end = alone(net, optimizer, double, cross_entropy, indices[:, replica], clip_norm)
        wanted = [p for p in end.parameters() if p.requires_grad]
        # Rounding of float64 (1e-16), enlarged where Adam divides by small second moments.
        for found, exact in zip(crew.weights, wanted, strict=True):
            torch.testing.assert_close(found[row], exact.detach(), rtol=1e-9, atol=1e-11)
        for found, exact in zip(crew.buffers, end.buffers(), strict=True):
            torch.testing.assert_close(found[row], exact, rtol=1e-9, atol=1e-11)
    assert bits([net.state_dict(), optimizer.state_dict()]) == before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_ways_give_the_same(name, double, cross_entropy, tmp_path: Path, monkeypatch) -> None:
    net = mlp().double()
    collector = ExitTimes(
        steps=[2], replicas=7, batch_size=8, max_steps=25, radius=0.9, barrier=0.02,
        check_every=3, clip_norm=1.0,
    )  # fmt: skip
    rows = []
    for way in ("vmap", "loop"):
        if way == "loop":
            monkeypatch.setattr(exit_times, "tried", lambda *_: Way())
        own = copy.deepcopy(net)
        path = tmp_path / f"{way}.zarr"
        record(
            own, OPTIMIZERS[name](own.parameters()), path, cross_entropy, double, collector, steps=3
        )
        with tracelab.open(path) as trace:
            rows.append(trace.groups["exits"].load())
        assert rows[-1].attrs["method"] == way
    one, other = rows
    for exact in ("time", "censored", "criterion"):
        np.testing.assert_array_equal(one[exact], other[exact])
    for rounded in ("distance", "loss", "start_loss"):
        np.testing.assert_allclose(one[rounded], other[rounded], rtol=1e-9)
    assert one["learning_rate"].values == [0.01 if name == "RMSprop" else LR]


def test_a_replica_is_a_run(double, cross_entropy, path: Path, group) -> None:
    """Minibatches drawn anew, a loop, and the exits that its weights and losses say."""
    make = OPTIMIZERS["SGD, momentum"]
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = make([
        {"params": net[0].parameters(), "lr": 0.2}, {"params": [*net[1:].parameters()]}
    ])  # fmt: skip
    collector = ExitTimes(
        steps=[4], replicas=10, batch_size=6, max_steps=30, radius=0.9, barrier=0.02,
        check_every=4, layers="3.*", examples=None,
    )  # fmt: skip
    start, state = copy.deepcopy(net), None
    stepper = make([
        {"params": start[0].parameters(), "lr": 0.2}, {"params": [*start[1:].parameters()]}
    ])  # fmt: skip
    train(start, stepper, double[:], cross_entropy, 4)
    state = copy.deepcopy(start)
    record(net, optimizer, path, cross_entropy, double, collector, seed=3, steps=6)
    found = group("exits")
    assert found.attrs["method"] == "vmap"
    whole = cross_entropy(copy.deepcopy(start), double[:]).item()
    assert found["start_loss"].values == [pytest.approx(whole, rel=1e-12)]
    assert found["learning_rate"].values == [0.2]
    for replica, seed in enumerate(seeds_of(4, 10, seed=3)):
        draw = torch.Generator().manual_seed(seed)
        indices = [torch.randint(48, (6,), generator=draw) for _ in range(30)]
        run = alone(start, stepper, double, cross_entropy, indices)
        expected = None
        for t, own in enumerate(run, start=1):
            moved = [(a - b).square().sum() for a, b in
                     zip(own[3].parameters(), state[3].parameters(), strict=True)]  # fmt: skip
            distance = sum(moved).sqrt().item()
            loss = cross_entropy(copy.deepcopy(own), double[:]).item()
            higher = (t % 4 == 0 or t == 30) and loss > whole + 0.02
            met = Criterion.BALL if distance > 0.9 else Criterion.LOSS if higher else 0
            expected = (t, met, distance, loss)
            if met:
                break
        names = ("time", "criterion", "distance", "loss")
        row = tuple(found[name].values[0, replica] for name in names)
        assert row[:2] == expected[:2]
        np.testing.assert_allclose(row[2:], expected[2:], rtol=1e-8)
        assert found["censored"].values[0, replica] == (expected[1] == 0)
    # The case has every outcome that it is about.
    assert set(found["criterion"].values[0]) == {0, 1, 2}


def test_masks_of_dropout_are_the_replicas_own(double, cross_entropy, path: Path, group) -> None:
    """Random numbers of the model are those of a generator with the replica's seed."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    start = copy.deepcopy(net)
    collector = ExitTimes(steps=[0], replicas=3, batch_size=6, max_steps=9, radius=100.0)
    record(net, optimizer, path, cross_entropy, double, collector)
    found = group("exits")
    assert found.attrs["method"] == "loop"
    for replica, seed in enumerate(seeds_of(0, 3)):
        draw = torch.Generator().manual_seed(seed)
        indices = [torch.randint(48, (6,), generator=draw) for _ in range(9)]
        torch.manual_seed(seed)
        fresh = torch.optim.SGD(start.parameters(), lr=LR)
        *_, end = alone(start, fresh, double, cross_entropy, indices)
        moved = [(a - b).square().sum() for a, b in
                 zip(end.parameters(), start.parameters(), strict=True)]  # fmt: skip
        assert found["distance"].values[0, replica] == pytest.approx(sum(moved).sqrt().item())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: Signs(p, 0.02), "loop"),
        (lambda p: torch.optim.LBFGS(p, lr=0.2, max_iter=3), "loop"),
        (lambda p: torch.optim.Rprop(p, lr=0.01), "loop"),
    ],
)
def test_any_optimizer_is_copied(make, expected, double, cross_entropy, path, group) -> None:
    net = mlp().double()
    optimizer = make(net.parameters())
    start = copy.deepcopy(net)
    collector = ExitTimes(steps=[0], replicas=2, batch_size=6, max_steps=5, radius=100.0)
    whole = TensorDataset(*double[:])

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(net, whole[:])
        value.backward()
        return value

    with attach(
        net, optimizer, path, collectors=[collector], loss=cross_entropy, data=double, strict=True
    ):
        closure()
        optimizer.step(*([closure] if isinstance(optimizer, torch.optim.LBFGS) else []))
    found = group("exits")
    assert found.attrs["method"] == expected
    assert found.attrs["optimizer"] == type(optimizer).__name__
    for replica, seed in enumerate(seeds_of(0, 2)):
        draw = torch.Generator().manual_seed(seed)
        own = copy.deepcopy(start)
        stepper = make(own.parameters())
        for _ in range(5):
            batch = double[torch.randint(48, (6,), generator=draw)]

            def again(batch=batch, own=own, stepper=stepper) -> Tensor:
                stepper.zero_grad()
                value = cross_entropy(own, batch)
                value.backward()
                return value

            if isinstance(stepper, torch.optim.LBFGS):
                stepper.step(again)
            else:
                again()
                stepper.step()
        moved = [(a - b).square().sum() for a, b in
                 zip(own.parameters(), start.parameters(), strict=True)]  # fmt: skip
        distance = found["distance"].values[0, replica]
        assert distance == pytest.approx(sum(moved).sqrt().item(), rel=1e-8)


def mean_exit_time(factor: float, sigma: float, radius: float) -> float:
    """Steps that x' = factor x + sigma xi takes from 0 until |x'| > radius.

    m(x) = 1 + the integral of m(y) p(y | x) over |y| < radius, by Nystroem's method: 120 nodes of
    Gauss and Legendre for a density whose scale is a fifth of the interval.
    """
    nodes, weights = np.polynomial.legendre.leggauss(120)
    y, w = radius * nodes, radius * weights

    def density(x: np.ndarray) -> np.ndarray:
        z = (y - factor * x[:, None]) / sigma
        return np.exp(-(z**2) / 2) / (sigma * np.sqrt(2 * np.pi)) * w

    m = np.linalg.solve(np.eye(120) - density(y), np.ones(120))
    return 1 + float((density(np.zeros(1)) @ m)[0])


def test_mean_exit_time_of_a_linear_recursion(path: Path, group) -> None:
    """Minibatch gradients h (w - mean of b normals): an AR(1) process whose law is known."""
    h, rate, size, replicas = 2.0, 0.1, 4, 1500
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(100_000))
    values = (values - values.mean()) / values.std(correction=0)
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(net.weight)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return h / 2 * (model(torch.ones_like(batch[0])) - batch[0]).square().mean()

    sigma = rate * h / size**0.5
    radius = 1.4 * sigma / (1 - (1 - rate * h) ** 2) ** 0.5
    collector = ExitTimes(
        steps=[0], replicas=replicas, batch_size=size, max_steps=600, radius=radius, examples=8
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    data = TensorDataset(values[:, None])
    with attach(net, optimizer, path, collectors=[collector], loss=loss, data=data, strict=True):
        optimizer.step()
    found = group("exits")
    assert found.attrs["method"] == "vmap"
    assert not found["censored"].values.any()
    assert (found["distance"] > radius).all()
    # Before a weight has moved, the loss over the examples that are drawn once.
    once = torch.Generator().manual_seed(int(splitmix64(0, 0, 1)[0]) >> 2)
    fixed = values[torch.randperm(len(values), generator=once)[:8]]
    assert found["start_loss"].values == [pytest.approx(h / 2 * fixed.square().mean().item())]
    times = found["time"].values[0]
    exact = mean_exit_time(1 - rate * h, sigma, radius)
    assert 8 < exact < 40
    # Four standard errors of the mean of independent times; the law of 100,000 values in place of
    # the normal one moves a probability by 1 / sqrt(100,000), a tenth of that.
    assert times.mean() == pytest.approx(exact, abs=4 * times.std() / replicas**0.5)


def well(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """A double well, minima -1 and 1, saddle 0, tilted by every example's own slope."""
    w = model(torch.ones_like(batch[0]))
    return ((w * w - 1) ** 2 / 4 + w * batch[0]).mean()


@pytest.mark.parametrize(("begin", "tolerance"), [(-0.05, 1e-6), (-1.0, 0.01)])
def test_a_basin_is_left_over_the_saddle(begin, tolerance, path: Path, group) -> None:
    """In one dimension: at the first step behind which the weight has the other sign."""
    rate, replicas, most = 0.2, 16, 8
    slopes = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0], dtype=torch.float64)
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(net.weight, begin)
    collector = ExitTimes(
        steps=[0], replicas=replicas, batch_size=4, max_steps=most, basin=True, check_every=1,
        tolerance=tolerance, examples=None, descent_steps=45,
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    data = TensorDataset(slopes[:, None])
    with attach(net, optimizer, path, collectors=[collector], loss=well, data=data, strict=True):
        optimizer.step()
    found = group("exits")
    expected = []
    for seed in seeds_of(0, replicas):
        draw, w = torch.Generator().manual_seed(seed), begin
        t = 0
        while t < most and w <= 0:
            t += 1
            drawn = torch.randint(5, (4,), generator=draw)
            w -= rate * (w**3 - w + slopes[drawn].mean().item())
        expected.append((t, w > 0, abs(w - begin)))
    time, left, distance = (np.array(each) for each in zip(*expected, strict=True))
    assert set(left) == {False, True}
    np.testing.assert_array_equal(found["time"].values[0], time)
    np.testing.assert_array_equal(found["criterion"].values[0], np.where(left, Criterion.BASIN, 0))
    np.testing.assert_array_equal(found["censored"].values[0], ~left)
    np.testing.assert_allclose(found["distance"].values[0], distance, rtol=1e-9)


def test_a_convex_loss_has_one_basin(double, cross_entropy, path: Path, group) -> None:
    """However far steps lead, and however early the descents stop."""
    net = nn.Linear(6, 3).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=3.0)
    collector = ExitTimes(
        steps=[0], replicas=6, batch_size=2, max_steps=12, basin=True, check_every=3,
        tolerance=1e-12, descent_steps=4,
    )  # fmt: skip
    record(net, optimizer, path, cross_entropy, double, collector)
    found = group("exits")
    assert (found["criterion"] == 0).all()
    assert (found["distance"] > 1).all()


def test_one_replica_is_the_same_beside_others(
    double, cross_entropy, tmp_path: Path, monkeypatch
) -> None:
    """Alone, beside eight others, and after two that there is memory for at once."""
    rows = []
    size = 8 * sum(p.numel() for p in mlp().parameters())
    for count, memory in ((1, exit_times.MEMORY), (9, exit_times.MEMORY), (8, 13 * size)):
        monkeypatch.setattr(exit_times, "MEMORY", memory)
        net = mlp().double()
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.1)
        path = tmp_path / f"{count}.zarr"
        collector = ExitTimes(
            steps=[1], replicas=count, batch_size=4, max_steps=20, radius=0.35, barrier=0.05,
            basin=True, descent_steps=5,
        )  # fmt: skip
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        record(net, optimizer, path, cross_entropy, double, collector, steps=2)
        with tracelab.open(path) as trace:
            rows.append(trace.groups["exits"].load())
    one, many, pairs = rows
    for name in ("time", "criterion", "distance", "loss"):
        assert one[name].shape == (1, 1)
        np.testing.assert_allclose(one[name][:, 0], many[name][:, 0], rtol=1e-9)
        np.testing.assert_allclose(pairs[name], many[name][:, :8], rtol=1e-9)
    assert len(set(many["distance"].values[0])) == 9


def test_draws_depend_on_seed_and_step(double, cross_entropy, tmp_path: Path) -> None:
    places = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        net = mlp().double()
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        optimizer.param_groups[0]["lr"] = 1e-3
        path = tmp_path / f"{number}.zarr"
        collector = ExitTimes(every=1, replicas=2, batch_size=4, max_steps=2, radius=10.0)
        with attach(
            net, optimizer, path, collectors=[collector], loss=cross_entropy, data=double,
            seed=seed, strict=True,
        ):  # fmt: skip
            optimizer.step()
            optimizer.step()
        with tracelab.open(path) as trace:
            places.append(trace.groups["exits"]["distance"].values)
    first, again, other = places
    np.testing.assert_array_equal(first, again)
    assert np.unique([first, other]).size == 8


class Chatty(nn.Module):
    """Counts what is called on it: hooks of the user must not hear of replicas."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


@pytest.mark.parametrize("mode", ["eval", None])
@pytest.mark.parametrize("body", [2, 3], ids=["without dropout", "with dropout"])
def test_the_training_run_is_untouched(mode, body, double, cross_entropy, path: Path, group):
    """Groups, scheduler, hooks, modes, gradients, state and generators: all the same bits."""
    ended = []
    for where in (None, path):
        torch.manual_seed(3)
        net = Chatty().double()
        net.body = net.body[:body]
        net.body[1].eval()
        optimizer = torch.optim.AdamW([
            {"params": net.body.parameters(), "lr": 0.01},
            {"params": net.out.parameters(), "lr": 0.05, "weight_decay": 0.1},
        ])  # fmt: skip
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        heard: list[str] = []
        optimizer.register_step_pre_hook(lambda *_, heard=heard: heard.append("before"))
        optimizer.register_step_post_hook(lambda *_, heard=heard: heard.append("behind"))
        everywhere = register_optimizer_step_pre_hook(
            lambda *_, heard=heard: heard.append("of all optimizers")
        )
        net.out.weight.register_hook(lambda gradient, heard=heard: heard.append("gradient"))
        collector = ExitTimes(
            every=2, replicas=3, batch_size=4, max_steps=4, radius=5.0, barrier=1.0, basin=True,
            check_every=2, descent_steps=2, mode=mode,
        )  # fmt: skip
        session = where and attach(
            net, optimizer, where, collectors=[collector], loss=cross_entropy, data=double,
            strict=True,
        )  # fmt: skip
        for step in range(5):
            optimizer.zero_grad()
            cross_entropy(net, double[torch.randint(48, (8,))]).backward()
            optimizer.step()
            schedule.step()
            assert heard == [
                "gradient", "of all optimizers", "before", "behind"
            ] * (step + 1)  # fmt: skip
        everywhere.remove()
        if session:
            session.detach()
        modes = [each.training for each in net.modules()]
        found = [net.state_dict(), [p.grad for p in net.parameters()], optimizer.state_dict()]
        ended.append((*bits(found), *generators(), schedule.get_last_lr(), modes))
    assert ended[0] == ended[1]
    rates = group("exits")["learning_rate"].values
    np.testing.assert_allclose(rates, [0.01, 0.005, 0.0025])


def test_a_gradient_scaler_is_not_part_of_it(double, cross_entropy, tmp_path: Path) -> None:
    """A fused optimizer holds the scale during the step at which replicas start."""
    places = []
    for scaled in (True, False):
        torch.manual_seed(2)
        net = mlp().double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
        path = tmp_path / f"{scaled}.zarr"
        collector = ExitTimes(every=1, replicas=2, batch_size=4, max_steps=3, radius=10.0)
        with attach(
            net, optimizer, path, collectors=[collector], loss=cross_entropy, data=double,
            strict=True,
        ):  # fmt: skip
            for _ in range(2):
                optimizer.zero_grad()
                scaler.scale(cross_entropy(net, double[:])).backward()
                scaler.step(optimizer)
                scaler.update()
        with tracelab.open(path) as trace:
            places.append(trace.groups["exits"]["distance"].values)
    np.testing.assert_allclose(*places, rtol=1e-9)


def test_all_are_censored_and_all_leave_at_once(double, cross_entropy, tmp_path: Path) -> None:
    for radius, time, criterion in ((1e6, 6.0, 0), (1e-9, 1.0, Criterion.BALL)):
        net = mlp().double()
        path = tmp_path / f"{radius}.zarr"
        collector = ExitTimes(steps=[0], replicas=1, batch_size=4, max_steps=6, radius=radius)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        record(net, optimizer, path, cross_entropy, double, collector)
        with tracelab.open(path) as trace:
            found = trace.groups["exits"].load()
        assert found["time"].values == [[time]]
        assert found["criterion"].values == [[criterion]]
        assert found["censored"].values == [[criterion == 0]]
        assert np.isfinite(found["loss"].values).all()
        assert found["radius"].values == [radius]
        assert np.isnan(found["barrier"].values).all()
        assert (
            "0 none, 1 ball, 2 loss, 3 basin, 4 diverged" in found["criterion"].attrs["long_name"]
        )
        assert found.attrs["criteria"]["4"] == "diverged"
        units = {name: found[name].attrs["units"] for name in found.data_vars}
        assert units == {
            "time": "step", "censored": "1", "criterion": "1", "distance": "weight",
            "loss": "loss", "start_loss": "loss", "barrier": "loss", "radius": "weight",
            "learning_rate": "weight^2/loss",
        }  # fmt: skip
        assert found["time"].dtype == np.float64
        assert found["censored"].dtype == found["criterion"].dtype == np.uint8


def test_the_loss_decides_at_the_last_step_too(double, cross_entropy, tmp_path: Path) -> None:
    """A barrier just below the rise of a loss is an exit, and one just above is none."""
    rises = []
    for number, share in enumerate((None, 1 - 1e-9, 1 + 1e-9)):
        torch.manual_seed(1)
        net = mlp().double()
        optimizer = torch.optim.SGD(net.parameters(), lr=30.0)
        path = tmp_path / f"{number}.zarr"
        collector = ExitTimes(
            steps=[0], replicas=1, batch_size=4, max_steps=3, check_every=10,
            barrier=1e6 if share is None else share * rises[0],
        )  # fmt: skip
        record(net, optimizer, path, cross_entropy, double, collector)
        with tracelab.open(path) as trace:
            found = trace.groups["exits"].load()
        rises.append((found["loss"].values[0, 0] - found["start_loss"].values[0]).item())
        assert found["time"].values == [[3]]
        expected = Criterion.LOSS if share is not None and share < 1 else 0
        assert found["criterion"].values == [[expected]]
    assert rises[0] > 0.1


def test_what_is_not_finite_has_diverged(double, path: Path, group) -> None:
    """Steps that explode, in either way; the loss of a replica is recorded as it is."""
    net = nn.Linear(6, 1, bias=False).double()

    def quartic(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0]).pow(4).mean()

    optimizer = torch.optim.SGD(net.parameters(), lr=1e4)
    collector = ExitTimes(steps=[0], replicas=3, batch_size=4, max_steps=50, barrier=1e300)
    with attach(net, optimizer, path, collectors=[collector], loss=quartic, data=double):
        optimizer.step()
    found = group("exits")
    assert (found["criterion"] == Criterion.DIVERGED).all()
    assert (found["time"] < 10).all()
    assert not found["censored"].any()
    assert not np.isfinite(found["loss"]).any()


def test_a_loss_that_is_nan_from_the_start(data, net, path: Path, group) -> None:
    spoiled = torch.zeros(())

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0]).square().mean() + spoiled

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collector = ExitTimes(steps=[0], replicas=2, batch_size=4, radius=1.0, basin=True)
    with attach(net, optimizer, path, collectors=[collector], loss=loss, data=data):
        spoiled.fill_(torch.nan)
        optimizer.step()
    found = group("exits")
    assert np.isnan(found["start_loss"]).all()
    assert (found["criterion"] == Criterion.DIVERGED).all()
    assert (found["time"] == 1).all()


def test_batches_of_several_shapes_are_taken_one_by_one(net, inputs, path: Path, group) -> None:
    """What the trial did not meet: the loss sees the batches as the data gave them."""
    seen = set()

    def batch(indices: Tensor) -> Tensor:
        return inputs[indices.unique()]

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        seen.add(len(x))
        return model(x).square().mean()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collector = ExitTimes(steps=[0], replicas=4, batch_size=8, max_steps=3, radius=10.0)
    with attach(
        net, optimizer, path, collectors=[collector], loss=loss, data=batch, data_size=48,
        strict=True,
    ):  # fmt: skip
        optimizer.step()
    assert group("exits").attrs["method"] == "vmap"
    assert {6, 7, 8} <= seen
    assert np.isfinite(group("exits")["distance"]).all()


def test_listed_batches_give_what_stacked_ones_do(double, cross_entropy) -> None:
    net = mlp().double()
    loss = ReplicaLoss(cross_entropy, net, list(net.parameters()), Way(batched=True))
    weights = [torch.stack([p.detach(), 2 * p.detach()]) for p in net.parameters()]
    batches = [double[:8], double[8:16]]
    one = loss.gradients(weights, [], Stacked.of(batches))
    other = loss.gradients(weights, [], Listed(batches))
    for a, b in zip([one.losses, *one.gradients], [other.losses, *other.gradients], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Words(nn.Module):
    """Numbers of words to their mean vector: no product of matrices at all."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4, sparse=sparse)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).mean(1)


def test_sparse_gradients_stay_sparse(tmp_path: Path) -> None:
    """The same as dense ones, and an optimizer that takes no others."""
    data = TensorDataset(torch.randint(0, 20, (50, 5)))
    found = []
    for sparse, make in (
        (False, lambda p: torch.optim.SGD(p, lr=0.1)),
        (True, lambda p: torch.optim.SGD(p, lr=0.1)),
        (True, lambda p: torch.optim.SparseAdam(list(p), lr=0.1)),
    ):
        torch.manual_seed(1)
        net = Words(sparse).double()
        path = tmp_path / f"{len(found)}.zarr"
        collector = ExitTimes(steps=[1], replicas=3, batch_size=4, max_steps=5, radius=100.0)
        record(
            net, make(net.parameters()), path, lambda m, b: m(b[0]).square().mean(), data,
            collector, steps=2,
        )  # fmt: skip
        with tracelab.open(path) as trace:
            found.append(trace.groups["exits"].load())
    assert [each.attrs["method"] for each in found] == ["vmap", "loop", "loop"]
    np.testing.assert_allclose(found[0]["distance"], found[1]["distance"], rtol=1e-9)
    # Adam's first steps are of the size of the learning rate, whatever the gradient.
    assert (found[2]["distance"] > found[1]["distance"]).all()


class Remembering(nn.Linear):
    """Keeps what it saw, as code of users does."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.sum()
        return super().forward(x)


class Branching(nn.Linear):
    """Looks at numbers, which vmap cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if x.sum() > 0 else 1)


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (lambda: nn.Linear(6, 3), "vmap"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), "vmap"),
        (lambda: nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 3)), "loop"),
        (lambda: Remembering(6, 3), "loop"),
        (lambda: Branching(6, 3), "loop"),
    ],
)
def test_which_way_is_tried(make, method, data, cross_entropy) -> None:
    net = make()
    optimizer = torch.optim.Adam(net.parameters())
    before = bits([net.state_dict(), optimizer.state_dict()])
    indexed = exit_times.Indexed.of(data, None, torch.device("cpu"))
    way = tried(cross_entropy, net, [optimizer], indexed, 8, 0)
    assert way.method == method
    assert bits([net.state_dict(), optimizer.state_dict()]) == before


def test_a_replica_that_fails_stops_the_collector_alone(data, net, path: Path) -> None:
    broken = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if broken:
            raise ZeroDivisionError("no luck")
        return model(batch[0]).square().mean()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collector = ExitTimes(every=2, replicas=2, batch_size=4, max_steps=2, radius=1.0)
    with attach(net, optimizer, path, collectors=[collector], loss=loss, data=data):
        optimizer.step()
        optimizer.step()
        broken.append(True)
        with pytest.warns(IncompleteTraceWarning, match="'exits' stopped at step 3: ZeroD"):
            optimizer.step()
        optimizer.step()
    with tracelab.open(path) as trace:
        assert trace.rows["exits"] == 1
        assert trace.rows["steps"] == 4


KILLED = """
import os, signal, sys, time
import torch
import tracelab
from tracelab.trace.writing.creation import create
from tracelab_collectors import ExitTimes
from tracelab_collectors.attach import attach

path = sys.argv[1]
create.__kwdefaults__["flush_seconds"] = 0.02
net = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.randn(20, 3))

def loss(model, batch):
    if session is not None and session.step > 3:
        while not tracelab.open(path).rows.get("exits"):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    return model(batch[0]).square().mean()

session = None
collector = ExitTimes(every=1, replicas=3, batch_size=4, max_steps=5, radius=100.0)
session = attach(net, optimizer, path, collectors=[collector], loss=loss, data=data)
for _ in range(10):
    optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no signals")
def test_a_process_killed_among_replicas_leaves_a_readable_trace(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with tracelab.open(path) as trace:
        assert trace.state == "recording"
        found = trace.groups["exits"].load()
    assert 1 <= found.sizes["step"] <= 3
    assert (found["time"] == 5).all()
    assert np.isfinite(found["distance"]).all()
    assert not tracelab.verify(path).damages


def test_bad_input(data, net, cross_entropy, path: Path) -> None:
    for options, message in (
        ({}, "nothing that replicas could leave; give radius=, barrier= or basin=True"),
        ({"radius": 0}, "radius must be a positive number, got 0"),
        ({"radius": -1.0}, "radius must be a positive number, got -1.0"),
        ({"radius": float("nan")}, "radius must be a positive number, got nan"),
        ({"barrier": "high"}, "barrier must be a positive number, got 'high'"),
        ({"basin": 1}, "basin must be True or False, got 1"),
        ({"basin": True, "tolerance": None}, "tolerance must be a positive number, got None"),
        ({"radius": 1, "clip_norm": 0}, "clip_norm must be a positive number, got 0"),
        ({"radius": 1, "replicas": 0}, "replicas must be an integer of at least 1, got 0"),
        ({"radius": 1, "max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
        ({"radius": 1, "check_every": 1.5}, "check_every must be an integer of at least 1"),
        ({"radius": 1, "examples": 0}, "examples must be an integer of at least 1, got 0"),
        ({"radius": 1, "mode": "train"}, "mode must be 'eval' or None, got 'train'"),
    ):
        with pytest.raises(UsageError, match=message):
            ExitTimes(**options)
    collector = ExitTimes(radius=1.0, batch_size=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def refused(loss, data, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            attach(net, optimizer, path, collectors=[collector], loss=loss, data=data)

    refused(None, data, "needs loss")
    refused(cross_entropy, None, "needs data")
    refused(
        lambda model, batch: model(batch[0]).mean().detach(), data,
        "fails at the first step of a replica: RuntimeError",
    )  # fmt: skip
    refused(lambda model, batch: model(batch[0]), data, "must return the scalar mean loss")
    assert not path.exists()
