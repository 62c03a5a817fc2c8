"""What updates make of gradient noise, against the optimizers' own responses and known runs."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from optimizers import OPTIMIZERS, made, response, said
from plans import computed

import tracelab
from tracelab import planning
from tracelab.errors import UsageError
from tracelab.typing import Status
from tracelab_analyses.update_noise import ANALYSIS, update_noise
from tracelab_collectors import Gradients, Weights

RATE, WEIGHTS = 0.01, 20


def recorded(
    optimizer_of, steps=1_500, *, curvature=0.0, rate=lambda step: RATE, seed=0, before=None
):
    """Return weights, gradients, steps and rates of a run, and what is said of its optimizer.

    Gradients are white noise around a mean of .3 and a slope.
    """
    noise = np.random.default_rng(seed).standard_normal((steps, WEIGHTS)) + 0.3
    parameter = torch.ones(WEIGHTS, dtype=torch.float64, requires_grad=True)
    optimizer = optimizer_of(parameter)
    weights, gradients, rates = [], [], []
    for step in range(steps):
        if before:
            before(step, parameter, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        weights.append(parameter.detach().numpy().copy())
        gradients.append(noise[step] + curvature * weights[-1])
        rates.append(rate(step))
        parameter.grad = torch.tensor(gradients[-1])
        optimizer.step()
    run = np.array(weights)[None], np.array(gradients)[None], np.arange(steps), np.array(rates)
    return run, np.array(said(optimizer), dtype=object)


def found_of(run, optimizer=None, **options):
    found = update_noise(*run, optimizer=optimizer, **options)
    return {name: values[0] for name, values in found.items()}


def heavy_ball(parameter, **options):
    return torch.optim.SGD([parameter], lr=RATE, momentum=0.9, **options)


def assert_close(found, name, truth, errors=3):
    """Compare within so many standard errors, which are below 1 % of the number."""
    assert found["status"] == Status.OK
    assert abs(found[name] - truth) < errors * found[f"{name}_se"]
    assert found[f"{name}_se"] < 0.01 * abs(truth)


@pytest.mark.parametrize("curvature", [0.0, 20.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_response_is_that_of_the_optimizer_whatever_gradients_depend_on(name, curvature):
    """Rates that change as well; a curvature of 20 takes updates back within 5 steps."""
    run, optimizer = recorded(
        lambda parameter: made(name, parameter, RATE),
        curvature=curvature,
        rate=lambda step: RATE * (1 - step / 3_000),
    )
    found = found_of(run, optimizer)
    _, h = response(name)
    assert_close(found, "gain", h.sum())
    assert_close(found, "noise", np.square(h).sum())
    assert_close(found, "update_noise", np.square(h).sum() / h.sum() ** 2)
    assert max(found[f"{each}_apart"] for each in ("gain", "noise", "update_noise")) < 3
    assert found["explained"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["heavy ball", "dampened", "pnm"])
def test_what_happened_is_that_of_the_loop_through_the_curvature(name):
    """The truth: noise of 1 goes through optimizer and loss, long sums of gradients to nothing."""
    run, optimizer = recorded(
        lambda parameter: made(name, parameter, RATE), steps=4_000, curvature=20.0
    )
    found = found_of(run, optimizer)
    gradients, moves = response(name, 2_000, 20.0 * RATE)
    truth = np.square(moves).sum() / np.square(gradients).sum()
    assert abs(found["observed"] - truth) < 4 * found["observed_se"]
    assert found["observed_se"] < 0.03 * truth
    assert abs(gradients.sum()) < 1e-6
    assert abs(found["gradient_sums"]) < 3 * found["gradient_sums_se"]
    assert found["gradient_sums"] + 3 * found["gradient_sums_se"] < 1
    assert math.isnan(found["sums"])


@pytest.mark.parametrize("name", ["heavy ball", "dampened", "nesterov"])
def test_long_sums_of_independent_noise_are_magnified_by_the_squared_gain(name):
    run, optimizer = recorded(lambda parameter: made(name, parameter, RATE), steps=4_000)
    found = found_of(run, optimizer)
    _, h = response(name)
    assert abs(found["sums"] - h.sum() ** 2) < 4 * found["sums_se"]
    assert found["sums_se"] < 0.1 * h.sum() ** 2
    assert abs(found["gradient_sums"] - 1) < 3 * found["gradient_sums_se"]
    assert abs(found["observed"] - np.square(h).sum()) < 4 * found["observed_se"]


def test_noise_that_is_not_of_gradients_counts_and_the_formula_is_refused():
    """Noise of deviation 2 over the rate: 4 more than momentum's 1 / (1 - .81)."""
    rng = np.random.default_rng(1)

    def before(step, parameter, optimizer):
        parameter.data += 2 * RATE * torch.tensor(rng.standard_normal(WEIGHTS))

    run, optimizer = recorded(heavy_ball, before=before)
    # What is added before a gradient is taken moves with the update before.
    found = found_of(run, optimizer)
    truth = 1 / 0.19 + 4
    assert abs(found["noise"] - truth) < 3 * found["noise_se"] < 0.1 * truth
    assert found["noise_apart"] > 10
    assert abs(found["gain"] - 10) < 3 * found["gain_se"]
    assert abs(found["explained"] - (1 - 4 / truth)) < 4 * found["explained_se"]
    assert "disagrees with the formula" in told(found).sentence


