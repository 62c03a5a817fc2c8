"""What the comparison of laws says about noise whose law is known, through a stored trace."""

import math

import numpy as np
import pytest
import xarray as xr

import tracelab
from tracelab.stats import models, stable
from tracelab.typing import Status
from tracelab_analyses.noise_law import ANALYSIS, LAWS, VERDICTS, noise_law

BATCHES, SERIES = 300, 50


def noise(law: str, seed: int = 0, batches: int = BATCHES, series: int = SERIES) -> np.ndarray:
    """Return draws (batch, series), each series with a scale of its own."""
    rng = np.random.default_rng(seed)
    size = (batches, series)
    drawn = {
        "gaussian": lambda: rng.standard_normal(size),
        "laplace": lambda: rng.laplace(size=size),
        "student": lambda: rng.standard_t(4, size),
        "stable": lambda: stable.rvs(1.6, size=size, rng=rng),
        "mixture": lambda: (
            rng.standard_normal(size) * np.where(rng.uniform(size=size) < 0.1, 5.0, 1.0)
        ),
    }[law]()
    return drawn * np.exp(rng.standard_normal(series))


def kernel(x: np.ndarray, **options) -> dict[str, np.ndarray]:
    return noise_law(x[None, None], np.array([[7]], dtype=np.uint64), **options)


@pytest.mark.parametrize(
    ("law", "verdict"),
    [
        ("gaussian", "gaussian"),
        ("laplace", "finite_variance"),
        ("student", "finite_variance"),
        ("stable", "stable"),
        ("mixture", "scale_mixture"),
    ],
)
def test_the_verdict_is_the_law(law: str, verdict: str, tmp_path) -> None:
    with tracelab.create(tmp_path / "run.zarr", layers={"w": (SERIES,)}) as writer:
        for step in (0, 10):
            writer.append("noise", step=step, sampled=noise(law, seed=step))
    trace = tracelab.open(tmp_path / "run.zarr")
    found = tracelab.analyze(trace, "noise_law")["noise_law"]
    assert found["law"].values.tolist() == list(LAWS)
    layer = found.sel(layer="w")
    assert (layer["status"] == Status.OK).all()
    assert [VERDICTS[each] for each in layer["verdict"].values] == 2 * [verdict]
    assert (layer["n_batches"] == BATCHES).all()
    assert (layer["n_series"] == SERIES).all()
    summary = found.attrs["finding"]
    words = {"gaussian": "not rejected"}.get(verdict, verdict.replace("_", " "))
    assert words in summary
    figure = ANALYSIS.plot({"a": found, "b": found})
    assert len(figure.axes) == 2


def test_parameters_are_those_of_the_laws() -> None:
    """Scaled by quartiles: shapes do not depend on it."""
    truth = {"stable": ("alpha", 1.6), "student": ("df", 4.0), "laplace": ("shape", 1.0)}
    for law, (name, value) in truth.items():
        found = kernel(noise(law, seed=1))[name][0, 0]
        # Scales of 300 values blur shapes by about 1 / 300; five per cent beside.
        assert abs(found / value - 1) < 0.1, law
    found = kernel(noise("mixture", seed=1))
    assert abs(found["wide_share"][0, 0] - 0.1) < 0.02
    assert abs(found["wide_ratio"][0, 0] / 5 - 1) < 0.1


def test_errors_grow_with_the_dependence_within_minibatches() -> None:
    """Estimates from minibatches whose coordinates share a factor scatter, and say so."""
    estimates, errors = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((200, 20)) / np.sqrt(rng.chisquare(4, (200, 1)) / 4)
        found = kernel(x)
        estimates.append(found["df"][0, 0])
        errors.append(found["df_se"][0, 0])
    # The design effect is that of log-densities, not of the scores of df: within a factor of two.
    assert 0.5 < np.mean(errors) / np.std(estimates) < 2
    alone = kernel(np.random.default_rng(0).standard_t(4, (200, 20)))
    assert np.mean(errors) > 1.5 * alone["df_se"][0, 0]


