"""Bounds by information, of models in which every term and the information itself are known."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from information import SIGMA, bounds, rows
from scipy import interpolate

from tracelab.typing import Assumption, Status
from tracelab_analyses.information_assumptions import ASSUMPTIONS, NEEDS, THEORIES
from tracelab_analyses.information_bound import ANALYSIS, information_bound
from tracelab_analyses.information_theories import Path, spending

NEU, MINKOWSKI, WANG_MAO, PENSIA, NEGREA = range(5)


def by_hand(rate, variance, ratio, total, schedule, d, constant=2.0):
    """Sum step by step, as the derivation has it: variance and ratio are functions of the step."""
    steps = len(rate)
    v = np.array([variance(k) for k in range(steps)])
    share = np.full(steps, 1 / steps)
    if schedule:
        share = rate * np.sqrt(v) / np.sum(rate * np.sqrt(v))
    spent, sums = 0.0, np.zeros(3)
    for k in range(steps):
        added = total**2 * share[k]
        gamma = spent * ratio(k, np.sqrt(spent)) if spent else 0.0
        power = (np.sqrt(v[k]) + np.sqrt(gamma)) ** 2
        signal = rate[k] ** 2 / added
        sums[0] += constant / 2 * signal * (v[k] + gamma)
        sums[1] += d / 2 * np.log(1 + signal * power / d)
        sums[2] += d / 2 * np.log(1 + signal * v[k] / d)
        spent += added
    return sums


@pytest.mark.parametrize("constant", [2.0, 4.0])
@pytest.mark.parametrize("falling", [False, True])
def test_terms_are_the_sums_of_the_derivation(constant, falling):
    """Mean estimation: l = |w - z|^2 / 2 has V = s^2 d / b, and sensitivity sigma^2 d."""
    steps, d = 40, 5
    rate = 0.1 / (1 + np.arange(steps)) ** 0.7 if falling else np.full(steps, 0.1)
    flat = np.array([1e-3, 0.01, 0.1, 0.9])
    found = bounds(
        [0, 25, steps], 1.3, 5.0, flatness=flat, gap=0.07, learning_rate=rate,
        parameters={"constant": constant},
    )  # fmt: skip
    for theory in range(3):
        options = [
            (np.sqrt(by_hand(rate, lambda k: 1.3, lambda k, s: 5.0, SIGMA[level], schedule, d,
                             constant)[theory] / 2 / 100), flat[level], SIGMA[level], schedule)
            for level in range(SIGMA.size) for schedule in (0, 1)
        ]  # fmt: skip
        term, flatness, sigma, schedule = min(options, key=lambda each: each[0] + each[1])
        assert found["trajectory_term"][-1, theory] == pytest.approx(term, rel=1e-12)
        assert found["flatness_term"][-1, theory] == pytest.approx(flatness, rel=1e-12)
        assert found["bound"][-1, theory] == pytest.approx(term + flatness, rel=1e-12)
        assert found["sigma"][-1, theory] == sigma
        if falling:
            assert found["schedule"][-1, theory] == schedule
    # Weights at the start know nothing.
    assert (found["bound"][0, :3] == 0).all()
    np.testing.assert_allclose(found["gap"], 0.07, rtol=1e-12)
    assert found["status"] == Status.OK
    parts = found["variance_part"] + found["sensitivity_part"]
    np.testing.assert_allclose(parts[1:, NEU], 1, rtol=1e-12)
    np.testing.assert_allclose(found["variance_part"][1:, WANG_MAO], 1, rtol=1e-12)


def test_what_lies_between_rows_and_levels():
    """Variance on a line in the step; sensitivity over sigma^2 too, and in the log of sigma."""
    step = np.array([0, 10, 30])
    variance = np.array([1.0, 3.0, 0.5])
    ratio = np.array([[1.0, 2.0, 4.0, 3.0], [5.0, 5.0, 0.0, 1.0], [2.0, 1.0, 1.0, 7.0]])
    rate = np.linspace(0.2, 0.05, 30)
    table = interpolate.RegularGridInterpolator((step.astype(float), np.log(SIGMA)), ratio)

    def at(k, sigma):
        return float(table((k, np.log(max(sigma, SIGMA[0])))))

    for level, total in enumerate(SIGMA):
        found = bounds(
            step, variance, ratio, learning_rate=rate, parameters={"sigma_total": 1.01 * total}
        )
        assert (found["sigma"][1:, :3] == total).all()
        wanted = by_hand(rate, lambda k: np.interp(k, step, variance), at, SIGMA[level], 0, 5)
        np.testing.assert_allclose(
            found["trajectory_term"][-1, :3], np.sqrt(wanted / 2 / 100), rtol=1e-12
        )


def test_before_the_first_row_it_is_as_there():
    found = bounds([10, 20], 2.0, 3.0, parameters={"sigma_total": 0.3})
    wanted = by_hand(np.full(20, 0.1), lambda k: 2.0, lambda k, s: 3.0, 0.3, 0, 5)
    np.testing.assert_allclose(found["trajectory_term"][-1, :3], np.sqrt(wanted / 200), rtol=1e-12)


def gaussian(curvature, rate, steps, spread, sigma, d=5, n=100):
    """Full-batch descent on curvature |w - z|^2 / 2, z of variance spread^2: what is known of it.

    The weights are a times the mean of the data and what does not depend on them, and
    sigma^2 is the noise in total: a Gaussian channel.
    """
    a = 0.0
    for _ in range(steps):
        a += rate * curvature * (1 - a)
    known = d / 2 * np.log1p(a**2 * spread**2 / n / sigma**2)
    found = bounds(
        [0, steps], curvature**2 * spread**2 * d / n, curvature**2 * d,
        learning_rate=np.full(steps, rate), parameters={"sigma_total": sigma}, n_data=n,
    )  # fmt: skip
    # The term is the root of range^2 I / 2n.
    return known, 2 * n * found["trajectory_term"][-1] ** 2


@given(
    curvature=st.floats(-1, 2).filter(lambda each: abs(each) > 1e-3),
    rate=st.floats(1e-3, 1.0), steps=st.integers(1, 40),
    spread=st.floats(0.1, 30), sigma=st.sampled_from(SIGMA.tolist()),
)  # fmt: skip
def test_the_bound_of_the_information_is_above_it(curvature, rate, steps, spread, sigma):
    known, found = gaussian(curvature, rate, steps, spread, sigma)
    slack = 1 + 1e-9
    assert known <= found[MINKOWSKI] * slack + 1e-12
    assert found[MINKOWSKI] <= found[NEU] * slack
    assert found[WANG_MAO] <= found[MINKOWSKI] * slack
    if 0 <= rate * curvature <= 2:
        # Steps that expand nothing: the sensitivity is not needed.
        assert known <= found[WANG_MAO] * slack + 1e-12


def test_without_sensitivity_it_is_not_a_bound_where_steps_expand():
    """(1.1^100 - 1)^2 = 1.9e8 times what a step adds to the mean square, of 100 that are summed."""
    known, found = gaussian(-1.0, 0.1, 100, 0.01, 1.0)
    assert known > 1e4 * found[WANG_MAO]
    assert known < found[MINKOWSKI]
    facts = bounds([0, 5], 1.0, 1.0)["assumption_holds"]
    assert facts[WANG_MAO, list(ASSUMPTIONS).index("proof")] == Assumption.FAILS


@given(seed=st.integers(0, 2**32 - 1))
def test_no_other_schedule_has_less_variance(seed):
    rng = np.random.default_rng(seed)
    steps = 20
    rate, variance = rng.exponential(1.0, (2, steps))
    path = Path.of(
        np.arange(steps), rate, np.arange(steps), SIGMA, np.repeat(variance[:, None], 2, 1),
        np.zeros((steps, SIGMA.size, 2)),
    )  # fmt: skip
    spent = spending(path, 1)
    best = np.sum(spent.inverse * variance) * spent.through[-1] / 0.3**2
    share = rng.dirichlet(np.full(steps, 5.0))
    assert best <= np.sum(rate**2 * variance / (0.09 * share)) * (1 + 1e-12)
    assert best == pytest.approx(np.sum(rate * np.sqrt(variance)) ** 2 / 0.09, rel=1e-12)


def test_standard_errors_are_the_spread_of_repetitions():
    rng = np.random.default_rng(0)
    repeats, steps, batches, draws = 400, np.array([0, 10, 40]), 64, 10
    terms = np.empty((repeats, 2, 2, 3))
    for repeat in range(repeats):
        given = rows(steps, 1.0, 1.0)
        given["deviation"] = rng.gamma(4.0, 0.5, (3, batches))
        # A draw is common to all levels.
        given["gradient_change"] = SIGMA[:, None] ** 2 * rng.gamma(8.0, 0.5, (3, 1, draws))
        given["noise_error"] = given["noise_error"][..., :1] + 0.1 * rng.standard_normal(
            (3, 2, 2, SIGMA.size, 2, draws)
        )
        given["noise_error"][:, 1, 0] -= 0.3
        out = information_bound(**given, sigma_total=0.3)
        for place, name in enumerate(("trajectory_term", "flatness_term")):
            terms[repeat, place, 0] = out[name][0, -1, :3]
            terms[repeat, place, 1] = out[f"{name}_se"][0, -1, :3]
    spread = terms[:, :, 0].std(axis=0, ddof=1)
    # A standard deviation of 400 is known to 1 / sqrt(800); of 10 draws one is 2.7 % too small.
    np.testing.assert_allclose(terms[:, :, 1].mean(axis=0), spread, rtol=4 / np.sqrt(800) + 0.03)


def test_noise_that_was_added():
    """Pensia and Negrea, by the formulas; they need no noise on paper and no flatness."""
    noise = np.linspace(0.1, 0.2, 20)
    found = bounds([0, 20], 1.0, 1.0, injected_noise=noise, flatness=0.5)
    sums = np.sum(0.1**2 / noise**2)
    assert found["bound"][1, PENSIA] == pytest.approx(np.sqrt(0.25 / 100 * sums * 2.0**2))
    incoherence = 100 / 99 * 3.0
    wanted = 0.5 * np.sqrt(sums * incoherence / 100**2)
    assert found["bound"][1, NEGREA] == pytest.approx(wanted)
    assert (found["flatness_term"][1, PENSIA:] == 0).all()
    assert (found["flatness_term"][1, :PENSIA] == 0.5).all()
    without = bounds([0, 20], 1.0, 1.0)
    assert np.isnan(without["bound"][:, PENSIA:]).all()
    missing = bounds([0, 20], 1.0, 1.0, injected_noise=np.where(noise > 0.15, noise, np.nan))
    assert np.isnan(missing["bound"][1, PENSIA:]).all()
    # Warm-up from a rate of 0, and its noise with it: that step tells nothing.
    rate = np.full(20, 0.1)
    rate[0] = noise[0] = 0.0
    warm = bounds([0, 20], 1.0, 1.0, injected_noise=noise, learning_rate=rate)
    sums = np.sum(0.1**2 / noise[1:] ** 2)
    assert warm["bound"][1, PENSIA] == pytest.approx(np.sqrt(0.25 / 100 * sums * 2.0**2))
    noise[1] = 0.0
    silent = bounds([0, 20], 1.0, 1.0, injected_noise=noise, learning_rate=rate)
    assert (silent["bound"][1, PENSIA:] == np.inf).all()
    assert (silent["vacuous"][1, PENSIA:] == 1).all()


def test_the_error_of_negrea_is_the_spread_of_repetitions():
    """And pensia, whose L is a largest norm seen, has none."""
    rng = np.random.default_rng(0)
    noise, errors = np.linspace(0.1, 0.2, 40), np.array([0.2, 0.3, 0.1])
    found = [
        bounds([0, 10, 40], 1.0, 1.0, injected_noise=noise, example_variance_se=errors,
               example_variance=3 + errors * rng.standard_normal(3))
        for _ in range(400)
    ]  # fmt: skip
    terms, said = (
        np.array([each[name][-1, NEGREA] for each in found]) for name in ("bound", "bound_se")
    )
    # A standard deviation of 400 is known to 1 / sqrt(800).
    assert terms.std(ddof=1) == pytest.approx(said.mean(), rel=4 / np.sqrt(800))
    assert all(np.isnan(each["bound_se"][-1, PENSIA]) for each in found)
    unknown = bounds([0, 20], 1.0, 1.0, injected_noise=noise[:20], example_variance_se=None)
    assert np.isfinite(unknown["bound"][-1, NEGREA])
    assert np.isnan(unknown["bound_se"][-1, NEGREA])


def test_the_incoherence_of_an_example_left_out():
    """n / (n - 1) times the unbiased variance is the mean square of g_j less the others' mean."""
    g = np.random.default_rng(0).standard_normal((7, 3))
    others = np.stack([np.delete(g, j, axis=0).mean(0) for j in range(7)])
    assert np.mean(np.sum((g - others) ** 2, axis=1)) == pytest.approx(
        7 / 6 * np.trace(np.cov(g.T)), rel=1e-12
    )


