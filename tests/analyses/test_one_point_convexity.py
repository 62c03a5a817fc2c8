"""Inner products with the way to the target: of quadratics, of projections, of a recorded run."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import together
from statsmodels.stats.proportion import proportion_confint
from torch import nn

import tracelab
from tracelab import engine, planning
from tracelab.sketch import Project
from tracelab.typing import Assumption, Status
from tracelab_analyses.one_point_convexity import ANALYSIS, ASSUMPTIONS, one_point_convexity
from tracelab_collectors import SmoothedGradient
from tracelab_collectors.attach import attach

RATE = 0.2
PARTS = ((0, 3), (3, 5))


def split(values, k=3):
    """Cut five numbers into two parts of up to `k` directions."""
    out = np.zeros((*values.shape[:-1], 2, k))
    for place, (begin, end) in enumerate(PARTS):
        out[..., place, : end - begin] = values[..., begin:end]
    return out


def quadratic(h, rows=4, draws=6, noise=0.3, neighbours=5, seed=0):
    """Rows of a path to the minimum, 0, of w'Hw / 2; the last is at it."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, 5)) * np.linspace(1, 0, rows)[:, None]
    omega = noise * rng.standard_normal((rows, draws, 5))
    omega -= omega.mean(1, keepdims=True)
    g = w @ h
    ahead = (w - RATE * g)[:, None] - RATE * omega
    near = 0.1 * rng.standard_normal((rows, neighbours, 5))
    near_gradient = (w[:, None] + near) @ h
    smoothed = ahead @ h
    return {
        "step": np.arange(rows) * 10,
        "learning_rate": np.full((rows, 2), RATE),
        "member": np.broadcast_to(
            np.array([[1.0, 0], [0, 1], [1, 1]])[:, None], (3, rows, 2)
        ),
        "every_step": np.arange(rows) * 10,
        "numel": np.tile([3, 2], (rows, 1)),
        "every_rate": np.full((rows, 2), RATE),
        "weight": split(w),
        "gradient": split(g),
        "squared_norm": np.square(split(g)).sum(-1),
        "noise_squared_norm": np.square(split(omega)).sum(-1),
        "smoothed": split(smoothed),
        "smoothed_squared_norm": np.square(split(smoothed.mean(1))).sum(-1),
        "neighbour_gradient": split(near_gradient),
        "neighbour_outward": np.sum(split(near_gradient) * split(near), -1),
    }, w  # fmt: skip


def test_of_a_quadratic_c_is_its_curvature():
    """grad f(y - eta omega) = H y - eta H omega: smoothed by centred noise it is plain, at y."""
    h = np.diag([3.0, 3, 3, 0.5, 0.5])
    rows, w = quadratic(h)
    found = one_point_convexity(**rows)
    assert (found["status"] == Status.OK).all()
    y = w - RATE * w @ h
    for name, at in (("", w), ("smoothed_", y)):
        for layer, (begin, end) in enumerate((*PARTS, (0, 5))):
            cut, bent = at[:-1, begin:end], (at @ h)[:-1, begin:end]
            inner, square = np.sum(cut * bent, -1), np.sum(cut**2, -1)
            np.testing.assert_allclose(found[f"{name}inner"][layer, :-1], inner, rtol=1e-12)
            np.testing.assert_allclose(
                found[f"{name}convexity"][layer, :-1], inner / square, rtol=1e-12
            )
            cosine = inner / np.sqrt(square * np.sum(bent**2, -1))
            np.testing.assert_allclose(found[f"{name}cosine"][layer, :-1], cosine, rtol=1e-12)
    # Each layer has one curvature.
    np.testing.assert_allclose(found["convexity"][:2, :-1], [[3.0] * 3, [0.5] * 3])
    # Parts of no more weights than directions are exact: the draws' error is all there is.
    for name in ("inner_se", "cosine_se", "convexity_se"):
        assert (found[name][:, :-1] < 1e-7).all()
    by_draw = np.sum(split(y)[:-1, None] * rows["smoothed"][:-1], axis=-1)
    error = by_draw.std(axis=1, ddof=1) / np.sqrt(6)
    np.testing.assert_allclose(found["smoothed_inner_se"][:2, :-1], error.T, rtol=1e-9)
    # At the target there is nothing to point to.
    assert np.isnan(found["inner"][:, -1]).all()
    assert (found["target_step"] == 30).all()
    assert (found["n_steps"] == 3).all()
    # <-grad f(p), 0 - p> = p'Hp > 0 for every point.
    assert (found["neighbours_positive"][:, :-1] == 1).all()
    assert (found["neighbours_positive_low"][:, :-1] < 1).all()
    # No weight shares a direction: these are Wilson's intervals themselves.
    low = proportion_confint(5, 5, 0.05, method="wilson")[0]
    np.testing.assert_allclose(found["neighbours_positive_low"][:, :-1], low)
    assert set(found) == {variable.name for variable in ANALYSIS.outputs}


