"""The table of escape times against integral equations, known laws and recorded exits."""

import math
from dataclasses import replace

import numpy as np
import pytest
from quadrature import mean_by_quadrature
from scipy import stats
from traces import define_basin, write_basin

import tracelab
from tracelab import planning
from tracelab.cells import labelled, run
from tracelab.errors import NotRecordedError
from tracelab.stats import escape, stable
from tracelab.typing import Status
from tracelab_analyses.escape_assumptions import (
    ASSUMPTIONS,
    FAILS,
    HOLDS,
    NEEDS,
    NOT_NEEDED,
    UNCHECKED,
)
from tracelab_analyses.escape_theories import widths
from tracelab_analyses.escape_times import ANALYSIS, escape_times

LONG = {"replicas": 300, "max_steps": 100_000}
HEIGHTS = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])


def ask(noise, curvature=(0.2,), barrier=0.4, slope=0.0, seed=1, exits=None, **options):
    """Return the result of one step, as a dataset without step and layer."""
    curvature = np.asarray(curvature, dtype=float)
    rise = np.broadcast_to(HEIGHTS[:, None], (curvature.size, HEIGHTS.size, 2))
    inputs = {
        "eigenvalue": curvature[None],
        "noise_along": np.asarray(noise)[None] + slope,
        "quadratic_rise": HEIGHTS[None],
        "profile_loss": options.pop("profile", 0.5 + rise)[None],
        "loss": np.array([0.5]),
        "gradient_squared_norm": np.array([options.pop("gain", 1e-9)]),
        "memory": np.array([options.pop("memory", 1.0)]),
        "median_step": np.array([0.25]),
    }
    for name in ("noise_form", "kept"):
        if name in options:
            inputs[name] = np.asarray(options.pop(name))[None]
    if exits is not None:
        names = ("exit_time", "exit_censored", "exit_criterion")
        inputs |= {
            key: np.asarray(v, dtype=float)[None] for key, v in zip(names, exits, strict=True)
        }
        inputs["exit_barrier"] = np.array([options.pop("exit_barrier", 0.4)])
    options = {"replicas": 20, "draws": 40, "max_steps": 500} | options
    found = escape_times(**inputs, seed=np.array([[seed]], np.uint64), barrier=barrier, **options)
    plan = _Plan(curvature.size)
    return labelled(plan, found).isel(step=0, layer=0)


class _Plan:
    """What labelling reads of a plan."""

    def __init__(self, pairs):
        self.analysis = _with(ANALYSIS, pairs)
        self.labels, self.steps = ("network",), (7,)


def _with(analysis, pairs):
    return replace(analysis, coords={**analysis.coords, "eigenpair": range(pairs)})


def span(row, theory):
    row = row.sel(theory=theory)
    return tuple(float(row[f"escape_time{end}"]) for end in ("_low", "", "_high"))


def held(row, theory, assumption):
    return int(row["assumption_holds"].sel(theory=theory, assumption=assumption))


def test_gaussian_noise_is_told_by_diffusion_and_by_simulation():
    noise = np.random.default_rng(0).normal(0, 0.5, (4000, 1))
    row = ask(noise, [0.1], **LONG)
    truth = mean_by_quadrature(stats.norm(scale=0.5).pdf, 0.1, 0.4)
    for theory in ("simulated_gaussian", "simulated_recorded"):
        low, time, high = span(row, theory)
        assert low < truth < high
        assert high < 2 * low
    low, time, high = span(row, "diffusion")
    assert low < truth < high
    assert time == pytest.approx(truth, rel=0.1)
    assert row["theory_status"].sel(theory="levy") in (int(Status.OK), int(Status.FAILED))
    assert held(row, "diffusion", "gaussian") == HOLDS
    assert held(row, "levy", "stable") == FAILS


def test_stable_noise_is_told_by_single_jumps_and_by_simulation():
    rng = np.random.default_rng(4)
    noise = stable.rvs(1.5, scale=0.05, size=(4000, 1), rng=rng)
    row = ask(noise, [0.3], **LONG)
    truth = mean_by_quadrature(lambda x: stable.pdf(x, 1.5, 0, 0, 0.05), 0.3, 0.4)
    low, _, high = span(row, "simulated_stable")
    assert low < truth < high
    a = math.sqrt(2 * 0.4 / 0.3)
    leading = float(escape.jump_exit_time([1.5], [0.05], [a], [a]))
    for theory in ("levy", "jump_measure"):
        low, time, high = span(row, theory)
        assert low < leading < high
        assert time == pytest.approx(truth, rel=0.25)
    assert held(row, "levy", "stable") == HOLDS
    assert held(row, "diffusion", "gaussian") == FAILS
    # Diffusion of that variance knows nothing of it.
    assert abs(math.log(span(row, "diffusion")[1] / truth)) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("theory", ["diffusion", "levy"])
