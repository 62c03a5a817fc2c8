"""Fitted laws against SciPy's fits and densities, maxima of the likelihood and simulations."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special, stats

from tracelab.errors import UsageError
from tracelab.stats import models, stable
from tracelab.stats._digamma import digamma, trigamma
from tracelab.typing import Status


def mixture(rng: np.random.Generator, size, wide=0.2, ratio=4.0) -> np.ndarray:
    return rng.standard_normal(size) * np.where(rng.uniform(size=size) < wide, ratio, 1.0)


def draws(rng: np.random.Generator, size) -> dict[str, np.ndarray]:
    """Return samples of each law, with location 2 and scale 3."""
    standard = {
        "gaussian": rng.standard_normal(size),
        "laplace": rng.laplace(size=size),
        "student_t": rng.standard_t(4, size),
        "generalized_normal": stats.gennorm.rvs(1.4, size=size, random_state=rng),
        "stable": stable.rvs(1.7, size=size, rng=rng),
        "scale_mixture": mixture(rng, size),
    }
    return {name: 2 + 3 * x for name, x in standard.items()}


TRUE = {
    "gaussian": {"loc": 2, "scale": 3},
    "laplace": {"loc": 2, "scale": 3},
    "student_t": {"df": 4, "loc": 2, "scale": 3},
    "generalized_normal": {"shape": 1.4, "loc": 2, "scale": 3},
    "stable": {"alpha": 1.7, "loc": 2, "scale": 3},
    "scale_mixture": {"wide": 0.2, "loc": 2, "scale": 3, "wide_scale": 12},
}
SCIPY = {
    "gaussian": lambda p: stats.norm(p["loc"], p["scale"]),
    "laplace": lambda p: stats.laplace(p["loc"], p["scale"]),
    "student_t": lambda p: stats.t(p["df"], p["loc"], p["scale"]),
    "generalized_normal": lambda p: stats.gennorm(p["shape"], p["loc"], p["scale"]),
}


def test_digamma_and_trigamma() -> None:
    for x in np.geomspace(1e-3, 1e6, 200):
        np.testing.assert_allclose(digamma(x), special.digamma(x), rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(trigamma(x), special.polygamma(1, x), rtol=1e-13)


@pytest.mark.parametrize("family", list(models.FAMILIES))
def test_densities_and_distributions(family: str) -> None:
    numbers = {name: np.float64(value) for name, value in TRUE[family].items()}

    def density(x: float) -> float:
        return float(np.exp(models.logpdf(family, np.array([x]), numbers))[0])

    x = np.array([-60.0, -9.0, 0.5, 2.0, 3.0, 40.0])
    for at in x:
        below, _ = integrate.quad(density, 2.0, at, limit=200, epsabs=1e-12)
        np.testing.assert_allclose(
            models.cdf(family, np.array([at]), numbers)[0], 0.5 + below, atol=1e-8
        )
    if family in SCIPY:
        law = SCIPY[family](numbers)
        np.testing.assert_allclose(models.logpdf(family, x, numbers), law.logpdf(x), rtol=1e-12)
        np.testing.assert_allclose(models.cdf(family, x, numbers), law.cdf(x), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(models.FAMILIES))
def test_nothing_near_is_more_likely(family: str) -> None:
    """Started at the fit, an optimizer of SciPy's finds no way up."""
    x = draws(np.random.default_rng(1), (3, 800))[family]
    found = models.fit(x, (family,))[family]
    assert (found.status == Status.OK).all()
    for row in range(3):
        numbers = {name: each[row] for name, each in found.parameters.items()}
        np.testing.assert_allclose(
            models.logpdf(family, x[row], numbers).sum(), found.loglik[row], rtol=1e-12
        )
        names = list(numbers)

        def fall(moved: np.ndarray, numbers=numbers, names=names, row=row) -> float:
            scaled = {
                name: numbers[name] + step if name == "loc" else numbers[name] * math.exp(step)
                for name, step in zip(names, moved, strict=True)
            }
            return float(-models.logpdf(family, x[row], scaled).sum())

        best = optimize.minimize(fall, np.zeros(len(names)), method="Nelder-Mead")
        # The fits stop when twice the likelihood still to gain is below 1e-9; rounding of 800
        # terms of order 1 is 1e-12.
        assert -best.fun <= found.loglik[row] + 1e-8, family