class Logistic:
    """Runs of logistic regression, of many training sets at once; labels are half noise."""

    def __init__(self, runs, n, d, seed):
        self.rng = np.random.default_rng(seed)
        self.x, self.y = self.draw((runs, n), d)
        self.fresh, self.labels = self.draw((4000,), d)
        self.w = np.zeros((runs, d))

    def draw(self, shape, d):
        x = self.rng.standard_normal((*shape, d))
        keep = self.rng.random(shape) < 0.5
        random = self.rng.choice((-1.0, 1.0), shape)
        return x, np.where(keep, np.sign(x[..., 0] + 1e-12), random)

    @staticmethod
    def gradient(w, x, y):
        margins = np.einsum("...nd,...d->...n", x, w) * y
        return -np.einsum("...n,...nd->...d", y / (1 + np.exp(margins)), x) / x.shape[-2]

    def population(self, w):
        return self.gradient(w, self.fresh, self.labels)

    def errors(self, w):
        own = np.mean(np.einsum("rnd,...rd->...rn", self.x, w) * self.y <= 0, axis=-1)
        return np.stack([own, np.mean((w @ self.fresh.T) * self.labels <= 0, axis=-1)], axis=-1)

    def batch(self, size):
        runs, n = self.y.shape
        chosen = self.rng.integers(n, size=(runs, size)) if size < n else np.arange(n)[None]
        return self.gradient(
            self.w, np.take_along_axis(self.x, chosen[..., None], 1),
            np.take_along_axis(self.y, chosen, 1),
        )  # fmt: skip

    def row(self, size, batches=8, draws=4):
        """Measure what a collector does, the gradient of the expected loss being known."""
        exact = self.population(self.w)
        deviation = [np.sum((self.batch(size) - exact) ** 2, -1) for _ in range(batches)]
        shape = (draws, *self.w.shape)
        noise = self.rng.standard_normal(shape) * SIGMA[:, None, None, None]
        change = np.sum((self.population(self.w + noise) - exact) ** 2, -1)
        errors = np.stack([self.errors(self.w + sign * noise) for sign in (1, -1)])
        each = self.gradient(self.w[:, None], self.x[:, :, None], self.y[:, :, None])
        return {
            "deviation": np.stack(deviation, -1),
            "gradient_change": np.moveaxis(change, -1, 0),
            "noise_error": errors.transpose(3, 4, 1, 0, 2),
            "error": self.errors(self.w),
            "example_variance": each.var(axis=1, ddof=1).sum(-1),
            "max_gradient_norm": np.linalg.norm(each, axis=-1).max(-1),
        }