def test_a_saddle_is_told_by_the_layer_that_goes_up():
    rows, _ = quadratic(np.diag([3.0, 3, 3, -0.5, -0.5]))
    found = one_point_convexity(**rows)
    np.testing.assert_allclose(found["convexity"][1, :-1], -0.5)
    assert (found["neighbours_positive"][1, :-1] == 0).all()
    checks = found["assumption_holds"]
    assert checks[1, 0] == Assumption.FAILS
    assert np.isnan(found["bound"]).all()


def test_the_bound_by_hand_and_its_conditions():
    rows, _ = quadratic(np.diag([1.0] * 5), noise=1e-3)
    top = np.array([[1.0, 0.5], [1.0, 0.7]])
    found = one_point_convexity(**rows, eigenvalue=top)
    low = found["convexity_min_low"][2]
    assert low == pytest.approx(1, rel=0.01)
    assert low < found["convexity_min"][2]
    radius = np.sqrt(rows["noise_squared_norm"][:-1].sum(-1).max())
    assert found["noise_radius"][2] == pytest.approx(radius, rel=1e-12)
    b = (RATE * radius * (1 + RATE)) ** 2
    exact = np.sqrt(20 * b / (2 * RATE * low - RATE**2))
    assert found["bound"][2] == pytest.approx(exact, rel=1e-12)
    assert found["assumption_holds"][2].tolist() == [1, 1, 1, 1, 0]
    # The curvature is that of all layers: of one there is no bound.
    assert np.isnan(found["bound"][:2]).all()
    # 1/2L = .2, and what is not known is not assumed.
    for eigenvalue, place in ((top * 2.5, 1), (top * 2.3, 2)):
        worse = one_point_convexity(**rows, eigenvalue=eigenvalue)
        assert worse["assumption_holds"][2, place] == Assumption.FAILS
        assert np.isnan(worse["bound"]).all()
    for eigenvalue in (None, top * np.nan):
        unknown = one_point_convexity(**rows, eigenvalue=eigenvalue)
        assert unknown["assumption_holds"][2].tolist() == [1, 0, 0, 1, 0]
        assert np.isnan(unknown["bound"]).all()
    assert len(ASSUMPTIONS) == found["assumption_holds"].shape[1]


def test_sgd_stays_within_the_bound():
    """Bounded noise on a quadratic: more than half of the runs, as the theorem has it."""
    rng = np.random.default_rng(0)
    rows, _ = quadratic(np.diag([1.0] * 5), noise=1e-3)
    found = one_point_convexity(**rows, eigenvalue=np.ones((1, 1)))
    w, radius = np.ones((400, 5)), float(found["noise_radius"][2])
    for _ in range(200):
        omega = rng.standard_normal((400, 5))
        omega *= radius / np.linalg.norm(omega, axis=1, keepdims=True)
        w = w - RATE * (w + omega)
    assert np.mean(np.linalg.norm(w, axis=1) <= found["bound"][2]) > 0.5