@pytest.mark.parametrize("family", list(SCIPY))
def test_scipys_fits_are_no_better(family: str) -> None:
    """And as good to what its simplex stops at."""
    x = draws(np.random.default_rng(2), 3000)[family]
    found = models.fit(x, (family,))[family]
    law = {"gaussian": "norm", "laplace": "laplace", "student_t": "t"}.get(family, "gennorm")
    theirs = getattr(stats, law).fit(x)
    loglik = getattr(stats, law).logpdf(x, *theirs).sum()
    assert loglik <= found.loglik + 1e-9 * abs(loglik)
    for name, value in zip(found.parameters, theirs, strict=True):
        np.testing.assert_allclose(found.parameters[name], value, rtol=2e-3, err_msg=name)


@pytest.mark.parametrize("family", list(models.FAMILIES))
def test_estimates_scatter_about_the_truth_as_their_errors_say(family: str) -> None:
    rows = 300
    x = draws(np.random.default_rng(3), (rows, 2000))[family]
    found = models.fit(x, (family,))[family]
    good = found.status == Status.OK
    assert good.mean() > 0.99
    for name, true in TRUE[family].items():
        estimate, error = found.parameters[name][good], found.errors[name][good]
        spread = estimate.std()
        # The standard deviation of 300 draws is known to 1 / sqrt(600): four of these.
        assert abs(np.median(error) / spread - 1) < 4 / math.sqrt(2 * rows), name
        # Biases are of order 1 / n, a tenth of a standard error here at most; four errors of
        # the mean beside.
        assert abs(estimate.mean() - true) < (0.1 + 4 / math.sqrt(rows)) * spread, name


@pytest.mark.slow
def test_the_right_law_is_preferred() -> None:
    """Of 30 samples of 4,000 each; Laplace and Gaussian data have larger laws that hold, too."""
    samples = draws(np.random.default_rng(4), (30, 4000))
    for truth, x in samples.items():
        found = models.fit(x)
        bic = np.stack([each.bic for each in found.values()])
        chosen = np.array(list(found))[np.nanargmin(bic, axis=0)]
        assert (chosen == truth).mean() >= 0.9, truth
        fitted = found[truth]
        np.testing.assert_array_equal(fitted.aic, 2 * len(TRUE[truth]) - 2 * fitted.loglik)
        np.testing.assert_array_equal(
            fitted.bic, len(TRUE[truth]) * math.log(4000) - 2 * fitted.loglik
        )


def test_light_tails_have_infinite_freedom() -> None:
    x = np.random.default_rng(5).uniform(size=(4, 500))
    found = models.fit(x, ("student_t", "gaussian"))
    student, gaussian = found["student_t"], found["gaussian"]
    assert np.isposinf(student.parameters["df"]).all()
    np.testing.assert_array_equal(student.loglik, gaussian.loglik)
    np.testing.assert_array_equal(student.parameters["scale"], gaussian.parameters["scale"])
    assert (student.status == Status.OK).all()
    density = models.logpdf("student_t", x, student.parameters)
    expected = models.logpdf("gaussian", x, gaussian.parameters)
    np.testing.assert_allclose(density, expected, rtol=1e-12, atol=1e-15)