@pytest.mark.slow
@pytest.mark.parametrize(("size", "noise"), [(4, 0.0), (30, 0.0), (30, 0.05)])
def test_bounds_are_above_the_gap_over_200_training_sets(size, noise):
    """Errors are exact; the mean of a bound on the mean gap must be above it."""
    runs, n, d, rate, at = 200, 30, 4, 0.3, (0, 10, 30)
    model = Logistic(runs, n, d, seed=1)
    measured = []
    for step in range(at[-1] + 1):
        if step in at:
            measured.append(model.row(size))
        model.w -= rate * model.batch(size)
        model.w += noise * model.rng.standard_normal(model.w.shape)
    found = np.empty((runs, len(THEORIES)))
    gaps = np.empty(runs)
    for run in range(runs):
        given = rows(at, 1.0, 1.0, n_weights=d, n_data=n, batch_size=size, n_examples=n)
        for name in measured[0]:
            values = np.stack([row[name][run] for row in measured])
            if name == "noise_error":
                values = np.stack([values] * 2, axis=2)
            given[name] = values
        given["replacement"] = size < n
        given["learning_rate"] = np.full(at[-1], rate)
        if noise:
            given["injected_noise"] = np.full(at[-1], noise)
        out = information_bound(**given)
        assert out["status"] == [Status.OK]
        found[run], gaps[run] = out["bound"][0, -1], out["gap"][0, -1]
    mean, error = gaps.mean(), gaps.std(ddof=1) / np.sqrt(runs)
    # There is something to be bounded.
    assert mean > 5 * error
    for theory in THEORIES if noise else THEORIES[:3]:
        values = found[:, THEORIES.index(theory)]
        assert values.mean() - mean > 4 * (values.std(ddof=1) / np.sqrt(runs) + error), theory