def test_errors_of_projections_are_as_large_as_said():
    """Over seeds, of two layers of 900 and 100 weights in 64 directions.

    A standard deviation of n seeds is known to 1 / sqrt(2 n) of it for normal errors, and these
    sums of many products nearly are.
    """
    rng = np.random.default_rng(0)
    numel, k, seeds = (900, 100), 64, 400
    way = rng.standard_normal(1000)
    gradient = -0.6 * way + rng.standard_normal(1000)
    edges = ((0, 900), (900, 1000))
    estimates, said = [], []
    for seed in range(seeds):
        sketch = Project(k, seed)
        kept = np.array(
            [
                [sketch.project(each[begin:end], begin) for begin, end in edges]
                for each in (np.zeros(1000), way, gradient)
            ]
        )
        squares = np.array([[np.sum(gradient[begin:end] ** 2) for begin, end in edges]] * 2)
        found = one_point_convexity(
            step=np.array([0, 1]),
            learning_rate=np.zeros((2, 2)),
            member=np.ones((1, 2, 2)),
            every_step=np.array([0, 1]),
            numel=np.array([numel] * 2),
            every_rate=np.zeros((2, 2)),
            weight=kept[:2],
            gradient=np.stack([kept[2]] * 2),
            squared_norm=squares,
            noise_squared_norm=np.zeros((2, 2, 2)),
            smoothed=np.stack([np.stack([kept[2]] * 2)] * 2),
            smoothed_squared_norm=squares,
        )
        names = ("inner", "cosine", "convexity")
        estimates.append([found[name][0, 0] for name in names])
        said.append([found[f"{name}_se"][0, 0] for name in names])
        for name in names:
            assert found[f"smoothed_{name}"][0, 0] == pytest.approx(found[name][0, 0], rel=1e-9)
            assert found[f"smoothed_{name}_se"][0, 0] == pytest.approx(
                found[f"{name}_se"][0, 0], rel=1e-9
            )
    estimates, said = np.array(estimates), np.array(said)
    spread, typical = estimates.std(axis=0, ddof=1), np.sqrt(np.mean(said**2, axis=0))
    # And a tenth for the terms of higher order: 1/sqrt(k) is an eighth.
    tolerance = 4 / np.sqrt(2 * seeds) + 0.1
    np.testing.assert_allclose(spread, typical, rtol=tolerance)
    exact = -gradient @ way
    assert abs(estimates[:, 0].mean() - exact) < 4 * spread[0] / np.sqrt(seeds)


def test_the_lower_end_of_c_holds_with_few_draws():
    """A thousand layers of one step, gradient w and normal noise: c is 1, Student's is exact."""
    rng = np.random.default_rng(0)
    trials, draws, level = 1000, 3, 0.9
    w = np.stack([rng.standard_normal((trials, 5)), np.zeros((trials, 5))])
    smoothed = w[:, None] + rng.standard_normal((2, draws, trials, 5))
    ones = np.ones((2, trials))
    found = one_point_convexity(
        step=np.array([0, 1]),
        learning_rate=0 * ones,
        member=np.repeat(np.eye(trials)[:, None], 2, axis=1),
        every_step=np.array([0, 1]),
        numel=5 * ones,
        every_rate=0 * ones,
        weight=w,
        gradient=w,
        squared_norm=np.square(w).sum(-1),
        noise_squared_norm=np.ones((2, draws, trials)),
        smoothed=smoothed,
        smoothed_squared_norm=np.square(smoothed.mean(1)).sum(-1),
        confidence=level,
    )
    above = np.mean(found["convexity_min_low"] > 1)
    tail = (1 - level) / 2
    assert abs(above - tail) < 4 * np.sqrt(tail * (1 - tail) / trials)


def test_a_double_well_by_hand():
    """f(w) = sum w^4 / 4 - w^2 / 2 from w to the minimum at 1: c = w (w + 1).

    Smoothed by noise of +-s: E f'(y + eta s) = y^3 + 3 y eta^2 s^2 - y.
    """
    path, s = np.array([-0.9, -0.4, 0.3, 1.6, 1.0]), 0.7

    def slope(w):
        return w**3 - w

    w = np.repeat(path[:, None], 5, axis=1)
    omega = np.stack([np.full_like(w, s), np.full_like(w, -s)], axis=1)
    y = w - RATE * slope(w)
    smoothed = slope(y[:, None] - RATE * omega)
    rows, _ = quadratic(np.eye(5), rows=5, draws=2)
    rows |= {
        "weight": split(w),
        "gradient": split(slope(w)),
        "squared_norm": np.square(split(slope(w))).sum(-1),
        "noise_squared_norm": np.square(split(omega)).sum(-1),
        "smoothed": split(smoothed),
        "smoothed_squared_norm": np.square(split(smoothed.mean(1))).sum(-1),
    }
    found = one_point_convexity(**rows)
    w, y = path[:-1], y[:-1, 0]
    exact = -(y**3 + 3 * y * (RATE * s) ** 2 - y) / (1 - y)
    for layer, numel in enumerate((3, 2, 5)):
        np.testing.assert_allclose(found["convexity"][layer, :-1], w * (w + 1), rtol=1e-12)
        np.testing.assert_allclose(found["smoothed_convexity"][layer, :-1], exact, rtol=1e-12)
        distance = np.sqrt(numel) * np.abs(1 - w)
        np.testing.assert_allclose(found["distance"][layer, :-1], distance, rtol=1e-12)
    assert (found["convexity"][:, :2] < 0).all()
    np.testing.assert_allclose(found["convexity_min"], exact.min(), rtol=1e-12)
    # Two draws cannot tell that it is below 0 for sure.
    assert (found["assumption_holds"][:, 0] != Assumption.HOLDS).all()