def test_intervals_cover_what_the_true_noise_would_give(theory):
    """100 recordings of 400 minibatches: at 95 % fewer than 86 would come twice in 10,000."""
    rng = np.random.default_rng(8)
    half = math.sqrt(2 * 0.4 / 0.3)
    truth = {
        "diffusion": math.exp(float(escape.log_descent_exit_time(0.3, 0.3**2, half))),
        "levy": float(escape.jump_exit_time([1.5], [0.05], [half], [half])),
    }[theory]
    covered = 0
    for seed in range(100):
        noise = (
            rng.normal(0, 0.3, (400, 1)) if theory == "diffusion"
            else stable.rvs(1.5, scale=0.05, size=(400, 1), rng=rng)
        )  # fmt: skip
        row = ask(noise, [0.3], seed=seed, replicas=2, max_steps=1, draws=100)
        low, _, high = span(row, theory)
        covered += low <= truth <= high
    assert covered >= 86


def test_directions_leave_together():
    noise = np.random.default_rng(0).normal(0, 0.5, (2000, 3))
    one, three = ask(noise[:, :1], [0.1], **LONG), ask(noise, [0.1, 0.1, 0.1], **LONG)
    for theory in ("diffusion", "kramers"):
        assert span(three, theory)[1] == pytest.approx(span(one, theory)[1] / 3, rel=0.3)
    assert span(three, "simulated_gaussian")[1] < 0.7 * span(one, "simulated_gaussian")[1]
    assert int(three["n_directions"]) == 3


def test_what_theories_assume_is_checked():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.3, (2000, 2))
    fine = ask(noise, [0.1, 0.08])
    for theory, needed in NEEDS.items():
        for assumption in ASSUMPTIONS:
            if assumption not in needed:
                assert held(fine, theory, assumption) == NOT_NEEDED
    for assumption in ("quadratic", "at_bottom", "small_steps", "short_memory", "unclipped"):
        assert held(fine, "diffusion", assumption) == HOLDS
    assert held(fine, "simulated_stable", "independent") == HOLDS
    together = noise * rng.exponential(1, (2000, 1))
    assert held(ask(together, [0.1, 0.08]), "levy", "independent") == FAILS
    assert held(ask(noise, [0.9, 0.8]), "diffusion", "small_steps") == FAILS
    assert held(ask(noise, [0.1, 0.08], memory=10.0), "diffusion", "short_memory") == FAILS
    assert held(ask(noise, [0.1, 0.08], slope=0.3), "diffusion", "at_bottom") == FAILS
    assert held(ask(noise, [0.1, 0.08], clip=9.0), "diffusion", "unclipped") == FAILS
    narrow = 0.5 + 3 * np.broadcast_to(HEIGHTS[:, None], (2, HEIGHTS.size, 2))
    assert held(ask(noise, [0.1, 0.08], profile=narrow), "diffusion", "quadratic") == FAILS
    assert held(ask(noise, [0.1, 0.08], profile=narrow), "levy", "quadratic") == NOT_NEEDED
    wide = 0.5 + 0.1 * np.broadcast_to(HEIGHTS[:, None], (2, HEIGHTS.size, 2))
    assert held(ask(noise, [0.1, 0.08], profile=wide), "diffusion", "quadratic") == FAILS
    assert held(ask(noise, [0.1, 0.08], gain=1.0), "kramers", "settled") == FAILS
    # Of two directions with a variance of .09 each, that is what noise meets of the curvature.
    met = 0.09 * (0.1 + 0.08)
    for times, found in ((1.0, HOLDS), (3.0, FAILS)):
        forms = np.full(40, times * met)
        row = ask(noise, [0.1, 0.08], noise_form=forms)
        assert float(row["curvature_share"]) == pytest.approx(1 / times, rel=0.1)
        assert held(row, "levy", "all_curvature") == found
    assert held(fine, "levy", "all_curvature") == UNCHECKED
    # What large minibatches lose counts for more.
    size = np.abs(noise).max(axis=1)
    for lost, found in ((size > 2, HOLDS), (size > 0.3, FAILS)):
        row = ask(noise, [0.1, 0.08], kept=np.where(lost, 0.1, 1.0))
        assert held(row, "simulated_recorded", "fixed_steps") == found
    hot = ask(3 * noise, [0.1, 0.08])
    assert held(hot, "diffusion", "rare") == FAILS