def test_vacuous_bounds_say_by_which_term():
    cases = {
        (0.01, 0.0): 0, (1e4, 0.0): 1, (0.01, 2.0): 2, (1e4, 2.0): 3,
    }  # fmt: skip
    for (variance, flat), code in cases.items():
        found = bounds([0, 20], variance, 0.1, flatness=flat, parameters={"sigma_total": 0.3})
        assert (found["vacuous_term"][1, :3] == code).all(), code
        assert (found["vacuous"][1, :3] == (code > 0)).all()
    # Each is below the range, and both together are not.
    term = bounds([0, 20], 1.0, 0.1, parameters={"sigma_total": 0.3})["bound"][1, NEU]
    assert 0 < term < 1
    found = bounds([0, 20], 1.0, 0.1, flatness=1 - term / 2, parameters={"sigma_total": 0.3})
    assert found["vacuous_term"][1, NEU] == 4


def test_assumptions_are_those_a_trace_can_tell():
    def holds(theory, name, **given):
        parameters = given.pop("parameters", {})
        table = bounds([0, 20], 1.0, 1.0, parameters=parameters, **given)["assumption_holds"]
        return Assumption(table[THEORIES.index(theory), list(ASSUMPTIONS).index(name)])

    unchecked, right, wrong, not_needed = Assumption
    assert holds("neu", "plain_sgd") == right
    assert holds("neu", "plain_sgd", plain_sgd=False) == wrong
    # Momentum from the sixth step on; steps of which nothing is known; a step behind the last row.
    steps = np.ones(21)
    for place, value, state in ((5, 0.0, wrong), (5, np.nan, unchecked), (20, 0.0, right)):
        changed = steps.copy()
        changed[place] = value
        several = {"every_step": np.arange(21), "learning_rate": np.full(21, 0.1)}
        assert holds("neu", "plain_sgd", plain_steps=changed, **several) == state
    assert holds("neu", "plain_sgd", plain_steps=None) == unchecked
    assert holds("neu", "plain_sgd", plain_steps=None, plain_sgd=False) == wrong
    assert holds("pensia", "all_layers", all_layers=False) == wrong
    assert holds("neu", "scale_fixed") == wrong
    assert holds("neu", "scale_fixed", parameters={"sigma_total": 0.1}) == right
    assert holds("pensia", "scale_fixed") == not_needed
    assert holds("minkowski", "expectation") == unchecked
    assert holds("pensia", "gradients_bounded") == unchecked
    assert holds("negrea", "full_batch") == wrong
    assert holds("negrea", "full_batch", batch_size=100, replacement=False) == right
    assert holds("minkowski", "proof") == not_needed
    assert holds("neu", "bounded") == right
    # By pieces, a mean of errors of 1 exceeds it by rounding.
    for error, state in ((np.nextafter(1.0, 2.0), right), (1.01, wrong)):
        assert holds("neu", "bounded", error=np.full((2, 2), error)) == state
    # Means within the range are not all examples within it.
    for high, state in ((1.0, right), (3.0, wrong), (np.nan, unchecked)):
        assert holds("neu", "bounded", error_high=np.array([1.0, high])) == state
    assert holds("neu", "bounded", error_low=np.array([-0.5, 0.0])) == wrong
    assert holds("neu", "bounded", error_low=None, error_high=None) == unchecked
    no_error = {"error": np.full((2, 2), np.nan), "parameters": {"loss_bound": 0.6}}
    assert holds("neu", "bounded", **no_error) == unchecked
    assert holds("neu", "bounded", **no_error, max_loss=np.array([0.5, 0.61])) == wrong
    assert set(NEEDS) == set(THEORIES)


