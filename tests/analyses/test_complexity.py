"""Measures of complexity from known rows, and from a network that is recorded."""

import numpy as np
import pytest
import torch
import xarray as xr
from plans import together
from torch import nn

import tracelab
from tracelab import engine, planning
from tracelab.typing import Status
from tracelab_analyses.complexity import ANALYSIS, complexity
from tracelab_collectors import Complexity, Statistics
from tracelab_collectors.attach import attach


def inputs(margin=None, **changed):
    """Two rows of two layers: a matrix and a vector."""
    rng = np.random.default_rng(0)
    given = {
        "step": np.array([0, 4]),
        "norm": np.array([[2.0, 0.5], [3.0, 1.0]]),
        "distance": np.array([[0.0, 0.0], [5.0, 2.0]]),
        "log_spectral_norm": np.log([[1.5, 1.0], [2.0, 1.0]]),
        "log_norm": np.log([[2.0, 1.0], [3.0, 1.0]]),
        "stable_rank": np.array([[16 / 9, 0.0], [2.25, 0.0]]),
        "margin": np.array([np.arange(1.0, 102)] * 2) if margin is None else margin,
        "input_gradient_norm": np.array([[1.0, 2, 6]] * 2),
        "class_changes": np.array([[0.0, 1, 2, 5]] * 2),
        "unit_changes": np.array([[3.0] * 4] * 2),
        "slope": rng.random((2, 4)),
        "path_norm": np.array([7.0, 8.0]),
        "past_step": np.array([0, 2, 4, 9]),
        "past_distance": np.array([[0.0, 3, 1, 100], [0.0, 1, 2, 3]]),
    }
    return given | changed


def test_numbers_by_hand():
    given = inputs()
    found = {name: value[1] for name, value in complexity(**given).items()}
    assert (found["status"] == Status.OK).all()
    # Margins 1, ..., 101: the tenth percentile is 11, the median 51.
    assert (found["margin_tenth"] == 11).all()
    assert (found["margin_median"] == 51).all()
    assert (found["margin"] == 51).all()
    error = np.std(np.arange(101), ddof=1) / np.sqrt(101)
    np.testing.assert_allclose(found["margin_se"], error)
    np.testing.assert_allclose(found["log_spectral_ratio"], np.log([4 / 121, 1 / 121]))
    np.testing.assert_allclose(found["log_stable_ratio"][0], np.log(9 / 121))
    np.testing.assert_allclose(found["log_norm_ratio"], np.log([9 / 121, 1 / 121]))
    np.testing.assert_allclose(found["log_path_ratio"], np.log(8 / 121))
    assert (found["lipschitz"] == 3).all()
    assert (found["lipschitz_median"] == 2).all()
    assert (found["lipschitz_max"] == 6).all()
    np.testing.assert_allclose(found["class_changes_se"], np.std([0, 1, 2, 5], ddof=1) / 2)
    assert (found["unit_changes_se"] == 0).all()
    assert (found["steepest"] == given["slope"][1].max()).all()
    assert (found["n_examples"] == 101).all()
    assert (found["n_pairs"] == 4).all()
    assert set(found) == {variable.name for variable in ANALYSIS.outputs}


def test_a_path_is_what_was_recorded_of_it():
    alone = complexity(**inputs())
    # Without updates: the variation of the distance, 3 + 2 and 1 + 1; the last row is to come.
    assert alone["path_length"][1].tolist() == [5, 2]
    assert alone["path_complete"].tolist() == [[True, True], [False, False]]
    assert alone["path_length"][0].tolist() == [0, 0]
    norms = np.array([[1.0, 2, 3, 4, 50], [1.0, np.nan, 0.25, 0.25, 50]])
    every = complexity(**inputs(), update_step=np.arange(5.0), update_norm=norms)
    # All four of the first layer; of the second one is lacking and the rest is less than the bound.
    assert every["path_length"][1].tolist() == [10, 2]
    assert every["path_complete"][1].tolist() == [True, False]
    some = complexity(**inputs(), update_step=np.array([1.0, 3]), update_norm=norms[:, 3:] * 2)
    # A bound by two updates of 8, 100 and .5, 100.
    assert some["path_length"][1].tolist() == [108, 100.5]
    assert not some["path_complete"][1].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["margin_tenth", "margin_median"])
