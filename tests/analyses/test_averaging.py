"""Average against last weights: numbers by hand, coverage, and a run that is averaged."""

import numpy as np
import pytest
import torch
from plans import together
from torch import nn

import tracelab
from tracelab import engine, planning
from tracelab.typing import Status
from tracelab_analyses.averaging import ANALYSIS, averaging
from tracelab_collectors import Weights, measure_averages
from tracelab_collectors.attach import attach

LINE = np.array([-0.5, 0.0, 0.5, 1.0, 1.5])


def inputs(draws=8, windows=2, **changed):
    """One step, two layers; the last window is not used where there are three."""
    rng = np.random.default_rng(0)
    penalty = np.array([2.0, 1.0])[:, None] * (1 + 0.1 * rng.standard_normal(draws))
    slope = rng.standard_normal((2, draws))
    loss = np.array([0.5, 0.3])
    moved = loss[:, None] + penalty
    moved = np.stack([moved - slope, moved + slope], -1)
    given = {
        "distance": np.array([[[3.0] * windows, [4.0] * windows]]),
        "spread": np.array([[[6.0] * windows, [2.0] * windows]]),
        "window_start": np.array([[10.0] * windows]),
        "n_iterates": np.array([[7.0] * windows]),
        "learning_rate": np.array([0.1]),
        "set_loss": np.tile(loss, (1, windows, 2, 1)),
        "loss_difference": np.tile([-0.2, 0.1], (1, windows, 1)),
        "loss_difference_se": np.tile([0.05, 0.05], (1, windows, 1)),
        "loss_units": np.tile([8.0, 3.0], (1, windows, 1)),
        "error_difference": np.tile([0.02, 0.1], (1, windows, 1)),
        "error_difference_se": np.tile([0.05, 0.01], (1, windows, 1)),
        "error_units": np.tile([3.0, 8.0], (1, windows, 1)),
        "moved_loss": np.tile(moved, (1, windows, 1, 1, 1)),
        "position": LINE[None],
        "line_loss": np.tile([1.0, 0.5, 0.8, 0.3, 0.25], (1, windows, 1)),
    }
    return given | changed, penalty, moved


def test_numbers_by_hand():
    given, penalty, moved = inputs()
    found = {name: value[0] for name, value in averaging(**given).items()}
    assert (found["status"] == Status.OK).all()
    assert found["relative_distance"].tolist() == [[0.5] * 2, [2.0] * 2]
    # Student's, 7 and 2 degrees of freedom.
    t7, t2 = 2.3646242515927844, 4.302652729911275
    for layer in range(2):
        row = {
            name: value[layer, 0]
            for name, value in found.items()
            if name not in ("status", "n_draws")
        }
        np.testing.assert_allclose(row["loss_difference_low"], [-0.2 - t7 * 0.05, 0.1 - t2 * 0.05])
        np.testing.assert_allclose(
            row["error_difference_high"], [0.02 + t2 * 0.05, 0.1 + t7 * 0.01]
        )
        for point, place in enumerate(("last", "average")):
            assert row[f"penalty_{place}"] == pytest.approx(penalty[point].mean(), rel=1e-12)
            assert row[f"smoothed_{place}"] == pytest.approx(moved[point, :, 0].mean(), rel=1e-12)
            exact = 2 * penalty[point].mean() / 0.01
            assert row[f"sharpness_{place}"] == pytest.approx(exact, rel=1e-12)
        difference = penalty[1] - penalty[0]
        assert row["penalty_difference"] == pytest.approx(difference.mean(), rel=1e-12)
        half = t7 * difference.std(ddof=1) / np.sqrt(8)
        assert row["penalty_difference_high"] == pytest.approx(difference.mean() + half, rel=1e-9)
        assert row["flatter"] == row["lower"] == 1
        # .8 between ends of .5 and .3.
        assert row["barrier"] == pytest.approx(0.3)
        assert row["lowest_at"] == 1.5
    assert set(found) == {variable.name for variable in ANALYSIS.outputs}


def test_verdicts_take_intervals_that_leave_out_zero():
    for difference, lower in ((0.2, 2), (0.05, 0), (-0.05, 0), (-0.2, 1)):
        given, *_ = inputs(loss_difference=np.full((1, 2, 2), difference))
        assert (averaging(**given)["lower"] == lower).all()
    given, *_ = inputs()
    given["moved_loss"] = given["moved_loss"][:, :, ::-1]
    given["set_loss"] = given["set_loss"][..., ::-1]
    assert (averaging(**given)["flatter"] == 2).all()


def test_paired_intervals_cover_at_their_level():
    """Draws whose noise is common to both points: of normal differences Student's is exact."""
    rng = np.random.default_rng(0)
    trials, draws, level = 2000, 6, 0.9
    common = 5 * rng.standard_normal((trials, 1, draws))
    own = rng.standard_normal((trials, 2, draws)) + np.array([1.0, 0.0])[:, None]
    moved = (common + own)[:, None, ..., None].repeat(2, -1)
    given, *_ = inputs(windows=1, draws=draws)
    many = {name: np.repeat(value, trials, axis=0) for name, value in given.items()}
    many |= {"moved_loss": moved, "set_loss": np.zeros((trials, 1, 2, 2))}
    found = averaging(**many, confidence=level)
    for name in ("smoothed", "penalty"):
        low, high = (found[f"{name}_difference_{end}"][:, 0, 0] for end in ("low", "high"))
        inside = np.mean((low <= -1) & (high >= -1))
        assert inside == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / trials))
        # Pairs take out what is common: a width of normal differences, not of the losses.
        assert np.median(high - low) < 4