def test_a_run_that_stands_at_its_end_has_numbers_of_the_way_there():
    """As with a rate that falls to 0: the last weights twice, and what was before as without."""
    rows, _ = quadratic(np.eye(5), rows=4)
    given = {name: np.copy(value) for name, value in rows.items()}
    given["weight"][2] = given["weight"][3]
    given["every_rate"][2] = given["learning_rate"][2] = 0.0
    found = one_point_convexity(**given)
    assert (found["status"] == Status.OK).all()
    assert (found["distance"][:, 2] == 0).all()
    for name in ("inner", "convexity", "smoothed_inner", "smoothed_convexity", "draws_positive"):
        assert np.isnan(found[name][:, 2]).all(), name
    np.testing.assert_array_equal(
        found["convexity_min"], found["smoothed_convexity"][:, :2].min(axis=1)
    )
    assert (found["assumption_holds"][:, 0] == Assumption.HOLDS).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_point_nearby_without_a_gradient_is_not_one_that_points_away(value):
    rows, _ = quadratic(np.eye(5))
    plain = one_point_convexity(**rows)
    rows["neighbour_gradient"][1, 2, 0, 0] = rows["neighbour_outward"][1, 2, 0] = value
    found = one_point_convexity(**rows)
    for end in ("", "_low", "_high"):
        share = plain[f"neighbours_positive{end}"].copy()
        # The second layer has the other part alone.
        share[[0, 2], 1] = np.nan
        np.testing.assert_array_equal(found[f"neighbours_positive{end}"], share)
    assert (found["status"] == Status.OK).all()


def test_shares_know_what_projections_leave_open():
    """Of 60 draws, all of one side of 0 by a tenth of their norm, 2000 weights in 64 directions.

    By the sketch all are of one side or the other, and Wilson's interval alone would be sure.
    """
    rng = np.random.default_rng(0)
    n, k, draws, inside, alone, trials = 2000, 64, 60, 0, 0, 200
    way, side = rng.standard_normal((2, n))
    for seed in range(trials):
        gradients = -(0.1 * way + side + 0.02 * rng.standard_normal((draws, n)))
        kept = [Project(k, seed).project(each, 0) for each in (0 * way, way, gradients)]
        pair = [np.stack([each] * 2)[..., None, :] for each in (kept[2][0], kept[2])]
        ones = np.ones((2, 1))
        found = one_point_convexity(
            step=np.array([0, 1]), learning_rate=0 * ones, member=np.ones((1, 2, 1)),
            every_step=np.array([0, 1]), numel=n * ones, every_rate=0 * ones,
            weight=np.stack(kept[:2])[:, None], gradient=pair[0],
            squared_norm=float(n) * ones, noise_squared_norm=np.ones((2, draws, 1)),
            smoothed=pair[1], smoothed_squared_norm=float(n) * ones,
        )  # fmt: skip
        exact = np.mean(-gradients @ way > 0)
        low, high = (found[f"draws_positive_{end}"][0, 0] for end in ("low", "high"))
        inside += low <= exact <= high + 1e-12
        count = round(draws * float(found["draws_positive"][0, 0]))
        low, high = proportion_confint(count, draws, 0.05, method="wilson")
        alone += low <= exact <= high + 1e-12
    # Fewer than 91 % of 200 at a level of 95 % has a probability of 1 %.
    assert inside > 0.91 * trials
    assert alone < 0.9 * trials


def test_an_earlier_target_and_fewer_steps():
    rows, w = quadratic(np.diag([1.0] * 5))
    found = one_point_convexity(**rows, target=25)
    assert (found["target_step"] == 20).all()
    assert (found["n_steps"] == 2).all()
    inner = np.sum(-w[:2] * (w[2] - w[:2]), -1)
    np.testing.assert_allclose(found["inner"][2, :2], inner, rtol=1e-12)
    assert np.isnan(found["inner"][:, 2:]).all()
    fewer = rows | {"step": rows["step"][1:2], "learning_rate": rows["learning_rate"][1:2]}
    one, whole = one_point_convexity(**fewer), one_point_convexity(**rows)
    for variable in ANALYSIS.outputs:
        value = whole[variable.name]
        if "step" in variable.dims:
            value = value[:, 1:2]
        np.testing.assert_array_equal(one[variable.name], value)