def test_coordinates_with_steps_of_their_own():
    """Half of them twice the recorded rate: the mean step, and the mean squared one."""
    noise = np.random.default_rng(0).standard_normal((3_000, WEIGHTS))
    halves = [torch.zeros(WEIGHTS // 2, dtype=torch.float64) for _ in range(2)]
    groups = [{"params": [half], "lr": (1 + place) * RATE} for place, half in enumerate(halves)]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    weights = []
    for gradient in noise:
        weights.append(torch.cat(halves).numpy())
        for half, part in zip(halves, np.split(gradient, 2), strict=True):
            half.grad = torch.tensor(part)
        optimizer.step()
    found = found_of((np.array(weights)[None], noise[None], np.arange(3_000), np.full(3_000, RATE)))
    assert abs(found["gain"] - 15) < 3 * found["gain_se"] < 1.5
    assert abs(found["noise"] - 2.5 / 0.19) < 3 * found["noise_se"] < 1.5
    assert math.isnan(found["gain_formula"])
    assert math.isnan(found["noise_apart"])


@pytest.mark.parametrize("maximize", [False, True])
def test_weight_decay_is_no_gradient(maximize):
    run, optimizer = recorded(lambda p: heavy_ball(p, weight_decay=0.5, maximize=maximize))
    found = found_of(run, optimizer)
    assert found["weight_decay"] == 0.5
    assert found["explained"] == pytest.approx(1, abs=1e-9)
    assert_close(found, "gain", 10)
    run, optimizer = recorded(lambda p: heavy_ball(p, weight_decay=1e-3, maximize=maximize))
    untold = found_of(run, np.array(optimizer.item() | {"name": "Mine"}, dtype=object))
    assert untold["status"] == Status.OK
    assert math.isnan(untold["weight_decay"])
    assert any("weight decay" in warning for warning in told(untold).warnings)


def test_decoupled_weight_decay_is_no_update():
    """With an eps of 1e6 Adam's step is that of a moving average of gradients, over 1e6."""

    def adamw(parameter):
        return torch.optim.AdamW([parameter], weight_decay=1e-6, eps=1e6)

    run, optimizer = recorded(adamw, rate=lambda step: 1e4)
    found = found_of(run, optimizer)
    assert found["weight_decay"] == 1e-6
    # Its second moment is seen beside eps, 1e-6 of a step.
    assert found["explained"] == pytest.approx(1, abs=1e-8)
    assert found["gain"] * 1e6 == pytest.approx(1, rel=1e-4)
    assert found["noise"] * 1e12 == pytest.approx(0.1 / 1.9, rel=1e-4)
    assert math.isnan(found["gain_formula"])
    assert "no formula" in told(found).sentence


def test_missing_steps_and_steps_that_kept_the_weights():
    run, optimizer = recorded(heavy_ball, steps=2_500)
    whole = found_of(run, optimizer)
    holes = np.delete(np.arange(2_500), [700, 701, 1_900])
    weight, gradient, step, rate = run
    found = found_of((weight[:, holes], gradient[:, holes], step[holes], rate[holes]), optimizer)
    assert_close(found, "gain", 10)
    assert found["explained"] == pytest.approx(1, abs=1e-9)
    assert found["n_missing"] == 2
    assert found["n_steps"] < whole["n_steps"]
    # An overflow: the gradient is not finite, the weights and what momentum holds stay.
    twice = np.insert(np.arange(2_500), 1_000, 1_000)
    gradient = gradient[:, twice].copy()
    gradient[:, 1_000] = np.inf
    applied = (np.arange(2_501) != 1_000).astype(float)
    run = weight[:, twice], gradient, np.arange(2_501), rate[twice]
    found = found_of(run, optimizer, applied=applied)
    assert found["n_steps"] == whole["n_steps"]
    assert found["gain"] == whole["gain"]
    assert found_of(run, optimizer)["n_steps"] < whole["n_steps"]


def test_what_an_optimizer_forgets_when_a_run_is_resumed():
    def forget(step, parameter, optimizer):
        if step == 1_000:
            optimizer.state.clear()

    run, optimizer = recorded(heavy_ball, steps=2_500, before=forget)
    assert found_of(run, optimizer)["explained"] < 1 - 1e-5
    resumed = np.asarray([{"step": 1_000}]).astype(object)
    found = found_of(run, optimizer, resumed=resumed)
    assert found["explained"] == pytest.approx(1, abs=1e-9)
    assert_close(found, "gain", 10)


def noise_and_walk(steps=400):
    rng = np.random.default_rng(3)
    gradient = rng.standard_normal((1, steps, 5))
    weight = -RATE * np.concatenate([np.zeros((1, 1, 5)), gradient.cumsum(axis=1)], axis=1)
    return weight[:, :-1], gradient, np.arange(steps), np.full(steps, RATE)


def full_batch():
    """Return the path of gradient descent in a bowl, which has no noise."""
    weight = np.exp(-0.01 * np.arange(400))[None, :, None] * np.arange(1.0, 6)
    return weight, weight * (1 - np.exp(-0.01)) / RATE, np.arange(400), np.full(400, RATE)


def learned(until):
    """Return the run of a layer that gets no gradients from some step on."""
    weight, gradient, step, rate = noise_and_walk(600)
    gradient = np.where(step[:, None] < until, gradient, 0.0)
    weight = -RATE * (gradient.cumsum(axis=1) - gradient)
    return weight, gradient, step, rate


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda w, g, s, r: (w[:, :30], g[:, :30], s[:30], r[:30]), Status.TOO_FEW_SAMPLES),
        (lambda w, g, s, r: (w[:, :0], g[:, :0], s[:0], r[:0]), Status.TOO_FEW_SAMPLES),
        (lambda w, g, s, r: (w, g, 2 * s, r), Status.TOO_FEW_SAMPLES),
        (lambda w, g, s, r: (w, g, s, 0 * r), Status.TOO_FEW_SAMPLES),
        (lambda w, g, s, r: (w, 0 * g, s, r), Status.CONSTANT_INPUT),
        (lambda w, g, s, r: (np.ones_like(w), g, s, r), Status.CONSTANT_INPUT),
        (lambda w, g, s, r: (w * np.nan, g, s, r), Status.NON_FINITE_INPUT),
        (lambda w, g, s, r: (w, g + np.inf, s, r), Status.NON_FINITE_INPUT),
        (lambda w, g, s, r: (w, 1e200 * g, s, r), Status.NON_FINITE_INPUT),
        (lambda w, g, s, r: (1e200 * w, g, s, r), Status.NON_FINITE_INPUT),
        (lambda *_: full_batch(), Status.NOT_CONVERGED),
        # Blocks are of 60 and of 27 steps behind 59: what is left without the first is nothing.
        (lambda *_: learned(70), Status.NOT_CONVERGED),
        (lambda *_: learned(80), Status.NOT_CONVERGED),
        (lambda *_: learned(90), Status.NOT_CONVERGED),
    ],
)
def test_what_tells_nothing_says_why(change, status):
    found = found_of(change(*noise_and_walk()))
    assert found["status"] == status
    assert math.isnan(found["gain"])
    assert math.isnan(found["noise_se"])
    assert "do not tell" in told(found).sentence