def test_intervals_of_quantiles_cover_at_their_level(name):
    """Order statistics: whatever the law; at least the level, by binomial steps not much more."""
    rng = np.random.default_rng(0)
    trials, count, level = 2000, 101, 0.9
    share = {"margin_tenth": 0.1, "margin_median": 0.5}[name]
    truth = -np.log(1 - share)
    drawn = rng.exponential(1.0, (trials, count))
    given = inputs(margin=drawn)
    given |= {"step": np.zeros(trials, int), "path_norm": np.ones(trials)}
    for each in ("norm", "distance", "log_spectral_norm", "log_norm", "stable_rank"):
        given[each] = np.ones((trials, 1))
    for each in ("input_gradient_norm", "class_changes", "unit_changes", "slope"):
        given[each] = np.ones((trials, 4))
    given["past_distance"] = given["past_distance"][:1]
    found = complexity(**given, confidence=level)
    low, high = (found[f"{name}_{end}"][:, 0] for end in ("low", "high"))
    inside = np.mean((low <= truth) & (truth <= high))
    # Coverage is exact for these ranks; one step of the binomial on either side is its excess.
    steps = 2 / np.sqrt(2 * np.pi * count * share * (1 - share))
    noise = 4 * np.sqrt(level * (1 - level) / trials)
    assert level - noise <= inside <= level + steps + noise


def test_a_pair_of_equal_inputs_hides_no_other_slope():
    slope = np.array([[1.0, np.nan, 3, 2], [np.nan] * 4])
    found = complexity(**inputs(slope=slope))
    assert (found["steepest"][0] == 3).all()
    assert np.isnan(found["steepest"][1]).all()


def test_ratios_need_a_margin():
    found = complexity(**inputs(margin=np.array([np.linspace(-1, 1, 50)] * 2)))
    for name in ANALYSIS.outputs:
        if name.name.endswith("_ratio"):
            assert np.isnan(found[name.name]).all()
    assert (found["status"] == Status.OK).all()


