"""What momentum does, from the steps that optimizers take after one gradient."""

import math

import numpy as np
import pytest
import torch
from optimizers import OPTIMIZERS, made, response, said

import tracelab
from tracelab import engine, planning
from tracelab_analyses.momentum import momentum_of
from tracelab_analyses.noise_scale import ANALYSIS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sums_are_those_of_the_optimizers_own_response(name):
    """400 steps: what is left out is below .9^400 = 5e-19; sums round by 1e-15 a term."""
    _, h = response(name)
    optimizer = made(name, torch.zeros(1, requires_grad=True))
    found = momentum_of(said(optimizer))
    assert found.gain == pytest.approx(h.sum(), rel=1e-12)
    assert found.noise == pytest.approx(np.square(h).sum(), rel=1e-12)
    assert found.update_noise == pytest.approx(np.square(h).sum() / h.sum() ** 2, rel=1e-12)


@pytest.mark.parametrize("beta0", [0.5, 1.0, 2.0])
def test_magnification_is_the_ratio_to_one_moving_average(beta0):
    options = {"name": "PNM", "lr": 0.1}
    found = momentum_of(options | {"betas": [0.9, beta0]})
    single = momentum_of(options | {"betas": [0.9, 0.0]})
    assert found.magnification == (1 + beta0) ** 2 + beta0**2
    assert found.update_noise / single.update_noise == pytest.approx(found.magnification)
    # As some implementations call them.
    assert momentum_of(options | {"beta1": 0.9, "beta0": beta0}) == found


def test_noise_of_updates_and_of_where_they_lead():
    """20,000 walks of 200 steps of unit noise: variances within 5 standard errors, 5 sqrt(2/n).

    The noise of one update, and that of the whole way, which is gain^2 a step but for its ends: a
    few dozen steps' worth at most, 1 / (1 - .81) of 200 at either end.
    """
    walks, steps = 20_000, 200
    generator = torch.Generator().manual_seed(0)
    for name in ("heavy ball", "pnm"):
        parameter = torch.zeros(walks, requires_grad=True)
        optimizer = made(name, parameter)
        found = momentum_of(said(optimizer))
        for _ in range(steps):
            before = parameter.detach().clone()
            parameter.grad = torch.randn(walks, generator=generator)
            optimizer.step()
        update = (parameter.detach() - before).numpy()
        tolerance = 5 * math.sqrt(2 / walks)
        assert np.square(update).mean() == pytest.approx(found.noise, rel=tolerance)
        whole = np.square(parameter.detach().numpy()).mean() / steps
        assert whole == pytest.approx(found.gain**2, rel=tolerance + 20 / steps)
        # Not that of independent updates, which the formula of one update would make of it.
        assert abs(whole / found.noise - 1) > 0.5


@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        7,
        [],
        {"name": "Adam", "betas": [0.9, 0.999]},
        {"name": "SGD", "momentum": 1.0},
        {"name": "SGD", "momentum": "0.9"},
        {"name": "SGD", "momentum": 10**400},
        {"name": "PNM", "betas": [0.9]},
        {"name": "PNM"},
        [{"name": "SGD", "momentum": 0.9}, {"name": "SGD", "momentum": 0.8}],
    ],
)
def test_what_is_not_known_is_not_guessed(optimizer):
    assert momentum_of(optimizer) is None


def test_optimizers_that_do_the_same_are_one():
    each = {"name": "SGD", "momentum": 0.5, "lr": 0.1}
    assert momentum_of([each, each | {"lr": 1.0}]).gain == 2.0


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ({"name": "SGD", "lr": 0.1, "momentum": 0.9, "dampening": 0.0}, "10 times as long"),
        ({"name": "PNM", "lr": 0.1, "betas": [0.9, 1.0]}, "5 times that of one moving average"),
        ({"name": "SGD", "lr": 0.1, "momentum": 0.0}, None),
        ({"name": "SGD", "lr": 0.1, "momentum": 0.9, "dampening": 1.0}, None),
        ({"name": "AdamW", "lr": 0.1}, None),
        ([{"name": "SGD", "momentum": 0.8}, {"name": "SGD", "momentum": 0.8}], "5 times as long"),
        ([{"name": "SGD", "momentum": 0.8}, {"name": "Adam"}], None),
    ],
)
def test_noise_scale_reads_it_from_the_trace(optimizer, words, tmp_path):
    rng = np.random.default_rng(0)
    attrs = {"optimizers" if isinstance(optimizer, list) else "optimizer": optimizer}
    with tracelab.create(tmp_path / "a", {"w": (5,)}, attrs=attrs) as writer:
        writer.define("noise", attrs={"batch_size": 4, "replacement": True, "n_data": 100})
        full = rng.standard_normal((20, 5)) + 1
        writer.append("noise", step=0, full=full, mean_full=np.ones(5))
    trace = tracelab.open(tmp_path / "a")
    plan = planning.plan(ANALYSIS, trace, ANALYSIS.resolve({}))
    ((_, outputs, failures),) = engine.stream(plan, trace, engine.Execution())
    assert not failures
    known = momentum_of(optimizer)
    expected = (known.gain, known.update_noise) if known else (np.nan, np.nan)
    found = (outputs["momentum_gain"][0, 0], outputs["update_noise"][0, 0])
    np.testing.assert_array_equal(found, expected)
    result = tracelab.analyze(trace, "noise_scale")["noise_scale"]
    sentence = ANALYSIS.finding(result).sentence
    assert (words in sentence) if words else ("Momentum" not in sentence)