def test_a_layer_that_learned_for_some_blocks_tells_the_response():
    assert found_of(learned(200))["gain"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status.NON_FINITE_INPUT, "not finite"),
        (Status.TOO_FEW_SAMPLES, "too few consecutive steps"),
        (Status.FAILED, "could not be computed"),
    ],
)
def test_the_reason_is_that_of_the_status(status, words):
    found = found_of(noise_and_walk())
    assert words in told(found | {"status": int(status)}).sentence


def test_several_optimizers_that_do_the_same_are_one():
    """As a trace gives them: an array of mappings."""
    run, optimizer = recorded(heavy_ball)
    one = found_of(run, optimizer)
    two = found_of(run, np.asarray([optimizer.item()] * 2))
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])
    assert two["gain_formula"] == pytest.approx(10)
    other = optimizer.item() | {"momentum": 0.8}
    assert math.isnan(found_of(run, np.asarray([optimizer.item(), other]))["gain_formula"])


@pytest.mark.parametrize(
    "decay", [math.nan, math.inf, pytest.param(10**400, id="huge"), "0.1", [0.1], None, True]
)
def test_a_weight_decay_that_is_no_number_is_not_known(decay):
    found = found_of(noise_and_walk(), np.array({"name": "SGD", "weight_decay": decay}))
    assert found["gain"] == pytest.approx(1, abs=1e-9)
    assert math.isnan(found["weight_decay"])