def test_a_window_that_is_not_there():
    given, *_ = inputs(windows=3)
    for name, value in given.items():
        if name not in ("learning_rate", "position", "distance", "spread"):
            value[:, 2] = np.nan
        elif name in ("distance", "spread"):
            value[..., 2] = np.nan
    found, two = averaging(**given), averaging(**inputs()[0])
    assert (found["status"] == Status.OK).all()
    for variable in ANALYSIS.outputs:
        value = found[variable.name]
        if "window" in variable.dims:
            if value.dtype.kind == "f":
                assert np.isnan(value[:, :, 2]).all()
            value = value[:, :, :2]
        np.testing.assert_array_equal(value, two[variable.name])


def test_distances_alone():
    names = ("set_loss", "loss_difference", "loss_difference_se", "loss_units",
             "error_difference", "error_difference_se", "error_units", "moved_loss",
             "line_loss")  # fmt: skip
    given, *_ = inputs()
    found = averaging(**given | {name: given[name] * np.nan for name in names})
    assert (found["status"] == Status.OK).all()
    assert (found["n_draws"] == 0).all()
    assert found["distance"][0, 1].tolist() == [4, 4]
    assert np.isnan(found["loss_difference"]).all()
    assert (found["flatter"] == 0).all()


def test_statuses():
    given, *_ = inputs()
    for changed, status in (
        ({"n_iterates": np.ones((1, 2))}, Status.TOO_FEW_SAMPLES),
        ({"moved_loss": given["moved_loss"][..., :4, :]}, Status.TOO_FEW_SAMPLES),
        ({"spread": np.zeros((1, 2, 2))}, Status.CONSTANT_INPUT),
        ({"line_loss": given["line_loss"] * np.inf}, Status.NON_FINITE_INPUT),
        ({"distance": given["distance"] * np.nan}, Status.NON_FINITE_INPUT),
        ({"window_start": given["window_start"] * np.nan}, Status.NON_FINITE_INPUT),
    ):
        found = averaging(**given | changed)
        assert (found["status"] == status).all()
        assert np.isnan(found["distance"]).all()
        assert np.isnan(found["penalty_difference"]).all()


def test_one_value_of_all_data_has_no_interval():
    given, *_ = inputs(loss_units=np.ones((1, 2, 2)))
    given["loss_difference_se"] = given["loss_difference_se"] * np.nan
    found = averaging(**given)
    assert np.isnan(found["loss_difference_low"]).all()
    assert (found["lower"] == 0).all()
    assert (found["loss_difference"][0, 0] == [-0.2, 0.1]).all()


def analysed(path):
    trace = tracelab.open(path)
    plan = planning.plan(ANALYSIS, trace, ANALYSIS.resolve({}))
    result, failures = together(plan, engine.stream(plan, trace, engine.Execution()))
    assert failures == ()
    return result


def test_from_a_run(tmp_path):
    """Least squares at a large rate: the average is lower than the last weights, by a lot."""
    torch.manual_seed(0)
    x = torch.randn(200, 10, dtype=torch.float64)
    y = x @ torch.randn(10, 1, dtype=torch.float64) + torch.randn(200, 1, dtype=torch.float64)
    net = nn.Linear(10, 1).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)

    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square()[:, 0]

    path, out = tmp_path / "run.zarr", tmp_path / "averages.zarr"
    with attach(net, optimizer, path, collectors=[Weights(every=2, sketch=tracelab.Full())]):
        for _ in range(400):
            rows = torch.randint(200, (4,))
            optimizer.zero_grad()
            loss(net, (x[rows], y[rows])).mean().backward()
            optimizer.step()
    data = torch.utils.data.TensorDataset(x, y)
    measure_averages(path, out, net, loss=loss, data=data, windows=[0.5, (100, 200)], draws=20,
                     batch_size=4)  # fmt: skip
    result = analysed(out)
    assert result["step"].values.tolist() == [200, 400]
    row = result.sel(step=400, layer="network").isel(window=0)
    assert int(row["lower"]) == int(row["smoother"]) == 1
    design = np.column_stack([x.numpy(), np.ones(200)])
    residuals = y.numpy() - design @ np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    least = 0.5 * np.mean(residuals**2)
    f_last = float(loss(net, (x, y)).mean().detach())
    f_average = f_last + float(row["loss_difference"][0])
    # Iterates forget in about 1 / rate = 5 steps, so that 100 rows 2 steps apart are worth 40 or
    # so: the average keeps a few hundredths of the excess, of which the last has a chi-square of
    # 11 degrees of freedom, at less than a third of its mean in one of a hundred runs.
    assert f_average - least < 0.3 * (f_last - least)
    # A quadratic has one Hessian everywhere, and on a line no barrier.
    assert float(row["barrier"]) <= 1e-12
    said = ANALYSIS.finding(result)
    assert said.sentence.startswith("At step 400 the average of the network from step 200 (101 ")
    assert "a smoothed loss" in said.sentence
    assert not any("convex valley" in each for each in said.warnings)


def test_from_projections(tmp_path):
    with tracelab.create(tmp_path / "run.zarr", {"a": (30,), "b": (3,)}) as writer:
        rng = np.random.default_rng(0)
        for step in range(5):
            writer.append("weights", step=step, norm=[1, 1], distance=[1, 1],
                          projected=rng.standard_normal((2, 8)))  # fmt: skip
    measure_averages(tmp_path / "run.zarr", tmp_path / "out.zarr", windows=[1.0])
    result = analysed(tmp_path / "out.zarr")
    assert (result["status"] == Status.OK).all()
    said = ANALYSIS.finding(result)
    assert "smoothed" not in said.sentence
    assert any("Losses were not measured" in each for each in said.warnings)