def test_the_range_of_the_loss_scales_its_bound():
    no_error = {"error": np.full((2, 2), np.nan)}
    terms = [
        bounds([0, 20], 1.0, 1.0, **no_error,
               parameters={"loss_bound": bound, "sigma_total": 0.3})["trajectory_term"]
        for bound in (1.0, 7.0)
    ]  # fmt: skip
    np.testing.assert_allclose(terms[1][1, :3], 7 * terms[0][1, :3], rtol=1e-12)


def test_the_gap_and_its_error():
    given = {"error_se": np.array([[0.03, 0.04]] * 2), "gap": 0.2}
    found = bounds([0, 20], 1.0, 1.0, **given)
    np.testing.assert_allclose(found["gap_se"], 0.04)
    np.testing.assert_allclose(found["gap_high"], 0.2 + 1.959964 * 0.04, rtol=1e-6)
    # A quarter of the training data leaves three quarters of its variance open.
    part = bounds([0, 20], 1.0, 1.0, n_examples=25, **given)
    np.testing.assert_allclose(part["gap_se"], np.sqrt(0.04**2 + 0.75 * 0.03**2))


POOR = {
    "no error and no bound": ({"error": np.full((2, 2), np.nan)}, Status.NON_FINITE_INPUT),
    "no held-out data": ({"n_held_out": 0}, Status.TOO_FEW_SAMPLES),
    "steps are missing": ({"every_step": np.arange(1, 20)}, Status.TOO_FEW_SAMPLES),
    "one example": ({"n_data": 1}, Status.TOO_FEW_SAMPLES),
    "no weights": ({"n_weights": 0}, Status.TOO_FEW_SAMPLES),
    "fewer than no held-out data": ({"n_held_out": -1}, Status.TOO_FEW_SAMPLES),
    "few minibatches": ({"deviation": np.ones((2, 7))}, Status.TOO_FEW_SAMPLES),
    "one draw": ({"gradient_change": np.ones((2, 4, 1))}, Status.TOO_FEW_SAMPLES),
    "rate": ({"learning_rate": np.full(20, np.nan)}, Status.NON_FINITE_INPUT),
    "gradient": ({"deviation": np.full((2, 8), np.inf)}, Status.NON_FINITE_INPUT),
    "nothing varies": (
        {"deviation": np.zeros((2, 8)), "gradient_change": np.zeros((2, 4, 3))},
        Status.CONSTANT_INPUT,
    ),
}