def test_statuses():
    rows, _ = quadratic(np.eye(5))
    for changed, status in (
        ({"target": 1}, Status.TOO_FEW_SAMPLES),
        ({"smoothed": rows["smoothed"][:, :1]}, Status.TOO_FEW_SAMPLES),
        ({"weight": np.ones_like(rows["weight"])}, Status.CONSTANT_INPUT),
        ({"gradient": np.zeros_like(rows["gradient"])}, Status.CONSTANT_INPUT),
        ({"squared_norm": np.full((4, 2), np.inf)}, Status.NON_FINITE_INPUT),
        ({"every_rate": np.full((4, 2), np.nan)}, Status.NON_FINITE_INPUT),
    ):
        found = one_point_convexity(**(rows | changed))
        assert (found["status"] == status).all()
        assert np.isnan(found["inner"]).all()
    bad = rows["gradient"].copy()
    bad[0, 1, 0] = np.inf
    found = one_point_convexity(**(rows | {"gradient": bad}))
    # What is not finite in one layer is so in the network, and not in the other layer.
    assert found["status"].tolist() == [0, Status.NON_FINITE_INPUT, Status.NON_FINITE_INPUT]
    assert np.isfinite(found["inner"][0, :-1]).all()
    assert np.isnan(found["inner"][1:]).all()


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.01, 100), stretch=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_units_of_loss_and_weights(scale, stretch, seed):
    """A loss s times as large in weights t times as long: c goes as s / t^2, cosines stay."""
    h = np.diag([1.0, 2, 3, 4, 5])
    rows, _ = quadratic(h, seed=seed)
    changed = dict(rows)
    for name in ("learning_rate", "every_rate"):
        changed[name] = rows[name] * stretch**2 / scale
    changed["weight"] = rows["weight"] * stretch
    for name in ("gradient", "smoothed", "neighbour_gradient"):
        changed[name] = rows[name] * scale / stretch
    for name in ("squared_norm", "smoothed_squared_norm", "noise_squared_norm"):
        changed[name] = rows[name] * (scale / stretch) ** 2
    changed["neighbour_outward"] = rows["neighbour_outward"] * scale
    before, after = one_point_convexity(**rows), one_point_convexity(**changed)
    for name in ("", "smoothed_"):
        for what, factor in (("inner", scale), ("convexity", scale / stretch**2), ("cosine", 1)):
            np.testing.assert_allclose(after[name + what], before[name + what] * factor, rtol=1e-9)
    np.testing.assert_array_equal(after["draws_positive"], before["draws_positive"])


def test_from_a_run(tmp_path):
    """Every product against the weights and gradients that autograd gives on the way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x = torch.randn(32, 4, dtype=torch.float64)
    y = (x[:, 0] > x[:, 1]).long()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    collector = SmoothedGradient(every=3, draws=4, batch_size=8, neighbours=10, radius=0.1)
    weights, gradients = [], []
    with attach(
        net, optimizer, tmp_path / "t.zarr", collectors=[collector], loss=loss,
        data=torch.utils.data.TensorDataset(x, y),
    ):  # fmt: skip
        for _ in range(9):
            optimizer.zero_grad()
            loss(net, (x, y)).backward()
            weights.append([p.detach().clone().flatten() for p in net.parameters()])
            gradients.append([p.grad.clone().flatten() for p in net.parameters()])
            optimizer.step()
    last = [p.detach().clone().flatten() for p in net.parameters()]
    trace = tracelab.open(tmp_path / "t.zarr")
    plan = planning.plan(ANALYSIS, trace, ANALYSIS.resolve({}))
    result, failures = together(plan, engine.stream(plan, trace, engine.Execution()))
    assert failures == ()
    assert (result["status"] == Status.OK).all()
    assert result["step"].values.tolist() == [0, 3, 6, 9]
    assert result["layer"].values[-1] == "network"
    for place, step in enumerate((0, 3, 6)):
        products = [
            -float(g @ (end - w))
            for g, end, w in zip(gradients[step], last, weights[step], strict=True)
        ]
        inner = result["inner"].isel(step=place).values
        # Stored as float32.
        np.testing.assert_allclose(inner[:-1], products, rtol=1e-4, atol=1e-7)
        assert inner[-1] == pytest.approx(sum(products), rel=1e-5)
        square = sum(
            float((end - w) @ (end - w)) for end, w in zip(last, weights[step], strict=True)
        )
        assert float(result["distance"][-1, place]) == pytest.approx(np.sqrt(square), rel=1e-5)
    said = ANALYSIS.finding(result)
    assert "points to the weights of step 9 at 3 of 3 recorded steps" in said.sentence
    assert any("hindsight" in each for each in said.warnings)
    assert any("L is not known" in each for each in said.warnings)