def test_criteria_and_tests_are_the_definitions() -> None:
    x = noise("student", seed=2, series=5)
    found = kernel(x)
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    values = (x - middle) / (high - low)
    fits = models.fit(values.ravel())

    def said(law: str) -> np.ndarray:
        return models.logpdf(law, values.ravel(), fits[law].parameters).reshape(300, 5).sum(axis=1)

    for place, law in enumerate(LAWS):
        expected = fits[law].bic - fits["gaussian"].bic
        np.testing.assert_allclose(found["bic_difference"][0, 0, place], expected, rtol=1e-9)
    finite = LAWS[int(np.argmin(found["bic_difference"][0, 0]))]
    assert finite == "student_t"
    sums = said("stable") - said(finite)
    statistic = math.sqrt(300) * sums.mean() / sums.std(ddof=1)
    np.testing.assert_allclose(found["stable_preference"][0, 0], statistic, rtol=1e-7)
    # On the control no law is preferred but by what fitting gains: here it is nearly Vuong's.
    sums = said(finite) - said("gaussian")
    vuong = math.sqrt(300) * sums.mean() / sums.std(ddof=1)
    assert 0.7 * vuong < found["preference"][0, 0, LAWS.index(finite)] < 1.1 * vuong
    assert np.isnan(found["preference"][0, 0, LAWS.index("gaussian")])


def test_gaussian_noise_is_hardly_ever_called_anything_else() -> None:
    """At a level of 1 %, 40 cells; and coordinates that move together are no evidence."""
    rng = np.random.default_rng(3)
    wrong = 0
    for seed in range(20):
        alone = noise("gaussian", seed=seed, series=20)
        mixing = rng.standard_normal((20, 20))
        for x in (alone, alone @ mixing):
            wrong += VERDICTS[kernel(x)["verdict"][0, 0]] != "gaussian"
    # A binomial of 40 at 1 % is above 3 once in 1,500 times.
    assert wrong <= 3


def test_what_is_called_detectable_is_detected() -> None:
    df = kernel(noise("gaussian", series=20))["detectable_df"][0, 0]
    seen = 0
    for seed in range(40):
        x = np.random.default_rng(seed).standard_t(df, (BATCHES, 20))
        seen += VERDICTS[kernel(x)["verdict"][0, 0]] != "gaussian"
    # .8, less four binomial standard errors of 40.
    assert seen / 40 > 0.8 - 4 * math.sqrt(0.16 / 40)


def test_many_series_are_drawn_from(monkeypatch) -> None:
    from tracelab_analyses import noise_law as module

    monkeypatch.setattr(module, "MOST_VALUES", BATCHES * 10)
    x = noise("laplace")
    found, again = kernel(x), kernel(x)
    assert found["n_series"][0, 0] == 10
    assert found["n_dropped"][0, 0] == 0
    xr.testing.assert_identical(
        xr.Dataset({k: (("a", "b", "c")[: v.ndim], v) for k, v in found.items()}),
        xr.Dataset({k: (("a", "b", "c")[: v.ndim], v) for k, v in again.items()}),
    )


def test_statuses() -> None:
    x = noise("gaussian", series=4)
    x[:, 1], x[:200, 2] = 0.0, 0.0
    found = kernel(x)
    assert (found["n_series"][0, 0], found["n_dropped"][0, 0]) == (2, 2)
    for broken, status in (
        (np.full((300, 2), np.nan), Status.NON_FINITE_INPUT),
        (np.zeros((300, 2)), Status.CONSTANT_INPUT),
        (x[:10, :1], Status.TOO_FEW_SAMPLES),
    ):
        found = kernel(broken)
        assert found["status"][0, 0] == status
        assert found["verdict"][0, 0] == 0
        assert np.isnan(found["bic_difference"]).all()
        assert np.isnan(found["detectable_df"][0, 0])