@pytest.mark.parametrize("case", POOR)
def test_poor_data_claim_nothing(case):
    given, status = POOR[case]
    found = bounds([0, 20], 1.0, 1.0, **given)
    assert found["status"] == status
    for name in ("bound", "trajectory_term", "flatness_term", "gap", "bound_se"):
        assert np.isnan(found[name]).all()


def said(*args, parameters=None, **given):
    out = information_bound(**rows(*args, **given), **(parameters or {}))
    dims = {variable.name: variable.dims for variable in ANALYSIS.outputs}
    result = xr.Dataset(
        {name: (dims[name], values) for name, values in out.items()},
        coords={"layer": ["network"], "step": args[0]}
        | {name: list(each) for name, each in ANALYSIS.coords.items()},
        attrs={"parameters": parameters or {}},
    )
    ANALYSIS.plot({"run": result})
    return ANALYSIS.finding(result)


def test_it_says_what_is_bounded_and_what_is_wrong_with_it():
    found = said([0, 20], 1e4, 0.1, gap=0.05)
    assert "says nothing: the trajectory term alone exceeds its range of 1" in found.sentence
    assert "gap of the error of the network" in found.sentence
    assert "measured were 0.05" in found.sentence
    text = " ".join(found.warnings)
    assert "fixed before the data were seen" in text
    assert "one run stands for the mean" in text
    assert "ordered by the variance" in text
    assert "is the gap itself" not in text
    circular = said([0, 20], 0.01, 0.1, gap=0.05, flatness=0.04)
    assert "is the gap itself" in " ".join(circular.warnings)
    modest = said([0, 20], 0.01, 0.1, gap=0.05, parameters={"sigma_total": 0.3})
    assert "within its range of 1" in modest.sentence
    assert "not so" not in " ".join(modest.warnings)
    added = {"injected_noise": np.full(20, 0.5)}
    # The least of all, by an example left out, is for runs of full batches.
    assert "(pensia)" in said([0, 20], 0.01, 5.0, **added).sentence
    full = {"batch_size": 100, "replacement": False}
    assert "(negrea)" in said([0, 20], 0.01, 5.0, **added, **full).sentence
    momentum = said([0, 20], 0.01, 0.1, plain_sgd=False)
    assert "no momentum" in momentum.warnings[0]
    # What takes for granted what is not so is no bound.
    for changed in ({"plain_sgd": False}, {"error_high": np.array([1.0, 2.0])}):
        assert "would be at most" in said([0, 20], 0.01, 0.1, **changed).sentence
    assert "is at most" in said([0, 20], 0.01, 0.1).sentence
    nothing = {"error": np.full((2, 2), np.nan)}
    assert "give loss_bound=" in said([0, 20], 1.0, 1.0, **nothing).sentence
    assert "held_out=" in said([0, 20], 1.0, 1.0, n_held_out=0).sentence
    assert "19 are on record" in said([0, 20], 1.0, 1.0, every_step=np.arange(1, 20)).sentence
    above = said([0, 20], 1e-6, 0.0, gap=0.5)
    assert "times less" not in above.sentence
    assert "gap that was measured is above the bound" in " ".join(above.warnings)
    assert "above the bound" not in text
    bounded = said([0, 20], 1.0, 1.0, **nothing, parameters={"loss_bound": 3.0})
    assert "gap of the loss" in bounded.sentence
