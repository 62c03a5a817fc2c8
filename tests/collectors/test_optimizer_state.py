"""Optimizer states against recursions by hand, and against the updates they led to."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors.attach import attach
from tracelab_collectors.optimizer_state import OptimizerState

STEPS = 12


class Trained:
    """A recorded run in float64: gradients, weights and states of every step."""

    def __init__(self, make, path: Path, *, steps: int = STEPS, net=None, **options) -> None:
        torch.manual_seed(0)
        if net is None:
            net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        x = torch.randn(16, 4, dtype=torch.float64)
        optimizer = make(net.parameters())
        options = {"every": 1, "sketch": tracelab.Full()} | options
        collector = OptimizerState(**options)
        self.net, self.optimizer = net, optimizer
        gradients, weights = [], []
        with attach(net, optimizer, path, collectors=[collector], strict=True):
            for _ in range(steps):
                optimizer.zero_grad()
                net(x).square().sum().backward()
                gradients.append(flat(p.grad for p in net.parameters()))
                weights.append(flat(net.parameters()))
                optimizer.step()
            # The last update shows in the state at the start of the next step.
            weights.append(flat(net.parameters()))
            optimizer.step()
        self.gradients, self.weights = np.array(gradients), np.array(weights)
        self.updates = np.diff(self.weights, axis=0)
        with tracelab.open(path) as trace:
            self.found: xr.Dataset = trace.groups[collector.name].load()


def flat(tensors) -> np.ndarray:
    return torch.cat([each.detach().flatten() for each in tensors]).numpy().copy()


def adam_by_hand(gradients: np.ndarray, beta1: float, beta2: float) -> tuple:
    """Algorithm 1 of Kingma and Ba: the moments without bias after every step."""
    m = v = np.zeros(gradients.shape[1])
    first, second = [], []
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        first.append(m / (1 - beta1**t))
        second.append(v / (1 - beta2**t))
    return np.array(first), np.array(second)


ADAM = {
    "loop": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), foreach=False),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), foreach=True),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), fused=True),
    "tensor lr": lambda p: torch.optim.Adam(
        p, lr=torch.tensor(0.01, dtype=torch.float64), betas=(0.8, 0.95), foreach=False
    ),
}


@pytest.mark.parametrize("how", ADAM)
def test_adam_by_hand_from_the_gradients(how: str, path: Path) -> None:
    run = Trained(ADAM[how], path)
    first, second = adam_by_hand(run.gradients, 0.8, 0.95)
    # What is stored is rounded to float32, by 2^-24; the recursions are in float64.
    np.testing.assert_allclose(run.found["momentum_full"][1:], first, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(run.found["second_moment_full"][1:], second, rtol=1e-6)
    steps = 0.01 / (np.sqrt(second) + 1e-8)
    np.testing.assert_allclose(run.found["effective_step_full"][1:], steps, rtol=1e-6)
    assert run.found.attrs["optimizers"][0]["name"] == "Adam"
    assert run.found["momentum_full"].attrs["units"] == "loss/weight"
    assert run.found["effective_step_full"].attrs["units"] == "weight^2/loss"


def test_momentum_by_hand_from_the_gradients(path: Path) -> None:
    run = Trained(
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, dampening=0.1, weight_decay=0.3), path
    )
    buffer, expected = None, []
    for g, w in zip(run.gradients, run.weights, strict=False):
        g = g + 0.3 * w
        buffer = g if buffer is None else 0.9 * buffer + 0.9 * g
        expected.append(buffer)
    np.testing.assert_allclose(run.found["momentum_full"][1:], expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(run.found["effective_step_full"], 0.02, rtol=1e-7)


STEP_ALONG_MOMENTUM = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam, maximize": lambda p: torch.optim.Adam(p, lr=0.01, maximize=True),
    "Adam, L2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.6), amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    # Rectified from the sixth step on.
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
}


@pytest.mark.parametrize("name", STEP_ALONG_MOMENTUM)
def test_the_update_is_the_effective_step_times_the_first_moment(name: str, path: Path) -> None:
    run = Trained(STEP_ALONG_MOMENTUM[name], path)
    update = -run.found["effective_step_full"] * run.found["momentum_full"]
    expected = run.updates + (0.01 * 0.1 * run.weights[:-1] if name == "AdamW" else 0)
    np.testing.assert_allclose(update[1:], expected, rtol=1e-6, atol=1e-12)


STEP_ALONG_GRADIENT = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "RMSprop, centered": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.2),
}


@pytest.mark.parametrize("name", STEP_ALONG_GRADIENT)
def test_the_update_is_the_effective_step_times_the_gradient(name: str, path: Path) -> None:
    run = Trained(STEP_ALONG_GRADIENT[name], path)
    update = -run.found["effective_step_full"][1:].values * run.gradients
    # Centered variances are differences: what is left of them has fewer digits.
    np.testing.assert_allclose(update, run.updates, rtol=1e-6, atol=1e-12)
    assert np.isnan(run.found["momentum_full"]).all()


def test_nadam_steps_along_a_mixture(path: Path) -> None:
    run = Trained(lambda p: torch.optim.NAdam(p, lr=0.01, betas=(0.8, 0.95)), path)
    first, second = adam_by_hand(run.gradients, 0.8, 0.95)
    steps = 0.01 / (np.sqrt(second) + 1e-8)
    np.testing.assert_allclose(run.found["effective_step_full"][1:], steps, rtol=1e-6)
    np.testing.assert_allclose(run.found["momentum_full"][1:], first, rtol=1e-6, atol=1e-12)


def test_sparse_adam(path: Path, group) -> None:
    net = nn.Embedding(6, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(net.parameters(), lr=0.1)
    collector = OptimizerState(every=1, sketch=tracelab.Full())
    before = net.weight.detach().clone()
    with attach(net, optimizer, path, collectors=[collector], strict=True):
        net(torch.tensor([1, 4])).square().sum().backward()
        optimizer.step()
        update = (net.weight.detach() - before).flatten().numpy()
        optimizer.step()
    found = group("optimizer_state")
    predicted = -found["effective_step_full"] * found["momentum_full"]
    # A float32 weight near 1 moves by 0.1 to within 2^-24.
    np.testing.assert_allclose(predicted[1], update, rtol=2e-6)
    assert np.count_nonzero(update) == 4


def test_learning_rates_of_groups_and_of_several_optimizers(path: Path, group) -> None:
    a, b, c = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)
    net = nn.Sequential(a, b, c)
    one = torch.optim.SGD([{"params": a.parameters(), "lr": 0.5}, {"params": b.parameters()}], 0.1)
    two = torch.optim.Adam(c.parameters(), lr=0.25)
    collector = OptimizerState(every=1)
    with attach(net, [one, two], path, collectors=[collector], strict=True):
        for _ in range(2):
            net(torch.ones(4, 2)).sum().backward()
            one.step()
            two.step()
            one.param_groups[1]["lr"] = 0.05
    found = group("optimizer_state")
    steps = found["effective_step_mean"]
    np.testing.assert_allclose(steps[0, :4], [0.5, 0.5, 0.1, 0.1], rtol=1e-7)
    np.testing.assert_allclose(steps[1, :4], [0.5, 0.5, 0.05, 0.05], rtol=1e-7)
    # Adam's second moment is the squared gradient, and its state is not there before a step.
    assert np.isnan(steps[0, 4:]).all()
    gradient = found["momentum_norm"][1, 5]
    np.testing.assert_allclose(steps[1, 5], 0.25 / gradient, rtol=1e-6)
    assert [each["name"] for each in found.attrs["optimizers"]] == ["SGD", "Adam"]


def test_what_is_missing_is_missing_in_every_array(path: Path) -> None:
    run = Trained(
        lambda p: torch.optim.Adam(p), path, sketch=(tracelab.Project(8), tracelab.Sample(3))
    )
    assert all(np.isnan(each[0]).all() for each in run.found.data_vars.values())
    assert not any(np.isnan(each[1:]).any() for each in run.found.data_vars.values())


def test_sketches_and_statistics_are_of_the_same_vector(path: Path, tmp_path: Path) -> None:
    def make(p):
        return torch.optim.Adam(p)

    whole = Trained(make, path, sketch=tracelab.Full()).found
    kept = Trained(make, tmp_path / "b", sketch=(tracelab.Project(8), tracelab.Sample(3))).found
    numel = [12, 3, 6, 2]
    edges, offsets = np.cumsum(numel)[:-1], np.cumsum([0, *numel])
    layer, index = kept["coordinate_layer"].values, kept["coordinate_index"].values
    for quantity in ("momentum", "second_moment", "effective_step"):
        full = whole[f"{quantity}_full"].values[1:]
        np.testing.assert_array_equal(
            kept[f"{quantity}_sampled"][1:], full[:, offsets[layer] + index]
        )
        parts = [part.astype(np.float64) for part in np.split(full, edges, axis=1)]
        for name, expected in (
            ("norm", [np.linalg.norm(part, axis=1) for part in parts]),
            ("mean", [part.mean(1) for part in parts]),
            ("moment2", [(part**2).mean(1) for part in parts]),
            ("log_abs_var", [np.log(np.abs(part)).var(1) for part in parts]),
        ):
            np.testing.assert_allclose(
                whole[f"{quantity}_{name}"][1:], np.transpose(expected), rtol=1e-5, atol=1e-9
            )
    for position, part in enumerate(np.split(whole["momentum_full"].values, edges, axis=1)):
        projected = tracelab.Project(8).project(part, int(offsets[position]))
        found = kept["momentum_projected"][1:, position]
        np.testing.assert_allclose(found, projected[1:], atol=1e-6)
    assert "second_moment_projected" not in kept


class Lion(torch.optim.Optimizer):
    """An optimizer of someone else's, with states of several kinds."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.99)})

    def step(self, closure=None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state.setdefault("exp_avg", torch.zeros_like(parameter)).add_(parameter.grad)
            state["exp_avg_sq"] = torch.zeros(1)
            with torch.no_grad():
                parameter.sub_(0.1 * state["exp_avg"].sign())


class MyAdam(torch.optim.Adam):
    pass


def test_an_optimizer_that_is_not_known(path: Path, tmp_path: Path) -> None:
    run = Trained(Lion, path)
    np.testing.assert_allclose(
        run.found["momentum_full"][1:], np.cumsum(run.gradients, axis=0), rtol=1e-6, atol=1e-12
    )
    # A factored state is no vector of weights.
    assert np.isnan(run.found["second_moment_full"]).all()
    assert np.isnan(run.found["effective_step_full"]).all()
    said = run.found.attrs["optimizers"][0]
    assert said["effective_step"] == "missing: how this optimizer steps is not known"
    derived = Trained(MyAdam, tmp_path / "derived").found
    assert np.isnan(derived["effective_step_full"]).all()
    assert not np.isnan(derived["second_moment_full"][1:]).any()


def test_quantities_and_layers(path: Path) -> None:
    run = Trained(
        lambda p: torch.optim.Adam(p), path, quantities=("second_moment",), layers=".*weight"
    )
    assert {name.rpartition("_")[0][:13] for name in run.found.data_vars} == {"second_moment"}
    assert run.found["layer"].values.tolist() == ["0.weight", "2.weight"]
    assert run.found["second_moment_full"].shape == (STEPS + 1, 18)


def test_half_precision_states_are_read_in_float32(path: Path, group) -> None:
    net = nn.Linear(3, 2).bfloat16()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    with attach(net, optimizer, path, collectors=[OptimizerState(every=1)], strict=True):
        for _ in range(2):
            net(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
    # bfloat16 has 0.30078125.
    np.testing.assert_allclose(group("optimizer_state")["effective_step_mean"], 0.3, rtol=1e-7)


def test_two_with_other_sketches_share_their_copies(path: Path) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    both = [
        OptimizerState(every=1, sketch=tracelab.Sample(2)),
        OptimizerState(every=1, sketch=tracelab.Full(), name="other"),
    ]
    with attach(net, optimizer, path, collectors=both, strict=True) as session:
        (lane,) = session._agenda._lanes
        assert len(lane._own) == 3
        for _ in range(2):
            net(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    with tracelab.open(path) as trace:
        one, two = trace.groups["optimizer_state"].load(), trace.groups["other"].load()
    xr.testing.assert_equal(one["momentum_norm"], two["momentum_norm"])


def test_sharded_states(path: Path) -> None:
    """A process records the part of the state that it has."""
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        net = nn.Linear(3, 4)
        fully_shard(net, mesh=mesh)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.25)
        collectors = [OptimizerState(every=1, sketch=tracelab.Full())]
        with attach(net, optimizer, path, collectors=collectors, strict=True):
            net(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.step()
    finally:
        distributed.destroy_process_group()
    with tracelab.open(path / "workers/rank-000") as trace:
        found = trace.groups["optimizer_state"].load()
    # The gradient of every weight is 2, and so is its first moment without bias.
    np.testing.assert_allclose(found["momentum_sampled"][1], np.full(16, 2.0), rtol=1e-6)
    np.testing.assert_allclose(found["second_moment_sampled"][1], np.full(16, 4.0), rtol=1e-6)
    np.testing.assert_allclose(found["effective_step_sampled"][1], 0.125, rtol=1e-6)


@pytest.mark.parametrize("quantities", ["momentum", (), ("momentum", "variance")])
def test_refusals(quantities) -> None:
    with pytest.raises(UsageError, match="must be a sequence of momentum, second_moment, effect"):
        OptimizerState(quantities=quantities)


def test_nothing_changes(tmp_path: Path) -> None:
    """Weights and states are bitwise what they are without the collector."""
    states = []
    for name in (None, "a"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        optimizer = torch.optim.Adam(net.parameters(), amsgrad=True)
        session = None
        if name is not None:
            collectors = [OptimizerState(every=1, sketch=tracelab.Full())]
            session = attach(net, optimizer, tmp_path / name, collectors=collectors, strict=True)
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
        if session is not None:
            session.detach()
        held: list[Tensor] = list(net.parameters())
        for state in optimizer.state.values():
            held += [each for each in state.values() if isinstance(each, Tensor)]
        states.append([each.detach().clone() for each in [*held, torch.get_rng_state()]])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