def test_resumptions_that_say_nothing():
    run = noise_and_walk()
    odd = np.asarray([{"step": "x"}, {"step": None}, {}])
    found = found_of(run, resumed=odd)
    for name, value in found_of(run).items():
        np.testing.assert_array_equal(value, found[name])


def test_a_memory_longer_than_the_lags_is_seen():
    def slow(parameter):
        return torch.optim.SGD([parameter], lr=RATE, momentum=0.95)

    run, optimizer = recorded(slow, steps=2_500)
    assert found_of(run, optimizer, memory=20)["status"] == Status.NOT_CONVERGED
    assert_close(found_of(run, optimizer, memory=160), "gain", 20)


def test_units_do_not_matter_and_layers_do_not_know_each_other():
    run, optimizer = recorded(heavy_ball)
    other = noise_and_walk(1_500)
    joined = [
        np.concatenate([run[0][..., :5], other[0]]),
        np.concatenate([run[1][..., :5], other[1]]),
    ]
    both = update_noise(*joined, *run[2:], optimizer=optimizer)
    for place, layer in enumerate(((run[0][..., :5], run[1][..., :5]), other[:2])):
        alone = update_noise(*layer, *run[2:], optimizer=optimizer)
        for name, values in both.items():
            np.testing.assert_array_equal(values[place], alone[name][0])
    scaled = update_noise(joined[0] * 2.0**20, joined[1] * 2.0**20, *run[2:], optimizer=optimizer)
    for name, values in both.items():
        np.testing.assert_array_equal(values, scaled[name])


def test_other_directions_are_refused_before_anything_is_computed(tmp_path):
    """And an analysis of all that a trace has passes them by."""
    for seed in (0, 1):
        path = tmp_path / f"{seed}.zarr"
        with tracelab.create(path, {"weight": (40,)}) as writer:
            for name, other in (("weights", 0), ("gradients", seed)):
                writer.define(name, sketches=[tracelab.Project(5, seed=other)])
            rows = np.ones((3, 1, 5))
            for name in ("weights", "gradients"):
                writer.extend(name, steps=np.arange(3), projected=rows)
            writer.extend("steps", steps=np.arange(3), learning_rate=np.ones(3))
        if seed == 0:
            assert tracelab.analyze(path, "update_noise")["update_noise"].sizes["layer"] == 1
            continue
        with pytest.raises(UsageError, match="other directions; record both with one sketch"):
            tracelab.analyze(path, "update_noise")
        assert "update_noise" not in tracelab.analyze(path)


def falling(run):
    """Return a run of heavy ball whose mean decays within 300 steps from twenty times the noise."""
    weight, gradient, step, rate = run
    decay = 20 * np.exp(-step / 300)
    # Linear: the path under the decay alone adds to that under the noise.
    parameter = torch.zeros(1, dtype=torch.float64)
    optimizer, path = heavy_ball(parameter), []
    for slope in decay:
        path.append(parameter.item())
        parameter.grad = torch.tensor([slope])
        optimizer.step()
    return weight + np.array(path)[:, None], gradient + decay[:, None], step, rate