def test_statuses():
    for margin, status in (
        (np.ones((2, 50)), Status.CONSTANT_INPUT),
        (np.ones((2, 9)), Status.TOO_FEW_SAMPLES),
        (np.full((2, 50), np.inf), Status.NON_FINITE_INPUT),
    ):
        found = complexity(**inputs(margin=margin))
        assert (found["status"] == status).all()
        assert np.isnan(found["norm"]).all()
    given = inputs()
    given["norm"][1, 0] = np.nan
    found = complexity(**given)
    assert found["status"].tolist() == [[0, 0], [Status.NON_FINITE_INPUT, 0]]
    assert np.isnan(found["margin"]).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("name", ["distance", "log_spectral_norm", "log_norm", "stable_rank"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_measured_of_a_layer_and_is_not_finite_is_not_ok(name, value):
    given = inputs()
    given[name][1, 0] = value
    found = complexity(**given)
    assert found["status"].tolist() == [[0, 0], [Status.NON_FINITE_INPUT, 0]]
    assert np.isnan(found["norm"][1, 0])


@pytest.mark.parametrize(
    "name", ["input_gradient_norm", "class_changes", "unit_changes", "path_norm"]
)
def test_what_is_measured_of_the_function_and_is_not_finite_is_not_ok(name):
    given = inputs()
    given[name].reshape(2, -1)[1, 0] = np.inf
    assert complexity(**given)["status"].tolist() == [[0, 0], [Status.NON_FINITE_INPUT] * 2]
    # What the network does not have, such as gradients by words, is NaN for all.
    given[name][:] = np.nan
    found = complexity(**given)
    assert (found["status"] == Status.OK).all()
    assert np.isfinite(found["norm"]).all()


def test_a_matrix_of_zeros():
    """The product is 0, and its logarithm -inf; there is no rank to take a logarithm of."""
    given = inputs()
    for name, value in (
        ("norm", 0.0), ("log_spectral_norm", -np.inf), ("log_norm", -np.inf), ("stable_rank", 0.0)
    ):  # fmt: skip
        given[name][1, 0] = value
    found = {name: value[1] for name, value in complexity(**given).items()}
    assert (found["status"] == Status.OK).all()
    for name in ("log_spectral_product", "log_spectral_ratio", "log_norm_ratio"):
        assert found[name][0] == -np.inf
        assert np.isfinite(found[name][1])
    # A vector has no rank either.
    assert np.isnan(found["log_stable_ratio"]).all()


def test_a_path_goes_on_behind_a_row_that_is_not_finite():
    given = inputs()
    given["past_distance"][0, 1] = np.nan
    found = complexity(**given)
    # From 0 to 1 at the last row is 1, whatever was between; of the second layer as before.
    assert found["path_length"][1].tolist() == [1, 2]
    given["past_distance"][0, 0] = np.inf
    assert complexity(**given)["path_length"][1].tolist() == [1, 2]


@pytest.fixture
def recorded(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(64, 4, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collectors = [
        Complexity(every=5, examples=None, pairs=8, points=16),
        Statistics(quantities=("update",)),
    ]
    weights = []
    with attach(
        net, optimizer, tmp_path / "t.zarr", collectors=collectors,
        data=torch.utils.data.TensorDataset(x, y),
    ):  # fmt: skip
        for _ in range(10):
            weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    return tracelab.open(tmp_path / "t.zarr"), torch.stack(weights), net, x, y


def analysed(trace) -> xr.Dataset:
    plan = planning.plan(ANALYSIS, trace, ANALYSIS.resolve({}))
    result, failures = together(plan, engine.stream(plan, trace, engine.Execution()))
    assert failures == ()
    return result


def test_from_a_run(recorded):
    trace, weights, net, x, y = recorded
    result = analysed(trace)
    assert result["step"].values.tolist() == [0, 5, 10]
    whole = result.sel(layer="network")
    path = weights.diff(dim=0).norm(dim=1).numpy()
    for place, step in enumerate((0, 5, 10)):
        row = whole.isel(step=place)
        assert bool(row["path_complete"])
        # Norms of updates are stored as float32.
        assert float(row["path_length"]) == pytest.approx(path[:step].sum(), rel=1e-6, abs=1e-9)
        exact = float((weights[step] - weights[0]).norm())
        assert float(row["distance"]) == pytest.approx(exact, rel=1e-6, abs=1e-9)
        assert float(row["norm"]) == pytest.approx(float(weights[step].norm()), rel=1e-9)
    last = whole.isel(step=-1)
    sigmas = [np.linalg.norm(net[place].weight.detach().numpy(), 2) for place in (0, 2)]
    assert float(last["log_spectral_product"]) == pytest.approx(np.log(sigmas).sum(), rel=1e-9)
    scores = net(x).detach().numpy()
    margin = scores[np.arange(64), y] - scores[np.arange(64), 1 - y.numpy()]
    assert float(last["margin"]) == pytest.approx(margin.mean(), rel=1e-9)
    said = ANALYSIS.finding(result)
    assert "at step 0 norm" in said.sentence
    assert "at step 10 norm" in said.sentence
    assert "at least" not in said.sentence
    assert any("classified wrongly" in each for each in said.warnings)


def test_a_finding_says_what_is_only_a_bound():
    rows = complexity(**inputs())
    result = xr.Dataset(
        {name: (("step", "layer"), value) for name, value in rows.items()},
        {"step": [0, 4], "layer": ["a", "network"]},
    )
    said = ANALYSIS.finding(result)
    assert "on a path of at least 2" in said.sentence
    assert any("lower bounds, by recorded updates" in each for each in said.warnings)
    nothing = result.assign(status=result["status"] + 2)
    assert ANALYSIS.finding(nothing).sentence.startswith("No step")