def test_shapes_of_both_kinds() -> None:
    """Peaked, where the location is the median, and flat, where it is not."""
    rng = np.random.default_rng(6)
    for shape in (0.6, 1.0, 2.0, 5.0):
        x = stats.gennorm.rvs(shape, size=(100, 2000), random_state=rng)
        found = models.fit(x, ("generalized_normal",))["generalized_normal"]
        estimate, error = found.parameters["shape"], found.errors["shape"]
        assert (found.status == Status.OK).all()
        assert abs(estimate.mean() - shape) < 0.1 * error.mean() + 4 * error.mean() / 10
        assert abs(estimate.std() / error.mean() - 1) < 4 / math.sqrt(200)
        spread = found.parameters["loc"].std()
        assert abs(np.mean(found.errors["loc"]) / spread - 1) < 4 / math.sqrt(200) + 0.1


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(1e-30, 1e30), st.floats(-100, 100))
def test_equivariance(seed: int, scale: float, shift: float) -> None:
    """Under location, scale, order, sign, batch and dtype."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, (2, 300))
    families = ("gaussian", "laplace", "student_t", "generalized_normal", "scale_mixture")
    found, moved = models.fit(x, families), models.fit(scale * (x + shift), families)
    flipped = models.fit(-rng.permuted(x, axis=1), families)
    alone = [models.fit(row, families) for row in x]
    across = models.fit(x.T, families, axis=0)
    for name in families:
        here, there = found[name], moved[name]
        fitted = here.status == Status.OK
        np.testing.assert_array_equal(here.status, there.status)
        np.testing.assert_allclose(
            there.loglik[fitted],
            (here.loglik - 300 * math.log(scale))[fitted],
            rtol=1e-7,
            atol=1e-5,
        )
        for key, values in here.parameters.items():
            expected = values
            if key == "loc":
                expected = scale * (values + shift)
            elif key.endswith("scale"):
                expected = scale * values
            close = {"rtol": 1e-4, "atol": 1e-4 * scale if key == "loc" else 0}
            np.testing.assert_allclose(
                there.parameters[key][fitted], expected[fitted], err_msg=f"{name} {key}", **close
            )
            np.testing.assert_array_equal(across[name].parameters[key], values)
            np.testing.assert_array_equal([each[name].parameters[key] for each in alone], values)
        np.testing.assert_allclose(flipped[name].loglik[fitted], here.loglik[fitted], rtol=1e-8)


def test_vuong_is_the_formula() -> None:
    x = np.random.default_rng(7).standard_t(3, (4, 1000))
    found = models.fit(x, ("student_t", "laplace"))
    first, second = found["student_t"], found["laplace"]
    ratio = SCIPY["student_t"], SCIPY["laplace"]
    for correction, penalty in (("none", 0.0), ("aic", 1.0), ("bic", 0.5 * math.log(1000))):
        test = models.vuong(x, first, second, correction=correction)
        for row in range(4):
            laws = (
                make({name: each[row] for name, each in fit.parameters.items()})
                for make, fit in zip(ratio, (first, second), strict=True)
            )
            one, two = (law.logpdf(x[row]) for law in laws)
            d = one - two
            statistic = (d.sum() - penalty) / (math.sqrt(1000) * d.std())
            np.testing.assert_allclose(test.statistic[row], statistic, rtol=1e-9)
            np.testing.assert_allclose(test.pvalue[row], 2 * stats.norm.sf(abs(statistic)))
            np.testing.assert_allclose(test.difference[row], d.mean() - penalty / 1000)
        assert (test.status == Status.OK).all()
    turned = models.vuong(x, second, first)
    np.testing.assert_array_equal(turned.statistic, -models.vuong(x, first, second).statistic)
    same = models.vuong(x, first, first)
    assert (same.status == Status.CONSTANT_INPUT).all()
    assert np.isnan(same.statistic).all()


def test_vuongs_size() -> None:
    """Two laws as far from the truth, to either side of it."""
    rows = 20_000
    x = np.random.default_rng(8).standard_normal((rows, 200))
    fitted = models.fit(x, ("gaussian",))["gaussian"]
    left, right = (
        dataclasses.replace(fitted, parameters={"loc": np.full(rows, loc), "scale": np.ones(rows)})
        for loc in (-0.5, 0.5)
    )
    test = models.vuong(x, left, right)
    # 5 %, four binomial standard errors, and Student's law of 199 degrees for the normal one.
    rate = (test.pvalue < 0.05).mean()
    student = 2 * stats.t(199).sf(stats.norm.isf(0.025))
    assert abs(rate - student) < 4 * math.sqrt(0.05 * 0.95 / rows) + 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", list(models.FAMILIES))
def test_goodness_of_fit_has_its_size(family: str) -> None:
    x = draws(np.random.default_rng(9), (200, 200))[family]
    test = models.goodness_of_fit(x, family, n_boot=39, seed=1)
    for name, pvalue in test.pvalue.items():
        good = np.isfinite(pvalue)
        # Multiples of 1 / 40; P(p <= .2) = .2 exactly if parameters were known. Four binomial
        # standard errors of 200, and as much again as estimation may shift.
        rate = (pvalue[good] <= 0.2).mean()
        assert abs(rate - 0.2) < 4 * math.sqrt(0.16 / good.sum()), name


def test_goodness_of_fit_rejects_what_does_not_fit() -> None:
    rng = np.random.default_rng(10)
    x = np.stack([rng.standard_t(2, 500), rng.standard_normal(500)])
    test = models.goodness_of_fit(x, "gaussian", n_boot=99)
    assert (test.pvalue["anderson_darling"][0], test.status[0]) == (0.01, Status.OK)
    assert test.pvalue["anderson_darling"][1] > 0.05
    # SciPy's statistics at the fitted parameters.
    mean, deviation = x[1].mean(), x[1].std()
    kolmogorov = stats.kstest(x[1], stats.norm(mean, deviation).cdf).statistic
    np.testing.assert_allclose(test.statistic["kolmogorov_smirnov"][1], kolmogorov, rtol=1e-9)
    ordered = stats.norm(mean, deviation).cdf(np.sort(x[1]))
    i = np.arange(1, 501)
    squared = -500 - ((2 * i - 1) * (np.log(ordered) + np.log1p(-ordered[::-1]))).sum() / 500
    np.testing.assert_allclose(test.statistic["anderson_darling"][1], squared, rtol=1e-9)


def test_seeds_belong_to_samples() -> None:
    x = np.random.default_rng(11).laplace(size=(3, 100))
    whole = models.goodness_of_fit(x, "student_t", n_boot=19, seed=np.array([5, 6, 7]))
    for row, seed in enumerate((5, 6, 7)):
        one = models.goodness_of_fit(x[row], "student_t", n_boot=19, seed=seed)
        for name, pvalue in whole.pvalue.items():
            assert one.pvalue[name] == pvalue[row]
    counted = models.goodness_of_fit(x, "student_t", n_boot=19, seed=5)
    np.testing.assert_array_equal(
        counted.pvalue["anderson_darling"], whole.pvalue["anderson_darling"]
    )


def test_statuses() -> None:
    rng = np.random.default_rng(12)
    x = rng.standard_normal((5, 100))
    x[1, 3], x[2, 4] = np.nan, -np.inf
    x[3] = 7.0
    x[4, :60] = 0.0
    wanted = ["OK", "NON_FINITE_INPUT", "NON_FINITE_INPUT", "CONSTANT_INPUT", "CONSTANT_INPUT"]
    for name, found in models.fit(x).items():
        statuses = [Status(each).name for each in found.status]
        assert statuses[1:] == wanted[1:], name
        assert statuses[0] in ("OK", "NOT_CONVERGED")
        for values in (*found.parameters.values(), found.loglik, found.aic, found.bic):
            assert np.isnan(values[1:]).all()
            assert not np.isnan(values[0])
    assert (models.fit(x[:, :7], ("laplace",))["laplace"].status[[0, 3]] == 2).all()
    assert models.fit(np.empty((0, 20)))["stable"].loglik.shape == (0,)
    assert models.fit(np.empty((2, 0)), ("gaussian",))["gaussian"].status.tolist() == [2, 2]
    test = models.goodness_of_fit(x, "laplace", n_boot=19)
    assert np.isfinite(test.pvalue["anderson_darling"]).tolist() == [True, *4 * [False]]
    fits = models.fit(x, ("laplace", "gaussian"))
    compared = models.vuong(x, fits["laplace"], fits["gaussian"])
    assert [Status(each).name for each in compared.status] == wanted
    assert np.isnan(compared.pvalue[1:]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: models.fit(x, ("cauchy",)), "there is no law 'cauchy'; choose from gaussian"),
        (lambda x: models.logpdf("zipf", x, {}), "there is no law 'zipf'"),
        (lambda x: models.fit(x + 0j), "samples must be real numbers, got dtype complex128"),
        (lambda x: models.fit(x, axis=2), "axis 2 is not an axis of samples"),
        (lambda x: models.goodness_of_fit(x, "laplace", n_boot=9), "n_boot must be at least 19"),
        (lambda x: models.goodness_of_fit(x, "laplace", seed=0.5), "seed must be one whole number"),
        (
            lambda x: models.goodness_of_fit(x, "laplace", seed=np.arange(2)),
            r"or one for each of the \(3,\) samples",
        ),
        (
            lambda x: models.vuong(x[:2], *models.fit(x, ("laplace", "gaussian")).values()),
            "the fit of laplace is of",
        ),
        (
            lambda x: models.vuong(
                x, *models.fit(x, ("laplace", "gaussian")).values(), correction="hqc"
            ),
            "correction must be 'none', 'aic' or 'bic', got 'hqc'",
        ),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(np.random.default_rng(0).standard_normal((3, 50)))