def test_sides_are_where_the_loss_reaches_the_barrier():
    distance = np.array([1.0, 2.0, 3.0])[None, :, None].repeat(2, axis=2)
    otherwise = np.full((1, 2), 9.0)
    exactly = widths(distance, distance**2 / 2, 1.0, otherwise)
    np.testing.assert_allclose(exactly, math.sqrt(2))
    lower = np.concatenate([distance[..., :1] ** 2, 0.01 * distance[..., 1:] ** 2], axis=2)
    np.testing.assert_allclose(widths(distance, lower, 3.0, otherwise), [[math.sqrt(3), 9.0]])
    # A wall between two places, and what is no number.
    wall = np.array([0.0, 0.0, 100.0])[None, :, None].repeat(2, axis=2)
    assert (widths(distance, wall, 1.0, otherwise) > 2).all()
    assert (widths(distance, wall * np.nan, 1.0, otherwise) == 9.0).all()


def test_observed_exits_have_their_interval():
    noise = np.random.default_rng(0).normal(0, 0.3, (200, 1))
    times = np.array([10.0, 20, 30, 40])
    row = ask(noise, exits=(times, np.zeros(4), np.full(4, 2)))
    low, time, high = span(row, "observed")
    assert time == 25
    reach = stats.t.ppf(0.975, 3) * times.std(ddof=1) / 2
    assert (low, high) == pytest.approx((25 - reach, 25 + reach))
    assert held(row, "observed", "same_region") == HOLDS
    partly = ask(noise, exits=(times, [0, 0, 0, 1], [2, 2, 2, 0]))
    assert span(partly, "observed")[1] == pytest.approx(100 / 3)
    assert int(partly["n_exits"]) == 3
    none = ask(noise, exits=(times, np.ones(4), np.zeros(4)))
    low, time, high = span(none, "observed")
    assert math.isnan(time)
    assert high == math.inf
    # No event in 100 steps is as rare as 5 % for a mean below this.
    assert low == pytest.approx(100 / -math.log(0.05))
    assert int(none["theory_status"].sel(theory="observed")) == Status.TOO_FEW_SAMPLES
    ball = ask(noise, exits=(times, np.zeros(4), np.full(4, 1)))
    assert held(ball, "observed", "same_region") == FAILS
    other = ask(noise, exits=(times, np.zeros(4), np.full(4, 2)), exit_barrier=0.1)
    assert held(other, "observed", "same_region") == FAILS


def test_all_replicas_censored_is_said():
    noise = np.random.default_rng(0).normal(0, 0.01, (200, 1))
    row = ask(noise, max_steps=50, replicas=20)
    for theory in ("simulated_gaussian", "simulated_recorded"):
        low, time, high = span(row, theory)
        assert math.isnan(time)
        assert high == math.inf
        assert low == pytest.approx(20 * 50 / -math.log(0.05))
        status = int(row["theory_status"].sel(theory=theory))
        assert status == Status.TOO_FEW_SAMPLES
    # Longer than any number: e to the power of thousands.
    assert span(row, "diffusion")[1] == math.inf


def test_clipped_noise_has_an_order():
    rng = np.random.default_rng(0)
    noise = stable.rvs(1.4, scale=0.1, size=(3000, 1), rng=rng)
    # In these coordinates clip * sqrt(.25), over a width of 2.
    row = ask(noise, [0.2], barrier=0.4, clip=2.2, **LONG)
    assert float(row["truncated_jumps"]) == 2
    alpha = float(row["alpha_common"])
    assert float(row["truncated_exponent"]) == pytest.approx(1 + 2 * (alpha - 1))
    free = ask(noise, [0.2], **LONG)
    assert span(row, "simulated_stable")[1] > span(free, "simulated_stable")[1]
    heavier = ask(stable.rvs(0.8, scale=0.05, size=(3000, 1), rng=rng), [0.2], clip=2.2)
    assert math.isnan(float(heavier["truncated_exponent"]))


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"noise": np.zeros((50, 2))}, Status.CONSTANT_INPUT),
        ({"noise": np.full((50, 2), np.nan)}, Status.NON_FINITE_INPUT),
        ({"noise": np.random.default_rng(0).normal(size=(5, 2))}, Status.TOO_FEW_SAMPLES),
        ({"curvature": (-0.1, -0.2)}, Status.CONSTANT_INPUT),
        ({"curvature": (np.nan, 0.2)}, Status.NON_FINITE_INPUT),
        ({"memory": 0.5}, Status.NON_FINITE_INPUT),
    ],
)
def test_poor_input_is_a_status_and_no_number(change, status):
    given = {"noise": np.random.default_rng(0).normal(size=(50, 2)), "curvature": (0.2, 0.1)}
    row = ask(**(given | change))
    assert int(row["status"]) == status
    assert np.isnan(row["escape_time"]).all()
    assert (row["theory_status"] != int(Status.OK)).all()