def test_a_mean_that_moves_more_than_the_noise_leaves_what_the_optimizer_does():
    """No line in the lag."""
    run, optimizer = recorded(heavy_ball)
    found = found_of(falling(run), optimizer)
    assert_close(found, "gain", 10)
    assert math.isnan(found["observed"])
    assert math.isnan(found["gradient_sums"])
    assert "in this run" not in told(found).sentence
    assert any("move too much" in warning for warning in told(found).warnings)


def test_a_mean_of_gradients_that_moves_under_noise_of_updates():
    """Beside noise of deviation 100 over the rate the mean of updates does not move.

    The noise of gradients is 1 and at half a memory it is the drift that makes them differ, which
    hides a third of the updates' noise: an error of a tenth would miss it.
    """
    rng = np.random.default_rng(1)

    def before(step, parameter, optimizer):
        parameter.data += 100 * RATE * torch.tensor(rng.standard_normal(WEIGHTS))

    run, optimizer = recorded(heavy_ball, before=before)
    found = found_of(falling(run), optimizer)
    truth = 1e4 + 1 / 0.19
    assert found["status"] == Status.OK
    assert found["noise"] < 0.8 * truth
    assert abs(found["noise"] - truth) < found["noise_se"]
    assert abs(found["update_noise"] - truth / 100) < 3 * found["update_noise_se"]
    assert abs(found["drift"]) < 0.1
    assert abs(found["gradient_drift"]) > 0.5
    assert math.isnan(found["observed"])
    assert math.isnan(found["gradient_sums"])
    assert any("gradients move too much" in warning for warning in told(found).warnings)


def told(found):
    coords = {"layer": ["network"]}
    variables = {each.name: (each.dims, [found[each.name]]) for each in ANALYSIS.outputs}
    return ANALYSIS.finding(xr.Dataset(variables, coords))


def attached(path, optimizer_of, steps, each=lambda step, optimizer: None):
    """Return the result of a small network's run, and its finding."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    optimizer = optimizer_of(model.parameters())
    sketch = tracelab.Project(32)
    collectors = [Weights(every=1, sketch=sketch), Gradients(every=1, sketch=sketch)]
    with tracelab.attach(model, optimizer, path, collectors=collectors):
        for step in range(steps):
            each(step, optimizer)
            inputs = torch.randn(8, 6)
            optimizer.zero_grad()
            (model(inputs) - inputs[:, :2]).square().mean().backward()
            optimizer.step()
    trace = tracelab.open(path)
    result, failures = computed(planning.plan(ANALYSIS, trace, ANALYSIS.resolve({})), trace)
    assert failures == ()
    return result, ANALYSIS.finding(result)


@pytest.mark.slow
def test_a_recorded_run_agrees_with_its_formula_at_every_layer(tmp_path):
    """Float32 weights of order 1 at a rate of .05: updates are known to about 1e-5."""

    def rate(step, optimizer):
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + step / 1_000)

    result, finding = attached(
        tmp_path / "a",
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
        1_500,
        rate,
    )
    assert (result["status"] == Status.OK).all()
    assert (abs(result["gain"] - 10) < 0.02).all()
    assert (abs(result["noise"] - 1 / 0.19) < 0.01).all()
    assert (result["explained"] > 1 - 1e-6).all()
    assert "which agrees with the formula" in finding.sentence
    assert "10 and 5.263" in finding.sentence


@pytest.mark.slow
def test_a_momentum_that_is_scheduled_is_not_what_was_recorded(tmp_path):
    def cycle(step, optimizer):
        optimizer.param_groups[0]["momentum"] = 0.8

    result, finding = attached(
        tmp_path / "a", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), 1_500, cycle
    )
    network = result.sel(layer="network")
    assert float(network["gain"]) == pytest.approx(5, abs=0.02)
    assert float(network["gain_formula"]) == pytest.approx(10)
    assert "disagrees with the formula" in finding.sentence


@pytest.mark.slow
def test_adam_has_no_formula_and_noise_all_the_same(tmp_path):
    result, finding = attached(tmp_path / "a", lambda p: torch.optim.Adam(p, lr=0.003), 1_500)
    network = result.sel(layer="network")
    assert int(network["status"]) == Status.OK
    assert float(network["explained"]) < 0.99
    # Unequal steps add to the noise over the signal of its moving average alone.
    assert float(network["update_noise"]) > 0.1 / 1.9 + 2 * float(network["update_noise_se"])
    assert "no formula" in finding.sentence