def test_directions_that_curve_down_are_left_out_and_counted():
    noise = np.random.default_rng(0).normal(0, 0.3, (200, 3))
    row = ask(noise, (0.2, 0.1, -0.05))
    assert int(row["n_directions"]) == 2
    assert np.isnan(row["alpha"].values[2])
    assert int(row["status"]) == Status.OK


def compute(path, **options):
    trace = tracelab.open(path)
    plan = planning.plan(ANALYSIS, trace, ANALYSIS.resolve(options))
    outputs, messages = run((trace, plan), plan.whole)
    return labelled(plan, outputs), messages


def write(path, exits=(), basins=(0, 10)):
    rng = np.random.default_rng(0)
    with tracelab.create(path, {"a": (3,)}) as writer:
        define_basin(writer, exits=bool(exits))
        for step in basins:
            write_basin(writer if step in exits else _Only(writer, "basin"), step, rng)


class _Only:
    """A writer of one group."""

    def __init__(self, writer, group):
        self._writer, self._group = writer, group

    def append(self, group, **arrays):
        if group == self._group:
            self._writer.append(group, **arrays)


def test_exits_at_some_of_the_steps(tmp_path):
    write(tmp_path / "some.zarr", exits=(10,))
    result, messages = compute(tmp_path / "some.zarr", barrier=0.4)
    assert messages == ()
    assert result["layer"].values.tolist() == ["network"]
    assert result["n_replicas"].values.ravel().tolist() == [0, 12]
    observed = result["escape_time"].sel(theory="observed").values.ravel()
    assert np.isnan(observed[0])
    assert observed[1] > 0
    recorded, messages = compute(tmp_path / "some.zarr")
    assert (recorded["status"].values.ravel() == [Status.FAILED, Status.OK]).all()
    assert "step 0, network: escape_times needs a rise of the loss" in messages[0]


def test_without_exits_a_barrier_is_needed(tmp_path):
    write(tmp_path / "none.zarr")
    result, messages = compute(tmp_path / "none.zarr")
    assert (result["status"] == int(Status.FAILED)).all()
    assert "give barrier=, or record ExitTimes(barrier=...)" in messages[0]
    result, messages = compute(tmp_path / "none.zarr", barrier=0.4)
    assert messages == ()
    assert (result["status"] == int(Status.OK)).all()
    assert (result["n_replicas"] == 0).all()


def test_a_trace_without_a_basin_names_what_is_missing(tmp_path):
    with tracelab.create(tmp_path / "no.zarr", {"a": (3,)}) as writer:
        writer.append("steps", step=0, learning_rate=0.1)
    with pytest.raises(NotRecordedError, match="needs basin/eigenvalue"):
        compute(tmp_path / "no.zarr", barrier=0.4)


def test_a_result_is_not_taken_over_when_exits_come_later(tmp_path):
    rng = np.random.default_rng(0)
    with tracelab.create(tmp_path / "live.zarr", {"a": (3,)}) as writer:
        define_basin(writer)
        write_basin(_Only(writer, "basin"), 0, rng)
        write_basin(writer, 1, rng)
    options = {"barrier": 0.4, "replicas": 5, "max_steps": 50}
    for steps, replicas in (((0, 1), [0, 12]), ((0, 1, 2), [0, 12, 12])):
        with tracelab.open(tmp_path / "live.zarr") as trace:
            found = tracelab.analyze(trace, ["escape_times"], **options)["escape_times"]
        assert found["step"].values.tolist() == list(steps)
        assert found["n_replicas"].values.ravel().tolist() == replicas
        if len(steps) == 2:
            with tracelab.create(tmp_path / "live.zarr", {"a": (3,)}, resume=True) as writer:
                write_basin(writer, 2, rng)


def test_finding_says_what_fails_and_figure_shows_it(tmp_path):
    write(tmp_path / "a.zarr", exits=(0, 10))
    result, _ = compute(tmp_path / "a.zarr")
    found = ANALYSIS.finding(result)
    assert "From step 10 a rise of the loss by 0.4" in found.sentence
    assert "12 of 12 observed replicas left" in found.sentence
    assert any("levy, jump_measure, simulated_stable" in each for each in found.warnings)
    figure = ANALYSIS.plot({"sgd": result, "adam": result})
    assert len(figure.axes) == 2
    assert figure.get_label().startswith("Mean exit times by theory")
